"""The first gradient of layer 0's attention from sequences and targets alone, without a model: measured and estimated.

`measured_gradient` is the gradient of the reduced model itself at A1 = 0, to first order in beta0; `estimate_gradient`
counts tokens as for a query that is no part of the context, so that a root's row is near zero.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from causal_circuits.arguments import check_arguments
from causal_circuits.information.exact import Information
from causal_circuits.tasks import Batch
from causal_circuits.tasks.batch import chunks
from causal_circuits.tasks.predictors import token_counts

_CHUNK = 4096  # sequences
_SMOOTHING = 0.5  # added to every token count


@check_arguments
def estimate_gradient(tokens: Int[Tensor, "batch n_ctx"], target_probs: Float[Tensor, "batch d_vocab"]) -> Information:
    """g_ij from data alone: the first-order gradient of layer 0's attention weights, in closed form.

    The sample mean of d_vocab (pi(x_i | s_T) / mu_hat(x_i)) (1[x_j = s_T] - mu_hat(s_T)), with s_T the query's
    token and mu_hat the sequence's own (smoothed) token frequencies. It assumes nothing about the graph but a uniform
    query in the last position. At a finite context mu_hat stands in for mu, which shrinks all entries by a common
    factor of about 0.3 to 0.9 and leaves a root's row a small bias: compare entries with each other rather than with
    theory.

    Args:
        tokens: sequences with the query last; integers in 0 .. d_vocab - 1.
        target_probs: the law that the query names.

    >>> batch = task.sample(4000, seed=0)
    >>> g = cc.information.estimate_gradient(batch.tokens, batch.target_probs).value
    >>> g[1:5].argmax(dim=1).tolist()  # the parents of positions 1 to 4
    [0, 1, 2, 3]
    """

    def factors(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        context, n = x[:, :-1], x.shape[1] - 1
        ratio = y / ((token_counts(context, y.shape[1]) + _SMOOTHING) / (n + y.shape[1] * _SMOOTHING))
        hit = (context == x[:, -1:]).double()
        elsewhere = (hit.sum(dim=1, keepdim=True) - hit) / max(n - 1, 1)  # frequency among the others than i
        child = y.shape[1] * torch.gather(ratio, 1, context)
        return pad(child, (0, 1)), pad(hit, (0, 1)), pad(elsewhere, (0, 1))

    return _average(Batch(tokens, target_probs), factors, diagonal=-1)


@check_arguments
def measured_gradient(
    tokens: Int[Tensor, "batch n_ctx"],
    target_probs: Float[Tensor, "batch d_vocab"],
    of: Literal["weights", "scores"] = "weights",
) -> Information:
    """Minus the gradient of layer 0's attention on given sequences, over beta0 / (d_vocab n_ctx), at A1 = 0.

    The sample mean of d_vocab (y(x_i) / mu_hat(x_i) - m) h_j in the notation of `finite_context`, for attention
    *weights*; for *scores* h_j less its mean over k <= i, divided by i + 1. Zero above the diagonal. In nats, as
    records hold it, it is beta0 / (d_vocab n_ctx) times as much.

    Args:
        tokens: sequences with the query last.
        target_probs: the law that the query names, or one-hot labels.
        of: what the gradient is taken with respect to.

    >>> batch = task.sample(4000, seed=0)
    >>> cc.measured_gradient(batch.tokens, batch.target_probs).value[1:5].argmax(dim=1).tolist()
    [0, 1, 2, 3]
    """

    def factors(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n_ctx, counts, hit = x.shape[1], token_counts(x, y.shape[1]), (x == x[:, -1:]).double()
        child = torch.gather(n_ctx * y / counts.clamp(min=1), 1, x) - (y * (counts > 0)).sum(dim=1, keepdim=True)
        child = y.shape[1] * child
        if of == "weights":
            return child, hit, torch.zeros_like(hit)
        visible = torch.arange(1, n_ctx + 1, dtype=torch.float64)
        return child / visible, hit, hit.cumsum(dim=1) / visible

    return _average(Batch(tokens, target_probs), factors)


def _average(
    batch: Batch, factors: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]], diagonal: int = 0
) -> Information:
    """The mean over sequences of child_i (hit_j - background_i) for j up to the diagonal, with its standard error.

    `factors` gives the three of some sequences, [batch, position], from their tokens and targets.
    """
    batch.check(batch.target_probs.shape[1])
    totals, n = torch.zeros(2, *(batch.tokens.shape[1],) * 2, dtype=torch.float64), len(batch)
    for rows in chunks(n, _CHUNK):
        part = batch[rows].to("cpu", torch.float64)
        child, hit, background = factors(part.tokens, part.target_probs)
        square = child.square()
        totals[0] += child.T @ hit - (child * background).sum(dim=0)[:, None]
        totals[1] += square.T @ hit - 2 * (square * background).T @ hit
        totals[1] += (square * background.square()).sum(dim=0)[:, None]
    mean, mean_square = totals.tril(diagonal) / n
    error = ((mean_square - mean.square()).clamp(min=0) / max(n - 1, 1)).sqrt()
    return Information(mean, error, n)
