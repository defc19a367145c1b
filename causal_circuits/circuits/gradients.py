"""Gradients for the methods that estimate effects to first order: of what arrives along edges, and of attention."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from causal_circuits.circuits.forward import Forward, Slots, Variants
from causal_circuits.interventions import Cost


@dataclass(frozen=True)
class Gradients:
    """Derivatives of the mean cost of the whole model at some inputs."""

    edges: Float[Tensor, " edge"]  # [edge]; along the nudge of each edge's sender, at the edge's reader
    attention: dict[str, Tensor]  # head -> [batch, query_pos, key_pos]; by each head's pattern


@torch.inference_mode(False)
def gradients(
    forward: Forward,
    cost: Cost,
    inputs: Slots,
    nudges: Slots,
    patterns: Mapping[str, Float[Tensor, "batch query_pos key_pos"]] | None = None,
) -> Gradients:
    """Backpropagate once: every edge carries its sender's value plus an infinitesimal share of the slot's nudge.

    `patterns` are put in place of the heads' own.
    """
    shares = torch.zeros(forward.uncut.shape[1], dtype=inputs["token"].dtype, requires_grad=True)
    attended: dict[str, Tensor] = {}

    def read(slot: str, edge: int, value: Variants, circuits: Tensor) -> Tensor:
        own = value.of(circuits)
        return own + shares[edge] * nudges[slot][:, -own.shape[2] :].clone()  # not of inference mode, if the nudge is

    def attend(head: str, pattern: Tensor) -> Tensor:
        if patterns and head in patterns:
            pattern = patterns[head].detach().clone()[None].requires_grad_(True)
        attended[head] = pattern
        return pattern

    with torch.enable_grad():
        mean_cost = cost(forward.log_probs(~forward.uncut, inputs, read, attend)).mean()  # asks along every edge
    if not mean_cost.requires_grad:
        raise ValueError(
            f"the metric {cost.name!r} has no gradient, which this method needs: use 'loss' or 'logit_difference'"
        )
    edges, *attention = torch.autograd.grad(mean_cost, [shares, *attended.values()], materialize_grads=True)
    return Gradients(edges, {head: found[0] for head, found in zip(attended, attention, strict=True)})
