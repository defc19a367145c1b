"""The study of generalisation: sentences and checks say what the rows say, also when the rows contradict the claim."""

import numpy as np
import pandas as pd
import pytest

import causal_circuits as cc
from causal_circuits.studies import generalization
from causal_circuits.studies.generalization import Config, measure
from causal_circuits.studies.power_laws import fit_power_law

KERNEL = np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.05, 0.9, 0.05]])


def test_runs_and_writes_its_numbers(tmp_path, look_at_report) -> None:
    results = cc.run(Config.quickly(), tmp_path, quiet=True).results
    rows = results["families"]
    assert {row["family"] for row in rows} == set(cc.tasks.MATRIX_FAMILIES)
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


def test_matrices_outside_differ_from_every_training_matrix() -> None:
    known = cc.tasks.matrix_family("sticky", 40, 3, seed=1)
    tried = np.concatenate(
        [cc.tasks.matrix_family(family, 40, 3, seed=2) for family in ("sticky", "near-deterministic")]
    )
    kept = measure.outside(tried, known)
    distances = [min(np.abs(k - other).max() for other in known) for k in tried]
    assert len(kept) == sum(d >= measure.MARGIN for d in distances)
    assert 0 < len(kept) < len(tried)
    assert np.array_equal(kept, tried[np.array(distances) >= measure.MARGIN])


# ---- sentences and verdicts: they say what the rows say, also when the rows contradict the claim


def family_row(family: str, n_ctx: int, excess: float, kept: float, **more: object) -> dict:
    """A row of the reduced model."""
    row = {"model": "reduced, gradient descent", "n_ctx": n_ctx, "seed": 0, "family": family, "excess": excess}
    return {**row, "excess_with_all_tokens": kept, "share_with_all_tokens": 0.5, **more}


@pytest.mark.parametrize("where", ["excess", "excess_with_all_tokens"])
def test_a_family_beyond_the_bound_is_named(where) -> None:
    rows = pd.DataFrame([family_row(f, 20, 0.01, 0.01) for f in ("sparse", "sticky")])
    assert generalization.check_bound(rows, where, "claim").passed
    rows.loc[1, where] = 1.257
    check = generalization.check_bound(rows, where, "claim")
    assert not check.passed
    assert check.evidence.startswith("fails on 1 of 2 families: sticky +1.257")
    rows.loc[1, where] = float("nan")
    check = generalization.check_bound(rows, where, "claim")
    assert not check.passed
    assert "sticky no context" in check.evidence


def test_the_terminal_gives_both_numbers_and_the_share_dropped() -> None:
    rows = pd.DataFrame([family_row("sparse", 20, 2.024, 0.286)])
    every, kept = generalization.check_groups({"trained on all matrices": rows})
    assert every.evidence == "fails on 1 of 1 families: sparse +2.024"
    assert kept.evidence.startswith("fails on 1 of 1 families: sparse +0.286; some token is absent")
    assert kept.evidence.endswith("in 50% to 50%")


def worst_rows(errors: dict[int, float], *, of_posterior: float = 0.1, share: float = 0.05) -> list[dict]:
    """Rows of both searches whose own error is `errors` by length; the other error of a row is ten times as large."""
    return [
        {
            "model": "reduced, gradient descent",
            "n_ctx": n_ctx,
            "seed": seed,
            "against": against,
            "kernel": KERNEL.tolist(),
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


def said_of(rows: list[dict]) -> list[str]:
    family = family_row("sparse", 20, 0, 0, uniform_error=1.0, uniform_error_from_frequencies=1.0)
    worst = pd.DataFrame(rows)
    points = generalization.error_points(pd.DataFrame([family]), worst)
    laws = {name: fit_power_law(*zip(*at, strict=True)) for name, at in points.items()}
    return generalization.compare_with_theorem(worst, laws, d_vocab=3)


def test_the_worst_matrix_is_set_beside_the_theorem() -> None:
    """Its rate beside counting's, the errors of each search, starved queries."""
    for errors, words in (
        ({10: 0.4, 20: 0.2, 40: 0.1}, "steeper than -0.50"),
        ({10: 0.4, 20: 0.2828, 40: 0.2}, "an interval that holds -0.50"),
        ({10: 0.4, 20: 0.4, 40: 0.4}, "flatter than -0.50"),
    ):
        rows = worst_rows(errors)
        for row in rows:  # two seeds that scatter
            row["uniform_error"] *= 1.001 ** (2 * row["seed"] - 1)
        (own,) = [sentence for sentence in said_of(rows) if sentence.startswith("worst matrix found, |f - pi~|")]
        assert words in own
    said = said_of(worst_rows({10: 0.4, 20: 0.2, 40: 0.1}))
    (own,) = [sentence for sentence in said if "distance to pi^" in sentence]
    assert own.startswith("n_ctx 40")
    assert "|f - pi^| 0.100" in own  # the other search's is ten times as large
    assert "in 2 of 2" in said[-1]
    assert "in 0 of 2" in said_of(worst_rows({10: 0.4, 20: 0.2}, share=0.4))[-1]


def test_verdicts_on_what_training_excludes_and_on_fooling_can_fail() -> None:
    families = [family_row("sparse", 20, 0.01, 0.01)]
    for excess, posterior, passes in ((0.01, 0.1, True), (0.3, 0.001, False)):
        alone = [family_row("periodic", 20, excess, excess, trained_on="sticky", parent_attention=1 - 2 * excess)]
        checks = [*generalization.check_groups(generalization.by_training(families, alone))]
        checks.append(generalization.check_fooled(pd.DataFrame(worst_rows({20: 0.01}, of_posterior=posterior))))
        assert [check.passed for check in checks] == [True, True, passes, passes, passes, passes]
        assert "sticky matrices alone" in checks[2].claim
