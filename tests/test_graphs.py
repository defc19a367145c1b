"""Causal graphs: named ones, the parents list, validation, comparison."""

import json
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from assertions import assert_refused
from hypothesis import given
from hypothesis import strategies as st

import causal_circuits as cc


@st.composite
def forest_parents(draw: st.DrawFn, most: int = 12) -> list[int | None]:
    """The parents list of a forest with a query and some positions before it."""
    n = draw(st.integers(1, most))
    return [draw(st.one_of(st.none(), st.integers(0, i - 1))) if i else None for i in range(n)]


@st.composite
def dag_parents(draw: st.DrawFn) -> list[list[int]]:
    """The parents list of any DAG over up to 8 positions, the target's parents last and never empty."""
    n_ctx = draw(st.integers(1, 8))
    lists = [sorted(draw(st.sets(st.integers(0, i - 1), max_size=4))) if i else [] for i in range(n_ctx)]
    return [*lists, sorted(draw(st.sets(st.integers(0, n_ctx - 1), min_size=1, max_size=4)))]


def test_a_general_graph_has_no_query_and_all_its_edges_are_latent() -> None:
    graph = cc.ngram_graph(6, order=2)
    assert not cc.graphs.has_query(graph)
    assert cc.latent_edges(graph) == set(graph.edges)
    assert cc.graphs.parents_of(graph, 4) == (2, 3)
    for parents in ([[], [0], [1], [2]], [[], [0], [], [1]]):  # the last position has a parent; the target another
        assert not cc.graphs.has_query(cc.graph_from_parents(parents))


@given(forest_parents())
def test_forest_parents_round_trip(parents: list[int | None]) -> None:
    graph = cc.graph_from_parents(parents)
    cc.graphs.validate_graph(graph)
    assert cc.graphs.graph_parents(graph) == parents
    edges = {(p, i) for i, p in enumerate(parents) if p is not None}
    assert set(graph.edges) == edges | {(len(parents), len(parents) + 1)}


@given(dag_parents())
def test_dag_parents_round_trip(parents: list[list[int]]) -> None:
    graph = cc.graph_from_parents(parents)
    cc.graphs.validate_graph(graph)
    assert set(graph.edges) == {(p, i) for i, above in enumerate(parents) for p in above}
    again = cc.graph_from_parents(cc.graphs.graph_parents(graph))
    assert set(again.edges) == set(graph.edges)
    assert set(again.nodes) == set(graph.nodes)


@given(n_ctx=st.integers(2, 30), root_probability=st.floats(0, 1), seed=st.integers(0, 10_000))
def test_random_forests_are_forests_and_follow_their_seed(n_ctx: int, root_probability: float, seed: int) -> None:
    graph = cc.random_forest(n_ctx, root_probability, seed)
    cc.graphs.validate_graph(graph)
    assert cc.graphs.has_query(graph)
    assert nx.is_directed_acyclic_graph(graph)
    assert max(degree for _, degree in graph.in_degree) == 1
    assert cc.graphs.parents_of(graph, n_ctx) == (n_ctx - 1,)  # the query alone decides the target, and is a root
    assert cc.latent_edges(graph) == {edge for edge in graph.edges if n_ctx - 1 not in edge}
    assert set(graph.edges) == set(cc.random_forest(n_ctx, root_probability, seed).edges)


def test_root_probability_is_the_share_of_roots() -> None:
    assert cc.latent_edges(cc.random_forest(40, root_probability=1.0)) == set()
    assert len(cc.latent_edges(cc.random_forest(40, root_probability=0.0))) == 38
    n_edges = sum(len(cc.latent_edges(cc.random_forest(102, 0.3, seed))) for seed in range(100))
    assert abs(n_edges / 10_000 - 0.7) < 4.5 * (0.7 * 0.3 / 10_000) ** 0.5


def test_random_forest_parents_are_uniform_over_earlier_positions() -> None:
    parents = [cc.graphs.parents_of(cc.random_forest(7, 0.0, seed), 5)[0] for seed in range(1000)]
    for position in range(5):
        assert abs(parents.count(position) / 1000 - 0.2) < 4.5 * (0.2 * 0.8 / 1000) ** 0.5


def test_what_a_digraph_knows_of_its_nodes_and_edges_survives_the_conversion() -> None:
    rain = nx.DiGraph([(0, 1, {"weight": 0.5})], name="weather")
    rain.nodes[1]["label"] = "rain"
    graph = cc.graphs.graph_from_digraph(rain)
    assert graph.nodes[1] == {"label": "rain"}
    assert graph.edges[0, 1] == {"weight": 0.5}
    assert graph.graph == {"name": "weather", "target": 3}
    assert graph.nodes[2] == graph.nodes[3] == graph.edges[2, 3] == {}
    assert rain.graph == {"name": "weather"}


