"""Other kernels: the families keep their promise, errors are what they say, and the search only ever gets worse."""

import argparse
import json

import numpy as np
import oracles
import pytest
import torch
from assertions import assert_refused
from hypothesis import given
from hypothesis import strategies as st
from scripts import analysis_module, assert_refused_in_one_line, run_analysis

import causal_circuits as cc

KERNEL = np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.05, 0.9, 0.05]])


# ---- families


@given(
    family=st.sampled_from(cc.KERNEL_FAMILIES),
    d_vocab=st.integers(2, 6),
    gamma=st.floats(0.0, 0.9),
    seed=st.integers(0, 99),
)
def test_every_family_is_stochastic_and_bounded_below(family: str, d_vocab: int, gamma: float, seed: int) -> None:
    kernels = cc.kernel_family(family, 5, d_vocab, gamma=gamma, seed=seed)
    assert kernels.shape == (5, d_vocab, d_vocab)
    assert np.allclose(kernels.sum(axis=-1), 1.0, atol=1e-12)
    assert kernels.min() >= gamma / d_vocab - 1e-12
    assert np.array_equal(kernels, cc.kernel_family(family, 5, d_vocab, gamma=gamma, seed=seed))
    assert not np.array_equal(kernels, cc.kernel_family(family, 5, d_vocab, gamma=gamma, seed=seed + 1)) or d_vocab < 4


def test_each_family_is_what_its_name_says() -> None:
    assert np.diagonal(cc.kernel_family("sticky", 50, 4, gamma=0.0), axis1=1, axis2=2).min() >= 0.8
    assert ((cc.kernel_family("sparse", 50, 5, gamma=0.0) > 0).sum(axis=-1) <= 2).all()
    assert set(np.unique(cc.kernel_family("near-deterministic", 50, 4, gamma=0.0))) == {0.0, 1.0}
    peaks = [
        cc.kernel_family(f"dirichlet {a}", 200, 4, gamma=0.0).max(axis=-1).mean() for a in ("0.1", "0.3", "1", "10")
    ]
    assert peaks == sorted(peaks, reverse=True)


def test_families_refuse_what_they_are_not() -> None:
    assert_refused(lambda: cc.kernel_family("square"), "sticky", "'square'")
    assert_refused(lambda: cc.kernel_family("sparse", gamma=1.0), "gamma", "[0, 1)", "1.0")
    assert_refused(lambda: cc.kernel_family("sparse", d_vocab=1), "d_vocab", "at least 2")
    assert_refused(lambda: cc.kernel_family("sparse", n=0), "n must be", "at least 1")


def test_the_edge_posterior_of_given_kernels_is_the_oracles_mixture(fork) -> None:
    kernels = cc.kernel_family("sticky", 7, 3, gamma=0.2, seed=4)
    task = cc.InContextTask(fork, 3, kernels=kernels)
    batch = task.sample(20, seed=1)
    parents = [list(fork.predecessors(i)) for i in range(6)]
    expected = np.stack([oracles.kernel_mixture(kernels, parents, tokens) for tokens in batch.tokens.tolist()])
    assert np.allclose(task.bayes_predictor(batch.tokens).numpy(), expected, atol=1e-12)


# ---- errors


def test_prediction_errors_are_the_mean_distance_of_each_query_token(fork) -> None:
    def predictor(tokens: torch.Tensor) -> torch.Tensor:
        return torch.softmax(torch.nn.functional.one_hot(tokens[:, :3], 3).sum(dim=1).double(), dim=-1)

    found = cc.prediction_errors(predictor, fork, KERNEL, n_sequences=200, seed=5)
    batch = cc.InContextTask(fork, 3, kernels=KERNEL).sample(200, seed=5)
    distances: list[list[float]] = [[], [], []]
    for tokens, predicted in zip(batch.tokens.tolist(), predictor(batch.tokens).tolist(), strict=True):
        row = KERNEL[tokens[-1]]
        distances[tokens[-1]].append(max(abs(p - q) for p, q in zip(predicted, row, strict=True)))
    assert np.allclose(found, [np.mean(d) for d in distances], atol=1e-6)  # targets are float32
    assert np.allclose(cc.prediction_errors(predictor, fork, KERNEL, reference=predictor), 0.0)


