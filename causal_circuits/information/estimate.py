"""The gradient and the information estimated from sequences alone, without model or training.

`estimate_gradient` is the first-order gradient; `estimate_information` corrects it for the short context and gives
bootstrap intervals. Both divide by each sequence's own token frequencies, which stand in for the stationary law.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.display import short_repr
from causal_circuits.information.exact import Information
from causal_circuits.tasks import Batch

_CHUNK = 4096  # sequences
_BLOCKS = 200  # groups of sequences that the bootstrap resamples


@check_arguments
@dataclass(frozen=True, eq=False)
class InformationEstimate:
    """g_ij estimated from sequences, with bias correction and bootstrap intervals.

    Attributes:
        value: float64 [n_ctx, n_ctx], corrected for the short context; at an edge the chi-squared information of parent
            and child. Row i (child), column j < i; zero elsewhere.
        lower, upper: the ends of pointwise bootstrap intervals (percentile method).
        uncorrected: the plain plug-in estimate.
        level: one minus the intervals' coverage.
        n_samples: sequences.

    >>> import causal_circuits as cc
    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    >>> batch = task.sample(64, seed=0)
    >>> found = cc.information.estimate_information(batch.tokens, batch.target_probs, n_bootstrap=50)
    >>> bool((found.lower <= found.upper).all()), found.level, found.n_samples
    (True, 0.05, 64)
    """

    value: Float[Tensor, "n_ctx n_ctx"]
    lower: Float[Tensor, "n_ctx n_ctx"]
    upper: Float[Tensor, "n_ctx n_ctx"]
    uncorrected: Float[Tensor, "n_ctx n_ctx"]
    level: float
    n_samples: int

    __repr__ = short_repr


@check_arguments
def estimate_information(
    tokens: Int[Tensor, "batch n_ctx"],
    target_probs: Float[Tensor, "batch d_vocab"],
    *,
    n_bootstrap: int = 500,
    level: float = 0.05,
    n_splits: int = 4,
    seed: int = 0,
) -> InformationEstimate:
    """g_ij from data, its finite-context bias halved twice: 2 g(whole context) - g(half contexts).

    Dividing by the frequencies of a sequence of n tokens biases the mean by b / n + O(1 / n^2); with frequencies of
    halves the bias is 2 b / n, so the combination is free of the first order (Quenouille's half-sample jackknife).
    What is left is large where many tokens of the vocabulary occur in no context (d_vocab near n_ctx, small alpha).
    The bootstrap resamples whole sequences (in 200 groups), so its intervals hold the noise, not the bias that is left.

    Args:
        tokens, target_probs: as in `estimate_gradient`.
        n_bootstrap: resamples.
        level: intervals cover 1 - level each.
        n_splits: random halvings averaged over.
        seed: of halvings and resamples.

    >>> import causal_circuits as cc
    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    >>> batch = task.sample(500, seed=0)
    >>> found = cc.information.estimate_information(batch.tokens, batch.target_probs, n_bootstrap=20, n_splits=1)
    >>> bool(found.lower[1, 0] > 0)  # position 0 is the parent of position 1
    True
    """
    Batch(tokens, target_probs).check(target_probs.shape[-1])
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1): got {level}; 0.05 gives 95% intervals")
    if len(tokens) < 2 or n_bootstrap < 2 or n_splits < 1:
        raise ValueError(
            "bootstrap intervals need at least 2 sequences, 2 resamples and 1 split: "
            f"got {len(tokens)}, n_bootstrap={n_bootstrap}, n_splits={n_splits}"
        )
    generator = np.random.default_rng(seed)
    n_context = tokens.shape[1] - 1
    halves = [generator.permutation(n_context) % 2 for _ in range(n_splits)]
    blocks = np.array_split(np.arange(len(tokens)), min(_BLOCKS, len(tokens)))
    sums = np.zeros((2, len(blocks), n_context, n_context))
    for b, block in enumerate(blocks):
        x, y = tokens[block].cpu(), target_probs[block].cpu().double()
        sums[0, b] = _plug_in(x, y, np.zeros(n_context, dtype=int))
        sums[1, b] = sum(_plug_in(x, y, half) for half in halves) / n_splits
    corrected = 2 * sums[0] - sums[1]
    sizes = np.array([len(block) for block in blocks])
    drawn = generator.multinomial(len(blocks), np.full(len(blocks), 1 / len(blocks)), size=n_bootstrap)
    resampled = np.tensordot(drawn, corrected, axes=1) / (drawn @ sizes)[:, None, None]
    lower, upper = np.quantile(resampled, [level / 2, 1 - level / 2], axis=0)
    mean, plain = corrected.sum(axis=0) / len(tokens), sums[0].sum(axis=0) / len(tokens)
    return InformationEstimate(_square(mean), _square(lower), _square(upper), _square(plain), level, len(tokens))


def _plug_in(x: Tensor, y: Tensor, part: np.ndarray) -> np.ndarray:
    """The sum over sequences of d_vocab (y(x_i) / mu_hat(x_i) - m) h_j, mu_hat counted over the part that i is in."""
    context, d_vocab = x[:, :-1], y.shape[1]
    child = torch.empty(context.shape, dtype=torch.float64)
    for which in np.unique(part):
        members = torch.from_numpy(np.flatnonzero(part == which))
        own = context[:, members]
        counts = torch.zeros_like(y).scatter_add_(1, own, torch.ones(own.shape, dtype=torch.float64))
        ratio = len(members) * torch.gather(y / counts.clamp(min=1), 1, own)
        child[:, members] = ratio - (y * (counts > 0)).sum(dim=1, keepdim=True)
    hit = (context == x[:, -1:]).double()
    return (d_vocab * child.T @ hit).numpy()


def _square(context: np.ndarray) -> Tensor:
    """The lower triangle, with a row and a column of zeros for the query."""
    return torch.from_numpy(np.pad(np.tril(context, -1), ((0, 1), (0, 1))))


@check_arguments
def estimate_gradient(
    tokens: Int[Tensor, "batch n_ctx"], target_probs: Float[Tensor, "batch d_vocab"], smoothing: float = 0.5
) -> Information:
    """g_ij from data alone: the first-order gradient of layer 0's attention weights, in closed form.

    The sample mean of d_vocab (pi(x_i | s_T) / mu_hat(x_i)) (1[x_j = s_T] - mu_hat(s_T)), with s_T the query's
    token and mu_hat the sequence's own (smoothed) token frequencies. It assumes nothing about the graph but a uniform
    query in the last position. At a finite context mu_hat stands in for mu, which shrinks all entries by a common
    factor of about 0.3 to 0.9 and leaves a root's row a small bias: compare entries with each other rather than with
    theory.

    Args:
        tokens: sequences with the query last; integers in 0 .. d_vocab - 1.
        target_probs: the law that the query names.
        smoothing: added to every token count.

    >>> import causal_circuits as cc
    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    >>> batch = task.sample(4000, seed=0)
    >>> g = cc.information.estimate_gradient(batch.tokens, batch.target_probs).value
    >>> g[1:5].argmax(dim=1).tolist()  # the parents of positions 1 to 4
    [0, 1, 2, 3]
    """
    Batch(tokens, target_probs).check(target_probs.shape[-1])
    if not 0 <= smoothing < float("inf"):
        raise ValueError(f"smoothing must be finite and at least 0, it is added to every count: got {smoothing}")
    n, n_ctx = tokens.shape
    d_vocab = target_probs.shape[1]
    totals = torch.zeros(2, n_ctx, n_ctx, dtype=torch.float64)
    for start in range(0, n, _CHUNK):
        context = tokens[start : start + _CHUNK, :-1].cpu()
        targets = target_probs[start : start + _CHUNK].cpu().double()
        counts = torch.zeros_like(targets).scatter_add_(1, context, torch.ones(context.shape, dtype=torch.float64))
        ratio = targets / ((counts + smoothing) / (n_ctx - 1 + d_vocab * smoothing))
        child = torch.gather(ratio, 1, context)
        hit = (context == tokens[start : start + _CHUNK, -1:].cpu()).double()
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
    return Information(mean, error, n, "sequences")
