"""Sequences of a user's own: checked, brought into one form, and searched for what no conclusion can rest on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from causal_circuits.arguments import ArgumentError
from causal_circuits.statistics import bernstein_p_value
from causal_circuits.tasks.batch import MOST_NUMBERS, Batch


@runtime_checkable
class ArrayLike(Protocol):
    """What numpy makes an array of: arrays, tensors, columns of a table."""

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray: ...


Array = Tensor | np.ndarray | ArrayLike | Sequence

_SAME = 1e-6  # laws of random kernels are not all equally sharp; labels in disguise are
_WRONG_WITH = 1e-4  # the p-value (Bonferroni) at which an assumption counts as contradicted
_PASSED_OVER = 0.01  # share of the evidence lost to copies, below which no warning is given; it never counts
_LEAST_EXPECTED = 2  # of each query in a context: rarer contexts are left to the binomial test
_LEAST_SHARE = 0.02  # of the usual mean, below which a deviation is passed over
_LEAST_DISTANCE = 0.1  # total variation between a position's token frequencies and the others', below which none is


@dataclass(frozen=True)
class UserData:
    """Sequences that passed every check.

    Attributes:
        tokens: [sequence, n_ctx].
        targets: [sequence, d_vocab], rows with sum one; labels as one-hots.
        probabilities: whether targets are probabilities; rows that are all equally sharp are taken for labels.
        n_independent: sequences that the means are worth: copies are no evidence, and make means noisier.
    """

    tokens: Int[np.ndarray, "sequence n_ctx"]
    targets: Float[np.ndarray, "sequence d_vocab"]
    probabilities: bool
    n_independent: int

    @property
    def n_ctx(self) -> int:
        """Length of the sequences, query included."""
        return self.tokens.shape[1]

    @property
    def constant(self) -> Bool[np.ndarray, " n_ctx"]:
        """Positions whose token is the same in every sequence."""
        return (self.tokens == self.tokens[0]).all(axis=0)


def read_data(tokens: Array | Batch, targets: Array | None, d_vocab: int | None) -> UserData:
    """Arrays, tensors, lists or a batch as `UserData`; a ValueError that names rule, value and remedy if unsound."""
    if isinstance(tokens, Batch):
        targets = tokens.target_probs if targets is None else targets
        tokens = tokens.tokens
    if targets is None:
        raise ArgumentError("targets must be given beside tokens: got none; they follow the query, as labels or laws")
    x = _array(tokens, "tokens", 2, "[sequences, n_ctx]", integers=True)
    if x.shape[1] < 2:
        raise ValueError(f"sequences need a context and a query, n_ctx of at least 2: got shape {list(x.shape)}")
    y = _array(targets, "targets", (1, 2), "[sequences, d_vocab] (probabilities) or [sequences] (labels)")
    if len(x) != len(y):
        raise ValueError(f"tokens and targets must be equally many: got {len(x)} and {len(y)} sequences")
    probabilities = y.ndim == 2
    if not probabilities:
        y = _array(targets, "labels", 1, "[sequences]", integers=True)
        _check_coding(x, y)
    elif y.dtype.kind in "iu" and not _is_one_hot(y):
        raise ValueError(
            f"labels must be [sequences], the token after the query: got integers {list(y.shape)}; give the column of "
            "that token, labels[:, -1] if they are the tokens shifted by one"
        )
    width = y.shape[1] if probabilities else int(max(x.max(), y.max())) + 1
    d_vocab = width if d_vocab is None else d_vocab
    if d_vocab < 2:
        hint = "one column is no law: give labels as [sequences]" if probabilities else "one token tells nothing"
        raise ValueError(f"d_vocab must be at least 2: got {d_vocab}; {hint}")
    if probabilities and d_vocab != width:
        raise ValueError(f"d_vocab must be the width of the target probabilities, {width}: got {d_vocab}; leave it out")
    for name, array in (("tokens", x), *(() if probabilities else (("labels", y),))):
        if array.min() < 0 or array.max() >= d_vocab:
            remedy = "make the targets wider" if probabilities else "give a larger d_vocab"
            if array.min() == 1 and array.max() == d_vocab:
                remedy = "subtract 1 if they are numbered from 1"
            raise ValueError(
                f"{name} must lie in the vocabulary 0 .. {d_vocab - 1}: got values in "
                f"[{array.min()}, {array.max()}]; {remedy if array.min() >= 0 else 'number tokens from 0'}"
            )
    y = _probabilities(y) if probabilities else _one_hot(y, d_vocab)
    probabilities = probabilities and bool(np.ptp((y**2).sum(axis=1)) > _SAME)  # else labels: as one-hots, or smoothed
    return UserData(x, y, probabilities, _count_independent(x, y, probabilities))


def _is_one_hot(y: np.ndarray) -> bool:
    return bool(((y == 0) | (y == 1)).all() and (y.sum(axis=1) == 1).all())


def _check_coding(tokens: np.ndarray, labels: np.ndarray) -> None:
    """Refuse labels that take the very values of the tokens, but shifted."""
    coded, labelled = np.unique(tokens), np.unique(labels)
    shift = int(coded[0] - labelled[0])
    if shift and len(coded) == len(labelled) and (coded - labelled == shift).all():
        raise ValueError(
            f"tokens and labels must be numbered alike: got tokens in {coded[0]} .. {coded[-1]} and labels in "
            f"{labelled[0]} .. {labelled[-1]}; {'subtract' if shift > 0 else 'add'} {abs(shift)} "
            f"{'from' if shift > 0 else 'to'} the tokens"
        )


def _array(values: Array, name: str, ndim: int | tuple[int, ...], shape: str, integers: bool = False) -> np.ndarray:
    """A numpy array of numbers with the right number of axes, of size one or more."""
    array = _numpy(values, name, shape)
    if array.dtype.kind not in "iufb":
        raise ArgumentError(f"{name} must be numbers {shape}: got an array of {array.dtype}; convert or encode them")
    if array.ndim not in (ndim if isinstance(ndim, tuple) else (ndim,)) or array.size == 0:
        raise ValueError(f"{name} must be {shape} and not empty: got shape {list(array.shape)}")
    if integers:
        if array.dtype.kind not in "iu":
            raise ArgumentError(
                f"{name} must be integers {shape}: got {array.dtype}; convert them if they are whole numbers"
            )
        if array.dtype.kind == "u" and array.max() > np.iinfo(np.int64).max:
            raise ValueError(
                f"{name} must be numbers of tokens, from 0 up: got {array.max()}; was it a negative number?"
            )
        return array.astype(np.int64)
    return array


def _numpy(values: Array, name: str, shape: str) -> np.ndarray:
    if isinstance(values, Tensor):  # numpy knows no bfloat16
        return np.asarray((values.double() if values.is_floating_point() else values).detach().cpu().to_dense())
    if isinstance(values, list | tuple) and any(isinstance(row, Tensor) for row in values):
        values = [_numpy(row, name, shape) for row in values]
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be a rectangular array {shape}: got ragged rows; cut or pad them") from error


def _one_hot(y: np.ndarray, d_vocab: int) -> Float[np.ndarray, "sequence d_vocab"]:
    if len(y) * d_vocab > MOST_NUMBERS:
        raise ValueError(
            f"labels over a vocabulary of {d_vocab:,} make {len(y) * d_vocab:,} numbers, more than {MOST_NUMBERS:,}: "
            "number the tokens that occur from 0, or take fewer sequences"
        )
    one_hot = np.zeros((len(y), d_vocab))
    one_hot[np.arange(len(y)), y] = 1.0
    return one_hot


def _probabilities(y: np.ndarray) -> Float[np.ndarray, "sequence d_vocab"]:
    y = y.astype(np.float64)
    if not np.isfinite(y).all():
        bad = np.flatnonzero(~np.isfinite(y).all(axis=1))
        raise ValueError(
            f"target probabilities must be finite: got NaN or infinity in {len(bad):,} of {len(y):,} rows, the first "
            f"being {bad[0]}; leave these sequences out"
        )
    if y.min() < 0:
        raise ValueError(
            f"target probabilities must not be negative: got {y.min():.3g}; take the softmax if they are logits"
        )
    off = np.abs(y.sum(axis=1) - 1)
    if off.max() > 1e-3:
        worst = int(np.argmax(off))
        raise ValueError(
            f"each row of target probabilities must sum to 1: row {worst} sums to {y[worst].sum():.6g}; divide by the "
            "row sums"
        )
    return y / y.sum(axis=1, keepdims=True)


def _count_independent(x: np.ndarray, y: np.ndarray, probabilities: bool) -> int:
    """The number of rows; where some are copies, what they are worth: n^2 / (sum of squared numbers of equal rows).

    With probabilities of a kernel of its own for every sequence two equal rows are a copy, unless laws (rounded ones)
    coincide among different tokens too. Else rows repeat by chance, and copies give themselves away by the query:
    it is independent of the context, and repeats with it more often than by chance only in a copy.
    """
    laws, contexts, queries = _groups(y), _groups(x[:, :-1]), _groups(x[:, -1:])
    rows = _groups(np.stack([laws, contexts, queries], axis=1))
    n_equal, p_value = _n_pairs(rows), 1.0
    if probabilities and 2 * (laws.max() + 1) > rows.max() + 1:
        p_value = _binomial_tail(n_equal, _n_pairs(laws), 0.5)
    if min(p_value, _query_p_value(contexts, queries)) >= _WRONG_WITH:
        return len(x)
    return max(1, round(len(x) ** 2 / (len(x) + 2 * n_equal)))


def _query_p_value(contexts: Int[np.ndarray, " sequence"], queries: Int[np.ndarray, " sequence"]) -> float:
    """Of "the query is independent of the context", against copies: two tests, Bonferroni.

    Among contexts that are rare, neighbours (shuffled) of one context are counted that have the same query, by the
    binomial law; among frequent ones, the table of context and query has Pearson's chi-squared.
    """
    from scipy.special import chdtrc  # type: ignore[import-untyped]  # slow to import

    order = np.random.default_rng(0).permutation(len(contexts))
    order = order[np.argsort(contexts[order], kind="stable")]
    share = np.bincount(queries) / len(queries)
    neighbours = np.diff(contexts[order]) == 0
    hits = int((neighbours & (np.diff(queries[order]) == 0)).sum())
    p_value = _binomial_tail(hits, int(neighbours.sum()), float((share**2).sum()))
    frequent = np.bincount(contexts) * share.min() >= _LEAST_EXPECTED
    if frequent.sum() > 1 and len(share) > 1:
        row = np.cumsum(frequent) - 1
        kept = frequent[contexts]
        table = np.zeros((int(frequent.sum()), len(share)))
        np.add.at(table, (row[contexts[kept]], queries[kept]), 1.0)
        expected = table.sum(axis=1, keepdims=True) * table.mean(axis=0) / table.mean(axis=0).sum()
        squares = (table - expected) ** 2 / np.maximum(expected, 1e-300)  # 0 where a query never occurs
        degrees = (len(table) - 1) * (int((table.sum(axis=0) > 0).sum()) - 1)
        if degrees:
            p_value = min(p_value, float(chdtrc(degrees, squares.sum())))
    return 2 * p_value


def _binomial_tail(hits: int, trials: int, share: float) -> float:
    """P(at least so many hits)."""
    from scipy.special import bdtrc

    return float(bdtrc(hits - 1, trials, share)) if hits else 1.0


def _groups(rows: np.ndarray) -> Int[np.ndarray, " sequence"]:
    """A number for every different row: 0, 1, .."""
    return np.unique(_hashed(rows.astype(np.float64)), return_inverse=True)[1].ravel()


def _n_pairs(groups: Int[np.ndarray, " sequence"]) -> int:
    """Pairs of rows in one group."""
    sizes = np.bincount(groups)
    return int((sizes * (sizes - 1) // 2).sum())


def _hashed(rows: np.ndarray) -> np.ndarray:
    """One number a row, different for different rows but for a chance of about n^2 / 2^53."""
    weights = np.random.default_rng(0).normal(size=(rows.shape[1], 1))
    return (rows @ weights)[:, 0]


def unusable_positions(data: UserData) -> tuple[dict[int, str], list[str]]:
    """(position -> why nothing can be concluded about it, warnings about the whole)."""
    context = data.tokens[:, :-1]
    why: dict[int, str] = {}
    warnings: list[str] = []
    for position in np.flatnonzero(data.constant[:-1]).tolist():
        why[position] = f"its token is always {context[0, position]}: a constant says nothing"
    if data.constant[-1]:
        for position in range(context.shape[1]):
            why.setdefault(position, "the query (last token) never varies: nothing singles out a parent")
    if len(data.tokens) - data.n_independent > _PASSED_OVER * len(data.tokens):
        warnings.append(
            f"there are copies among the {len(data.tokens):,} sequences: they count as {data.n_independent:,} "
            "independent ones; leave the copies out"
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
                "drawn on its own, or tokens do not follow the kernel's stationary law; nothing can be concluded"
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
    off = (p_value * p_value.size < _WRONG_WITH) & (distance > _LEAST_SHARE * usual)
    return kept & off.any(axis=1)
