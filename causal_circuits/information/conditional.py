"""What one more parent tells about a child, given parents that are known: from data, and exactly for small cases.

The target's law y and a child's token x_i agree when the child's parents hold the tokens of the target's. With
w_i = d_vocab y(x_i), the *lift* of a pair (j, t) at child i, given a set M of other matches, is

    lift[i, j, t] = E[w_i | M_i and x_j = x_t] - E[w_i | M_i].

With M empty it is what the first-order gradient sees: one parent alone. Given the parents that other heads carry, it
is what a further head can gain. If tokens were uniform and independent and rows Dirichlet(alpha), a match of m of the
k parents would give E[w] = 1 + (d_vocab rho - 1) d_vocab^(m - k), rho = (alpha + 1) / (d_vocab alpha + 1): every parent
that is known multiplies what the next one tells by d_vocab: the first head sees the least, and the last one the most.

A position that is no parent tells nothing once the parents are given; alone it may, through the parents.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.information import pair_laws
from causal_circuits.tasks import Batch, InContextTask

MAX_ENUMERATED = 2**20  # sequences times transition matrices


@check_arguments
@dataclass(frozen=True)
class HeadKeys:
    """What one head copies: where its last row looks, and where every other row does.

    Attributes:
        last_key: the position t whose token the last row copies.
        keys: [n_ctx]; for each row the position it copies from, -1 where it copies nothing in particular.

    >>> HeadKeys(last_key=5, keys=(-1, 0, 1, 2, 3, -1)).keys[4]
    3
    """

    last_key: int
    keys: tuple[int, ...]


@check_arguments
@dataclass(frozen=True)
class ConditionalInformation:
    """The lift of every pair of matches, given others.

    Attributes:
        value: float64 [child, key_pos, last_key_pos]; 0 unless key < child.
        standard_error: the same shape; infinite where fewer than two sequences decide.
        share_matched: [child]; the share of sequences in which the given matches hold.
        n_samples: sequences used.

    >>> from causal_circuits import InContextTask, ngram_graph
    >>> from causal_circuits.information import conditional_information
    >>> batch = InContextTask(ngram_graph(8, 2), d_vocab=2).sample(500, seed=0)
    >>> found = conditional_information(batch.tokens, batch.target_probs)
    >>> tuple(found.value.shape), found.n_samples
    ((8, 8, 8), 500)
    """

    value: Float[Tensor, "child key_pos last_key_pos"]
    standard_error: Float[Tensor, "child key_pos last_key_pos"]
    share_matched: Float[Tensor, " child"]
    n_samples: int


@check_arguments
def conditional_information(
    tokens: Int[Tensor, "batch n_ctx"],
    target_probs: Float[Tensor, "batch d_vocab"],
    given: Sequence[HeadKeys] = (),
    *,
    weights: Float[Tensor, " batch"] | None = None,
    chunk: int = 2048,
) -> ConditionalInformation:
    """The lift of every (child, key, last key), estimated from sequences, given what some heads already match.

    Args:
        tokens, target_probs: sequences of a task; nothing is assumed about its graph.
        given: matches that must hold (rows with key -1 are not restricted).
        weights: probabilities of the sequences, where they were enumerated rather than drawn.

    >>> from causal_circuits import ngram_graph
    >>> batch = InContextTask(ngram_graph(6, order=1), d_vocab=3).sample(4096)
    >>> lift = conditional_information(batch.tokens, batch.target_probs).value
    >>> int(lift[3, :, 5].argmax())             # the parent of 3, when the target's is 5
    2
    """
    Batch(tokens, target_probs).check(target_probs.shape[-1])
    n, n_ctx = tokens.shape
    for head in given:
        _check_matches(head, n_ctx)
    if weights is not None and not (bool((weights >= 0).all()) and 0 < float(weights.sum()) < float("inf")):
        raise ValueError(
            f"weights must be finite and at least 0, and not all 0: got a least one of {float(weights.min()):.3g} and "
            f"a sum of {float(weights.sum()):.3g}; give each sequence's probability"
        )
    mass = torch.full((n,), 1.0 / n, dtype=torch.float64) if weights is None else weights.double() / weights.sum()
    dtype = torch.float32 if weights is None else torch.float64  # of products within a chunk; sums are float64
    sums = torch.zeros(4, n_ctx, n_ctx * n_ctx, dtype=torch.float64)  # e, w e, w^2 e and, in the last, what has no e
    alone = torch.zeros(3, n_ctx, dtype=torch.float64)
    for start in range(0, n, chunk):
        some = slice(start, start + chunk)
        x, p = tokens[some].cpu(), mass[some]
        ratio = target_probs.shape[-1] * torch.gather(target_probs[some].cpu().to(dtype), 1, x)
        matched = _all_match(x, given).to(dtype) * p[:, None].to(dtype)
        same = (x[:, :, None] == x[:, None, :]).view(len(x), -1).to(dtype)
        for power in range(3):
            weighted = matched * ratio**power
            alone[power] += weighted.sum(dim=0).double()
            sums[power] += (weighted.T @ same).double()
    return _lift(sums[:3].view(3, n_ctx, n_ctx, n_ctx), alone, n)


@check_arguments
def exact_conditional_information(
    task: InContextTask, given: Sequence[HeadKeys] = (), n_kernels: int = 64, seed: int = 0
) -> ConditionalInformation:
    """The lift by enumeration of every sequence, for small tasks: exact given the transition matrices.

    With matrices of the task's own nothing is random; otherwise `n_kernels` draws of the prior are averaged over.

    Raises:
        ValueError: there are more than 2^20 sequences times matrices.

    >>> from causal_circuits import ngram_graph
    >>> kernel = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.3, 0.7], [0.6, 0.4]]])
    >>> task = InContextTask(ngram_graph(5, order=2), d_vocab=2, kernels={2: kernel})
    >>> alone = exact_conditional_information(task).value[3, 2, 4]
    >>> given = exact_conditional_information(task, [HeadKeys(3, (-1, -1, 0, 1, -1))]).value[3, 2, 4]
    >>> bool(given > alone)
    True
    """
    tokens, targets, weights = enumerate_sequences(task, n_kernels, seed)
    return conditional_information(tokens, targets, given, weights=weights)


def enumerate_sequences(task: InContextTask, n_kernels: int = 64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Every sequence with the target's law and its probability, for each matrix: [n, n_ctx], [n, d_vocab], [n].

    All of the transition matrices the user gave, or `n_kernels` draws of the prior.
    """
    if task.given_kernels is not None:
        matrices = dict(task.given_kernels)
        n = len(next(iter(matrices.values())))
        law = task.given_laws if task.given_laws is not None else np.full((n, task.d_vocab), 1 / task.d_vocab)
    elif n_kernels < 1:
        raise ValueError(f"n_kernels must be at least 1: got {n_kernels}")
    else:
        matrices, law = task.draw_kernels(n_kernels, np.random.default_rng(seed))
    total = len(law) * task.d_vocab**task.n_ctx
    if total > MAX_ENUMERATED:
        raise ValueError(
            f"exact enumeration needs n_kernels x d_vocab^n_ctx of at most {MAX_ENUMERATED:,}: got {total:,}; "
            "take a smaller task, or estimate with conditional_information"
        )
    tokens = pair_laws.every_sequence(task)
    probability = np.concatenate([some for _, some in pair_laws.sequence_laws(task, matrices, law, tokens)])
    target = list(task.target_parents)
    laws = torch.from_numpy(matrices[len(target)][:, task.kernel_row(tokens[:, target])]).float()
    repeated = repeat(torch.from_numpy(tokens), "sequence position -> (matrix sequence) position", matrix=len(law))
    weights = torch.from_numpy(probability.ravel() / len(law))
    return repeated, rearrange(laws, "matrix sequence token -> (matrix sequence) token"), weights


