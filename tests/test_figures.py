"""Figures: what the axes hold."""

import matplotlib as mpl
import networkx as nx
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

import causal_circuits as cc
from causal_circuits import figures, pages

REFERENCES = {"entropy floor": 0.85, "exact Bayes": 1.9058, "edge posterior": 1.9070}
REFERENCES |= {"best unigram": 2.24, "uniform": 2.30}


@pytest.fixture
def record() -> cc.TrainingRecord:
    """Forty steps over the fork's 7 positions, recorded three times; uniform attention."""
    attention = uniform_attention(7).expand(3, 2, 1, 7, 7)
    return cc.TrainingRecord(
        losses=torch.linspace(2.3, 1.95, 40, dtype=torch.float64),
        steps=(0, 6, 40),
        recorded_losses=torch.tensor([2.3, 2.2, 1.95], dtype=torch.float64),
        attention=attention,
        score_gradients=attention,
    )


def uniform_attention(n_ctx: int) -> torch.Tensor:
    lower = torch.ones(n_ctx, n_ctx).tril()
    return lower / lower.sum(dim=-1, keepdim=True)


def outlined(ax: Axes) -> set[tuple[int, int]]:
    """The (query, key) cells of the open squares."""
    (squares,) = (collection for collection in ax.collections if collection.get_gid() == "true-edges")
    centres = [path.vertices[:4].mean(axis=0) for path in squares.get_paths()]
    return {(round(y), round(x)) for x, y in centres}


def arcs(ax: Axes, name: str) -> set[tuple[int, int]]:
    """The (parent, child) ends of one class of arcs."""
    (lines,) = (collection for collection in ax.collections if collection.get_gid() == name)
    return {(round(path.vertices[0, 0]), round(path.vertices[-1, 0])) for path in lines.get_paths()}


def text_boxes(ax: Axes, words: list[str]) -> list[object]:
    """The boxes of the words themselves, without the thin lines to what they name."""
    figure = figures_figure(ax)
    figure.draw_without_rendering()
    return [Text.get_window_extent(text) for text in ax.texts if any(word in text.get_text() for word in words)]


def figures_figure(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def test_attention_outlines_exactly_the_learned_edges(fork: nx.DiGraph) -> None:
    ax = figures.plot_attention_and_graph(uniform_attention(7), fork, title="step 0")
    assert outlined(ax) == {(child, parent) for parent, child in cc.latent_edges(fork)}
    assert (ax.get_title(), ax.get_xlabel()) == ("step 0", "key position (parent)")
    shown = ax.images[0].get_array()
    assert shown.mask[np.triu_indices(7, 1)].all()
    assert not shown.mask[np.tril_indices(7)].any()


def test_a_diverging_matrix_is_symmetric_about_zero_and_keeps_gaps_blank(fork: nx.DiGraph) -> None:
    effects = torch.full((7, 7), torch.nan)
    effects[3, 1], effects[2, 0] = -0.2, 0.1
    ax = figures.plot_matrix(effects, fork, label="nats", diverging=True)
    assert ax.images[0].get_clim() == pytest.approx((-0.2, 0.2))
    assert (~ax.images[0].get_array().mask).sum() == 2
    assert figures_figure(ax).axes[1].get_ylabel() == "nats"


@pytest.mark.parametrize(
    ("found", "missing", "false"),
    [
        ([None, 0, 0, 1, None, 4], set(), set()),
        ([None, 0, 1, 1, None, None], {(0, 2), (4, 5)}, {(1, 2)}),
    ],
)
def test_graph_comparison_draws_what_compare_graphs_counts(fork, found, missing, false) -> None:  # type: ignore[no-untyped-def]
    graph = cc.graph_from_parents(found)
    ax = figures.plot_graph_comparison(fork, graph)
    assert arcs(ax, "missing") == missing
    assert arcs(ax, "false") == false
    assert arcs(ax, "found and true") == cc.latent_edges(fork) - missing
    entries = [text.get_text() for text in ax.get_legend().get_texts()]
    hits = len(cc.latent_edges(fork)) - len(missing)
    found = [f"found and true ({hits})", f"missing ({len(missing)})", f"false ({len(false)})"]
    assert entries == [*found, "given (1)", "root (2)"]
    assert {"query", "target"} <= {text.get_text() for text in ax.texts}


def test_gradient_points_are_the_strict_lower_triangle(fork: nx.DiGraph) -> None:
    gradient, information = torch.arange(49.0).view(7, 7), torch.arange(49.0).view(7, 7) / 2
    ax = figures.plot_gradient_vs_information(gradient, information, fork, information / 9, title="r = 1")
    others, edges = (collection.get_offsets() for collection in ax.collections[1::2])  # after their error bars
    assert len(edges) == len(cc.latent_edges(fork))
    assert len(others) + len(edges) == 6 * 5 // 2  # the query's row is left out
    np.testing.assert_allclose(edges[:, 1], 2 * edges[:, 0])
    named = [text.get_text() for text in ax.get_legend().get_texts()]
    assert named[1:] == [f"true edges ({len(edges)})", "measured = predicted"]
    assert ax.get_title() == "r = 1"


def test_loss_labels_name_every_line_and_do_not_overlap(record: cc.TrainingRecord) -> None:
    ax = figures.plot_loss(record, {**REFERENCES, "not known": float("nan")}, test_loss=1.9064)
    labels = [text.get_text() for text in ax.texts]
    named = [f"{name} {value:.3f}" for name, value in REFERENCES.items()]
    assert labels == [f"{named[0]} (below)", *named[1:], "test loss 1.906"]  # the floor would squash all others
    assert ax.get_ylim()[0] > 1.8
    levels = sorted(line.get_ydata()[0] for line in ax.lines if len(line.get_ydata()) == 2)
    assert levels == pytest.approx(sorted(REFERENCES.values()))
    boxes = text_boxes(ax, list(REFERENCES))
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])  # type: ignore[attr-defined]
    page = figures_figure(ax).bbox
    assert all(page.x0 <= box.x0 and box.x1 <= page.x1 for box in boxes)  # type: ignore[attr-defined]


