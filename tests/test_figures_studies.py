"""Figures of studies: what is measured is what is drawn."""

import numpy as np
import pytest
from assertions import assert_refused
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from causal_circuits import figures

POINTS = {"model": [(10, 0.1), (10, 0.12), (40, 0.03)], "posterior": [(10, 0.05), (40, 0.0)]}


def drawn(ax: Axes) -> list[np.ndarray]:
    return [np.asarray(line.get_xydata()) for line in ax.lines]


def names(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_scaling_draws_every_positive_point_its_fit_and_the_exponent() -> None:
    ax = figures.plot_scaling(POINTS, {"model": (1.0, -1.0)}, ylabel="gap (nats)", bound=("1 / n_ctx", 1.0, -1.0))
    points, fit, posterior, bound = drawn(ax)
    assert points.tolist() == [[10, 0.1], [10, 0.12], [40, 0.03]]
    assert np.allclose(fit, [[10, 0.1], [40, 0.025]])
    assert posterior.tolist() == [[10, 0.05]]  # zero has no place on a logarithmic axis
    assert np.allclose(bound, fit)
    assert names(ax) == ["model: exponent -1.00", "posterior", "1 / n_ctx"]
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert ax.get_xticks().tolist() == [10, 40]
    assert ax.get_ylabel() == "gap (nats)"


def test_curves_are_lines_through_the_points_with_levels_named() -> None:
    ax = figures.plot_curves(
        {"a": [(100, 0.2), (1000, 0.9)]}, xlabel="sequences", ylabel="share", levels={"all": 1.0}, title="pooled"
    )
    assert drawn(ax)[0].tolist() == [[100, 0.2], [1000, 0.9]]
    assert "all" in [text.get_text() for text in ax.texts]
    assert (ax.get_xscale(), ax.get_yscale(), ax.get_title()) == ("log", "linear", "pooled")
    log = figures.plot_curves({"a": [(1, 0.0), (2, 0.5)]}, xlabel="x", ylabel="y", log_y=True, legend=False)
    assert drawn(log)[0].tolist() == [[2, 0.5]]
    assert log.get_legend() is None


def test_groups_put_one_marker_of_each_series_on_each_row() -> None:
    ax = figures.plot_groups(
        {"reduced": {"sticky": 0.1, "sparse": 0.2}, "full": {"sparse": 0.3}}, xlabel="excess (nats)", levels={"0": 0.0}
    )
    assert [label.get_text() for label in ax.get_yticklabels()] == ["sticky", "sparse"]
    reduced, full = drawn(ax)[:2]
    assert reduced[:, 0].tolist() == [0.1, 0.2]
    assert [round(row) for row in reduced[:, 1]] == [0, 1]
    assert full[:, 0].tolist() == [0.3]
    assert round(full[0, 1]) == 1
    assert names(ax) == ["reduced", "full"]
    assert_refused(lambda: figures.plot_groups({}, xlabel="x"), "at least one group")


@pytest.mark.parametrize("plot", ["scaling", "curves", "groups"])
def test_axes_given_are_used(plot: str) -> None:
    ax = Figure().add_subplot()
    calls = {
        "scaling": lambda: figures.plot_scaling(POINTS, {}, ylabel="y", ax=ax),
        "curves": lambda: figures.plot_curves(POINTS, xlabel="x", ylabel="y", ax=ax),
        "groups": lambda: figures.plot_groups({"a": {"b": 1.0}}, xlabel="x", ax=ax),
    }
    assert calls[plot]() is ax
