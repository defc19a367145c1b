"""Power laws fitted to measurements at several lengths, with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from causal_circuits.pages.report import State


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
        return f"{self.exponent:+.2f} {interval}, last {self.last_exponent:+.2f}"

    def against(self, exponent: float) -> str:
        """Where the interval of the exponent lies beside a given one, in words."""
        if np.isnan(self.low):
            return f"too few points to compare with {exponent:+.2f}"
        if self.low <= exponent <= self.high:
            return f"an interval that holds {exponent:+.2f}"
        return f"steeper than {exponent:+.2f}" if self.high < exponent else f"flatter than {exponent:+.2f}"


def falls(law: PowerLaw | None) -> State:
    """Whether the exponent is below zero: undecided where its interval holds zero, or is not known."""
    if law is None or not (law.high < 0 or law.low > 0):
        return "undecided"
    return "passed" if law.high < 0 else "refuted"


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


def _line(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope and intercept of the least-squares line through every row of points."""
    centred = x - x.mean(axis=1, keepdims=True)
    slope = (centred * y).sum(axis=1) / (centred**2).sum(axis=1)
    return slope, y.mean(axis=1) - slope * x.mean(axis=1)