def test_a_predictor_that_knows_the_kernel_has_no_error_and_an_unasked_token_none_to_show() -> None:
    graph = cc.chain_graph(6)
    perfect = cc.prediction_errors(lambda tokens: torch.from_numpy(KERNEL)[tokens[:, -1]], graph, KERNEL)
    assert perfect.max() < 1e-6
    one = cc.prediction_errors(lambda tokens: torch.full((len(tokens), 3), 1 / 3), graph, KERNEL, n_sequences=1)
    assert np.isnan(one).sum() == 2


def test_prediction_errors_need_a_query() -> None:
    assert_refused(
        lambda: cc.prediction_errors(lambda t: t, cc.ngram_graph(5, 1), np.full((2, 2), 0.5)), "forest with a query"
    )


def test_longer_contexts_bring_the_planted_circuit_closer_to_any_kernel() -> None:
    errors = []
    for n_ctx in (10, 40, 160):
        model = cc.plant_circuit(cc.chain_graph(n_ctx), d_vocab=3, readout_scale=8.0)
        a1 = cc.reduced_transformer(3, n_ctx)
        slots = cc.slots(a1)
        a1.blocks[0].attn.W_Q.data[0, slots["position"].slice, :n_ctx] = cc.attention_block(
            model, 0, 0, "position", "position"
        ).detach()
        cc.warm_start(a1, 8.0)
        kernels = cc.kernel_family("dirichlet 1", 4, 3, gamma=0.3, seed=1)
        errors.append(
            max(
                float(cc.prediction_errors(lambda t, m=a1: cc.log_probs(m, t).exp(), cc.chain_graph(n_ctx), k).max())
                for k in kernels
            )
        )
    assert errors[0] > 1.5 * errors[1] > 1.5**2 * errors[2]


# ---- the search


@given(st.integers(0, 30))
def test_the_search_is_never_worse_than_its_random_start(seed: int) -> None:
    target = np.random.default_rng(seed).dirichlet(np.ones(4), size=4)
    worst = cc.worst_kernel(
        lambda kernel: -float(np.abs(kernel - target).max()), 4, gamma=0.1, n_start=8, n_rounds=10, seed=seed
    )
    assert worst.error >= worst.start_error
    assert list(worst.history) == sorted(worst.history)
    assert len(worst.history) == 11
    assert worst.error == worst.history[-1] == -np.abs(worst.kernel - target).max()
    assert np.allclose(worst.kernel.sum(axis=1), 1.0)
    assert worst.kernel.min() >= 0.1 / 4 - 1e-12


def test_the_search_finds_a_known_worst_kernel() -> None:
    """The kernel furthest from uniform in the first row and column: a corner, (1 - gamma) + gamma / d_vocab."""
    worst = cc.worst_kernel(lambda kernel: float(kernel[0, 0] + kernel[1, 0]), 3, gamma=0.3, n_rounds=100, seed=2)
    assert worst.error > 2 * 0.79
    assert worst.error <= 2 * 0.8 + 1e-12
    again = cc.worst_kernel(lambda kernel: float(kernel[0, 0] + kernel[1, 0]), 3, gamma=0.3, n_rounds=100, seed=2)
    assert np.array_equal(worst.kernel, again.kernel)


# ---- the script


