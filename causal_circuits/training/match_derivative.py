"""The derivative of order k of a model's loss in its attention, by automatic differentiation."""

from collections.abc import Sequence
from math import comb

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.information.matches import key_sets
from causal_circuits.models import HookedTransformer, layout_of
from causal_circuits.tasks import Batch
from causal_circuits.training.steps import mean_loss


@check_arguments
def measured_match_gradient(
    model: HookedTransformer, batch: Batch, target_parents: Sequence[int]
) -> Float[np.ndarray, "keys position"]:
    """Minus d^k L / dP_1[i, j_1] ... dP_k[i, j_k] at uniform attention, the last rows on the target parents.

    What `information.match_gradient` predicts, times match^k and read-out: exact in the limit of a small match and a
    small read-out. Layer 0's patterns are set by a hook, and the loss is differentiated k times; a small model and
    float64 are meant.

    Args:
        model: with k heads in layer 0, and whatever match and read-out it has.
        batch: sequences with their targets.
        target_parents: k positions.

    Raises:
        ValueError: layer 0 has another number of heads.

    >>> task = cc.InContextTask(cc.ngram_graph(5, 2), d_vocab=2)
    >>> model = cc.models.warm_start(cc.disentangled_transformer(2, 5, (2, 1), dtype=torch.float64), 1e-3)
    >>> batch = task.sample(100)
    >>> measured = cc.training.measured_match_gradient(model, batch, (3, 4))
    >>> predicted = cc.information.match_gradient(batch, (3, 4)) * 1e-3**3
    >>> round(float(measured[0, 2] / predicted[0, 2]), 2)
    1.0
    """
    batch.check_last_only()
    n_ctx, k = batch.tokens.shape[1], len(target_parents)
    if layout_of(model).n_heads[0] != k:
        raise ValueError(
            f"layer 0 must have a head for each of {k} target's parents: it has {layout_of(model).n_heads[0]}"
        )
    heads = [_uniform_but_for_last(n_ctx, t).to(model.W_U).requires_grad_() for t in target_parents]

    def put(pattern: Tensor, hook: object) -> Tensor:
        return torch.stack(heads).expand(len(pattern), -1, -1, -1)

    batch = batch.to(model.W_U.device, model.W_U.dtype)
    with model.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", put)]):
        loss = mean_loss(model, batch)
    found, first = np.zeros((comb(n_ctx - 1, k), n_ctx)), _gradient(loss, heads[0])
    for i in range(k, n_ctx):
        derivative: dict[tuple[int, ...], Tensor] = {(j,): entry for j, entry in enumerate(first[i, :i])}
        for head in heads[1:]:
            derivative = {
                (*keys, j): entry
                for keys, value in derivative.items()
                for j, entry in enumerate(_gradient(value, head)[i, :i])
                if j > keys[-1]
            }
        sets = key_sets(n_ctx - 1, k)[: comb(i, k)]
        found[: len(sets), i] = [-float(derivative[tuple(keys)].detach()) for keys in sets.tolist()]
    return found


def _gradient(value: Tensor, pattern: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(value, pattern, create_graph=True)
    return gradient


def _uniform_but_for_last(n_ctx: int, key: int) -> Tensor:
    pattern = torch.ones(n_ctx, n_ctx, dtype=torch.float64).tril()
    pattern /= pattern.sum(dim=1, keepdim=True)
    pattern[-1] = torch.eye(n_ctx, dtype=torch.float64)[key]
    return pattern