def test_the_running_mean_ends_at_the_mean_of_the_last_tenth(record: cc.TrainingRecord) -> None:
    ax = figures.plot_loss(record, {})
    raw, smooth = (line.get_ydata() for line in ax.lines)
    np.testing.assert_allclose(raw, record.losses)
    assert smooth[-1] == pytest.approx(record.losses[-4:].mean())
    assert smooth[0] == pytest.approx(record.losses[0])


def test_ablation_bars_are_grouped_by_label_and_say_when_there_is_no_gain() -> None:
    ax = figures.plot_ablation([("L0H0", "zero", 1.1), ("L0H0", "mean", 0.9), ("L1H0", "zero", float("nan"))])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["L0H0", "L1H0"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["zero", "mean"]
    assert [text.get_text() for text in ax.texts].count("n/a") == 2
    assert any((line.get_ydata() == np.array([1, 1])).all() for line in ax.lines)


def test_figures_draw_on_the_axes_they_are_given_and_change_no_style(record, fork) -> None:
    before = dict(mpl.rcParams)
    attention, points = uniform_attention(7), {"model": [(10, 0.1), (40, 0.03)]}
    calls = [
        lambda ax: figures.plot_loss(record, REFERENCES, ax=ax),
        lambda ax: figures.plot_attention_and_graph(attention, fork, ax=ax),
        lambda ax: figures.plot_matrix(attention, ax=ax),
        lambda ax: figures.plot_graph_comparison(fork, fork, ax=ax),
        lambda ax: figures.plot_gradient_vs_information(attention, attention, fork, ax=ax),
        lambda ax: figures.plot_ablation([("L0H0", "zero", 1.0)], ax=ax),
        lambda ax: figures.plot_phases(cc.films.PredictorDistances((0, 3), ("a",), torch.ones(2, 1).double()), ax=ax),
        lambda ax: figures.plot_knock_out(
            cc.interventions.KnockOut(0, *[torch.zeros(1, 7, 7)] * 3, baseline_loss=0.0), fork, ax=ax
        ),
        lambda ax: figures.plot_scaling(points, {}, ylabel="y", ax=ax),
        lambda ax: figures.plot_curves(points, xlabel="x", ylabel="y", ax=ax),
        lambda ax: figures.plot_groups({"a": {"b": 1.0}}, xlabel="x", ax=ax),
    ]
    for call in calls:
        ax = Figure().add_subplot()
        assert call(ax) is ax
        pages.figure_html(ax, "alt")
    assert dict(mpl.rcParams) == before
