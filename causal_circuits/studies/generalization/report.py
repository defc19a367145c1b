"""What the rows of `generalization` add up to: rates, excesses by family, checks, figures."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from causal_circuits import figures
from causal_circuits.pages import Check, Section
from causal_circuits.studies.algorithm_1 import GRADIENT_DESCENT
from causal_circuits.studies.power_laws import PowerLaw, fall_check, fit_power_law, scaling
from causal_circuits.studies.study import Report
from causal_circuits.studies.tables import curves_of, listed

Rows = Sequence[Mapping[str, Any]]
Series = list[tuple[int, float]]
Laws = Mapping[str, PowerLaw | None]
REDUCED = GRADIENT_DESCENT.name
ERRORS = {  # these names are keys of results.json
    "all families, |f - pi~|": ("families", "uniform_error"),
    "worst kernel found, |f - pi~|": ("kernel", "uniform_error"),
    "worst kernel found, edge posterior instead of f": ("kernel", "uniform_error_of_edge_posterior"),
    "all families, |f - pi^|": ("families", "uniform_error_from_frequencies"),
    "worst kernel found, |f - pi^|": ("frequencies", "uniform_error_from_frequencies"),
}
SEARCHED = {"kernel": "pi~", "frequencies": "pi^"}
EXCESSES = {"excess": "all contexts", "excess_with_all_tokens": "contexts with every token"}
BOUND = 0.05  # nats
THEOREM = (
    "for any transition matrix pi~ with entries bounded below, f tends to pi~(. | s_T) as the context grows, uniformly"
)


def make_report(
    families: Rows, worst: Rows, restricted: Rows, examples: Rows, *, seed: int, d_vocab: int, bound: str
) -> Report:
    found = pd.DataFrame(worst)
    groups = by_training(families, restricted)
    points = error_points(pd.DataFrame(families), found)
    laws = {name: fit_power_law(*zip(*series, strict=True), seed=seed) for name, series in points.items()}
    sentences = compare_with_theorem(found, laws, d_vocab)
    return Report(
        title="Transition matrices of other priors than that of training",
        checks=[*check_rates(points, laws), *check_groups(groups), check_fooled(found)],
        results={
            "theorem": THEOREM,
            "exponents": laws,
            "families": families,
            "worst_kernels": worst,
            "restricted": restricted,
            "parting": sentences,
        },
        sections=[
            show_example(longest_of(pd.DataFrame(examples)).iloc[0]),
            Section(
                "The uniform error against length",
                f"Theorem 2, of the model's prediction f: {THEOREM}. The distance to the matrix includes the noise of "
                "counting, of order n_ctx^(-1/2) where every token is seen often; the distance to the frequencies pi^ "
                "along the edges is the model's own.",
                figures={"uniform_error": plot_errors(points, laws)},
            ),
            *show_excesses(groups),
            Section(
                "Theorem beside measurement",
                "Counting noise alone gives n_ctx^(-1/2) where every token is seen often; the theorem says only that f "
                "converges, uniformly over matrices. The search need not find the worst matrix.",
                table=[{"theorem and measurement": text} for text in sentences],
            ),
            Section("The worst matrices found", bound, table=[show_matrix(row) for row in worst]),
        ],
    )


def show_example(one: pd.Series) -> Section:
    """One row of an unseen matrix: the truth, what the sequence shows of it, what the model says."""
    names = {
        "truth": "the row of the matrix",
        "frequencies": "frequencies along the edges of this sequence",
        "model": "the model",
        "edge_posterior": "the edge posterior with the training prior",
    }
    laws = {"truth": one.truth, **one.predicted}
    values = {words: {f"next token {k}": p for k, p in enumerate(laws[name])} for name, words in names.items()}
    return Section(
        "One row of an unseen matrix",
        f"After token {one.query}, in a sequence of n_ctx {one.n_ctx} whose matrix is of the family {one.family!r}, "
        "another than that of training; of 64 the one in which this token occurs most often. A model that has learned "
        "to count along the edges is near the frequencies.",
        figures={"example": figures.plot_groups(values, xlabel="probability")},
    )


def by_training(families: Rows, restricted: Rows) -> dict[str, pd.DataFrame]:
    """The rows of each kind of training, by its words."""
    groups = pd.DataFrame(restricted).groupby("trained_on", sort=False) if restricted else ()
    return {
        "trained on all matrices": pd.DataFrame(families),
        **{f"trained on {name} matrices alone, tested on matrices that this excludes": of for name, of in groups},
    }


def error_points(families: pd.DataFrame, worst: pd.DataFrame) -> dict[str, Series]:
    """(length, largest error) of the reduced model, one a seed, for each of `ERRORS`."""
    sources = {"families": families, **dict(iter(worst.groupby("against")))}
    points = {}
    for name, (source, value) in ERRORS.items():
        rows = sources[source]
        largest = rows[rows.model == REDUCED].groupby(["n_ctx", "seed"])[value].max()
        points[name] = [(n_ctx, error) for (n_ctx, _), error in largest.items()]  # type: ignore[misc]  # two keys
    return points


def in_words(name: str) -> str:
    """One of `ERRORS` as the page calls it."""
    for old, new in ("kernel", "matrix"), ("|f - pi~|", "model to matrix"), ("|f - pi^|", "model to frequencies"):
        name = name.replace(old, new)
    return name


def longest_of(rows: pd.DataFrame, model: str = REDUCED) -> pd.DataFrame:
    """A model's rows at its longest context."""
    of_model = rows[rows.model == model]
    return of_model[of_model.n_ctx == of_model.n_ctx.max()]