def _all_match(tokens: Tensor, given: Sequence[HeadKeys]) -> Tensor:
    """[batch, child]: whether every given head's key holds the token of its last key."""
    matched = torch.ones(tokens.shape, dtype=torch.bool)
    for head in given:
        keys = torch.tensor(head.keys)
        hit = tokens[:, keys.clamp(min=0)] == tokens[:, [head.last_key]]
        matched &= hit | (keys < 0)
    return matched


def _lift(sums: Tensor, alone: Tensor, n: int) -> ConditionalInformation:
    """From moments of (1, w, w^2) given M, with and without the pair's match, to lifts and their standard errors."""
    share, pair_share = alone[0], sums[0]
    mean = alone[1] / share.clamp(min=1e-300)
    held = pair_share > 0
    pair_mean = torch.where(held, sums[1] / pair_share.clamp(min=1e-300), mean[:, None, None])
    pair_variance = (sums[2] / pair_share.clamp(min=1e-300) - pair_mean.square()).clamp(min=0)
    rest_share = (share[:, None, None] - pair_share).clamp(min=0)
    part = rest_share / share.clamp(min=1e-300)[:, None, None]  # lift = part (E[w | pair] - E[w | M without the pair])
    rest_mean = torch.where(
        rest_share > 0, (alone[1][:, None, None] - sums[1]) / rest_share.clamp(min=1e-300), mean[:, None, None]
    )
    rest_square = (alone[2][:, None, None] - sums[2]) / rest_share.clamp(min=1e-300)
    rest_variance = (rest_square - rest_mean.square()).clamp(min=0)
    variance = part.square() * (
        pair_variance / (n * pair_share).clamp(min=1e-300) + rest_variance / (n * rest_share).clamp(min=1e-300)
    )
    of_part = part * (1 - part) / (n * share).clamp(min=1e-300)[:, None, None]  # the shares are estimated too
    error = (variance + of_part * (pair_mean - rest_mean).square()).sqrt()
    few = (n * pair_share < 2) | (n * rest_share < 2)
    earlier = torch.ones(sums.shape[1:3], dtype=torch.bool).tril(-1)[:, :, None]
    value = torch.where(held & earlier, pair_mean - mean[:, None, None], torch.zeros_like(pair_mean))
    return ConditionalInformation(value, torch.where(few, torch.inf, error), share, n)


def _check_matches(head: HeadKeys, n_ctx: int) -> None:
    if len(head.keys) != n_ctx or not 0 <= head.last_key < n_ctx:
        raise ValueError(
            f"matches need a last_key in 0 .. {n_ctx - 1} and one key for each of {n_ctx} positions: "
            f"got {head.last_key} and {len(head.keys)} keys"
        )
    for position, key in enumerate(head.keys):
        if not -1 <= key <= position:
            raise ValueError(f"a key must be -1 or lie in 0 .. its position: got {key} at position {position}")
