"""What the rows of `generalization` add up to: rates, excesses by family, checks, figures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from causal_circuits import figures
from causal_circuits.pages import Check, Section
from causal_circuits.studies.algorithm_1 import FULL_ADAM, GRADIENT_DESCENT
from causal_circuits.studies.power_laws import PowerLaw, fit_power_law
from causal_circuits.studies.study import Report
from causal_circuits.studies.tables import Points, listed, means_by, where

Rows = Sequence[Mapping[str, Any]]
Laws = Mapping[str, PowerLaw | None]
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
THEOREM = (
    "for any transition matrix pi~ with entries bounded below, f tends to pi~(. | s_T) as the context grows, uniformly"
)


@dataclass(frozen=True)
class Flags:
    """What a report says of the flags of its study."""

    seed: int
    d_vocab: int
    alpha: float
    gamma: float


def make_report(families: Rows, worst: Rows, restricted: Rows, flags: Flags) -> Report:
    """Fits, checks, sections and closing table."""
    points = error_points(families, worst)
    laws = {
        name: fit_power_law([n for n, _ in series], [e for _, e in series], seed=flags.seed)
        for name, series in points.items()
    }
    sentences = compare_with_theorem(worst, laws, flags.d_vocab)
    return Report(
        title="Transition matrices of other priors than that of training",
        checks=make_checks(families, worst, restricted, laws),
        results={
            "theorem": THEOREM,
            "exponents": {name: law and asdict(law) for name, law in laws.items()},
            "families": families,
            "worst_kernels": worst,
            "restricted": restricted,
            "parting": sentences,
        },
        sections=make_sections(families, worst, restricted, points, laws, sentences, flags),
        summary=summarize(families, restricted, points, laws),
    )


def error_points(families: Rows, worst: Rows) -> dict[str, list[tuple[int, float]]]:
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


def plot_errors(points: Mapping[str, Points], laws: Laws) -> Any:
    """The largest errors against length, each with its power law."""
    fits = {name: (law.prefactor, law.exponent) for name, law in laws.items() if law is not None}
    bound = ("n_ctx^(-1/2)", 1.5, -0.5)
    return figures.plot_scaling(points, fits, ylabel="largest error of a probability", bound=bound)


def plot_excess(families: Rows, restricted: Rows) -> Any:
    """The excess on every family, for each kind of training and model at its longest context."""
    groups = {"": families} | {f", trained on {name} alone": rows for name, rows in by_training(restricted).items()}
    excess = {}
    for words, rows in groups.items():
        for model in names_in(rows, "model"):
            longest = max(row["n_ctx"] for row in where(rows, model=model))
            at = where(rows, model=model, n_ctx=longest)
            for key, contexts in EXCESSES.items():
                means = {family: means_by(where(at, family=family), "n_ctx", key) for family in names_in(at, "family")}
                series = f"{model}{words}, n_ctx {longest}, {contexts}"
                excess[series] = {family: mean[0][1] for family, mean in means.items() if mean}
    label = "loss above the family's own edge posterior (nats)"
    return figures.plot_groups(excess, xlabel=label, levels={"0": 0.0})


def plots_by_length(families: Rows) -> dict[str, Any]:
    """The reduced model's excess on every family against length: over all contexts, and over those with every token."""
    plots = {}
    for key, contexts in EXCESSES.items():
        curves = {
            family: means_by(where(families, family=family, model=REDUCED), "n_ctx", key)
            for family in names_in(families, "family")
        }
        plots[f"excess_by_length_{contexts.replace(' ', '_')}"] = figures.plot_curves(
            curves,
            xlabel="context length n_ctx",
            ylabel=f"loss above the family's own\nedge posterior, {contexts} (nats)",
            levels={"edge posterior": 0.0},
        )
    return plots


def names_in(rows: Rows, key: str) -> list[str]:
    """The different values of an entry, in order."""
    return list(dict.fromkeys(row[key] for row in rows))


def by_training(restricted: Rows) -> dict[str, Rows]:
    """The rows of each family that models were trained on alone."""
    return {name: where(restricted, trained_on=name) for name in names_in(restricted, "trained_on")}


def nats(value: float) -> str:
    """A mean excess; NaN is that of no context."""
    return "no context" if math.isnan(value) else f"{value:+.3f}"


