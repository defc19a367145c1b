"""The figures that the studies of information draw."""

import numpy as np
import pytest

import causal_circuits as cc
from causal_circuits import figures


@pytest.fixture(scope="module")
def batch() -> cc.Batch:
    parents = [None, 0, 1, None, 3, 0, None]
    return cc.InContextTask(cc.graph_from_parents(parents), d_vocab=3, alpha=0.1).sample(4000, seed=0)


def test_figures_of_a_recovery_show_every_position(batch):
    found = cc.recover_graph(batch.tokens[:400], batch.target_probs[:400], level=1e-4)
    assert found.undecided
    ax = figures.plot_recovery(found)
    drawn = np.concatenate([line.get_xdata() for line in ax.lines[2:]])
    assert sorted(drawn) == list(range(1, 7))
    arcs = figures.plot_recovered_graph(found)
    question_marks = [text for text in arcs.texts if text.get_text() == "?"]
    assert len(question_marks) == len(found.undecided)


def test_gradient_vs_information_marks_edges_and_the_line_of_equality():
    task = cc.InContextTask(cc.chain_graph(6), d_vocab=3, alpha=1.0)
    g = cc.predicted_gradient(task, n_kernels=64)
    ax = figures.plot_gradient_vs_information(g.value, g.value, task.graph, g.standard_error, title="correlation 1")
    others, edges = (collection.get_offsets() for collection in ax.collections[1::2])
    assert (len(others), len(edges)) == (6, 4)
    np.testing.assert_allclose(edges[:, 0], edges[:, 1])
    assert [text.get_text() for text in ax.get_legend().get_texts()][1:] == ["true edges (4)", "measured = predicted"]


def test_agreement_lines_in_a_group_share_their_colour():
    series = {
        name: ([10, 100], [0.5, value]) for name, value in (("a g", 0.8), ("a G", 1.0), ("b g", 0.7), ("b G", 1.1))
    }
    ax = figures.plot_agreement(series, "n_ctx", "slope", group_size=2)
    colours = [line.get_color() for line in ax.lines[:4]]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    with pytest.raises(ValueError, match="at least one point"):
        figures.plot_agreement({}, "x", "y")
