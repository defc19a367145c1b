"""What `generalization.py` makes of its measurements: rates, table, figures, page. Not a script."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
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
EXCESSES = {"excess": "all contexts", "excess_with_all_tokens": "contexts with every token"}
BOUND = 0.05  # nats
THEOREM = "for any kernel pi~ with entries bounded below, f tends to pi~(. | s_T) as the context grows, uniformly"


def finish(arguments: argparse.Namespace, units: Units, families: Rows, worst: Rows, restricted: Rows) -> str:
    """Fit, draw, write; returns the table."""
    points = error_points(families, worst)
    laws = {
        name: fit_power_law([n for n, _ in series], [e for _, e in series], seed=arguments.seed)
        for name, series in points.items()
    }
    content = {
        "theorem": THEOREM,
        "exponents": {name: None if law is None else asdict(law) for name, law in laws.items()},
        "families": list(families),
        "worst_kernels": list(worst),
        "restricted": list(restricted),
        "parting": parting(worst, laws, arguments),
    }
    write_study(
        arguments,
        units,
        content,
        draw(families, restricted, points, laws),
        title="Kernels of other priors than that of training",
        verdict=verdict(families, worst, restricted, laws),
        sections=sections(families, worst, restricted, content["parting"], arguments),
    )
    return table(families, restricted, points, laws, arguments)


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


def longest_of(rows: Rows) -> Rows:
    """The reduced model's rows at its longest context."""
    reduced = [row for row in rows if row["model"] == REDUCED]
    longest = max(row["n_ctx"] for row in reduced)
    return [row for row in reduced if row["n_ctx"] == longest]


def draw(families: Rows, restricted: Rows, points: dict[str, Any], laws: dict[str, PowerLaw | None]) -> dict[str, Any]:
    """Every figure by the name of its file."""
    fits = {name: (law.prefactor, law.exponent) for name, law in laws.items() if law is not None}
    groups = {"": families} | {f", trained on {name} alone": rows for name, rows in by_training(restricted).items()}
    excess, by_length = {}, {}
    for words, rows in groups.items():
        for model in dict.fromkeys(row["model"] for row in rows):
            of_model = [row for row in rows if row["model"] == model]
            at = max(row["n_ctx"] for row in of_model)
            for key, contexts in EXCESSES.items():
                values = {
                    family: dict(means_by(of_model, "n_ctx", key, family=family)).get(at)
                    for family in dict.fromkeys(row["family"] for row in of_model)
                }
                excess[f"{model}{words}, n_ctx {at}, {contexts}"] = {
                    family: value for family, value in values.items() if value is not None
                }
    for key, contexts in EXCESSES.items():
        curves = {
            family: means_by(families, "n_ctx", key, family=family, model=REDUCED)
            for family in dict.fromkeys(row["family"] for row in families)
        }
        by_length[contexts.replace(" ", "_")] = figures.plot_curves(
            curves,
            xlabel="context length n_ctx",
            ylabel=f"loss above the family's own\nedge posterior, {contexts} (nats)",
            levels={"edge posterior": 0.0},
        )
    return {
        "uniform_error": figures.plot_scaling(
            points, fits, ylabel="largest error of a probability", bound=("n_ctx^(-1/2)", 1.5, -0.5)
        ),
        "excess": figures.plot_groups(
            excess, xlabel="loss above the family's own edge posterior (nats)", levels={"0": 0.0}
        ),
        **{f"excess_by_length_{name}": plot for name, plot in by_length.items()},
    }