def check_bound(rows: Rows, key: str, claim: str) -> Check:
    """Whether the excess (means over seeds) is at most BOUND on every family, and on which it is not."""
    means = {
        family: sum(values) / len(values)
        for family in names_in(rows, "family")
        if (values := [row[key] for row in rows if row["family"] == family])
    }
    beyond = {family: value for family, value in means.items() if not value <= BOUND}
    most = max(means, key=lambda family: means[family])
    shown = ", ".join(f"{family} {nats(value)}" for family, value in beyond.items())
    return Check(
        not beyond,
        claim,
        f"fails on {len(beyond)} of {len(means)} families: {shown}"
        if beyond
        else f"holds on all {len(means)} families; most on {most}: {means[most]:+.4f} nats",
    )


def make_checks(families: Rows, worst: Rows, restricted: Rows, laws: Laws) -> list[Check]:
    """The claims, each with the numbers that decide it."""
    checks = [
        Check(
            law is not None and law.high < 0,
            f"{name}: falls with the length, its exponent's interval below zero",
            f"exponent {law}",
        )
        for name, law in laws.items()
    ]
    groups = {"trained on all matrices": families}
    groups |= {
        f"trained on {name} matrices alone, tested on matrices that this excludes": rows
        for name, rows in by_training(restricted).items()
    }
    for words, rows in groups.items():
        at = longest_of(rows)
        for key, contexts in EXCESSES.items():
            claim = (
                f"At n_ctx {at[0]['n_ctx']} the reduced model, {words}, is within {BOUND:g} nats of each family's own "
                f"edge posterior, {contexts}"
            )
            checks.append(check_bound(at, key, claim))
    for name, rows in by_training(restricted).items():
        attention, n_ctx = longest_of(rows)[0]["parent_attention"], longest_of(rows)[0]["n_ctx"]
        checks.append(
            Check(
                attention > 0.5,
                f"At n_ctx {n_ctx} layer 0 of the reduced model trained on {name} matrices alone sees the parents",
                f"mean attention to the parent {attention:.4f}",
            )
        )
    longest = longest_of(worst)
    fooled = [row for row in longest if row["uniform_error"] > 1.5 * row["uniform_error_of_edge_posterior"]]
    checks.append(
        Check(
            not fooled,
            f"At n_ctx {longest[0]['n_ctx']} the worst matrix fools the reduced model at most 1.5 times as much as it "
            "fools the edge posterior with the training prior",
            f"{len(fooled)} of {len(longest)} searches at this length found a matrix that fools it more",
        )
    )
    return checks


def compare_with_theorem(worst: Rows, laws: Laws, d_vocab: int) -> list[str]:
    """Theorem beside measurement, in sentences that this run's numbers decide."""
    rows = longest_of(worst)
    longest = rows[0]["n_ctx"]
    of_search = {against: [row for row in rows if row["against"] == against] for against in ("kernel", "frequencies")}
    mean = {
        against: {key: sum(row[key] for row in found) / len(found) for key in found[0] if key.startswith("uniform_")}
        for against, found in of_search.items()
    }
    kernel, frequencies = mean["kernel"], mean["frequencies"]
    starved = [row for row in of_search["kernel"] if row["share_of_worst_query"] < 0.5 / d_vocab]
    shares = ", ".join(f"{row['share_of_worst_query']:.3f}" for row in of_search["kernel"])
    strengths = means_by([row for row in worst if row["model"] == REDUCED], "n_ctx", "match_strength")
    grows = all(after[1] > before[1] for before, after in pairwise(strengths))
    return [
        "The search for a large |f - pi~|: the largest found scales as "
        f"{scaling(laws['worst kernel found, |f - pi~|'], -0.5)}. Counting noise alone gives -1/2 where every token is "
        "seen often; the theorem says only that f converges, uniformly over matrices.",
        f"On the matrices of this search at n_ctx {longest}: |f - pi~| is {kernel['uniform_error']:.3f}, the counting "
        f"error |pi^ - pi~| {kernel['uniform_error_of_frequencies']:.3f}, the error of the edge posterior with the "
        f"training prior {kernel['uniform_error_of_edge_posterior']:.3f}, and |f - pi^| "
        f"{kernel['uniform_error_from_frequencies']:.3f}.",
        "Another search, for a large |f - pi^|, the model's own part: the largest found is "
        f"{frequencies['uniform_error_from_frequencies']:.3f} at n_ctx {longest} and scales as "
        f"{scaling(laws['worst kernel found, |f - pi^|'], 0.0)}.",
        f"On the matrices of the first search at n_ctx {longest} the query token with the largest error has the "
        f"stationary share {shares} (one a seed; an even share is {1 / d_vocab:.3f}): below half of an even "
        f"share, so that it is seldom seen, in {len(starved)} of {len(of_search['kernel'])}.",
        "How much more a matching token scores than another in A2, by length: "
        + listed(strengths, ".2f")
        + f"; it {'grows' if grows else 'does not grow'} with every length. A finite match mixes the token frequencies "
        "of the whole context into f.",
        "pi~ is read as the new matrix; distances to the frequencies pi^ are given beside it, so that either reading "
        "of the theorem can be checked.",
    ]


