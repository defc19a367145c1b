"""Tasks: kernels and their stationary laws, sampling, predictors."""

import random
from collections import Counter
from fractions import Fraction
from itertools import product

import numpy as np
import oracles
import pytest
import torch
from assertions import assert_refused, assert_within_sampling_error
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binomtest
from test_graphs import dag_parents, forest_parents

import causal_circuits as cc
from causal_circuits.tasks import draws, transition_matrices

CYCLE = np.roll(np.eye(4), 1, axis=1)  # token t is always followed by t + 1: a chain of period 4
KERNEL = np.array([[0.7, 0.2, 0.1], [0.05, 0.05, 0.9], [0.3, 0.6, 0.1]])


def rows_of(graph: object) -> list[tuple[int, ...]]:
    """The parents of every position and, last, of the target."""
    return [cc.graphs.parents_of(graph, node) for node in sorted(graph.nodes)]


def rows_before_query(graph: object) -> list[tuple[int, ...]]:
    """The parents of every position of a forest before its query."""
    return rows_of(graph)[:-2]


# ---- kernels


@given(d_vocab=st.integers(2, 20), log_alpha=st.floats(-3, 1), n=st.integers(1, 16), seed=st.integers(0, 1000))
def test_drawn_matrices_are_stochastic_and_keep_their_laws(d_vocab: int, log_alpha: float, n: int, seed: int) -> None:
    alpha = np.full((d_vocab, d_vocab), 10**log_alpha)
    drawn, laws = transition_matrices.draw_with_laws(np.random.default_rng(seed), alpha, n)
    assert drawn.shape == (n, d_vocab, d_vocab)
    assert laws.shape == (n, d_vocab)
    assert np.isfinite(drawn).all()
    assert np.isfinite(laws).all()
    assert (drawn >= 0).all()
    assert (laws >= 0).all()
    np.testing.assert_allclose(drawn.sum(axis=-1, dtype=np.float64), 1.0, atol=2e-6)
    np.testing.assert_allclose(laws.sum(axis=-1), 1.0, atol=1e-12)
    moved = np.einsum("ns,nst->nt", laws, drawn.astype(np.float64))
    np.testing.assert_allclose(moved, laws, atol=2e-6)


@given(st.lists(st.integers(-45, 0), min_size=6, max_size=6))
def test_elimination_is_exact_also_for_nearly_reducible_chains(exponents: list[int]) -> None:
    """Three states, off-diagonal entries of any size: against rational arithmetic (the Markov chain tree theorem)."""
    off = [Fraction(1, 4) * Fraction(2) ** e for e in exponents]
    rate = dict(zip([(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)], off, strict=True))
    trees = []
    for root in range(3):
        a, b = [state for state in range(3) if state != root]
        trees.append(rate[a, root] * rate[b, root] + rate[a, b] * rate[b, root] + rate[b, a] * rate[a, root])
    expected = np.array([float(tree / sum(trees)) for tree in trees])
    kernel = np.array([[float(rate.get((i, j), 0)) for j in range(3)] for i in range(3)])
    kernel += np.diag(1.0 - kernel.sum(axis=1))
    both = np.stack([kernel, kernel])
    np.testing.assert_allclose(transition_matrices.stationary_law(both)[0], expected, rtol=1e-12)
    np.testing.assert_allclose(transition_matrices.log_stationary_law(np.log(both))[0], expected, rtol=1e-10)


def test_log_elimination_reaches_below_the_smallest_float() -> None:
    log_a, log_b = -5000.0, -5000.0 + np.log(3.0)  # pi(1|0) and pi(0|1): the law is (b, a) / (a + b)
    law = transition_matrices.log_stationary_law(np.array([[[0.0, log_a], [log_b, 0.0]]]))[0]
    np.testing.assert_allclose(law, [0.75, 0.25], rtol=1e-10)


