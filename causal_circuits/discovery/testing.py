"""Statistics that turn scores into decisions: tails and family-wise corrections."""

from math import erfc, sqrt


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down correction: family-wise adjusted p-values, in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def upper_tail(z: float) -> float:
    """P(N(0, 1) > z)."""
    return 0.5 * erfc(z / sqrt(2))