def test_generalization_runs_and_writes_its_numbers(tmp_path, capsys, monkeypatch, look_at_report) -> None:
    assert run_analysis("generalization", ["--quick", "--quiet", "--out", tmp_path], monkeypatch) == 0
    assert "sup error" in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    rows = results["families"]
    assert {row["family"] for row in rows} == set(cc.KERNEL_FAMILIES)
    assert {(row["model"], row["n_ctx"]) for row in rows} == {
        ("reduced, gradient descent", 8),
        ("reduced, gradient descent", 20),
        ("full, Adam", 8),
    }
    for row in rows:
        assert row["loss"] >= row["entropy"]
        assert row["own_edge_posterior"] >= row["entropy"]
        assert row["excess"] == pytest.approx(row["loss"] - row["own_edge_posterior"], abs=1e-9)
    for row in results["worst_kernels"]:
        assert row["found_error"] >= row["start_error"]
        assert np.min(row["kernel"]) >= 0.1 / 3 - 1e-9
        assert 0 < row["share_of_worst_query"] < 1
    alone = results["restricted"]
    assert {row["trained_on"] for row in alone} == {"sticky"}
    assert "sticky" not in {row["family"] for row in alone}
    assert {row["share_of_kernels_excluded"] for row in alone if row["family"] == "periodic"} == {1.0}
    look_at_report(tmp_path / "report.html")
    assert (tmp_path / "figures" / "uniform_error.png").exists()


def test_kernels_outside_differ_from_every_training_kernel(monkeypatch) -> None:
    generalization = analysis_module("generalization", monkeypatch)
    known = cc.kernel_family("sticky", 40, 3, seed=1)
    tried = np.concatenate([cc.kernel_family(family, 40, 3, seed=2) for family in ("sticky", "near-deterministic")])
    kept = generalization.outside(tried, known)
    distances = [min(np.abs(k - other).max() for other in known) for k in tried]
    assert len(kept) == sum(d >= generalization.MARGIN for d in distances)
    assert 0 < len(kept) < len(tried)
    assert np.array_equal(kept, tried[np.array(distances) >= generalization.MARGIN])


# ---- sentences and verdicts: they say what the rows say, also when the rows contradict the claim


def family_row(family: str, n_ctx: int, excess: float, kept: float, **more: object) -> dict:
    """A row of the reduced model."""
    row = {"model": "reduced, gradient descent", "n_ctx": n_ctx, "seed": 0, "family": family, "excess": excess}
    return {**row, "excess_with_all_tokens": kept, "share_with_all_tokens": 0.5, **more}


@pytest.mark.parametrize("where", ["excess", "excess_with_all_tokens"])
def test_a_family_beyond_the_bound_is_named(monkeypatch, where) -> None:
    page = analysis_module("generalization_page", monkeypatch)
    rows = [family_row(f, 20, 0.01, 0.01) for f in ("sparse", "sticky")]
    assert page.within_bound(rows, where, "claim").passed
    rows[1][where] = 1.257
    check = page.within_bound(rows, where, "claim")
    assert not check.passed
    assert check.evidence == "fails on 1 of 2 families: sticky +1.257"
    rows[1][where] = float("nan")
    assert not page.within_bound(rows, where, "claim").passed


def test_the_terminal_gives_both_numbers_and_the_share_dropped(monkeypatch) -> None:
    page = analysis_module("generalization_page", monkeypatch)
    rows = [family_row("sparse", 20, 2.024, 0.286), family_row("sparse", 40, 1.0, float("nan"))]
    assert page.excess_line(rows, "sparse") == "reduced 20: +2.024 / +0.286 (50%), 40: +1.000 / no context (50%)"


def worst_rows(errors: dict[int, float], *, of_posterior: float = 0.1, share: float = 0.05) -> list[dict]:
    """Rows of both searches whose own error is `errors` by length; the other error of a row is ten times as large."""
    return [
        {
            "model": "reduced, gradient descent",
            "n_ctx": n_ctx,
            "seed": seed,
            "against": against,
            "kernel": KERNEL.tolist(),
            "match_strength": float(n_ctx),
            "share_of_worst_query": share,
            "uniform_error": error if against == "kernel" else 10 * error,
            "uniform_error_from_frequencies": error if against == "frequencies" else 10 * error,
            "uniform_error_of_frequencies": 0.01,
            "uniform_error_of_edge_posterior": of_posterior,
        }
        for n_ctx, error in errors.items()
        for seed in (0, 1)
        for against in ("kernel", "frequencies")
    ]