@pytest.mark.parametrize("alpha", [1e-3, 0.05, 0.0901, 0.1, 1.0, 10.0])
def test_dirichlet_moments(alpha: float) -> None:
    """E p = 1 / d and E sum p^2 = (alpha + 1) / (d alpha + 1), on both sides of the switch to log space."""
    d_vocab, n = 4, 20_000
    row, generator = np.full((1, d_vocab), alpha), np.random.default_rng(5)
    drawn = transition_matrices.draw_dirichlet(generator, row, n)[:, 0].astype(np.float64)
    squares = (drawn**2).sum(axis=1)
    for values, expected in [
        (squares, (alpha + 1) / (d_vocab * alpha + 1)),
        *((drawn[:, t], 0.25) for t in range(d_vocab)),
    ]:
        assert abs(values.mean() - expected) < 4.5 * values.std() / n**0.5


def test_a_periodic_kernel_has_its_law_and_a_split_one_is_refused() -> None:
    np.testing.assert_allclose(transition_matrices.stationary_law_of_one(CYCLE), 0.25, atol=1e-12)
    absorbing = np.array([[1.0, 0.0], [0.5, 0.5]])
    np.testing.assert_allclose(transition_matrices.stationary_law_of_one(absorbing), [1.0, 0.0], atol=1e-12)
    assert_refused(lambda: transition_matrices.stationary_law_of_one(np.eye(3)), "one stationary law", "several closed")


@pytest.mark.parametrize("absent", [[0], [2, 3], [6], [5, 6]], ids=str)
def test_inverse_cdf_never_draws_a_token_of_probability_zero(absent: list[int]) -> None:
    """Also for the largest uniform number, 1 - 2^-24, and when the last tokens are the absent ones."""
    rows = np.random.default_rng(0).dirichlet(np.ones(7), size=300)
    rows[:, absent] = 0.0
    rows = (rows / rows.sum(axis=1, keepdims=True)).astype(np.float32)
    cumulative = transition_matrices.cumulative_rows(rows[:, None, :])
    for uniform in (0.0, 0.5, 1 - 2**-24):
        drawn = transition_matrices.inverse_cdf(cumulative, np.full(300, uniform, dtype=np.float32))
        assert (rows[np.arange(300), drawn] > 0).all()


# ---- sampling


any_parents = st.one_of(forest_parents(39), dag_parents())


def any_task(parents: list, d_vocab: int, alpha: float) -> cc.InContextTask:
    """With at most 5 tokens where a position has several parents: a matrix has a row for every tuple of them."""
    graph = cc.graph_from_parents(parents)
    several = max(degree for _, degree in graph.in_degree) > 1
    return cc.InContextTask(graph, d_vocab=min(d_vocab, 5) if several else d_vocab, alpha=alpha)


@given(any_parents, st.integers(2, 20), st.floats(-3, 1), st.integers(1, 40), st.integers(0, 99))
def test_sequences_are_well_formed_and_a_longer_batch_begins_with_the_shorter(parents, d_vocab, log_alpha, n, seed):
    task = any_task(parents, d_vocab, 10**log_alpha)
    batch, longer = task.sample(n, seed=seed), task.sample(n + 9, seed=seed)
    batch.check(task.d_vocab, task.n_ctx)
    assert torch.allclose(batch.target_probs.sum(dim=1), torch.ones(n), atol=1e-5)
    if task.is_counter_based:  # every number a function of (seed, place)
        assert torch.equal(longer.tokens[:n], batch.tokens)
        assert torch.equal(longer.target_probs[:n], batch.target_probs)


