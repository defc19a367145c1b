"""Relative positions in a disentangled model: of two positions only their distance counts.

A disentangled model knows each position by name. Where a mechanism is the same everywhere - look one position back -
that is n_ctx things to learn instead of one. With relative positions the position block of every W_Q is a matrix
v[i - j]: its gradient is that of v. Whatever else would read a position has gradient zero. The model is what it was.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from causal_circuits.models import HookedTransformer, layout_of


@torch.no_grad()
def share_by_distance(model: HookedTransformer) -> None:
    """Replace the gradients of a disentangled model by those of a model that sees distances only."""
    slots = layout_of(model).slots()
    positions = torch.zeros(model.cfg.d_model, dtype=torch.bool)
    for name, slot in slots.items():
        positions[slot.slice] = name.endswith("position")
    own = slots["position"].slice
    for block in model.blocks:
        gradient = block.attn.W_Q.grad
        if gradient is not None:
            shared = _by_distance(gradient[:, own, own])
            d_head = gradient.shape[2]
            gradient[:, positions] = 0.0
            gradient[:, :, positions[:d_head]] = 0.0
            gradient[:, own, own] = shared
    if model.unembed.W_U.grad is not None:
        model.unembed.W_U.grad[positions] = 0.0


def _by_distance(gradient: Float[Tensor, "head query_pos key_pos"]) -> Float[Tensor, "head query_pos key_pos"]:
    """The gradient of v in every entry (i, j) that holds v[i - j], and zero above the diagonal."""
    n_ctx = gradient.shape[-1]
    distance = (torch.arange(n_ctx)[:, None] - torch.arange(n_ctx)).to(gradient.device)
    causal = (distance >= 0) * gradient
    sums = gradient.new_zeros(len(gradient), n_ctx).index_add(1, distance.clamp(min=0).flatten(), causal.flatten(1))
    return sums[:, distance.clamp(min=0)] * (distance >= 0)
