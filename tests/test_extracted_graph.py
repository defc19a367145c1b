"""Extracted and recovered graphs as files and copies: their numbers go along, nothing else hides in them."""

import copy
import json
import pickle
from functools import cache
from io import BytesIO

import networkx as nx
import pytest

import causal_circuits as cc


@cache
def forest() -> cc.discovery.ExtractedGraph:
    graph = cc.graph_from_parents([None, 0, 0, None, 3])
    task = cc.InContextTask(graph, d_vocab=3)
    return cc.extract_graph(cc.plant_circuit(graph, d_vocab=3), task, n_sequences=2000)


@cache
def two_parents() -> cc.discovery.ExtractedGraph:
    task = cc.InContextTask(cc.ngram_graph(7, order=2), d_vocab=3)
    return cc.extract_graph(cc.plant_circuit(task.graph, d_vocab=3), task, n_sequences=8000)


@cache
def recovered() -> nx.DiGraph:
    batch = cc.InContextTask(cc.chain_graph(6), d_vocab=3).sample(3000, seed=0)
    return cc.recover_graph(batch.tokens, batch.target_probs).graph


MAKERS = (forest, two_parents, recovered)


def through_graphml(graph: nx.DiGraph) -> nx.DiGraph:
    file = BytesIO()
    nx.write_graphml(graph, file)
    return nx.relabel_nodes(nx.read_graphml(BytesIO(file.getvalue())), int)


def through_gexf(graph: nx.DiGraph) -> nx.DiGraph:
    file = BytesIO()
    nx.write_gexf(graph, file)
    return nx.read_gexf(BytesIO(file.getvalue()), node_type=int)


def through_json(graph: nx.DiGraph) -> nx.DiGraph:
    return nx.node_link_graph(json.loads(json.dumps(nx.node_link_data(graph, edges="links"))), edges="links")


FORMATS = (through_graphml, through_gexf, through_json)


@pytest.mark.parametrize("there_and_back", FORMATS)
@pytest.mark.parametrize("make", MAKERS)
def test_files_hold_every_edge_with_its_numbers(make, there_and_back) -> None:
    graph = make()
    again = there_and_back(graph)
    assert cc.compare_graphs(graph, again).exact
    assert sorted(again) == sorted(graph)
    for parent, child, facts in graph.edges(data=True):
        found = again.edges[parent, child]
        assert {name: repr(found[name]) for name in facts} == {name: repr(value) for name, value in facts.items()}
    if there_and_back is not through_gexf:  # GEXF has no place for the attributes of a whole graph
        assert {name: again.graph[name] for name in graph.graph} == graph.graph


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda g: g.copy(), lambda g: pickle.loads(pickle.dumps(g))]
)
@pytest.mark.parametrize("make", [forest, two_parents])
def test_copies_have_the_evidence(make, duplicate) -> None:
    found = make()
    again = duplicate(found)
    assert repr(list(again.edges(data=True))) == repr(list(found.edges(data=True)))  # NaN is not equal to itself
    assert (again.graph, list(again)) == (found.graph, list(found))
    assert (again.heads, again.inferred) == (found.heads, found.inferred)
    assert list(map(repr, again.candidates)) == list(map(repr, found.candidates))
    assert again.roots_tested


def test_a_part_of_a_graph_and_other_nodes_come_without_evidence_that_is_not_theirs() -> None:
    found = two_parents()
    part, other = found.subgraph(range(4)), nx.relabel_nodes(found, lambda node: node + 10)
    assert set(part.edges) == {(0, 2), (1, 2), (1, 3), (2, 3)}
    assert set(other.edges) == {(a + 10, b + 10) for a, b in found.edges}
    assert part.copy().edges[0, 2] == found.edges[0, 2] == other.edges[10, 12]
    for derived in (part, part.copy(), other, found.reverse()):
        assert not hasattr(derived, "candidates")
        assert derived.roots_tested


def test_the_carriers_of_an_edge_are_the_heads_that_were_accepted() -> None:
    found = two_parents()
    assert [found.carriers(*edge) for edge in ((0, 2), (1, 2), (5, 7), (0, 1))] == [(0,), (1,), (0,), ()]
    for parent, child, facts in found.edges(data=True):
        assert facts["head"] in found.carriers(parent, child)
        assert all((parent, child) in found.heads[head].edges for head in found.carriers(parent, child))
