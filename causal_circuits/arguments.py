"""Arguments of public functions: converted where that is harmless, refused in one line where it is not.

`check_arguments` stands above every public function and class. It holds each argument to its annotation at run time
(beartype and jaxtyping read the annotations), when the function is called and before anything else happens:

* what means the same is converted: numpy numbers to Python's, arrays and lists to tensors, integers of any width to
  int64, half precision to float32, a `Batch` to its tokens where tokens are wanted, lists to tuples, one pair
  or one name to a sequence of one;
* anything else raises an `ArgumentError`: function, argument, what it must be, what it is, what to do.
"""

import inspect
import os
import reprlib
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache, wraps
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, no_type_check

import numpy as np
import torch
from beartype import BeartypeConf
from beartype.door import is_bearable
from jaxtyping import AbstractArray, jaxtyped
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])

_TOWER = BeartypeConf(is_pep484_tower=True)  # an int is a float
_UNIONS = (Union, UnionType)
_COLLECTIONS = (Sequence, Iterable, Collection, Mapping, tuple, list, dict)
_INTEGERS = "int64"  # an annotation of integers allows this dtype, no other kind of numbers does
_OTHER_INTEGERS = (torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64)
_HALF = (torch.float16, torch.bfloat16)
_NAMES: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    str: "a string",
    bool: "True or False",
    NoneType: "None",
    Callable: "a function",
    os.PathLike: "a path",
    np.ndarray: "a numpy array",
    Tensor: "a tensor",
}
_MAKE = {  # how to come by an argument, by its name or its class
    "labels": "position_labels makes them",
    "n_heads": "give one number a layer, such as (1, 1)",
    "parents": "give a list of an integer position, a tuple of several, or None for a root, one for each position",
    "HookedTransformer": "build one with disentangled_transformer, ordinary_transformer or load_model",
    "InContextTask": "make one with InContextTask(graph, d_vocab=10)",
    "Task": "make one with InContextTask(graph, d_vocab=10)",
    "Batch": "make one with Batch(tokens, targets) or task.sample(256)",
    "TrainConfig": "make one with TrainConfig.joint(500), which trains for 500 steps",
    "TurnConfig": "make one with TurnConfig(steps=500)",
    "RecordAt": "make one with RecordAt((0, 10)) or RecordAt.every(10, until=500)",
    "Checkpoints": "make one with Checkpoints(folder)",
    "Stage": "make one with Stage(500, 0.01)",
    "DiGraph": "make one with graph_from_parents, random_forest or graph_from_digraph; task.graph is one",
    "CircuitModel": "make one with circuits.circuit_model(model, batch)",
    "EntryModel": "make one with circuits.entry_model(model, batch)",
    "TrainingRecord": "train and TrainingRecord.load return one",
    "Discovery": "circuits.discover returns one",
    "Frontier": "circuits.oracle_frontier returns one",
    "CircuitProof": "circuits.prove_circuit returns one",
}


class ArgumentError(TypeError, ValueError):
    """An argument is not of the type that its function takes."""


class _Misfit(Exception):
    """A value neither is nor can be converted to what an annotation asks for."""


def check_arguments(function: F) -> F:
    """Hold a function's arguments, or a class's constructor and public methods, to their annotations.

    >>> @check_arguments
    ... def total(values: Sequence[int], times: int = 1) -> int:
    ...     return sum(values) * times
    >>> total([1, 2], times=np.int32(3))
    9
    >>> total([1, 2], times="3")
    Traceback (most recent call last):
    causal_circuits.arguments.ArgumentError: total: times must be an integer: got '3'
    """
    if isinstance(function, type):
        _check_class(function)
        return function
    return _checked(function, function.__qualname__)


def _check_class(cls: type) -> None:
    """Constructor and public methods; the constructor is checked here alone, not by jaxtyping's import hook again."""
    for name, member in list(vars(cls).items()):
        label = cls.__name__ if name == "__init__" else f"{cls.__name__}.{name}"
        if isinstance(member, classmethod):
            setattr(cls, name, classmethod(_checked(member.__func__, label)))
        elif inspect.isfunction(member) and (name == "__init__" or not name.startswith("_")):
            checked = _checked(member, label)
            if name == "__init__":
                checked.__no_type_check__ = True
            setattr(cls, name, checked)


def _checked(function: Any, label: str) -> Any:
    names = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY
    ]
    hints = cache(lambda: _hints(function))  # when first called: an annotation may name a class that comes later

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        given = dict(zip(names, args, strict=False))
        if len(given) < len(args) or not given.keys().isdisjoint(kwargs):
            return function(*args, **kwargs)  # Python itself says which argument is one too many
        taken = _take(label, hints(), given | kwargs)
        return function(*(taken[name] for name in given), **{name: taken[name] for name in kwargs})

    return checked


