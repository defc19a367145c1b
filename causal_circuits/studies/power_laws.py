"""Power laws fitted to measurements at several lengths, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from causal_circuits.pages.report import Check, State
from causal_circuits.studies.tables import is_positive


@dataclass(frozen=True)
class PowerLaw:
    """value = prefactor * length ** exponent, by least squares on logarithms.

    Attributes:
        prefactor, exponent: of the fit over all points.
        low, high: 95% interval of the exponent, from resampling points (length, seed) with replacement: it covers the
            scatter of seeds and, roughly, that the points may not lie on a line. NaN with fewer than four points.
        last_exponent: between the two longest lengths alone: where the curve is heading.
        last_error: standard error of it, from the scatter of the points at these two lengths; NaN with one point at
            either.
        n_points: measurements.
    """

    prefactor: float
    exponent: float
    low: float
    high: float
    last_exponent: float
    last_error: float
    n_points: int

    def __str__(self) -> str:
        interval = f"[{self.low:+.2f}, {self.high:+.2f}]" if self.low == self.low else "[too few points]"
        error = f" +- {self.last_error:.2f}" if self.last_error == self.last_error else ""
        return f"{self.exponent:+.2f} {interval}, last {self.last_exponent:+.2f}{error}"

    def against(self, exponent: float) -> str:
        """Where the interval of the exponent lies beside a given one, in words."""
        if np.isnan(self.low):
            return f"too few points to compare with {exponent:+.2f}"
        if self.low <= exponent <= self.high:
            return f"an interval that holds {exponent:+.2f}"
        return f"steeper than {exponent:+.2f}" if self.high < exponent else f"flatter than {exponent:+.2f}"


def falls(law: "PowerLaw | Exponent | None") -> State:
    return "undecided" if law is None else is_positive(-law.high, -law.low)


def fall_check(law: PowerLaw | None, what: str, evidence: str = "") -> Check:
    return Check(
        falls(law), f"{what} falls with the length, its exponent's interval below zero", f"{evidence}exponent {law}"
    )


def scaling(law: PowerLaw | None, exponent: float) -> str:
    return "no power (too few positive points)" if law is None else f"n_ctx^({law}), {law.against(exponent)}"


def fit_power_law(
    lengths: Sequence[int | float], values: Sequence[int | float], *, n_boot: int = 2000, seed: int = 0
) -> PowerLaw | None:
    """The power law through points (length, value); None if fewer than two lengths have a positive value.

    >>> fit_power_law([10, 20, 40, 80], [1 / 10, 1 / 20, 1 / 40, 1 / 80]).exponent
    -1.0
    """
    x, y = np.asarray(lengths, dtype=np.float64), np.asarray(values, dtype=np.float64)
    usable = np.isfinite(y) & (y > 0)
    x, y = np.log(x[usable]), np.log(y[usable])
    if len(np.unique(x)) < 2:
        return None
    slope, intercept = _line(x[None], y[None])
    draws = np.random.default_rng(seed).integers(len(x), size=(n_boot, len(x)))
    draws = draws[np.ptp(x[draws], axis=1) > 0]
    ends = np.quantile(_line(x[draws], y[draws])[0], [0.025, 0.975]) if len(x) >= 4 else (float("nan"), float("nan"))
    *_, before, last = np.unique(x)
    longest = [y[x == at] for at in (before, last)]
    step = (longest[1].mean() - longest[0].mean()) / (last - before)
    scatter = [values.var(ddof=1) / len(values) if len(values) > 1 else float("nan") for values in longest]
    return PowerLaw(
        prefactor=float(np.exp(intercept[0])),
        exponent=round(float(slope[0]), 12),
        low=float(ends[0]),
        high=float(ends[1]),
        last_exponent=float(step),
        last_error=float(sum(scatter) ** 0.5 / (last - before)),
        n_points=len(x),
    )


@dataclass(frozen=True)
class Exponent:
    """Of one of several variables in value = constant * product of variable ** exponent, with its 95% interval."""

    exponent: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.exponent:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def fit_exponents(
    variables: Mapping[str, Sequence[int | float]],
    values: Sequence[int | float],
    groups: Sequence[object],
    *,
    n_boot: int = 2000,
    seed: int = 0,
) -> dict[str, Exponent]:
    """Exponents of positive variables, by least squares on logarithms; none where they are not determined.

    The interval is from resampling groups of rows: rows of a group share what the variables do not say.

    >>> rows = {"n": [1, 2, 4, 1, 2, 4], "g": [1, 1, 1, 2, 2, 2]}
    >>> print(fit_exponents(rows, [3, 6, 12, 1.5, 3, 6], list("abcdef"))["g"])
    -1.00 [-1.00, -1.00]
    """
    y = np.log(np.asarray(values, dtype=np.float64))
    x = np.column_stack([np.ones(len(y)), *(np.log(np.asarray(v, dtype=np.float64)) for v in variables.values())])
    names = sorted(set(groups), key=str)
    members = [np.flatnonzero([group == name for group in groups]) for name in names]
    if len(y) == 0 or np.linalg.matrix_rank(x) < x.shape[1]:
        return {}
    draws = np.random.default_rng(seed).integers(len(names), size=(n_boot, len(names)))
    drawn = (np.concatenate([members[k] for k in draw]) for draw in draws)
    fits = [np.linalg.lstsq(x[at], y[at])[0][1:] for at in drawn if np.linalg.matrix_rank(x[at]) == x.shape[1]]
    low, high = np.quantile(fits, [0.025, 0.975], axis=0)
    best = np.linalg.lstsq(x, y)[0][1:]
    return {
        name: Exponent(*(round(float(v), 12) for v in (best[k], low[k], high[k]))) for k, name in enumerate(variables)
    }


def _line(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope and intercept of the least-squares line through every row of points."""
    centred = x - x.mean(axis=1, keepdims=True)
    slope = (centred * y).sum(axis=1) / (centred**2).sum(axis=1)
    return slope, y.mean(axis=1) - slope * x.mean(axis=1)
