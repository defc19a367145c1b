"""Gradients for the methods that estimate effects to first order: of what arrives along edges, and of attention."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from causal_circuits.circuits.counterfactuals import Slots
from causal_circuits.circuits.evaluate import CircuitModel, Variants

Difference = Literal["pairs", "counterfactual"]


@dataclass(frozen=True)
class Gradients:
    """Derivatives of the mean cost of the whole model at some inputs.

    Attributes:
        edges: [edge]; along (clean value - other value) of each edge's sender, at the edge's reader.
        patterns, attention: head -> [batch, query_pos, key_pos]; each head's pattern, and the derivative by it.
    """

    edges: Float[Tensor, " edge"]
    patterns: dict[str, Tensor]
    attention: dict[str, Tensor]


@torch.inference_mode(False)
def gradients(model: CircuitModel, inputs: Slots, other: Slots) -> Gradients:
    """Backpropagate once, every edge carrying its sender's value plus a nudge towards the clean value from the other.

    Raises:
        ValueError: the metric has no gradient (accuracy).
    """
    nudges = torch.zeros(len(model.edges), dtype=model.weights.bias.dtype, requires_grad=True)
    patterns: dict[str, Tensor] = {}

    def read(slot: str, edge: int, value: Variants, circuits: Tensor) -> Tensor:
        n_rows = value.values.shape[2]
        difference = (model.clean[slot] - other[slot])[:, -n_rows:]
        return value.of(circuits) + nudges[edge] * difference

    def attend(head: str, pattern: Tensor) -> Tensor:
        patterns[head] = pattern
        return pattern

    with torch.enable_grad():
        cost = model.cost(model.predict(model.full[None], inputs, read, attend)).mean()
    need_gradient(model, cost)
    found = torch.autograd.grad(cost, [nudges, *patterns.values()], allow_unused=True)
    by_pattern = dict(zip(patterns, found[1:], strict=True))
    return Gradients(
        edges=found[0],
        patterns={head: pattern[0].detach() for head, pattern in patterns.items()},
        attention={
            head: (torch.zeros_like(patterns[head]) if gradient is None else gradient)[0]
            for head, gradient in by_pattern.items()
        },
    )


def need_gradient(model: CircuitModel, cost: Tensor) -> None:
    """Raise a ValueError if the metric has no gradient."""
    if not cost.requires_grad:
        raise ValueError(
            f"the metric {model.cost.name!r} has no gradient, which this method needs: use 'loss' or 'logit_difference'"
        )


def check_difference(difference: str) -> None:
    """Raise a ValueError that lists the differences, unless this is one."""
    if difference not in get_args(Difference):
        raise ValueError(f"difference must be one of {', '.join(get_args(Difference))}: got {difference!r}")


def others(model: CircuitModel, difference: str) -> Slots:
    """The slot values that a clean run is compared with: a run on other tokens, or the model's counterfactual."""
    check_difference(difference)
    return model.pairs if difference == "pairs" else model.corrupted


def mean_gradients(model: CircuitModel, points: Sequence[float], other: Slots) -> Gradients:
    """The mean of the gradients at points on the straight line from the other run's embeddings (0) to the clean (1)."""
    found = [gradients(model, _between(model, other, point), other) for point in points]
    heads = found[0].patterns
    return Gradients(
        edges=torch.stack([one.edges for one in found]).mean(dim=0),
        patterns=heads,
        attention={head: torch.stack([one.attention[head] for one in found]).mean(dim=0) for head in heads},
    )


def _between(model: CircuitModel, other: Slots, point: float) -> Slots:
    return {slot: other[slot] + point * (clean - other[slot]) for slot, clean in model.inputs.items()}


def edge_attributions(model: CircuitModel, points: Sequence[float], difference: str) -> Float[Tensor, " edge"]:
    """(other - clean value of the sender) . derivative of the cost by the reader's input, averaged over points."""
    return -mean_gradients(model, points, others(model, difference)).edges


def edge_attention(model: CircuitModel) -> Float[Tensor, " edge"]:
    """Of each edge, the mean total variation distance from uniform of the patterns at its ends (the smaller of two)."""
    patterns = gradients(model, model.inputs, model.pairs).patterns
    return _by_heads(model, {head: _selectivity(pattern) for head, pattern in patterns.items()})


def edge_gradient_times_attention(model: CircuitModel) -> Float[Tensor, " edge"]:
    """Of each edge, the sum of |weight x derivative| over the patterns at its ends (the smaller of two)."""
    found = gradients(model, model.inputs, model.pairs)
    heads = {head: float((found.patterns[head] * found.attention[head]).abs().sum()) for head in found.patterns}
    return _by_heads(model, heads)


def _selectivity(pattern: Float[Tensor, "batch query_pos key_pos"]) -> float:
    """The last rows of a causal pattern against uniform attention over the keys that each may see."""
    n_rows, n_keys = pattern.shape[-2:]
    seen = torch.ones(n_keys, n_keys, dtype=pattern.dtype, device=pattern.device).tril()[-n_rows:]
    return float((pattern - seen / seen.sum(dim=-1, keepdim=True)).abs().sum(dim=-1).mean() / 2)


def _by_heads(model: CircuitModel, of_head: dict[str, float]) -> Float[Tensor, " edge"]:
    """The smaller value of the heads at an edge's two ends; 0 where there is none."""
    ends = [[of_head[node.split(".")[0]] for node in edge if node.split(".")[0] in of_head] for edge in model.edges]
    return torch.tensor([min(values, default=0.0) for values in ends])
