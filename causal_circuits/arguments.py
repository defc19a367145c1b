"""Arguments of public functions are held to their annotations; one that does not fit is refused in one line.

`check_arguments` stands above every public function and class: beartype and jaxtyping read the annotations when the
function is called, before anything else happens. Converted is only what notebooks are full of: numpy numbers to
Python's, lists and numpy arrays to tensors, integers of any width to int64, half precision to float32, a `Batch` to its
tokens where tokens are wanted, lists to tuples. Anything else is an `ArgumentError`: function, argument, what it must
be, what it is, what to do.
"""

import inspect
import os
import reprlib
import typing
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, no_type_check

import numpy as np
import torch
from beartype import BeartypeConf
from beartype.door import is_bearable
from jaxtyping import AbstractArray, jaxtyped
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])

_TOWER = BeartypeConf(is_pep484_tower=True)  # an int is a float
_CONTAINERS = (Sequence, Iterable, Collection, Mapping, tuple, list, dict)
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
    "n_heads": "give one number a layer, such as (1, 1)",
    "HookedTransformer": "build one with disentangled_transformer, ordinary_transformer or load_model",
    "InContextTask": "make one with InContextTask(graph, d_vocab=10)",
    "Task": "make one with InContextTask(graph, d_vocab=10)",
    "Batch": "make one with Batch(tokens, targets) or task.sample(256)",
    "TrainConfig": "make one with TrainConfig.joint(500), which trains for 500 steps",
    "RecordAt": "make one with RecordAt((0, 10)) or RecordAt.every(10, until=500)",
    "DiGraph": "make one with graph_from_parents, random_forest or graph_from_digraph; task.graph is one",
    "CircuitModel": "make one with circuits.circuit_model(model, batch)",
}


RENAMED = {"kernels": "transition_matrices", "n_kernels": "n_matrices"}  # keywords until 0.1; they warn until 0.2


ONE_LENGTH = "sequences are not padded: cut them to one length, or make a batch for each length"


class ArgumentError(TypeError, ValueError):
    """An argument is not of the type that its function takes."""


@dataclass(frozen=True)
class AtLeast:
    """The least value of an argument, beside its type: ``Annotated[int, AtLeast(1)]``."""

    smallest: int


Place = Annotated[int, AtLeast(0)]  # counted from 0
Count = Annotated[int, AtLeast(1)]
Several = Annotated[int, AtLeast(2)]

_MISFIT = object()  # what a value becomes that neither is nor can be converted to what an annotation asks for


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
    if not isinstance(function, type):
        return _checked(function, function.__qualname__)
    for name, member in list(vars(function).items()):
        label = function.__name__ if name == "__init__" else f"{function.__name__}.{name}"
        if isinstance(member, classmethod):
            setattr(function, name, classmethod(_checked(member.__func__, label)))
        elif inspect.isfunction(member) and (name == "__init__" or not name.startswith("_")):
            setattr(function, name, _checked(member, label))
    return function


def _checked(function: Any, label: str) -> Any:
    if not function.__annotations__.keys() - {"return"}:
        return function
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    # not yet, when first called: an annotation may name a class that comes later
    hints = cache(lambda: typing.get_type_hints(function, include_extras=True))

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        for old in RENAMED.keys() & kwargs.keys():
            if RENAMED[old] in names and RENAMED[old] not in kwargs:
                warnings.warn(f"{label}: {old} is {RENAMED[old]} now", DeprecationWarning, stacklevel=2)
                kwargs[RENAMED[old]] = kwargs.pop(old)
        if "attention_mask" in kwargs:
            raise ArgumentError(f"{label} takes no attention_mask: {ONE_LENGTH}")
        given = dict(zip(names, args, strict=False))
        if len(given) < len(args) or not given.keys().isdisjoint(kwargs):
            return function(*args, **kwargs)  # Python itself says which argument is one too many
        taken = given | kwargs
        with jaxtyped("context"):  # axes of one name agree among the arguments of a call, and with no other call's
            for name in filter(hints().__contains__, list(taken)):
                taken[name] = _take(label, name, hints()[name], taken)
        return function(*(taken[name] for name in given), **{name: taken[name] for name in kwargs})

    checked.__no_type_check__ = function.__name__ == "__init__"  # type: ignore[attr-defined]  # no second check in tests
    return checked