def _hints(function: Any) -> dict[str, Any]:
    """The annotation of every parameter that has one; ``*args`` and ``**kwargs`` are for the function itself."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    skipped = {name for name, p in inspect.signature(function).parameters.items() if p.kind in variadic}
    hints = typing.get_type_hints(function)
    return {name: hint for name, hint in hints.items() if name != "return" and name not in skipped}


def _take(label: str, hints: Mapping[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    taken = given.copy()
    with jaxtyped("context"):  # axes of one name agree among the arguments of a call, and with no other call's
        for name, value in given.items():
            if name in hints:
                try:
                    taken[name] = _convert(value, hints[name])
                    if name == "seed" and isinstance(taken[name], int) and taken[name] < 0:
                        raise ArgumentError(f"{label}: seed must be a non-negative integer: got {taken[name]}")
                    if name == "chunk" and taken[name] < 1:
                        raise ArgumentError(f"{label}: chunk must be at least 1 sequence: got {taken[name]}")
                except _Misfit:
                    raise ArgumentError(f"{label}: {_explain(name, hints, taken)}") from None
    return taken


# jaxtyping's import hook leaves these alone (`no_type_check`): it would begin to name axes anew in each of them.
@no_type_check
def _convert(value: Any, hint: Any) -> Any:
    """The value as `hint` asks for it, the very same object where it fits already; a _Misfit if it cannot be."""
    if isinstance(value, bool) and hint in (int, float):  # Python takes True for 1
        raise _Misfit
    if not isinstance(value, bool) and _is_flat(hint) and is_bearable(value, hint, conf=_TOWER):
        return value
    origin = get_origin(hint) or hint
    if origin in _UNIONS:
        return _convert_to_one(value, get_args(hint))
    if origin in _COLLECTIONS:
        return _convert_items(value, origin, get_args(hint))
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return _convert_array(value, hint)
    if isinstance(value, bool) and is_bearable(value, hint, conf=_TOWER):
        return value
    if isinstance(value, np.generic | np.ndarray | Tensor) and value.ndim == 0:
        return _convert(value.item(), hint)
    raise _Misfit


@cache
def _is_flat(hint: Any) -> bool:
    """Whether beartype looks at all of it: of a long sequence it would look at one item, of integers at any width."""
    origin, options = get_origin(hint) or hint, get_args(hint)
    if origin in _UNIONS or origin is tuple:
        return Ellipsis not in options and bool(options) and all(_is_flat(option) for option in options)
    return origin not in _COLLECTIONS and not (isinstance(hint, type) and issubclass(hint, AbstractArray))


@no_type_check
def _convert_to_one(value: Any, options: tuple[Any, ...]) -> Any:
    """The first option that the value fits as it is; failing that, the first that it can be converted to."""
    found = []
    for option in options:
        try:
            converted = _convert(value, option)
        except _Misfit:
            continue
        if converted is value:
            return value
        found.append(converted)
    if not found:
        raise _Misfit
    return found[0]


@no_type_check
def _convert_array(value: Any, hint: type[AbstractArray]) -> Any:
    """A tensor (or a numpy array) of the kind of numbers and the axes that the annotation names."""
    if not isinstance(value, Tensor) and _INTEGERS in hint.dtypes:
        value = getattr(value, "tokens", value)  # a Batch
    if hint.array_type is not Tensor:
        value = value.detach().cpu() if isinstance(value, Tensor) else value
        array = value if isinstance(value, np.ndarray) else _numbers(value)
    else:
        array = value if isinstance(value, Tensor) else torch.from_numpy(_numbers(value))
        if _INTEGERS in hint.dtypes and array.dtype in _OTHER_INTEGERS:
            array = array.long()
        elif array.dtype in _HALF:
            array = array.float()
    if not isinstance(array, hint):
        raise _Misfit
    return array


def _numbers(value: Any) -> np.ndarray:
    """An array that torch can share memory with; integers as int64, lists of floats in torch's own precision."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # ragged lists, tensors on another device
        raise _Misfit from None
    wanted = {"i": np.int64, "u": np.int64, "b": np.bool_, "f": np.float64 if array.itemsize >= 8 else np.float32}
    if array.dtype.kind not in wanted:
        raise _Misfit
    is_list = not hasattr(value, "dtype") and array.dtype.kind == "f"
    array = array.astype(np.float32 if is_list else wanted[array.dtype.kind], copy=False)
    return array if array.flags.writeable and min(array.strides, default=0) >= 0 else array.copy()


@no_type_check
def _convert_items(value: Any, origin: Any, options: tuple[Any, ...]) -> Any:
    """A sequence, mapping or tuple with every item converted; one pair or one name stands for a sequence of one."""
    if issubclass(origin, Mapping):
        return _convert_mapping(value, origin, options)
    pair = origin is tuple and Ellipsis not in options
    items = value.tolist() if isinstance(value, np.ndarray | Tensor) and value.ndim else value
    try:
        if isinstance(items, str | bytes) or not isinstance(items, Sequence if origin in (tuple, list) else origin):
            raise _Misfit
        if not options or isinstance(items, Iterator):
            return items
        if pair and len(items) != len(options):
            raise _Misfit
        if (
            not pair
            and isinstance(value, origin)
            and _is_flat(options[0])
            and all(is_bearable(item, options[0], conf=_TOWER) for item in items)
        ):
            return value
        wanted = options if pair else [options[0]] * len(list(items))
        converted = [_convert(item, hint) for item, hint in zip(items, wanted, strict=True)]
    except _Misfit:
        if pair or not _is_pair_or_name(options):
            raise
        converted = [_convert(value, options[0])]
    same_kind = isinstance(value, origin) and not isinstance(value, str)
    if same_kind and len(converted) == len(value) and all(a is b for a, b in zip(converted, value, strict=True)):
        return value
    return tuple(converted) if origin is tuple else converted


