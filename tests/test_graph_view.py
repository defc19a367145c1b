"""The graph to explore, the graph while it forms, phases and tables: what is drawn is what was found."""

import dataclasses
import re
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from assertions import assert_refused
from markupsafe import escape
from PIL import Image
from test_figures import outlined, uniform_attention
from test_pages import Page, page_of

import causal_circuits as cc
from causal_circuits import figures, pages

FOUND = [None, 0, 1, 1, None, None]  # against the fork: 0 -> 2 and 4 -> 5 missing, 1 -> 2 false
BAD = "<script>alert('x')</script>"


def forming(graph: nx.DiGraph) -> cc.TrainingRecord:
    """Two states: uniform, then half of the way to the true parents (a root: to itself)."""
    n_ctx = graph.number_of_nodes() - 1
    learned = torch.eye(n_ctx)
    for child, parent in cc.graphs.attention_cells(graph):
        learned[child] = 0
        learned[child, parent] = 1
    uniform = uniform_attention(n_ctx)
    attention = torch.stack([uniform, 0.1 * uniform + 0.9 * learned])[:, None, None].repeat(1, 2, 1, 1, 1)
    losses = torch.linspace(2, 1, 5, dtype=torch.float64)
    return cc.TrainingRecord(losses, (0, 1500), losses[:2], attention, None)


def read_png(url: object) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(b64decode(str(url).partition(",")[2]))))


def edges_of(html: str) -> dict[str, str]:
    """The label of each edge that can be pointed at, by parent-child."""
    groups = [a for tag, a in Page(html).elements if tag == "g" and a.get("class") == "edge"]
    return {str(a["data-edge"]): str(a["aria-label"]) for a in groups}


def test_every_edge_true_or_found_can_be_pointed_at_and_tells_its_numbers(fork: nx.DiGraph) -> None:
    facts = {(0, 1): {"attention": 0.98765, "p": "< 1e-300"}}
    html = figures.interactive_graph(fork, cc.graph_from_parents(FOUND), facts)
    assert edges_of(html) == {
        "0-1": "0 → 1, found and true: attention 0.9877; p < 1e-300",
        "0-2": "0 → 2, missing",
        "1-3": "1 → 3, found and true",
        "4-5": "4 → 5, missing",
        "1-2": "1 → 2, false",
    }
    assert all(f"<title>{label.replace('<', '&lt;')}</title>" in html for label in edges_of(html).values())
    assert all(words in Page(html).text for words in ("found and true (2)", "missing (2)", "false (1)"))


def test_labels_of_nodes_stand_in_place_of_their_numbers(fork: nx.DiGraph) -> None:
    named = fork.copy()
    named.nodes[1]["label"] = BAD
    plain, labelled = (figures.interactive_graph(graph, fork) for graph in (fork, named))
    assert BAD in Page(labelled).text
    assert BAD not in labelled
    assert labelled.replace(escape(BAD), "1") == plain
    ax = figures.plot_graph_comparison(named, fork)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0", BAD, "2", "3", "4", "5", "6", "7"]


def test_only_false_edges_hang_below_the_line(fork: nx.DiGraph) -> None:
    html = figures.interactive_graph(fork, cc.graph_from_parents(FOUND))
    below = {edge: path.split()[5] == "0" for edge, path in re.findall(r'data-edge="([^"]+)".*?d="([^"]+)"', html)}
    assert below == {"0-1": False, "0-2": False, "1-3": False, "4-5": False, "1-2": True}


def test_a_page_carries_each_script_once_and_only_if_it_needs_it(fork: nx.DiGraph, tmp_path: Path) -> None:
    graph = pages.Section("Graph", "It shows.", figures.interactive_graph(fork, fork))
    film = pages.Section("Film", "It shows.", figures.graph_film_html(forming(fork), fork))
    for sections, expected in (([], [0, 0]), ([graph, graph], [1, 0]), ([film, graph], [1, 1])):
        html = page_of(tmp_path, *sections)
        assert [html.count(f'querySelectorAll(".graph-{kind}:') for kind in ("view", "film")] == expected


def test_a_part_shows_itself_in_a_notebook_with_its_own_script_and_style(fork: nx.DiGraph) -> None:
    for part in (figures.interactive_graph(fork, fork), figures.graph_film_html(forming(fork), fork)):
        shown = Page(part._repr_html_())
        assert (len(shown.named("script")), len(shown.named("style"))) == (1, 1)
        assert part in part._repr_html_()
        assert Page(part).named("script") == []


def test_a_film_holds_the_attention_of_every_step(fork: nx.DiGraph) -> None:
    page = Page(figures.graph_film_html(forming(fork), fork))
    (film,) = (a for _, a in page.elements if a.get("class") == "graph-film")
    told = "step 0: 0 of 4 edges above one half; loss 2.000|step 1,500: 4 of 4 edges above one half; loss 1.750"
    assert film["data-steps"] == told
    weights = [str(a["data-weights"]) for _, a in page.elements if "data-weights" in a]
    assert weights[0] == "0.500 0.950"  # edge 0 -> 1: uniform over two, then 0.1 / 2 + 0.9
    assert len(weights) == 15  # all pairs j < i of the six positions before the query
    assert "step 1,500: 4 of 4" in page.text
    dotted = [a["data-weights"] for _, a in page.elements if "data-weights" in a and a["stroke-dasharray"]]
    assert dotted == ["0.200 0.020"] * 4  # the root 4 attends to itself, and claims no edge with what is left