@pytest.mark.parametrize("first", [0, 1, 0.0])
def test_graphml_is_read_by_following_the_errors(first: float, tmp_path: Path) -> None:
    """Each refusal names the call that helps; with it the same graph comes out, with the names of its nodes."""
    there = nx.DiGraph([(0, 1), (0, 2)])
    nx.set_node_attributes(there, {0: "wind", 1: "rain", 2: "snow"}, "label")
    nx.write_graphml(nx.relabel_nodes(there, lambda node: node + first), tmp_path / "weather.graphml")
    read = nx.read_graphml(tmp_path / "weather.graphml")
    with pytest.raises(ValueError, match="relabel") as refusal:
        cc.graphs.graph_from_digraph(read)
    remedy = str(refusal.value).split("relabel them by ")[1].split(", which")[0]
    graph = cc.graphs.graph_from_digraph(eval(remedy, {"networkx": nx, "graph": read}))
    assert cc.compare_graphs(cc.graphs.graph_from_digraph(there), graph).exact
    assert nx.get_node_attributes(graph, "label") == {0: "wind", 1: "rain", 2: "snow"}


def test_a_path_over_six_positions_is_not_silently_five_positions_and_a_target() -> None:
    path = nx.path_graph(6, create_using=nx.DiGraph)
    with pytest.warns(UserWarning, match="the last node, 5, is taken as the target, behind 5 positions"):
        task = cc.InContextTask(path, d_vocab=3)
    assert task.n_ctx == 5
    with pytest.warns(UserWarning, match="graph_from_digraph"):
        cc.graphs.validate_graph(nx.DiGraph([(0, 2), (1, 2), (2, 3)]))
    added = cc.graphs.graph_from_digraph(path)
    assert cc.latent_edges(added) == set(path.edges)
    assert cc.InContextTask(added, d_vocab=3).n_ctx == 7


def test_a_graph_that_says_which_node_is_its_target_is_taken_at_its_word() -> None:
    said = nx.DiGraph(nx.path_graph(6, create_using=nx.DiGraph).edges, target=5)
    cc.graphs.validate_graph(said)  # no warning, which would be an error
    assert cc.compare_graphs(said, cc.ngram_graph(5, order=1)).exact
    for graph in (said, cc.ngram_graph(5, order=2), cc.chain_graph(5)):
        assert_refused(lambda graph=graph: cc.graphs.graph_from_digraph(graph), "its target is 5", "as it is")
    part = cc.ngram_graph(5, order=2).subgraph(range(4))
    assert_refused(lambda: cc.graphs.validate_graph(part), "the target must be the last node, 3", "is 5", "correct it")


@given(forest_parents())
def test_positions_may_be_numpy_integers_or_come_as_arrays(parents: list[int | None]) -> None:
    plain = cc.graph_from_parents(parents)
    array = np.array([-1 if parent is None else parent for parent in parents])
    given = [array, array.astype(np.int32), torch.from_numpy(array), tuple(array)]
    made = [cc.graph_from_parents(parents) for parents in given]
    made.append(nx.relabel_nodes(plain, np.int64))
    for graph in made:
        assert cc.compare_graphs(plain, graph).exact
        assert cc.graphs.graph_parents(graph) == cc.graphs.graph_parents(plain)
        edges = [list(edge) for edge in sorted(cc.latent_edges(plain))]
        assert json.loads(json.dumps(sorted(cc.latent_edges(graph)))) == edges


NO_CAUSAL_GRAPHS = {
    "undirected": nx.Graph(cc.chain_graph(5).edges),
    "MultiDiGraph": nx.MultiDiGraph(cc.chain_graph(5).edges),
    "parallel edges": nx.MultiDiGraph([(0, 1), (0, 1), (1, 2)]),
    "float nodes": nx.relabel_nodes(cc.chain_graph(5), float),
    "text nodes": nx.relabel_nodes(cc.chain_graph(5), str),
    "truth values": nx.DiGraph([(False, True)]),
    "no node": nx.DiGraph(),
    "a node left out": nx.DiGraph([(0, 1), (3, 4)]),
    "a cycle": nx.DiGraph([(0, 1), (1, 2), (2, 0)]),
    "a loop": nx.DiGraph([(0, 0), (0, 1)]),
    "backwards": nx.DiGraph([(1, 0)]),
    "a list": [None, 0, 1],
    "nothing": None,
    "a node of text": nx.DiGraph([(0, "a")]),
    **{f"the target {at!r}": nx.DiGraph([(0, 1), (2, 3)], target=at) for at in (7, 2, None, "3")},
}