def _is_pair_or_name(options: tuple[Any, ...]) -> bool:
    return bool(options) and (options[0] is str or get_origin(options[0]) is tuple)


@no_type_check
def _convert_mapping(value: Any, origin: Any, options: tuple[Any, ...]) -> Any:
    if not isinstance(value, origin):
        raise _Misfit
    if not options:
        return value
    converted = {_convert(key, options[0]): _convert(item, options[1]) for key, item in value.items()}
    same = all(a is b and converted[a] is value[b] for a, b in zip(converted, value, strict=True))
    return value if same else converted


def _fits(value: Any, hint: Any) -> bool:
    """Whether the value alone would do."""
    with jaxtyped("context"):
        try:
            _convert(value, hint)
        except _Misfit:
            return False
        return True


def _explain(name: str, hints: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Argument, what it must be, what it is, what to do."""
    value, hint = given[name], hints[name]
    if _fits(value, hint):
        others = ", ".join(
            f"{other} is {list(array.shape)}"
            for other, array in given.items()
            if other != name and isinstance(array, Tensor | np.ndarray)
        )
        return f"{name} must be {_words(hint)}, axes of one name being equally long: got {shown(value)}, where {others}"
    said = f"{name} must be {_words(hint)}: got {shown(value)}"
    remedy = _remedy(name, hints, given)
    return f"{said}; {remedy}" if remedy else said


def _remedy(name: str, hints: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    value, hint = given[name], hints[name]
    for other in given.keys() & hints.keys() - {name}:
        if _fits(value, hints[other]) and _fits(given[other], hint) and not _fits(given[other], hints[other]):
            return f"{name} and {other} seem to be swapped"
    options = _options(hint)
    for attribute in ("module", "_orig_mod"):  # torch.nn.DataParallel, torch.compile
        if isinstance(value, torch.nn.Module) and any(_fits(getattr(value, attribute, None), o) for o in options):
            return f"it is a wrapper: pass its .{attribute}"
    if isinstance(value, type) and value in options:
        return "pass an instance, not the class"
    if name in _MAKE:
        return _MAKE[name]
    if isinstance(value, Tensor | np.ndarray) and value.ndim > 1 and len(value) and _fits(value[0], hint):
        return f"choose one, such as {name}[0]"
    if any(get_origin(option) in (Sequence, tuple) and _fits([value], option) for option in options):
        return (
            f"a single one is written [{shown(value)}]"
            if isinstance(value, int | float | str)
            else "put it into a list"
        )
    made = (_MAKE[option.__name__] for option in options if getattr(option, "__name__", None) in _MAKE)
    return next(made, "")


def _options(hint: Any) -> tuple[Any, ...]:
    if (get_origin(hint) or hint) in _UNIONS:
        return tuple(one for option in get_args(hint) for one in _options(option))
    return (hint,)


def _words(hint: Any) -> str:
    """An annotation in words, with the axes of an array."""
    options = _options(hint)
    if len(options) > 1:
        *words, last = dict.fromkeys(_words(option) for option in options)
        return f"{', '.join(words)} or {last}" if words else last
    origin, items = get_origin(hint) or hint, get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, items))}"
    if origin is tuple and items and Ellipsis not in items:
        return f"a tuple ({', '.join(_words(item) for item in items)})"
    if origin in _COLLECTIONS and issubclass(origin, Mapping):
        return f"a mapping from {_words(items[0])} to {_words(items[1])}" if items else "a mapping"
    if origin in _COLLECTIONS:
        return "a sequence" if items in ((), (Any,)) else f"a sequence (each item: {_words(items[0])})"
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        kind = (
            "integers"
            if _INTEGERS in hint.dtypes
            else "floating-point numbers"
            if "float32" in hint.dtypes
            else "booleans"
        )
        return f"{kind} [{', '.join(hint.dim_str.split())}]"
    if origin in _NAMES:
        return _NAMES[origin]
    return _with_article(origin.__name__) if isinstance(origin, type) else str(hint)


def shown(value: Any) -> str:
    """A value in one short line, for a message."""
    if isinstance(value, Tensor | np.ndarray):
        kind = "tensor" if isinstance(value, Tensor) else "array"
        return f"{_with_article(str(value.dtype).removeprefix('torch.'))} {kind} {list(value.shape)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, str | int | float | complex | np.generic | Sequence | dict | set):
        return " ".join(reprlib.repr(value).split())
    return _with_article(type(value).__name__)


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiouAEIO' else 'a'} {noun}"
