"""What the rows of `discovery_benchmark` add up to; every sentence is made of them, and may come out either way."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from causal_circuits import figures
from causal_circuits.pages import Check, Section
from causal_circuits.pages.report import State
from causal_circuits.studies.discovery_benchmark.subjects import BLIND, LOW_LOSS
from causal_circuits.studies.study import Report

NAMES = {
    "zero": "zero",
    "mean": "mean over sequences",
    "resample": "other tokens",
    "permute": "permuted positions",
    "pairs": "other tokens, path of embeddings",
    "loss": "loss",
    "kl_to_model": "KL to the model",
}
ON_TOKENS = ("mean", "resample", "pairs")  # what cannot move attention that depends on positions alone
DRAWN = (("zero", "kl_to_model"), ("zero", "loss"), ("resample", "loss"), ("permute", "kl_to_model"))
MODEL = ["graph", "model", "seed"]
QUESTION = ["method", "counterfactual", "metric"]
SCORES = ["auroc", "auprc", "shd", "exact_parent_rate", "regret", "seconds"]


def make_report(measured: Sequence[Mapping[str, Any]]) -> Report:
    rows = pd.DataFrame(measured)
    seconds = float(rows.drop_duplicates(MODEL).unit_cpu_seconds.sum())
    entries, regrets = mean_scores(rows, ["auroc", "exact_parent_rate"]), mean_scores(rows, ["regret"])
    return Report(
        title="Which methods find the circuit, and by which question?",
        checks=make_checks(rows),
        results={"rows": measured, "timing": {"cpu_s": seconds}},
        sections=[
            Section(
                "Methods and models, by what was asked",
                "A title names what stands in place of an attention entry, and what judges the effect: attention and "
                "random are asked nothing. AUROC is the chance that an edge of the latent graph scores above another "
                "entry; a cell has the mean over graphs and seeds and the least of them. In the table also the share "
                "of rows whose parents score highest. Same sequences for all; blank: not a question for that method.",
                figures=plot_questions(rows),
                table=entries,
            ),
            Section(
                "Edges between heads",
                "How much worse a method's circuits are than the best of their size, nats: what is cut reads its mean "
                "over sequences and positions, by the loss, and EAP and EAP-IG compare with that mean; where 'other "
                "tokens' is said, they compare with a run on other tokens, as published.",
                table=regrets,
            ),
            Section("The models", " ".join(loss_lines(rows)), table=model_table(rows)),
            Section(
                "Every number",
                "Regret in nats; seconds are those of scoring all entries.",
                table=rows[[*MODEL, *QUESTION, *SCORES]],
            ),
        ],
    )


def asked(rows: pd.DataFrame, method: str, counterfactual: str = "zero", metric: str = "kl_to_model") -> pd.DataFrame:
    """A method's rows of one question; without more words that of exact knock-out: set to zero, by the divergence."""
    return rows[(rows.method == method) & (rows.counterfactual == counterfactual) & (rows.metric == metric)]


def plot_questions(rows: pd.DataFrame) -> dict[str, Figure]:
    panels = {}
    for counterfactual, metric in DRAWN:
        same = (rows.counterfactual == counterfactual) & (rows.metric == metric)
        if same.any():
            question = f"{NAMES[counterfactual]}; {NAMES[metric]}"
            panels[question] = rows[same | rows.metric.isna()].dropna(subset="auroc").to_dict("records")
    return {"benchmark": figures.plot_benchmark(panels)} if panels else {}


def mean_scores(rows: pd.DataFrame, scores: list[str]) -> pd.DataFrame:
    """A line for each method and question: means over graphs and seeds for every kind of model."""
    named = rows.assign(**{name: rows[name].map(NAMES).fillna("-") for name in QUESTION[1:]})
    means = named.dropna(subset=scores).groupby([*QUESTION, "model"], sort=False)[scores].mean().round(3)
    table = means.unstack("model", sort=False).swaplevel(axis=1)
    table.columns = [f"{kind}: {score.replace('_', ' ')}" for kind, score in table.columns]
    return table.reset_index().rename(columns={"counterfactual": "in place of an entry"})