def by_training(restricted: Rows) -> dict[str, list[dict[str, Any]]]:
    """The rows of each family that models were trained on alone."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in restricted:
        found.setdefault(row["trained_on"], []).append(row)
    return found


def nats(value: float) -> str:
    """A mean excess; NaN is that of no context."""
    return "no context" if math.isnan(value) else f"{value:+.3f}"


def within_bound(rows: Rows, key: str, claim: str) -> figures.Check:
    """Whether the excess (means over seeds) is at most BOUND on every family, and on which it is not."""
    means = {
        family: sum(values) / len(values)
        for family in dict.fromkeys(row["family"] for row in rows)
        if (values := [row[key] for row in rows if row["family"] == family])
    }
    beyond = {family: value for family, value in means.items() if not value <= BOUND}
    most = max(means, key=lambda family: means[family])
    shown = ", ".join(f"{family} {nats(value)}" for family, value in beyond.items())
    return figures.Check(
        not beyond,
        claim,
        f"fails on {len(beyond)} of {len(means)} families: {shown}"
        if beyond
        else f"holds on all {len(means)} families; most on {most}: {means[most]:+.4f} nats",
    )


def verdict(families: Rows, worst: Rows, restricted: Rows, laws: dict[str, PowerLaw | None]) -> list[figures.Check]:
    """The claims, each with the numbers that decide it."""
    checks = [
        figures.Check(
            law is not None and law.high < 0,
            f"{name}: falls with the length, its exponent's interval below zero",
            f"exponent {law}",
        )
        for name, law in laws.items()
    ]
    groups = {"trained on all kernels": families}
    groups |= {
        f"trained on {name} kernels alone, tested on kernels that this excludes": rows
        for name, rows in by_training(restricted).items()
    }
    for words, rows in groups.items():
        at = longest_of(rows)
        for key, contexts in EXCESSES.items():
            claim = (
                f"At n_ctx {at[0]['n_ctx']} the reduced model, {words}, is within {BOUND:g} nats of each family's own "
                f"edge posterior, {contexts}"
            )
            checks.append(within_bound(at, key, claim))
    for name, rows in by_training(restricted).items():
        attention, n_ctx = longest_of(rows)[0]["parent_attention"], longest_of(rows)[0]["n_ctx"]
        checks.append(
            figures.Check(
                attention > 0.5,
                f"At n_ctx {n_ctx} layer 1 of the reduced model trained on {name} kernels alone sees the parents",
                f"mean attention to the parent {attention:.4f}",
            )
        )
    longest = longest_of(worst)
    fooled = [row for row in longest if row["uniform_error"] > 1.5 * row["uniform_error_of_edge_posterior"]]
    checks.append(
        figures.Check(
            not fooled,
            f"At n_ctx {longest[0]['n_ctx']} the worst kernel fools the reduced model at most 1.5 times as much as it "
            "fools the edge posterior with the training prior",
            f"{len(fooled)} of {len(longest)} searches at this length found a kernel that fools it more",
        )
    )
    return checks


def parting(worst: Rows, laws: dict[str, PowerLaw | None], arguments: argparse.Namespace) -> list[str]:
    """Theorem beside measurement, in sentences that this run's numbers decide."""
    rows = longest_of(worst)
    longest = rows[0]["n_ctx"]
    of_search = {against: [row for row in rows if row["against"] == against] for against in ("kernel", "frequencies")}
    mean = {
        against: {key: sum(row[key] for row in found) / len(found) for key in found[0] if key.startswith("uniform_")}
        for against, found in of_search.items()
    }
    kernel, frequencies = mean["kernel"], mean["frequencies"]
    starved = [row for row in of_search["kernel"] if row["share_of_worst_query"] < 0.5 / arguments.d_vocab]
    shares = ", ".join(f"{row['share_of_worst_query']:.3f}" for row in of_search["kernel"])
    strengths = means_by([row for row in worst if row["model"] == REDUCED], "n_ctx", "match_strength")
    grows = all(after[1] > before[1] for before, after in pairwise(strengths))
    return [
        "The search for a large |f - pi~|: the largest found scales as "
        f"{scaling(laws['worst kernel found, |f - pi~|'], -0.5)}. Counting noise alone gives -1/2 where every token is "
        "seen often; the theorem says only that f converges, uniformly over kernels.",
        f"On the kernels of this search at n_ctx {longest}: |f - pi~| is {kernel['uniform_error']:.3f}, the counting "
        f"error |pi^ - pi~| {kernel['uniform_error_of_frequencies']:.3f}, the error of the edge posterior with the "
        f"training prior {kernel['uniform_error_of_edge_posterior']:.3f}, and |f - pi^| "
        f"{kernel['uniform_error_from_frequencies']:.3f}.",
        "Another search, for a large |f - pi^|, the model's own part: the largest found is "
        f"{frequencies['uniform_error_from_frequencies']:.3f} at n_ctx {longest} and scales as "
        f"{scaling(laws['worst kernel found, |f - pi^|'], 0.0)}.",
        f"On the kernels of the first search at n_ctx {longest} the query token with the largest error has the "
        f"stationary share {shares} (one a seed; an even share is {1 / arguments.d_vocab:.3f}): below half of an even "
        f"share, so that it is seldom seen, in {len(starved)} of {len(of_search['kernel'])}.",
        "How much more a matching token scores than another in A2, by length: "
        + ", ".join(f"{n_ctx:.0f}: {strength:.2f}" for n_ctx, strength in strengths)
        + f"; it {'grows' if grows else 'does not grow'} with every length. A finite match mixes the token frequencies "
        "of the whole context into f.",
        "pi~ is read as the new kernel; distances to the frequencies pi^ are given beside it, so that either reading "
        "of the theorem can be checked.",
    ]