def check_rates(points: Mapping[str, Series], laws: Laws) -> Iterator[Check]:
    """Whether each of `ERRORS` falls with the length."""
    for name, law in laws.items():
        means = pd.DataFrame(points[name]).groupby(0)[1].mean()
        yield fall_check(law, f"The largest error, {in_words(name)},", f"{listed(list(means.items()), '.3f')}; ")


def check_groups(groups: Mapping[str, pd.DataFrame]) -> Iterator[Check]:
    """Whether the excess is small at the longest context, and whether models of restricted training see the parents."""
    for words, rows in groups.items():
        at = longest_of(rows)
        model = f"At n_ctx {at.n_ctx.iloc[0]} the reduced model, {words},"
        for key, contexts in EXCESSES.items():
            claim = f"{model} is within {BOUND:g} nats of each family's own edge posterior, {contexts}"
            yield check_bound(at, key, claim)
        if "parent_attention" in at:
            attention = at.parent_attention.iloc[0]
            evidence = f"mean attention to the parent in layer 0 {attention:.4f}"
            yield Check(bool(attention > 0.5), f"{model} attends to the parents", evidence)


def check_bound(rows: pd.DataFrame, key: str, claim: str) -> Check:
    """Whether the excess (means over seeds) is at most BOUND on every family, and on which it is not."""
    means = rows.groupby("family", sort=False)[key].agg(lambda values: values.mean(skipna=False))
    dropped = 1 - rows.groupby("family", sort=False).share_with_all_tokens.mean()
    beyond = means[~(means <= BOUND)]
    evidence = f"holds on all {len(means)} families; most on {means.idxmax()}: {means.max():+.4f} nats"
    if len(beyond):
        shown = ", ".join(f"{family} {nats(value)}" for family, value in beyond.items())
        evidence = f"fails on {len(beyond)} of {len(means)} families: {shown}"
    if key != "excess":
        evidence += f"; some token is absent, and the context left out, in {dropped.min():.0%} to {dropped.max():.0%}"
    return Check(not len(beyond) or "refuted", claim, evidence)


def nats(value: float) -> str:
    """A mean excess; NaN is that of no context."""
    return "no context" if math.isnan(value) else f"{value:+.3f}"


def check_fooled(worst: pd.DataFrame) -> Check:
    """Whether some matrix fools the model much more than the edge posterior with the training prior."""
    longest = longest_of(worst)
    fooled = int((longest.uniform_error > 1.5 * longest.uniform_error_of_edge_posterior).sum())
    return Check(
        not fooled or "refuted",
        f"At n_ctx {longest.n_ctx.iloc[0]} the worst matrix fools the reduced model at most 1.5 times as much as it "
        "fools the edge posterior with the training prior",
        f"{fooled} of {len(longest)} searches at this length found a matrix that fools it more",
    )


