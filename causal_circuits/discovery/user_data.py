"""Sequences of a user's own: checked, brought into one form, and counted, copies being no evidence."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # type: ignore[import-untyped]  # its parts are imported with their first use
from jaxtyping import Bool, Float, Int

from causal_circuits.arguments import ArgumentError
from causal_circuits.tasks.batch import Batch

WRONG_WITH = 1e-4  # the p-value (Bonferroni) at which an assumption counts as contradicted
_SAME = 1e-6  # laws of random transition matrices are not all equally sharp; labels in disguise are
_LEAST_EXPECTED = 2  # of each query in a context: rarer contexts are left to the binomial test


@dataclass(frozen=True)
class UserData:
    """Sequences that passed every check."""

    tokens: Int[np.ndarray, "sequence n_ctx"]  # [sequence, n_ctx]
    targets: Float[np.ndarray, "sequence d_vocab"]  # [sequence, d_vocab], rows with sum one; labels as one-hots
    probabilities: bool  # whether targets are probabilities; rows that are all equally sharp are taken for labels
    n_independent: int  # sequences that the means are worth: copies are no evidence, and make means noisier

    @property
    def n_ctx(self) -> int:
        """Length of the sequences, query included."""
        return self.tokens.shape[1]

    @property
    def constant(self) -> Bool[np.ndarray, " n_ctx"]:
        """Positions whose token is the same in every sequence."""
        return (self.tokens == self.tokens[0]).all(axis=0)

    @property
    def why_constant(self) -> dict[int, str]:
        """Position -> why nothing can be said of it, for those whose token is the same in every sequence."""
        return {
            i: f"its token is always {self.tokens[0, i]}: a constant carries no information"
            for i in np.flatnonzero(self.constant).tolist()
        }


def read_data(tokens: Any, targets: Any, d_vocab: int | None) -> UserData:
    """Tokens and laws or labels as `UserData`; a ValueError that names rule, value and remedy if they are unsound."""
    if isinstance(tokens, Batch):
        targets = tokens.target_probs if targets is None else targets
        tokens = tokens.tokens
    if targets is None:
        raise ArgumentError("targets must be given beside tokens: got none; they follow the query, as labels or laws")
    if tokens.ndim == 2 and tokens.shape[1] < 2:
        raise ValueError(f"sequences need a context and a query, n_ctx of at least 2: got shape {list(tokens.shape)}")
    batch = Batch(tokens, targets, d_vocab)
    width = batch.target_probs.shape[1]
    if width < 2:
        hint = "one token tells nothing" if targets.ndim == 1 else "one column is no law: give labels as [sequences]"
        raise ValueError(f"d_vocab must be at least 2: got {width}; {hint}")
    batch.check(width)
    x, y = batch.tokens.cpu().numpy(), batch.target_probs.cpu().double().numpy()
    y = y / y.sum(axis=1, keepdims=True)
    are_laws = targets.ndim == 2 and bool(np.ptp((y**2).sum(axis=1)) > _SAME)  # else labels, or smoothed ones
    return UserData(x, y, are_laws, _count_independent(x, y, are_laws))


def _count_independent(x: np.ndarray, y: np.ndarray, are_laws: bool) -> int:
    """The number of rows; where some are copies, what they are worth: n^2 / (sum of squared numbers of equal rows).

    With laws of a transition matrix of its own for every sequence two equal rows are a copy, unless laws (rounded ones)
    coincide among different tokens too. Else rows repeat by chance, and copies give themselves away by the query:
    it is independent of the context, and repeats with it more often than by chance only in a copy.
    """
    laws, contexts, queries = _groups(y), _groups(x[:, :-1]), _groups(x[:, -1:])
    rows = _groups(np.stack([laws, contexts, queries], axis=1))
    n_equal, p_value = _n_pairs(rows), 1.0
    if are_laws and 2 * (laws.max() + 1) > rows.max() + 1:
        p_value = float(scipy.stats.binom.sf(n_equal - 1, _n_pairs(laws), 0.5))
    if min(p_value, _query_p_value(contexts, queries)) >= WRONG_WITH:
        return len(x)
    return max(1, round(len(x) ** 2 / (len(x) + 2 * n_equal)))


def _query_p_value(contexts: Int[np.ndarray, " sequence"], queries: Int[np.ndarray, " sequence"]) -> float:
    """Of "the query is independent of the context", against copies: two tests, Bonferroni.

    Among contexts that are rare, neighbours (shuffled) of one context are counted that have the same query, by the
    binomial law; among frequent ones, the table of context and query has Pearson's chi-squared.
    """
    order = np.random.default_rng(0).permutation(len(contexts))
    order = order[np.argsort(contexts[order], kind="stable")]
    share = np.bincount(queries) / len(queries)
    neighbours = np.diff(contexts[order]) == 0
    hits = int((neighbours & (np.diff(queries[order]) == 0)).sum())
    p_value = float(scipy.stats.binom.sf(hits - 1, neighbours.sum(), (share**2).sum()))
    frequent = np.bincount(contexts) * share.min() >= _LEAST_EXPECTED
    if frequent.sum() > 1 and len(share) > 1:
        kept = frequent[contexts]
        table = scipy.stats.contingency.crosstab(contexts[kept], queries[kept]).count
        p_value = min(p_value, float(scipy.stats.chi2_contingency(table, correction=False).pvalue))
    return 2 * p_value


def _groups(rows: np.ndarray) -> Int[np.ndarray, " sequence"]:
    """A number for every different row: 0, 1, .. (of equal hashes, different rows with a chance of n^2 / 2^53)."""
    weights = np.random.default_rng(0).normal(size=rows.shape[1])
    return np.unique(rows.astype(np.float64) @ weights, return_inverse=True)[1].ravel()


def _n_pairs(groups: Int[np.ndarray, " sequence"]) -> int:
    """Pairs of rows in one group."""
    sizes = np.bincount(groups)
    return int((sizes * (sizes - 1) // 2).sum())
