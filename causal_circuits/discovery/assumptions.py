"""What in a user's sequences no conclusion can rest on: constants, positions with a law of their own, tied queries."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Bool, Float

from causal_circuits.discovery.user_data import WRONG_WITH, UserData
from causal_circuits.information.matches import Gains
from causal_circuits.statistics import bernstein_p_value

_SHARE_OF_COPIES = 0.01  # of the evidence, lost to copies, below which no warning is given; they never count
_LEAST_SHARE = 0.02  # of the usual mean, below which a deviation is ignored
_OFF = 0.1  # of 1 / d_vocab, by which a token's frequency must differ significantly to count as not uniform
_LEAST_DISTANCE = 0.1  # total variation between a position's token frequencies and the others', below which none is


def unusable_positions(data: UserData) -> tuple[dict[int, str], list[str]]:
    """(position -> why nothing can be concluded about it, warnings about the whole)."""
    context = data.tokens[:, :-1]
    why, warnings = data.why_constant, list[str]()
    if why.pop(data.n_ctx - 1, None):
        for position in range(context.shape[1]):
            why.setdefault(position, "the query (last token) never varies: no parent can be told")
    if len(data.tokens) - data.n_independent > _SHARE_OF_COPIES * len(data.tokens):
        warnings.append(
            f"there are copies among the {len(data.tokens):,} sequences, or the query (last token) depends on the "
            f"others: they count as {data.n_independent:,} independent ones; leave copies out"
        )
    if data.n_independent >= 2:
        kept = np.array([position not in why for position in range(context.shape[1])])
        for position in _off_law(data, kept):
            why[position] = "its token frequencies differ from the other positions'"
            kept[position] = False
        tied = _tied_to_query(data, kept)
        if tied:
            warnings.append(
                f"position {tied[0]} equals the query (last token) more or less often than others do: the query is not "
                "drawn on its own, or tokens do not follow the stationary law; nothing can be concluded"
            )
            for position in range(context.shape[1]):
                why.setdefault(position, "the query or the roots are not drawn as the test assumes")
            return why, warnings
    return why, warnings + [f"position {position}: {reason}" for position, reason in sorted(why.items())]


def _off_law(data: UserData, kept: Bool[np.ndarray, " position"]) -> list[int]:
    """Positions whose token frequencies differ from the other positions' (the stationary law is the same for all)."""
    d_vocab = data.targets.shape[1]
    n, n_positions = data.tokens[:, :-1].shape
    cells = (data.tokens[:, :-1] + d_vocab * np.arange(n_positions)).ravel()
    frequency = np.bincount(cells, minlength=n_positions * d_vocab).reshape(n_positions, d_vocab) / n
    off = _differs(frequency, frequency * (1 - frequency), kept, data.n_independent)
    if off.any():
        off &= np.abs(frequency - np.median(frequency[kept], axis=0)).sum(axis=1) / 2 > _LEAST_DISTANCE
    return np.flatnonzero(off).tolist()


def _tied_to_query(data: UserData, kept: Bool[np.ndarray, " position"]) -> list[int]:
    """Positions that equal the query more or less often than the others do, overall or where the target is special.

    1[x_j = query], times how sharp the target is or how probable it makes a repetition, has the same mean at
    every position if the query is drawn independently of the context.
    """
    context, query, y = data.tokens[:, :-1], data.tokens[:, -1:], data.targets
    equal = context == query
    off = np.zeros(context.shape[1], dtype=bool)
    for factor in (np.ones((len(y), 1)), np.take_along_axis(y, query, axis=1), (y**2).sum(axis=1, keepdims=True)):
        feature = equal * factor
        mean, variance = feature.mean(axis=0)[:, None], feature.var(axis=0)[:, None]
        off |= _differs(mean, variance, kept, data.n_independent)
    return np.flatnonzero(off).tolist()


def _differs(
    mean: Float[np.ndarray, "position feature"],
    variance: Float[np.ndarray, "position feature"],
    kept: Bool[np.ndarray, " position"],
    n: int,
) -> Bool[np.ndarray, " position"]:
    """Which of the kept positions have a mean off the usual one, significantly and by more than a fiftieth of it."""
    if kept.sum() < 3:
        return np.zeros(len(kept), dtype=bool)
    usual = np.median(mean[kept], axis=0)
    distance = np.abs(mean - usual)
    p_value = bernstein_p_value(distance, np.maximum(variance, np.median(variance[kept], axis=0)), 1.0, n)
    off = (p_value * p_value.size < WRONG_WITH) & (distance > _LEAST_SHARE * usual)
    return kept & off.any(axis=1)


def not_uniform(data: Gains) -> dict[int, str]:
    """Position -> what contradicts that its tokens are uniform over sequences, as several parents ask."""
    why = dict[int, str]()
    for i in range(data.n_ctx):
        p_value = data.n_ctx * _p_of_uniform(data, i)
        if p_value < WRONG_WITH:
            why[i] = f"its tokens are not uniform over sequences (p = {p_value:.2g}), as is assumed"
    return why


def tied_to_another(data: Gains, roots: Sequence[int]) -> str:
    """Which two roots agree by `_OFF` more often than independent tokens of their frequencies; copies may."""
    shares = {i: _frequency(data, i) for i in roots}
    pairs = [(i, j) for i, j in combinations(roots, 2) if not data.tokens[:, i].equal(data.tokens[:, j])]
    for i, j in pairs:
        often = float((data.tokens[:, i] == data.tokens[:, j]).double().mean() - shares[i] @ shares[j])
        more, variance = len(data) * (data.d_vocab * often - _OFF), (data.d_vocab - 1.0) * len(data)
        p_value = len(pairs) * float(data.p_value(more, variance))
        if p_value < WRONG_WITH:
            return f"roots {i} and {j} agree too often (p = {p_value:.2g}): do tokens follow a law of each sequence?"
    return ""


def _frequency(data: Gains, position: int) -> torch.Tensor:
    """Of each token at a position, over sequences."""
    return torch.bincount(data.tokens[:, position], minlength=data.d_vocab).double() / len(data)


def _p_of_uniform(data: Gains, position: int) -> float:
    """Of "every token has a frequency of 1 / d_vocab", give or take `_OFF` of it; Bonferroni over tokens."""
    n, expected = len(data), 1 / data.d_vocab
    off = n * ((_frequency(data, position) - expected).abs().max() - _OFF * expected)
    return data.d_vocab * float(data.p_value(float(off), n * expected * (1 - expected), bound=1.0))