def test_matrices_and_curves_of_a_film_move_with_it(fork: nx.DiGraph) -> None:
    record = forming(fork)
    both = dataclasses.replace(record, score_gradients=record.attention - 0.5)
    loss = figures.plot_loss(record, {})
    page = Page(figures.graph_film_html(both, fork, layer=0, head=0, beside=[loss]))
    frames = [read_png(a["href"]) for tag, a in page.elements if tag == "image"]
    attention, gradient = np.array(frames[:2]), np.array(frames[2:])
    assert attention.shape == gradient.shape == (2, 7, 7, 4)
    assert (attention[..., 3] == np.tril(np.full((7, 7), 255))).all()  # clear above the diagonal
    assert np.argsort(attention[1, 3, :4, 0]).tolist()[0] == 1  # the darkest entry of row 3 is its parent
    assert not gradient[:, -1, :, 3].any()  # the query's row is left out
    (line,) = (str(a["data-x"]) for _, a in page.elements if "data-x" in a)
    first, last = (float(x) for x in line.split())
    points = loss.transData.transform([(1, 1), (1501, 1)])[:, 0] * 72 / loss.figure.dpi
    assert (first, last) == pytest.approx(points.tolist(), abs=0.1)


def test_without_a_query_the_last_row_is_the_targets(fork: nx.DiGraph) -> None:
    graph = cc.ngram_graph(5, order=2)
    page = Page(figures.graph_film_html(forming(graph), graph))
    assert "of 6 edges" in page.text  # 2 -> {0, 1}, 3 -> {1, 2}, target -> {3, 4}


def test_a_knock_out_is_drawn_against_the_adjacency(fork: nx.DiGraph) -> None:
    effect = torch.full((2, 7, 7), torch.nan)
    effect[0, 3, 1], effect[1, 3, 1], effect[1, 6, 0] = 0.1, 0.3, 9.0
    cut = cc.interventions.KnockOut(0, effect, effect, effect, baseline_loss=1.0)
    worst, first = (figures.plot_knock_out(cut, fork, head) for head in (None, 0))
    assert worst.images[0].get_clim() == pytest.approx((-0.3, 0.3))  # the query's row is left out
    assert first.images[0].get_array().compressed() == pytest.approx([0.1])
    assert outlined(worst) == {(child, parent) for parent, child in cc.latent_edges(fork)}
    assert_refused(lambda: figures.plot_knock_out(cut, fork, head=2), "heads 0 .. 1", "got head 2")


def test_phases_are_the_nearest_predictors() -> None:
    divergence = torch.tensor([[0.1, 0.5], [0.2, 0.3], [0.4, 0.1], [0.5, 0.0]], dtype=torch.float64)
    seen = cc.films.PredictorDistances((0, 3, 15, 63), ("unigram", "edge posterior"), divergence)
    ax = figures.plot_phases(seen)
    unigram, posterior = (line.get_xydata() for line in ax.lines[:2])
    assert unigram.tolist() == [[1, 0.1], [4, 0.2], [16, 0.4], [64, 0.5]]
    assert posterior[:, 1].tolist() == [0.5, 0.3, 0.1, 0.0]
    bands = [patch.get_bbox().intervalx.tolist() for patch in ax.patches]
    assert bands == [[1, 8], [8, 64]]  # half way between 4 and 16 on a logarithmic axis
    assert seen.nearest == ("unigram", "unigram", "edge posterior", "edge posterior")


def test_a_circuit_carries_the_effects_of_its_edges() -> None:
    graph = cc.circuits.circuit_graph(cc.disentangled_transformer(d_vocab=3, n_ctx=4))
    chosen = {("token", "L0H0.v"): 0.5, ("L1H0", "logits"): 0.25}
    ax = figures.plot_circuit(graph, list(chosen), effects=chosen | {("token", "logits"): 9.0})
    numbers = [text.get_text() for text in ax.texts if text.get_gid() == "effect"]
    assert sorted(numbers) == ["0.25", "0.5"]


def test_what_does_not_fit_is_refused(fork: nx.DiGraph) -> None:
    record = forming(fork)
    chain = cc.chain_graph(5)
    assert_refused(lambda: figures.interactive_graph(fork, chain), "same positions", "[7, 5]")
    assert_refused(lambda: figures.interactive_graph(fork, fork, {(1, 2): {}}), "true or found", "1 -> 2")
    assert_refused(lambda: figures.graph_film_html(record, chain), "7 against 5")
    assert_refused(lambda: figures.graph_film_html(record, fork, layer=2), "layers (0, 1)", "got layer 2")
    blind = cc.TrainingRecord(record.losses, (), record.losses[:0], None, None)
    assert_refused(lambda: figures.graph_film_html(blind, fork), "no attention", "RecordAt(attention=True)")
