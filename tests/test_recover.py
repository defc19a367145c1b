"""Graph recovery from sequences: planted graphs, exact nulls, and data from which nothing may be concluded."""

import json
from pathlib import Path

import networkx as nx
import numpy as np
import oracles
import pytest
import torch
from assertions import assert_refused
from hypothesis import given
from hypothesis import strategies as st

import causal_circuits as cc
from causal_circuits.discovery.edge_scores import EdgeScores
from causal_circuits.discovery.testing import bernstein_p_value, bernstein_sample_size

ROOT = Path(__file__).resolve().parent.parent
GRAPHS = json.loads((ROOT / "analyses" / "figure9_graphs.json").read_text())["graphs"]
FIGURE_9 = [[None if parent < 0 else parent for parent in graph["parents"]] for graph in GRAPHS]


def drawn(parents: list[int | None], n: int, d_vocab: int = 3, alpha: float = 0.1, seed: int = 0) -> cc.Batch:
    return cc.InContextTask(cc.graph_from_parents(parents), d_vocab=d_vocab, alpha=alpha).sample(n, seed=seed)


def labels_of(batch: cc.Batch, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(batch.target_probs, 1, generator=generator)[:, 0]


def assert_no_false_claim(found: cc.RecoveredGraph, parents: list[int | None]) -> None:
    """Every named parent is the true one and every declared root is a root."""
    for position, true in zip(found.positions, parents, strict=True):
        assert position.verdict != "child" or position.parent == true, position
        assert position.verdict != "root" or true is None, position


@pytest.mark.parametrize("index", range(20))
def test_every_graph_of_figure_9_is_recovered_and_its_roots_are_declared(index):
    batch = drawn(FIGURE_9[index], 4000, seed=index)
    found = cc.recover_graph(batch.tokens, batch.target_probs)
    assert found.found_parents == FIGURE_9[index]
    assert found.conclusive
    assert found.sequences_needed < 1000


@given(seed=st.integers(0, 10_000), d_vocab=st.integers(2, 8), n_ctx=st.integers(3, 30))
def test_what_is_claimed_of_random_forests_is_true(seed, d_vocab, n_ctx):
    graph = cc.random_forest(n_ctx, 0.5, seed=seed)
    batch = cc.InContextTask(graph, d_vocab=d_vocab, alpha=0.3).sample(3000, seed=seed)
    parents = cc.graph_parents(graph)
    found = cc.recover_graph(batch.tokens, batch.target_probs, level=0.001)
    assert_no_false_claim(found, parents)
    assert_no_false_claim(cc.recover_graph(batch.tokens, labels_of(batch), d_vocab=d_vocab, level=0.001), parents)


def test_labels_recover_what_probabilities_do_with_more_sequences():
    batch = drawn(FIGURE_9[0], 8000)
    found = cc.recover_graph(batch.tokens, labels_of(batch))
    assert found.found_parents == FIGURE_9[0]
    assert found.conclusive


def test_labels_written_as_one_hots_are_labels():
    batch = drawn(FIGURE_9[1], 2000)
    labels = labels_of(batch)
    plain = cc.recover_graph(batch.tokens, labels)
    one_hot = cc.recover_graph(batch.tokens, torch.nn.functional.one_hot(labels, 3).double())
    assert [p.verdict for p in one_hot.positions] == [p.verdict for p in plain.positions]
    torch.testing.assert_close(one_hot.p_values, plain.p_values)


@pytest.mark.parametrize("n", [500, 8000])
def test_targets_that_are_somebodys_guess_make_no_false_roots(n):
    """Smoothed labels: probabilities, but not the law that children were drawn from."""
    for index in range(4):
        batch = drawn(FIGURE_9[index], n, alpha=1.0)
        smooth = 0.8 * torch.nn.functional.one_hot(labels_of(batch), 3).double() + 0.2 / 3
        found = cc.recover_graph(batch.tokens, smooth)
        assert_no_false_claim(found, FIGURE_9[index])


def test_edges_carry_their_certainty():
    batch = drawn(FIGURE_9[0], 4000)
    found = cc.recover_graph(batch.tokens, batch.target_probs)
    assert isinstance(found.graph, nx.DiGraph)
    assert cc.compare_graphs(cc.graph_from_parents(FIGURE_9[0]), found.graph).exact
    for parent, child in cc.latent_edges(found.graph):
        edge = found.graph.edges[parent, child]
        assert edge["p_value"] == found.p_values[child, parent] < 0.05
        assert edge["weight"] == found.weights[child, parent] == pytest.approx(1.0, abs=0.25)
        fewer = int(edge["sequences_needed"])
        assert 30 < fewer < 4000
    assert (found.p_values.triu() == torch.ones(20, 20).triu()).all()


def test_the_stated_number_of_sequences_is_about_enough():
    parents = [None, 0, None, 2, 3, None, 1, None, 7]
    many = drawn(parents, 20_000, seed=1)
    needed = cc.recover_graph(many.tokens, many.target_probs).sequences_needed
    enough, too_few = (
        [cc.recover_graph(b.tokens, b.target_probs).found_parents for b in batches]
        for batches in (
            [drawn(parents, int(3 * needed), seed=10 + k) for k in range(5)],
            [drawn(parents, int(needed / 4), seed=10 + k) for k in range(5)],
        )
    )
    assert enough == [parents] * 5
    assert all(found != parents for found in too_few)


@pytest.mark.parametrize("n", [1, 10, 100, 1000])
@pytest.mark.parametrize("d_vocab", [2, 10])
def test_few_sequences_never_give_a_confident_wrong_graph(n, d_vocab):
    for seed in range(10):
        parents = cc.graph_parents(cc.random_forest(12, 0.5, seed=seed))
        batch = drawn(parents, n, d_vocab, alpha=0.3, seed=seed)
        for targets in (batch.target_probs, labels_of(batch)):
            found = cc.recover_graph(batch.tokens, targets, d_vocab=d_vocab, level=0.005)
            assert_no_false_claim(found, parents)
            assert n > 10 or set(found.undecided) >= set(range(1, 11))
            assert n > 10 or "30 is the least" in found.positions[1].reason or "always" in found.positions[1].reason


@pytest.mark.parametrize("kind", ["roots", "uniform tokens", "uniform targets", "shuffled targets"])
def test_independent_tokens_have_no_edges(kind):
    for seed in range(12):
        batch = drawn([None] * 14, 3000, 3 + seed % 5, alpha=0.2, seed=seed)
        tokens, targets = batch.tokens, batch.target_probs
        generator = torch.Generator().manual_seed(seed)
        if kind == "uniform tokens":
            tokens = torch.randint(targets.shape[1], tokens.shape, generator=generator)
        elif kind == "uniform targets":
            targets = torch.full_like(targets, 1 / targets.shape[1])
        elif kind == "shuffled targets":
            targets = targets[torch.randperm(len(targets), generator=generator)]
        found = cc.recover_graph(tokens, targets, level=0.01)
        assert found.found_parents == [None] * 14, (kind, seed)
        assert (kind == "uniform targets") == (len(found.undecided) == 13)  # they say nothing, and that is said


def test_the_row_of_a_root_is_flat_and_edges_score_what_they_must_at_any_context_length():
    """The claim of `edge_scores`, on the shortest contexts, where the log loss's own gradient is far off."""
    parents = [None, 0, 0, None, 3, None]
    batch = drawn(parents, 400_000, alpha=0.3)
    scores = EdgeScores(batch.tokens.numpy(), batch.target_probs.double().numpy(), len(batch))
    for root in (3, 5):
        best = np.full(6, int(scores.score[root, :root].argmax()))
        rivals = scores.against_rivals(best)
        for j in range(root):
            error = np.sqrt(rivals.variance[root, j] / len(batch))
            assert rivals.mean[root, j] <= 4.5 * error
    short = scores.against_edge()
    for child, parent in ((1, 0), (2, 0), (4, 3)):
        error = np.sqrt(short.variance[child, parent] / len(batch))
        assert abs(short.mean[child, parent]) < 4.5 * error
    edges = [scores.score[child, parent] for child, parent in ((1, 0), (2, 0), (4, 3))]
    assert np.ptp(edges) < 0.02 * np.mean(np.abs(edges - np.median(scores.score[np.tril_indices(6, -1)])))


def test_scores_are_their_formula_up_to_a_constant_a_row():
    batch = drawn([None, 0, 0, None, 1], 60, d_vocab=3)
    tokens, targets = batch.tokens.numpy(), batch.target_probs.double().numpy()
    weight = 1 / (3 * np.bincount(tokens[:, -1], minlength=3) / 60)
    raw = np.array([[oracles.edge_score(tokens, targets, i, j, weight) for j in range(5)] for i in range(5)])
    ours = EdgeScores(tokens, targets, 60)
    differences = raw - ours.score
    np.testing.assert_allclose(differences, np.broadcast_to(differences[:1], (5, 5)), atol=1e-9)  # the offset times h_j


def test_copies_are_no_evidence():
    batch = drawn(FIGURE_9[0], 100)
    once = cc.recover_graph(batch.tokens, batch.target_probs)
    often = cc.recover_graph(batch.tokens.repeat(100, 1), batch.target_probs.repeat(100, 1))
    assert often.n_independent == once.n_independent <= 100
    assert "copies" in often.warnings[0]
    assert often.found_parents == once.found_parents
    torch.testing.assert_close(often.p_values, once.p_values)
    labelled = cc.recover_graph(batch.tokens.repeat(100, 1), labels_of(batch).repeat(100))
    assert labelled.n_independent <= 100


def test_a_constant_position_is_set_aside():
    batch = drawn([None, None, 1, 2, 1], 3000)
    tokens = batch.tokens.clone()
    tokens[:, 0] = 2
    found = cc.recover_graph(tokens, batch.target_probs)
    assert found.found_parents == [None, None, 1, 2, 1]
    assert found.positions[0].verdict == "undecided"
    assert "always 2" in found.positions[0].reason
    assert found.positions[1].verdict == "root"


def test_a_constant_query_says_nothing():
    batch = drawn([None, 0, 1], 3000)
    kept = batch.tokens[:, -1] == 1
    found = cc.recover_graph(batch.tokens[kept], batch.target_probs[kept])
    assert found.undecided == (0, 1, 2)
    assert "never varies" in found.positions[1].reason


def test_a_query_that_follows_from_the_context_voids_the_test():
    chain = cc.graph_from_parents([[], *([i] for i in range(10))])  # n_ctx 10, the query is the chain's last token
    batch = cc.InContextTask(chain, d_vocab=3, alpha=0.1).sample(20_000, seed=0)
    found = cc.recover_graph(batch.tokens, batch.target_probs)
    assert found.found_parents == [None] * 9
    assert "query" in found.warnings[0]


def test_a_position_with_a_law_of_its_own_hides_what_depends_on_it():
    batch = drawn([None, 0, None, 2, None], 5000)
    tokens = batch.tokens.clone()
    tokens[:, 0] = (torch.rand(5000, generator=torch.Generator().manual_seed(0)) < 0.05).long()
    found = cc.recover_graph(tokens, batch.target_probs)
    assert found.positions[0].verdict == "undecided"
    assert found.positions[3].parent == 2
    assert "may be its parent" in found.positions[1].reason
    assert "unless position 0" in found.positions[2].reason


def test_skewed_queries_are_weighted():
    batch = drawn(FIGURE_9[1], 30_000)
    kept = torch.rand(30_000, generator=torch.Generator().manual_seed(0)) < 1 / (1 + 3 * batch.tokens[:, -1])
    found = cc.recover_graph(batch.tokens[kept], batch.target_probs[kept])
    assert found.found_parents == FIGURE_9[1]


@pytest.mark.parametrize("parents", [[None, 0], [None, None], [None, 0, 1], [None, None, 0]])
def test_the_row_with_one_earlier_position_can_be_told(parents):
    batch = drawn(parents, 20_000)
    found = cc.recover_graph(batch.tokens, batch.target_probs)
    assert found.found_parents == parents
    assert found.conclusive


def test_recovery_commutes_with_renaming_tokens_and_ignores_the_order_of_sequences():
    batch = drawn(FIGURE_9[2], 2000)
    found = cc.recover_graph(batch.tokens, batch.target_probs)
    renamed = cc.recover_graph(torch.tensor([2, 0, 1])[batch.tokens], batch.target_probs[:, [1, 2, 0]])
    backwards = cc.recover_graph(batch.tokens.flip(0), batch.target_probs.flip(0))
    for other in (renamed, backwards):
        assert other.found_parents == found.found_parents
        torch.testing.assert_close(other.p_values, found.p_values)
        torch.testing.assert_close(other.weights, found.weights)


def test_lists_arrays_and_tensors_are_one_to_it():
    batch = drawn([None, 0, 1], 200)
    found = cc.recover_graph(batch.tokens, batch.target_probs)
    for convert in (lambda t: t.tolist(), lambda t: t.numpy()):
        other = cc.recover_graph(convert(batch.tokens), convert(batch.target_probs))
        torch.testing.assert_close(other.p_values, found.p_values)
    small = cc.recover_graph(batch.tokens.to(torch.int32), batch.target_probs.half())
    assert small.n_sequences == 200


BAD_DATA = {
    "ragged": (([[0, 1, 2], [0, 1]], [0, 1]), ("rectangular", "ragged")),
    "empty": (([], []), ("not empty",)),
    "one axis": (([0, 1, 2], [0, 1, 2]), ("[sequences, n_ctx]",)),
    "no context": (([[0], [1]], [0, 1]), ("at least 2",)),
    "strings": (([["a", "b"]], [0]), ("numbers",)),
    "fractions": (([[0.5, 1.0]], [0]), ("integers",)),
    "fractional labels": (([[0, 1]], [0.5]), ("labels", "integers")),
    "not a token": (([[0, 1], [0, 3]], [[0.5, 0.5], [0.5, 0.5]]), ("vocabulary 0 .. 1", "3")),
    "just no token": (([[0, 1], [0, 2]], [[0.5, 0.5], [0.5, 0.5]]), ("vocabulary 0 .. 1", "2")),
    "negative token": (([[0, 1], [0, -1]], [0, 1]), ("vocabulary", "-1")),
    "uneven": (([[0, 1], [1, 0]], [0]), ("equally many", "2", "1")),
    "off one": (([[0, 1], [1, 0]], [[0.5, 0.5], [0.5, 0.4]]), ("row 1", "0.9", "divide by the row sums")),
    "negative": (([[0, 1]], [[1.5, -0.5]]), ("negative",)),
    "nan": (([[0, 1]], [[float("nan"), 1.0]]), ("NaN",)),
    "one token": (([[0, 0]], [0]), ("d_vocab must be at least 2",)),
    "one column": (([[0, 1], [1, 0]], [[1.0], [1.0]]), ("one column is no law", "[sequences]")),
    "a wrapped token": (
        (np.array([[0, 2**64 - 1]], np.uint64), [0]),
        ("tokens must be numbers of tokens", "18446744073709551615"),
    ),
    "huge labels": (([[0, 10**9]], [0]), ("number the tokens that occur",)),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_is_refused_in_one_line(name):
    (tokens, targets), words = BAD_DATA[name]
    assert_refused(lambda: cc.recover_graph(tokens, targets), *words)


def test_bad_levels_are_refused():
    for flags, words in (({"level": 0.0}, ("level", "0.05")), ({"min_share": 2.0}, ("min_share", "0.5"))):
        assert_refused(lambda flags=flags: cc.recover_graph([[0, 1]], [0], **flags), *words)


@pytest.mark.parametrize(("chance", "n"), [(0.5, 50), (0.05, 200), (0.01, 1000)])
def test_bernstein_p_values_are_honest_for_skewed_terms(chance, n):
    """Terms that are rarely large and otherwise slightly negative: mean zero, the worst case for a normal tail."""
    rng = np.random.default_rng(0)
    hits = rng.binomial(n, chance, size=20_000)
    large, small = 1 - chance, -chance
    mean = (hits * large + (n - hits) * small) / n
    variance = (hits * large**2 + (n - hits) * small**2) / n - mean**2
    p_values = bernstein_p_value(mean, variance, 1.0, n)
    for level in (0.05, 0.01, 0.001):
        assert (p_values < level).mean() <= level


def test_the_sample_size_is_where_the_p_value_arrives():
    mean, variance = np.array([0.02]), np.array([0.4])
    n = bernstein_sample_size(mean, variance, 2.0, 1e-4)
    assert bernstein_p_value(mean, variance, 2.0, int(np.ceil(n[0])))[0] == pytest.approx(1e-4, rel=1e-2)
    assert np.isinf(bernstein_sample_size(-mean, variance, 2.0, 1e-4))