# jaxtyping's import hook leaves these alone (`no_type_check`): it would begin to name axes anew in each of them.
@no_type_check
def _take(label: str, name: str, hint: Any, given: Mapping[str, Any]) -> Any:
    """An argument as it is handed on, or an ArgumentError."""
    value = _convert(given[name], hint)
    if value is _MISFIT:
        raise ArgumentError(f"{label}: {_explain(name, hint, given)}")
    if name == "seed" and isinstance(value, int) and value < 0:
        raise ArgumentError(f"{label}: seed must be a non-negative integer: got {value}")
    return value


@no_type_check
def _convert(value: Any, hint: Any) -> Any:
    """The value as `hint` asks for it, the very same object where it fits already; _MISFIT if it cannot be."""
    if type(value) is hint:
        return value
    origin = get_origin(hint) or hint
    if origin is Annotated:
        value = _convert(value, hint.__origin__)
        return value if value is not _MISFIT and value >= hint.__metadata__[0].smallest else _MISFIT
    if origin in (Union, UnionType):  # the first option that fits as it is; failing that, the first to convert to
        found = (one for option in get_args(hint) if (one := _convert(value, option)) is not _MISFIT)
        first = next(found, _MISFIT)
        return first if first is value else next((one for one in found if one is value), first)
    if origin in _CONTAINERS:
        return _convert_items(value, origin, get_args(hint) or (Any, Any))
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return _convert_array(value, hint)
    if isinstance(value, bool) and hint in (int, float):  # Python takes True for 1
        return _MISFIT
    if is_bearable(value, hint, conf=_TOWER):
        return value
    is_scalar = isinstance(value, np.generic | np.ndarray | Tensor) and value.ndim == 0
    return _convert(value.item(), hint) if is_scalar else _MISFIT


@no_type_check
def _convert_items(value: Any, origin: Any, hints: tuple[Any, ...]) -> Any:
    """A container with every item converted; the very same object where none had to be."""
    if issubclass(origin, Mapping):
        if not isinstance(value, origin):
            return _MISFIT
        made = {_convert(key, hints[0]): _convert(item, hints[1]) for key, item in value.items()}
        if any(one is _MISFIT for pair in made.items() for one in pair):
            return _MISFIT
        return value if all(made.get(key) is item for key, item in value.items()) else made
    items = value.tolist() if isinstance(value, np.ndarray | Tensor) and value.ndim else value
    if isinstance(items, str | bytes) or not isinstance(items, Sequence if origin in (tuple, list) else origin):
        return _MISFIT
    if isinstance(items, Iterator):
        return items
    wanted = hints if origin is tuple and Ellipsis not in hints else [hints[0]] * len(items)
    converted = [_convert(item, hint) for item, hint in zip(items, wanted, strict=False)]
    if len(items) != len(wanted) or any(one is _MISFIT for one in converted):
        return _MISFIT
    if isinstance(value, origin) and all(a is b for a, b in zip(converted, value, strict=True)):
        return value
    return tuple(converted) if origin is tuple else converted


@no_type_check
def _convert_array(value: Any, hint: type[AbstractArray]) -> Any:
    """A tensor (or a numpy array) of the kind of numbers and the axes that the annotation names."""
    wants_integers = "int64" in hint.dtypes
    if wants_integers:
        value = getattr(value, "tokens", value)  # a Batch
    array = value if isinstance(value, Tensor) else _tensor(value)
    if array is _MISFIT or array.is_nested:
        return _MISFIT
    if wants_integers and not array.is_floating_point() and array.dtype != torch.bool:
        array = array.long()
    elif array.dtype in (torch.float16, torch.bfloat16):
        array = array.float()
    if hint.array_type is not Tensor:
        array = value if isinstance(value, np.ndarray) else array.detach().cpu().numpy()
    return array if isinstance(array, hint) else _MISFIT