def said_of(page, rows: list[dict]) -> list[str]:
    points = page.error_points(
        [family_row("sparse", 20, 0, 0, uniform_error=1, uniform_error_from_frequencies=1)], rows
    )
    laws = {name: page.fit_power_law([n for n, _ in at], [e for _, e in at]) for name, at in points.items()}
    return page.parting(rows, laws, argparse.Namespace(d_vocab=3, gamma=0.1))


def test_a_number_and_its_exponent_are_of_one_search(monkeypatch) -> None:
    page = analysis_module("generalization_page", monkeypatch)
    said = said_of(page, worst_rows({10: 0.4, 20: 0.2, 40: 0.1}))
    (own,) = [sentence for sentence in said if sentence.startswith("Another search")]
    assert "0.100 at n_ctx 40" in own  # the other search's is ten times as large
    assert "n_ctx^(-1.00" in own


@pytest.mark.parametrize(
    ("errors", "words"),
    [
        ({10: 0.4, 20: 0.2, 40: 0.1}, "steeper than -0.50"),
        ({10: 0.4, 20: 0.2828, 40: 0.2}, "an interval that holds -0.50"),
        ({10: 0.4, 20: 0.4, 40: 0.4}, "flatter than -0.50"),
    ],
)
def test_the_worst_kernel_s_rate_is_set_beside_counting(monkeypatch, errors, words) -> None:
    page = analysis_module("generalization_page", monkeypatch)
    rows = worst_rows(errors)
    for row in rows:  # two seeds that scatter
        row["uniform_error"] *= 1.001 ** (2 * row["seed"] - 1)
    assert words in said_of(page, rows)[0]


def test_starved_queries_and_growing_matches_are_counted(monkeypatch) -> None:
    page = analysis_module("generalization_page", monkeypatch)
    for share, counted in ((0.05, "in 2 of 2"), (0.4, "in 0 of 2")):
        assert counted in said_of(page, worst_rows({10: 0.4, 20: 0.2}, share=share))[3]
    falling = worst_rows({10: 0.4, 20: 0.2})
    assert "it grows" in said_of(page, falling)[4]
    for row in falling:
        row["match_strength"] *= -1
    assert "it does not grow" in said_of(page, falling)[4]


def test_verdicts_on_what_training_excludes_and_on_fooling_can_fail(monkeypatch) -> None:
    page = analysis_module("generalization_page", monkeypatch)
    families = [family_row("sparse", 20, 0.01, 0.01)]
    for excess, posterior, passes in ((0.01, 0.1, True), (0.3, 0.001, False)):
        alone = [family_row("periodic", 20, excess, excess, trained_on="sticky", parent_attention=1 - 2 * excess)]
        checks = page.verdict(families, worst_rows({20: 0.01}, of_posterior=posterior), alone, {})
        assert [check.passed for check in checks] == [True, True, passes, passes, passes, passes]
        assert "sticky kernels alone" in checks[2].claim


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--lengths", "10", "10"], "--lengths must name at least two different"),
        (["--gamma", "1"], "gamma must lie in [0, 1)"),
        (["--graph", "ring"], "chain, pairs, forest"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--alpha", "0"], "alpha must be positive"),
        (["--seed", "-2"], "--seed must be 0 or more"),
        (["--restricted", "dirichlet 1"], "--restricted must name sticky, sparse, periodic or near-deterministic"),
    ],
)
def test_generalization_refuses_in_one_line(flags, reason, tmp_path, capsys, monkeypatch) -> None:
    assert_refused_in_one_line("generalization", [*flags, "--out", tmp_path], reason, capsys, monkeypatch)