def test_philox_gives_the_published_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """kat_vectors of Random123 (Salmon et al. 2011), philox4x32 with 7 and with 10 rounds."""
    ones = (0xFFFFFFFF,) * 4
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    answers = {
        (7, (0, 0, 0, 0), (0, 0)): (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48),
        (10, (0, 0, 0, 0), (0, 0)): (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
        (10, ones, (0xFFFFFFFF, 0xFFFFFFFF)): (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        (10, pi, (0xA4093822, 0x299F31D0)): (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    }
    for (rounds, counter, key), expected in answers.items():
        monkeypatch.setattr(draws, "ROUNDS", rounds)
        words = draws.random_words(tuple(np.uint32(word) for word in counter), key)
        assert tuple(int(word) for word in words) == expected


@pytest.mark.parametrize("alpha", [7.0, 1.0, 0.5, 0.1, 0.05, 1e-2, 1e-3, 1e-4])
def test_entries_of_transition_matrices_have_the_odds_of_a_dirichlet(alpha: float) -> None:
    """How often an entry of a row of 4 is above a bound; below 1e-12 a floor may hold it up (`draws.TINY`)."""
    n, law = 40_000, beta(alpha, 3 * alpha)
    probs = cc.InContextTask(cc.chain_graph(3), d_vocab=4, alpha=alpha).sample(n, seed=1).target_probs.double().numpy()
    for token, bound in product((0, 3), (1e-10, 1e-3, 0.1, 0.2, 0.3, 0.5, 0.999)):
        assert binomtest(int((probs[:, token] > bound).sum()), n, law.sf(bound)).pvalue > 1e-4


def test_sequences_have_the_law_of_plain_loops() -> None:
    """All 16 sequences of two tokens over the graph 0 -> 1, 0 -> 2, query: frequencies against slow sampling."""
    graph = cc.graph_from_parents([None, 0, 0])
    n_slow, n_fast, generator = 12_000, 200_000, random.Random(0)
    slow = Counter(oracles.sample_sequence(rows_before_query(graph), 2, 0.4, generator) for _ in range(n_slow))
    tokens = cc.InContextTask(graph, d_vocab=2, alpha=0.4).sample(n_fast, seed=1).tokens
    fast = Counter(map(tuple, tokens.tolist()))
    assert set(fast) == set(product(range(2), repeat=4))
    for sequence, count in fast.items():
        p = count / n_fast
        assert abs(slow[sequence] / n_slow - p) < 4.5 * (p * (1 - p) * (1 / n_slow + 1 / n_fast)) ** 0.5, sequence


def transition_error(n: int, seed: int) -> float:
    """Mean squared difference between KERNEL and the transition frequencies of n short chains."""
    task = cc.InContextTask(cc.chain_graph(6), d_vocab=3, transition_matrices=KERNEL)
    tokens = task.sample(n, seed=(seed, n)).tokens.numpy()
    counts = np.zeros((3, 3))
    np.add.at(counts, (tokens[:, :4], tokens[:, 1:5]), 1)
    return float(((counts / counts.sum(axis=1, keepdims=True) - KERNEL) ** 2).mean())


def test_transition_frequencies_converge_at_the_root_n_rate() -> None:
    sizes = [500, 2_000, 8_000, 32_000]
    errors = [np.mean([transition_error(n, seed) for seed in range(16)]) ** 0.5 for n in sizes]
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert -0.6 < slope < -0.4


def test_roots_follow_the_law_that_was_asked_for() -> None:
    n, graph = 40_000, cc.graph_from_parents([None, None, None])
    sampling_error = torch.full((3,), 0.5 / n**0.5)
    law = torch.from_numpy(oracles.stationary_law(KERNEL)).float()
    for roots, expected in (("stationary", law), ("uniform", torch.full((3,), 1 / 3))):
        tokens = cc.InContextTask(graph, d_vocab=3, transition_matrices=KERNEL, roots=roots).sample(n, seed=2).tokens
        for position in range(3):
            frequencies = tokens[:, position].bincount(minlength=3) / n
            assert_within_sampling_error(frequencies, expected, sampling_error)
    tokens = cc.InContextTask(graph, d_vocab=3, alpha=0.2, roots="shared").sample(n, seed=3).tokens
    same = (tokens[:, 0] == tokens[:, 1]).double().mean()  # E sum p^2 of one Dirichlet draw
    assert abs(float(same) - (0.2 + 1) / (3 * 0.2 + 1)) < 4.5 * 0.5 / n**0.5


def test_the_query_is_uniform_and_independent_of_the_context(fork_task: cc.InContextTask) -> None:
    n = 40_000
    tokens = fork_task.sample(n, seed=4).tokens
    for position in range(fork_task.n_ctx - 1):
        joint = torch.zeros(3, 3).index_put_((tokens[:, position], tokens[:, -1]), torch.ones(n), accumulate=True) / n
        expected = (joint.sum(dim=1, keepdim=True) / 3).expand(3, 3)
        assert_within_sampling_error(joint, expected, (expected / n).sqrt())


def test_in_degrees_have_matrices_of_their_own_which_parents_enter_in_order_of_position() -> None:
    copy, both = np.eye(3), np.zeros((3, 3, 3))
    for a, b in product(range(3), range(3)):
        both[a, b, (2 * a + b) % 3] = 1.0
    graph = cc.graph_from_parents([[], [0], [], [1, 2], [0, 2], [3, 4]])
    task = cc.InContextTask(graph, d_vocab=3, transition_matrices={1: copy, 2: both})
    batch = task.sample(300, seed=0)
    x = batch.tokens
    assert torch.equal(x[:, 1], x[:, 0])
    assert torch.equal(x[:, 3:], (2 * x[:, :2].flip(1) + x[:, 2:3]) % 3)
    assert torch.equal(batch.target_probs.argmax(dim=1), (2 * x[:, 3] + x[:, 4]) % 3)
    assert torch.allclose(task.bayes_predictor(x), batch.target_probs.double(), atol=1e-6)


def test_rows_can_have_concentrations_of_their_own() -> None:
    alpha = np.array([[50.0, 1.0, 1.0], [1.0, 50.0, 1.0], [1.0, 1.0, 1.0]])
    task = cc.InContextTask(cc.chain_graph(4), d_vocab=3, alpha=alpha)
    batch = task.sample(20_000, seed=0)
    for token in range(3):
        rows = batch.target_probs[batch.tokens[:, -1] == token].double()
        expected = torch.from_numpy(alpha[token] / alpha[token].sum())
        assert_within_sampling_error(rows.mean(dim=0), expected, rows.std(dim=0) / len(rows) ** 0.5)
    by_row = cc.InContextTask(cc.chain_graph(4), d_vocab=3, alpha=np.array([0.01, 1.0, 100.0])).sample(9_000, seed=0)
    peak = [by_row.target_probs[by_row.tokens[:, -1] == token].amax(dim=1).mean() for token in range(3)]
    assert peak[0] > 0.95
    assert 0.5 < peak[1] < 0.75
    assert peak[2] < 0.45


def test_a_calibrated_loss_is_the_lowest_of_its_predictors() -> None:
    task = cc.InContextTask(cc.ngram_graph(8, 2), d_vocab=3, alpha=0.3)
    batch = task.sample(300, seed=4)
    for which in ([], [1], [0, 1]):
        losses = [
            float(
                cc.tasks.cross_entropy(
                    cc.tasks.subset_predictor(task, batch.tokens, which, pseudo), batch.target_probs
                ).mean()
            )
            for pseudo in np.geomspace(1e-3, 100, 400)
        ]
        least = pytest.approx(min(losses), abs=1e-3)  # between points of its grid
        assert cc.tasks.subset_loss(task, batch, which) == least


# ---- predictors


@given(any_parents, st.integers(2, 20), st.floats(-3, 1), st.integers(0, 1000))
def test_edge_posterior_counts_edges(parents: list, d_vocab: int, log_alpha: float, seed: int) -> None:
    task = any_task(parents, d_vocab, 10**log_alpha)
    alpha = np.full((task.d_vocab,) * (len(task.target_parents) + 1), 10**log_alpha)
    assert_posterior_equals_loops(task, alpha, seed)


@given(forest_parents(), st.integers(0, 1000))
def test_edge_posterior_with_concentrations_by_row(parents: list, seed: int) -> None:
    alpha = np.random.default_rng(seed).uniform(0.1, 3.0, size=(3, 3))
    task = cc.InContextTask(cc.graph_from_parents(parents), d_vocab=3, alpha=alpha)
    assert_posterior_equals_loops(task, alpha, seed)


def assert_posterior_equals_loops(task: cc.InContextTask, alpha: np.ndarray, seed: int) -> None:
    batch, above = task.sample(6, seed=seed), rows_of(task.graph)
    found = task.bayes_predictor(batch.tokens).numpy()
    for tokens, row in zip(batch.tokens.tolist(), found, strict=True):
        np.testing.assert_allclose(row, oracles.edge_posterior(above[:-1], above[-1], alpha, tokens), rtol=1e-12)


def test_given_matrices_are_mixed_by_their_likelihood(fork: object) -> None:
    given_matrices = np.random.default_rng(0).dirichlet(np.ones(3), size=(4, 3))
    laws = np.stack([oracles.stationary_law(kernel) for kernel in given_matrices])
    task = cc.InContextTask(fork, d_vocab=3, transition_matrices=given_matrices)
    tokens = task.sample(20, seed=0).tokens
    posterior, exact = cc.tasks.edge_posterior(task, tokens), cc.tasks.exact_bayes(task, tokens).probs
    for index, sequence in enumerate(tokens.tolist()):
        by_edges = oracles.kernel_mixture(given_matrices, rows_before_query(fork), sequence)
        with_roots = oracles.kernel_mixture(given_matrices, rows_before_query(fork), sequence, laws)
        np.testing.assert_allclose(posterior[index].numpy(), by_edges, rtol=1e-9)
        np.testing.assert_allclose(exact[index].numpy(), with_roots, rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.05, 0.3, 1.0])
@pytest.mark.parametrize(
    "parents", [[None] * 5, [None, 0, None, None, 2, None], [None, 0, 1, 2]], ids=["roots", "trees", "chain"]
)
def test_exact_bayes_equals_quadrature(alpha: float, parents: list[int | None]) -> None:
    task = cc.InContextTask(cc.graph_from_parents(parents), d_vocab=2, alpha=alpha)
    tokens = task.sample(8, seed=3).tokens
    found = cc.tasks.exact_bayes(task, tokens, n_draws=20_000, seed=0)
    assert 1 < found.effective_draws <= 20_000
    for row, sequence in zip(found.probs.numpy(), tokens.tolist(), strict=True):
        expected = oracles.exact_bayes_two_tokens(rows_before_query(task.graph), alpha, sequence)
        np.testing.assert_allclose(row, expected, atol=0.012)


def test_reference_lines_lie_in_their_order(fork_task: cc.InContextTask) -> None:
    batch = fork_task.sample(3_000, seed=0)
    lines = cc.reference_losses(fork_task, batch, n_exact=500, n_draws=128)
    assert lines.entropy < lines.exact_bayes < lines.edge_posterior < lines.best_unigram < lines.uniform
    assert lines.uniform == pytest.approx(np.log(3))
    assert lines.edge_posterior == pytest.approx(fork_task.bayes_loss(batch))
    assert lines.exact_bayes_error > 0
    for pseudo_count in (0.01, 1.0, 30.0):
        loss = cc.tasks.cross_entropy(cc.tasks.unigram(batch.tokens, 3, pseudo_count), batch.target_probs).mean()
        assert lines.best_unigram <= float(loss) + 1e-3


@pytest.mark.parametrize(
    ("graph", "expected"), [(cc.chain_graph(20), 1.7635), (cc.pairs_graph(20), 1.9246)], ids=["chain", "pairs"]
)
def test_edge_posterior_losses_of_the_papers_graphs(graph: object, expected: float) -> None:
    """The corrected lines of THEORY's section on predictors, d_vocab 10, n_ctx 20, alpha .1."""
    task = cc.InContextTask(graph, d_vocab=10, alpha=0.1)
    batch = task.sample(40_000, seed=0)
    losses = cc.tasks.cross_entropy(task.bayes_predictor(batch.tokens), batch.target_probs)
    assert abs(float(losses.mean()) - expected) < 4 * float(losses.std()) / len(losses) ** 0.5 + 0.005
    entropies = cc.tasks.cross_entropy(batch.target_probs, batch.target_probs)
    assert abs(float(entropies.mean()) - 0.844) < 4 * float(entropies.std()) / len(entropies) ** 0.5 + 0.005


# ---- refusals


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"alpha": 0.0}, ("alpha", "positive", "0.0", "0.1")),
        ({"alpha": -1.0}, ("alpha", "positive", "-1.0")),
        ({"alpha": float("nan")}, ("alpha", "positive and finite", "nan")),
        ({"alpha": float("inf")}, ("alpha", "finite", "inf")),
        ({"alpha": 1e-9}, ("alpha", "[1e-4, 1e6]", "1e-09")),
        ({"alpha": np.ones(4)}, ("alpha", "[d_vocab]", "d_vocab 3", "[4]")),
        ({"roots": "fair"}, ("roots", "one of stationary, uniform, shared", "'fair'")),
        ({"transition_matrices": np.full((3, 3), 0.3)}, ("sum to 1", "0.9", "divide by the row sums")),
        ({"transition_matrices": np.diag([1, 0.7, 1])}, ("sum to 1", "[0.7, 1]")),
        ({"transition_matrices": np.full((2, 2), 0.5)}, ("[3, 3]", "[2, 2]")),
        ({"transition_matrices": np.array([[1.5, -0.5, 0.0]] * 3)}, ("probabilities", "-0.5")),
        ({"transition_matrices": np.full((3, 3), np.nan)}, ("probabilities", "nan")),
        ({"transition_matrices": np.zeros((0, 3, 3))}, ("[3, 3]", "[0, 3, 3]")),
        ({"transition_matrices": np.eye(3)}, ("one stationary law", "closed", "roots='uniform'")),
        ({"transition_matrices": {2: np.full((3, 3, 3), 1 / 3)}}, ("in-degrees", "(1,)", "(2,)")),
    ],
    ids=lambda value: str(value)[:40].replace("\n", " ") if isinstance(value, dict) else "",
)
def test_bad_tasks_are_refused(arguments: dict, words: tuple[str, ...]) -> None:
    assert_refused(lambda: cc.InContextTask(cc.chain_graph(5), **{"d_vocab": 3, **arguments}), *words)


