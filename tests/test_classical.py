"""Classical structure learning: mutual information against a plain count, Chow-Liu against every spanning tree."""

from itertools import combinations
from math import log

import networkx as nx
import numpy as np
import pytest
import torch
from assertions import assert_refused
from hypothesis import given
from hypothesis import strategies as st

import causal_circuits as cc


def counted_information(column: list[int], other: list[int]) -> float:
    """Mutual information in nats, by counting pairs one at a time."""
    n, total = len(column), 0.0
    for a in set(column):
        for b in set(other):
            both = sum(x == a and y == b for x, y in zip(column, other, strict=True)) / n
            if both:
                total += both * log(both / (column.count(a) / n * other.count(b) / n))
    return total


def heaviest_spanning_tree(weights: np.ndarray) -> float:
    """The largest total weight over all spanning trees, by trying every set of n - 1 edges."""
    n, best = len(weights), -float("inf")
    for edges in combinations(list(combinations(range(n), 2)), n - 1):
        if nx.is_connected(nx.Graph(edges)) and len({node for edge in edges for node in edge}) == n:
            best = max(best, sum(weights[edge] for edge in edges))
    return best


@given(n=st.integers(1, 40), n_ctx=st.integers(1, 4), d_vocab=st.integers(2, 4), seed=st.integers(0, 99))
def test_mutual_information_is_counted_right(n: int, n_ctx: int, d_vocab: int, seed: int) -> None:
    tokens = torch.randint(d_vocab, (n, n_ctx), generator=torch.Generator().manual_seed(seed))
    columns = tokens.T.tolist()
    expected = [[counted_information(one, other) for other in columns] for one in columns]
    found = cc.classical.pooled_mutual_information(tokens, d_vocab)
    assert np.allclose(found, expected, atol=1e-12)


@given(n=st.integers(2, 5), seed=st.integers(0, 999))
def test_chow_liu_is_the_heaviest_of_all_spanning_trees(n: int, seed: int) -> None:
    weights = np.random.default_rng(seed).random((n, n))
    weights = weights + weights.T
    tree = cc.classical.chow_liu_tree(weights)
    assert tree.number_of_edges() == n - 1
    assert nx.is_connected(tree.to_undirected())
    assert all(parent < child for parent, child in tree.edges)
    assert sum(weights[edge] for edge in tree.edges) == pytest.approx(heaviest_spanning_tree(weights))


def test_chow_liu_refuses_what_is_no_matrix_of_numbers() -> None:
    assert_refused(lambda: cc.classical.chow_liu_tree(np.zeros((2, 3))), "[n_ctx, n_ctx]", "[2, 3]")
    for wrong in (np.full((2, 2), np.nan), np.eye(2, k=1)):
        assert_refused(lambda wrong=wrong: cc.classical.chow_liu_tree(wrong), "finite symmetric")


def test_with_one_kernel_the_classics_find_the_tree_and_pooled_prompts_hide_it() -> None:
    graph = cc.graph_from_parents([None, 0, 0, 1, 1, 2, 5])
    true = cc.latent_edges(graph)
    fixed = cc.InContextTask(
        graph, 3, transition_matrices=cc.tasks.matrix_family("dirichlet 1", 1, 3, gamma=0.1, seed=3)[0]
    )
    pooled = cc.InContextTask(graph, 3, alpha=0.1)
    found = {}
    for name, task in (("fixed", fixed), ("pooled", pooled)):
        tokens = task.sample(20_000, seed=1).tokens[:, :-1]
        found[name] = set(cc.classical.chow_liu_tree(cc.classical.pooled_mutual_information(tokens, 3)).edges)
    assert found["fixed"] == true
    assert len(found["pooled"] & true) <= 2