def model_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each model: how it came about, its loss, its attention, its parents by exact knock-out."""
    names = {
        "recipe": "recipe",
        "excess_over_edge_posterior": "loss above edge posterior (nats)",
        "attention_to_parents": "attention to parents",
        "is_decoy": f"loss < +{LOW_LOSS}, attention < {BLIND}",
    }
    models = rows.drop_duplicates(MODEL).set_index(MODEL)[list(names)].rename(columns=names)
    exact = asked(rows, "exact").set_index(MODEL).exact_parent_rate
    return models.join(exact.rename("exact parents (exact, zero, KL)")).reset_index()


def loss_lines(rows: pd.DataFrame) -> list[str]:
    """What the losses say of models of the same graph and seed, on the same test sequences."""
    models, lines = rows.drop_duplicates(MODEL), []
    trained = models[models.model == "trained"][["graph", "seed", "loss"]]
    for kind in ("adam", "decoy"):
        some = models[models.model == kind].merge(trained, on=["graph", "seed"], suffixes=("", "_trained"))
        if some.empty:
            continue
        excess = some.loss - some.loss_trained
        low, blind = (some.excess_over_edge_posterior <= LOW_LOSS).sum(), some.is_decoy.sum()
        lines.append(
            f"{kind}: {len(some)} models, none left out; their loss is {excess.min():+.3f} to {excess.max():+.3f} nats "
            f"from the trained model's, which is lower in {(excess > 0).sum()}; {low} are within {LOW_LOSS} "
            f"nats of the edge posterior, {blind} of them with attention to the parents below {BLIND}."
        )
    return lines


def make_checks(rows: pd.DataFrame) -> list[Check]:
    """What the rows say of planted models, of questions, and of models that predict without the graph."""
    planted = rows[rows.model == "planted"]
    return [*check_planted_first(planted), *check_blind(planted), *check_optimum(planted), *check_decoys(rows)]


def check_planted_first(planted: pd.DataFrame) -> Iterator[Check]:
    """Whether planted edges score above all other entries, by cutting and by integrated gradients."""
    several = planted.graph == "two-parent"
    for method, judged, claim in (
        ("exact", planted, "Exact knock-out (zero, divergence) puts every planted edge first"),
        (
            "eap_ig",
            planted[~several],
            "Integrated gradients, asked the same (zero, divergence), put every edge of planted forests first",
        ),
    ):
        least, other = asked(judged, method).auroc.min(), asked(planted[several], method).auroc.min()
        more = f"; with two parents {other:.3f}" if other == other else ""
        if least == least:
            otherwise: State = "failed" if method == "exact" else "refuted"  # the reference, and what is asked about
            yield Check(bool(least == 1.0) or otherwise, claim, f"AUROC {least:.3f} at least{more}")


def check_blind(planted: pd.DataFrame) -> Iterator[Check]:
    """Whether what varies tokens alone tells nothing of attention between positions."""
    blind = planted[planted.counterfactual.isin(ON_TOKENS)]
    if len(blind):
        yield Check(
            bool((blind.auroc == 0.5).all()) or "refuted",
            "Against other tokens, or the mean over sequences, no method sees planted attention between positions",
            f"AUROC {blind.auroc.min():.3f} to {blind.auroc.max():.3f} ({', '.join(sorted(set(blind.method)))})",
        )


def check_optimum(planted: pd.DataFrame) -> Iterator[Check]:
    """Whether the best of all circuits is the planted one."""
    found = planted.drop_duplicates(MODEL).optimum_found
    if len(found):
        yield Check(
            bool(found.all()),
            "On planted circuits the best of all circuits is the planted one, edge for edge",
            f"by the divergence from the whole model, on {found.sum()} of {len(found)}",
        )


def check_decoys(rows: pd.DataFrame) -> Iterator[Check]:
    """Whether exact knock-out separates trained models from decoys, all of them counted."""
    cut = asked(rows, "exact")
    trained, decoys, adam = (cut[cut.model == kind].exact_parent_rate for kind in ("trained", "decoy", "adam"))
    if len(trained) and len(decoys):
        more = f"; Adam from zero: {adam.min():.0%} to {adam.max():.0%}" if len(adam) else ""
        yield Check(
            bool(trained.min() > decoys.max()) or "refuted",
            "Exact knock-out tells models trained by the recipe from those that began with the graph in other rows",
            f"parents are the entries that cost most in {trained.min():.0%} of rows or more (trained), "
            f"{decoys.max():.0%} or less (all {len(decoys)} decoys, none selected){more}",
        )
