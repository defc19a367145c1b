"""What `generalization.py` makes of its measurements: rates, table, figures, page. Not a script."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from algorithm_1 import FULL_ADAM, GRADIENT_DESCENT
from going_on import Units
from power_laws import PowerLaw, fit_power_law
from studies import means_by, write_study

from causal_circuits import figures

Rows = Sequence[dict[str, Any]]
REDUCED = GRADIENT_DESCENT.name
ERRORS = {
    "all families, |f - pi~|": ("families", "uniform_error"),
    "worst kernel found, |f - pi~|": ("kernel", "uniform_error"),
    "worst kernel found, edge posterior instead of f": ("kernel", "uniform_error_of_edge_posterior"),
    "all families, |f - pi^|": ("families", "uniform_error_from_frequencies"),
    "worst kernel found, |f - pi^|": ("frequencies", "uniform_error_from_frequencies"),
}
THEOREM = "for any kernel pi~ with entries bounded below, f tends to pi~(. | s_T) as the context grows, uniformly"


def finish(arguments: argparse.Namespace, units: Units, families: Rows, worst: Rows) -> str:
    """Fit, draw, write; returns the table."""
    points = error_points(families, worst)
    laws = {
        name: fit_power_law([n for n, _ in series], [e for _, e in series], seed=arguments.seed)
        for name, series in points.items()
    }
    longest = max(row["n_ctx"] for row in families)
    content = {
        "theorem": THEOREM,
        "exponents": {name: None if law is None else asdict(law) for name, law in laws.items()},
        "families": list(families),
        "worst_kernels": list(worst),
        "parting": parting(worst, laws, arguments),
    }
    write_study(
        arguments,
        units,
        content,
        draw(families, points, laws, longest),
        title="Kernels that training never drew",
        verdict=verdict(families, worst, laws, longest),
        sections=sections(families, worst, content["parting"], arguments),
    )
    return table(families, points, laws, longest, arguments)


def error_points(families: Rows, worst: Rows) -> dict[str, list[tuple[float, float]]]:
    """(length, largest error) of the reduced model, one a seed, for each of `ERRORS`."""
    points = {}
    for name, (source, value) in ERRORS.items():
        largest: dict[tuple[int, int], float] = {}
        for row in families if source == "families" else worst:
            if row["model"] == REDUCED and source in ("families", row.get("against")):
                key = row["n_ctx"], row["seed"]
                largest[key] = max(largest.get(key, 0.0), row[value])
        points[name] = [(n_ctx, error) for (n_ctx, _), error in sorted(largest.items())]
    return points


def draw(families: Rows, points: dict[str, Any], laws: dict[str, PowerLaw | None], longest: int) -> dict[str, Any]:
    """Every figure by the name of its file."""
    fits = {name: (law.prefactor, law.exponent) for name, law in laws.items() if law is not None}
    excess = {}
    for model in dict.fromkeys(row["model"] for row in families):
        of_model = [row for row in families if row["model"] == model]
        at = max(row["n_ctx"] for row in of_model)
        names = dict.fromkeys(row["family"] for row in of_model)
        excess[f"{model}, n_ctx {at}"] = {
            family: dict(means_by(of_model, "n_ctx", "excess_with_all_tokens", family=family))[at] for family in names
        }
    by_length = {
        family: means_by(families, "n_ctx", "excess_with_all_tokens", family=family, model=REDUCED)
        for family in dict.fromkeys(row["family"] for row in families)
    }
    return {
        "uniform_error": figures.plot_scaling(
            points, fits, ylabel="largest error of a probability", bound=("n_ctx^(-1/2)", 1.5, -0.5)
        ),
        "excess": figures.plot_groups(
            excess,
            xlabel="loss above the family's own edge posterior\nin contexts with every token (nats)",
            levels={"0": 0.0},
        ),
        "excess_by_length": figures.plot_curves(
            by_length,
            xlabel="context length n_ctx",
            ylabel="loss above the family's\nown edge posterior (nats)",
            levels={"edge posterior": 0.0},
        ),
    }


def verdict(families: Rows, worst: Rows, laws: dict[str, PowerLaw | None], longest: int) -> list[figures.Check]:
    """The claims, each with the numbers that decide it."""
    checks = [
        figures.Check(
            law is not None and law.high < 0,
            f"{name}: falls with the length, its exponent's interval below zero",
            f"exponent {law}",
        )
        for name, law in laws.items()
    ]
    at_longest = [row for row in families if row["model"] == REDUCED and row["n_ctx"] == longest]
    most = max(at_longest, key=lambda row: row["excess_with_all_tokens"])
    checks.append(
        figures.Check(
            most["excess_with_all_tokens"] <= 0.05,
            f"At n_ctx {longest}, in contexts that hold every token, the reduced model is within .05 nats of each "
            "family's own edge posterior",
            f"most on {most['family']}: {most['excess_with_all_tokens']:+.4f} nats",
        )
    )
    fooled = [row for row in worst if row["uniform_error"] > 1.5 * row["uniform_error_of_edge_posterior"]]
    checks.append(
        figures.Check(
            not any(row["n_ctx"] == longest and row["model"] == REDUCED for row in fooled),
            f"At n_ctx {longest} the worst kernel fools the model at most 1.5 times as much as it fools the edge "
            "posterior with the training prior",
            f"{len(fooled)} of {len(worst)} searches over all lengths found a kernel that does",
        )
    )
    return checks


def parting(worst: Rows, laws: dict[str, PowerLaw | None], arguments: argparse.Namespace) -> list[str]:
    """What the theorem leaves open and this run shows, in sentences with numbers."""
    longest = max(row["n_ctx"] for row in worst if row["model"] == REDUCED)
    rows = [row for row in worst if (row["model"], row["n_ctx"], row["against"]) == (REDUCED, longest, "kernel")]
    mean = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0] if key.startswith("uniform_error")}
    rarest = longest * arguments.gamma / arguments.d_vocab
    return [
        "The theorem says that f converges, uniformly over kernels; here the largest |f - pi~| found scales as "
        f"n_ctx^({laws['worst kernel found, |f - pi~|']}), where counting noise alone gives -1/2 once every token is "
        "seen often.",
        f"On the worst kernel at n_ctx {longest}: |f - pi~| is {mean['uniform_error']:.3f}, of which counting explains "
        f"|pi^ - pi~| = {mean['uniform_error_of_frequencies']:.3f}; the edge posterior with the training prior is off "
        f"by {mean['uniform_error_of_edge_posterior']:.3f}. The model's own part, |f - pi^|, is "
        f"{mean['uniform_error_from_frequencies']:.3f} and scales as "
        f"n_ctx^({laws['worst kernel found, |f - pi^|']}).",
        "The reason is the finite match of A2, tuned to the training prior: the worst kernels starve the query's "
        f"token, which with entries of {arguments.gamma:g} / {arguments.d_vocab} may occur only {rarest:.1f} times in "
        f"{longest} positions, and then the many mismatches, each with a small weight, pull f towards the token "
        "frequencies of the whole context. The match grows with the length (see two_stage.py), so the pull fades.",
        "pi~ is read as the new kernel; distances to the frequencies pi^ are given beside it, so that either reading "
        "of the theorem can be checked.",
    ]


def short_row(row: dict[str, Any]) -> dict[str, object]:
    """A worst kernel in a line of a table: its rows separated by slashes, none of it broken."""
    kernel = " / ".join(" ".join(f"{p:.2f}".removeprefix("0") for p in line) for line in row["kernel"])
    return {
        "model": row["model"].split(",")[0],
        "n_ctx": row["n_ctx"],
        "seed": row["seed"],
        "searched for": {"kernel": "|f - pi~|", "frequencies": "|f - pi^|"}.get(row["against"], row["against"]),
        "worst kernel, row by row": kernel.replace(" ", "\u00a0"),
        "|f - pi~|": row["uniform_error"],
        "|f - pi^|": row["uniform_error_from_frequencies"],
        "edge posterior - pi~": row["uniform_error_of_edge_posterior"],
    }


def sections(
    families: Rows, worst: Rows, said: Sequence[str], arguments: argparse.Namespace
) -> list[tuple[str, str, Sequence[str], str]]:
    """The evidence, picture by picture."""
    return [
        (
            "The uniform error against length",
            f"Theorem 2: {THEOREM}; the distance to pi~ includes the noise of counting, of order n_ctx^(-1/2), that no "
            "model escapes, while the distance to the frequencies pi^ is the model's own.",
            ["uniform_error"],
            figures.table_html(
                [short_row(row) for row in worst],
                caption=f"Worst kernels with entries >= {arguments.gamma:g} / {arguments.d_vocab}, judged on 4,096 "
                "fresh sequences",
            ),
        ),
        (
            "Excess over each family's own edge posterior",
            f"Trained at alpha {arguments.alpha:g} alone; the edge posterior of a family is told the family. Drawn "
            "over contexts that hold every token: where one is absent the reduced model says 0, and loses -log(1e-9).",
            ["excess", "excess_by_length"],
            figures.table_html(list(families), caption="Every model on every family, nats"),
        ),
        (
            "Where theorem and measurement part",
            "In sentences, with the numbers of this run.",
            [],
            figures.table_html([{"what": text} for text in said], caption="Theorem and measurement"),
        ),
    ]


def table(
    families: Rows, points: dict[str, Any], laws: dict[str, Any], longest: int, arguments: argparse.Namespace
) -> str:
    """The short table that ends a run."""
    lines = []
    for family in dict.fromkeys(row["family"] for row in families):
        shown = []
        for model in (REDUCED, FULL_ADAM.name):
            series = means_by(families, "n_ctx", "excess_with_all_tokens", family=family, model=model)
            values = ", ".join(f"{n_ctx:.0f}: {excess:+.3f}" for n_ctx, excess in series)
            shown += [f"{model.split(',')[0]} {values}"] if series else []
        lines.append(f"excess      {family:19s} {'; '.join(shown)}")
    for name, series in points.items():
        averaged = means_by([{"n_ctx": n, "error": e} for n, e in series], "n_ctx", "error")
        values = ", ".join(f"{n_ctx:.0f}: {error:.3f}" for n_ctx, error in averaged)
        lines.append(f"sup error   {name:47s} {values}; exponent {laws[name]}")
    lines.append(f"look at     {arguments.out / 'report.html'}")
    return "\n".join(lines)