def _tensor(value: Any) -> Any:
    """Lists and numpy arrays of any byte order and strides; lists of floats in torch's own precision."""
    if np.ma.is_masked(value):
        return _MISFIT
    try:
        array = np.asarray(value)
        single = array.itemsize < 8 or not hasattr(value, "dtype")
        kinds = {"i": np.int64, "u": np.int64, "b": np.bool_, "f": np.float32 if single else np.float64}
        return torch.from_numpy(np.require(array, kinds[array.dtype.kind], ["C", "W"]))
    except (KeyError, TypeError, ValueError, RuntimeError):  # no numbers, ragged lists, tensors on another device
        return _MISFIT


def _explain(name: str, hint: Any, given: Mapping[str, Any]) -> str:
    """Argument, what it must be, what it is, what to do."""
    said = f"{name} must be {_words(hint)}: got {shown(given[name])}"
    others = [f"{other} is {list(array.shape)}" for other, array in given.items()
              if other != name and isinstance(array, Tensor | np.ndarray)]  # fmt: skip
    with jaxtyped("context"):  # without the other arguments
        fits_alone = _convert(given[name], hint) is not _MISFIT
    if fits_alone and isinstance(given[name], Tensor | np.ndarray) and others:
        said += f", where {', '.join(others)}: axes of one name must be equally long"
    kinds = (hint, *get_args(hint))
    if any("int64" in getattr(kind, "dtypes", ()) for kind in kinds) and _is_ragged(given[name]):
        return f"{said}; {ONE_LENGTH}"
    keys = [name, *(getattr(kind, "__name__", "") for kind in kinds)]
    made = [_MAKE[key] for key in keys if key in _MAKE]
    return "; ".join([said, *made[:1]])


def _is_ragged(value: Any) -> bool:
    """Whether these are sequences of different lengths, in lists, in an array of arrays, nested or masked."""
    if isinstance(value, Tensor):
        return value.is_nested
    is_list = isinstance(value, np.ndarray | Sequence) and not isinstance(value, str) and getattr(value, "ndim", 1) > 0
    rows = [row for row in value if hasattr(row, "__len__")] if is_list else []
    return bool(np.ma.is_masked(value)) or len({len(row) for row in rows}) > 1


def _words(hint: Any) -> str:
    """An annotation in words, with the axes of an array."""
    origin, items = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, UnionType):
        *words, last = dict.fromkeys(map(_words, items))
        return f"{', '.join(words)} or {last}" if words else last
    if origin is Annotated:
        return f"{_words(hint.__origin__)} of at least {hint.__metadata__[0].smallest}"
    if origin is Literal:
        return f"one of {', '.join(map(str, items))}"
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        kinds = {"int64": "integers", "float32": "floating-point numbers"}
        return f"{next((kinds[d] for d in hint.dtypes if d in kinds), 'booleans')} [{', '.join(hint.dim_str.split())}]"
    if origin is tuple and items and Ellipsis not in items:
        return f"a tuple ({', '.join(map(_words, items))})"
    if origin in _CONTAINERS:
        kind = "a mapping" if issubclass(origin, Mapping) else "a sequence"
        return f"{kind} (each item: {_words(items[-1 if kind == 'a mapping' else 0])})" if {*items} - {Any} else kind
    return _NAMES.get(origin) or (_with_article(origin.__name__) if isinstance(origin, type) else str(hint))


def shown(value: Any) -> str:
    """A value in one short line, for a message."""
    if isinstance(value, Tensor | np.ndarray):
        kind = "tensor" if isinstance(value, Tensor) else "array"
        if isinstance(value, Tensor) and value.is_nested:
            return "a nested tensor"
        return f"{_with_article(str(value.dtype).removeprefix('torch.'))} {kind} {list(value.shape)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, str | int | float | complex | np.generic | Sequence | dict | set):
        return " ".join(reprlib.repr(value).split())
    return _with_article(type(value).__name__)


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiouAEIO' else 'a'} {noun}"