@pytest.mark.parametrize("graph", NO_CAUSAL_GRAPHS.values(), ids=NO_CAUSAL_GRAPHS)
def test_every_function_refuses_what_is_no_causal_graph(graph: object) -> None:
    for call in (
        cc.graphs.validate_graph,
        cc.graphs.has_query,
        cc.latent_edges,
        cc.graphs.graph_parents,
        cc.graphs.graph_from_digraph,
        cc.graphs.attention_cells,
        lambda graph: cc.compare_graphs(cc.chain_graph(5), graph),
        lambda graph: cc.compare_graphs(graph, cc.chain_graph(5)),
        lambda graph: cc.compare_graphs(graph, graph),
        lambda graph: cc.InContextTask(graph, d_vocab=3),
        lambda graph: cc.plant_circuit(graph, d_vocab=3),
        lambda graph: cc.edge_auroc(torch.rand(3, 3), graph),
    ):
        assert_refused(lambda call=call: call(graph))


@given(dag_parents(), st.randoms(use_true_random=False))
def test_comparison_counts_edges(parents: list[list[int]], chance: object) -> None:
    true = cc.graph_from_parents(parents)
    found = true.copy()
    for edge in list(true.edges):
        if edge[1] < true.number_of_nodes() - 1 and chance.random() < 0.4:
            found.remove_edge(*edge)
    for child in range(1, true.number_of_nodes()):
        parent = chance.randrange(child)
        if chance.random() < 0.4:
            found.add_edge(parent, child)
    learned_true, learned_found = cc.latent_edges(true), cc.latent_edges(found)
    hits = len([edge for edge in learned_true if edge in learned_found])
    recovery, reverse = cc.compare_graphs(true, found), cc.compare_graphs(found, true)
    assert recovery.structural_hamming_distance == reverse.structural_hamming_distance
    assert recovery.structural_hamming_distance == len(learned_true) + len(learned_found) - 2 * hits
    assert recovery.structural_hamming_distance == len(recovery.missing) + len(recovery.false)
    assert (recovery.precision, recovery.recall) == (reverse.recall, reverse.precision)
    assert recovery.f1 == reverse.f1
    assert recovery.missing == reverse.false
    assert recovery.exact == (learned_true == learned_found)
    if learned_true and learned_found:
        assert recovery.precision == hits / len(learned_found)
        assert recovery.recall == hits / len(learned_true)
        assert recovery.f1 == pytest.approx(2 * hits / (len(learned_true) + len(learned_found)))


BAD_PARENTS = [
    ([None, 1], "no cycle"),
    ([None, 2, None, None], "precede"),
    ([None, 9], "in the context 0 .. 2"),
    ([None, -2], "in the context"),
    ([[], [0], [2]], "in the context 0 .. 1"),
    *(([None, odd], "integer position") for odd in (0.5, True, 0.0, -1.0, np.float64(0), "0", np.bool_(False), 0j)),
    (np.array([-1.0, 0.0]), "integer position"),
    ([[], [0.0], [0]], "integer position"),
    ([[], [0, 0], [1]], "once"),
    ([[], [], [1, 0], [1]], "in order"),
    ([], "at least one position"),
    ([[]], "at least one context position"),
    ("012", "must be a sequence"),
    ([[], [0], []], "needs a parent"),
]


@pytest.mark.parametrize(("parents", "rule"), BAD_PARENTS, ids=str)
def test_parents_that_make_no_graph_are_refused(parents: object, rule: str) -> None:
    assert_refused(lambda: cc.graph_from_parents(parents), rule)


def test_sizes_out_of_range_are_refused() -> None:
    assert_refused(lambda: cc.graphs.parents_of(cc.chain_graph(5), 9), "0 .. 5", "got 9")
    assert_refused(lambda: cc.graphs.graph_from_digraph(nx.DiGraph([(0, 2), (1, 2)])), "at most one parent")
    assert_refused(lambda: cc.graphs.validate_graph(nx.empty_graph(1, nx.DiGraph)), "1 node", "add the target")
    assert_refused(lambda: cc.chain_graph(1), "n_ctx", "at least 2", "1")
    assert_refused(lambda: cc.pairs_graph(0), "n_ctx", "at least 2", "0")
    assert_refused(lambda: cc.random_forest(5, root_probability=1.5), "root_probability", "[0, 1]", "1.5")
    assert_refused(lambda: cc.random_forest(5, root_probability=float("nan")), "root_probability", "nan")
    assert_refused(lambda: cc.ngram_graph(4, order=4), "order", "4")
    assert_refused(lambda: cc.ngram_graph(4, order=0), "order", "0")
    assert_refused(lambda: cc.compare_graphs(cc.chain_graph(5), cc.chain_graph(6)), "same positions", "5", "6")
