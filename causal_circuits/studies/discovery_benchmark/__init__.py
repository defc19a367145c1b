"""Which circuit-discovery methods find the latent graph, and asked which question."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
from matplotlib.figure import Figure

import causal_circuits as cc
from causal_circuits import figures
from causal_circuits.circuits import METHODS
from causal_circuits.pages import Check, Section
from causal_circuits.pages.report import State
from causal_circuits.studies.discovery_benchmark.measure import measure
from causal_circuits.studies.discovery_benchmark.subjects import BLIND, GRAPHS, LOW_LOSS, MODELS, make_graph
from causal_circuits.studies.study import Cell, Report, Study, at_least, grid, one_of

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


@dataclass(frozen=True, kw_only=True)
class Config(Study):
    """Whether a method finds the latent graph depends on what it puts in an entry's place, not on cutting alone.

    Seven discovery methods score every attention entry of layer 0, and are held to the graph. All are asked the same:
    what stands in for an entry (nothing; its mean over sequences; its weight on other tokens, or with permuted
    positions), and what is measured (the loss; the divergence from the whole model). Methods with a single gradient are
    not asked by the divergence, whose derivative is zero at the whole model; 'path of embeddings' is EAP and EAP-IG as
    published, between pairs of runs. Effects that differ by less than a millionth of a nat are ties. Edges between
    heads are scored too, and held to the best circuit of every size: of all, where these can be tried, else of those
    known.

    *Planted*: the circuit is written by hand. *Trained*: from a warm start (several parents: from matches). *Adam*: at
    0.1 on everything, from zero. *Decoy*: the planted circuit displaced (`plant_decoy`: a later row does what the
    child's row should do), then trained to the end. No model is left out; `is_decoy` tells which have a loss within
    0.05 nats of the edge posterior and pay the parents less than half of their rows' attention.

        python analyses/discovery_benchmark.py                    # 4 graphs x 4 kinds of model x 2 seeds
        python analyses/discovery_benchmark.py --graphs chain --models planted decoy --seeds 1
    """

    QUICK: ClassVar = {
        "graphs": ("forest", "two-parent"), "n_ctx": 8, "steps": 200, "seeds": 1, "sequences": 256,
        "frontier_sequences": 16, "max_edges": 9
    }  # fmt: skip

    graphs: tuple[str, ...] = GRAPHS  #: of chain, pairs, forest, two-parent
    models: tuple[str, ...] = MODELS  #: of planted, trained, adam, decoy
    methods: tuple[str, ...] = METHODS  #: of exact, attention, gradient_x_attention, eap, eap_ig, acdc, random
    seeds: int = 2  #: runs of each graph and model
    d_vocab: int = 3  #: number of tokens
    n_ctx: int = 20  #: context length
    alpha: float = 0.1  #: Dirichlet concentration of the transition matrices
    steps: int = 1000  #: training steps of 1,024 sequences
    sequences: int = 1024  #: to score entries on
    frontier_sequences: int = 64  #: to try all circuits on
    max_edges: int = 19  #: edges to try all circuits of

    def check(self) -> None:
        one_of(GRAPHS, graphs=self.graphs)
        one_of(MODELS, models=self.models)
        one_of(METHODS, methods=self.methods)
        at_least(1, seeds=self.seeds)
        at_least(2, steps=self.steps)
        at_least(8, sequences=self.sequences, frontier_sequences=self.frontier_sequences)
        at_least(5, n_ctx=self.n_ctx)
        if not 1 <= self.max_edges <= 30:
            raise ValueError(f"--max-edges must lie in 1 .. 30: got {self.max_edges}")
        cc.InContextTask(make_graph("chain", self.n_ctx, 0), d_vocab=self.d_vocab, alpha=self.alpha)

    def cells(self) -> list[Cell]:
        axes = {"graph": self.graphs, "model": self.models, "seed": range(self.seed, self.seed + self.seeds)}
        same = ("methods", "d_vocab", "n_ctx", "alpha", "steps", "sequences", "frontier_sequences", "max_edges")
        return grid(measure, axes, **self.flags(*same))

    def report(self, rows: Mapping[str, Any]) -> Report:
        measured = [row for of_model in rows.values() for row in of_model]
        table = pd.DataFrame(measured)
        return Report(
            title="Which methods find the circuit, and by which question?",
            checks=make_checks(table),
            results={"rows": measured, "timing": {"cpu_s": float(table.drop_duplicates(MODEL).unit_cpu_seconds.sum())}},
            sections=[
                Section(
                    "Methods and models, by what was asked",
                    "A title names what stands in place of an attention entry, and what judges the effect: attention "
                    "and random are asked nothing. AUROC is the chance that an edge of the latent graph scores above "
                    "another entry; a cell has the mean over graphs and seeds and the least of them. In the table also "
                    "the share of rows whose parents score highest. Blank: not a question for that method.",
                    figures=plot_questions(table),
                    table=mean_scores(table, ["auroc", "exact_parent_rate"]),
                ),
                Section(
                    "Edges between heads",
                    "How much worse a method's circuits are than the best of their size, nats: what is cut reads its "
                    "mean over sequences and positions, by the loss, and EAP and EAP-IG compare with that mean; where "
                    "'other tokens' is said, they compare with a run on other tokens, as published.",
                    table=mean_scores(table, ["regret"]),
                ),
                Section("The models", " ".join(loss_lines(table)), table=model_table(table)),
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
        low, blind = (some.excess_over_edge_posterior <= LOW_LOSS).sum(), int(some.is_decoy.sum())
        lines.append(
            f"{kind}: {len(some)} models, none left out; their loss is {excess.min():+.3f} to {excess.max():+.3f} nats "
            f"from the trained model's, which is lower in {(excess > 0).sum()}; {low} are within {LOW_LOSS} "
            f"nats of the edge posterior, {blind} of them with attention to the parents below {BLIND}."
        )
    return lines


def make_checks(rows: pd.DataFrame) -> list[Check]:
    planted = rows[rows.model == "planted"]
    return [*check_planted_first(planted), *check_blind(planted), *check_optimum(planted), *check_decoys(rows)]


def check_planted_first(planted: pd.DataFrame) -> Iterator[Check]:
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
    blind = planted[planted.counterfactual.isin(ON_TOKENS)]
    if len(blind):
        yield Check(
            bool((blind.auroc == 0.5).all()) or "refuted",
            "Against other tokens, or the mean over sequences, no method sees planted attention between positions",
            f"AUROC {blind.auroc.min():.3f} to {blind.auroc.max():.3f} ({', '.join(sorted(set(blind.method)))})",
        )


def check_optimum(planted: pd.DataFrame) -> Iterator[Check]:
    found = planted.drop_duplicates(MODEL).optimum_found
    if len(found):
        yield Check(
            bool(found.all()),
            "On planted circuits the best of all circuits is the planted one, edge for edge",
            f"by the divergence from the whole model, on {int(found.sum())} of {len(found)}",
        )


def check_decoys(rows: pd.DataFrame) -> Iterator[Check]:
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
