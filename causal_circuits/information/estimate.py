"""The first-order gradient estimated from sequences alone, without model or training."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.information.exact import Information
from causal_circuits.tasks import Batch

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
    batch = Batch(tokens, target_probs)
    batch.check(target_probs.shape[-1])
    n, n_ctx = tokens.shape
    d_vocab = target_probs.shape[1]
    totals = torch.zeros(2, n_ctx, n_ctx, dtype=torch.float64)
    for start in range(0, n, _CHUNK):
        part = batch[start : start + _CHUNK].to("cpu", torch.float64)
        context, query, y = part.tokens[:, :-1], part.tokens[:, -1:], part.target_probs
        counts = torch.zeros_like(y).scatter_add_(1, context, torch.ones(context.shape, dtype=torch.float64))
        ratio = y / ((counts + _SMOOTHING) / (n_ctx - 1 + d_vocab * _SMOOTHING))
        child = torch.gather(ratio, 1, context)
        hit = (context == query).double()
        elsewhere = (hit.sum(dim=1, keepdim=True) - hit) / max(n_ctx - 2, 1)  # frequency among the others than i
        totals[:, :-1, :-1] += moments(d_vocab * child, hit, elsewhere)
    return from_moments(totals.tril(-1), n)


def moments(
    child: Float[Tensor, "batch child"], hit: Float[Tensor, "batch key"], background: Float[Tensor, "batch child"]
) -> Float[Tensor, "2 child key"]:
    """Sums over sequences of child_i (hit_j - background_i), and of its square, for every pair."""
    square = child.square()
    first = child.T @ hit - (child * background).sum(dim=0)[:, None]
    second = square.T @ hit - 2 * (square * background).T @ hit + (square * background.square()).sum(dim=0)[:, None]
    return torch.stack([first, second])


def from_moments(totals: Float[Tensor, "2 n_ctx n_ctx"], n: int) -> Information:
    """The mean over n sequences and its standard error, from sums and sums of squares."""
    mean, square = totals / n
    error = ((square - mean.square()).clamp(min=0) / max(n - 1, 1)).sqrt()
    return Information(mean, error, n)
