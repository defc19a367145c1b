"""Graph recovery from sequences: planted graphs, exact nulls, and data from which nothing may be concluded."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from assertions import assert_refused
from hypothesis import given
from hypothesis import strategies as st
from users import labels_of

import causal_circuits as cc
from causal_circuits.discovery.edge_scores import EdgeScores
from causal_circuits.statistics import bernstein_p_value, bernstein_sample_size

ROOT = Path(__file__).resolve().parent.parent
GRAPHS = json.loads((ROOT / "causal_circuits" / "studies" / "figure9_graphs.json").read_text())["graphs"]
FIGURE_9 = [[None if parent < 0 else parent for parent in graph["parents"]] for graph in GRAPHS]


def drawn(parents: list[int | None], n: int, d_vocab: int = 3, alpha: float = 0.1, seed: int = 0) -> cc.Batch:
    return cc.InContextTask(cc.graph_from_parents(parents), d_vocab=d_vocab, alpha=alpha).sample(n, seed=seed)


def assert_no_false_claim(found: cc.discovery.RecoveredGraph, parents: list[int | None]) -> None:
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
    for parent, child in cc.latent_edges(found.graph):
        edge = found.graph.edges[parent, child]
        assert edge["p_value"] == found.p_values[child, parent] < 0.05
        assert edge["weight"] == found.weights[child, parent] == pytest.approx(1.0, abs=0.25)


@given(seed=st.integers(0, 10_000), d_vocab=st.integers(2, 8), n_ctx=st.integers(3, 30))
def test_what_is_claimed_of_random_forests_is_true(seed, d_vocab, n_ctx):
    graph = cc.random_forest(n_ctx, 0.5, seed=seed)
    batch = cc.InContextTask(graph, d_vocab=d_vocab, alpha=0.3).sample(3000, seed=seed)
    parents = cc.graphs.graph_parents(graph)
    found = cc.recover_graph(batch.tokens, batch.target_probs, level=0.001)
    assert_no_false_claim(found, parents)
    assert_no_false_claim(cc.recover_graph(batch.tokens, labels_of(batch), d_vocab=d_vocab, level=0.001), parents)


@pytest.mark.parametrize("n", [500, 8000])
def test_targets_that_are_somebodys_guess_make_no_false_roots(n):
    """Smoothed labels: probabilities, but not the law that children were drawn from."""
    for index in range(4):
        batch = drawn(FIGURE_9[index], n, alpha=1.0)
        smooth = 0.8 * torch.nn.functional.one_hot(labels_of(batch), 3).double() + 0.2 / 3
        found = cc.recover_graph(batch.tokens, smooth)
        assert_no_false_claim(found, FIGURE_9[index])


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
    for seed in range(5):
        parents = cc.graphs.graph_parents(cc.random_forest(12, 0.5, seed=seed))
        batch = drawn(parents, n, d_vocab, alpha=0.3, seed=seed)
        for targets in (batch.target_probs, labels_of(batch)):
            found = cc.recover_graph(batch.tokens, targets, d_vocab=d_vocab, level=0.005)
            assert_no_false_claim(found, parents)
            assert n > 10 or set(found.undecided) >= set(range(1, 11))
            assert n > 10 or "30 is the least" in found.positions[1].reason or "always" in found.positions[1].reason


@pytest.mark.parametrize("kind", ["roots", "uniform tokens", "uniform targets"])
def test_independent_tokens_have_no_edges(kind):
    for seed in range(6):
        batch = drawn([None] * 14, 3000, 3 + seed % 5, alpha=0.2, seed=seed)
        tokens, targets = batch.tokens, batch.target_probs
        generator = torch.Generator().manual_seed(seed)
        if kind == "uniform tokens":
            tokens = torch.randint(targets.shape[1], tokens.shape, generator=generator)
        elif kind == "uniform targets":
            targets = torch.full_like(targets, 1 / targets.shape[1])
        found = cc.recover_graph(tokens, targets, level=0.01)
        assert found.found_parents == [None] * 14, (kind, seed)
        assert (kind == "uniform targets") == (len(found.undecided) == 13)  # they say nothing, and that is said


@pytest.mark.parametrize("parents", [[None] * 8, [None, *range(7)]])
@pytest.mark.parametrize("labels", [False, True])
def test_targets_of_other_sequences_show_neither_edges_nor_roots(parents, labels):
    """They say nothing of the tokens, which may be a chain or independent."""
    batch = drawn(parents, 4000)
    targets = labels_of(batch) if labels else batch.target_probs
    found = cc.recover_graph(batch, targets[torch.randperm(4000, generator=torch.Generator().manual_seed(1))])
    assert found.undecided == tuple(range(1, 8))
    assert "not the laws of these tokens" in found.positions[5].reason
    assert "are not the laws of these tokens" in found.warnings[-1]


Mixture = dict[int, float] | int | None


def mixed(parents: list[Mixture], n: int, d_vocab: int, alpha: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and target laws; a position draws from a mixture of its parents' rows, -1 being the stationary law."""
    rng = np.random.default_rng(seed)
    kernel = rng.dirichlet(np.full(d_vocab, alpha), size=(n, d_vocab)) + 1e-9
    kernel /= kernel.sum(axis=2, keepdims=True)
    law = np.linalg.matrix_power(kernel, 2**30)[:, 0]
    law /= law.sum(axis=1, keepdims=True)
    tokens, every = np.zeros((n, len(parents) + 1), dtype=int), np.arange(n)
    for i, weights in enumerate(parents):
        weights = {-1: 1.0} if weights is None else {weights: 1.0} if isinstance(weights, int) else weights
        rows = {j: law if j < 0 else kernel[every, tokens[:, j]] for j in weights}
        chance = sum(weight * rows[j] for j, weight in weights.items())
        tokens[:, i] = (rng.random((n, 1)) > chance.cumsum(axis=1)).sum(axis=1).clip(max=d_vocab - 1)
    tokens[:, -1] = rng.integers(d_vocab, size=n)
    return tokens, kernel[every, tokens[:, -1]]