def scaling(law: PowerLaw | None, exponent: float) -> str:
    """A law, and where it lies beside an exponent."""
    return "no power (too few positive points)" if law is None else f"n_ctx^({law}), {law.against(exponent)}"


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
    families: Rows, worst: Rows, restricted: Rows, said: Sequence[str], arguments: argparse.Namespace
) -> list[tuple[str, str, Sequence[str], str]]:
    """The evidence, picture by picture."""
    tables = figures.table_html(list(families), caption="Every model on every family, nats")
    if restricted:
        tables += figures.table_html(
            list(restricted), caption="Trained on one family alone, on the kernels of others that this excludes, nats"
        )
    return [
        (
            "The uniform error against length",
            f"Theorem 2: {THEOREM}; the distance to pi~ includes the noise of counting, of order n_ctx^(-1/2) where "
            "every token is seen often, while the distance to the frequencies pi^ is the model's own.",
            ["uniform_error"],
            figures.table_html(
                [short_row(row) for row in worst],
                caption=f"Worst kernels with entries >= {arguments.gamma:g} / {arguments.d_vocab}, judged on 4,096 "
                "fresh sequences",
            ),
        ),
        (
            "Excess over each family's own edge posterior",
            f"Trained at alpha {arguments.alpha:g}, or on one family alone; the edge posterior of a family is told the "
            "family. Trained at one alpha, the Dirichlet families are tested without the bound on entries that the "
            "theorem asks for; all others have it. Over all contexts, and over those that hold every token: where one "
            "is absent the reduced model says 0, and loses -log(1e-9).",
            ["excess", *(f"excess_by_length_{contexts.replace(' ', '_')}" for contexts in EXCESSES.values())],
            tables,
        ),
        (
            "Theorem beside measurement",
            "In sentences that the numbers of this run decide.",
            [],
            figures.table_html([{"what": text} for text in said], caption="Theorem and measurement"),
        ),
    ]


def excess_line(rows: Rows, family: str) -> str:
    """For each model and length: the excess over all contexts, over the kept ones, and the share dropped."""
    shown = []
    for model in (REDUCED, FULL_ADAM.name):
        of_model = [row for row in rows if row["model"] == model and row["family"] == family]
        both = [dict(means_by(of_model, "n_ctx", key)) for key in (*EXCESSES, "share_with_all_tokens")]
        values = ", ".join(
            f"{n_ctx:.0f}: {nats(every)} / {nats(both[1].get(n_ctx, float('nan')))} ({1 - both[2][n_ctx]:.0%})"
            for n_ctx, every in both[0].items()
        )
        shown += [f"{model.split(',')[0]} {values}"] if values else []
    return "; ".join(shown)


def table(
    families: Rows, restricted: Rows, points: dict[str, Any], laws: dict[str, Any], arguments: argparse.Namespace
) -> str:
    """The short table that ends a run."""
    lines = [
        "excess over the family's own edge posterior, nats: n_ctx: all contexts / with every token (share without)"
    ]
    for family in dict.fromkeys(row["family"] for row in families):
        lines.append(f"excess      {family:19s} {excess_line(families, family)}")
    for name, rows in by_training(restricted).items():
        for family in dict.fromkeys(row["family"] for row in rows):
            lines.append(f"{name} alone: excess on excluded {family:19s} {excess_line(rows, family)}")
    for name, series in points.items():
        averaged = means_by([{"n_ctx": n, "error": e} for n, e in series], "n_ctx", "error")
        values = ", ".join(f"{n_ctx:.0f}: {error:.3f}" for n_ctx, error in averaged)
        lines.append(f"sup error   {name:47s} {values}; exponent {laws[name]}")
    lines.append(f"look at     {arguments.out / 'report.html'}")
    return "\n".join(lines)