def test_bad_tasks_over_general_graphs_are_refused() -> None:
    graph = cc.ngram_graph(6, order=2)
    assert_refused(lambda: cc.InContextTask(graph, d_vocab=3, roots="stationary"), "at most one parent")
    assert_refused(lambda: cc.InContextTask(graph, d_vocab=3, alpha=np.ones(3)), "alpha by row", "at most one parent")
    wide = cc.graph_from_parents([[]] * 8 + [list(range(8))])
    assert_refused(lambda: cc.InContextTask(wide, d_vocab=10), "8 parents", "1,000,000,000", "fewer parents or tokens")


def test_bad_requests_are_refused(chain_task: cc.InContextTask) -> None:
    assert_refused(lambda: chain_task.sample(0), "n must be an integer of at least 1", "0")
    for predict in (chain_task.bayes_predictor, lambda tokens: cc.tasks.exact_bayes(chain_task, tokens)):
        assert_refused(lambda p=predict: p(torch.zeros(3, 5, dtype=torch.int64)), "[batch, n_ctx=6]", "[3, 5]")
        assert_refused(lambda p=predict: p(torch.full((3, 6), 4)), "0 .. 3", "4")
        assert_refused(lambda p=predict: p(torch.full((3, 6), -1)), "0 .. 3", "-1")
        assert_refused(lambda p=predict: p(torch.zeros(3, 6)), "integers", "float32")
        assert_refused(lambda p=predict: p(torch.zeros(0, 6, dtype=torch.int64)), "batch of 1 or more", "[0, 6]")


def test_tokens_impossible_under_every_given_kernel_are_refused() -> None:
    """Its posterior is 0 / 0: a number would be an invention."""
    task = cc.InContextTask(cc.chain_graph(5), d_vocab=4, transition_matrices=CYCLE)
    assert_refused(lambda: task.bayes_predictor(torch.zeros(1, 5, dtype=torch.int64)), "transition matrices")
