"""Figures of studies and of weights: what is measured is what is drawn."""

import numpy as np
import torch
from assertions import assert_refused
from matplotlib.axes import Axes

import causal_circuits as cc
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
    assert names(figures.plot_groups({"a": {"x": 0.5}, "none": {"x": float("nan")}}, xlabel="x")) == ["a"]
    assert_refused(lambda: figures.plot_groups({}, xlabel="x"), "at least one group")


def test_every_slot_of_a_model_is_named_at_its_middle_and_bounded():
    figure = figures.plot_weights(cc.plant_circuit(cc.chain_graph(4), d_vocab=2))
    first, second, read_out = figure.axes[:3]
    assert [label.get_text() for label in first.get_xticklabels()] == ["token", "position"]
    assert list(first.get_yticks()) == [0.5, 3.5]
    assert [line.get_xdata()[0] for line in first.lines][:1] == [1.5]
    assert [label.get_text() for label in second.get_yticklabels()][2:] == ["L0H0.token", "L0H0.position"]
    for ax in (first, second, read_out):
        low, high = ax.images[0].get_clim()
        assert low == -high == -np.abs(ax.images[0].get_array()).max()


def test_patterns_stand_side_by_side(fork):
    for n, graph in ((2, fork), (7, {f"{k}": fork for k in range(7)})):
        patterns = figures.plot_attentions({f"{k}": torch.eye(7) for k in range(n)}, graph)
        outlined = [c for ax in patterns.axes for c in ax.collections if c.get_gid() == "true-edges"]
        assert [len(c.get_paths()) for c in outlined] == [len(cc.latent_edges(fork))] * n
    assert_refused(lambda: figures.plot_attentions({}, fork), "at least one attention pattern")


def test_numbers_on_the_edges_of_a_circuit_do_not_touch():
    graph = cc.circuits.circuit_graph(cc.disentangled_transformer(3, 6))
    edges = cc.circuits.circuit_edges(graph)
    ax = figures.plot_circuit(graph, edges, effects={edge: 0.12 + 0.1 * k for k, edge in enumerate(edges)})
    boxes = [text.get_window_extent() for text in ax.texts if text.get_gid() == "effect"]
    assert len(boxes) == len(edges)
    assert not any(one.overlaps(other) for k, one in enumerate(boxes) for other in boxes[:k])


def test_a_long_legend_takes_nothing_from_the_axes():
    short, long = (
        figures.plot_groups({f"{k}{'-' * length}": {"chain": 0.5} for k in range(8)}, xlabel="x") for length in (1, 90)
    )
    for ax in (short, long):
        ax.figure.draw_without_rendering()
    widths = [ax.get_window_extent().width for ax in (short, long)]
    assert widths[1] > 0.95 * widths[0]
    assert not long.get_legend().get_window_extent().overlaps(long.xaxis.get_tightbbox())


def test_figures_of_a_recovery_show_every_position():
    parents = [None, 0, 1, None, 3, 0, None]
    batch = cc.InContextTask(cc.graph_from_parents(parents), d_vocab=3, alpha=0.1).sample(400, seed=0)
    found = cc.recover_graph(batch, level=1e-4)
    assert found.undecided
    ax = figures.plot_recovery(found)
    drawn = np.concatenate([line.get_xdata() for line in ax.lines[2:]])
    assert sorted(drawn) == list(range(1, 7))
    arcs = figures.plot_recovered_graph(found)
    question_marks = [text for text in arcs.texts if text.get_text() == "?"]
    assert len(question_marks) == len(found.undecided)


def test_agreement_lines_in_a_group_share_their_colour():
    series = {
        name: [(10, 0.5), (100, value)] for name, value in (("a g", 0.8), ("a G", 1.0), ("b g", 0.7), ("b G", 1.1))
    }
    ax = figures.plot_curves(series, xlabel="n_ctx", ylabel="slope", levels={"": 1.0}, group_size=2)
    colours = [line.get_color() for line in ax.lines[:4]]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    assert_refused(lambda: figures.plot_curves({}, xlabel="x", ylabel="y"), "at least one point")
