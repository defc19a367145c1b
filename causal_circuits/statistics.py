"""Statistics that turn scores into decisions: tails, family-wise corrections, ranks."""

from math import erfc, sqrt

import numpy as np
import scipy  # type: ignore[import-untyped]  # its parts are imported with their first use
from jaxtyping import Bool, Float

from causal_circuits.arguments import check_arguments

_ROUNDING = 1e-12  # of the bound: a mean below it is a zero that rounding has touched


@check_arguments
def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down correction: family-wise adjusted p-values, in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.maximum.accumulate(np.arange(len(p_values), 0, -1) * np.asarray(p_values)[order])
    return np.minimum(adjusted, 1.0).tolist()


def upper_tail(z: float) -> float:
    """P(N(0, 1) > z)."""
    return 0.5 * erfc(z / sqrt(2))


def bernstein_p_value(
    mean: np.ndarray | float, variance: np.ndarray | float, bound: float | int, n: int = 1
) -> np.ndarray:
    """One-sided p-values of "the expectation is at most zero", by Bernstein's inequality; n = 1: of sums.

    P(mean of n >= t) <= exp(-n t^2 / (2 (variance + bound t / 3))) for terms that exceed their expectation by at most
    `bound`. Unlike a normal tail it stays honest where few terms are large, at the price of a factor of about z in p;
    taking the variance from the sample makes it approximate for very small n. 1 where the mean is not positive.

    >>> p = bernstein_p_value(np.array([0.1, -0.1]), np.array([1.0, 1.0]), bound=3.0, n=1000)
    >>> bool(1e-4 < p[0] < 1e-1), float(p[1])
    (True, 1.0)
    """
    t = np.where(mean > _ROUNDING * bound, mean, 0.0)
    exponent = np.divide(n * t**2, 2 * (variance + bound * t / 3), out=np.zeros_like(t), where=t > 0)
    return np.asarray(np.exp(-exponent))


def bernstein_sample_size(mean: np.ndarray, variance: np.ndarray, bound: float, p_value: float) -> np.ndarray:
    """How many terms would take `bernstein_p_value` down to `p_value` if mean and variance stayed; inf if never.

    >>> bernstein_sample_size(np.array([0.1]), np.array([1.0]), bound=3.0, p_value=1e-3).round()
    array([1520.])
    """
    t = np.where(mean > _ROUNDING * bound, mean, 0.0)
    needed = 2 * (variance + bound * t / 3) * np.log(1 / p_value)
    return np.divide(needed, t**2, out=np.full_like(needed, np.inf), where=t > 0)


@check_arguments
def auroc(values: Float[np.ndarray, " entry"], truth: Bool[np.ndarray, " entry"]) -> float:
    """The probability that a true entry scores above another, ties counting half.

    NaN if one kind is missing, or a score is NaN.

    >>> auroc(np.array([3.0, 2.0, 1.0]), np.array([True, False, True]))
    0.5
    """
    true, others = values[truth], np.sort(values[~truth])
    if not len(true) or not len(others) or np.isnan(values).any():
        return float("nan")
    halves = np.searchsorted(others, true, "left") + np.searchsorted(others, true, "right")  # won twice, tied once
    return float(halves.sum() / (2 * len(true) * len(others)))


@check_arguments
def rank_correlation(x: Float[np.ndarray, " pair"], y: Float[np.ndarray, " pair"]) -> float:
    """Spearman's, ties sharing their mean rank; NaN where there is nothing to order, or a value is NaN.

    >>> rank_correlation(np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0, 2.0]))
    0.5
    """
    if len(x) < 2 or np.isnan([*x, *y]).any() or min(len(set(x)), len(set(y))) < 2:
        return float("nan")
    return float(scipy.stats.spearmanr(x, y).statistic)