MIXTURES: dict[str, list[Mixture]] = {
    "two alike": [None, None, None, {1: 0.5, 2: 0.5}],
    "no other position": [None, None, {0: 0.5, 1: 0.5}],
    "three alike": [None, None, None, None, {0: 1 / 3, 1: 1 / 3, 3: 1 / 3}, 4],
    "one stronger": [None, None, None, {1: 0.7, 2: 0.3}],
    "among edges": [None, 0, 1, None, 3, {2: 0.6, 4: 0.4}, 5, 0, None],
    "grandparent": [None, 0, {1: 0.6, 0: 0.4}, None],
    "noise": [None, {0: 0.7, -1: 0.3}, None],
}


@pytest.mark.parametrize(("d_vocab", "alpha"), [(3, 0.1), (2, 1.0), (10, 0.3)])
@pytest.mark.parametrize("name", MIXTURES)
def test_a_position_with_more_than_one_parent_is_neither_root_nor_child(name, d_vocab, alpha):
    parents = MIXTURES[name]
    child = next(i for i, weights in enumerate(parents) if isinstance(weights, dict))
    for seed in range(2):
        found = cc.recover_graph(*mixed(parents, 12_000, d_vocab, alpha, seed))
        assert found.undecided == (child,)
        assert not found.conclusive
        assert "more than one parent" in found.positions[child].reason
        for i, weights in enumerate(parents):
            assert i == child or found.positions[i].parent == weights


@pytest.mark.parametrize("name", ["two alike", "no other position", "among edges", "three alike"])
def test_labels_show_a_position_with_several_parents_too(name):
    parents = MIXTURES[name]
    child = next(i for i, weights in enumerate(parents) if isinstance(weights, dict))
    for seed in range(2):
        tokens, laws = mixed(parents, 25_000, 3, 0.1, seed)
        found = cc.recover_graph(tokens, labels_of(cc.Batch(torch.from_numpy(tokens), torch.from_numpy(laws).float())))
        assert child in found.undecided
        assert_no_false_claim(found, [None if i == child else p for i, p in enumerate(parents)])


def test_a_copy_of_a_sibling_is_no_child_of_their_parent():
    tokens, laws = mixed([None, 0, 0, None], 20_000, 3, 0.1, 0)
    tokens[:, 2] = tokens[:, 1]
    found = cc.recover_graph(tokens, laws)
    assert found.positions[2].verdict == "undecided"
    assert 1 in found.positions[2].shares_with


@pytest.mark.parametrize("labels", [False, True])
def test_true_forests_are_contradicted_no_more_often_than_the_level_says(labels):
    """Of 60 forests at level .5, fewer than 30 by three standard deviations; and hardly any are, tails being bounds."""
    contradicted = 0
    for seed in range(60):
        rng = np.random.default_rng((5, seed))
        d_vocab, alpha, n_ctx, n = (rng.choice(c) for c in ((2, 3, 6, 10), (0.1, 0.3, 1.0), (3, 4, 8, 16), (300, 1500)))
        graph = cc.random_forest(int(n_ctx), float(rng.choice([0.3, 0.7])), seed=seed)
        batch = cc.InContextTask(graph, d_vocab=int(d_vocab), alpha=float(alpha)).sample(int(n), seed=seed)
        found = cc.recover_graph(
            batch.tokens, labels_of(batch) if labels else batch.target_probs, d_vocab=int(d_vocab), level=0.5
        )
        for p, true in zip(found.positions, cc.graphs.graph_parents(graph), strict=True):
            contradicted += p.p_forest < 0.5 and (true is None or (p.p_value < 0.5 and p.candidate == true))
    assert contradicted < 30 - 3 * np.sqrt(60) / 2


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


