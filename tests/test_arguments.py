"""Every public function says in one line which argument it cannot take, and takes what means the same."""

import importlib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from assertions import unchecked_types
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float, Int
from torch import Tensor
from users import users_model

import causal_circuits as cc
from causal_circuits import circuits
from causal_circuits.arguments import ArgumentError, check_arguments

ROOMS = ("", "circuits", "discovery", "figures", "information", "interventions", "models", "tasks", "training")
GRAPH = cc.chain_graph(6)
TASK = cc.InContextTask(GRAPH, d_vocab=3)
BATCH = TASK.sample(64, seed=0)
MODEL = cc.plant_circuit(GRAPH, d_vocab=3)


class Stranger:
    """What no function can take."""


def public() -> dict[str, Any]:
    """Every public function and class of ours by name; exceptions and named types take what they like."""
    found = {}
    for room in ROOMS:
        module = importlib.import_module(f"{cc.__name__}.{room}".rstrip("."))
        for name in module.__all__:
            value = getattr(module, name)
            ours = str(getattr(value, "__module__", "")).startswith(cc.__name__)
            if ours and (inspect.isfunction(value) or (isinstance(value, type) and not issubclass(value, Exception))):
                found[f"{room}.{name}"] = value
    return found


def constructor(value: Any) -> Any:
    return value.__init__ if isinstance(value, type) else value


def hints_of(value: Any) -> dict[str, Any]:
    """The annotations, also of constructors that jaxtyping's hook is told to leave alone."""
    function = inspect.unwrap(constructor(value))
    parameters = inspect.signature(function).parameters.values()
    names = {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    hints = typing.get_type_hints(function, include_extras=True)
    return {name: hint for name, hint in hints.items() if name in names}


def refusal(call: Callable[[], object]) -> str:
    """The one line of the ArgumentError that the call raises."""
    with pytest.raises(ArgumentError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)
    return message


@pytest.mark.parametrize("name", public())
def test_every_argument_of_every_public_function_is_held_to_its_annotation(name: str) -> None:
    value = public()[name]
    for parameter, hint in hints_of(value).items():
        if hint not in (Any, object):
            message = refusal(lambda parameter=parameter: value(**{parameter: Stranger()}))
            assert message.startswith(f"{value.__name__}: {parameter} must be "), message
            assert "got a Stranger" in message
        options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        for least in [option.__metadata__[0].smallest for option in options if hasattr(option, "__metadata__")]:
            message = refusal(lambda parameter=parameter, least=least: value(**{parameter: least - 1}))
            assert f"{parameter} must be an integer of at least {least}" in message
            assert f"got {least - 1}" in message


REFUSED: dict[str, tuple[Callable[[], object], tuple[str, ...]]] = {
    "task and model swapped": (lambda: cc.train(TASK, MODEL), ("model must be a HookedTransformer", "build one with")),
    "tokens for a batch": (lambda: cc.evaluate(MODEL, BATCH.tokens), ("evaluate: batch", "int64 tensor [64, 6]")),
    "a model for a circuit's": (lambda: circuits.prove_circuit(MODEL, []), ("CircuitModel", "circuits.circuit_model(")),
    "one step for several": (lambda: cc.RecordAt(10), ("a sequence (each item: an integer of at least 0) or None",)),
    "one float among integers": (
        lambda: cc.knock_out_edges(MODEL, BATCH, entries=[(0, 1, 0)] * 50 + [(0, 1, 0.5)]),
        ("knock_out_edges: entries", "(an integer, an integer, an integer)"),
    ),
    "True for a number": (lambda: cc.training.default_stages(True), ("default_stages: steps must be an integer",)),
    "a negative seed": (lambda: cc.predicted_gradient(TASK, seed=-1), ("seed", "non-negative integer", "-1")),
    "labels [N, n - 1]": (lambda: cc.Batch(BATCH.tokens, BATCH.tokens[:, 1:]), ("[batch, n_ctx]", "[batch]")),
    "one sequence for a batch": (lambda: cc.Batch(BATCH.tokens[0], BATCH.target_probs), ("[batch, n_ctx]", "[6]")),
    "tokens that are no integers": (lambda: cc.Batch(BATCH.tokens / 2, BATCH.target_probs), ("float32 tensor",)),
    "more targets than sequences": (lambda: cc.Batch(BATCH.tokens, BATCH.target_probs[:9]), ("target_probs", "[9, 3]")),
    "methods too": (lambda: TASK.sample("ten"), ("sample: n must be an integer", "'ten'")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_type_is_named_in_one_line(case: str) -> None:
    """The same line with jaxtyping's import hook at work (as here) and without it (as for a user)."""
    call, words = REFUSED[case]
    message = refusal(call)
    assert all(word in message for word in words), message
    with unchecked_types():
        assert refusal(call) == message


INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64, torch.uint64)


@given(
    integers=st.sampled_from([*INTEGERS, "i1", "u1", "<i2", ">i4", "u8", "i8", list, "read-only", "backwards"]),
    floats=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64, "f2", ">f4", "f8", list]),
    n=st.integers(1, 20),
)
def test_a_batch_of_anything_equals_the_batch_of_tensors(integers: Any, floats: Any, n: int) -> None:
    """Targets of a quarter, a half and the like, which every precision holds."""
    probs = torch.tensor([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]]).repeat(n, 1)[:n]
    batch = cc.Batch(as_kind(BATCH.tokens[:n], integers), as_kind(probs, floats))
    assert batch.tokens.dtype == torch.int64
    assert torch.equal(batch.tokens, BATCH.tokens[:n])
    assert batch.target_probs.dtype == (torch.float64 if floats in (torch.float64, "f8") else torch.float32)
    assert torch.equal(batch.target_probs.float(), probs)


