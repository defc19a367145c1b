"""Figures of weights by slot and of attention to the parent by position."""

import pytest
import torch

import causal_circuits as cc
from causal_circuits import figures

ROWS, COLUMNS = (("token", 2), ("position", 3)), (("token", 2), ("position", 3), ("copy", 1))


def blocks(matrix: torch.Tensor) -> figures.WeightBlocks:
    return figures.WeightBlocks("A2", matrix, ROWS, COLUMNS)


def test_every_slot_is_named_at_its_middle_and_bounded():
    ax = figures.plot_weight_blocks(blocks(torch.arange(30.0).reshape(5, 6) - 10))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["token", "position", "copy"]
    assert list(ax.get_yticks()) == [0.5, 3.0]
    assert sorted(line.get_xdata()[0] for line in ax.lines if line.get_xdata()[0] > 1) == [1.5, 4.5]


def test_the_scale_is_symmetric_about_zero():
    image = figures.plot_weight_blocks(blocks(torch.full((5, 6), -2.0))).images[0]
    assert image.get_clim() == (-2.0, 2.0)
    assert figures.plot_weight_blocks(blocks(torch.zeros(5, 6))).images[0].get_clim() == (-1.0, 1.0)


def test_slots_must_cover_the_matrix():
    with pytest.raises(ValueError, match=r"slots of \(5, 6\), a matrix of \(5, 5\)"):
        figures.plot_weight_blocks(blocks(torch.zeros(5, 5)))


def test_panels_and_patterns_stand_side_by_side(fork):
    panels = figures.plot_weight_panels([blocks(torch.ones(5, 6))] * 3)
    assert sum(bool(ax.images) for ax in panels.axes) == 3
    patterns = figures.plot_attentions({"head 0": torch.eye(7), "head 1": torch.eye(7)}, fork)
    outlined = [c for ax in patterns.axes for c in ax.collections if c.get_gid() == "true-edges"]
    assert [len(c.get_paths()) for c in outlined] == [len(cc.latent_edges(fork))] * 2


def test_nothing_to_draw_is_an_error(fork):
    with pytest.raises(ValueError, match="at least one matrix"):
        figures.plot_weight_panels([])
    with pytest.raises(ValueError, match="at least one attention pattern"):
        figures.plot_attentions({}, fork)


def test_each_edge_has_its_marker_at_its_position():
    ax = figures.plot_attention_by_position({"real": [(1, 0.9), (4, 0.2)], "block": [(1, 0.8)]}, title="edges")
    real, block = ax.lines[:2]
    assert list(real.get_ydata()) == [0.9, 0.2]
    assert [round(x) for x in real.get_xdata()] == [1, 4]
    assert list(block.get_ydata()) == [0.8]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["real", "block"]