def compare_with_theorem(worst: pd.DataFrame, laws: Laws, d_vocab: int) -> list[str]:
    """Rates beside those of the theorem and of counting, and what the searches found; this run's numbers decide."""
    rows = longest_of(worst)
    shares = rows[rows.against == "kernel"].share_of_worst_query
    starved = f"{(shares < 0.5 / d_vocab).sum()} of {len(shares)}"
    means = rows.groupby("against", sort=False).mean(numeric_only=True).iterrows()
    return [
        *(
            f"{name.replace('kernel', 'matrix')}: scales as {scaling(law, 0.0 if 'pi^' in name else -0.5)}"
            for name, law in laws.items()
        ),
        *(
            f"n_ctx {rows.n_ctx.iloc[0]}, search for a large distance to {SEARCHED[against]}: |f - pi~| "
            f"{of.uniform_error:.3f}, |f - pi^| {of.uniform_error_from_frequencies:.3f}; error of the frequencies "
            f"{of.uniform_error_of_frequencies:.3f}, of the edge posterior {of.uniform_error_of_edge_posterior:.3f}"
            for against, of in means
        ),
        f"the query token with the largest |f - pi~| has less than half of an even share of the tokens in {starved}",
    ]


def plot_errors(points: Mapping[str, Series], laws: Laws) -> Axes:
    shown = {name: in_words(name) for name in points}
    fits = {shown[name]: (law.prefactor, law.exponent) for name, law in laws.items() if law is not None}
    bound = ("n_ctx^(-1/2)", 1.5, -0.5)
    points = {shown[name]: series for name, series in points.items()}
    return figures.plot_scaling(points, fits, ylabel="largest error of a probability", bound=bound)


def show_excesses(groups: Mapping[str, pd.DataFrame]) -> list[Section]:
    """The excess on every family, at the longest contexts and by length; a table for each kind of training."""
    (_, families), *restricted = groups.items()
    first = Section(
        "Excess over each family's own edge posterior",
        "The edge posterior of a family is told the family. The Dirichlet families are tested without the bound on "
        "entries that the theorem asks for; all others have it. In each pair of figures first over all contexts, then "
        "over those that hold every token: where one is absent the reduced model says 0, and loses -log(1e-9).",
        figures={**dict(plots_of_excess(groups)), **dict(plots_by_length(families))},
        table=families,
    )
    return [
        first,
        *(
            Section(f"Excess, {words}", "Loss above the edge posterior that is told the family, in nats.", table=rows)
            for words, rows in restricted
        ),
    ]


def plots_of_excess(groups: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, Axes]]:
    """The excess on every family, for each kind of training and model at its longest context; one meaning a figure."""
    for key, contexts in EXCESSES.items():
        excess = {}
        for words, rows in groups.items():
            for model in rows.model.unique():
                longest = longest_of(rows, model)
                name = f"{model.partition(',')[0]}, {words.partition(',')[0]}, n_ctx {longest.n_ctx.iloc[0]}"
                excess[name] = longest.groupby("family", sort=False)[key].mean().dropna().to_dict()
        label = f"loss - family's own edge posterior, {contexts} (nats)"
        yield f"excess_{contexts.replace(' ', '_')}", figures.plot_groups(excess, xlabel=label, levels={"0": 0.0})


def plots_by_length(families: pd.DataFrame) -> Iterator[tuple[str, Axes]]:
    """The reduced model's excess on every family against length: over all contexts, and over those with every token."""
    reduced = families[families.model == REDUCED]
    for key, contexts in EXCESSES.items():
        yield (
            f"excess_by_length_{contexts.replace(' ', '_')}",
            figures.plot_curves(
                curves_of(reduced, "n_ctx", key, "{family}"),
                xlabel="context length n_ctx",
                ylabel=f"loss above the family's own\nedge posterior, {contexts} (nats)",
                levels={"edge posterior": 0.0},
            ),
        )


def show_matrix(row: Mapping[str, Any]) -> dict[str, object]:
    kernel = " / ".join(" ".join(f"{p:.2f}".removeprefix("0") for p in line) for line in row["kernel"])
    return {
        "model": row["model"].split(",")[0],
        "n_ctx": row["n_ctx"],
        "seed": row["seed"],
        "searched for": f"|f - {SEARCHED[row['against']]}|",
        "worst matrix, row by row": kernel.replace(" ", "\u00a0"),
        "|f - pi~|": row["uniform_error"],
        "|f - pi^|": row["uniform_error_from_frequencies"],
        "edge posterior - pi~": row["uniform_error_of_edge_posterior"],
    }