def scaling(law: PowerLaw | None, exponent: float) -> str:
    """A law, and where it lies beside an exponent."""
    return "no power (too few positive points)" if law is None else f"n_ctx^({law}), {law.against(exponent)}"


def short_row(row: Mapping[str, Any]) -> dict[str, object]:
    """A worst matrix in a line of a table: its rows separated by slashes, none of it broken."""
    kernel = " / ".join(" ".join(f"{p:.2f}".removeprefix("0") for p in line) for line in row["kernel"])
    return {
        "model": row["model"].split(",")[0],
        "n_ctx": row["n_ctx"],
        "seed": row["seed"],
        "searched for": {"kernel": "|f - pi~|", "frequencies": "|f - pi^|"}.get(row["against"], row["against"]),
        "worst matrix, row by row": kernel.replace(" ", "\u00a0"),
        "|f - pi~|": row["uniform_error"],
        "|f - pi^|": row["uniform_error_from_frequencies"],
        "edge posterior - pi~": row["uniform_error_of_edge_posterior"],
    }


def make_sections(
    families: Rows,
    worst: Rows,
    restricted: Rows,
    points: Mapping[str, Points],
    laws: Laws,
    sentences: Sequence[str],
    flags: Flags,
) -> list[Section]:
    """The evidence, picture by picture."""
    found = [
        Section(
            "The uniform error against length",
            f"Theorem 2: {THEOREM}; the distance to pi~ includes the noise of counting, of order n_ctx^(-1/2) where "
            "every token is seen often, while the distance to the frequencies pi^ is the model's own.",
            figures={"uniform_error": plot_errors(points, laws)},
        ),
        Section(
            "Excess over each family's own edge posterior",
            f"Trained at alpha {flags.alpha:g}, or on one family alone; the edge posterior of a family is told the "
            "family. Trained at one alpha, the Dirichlet families are tested without the bound on entries that the "
            "theorem asks for; all others have it. Over all contexts, and over those that hold every token: where one "
            "is absent the reduced model says 0, and loses -log(1e-9).",
            figures={"excess": plot_excess(families, restricted), **plots_by_length(families)},
            table=families,
        ),
        Section(
            "Theorem beside measurement",
            "In sentences that the numbers of this run decide.",
            table=[{"theorem and measurement": text} for text in sentences],
        ),
        Section(
            "The worst matrices found",
            f"Entries >= {flags.gamma:g} / {flags.d_vocab}; errors on 4,096 fresh sequences.",
            table=[short_row(row) for row in worst],
        ),
    ]
    if restricted:
        alone = "On the matrices of other families that training excludes, nats."
        found.append(Section("Trained on one family alone", alone, table=restricted))
    return found


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


def summarize(families: Rows, restricted: Rows, points: Mapping[str, Points], laws: Laws) -> list[tuple[str, str]]:
    """The closing table."""
    what = "over the family's own edge posterior, nats: n_ctx: all contexts / with every token (share without)"
    lines = [("excess", what)]
    lines += [("excess", f"{family:19s} {excess_line(families, family)}") for family in names_in(families, "family")]
    for name, rows in by_training(restricted).items():
        for family in names_in(rows, "family"):
            lines.append(("excess", f"trained on {name} alone, on excluded {family:19s} {excess_line(rows, family)}"))
    for name, series in points.items():
        averaged = means_by([{"n_ctx": n, "error": e} for n, e in series], "n_ctx", "error")
        lines.append(("sup error", f"{name:47s} {listed(averaged, '.3f')}; exponent {laws[name]}"))
    return lines