@pytest.mark.parametrize("labels", [False, True])
def test_every_hidden_position_is_named_and_none_is_passed_over_for_another(labels):
    """Positions 0 and 3 are recorded with errors, so that their law is their own; 3 is the parent of 4 and 5."""
    batch = drawn([None, None, None, None, 3, 3, 1], 20_000)
    tokens, generator = batch.tokens.clone(), torch.Generator().manual_seed(0)
    for hidden in (0, 3):
        wrong = torch.rand(20_000, generator=generator) < 0.5
        tokens[:, hidden] = torch.where(wrong, 2, tokens[:, hidden])
    found = cc.recover_graph(tokens, labels_of(batch) if labels else batch.target_probs)
    for i in (4, 5):
        assert found.positions[i].verdict == "undecided"
        assert "positions 0 and 3" in found.positions[i].reason
        assert np.isnan(found.positions[i].p_root)
    assert found.positions[1].verdict == "undecided"
    assert "positions" not in found.positions[1].reason
    assert found.positions[6].parent == (None if labels else 1)  # laws tell that 0 and 3 have no edge's score
    assert not found.conclusive


def test_a_number_of_sequences_is_given_where_more_of_them_are_what_is_lacking():
    batch = drawn([None, None, 1, None, 2, 0], 20_000, 3, 1.0)
    for n in (40, 100, 200, 300, 500, 1000, 20_000):
        found = cc.recover_graph(batch.tokens[:n], batch.target_probs[:n])
        for p in found.positions:
            numbers = [int(word.replace(",", "")) for word in re.findall(r"about ([\d,]+\d)", p.reason)]
            assert all(number > n for number in numbers)
            if p.verdict == "undecided" and np.isfinite(p.sequences_needed):
                assert numbers == [round(p.sequences_needed)]


def test_tied_parents_are_called_tied_and_no_number_would_part_them():
    for seed in range(3):
        tokens, laws = mixed([None, None, 0, None], 20_000, 3, 0.1, seed)
        tokens[:, 1] = tokens[:, 0]
        found = cc.recover_graph(tokens, laws).positions[2]
        assert found.verdict == "undecided"
        assert {found.candidate, found.rival} == {0, 1}
        assert np.isinf(found.sequences_needed)
        assert "about" not in found.reason
        assert "within error" in found.reason


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


LAWS = [[0.5, 0.5], [0.4, 0.6]]
BAD_DATA = {
    "no context": (([[0], [1]], [0, 1]), ("at least 2",)),
    "off one": (([[0, 1], [1, 0]], [[0.5, 0.5], [0.5, 0.4]]), ("0.9", "divide by the row sums")),
    "negative": (([[0, 1]], [[1.5, -0.5]]), ("-0.5", "softmax")),
    "nan": (([[0, 1]], [[float("nan"), 1.0]]), ("nan",)),
    "one token": (([[0, 0]], [0]), ("d_vocab must be at least 2",)),
    "one column": (([[0, 0], [0, 0]], [[1.0], [1.0]]), ("one column is no law", "[sequences]")),
    "no targets": (([[0, 1]], None), ("targets must be given",)),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_is_refused_in_one_line(name):
    (tokens, targets), words = BAD_DATA[name]
    assert_refused(lambda: cc.recover_graph(tokens, targets), *words)
    assert_refused(lambda: cc.recover_graph([[0, 1]], [0], level=0.0), "level", "0.05")


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


def test_no_edge_is_named_where_every_pair_of_positions_looks_like_one():
    """All tokens and the query are draws from the target's law: position 1 has no rival that would contradict 0."""
    rng = np.random.default_rng(7)
    for n_ctx in (8, 14):
        laws = rng.dirichlet(np.full(4, 0.3), size=2000)
        tokens = (rng.random((2000, n_ctx, 1)) > laws.cumsum(axis=1)[:, None, :-1]).sum(axis=2)
        found = cc.recover_graph(tokens, laws.astype(np.float32))
        assert cc.latent_edges(found.graph) == set()
        assert "independent of any earlier" in found.positions[1].reason
        assert found.warnings


@pytest.mark.parametrize("seed", range(3))
def test_a_pair_that_agrees_more_often_than_an_edge_would_is_not_independent(seed):
    """Two positions and sticky rows: how often both are equal was taken for the score of independence."""
    rng, matrix = np.random.default_rng(seed), np.array([[0.94, 0.06], [0.2, 0.8]])
    first = rng.random(1000) < 0.06 / 0.26
    second = rng.random(1000) < matrix[first.astype(int), 1]
    query = rng.integers(2, size=1000)
    found = cc.recover_graph(np.stack([first, second, query], axis=1).astype(int), matrix[query])
    assert found.positions[1].verdict == "undecided"