def as_kind(values: Tensor, kind: Any) -> Any:
    """A tensor as a tensor, an array or lists of another type."""
    if isinstance(kind, torch.dtype):
        return values.to(kind)
    if kind is list:
        return values.tolist()
    array = values.numpy().copy()
    if kind == "backwards":
        return array[::-1].copy()[::-1]
    if kind == "read-only":
        array.flags.writeable = False
        return array
    return array.astype(kind)


def test_labels_are_the_probabilities_nought_and_one() -> None:
    labels = BATCH.target_probs.argmax(dim=1)
    expected = torch.zeros(64, 4).scatter_(1, labels[:, None], 1.0)
    for given_labels in (labels, labels.int(), labels.numpy().astype("u1"), labels.tolist()):
        assert torch.equal(cc.Batch(BATCH.tokens, given_labels, d_vocab=4).target_probs, expected)
    assert cc.Batch([[0, 2]], [1]).target_probs.tolist() == [[0.0, 1.0, 0.0]]


def test_what_means_the_same_gives_the_same() -> None:
    """Raw tokens of another width, arrays, a batch for its tokens, lists for tuples."""
    attention = cc.mean_attention(MODEL, BATCH.tokens)
    for tokens in (BATCH, BATCH.tokens.int(), BATCH.tokens.numpy(), BATCH.tokens.tolist()):
        assert torch.equal(cc.mean_attention(MODEL, tokens), attention)
    assert cc.ablate_heads(MODEL, BATCH, np.array([[0, 0]])) == cc.ablate_heads(MODEL, BATCH, [(0, 0)])
    assert cc.Stage(np.int32(5), np.float32(0.5), train=["W_Q.0"]) == cc.Stage(5, 0.5, train=("W_Q.0",))
    assert cc.RecordAt(range(3)) == cc.RecordAt(np.arange(3)) == cc.RecordAt((0, 1, 2))
    measured = cc.measured_gradient(BATCH.tokens, BATCH.target_probs).value
    assert torch.equal(cc.measured_gradient(BATCH, BATCH.target_probs.numpy()).value, measured)


def test_a_model_of_other_outputs_is_judged_by_targets_of_as_many() -> None:
    model = users_model(d_vocab_out=5, dtype=torch.float32)
    probs = torch.tensor([0.5, 0.25, 0.125, 0.125, 0.0]).expand(64, 5)
    batch = cc.Batch(BATCH.tokens, probs)
    plain = -(probs * model(BATCH.tokens)[:, -1].log_softmax(dim=-1)).sum(dim=-1).detach().double()
    assert torch.allclose(cc.evaluate(model, batch), plain, atol=1e-5)
    assert cc.ablate_heads(model, batch, [(1, 2)]).baseline_loss == pytest.approx(float(plain.mean()), abs=1e-5)
    assert cc.knock_out_edges(model, batch).baseline_loss == pytest.approx(float(plain.mean()), abs=1e-5)


@check_arguments
def example(
    mode: Literal["a", "b"] = "a",
    pairs: Sequence[tuple[int, str]] = (),
    names: Iterable[str] = (),
    table: Mapping[str, float] | None = None,
    nested: Sequence[int | Sequence[int] | None] = (),
    left: Float[Tensor, "rows columns"] | None = None,
    right: Int[np.ndarray, "rows"] | None = None,
) -> tuple[Any, ...]:
    """Arguments as the function sees them."""
    return mode, pairs, names, table, nested, left, right


def test_what_fits_is_handed_on_untouched() -> None:
    arguments = ("b", [(1, "x")], {"u", "v"}, {"k": 1.5}, [1, (2, 3), None], torch.zeros(2, 3), np.zeros(2, int))
    assert all(seen is given for seen, given in zip(example(*arguments), arguments, strict=True))
    lazily = iter(["u"])
    assert example(names=lazily)[2] is lazily
    assert list(lazily) == ["u"]


def test_axes_of_one_name_agree_within_a_call_and_with_no_other_call_s() -> None:
    example(left=torch.zeros(2, 3), right=np.zeros(2, int))
    example(left=torch.zeros(4, 3), right=np.zeros(4, int))
    message = refusal(lambda: example(left=torch.zeros(4, 3), right=np.zeros(2, int)))
    assert "right must be integers [rows]" in message
    assert "left is [4, 3]" in message
    assert "equally long" not in refusal(lambda: example(left=torch.zeros(4, 3), right=np.zeros(4)))  # of another kind


@given(place=st.integers(0, 199), wrong=st.sampled_from([0.5, "x", None, (1,), (1, 2), (1.0, "a")]))
def test_every_item_of_a_long_sequence_is_looked_at(place: int, wrong: object) -> None:
    pairs: list[object] = [(1, "a")] * 200
    pairs[place] = wrong
    refusal(lambda: example(pairs=pairs))
    refusal(lambda: example(table={str(key): str(wrong) if key == place else 1.0 for key in range(200)}))
