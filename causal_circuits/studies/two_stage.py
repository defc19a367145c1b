"""Algorithm 1 stage by stage: the graph in stage 1, the loss in stage 2, rates beside Theorem 1's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch
from matplotlib.axes import Axes

import causal_circuits as cc
from causal_circuits import figures
from causal_circuits.pages import Check, Section
from causal_circuits.studies import algorithm_1, tables
from causal_circuits.studies.algorithm_1 import GRADIENT_DESCENT, VARIANTS
from causal_circuits.studies.power_laws import PowerLaw, fall_check, fit_power_law, scaling
from causal_circuits.studies.study import Cell, Report, Study, at_least, grid, one_of
from causal_circuits.studies.tables import GRAPHS, curves_of, dots_of, listed

Row = Mapping[str, Any]
Laws = Mapping[str, Mapping[str, PowerLaw | None]]
QUANTITIES = {
    "missed_attention": "1 - attention to the parent, mean over edges, after stage 1",
    "loss_gap": "loss - entropy, after stage 2 (nats)",
}
THEOREM = {
    "missed_attention": "softmax(A1)_{i, p(i)} >= 1 - O(1 / n_ctx)",
    "loss_gap": "loss - L*, the entropy, falls like a power of the (effective) length",
}
AUTHORS = 0.8366  # mean parent attention the authors' notebook prints for Figure 9 (SGD, all parameters at once)


@dataclass(frozen=True, kw_only=True)
class Config(Study):
    """Algorithm 1 learns the graph in stage 1 and lowers the loss in stage 2; its rates beside Theorem 1's.

    Stage 1 moves layer 0's attention alone (the paper's A1) while layer 1 is beta0 times the identity; stage 2 moves
    layer 1 alone. In the paper's reduced model by gradient descent, as in the theorem, and by Adam; in the full
    disentangled transformer by Adam. The step size of gradient descent grows as n_ctx^2, and the first rate is one of
    that choice: with a step size that grows as n_ctx, attention does not come closer to the parent in longer contexts.
    Measured at several context lengths and seeds, and after stage 1 on the 20 graphs of Figure 9:

        1 - softmax(A1)_{i, p(i)}    theorem: O(1 / n_ctx)
        loss - L*, L* the entropy    theorem: a power of the (effective) length

        python analyses/two_stage.py                                  # about three minutes
        python analyses/two_stage.py --lengths 20 40 80 --seeds 5 --graph forest
    """

    QUICK: ClassVar = {
        "lengths": (8, 20), "seeds": 1, "steps": (60, 60), "batch_size": 128, "test": 1024, "figure_9": 1
    }  # fmt: skip

    lengths: tuple[int, ...] = (10, 20, 40, 80, 160)  #: context lengths
    seeds: int = 3  #: runs at each length
    graph: str = "chain"  #: chain, pairs or forest
    d_vocab: int = 3  #: number of tokens
    alpha: float = 1.0  #: Dirichlet concentration of the transition matrices (1: uniform rows)
    steps: tuple[int, int] = (100, 200)  #: of stage 1 and stage 2
    batch_size: int = 512  #: sequences a step
    test: int = 4096  #: test sequences
    figure_9: int = 20  #: graphs of Figure 9

    def check(self) -> None:
        at_least(1, seeds=self.seeds, steps=self.steps, batch_size=self.batch_size)
        at_least(2, test=self.test)
        at_least(0, figure_9=self.figure_9)
        one_of(GRAPHS, graph=self.graph)
        tables.check_lengths(self.lengths)
        for n_ctx in self.lengths:
            if not cc.latent_edges(make_task(self.graph, n_ctx, self.d_vocab, self.alpha).graph):
                raise ValueError(f"--graph {self.graph} has no edge at n_ctx {n_ctx}: choose a longer context")

    def cells(self) -> list[Cell]:
        """A forest of Figure 9 and a variant each; then a length, a seed and a variant each."""
        variants, seeds = [variant.name for variant in VARIANTS], range(self.seed, self.seed + self.seeds)
        forests = {"graph": range(min(self.figure_9, 20)), "variant": variants}
        runs = {"n_ctx": self.lengths, "seed": seeds, "variant": variants}
        same = self.flags("graph", "d_vocab", "alpha", "steps", "batch_size", "test")
        return [*grid(measure_forest, forests, seed=self.seed), *grid(measure_run, runs, **same)]

    def report(self, rows: Mapping[str, Row]) -> Report:
        forests = [row for row in rows.values() if "parents_row_maximum" in row]
        measured = [row for row in rows.values() if "loss_gap" in row]
        runs = pd.DataFrame(measured)
        laws, on_forests = fit(runs, self.seed), summarize_forests(forests)
        return Report(
            title="Two stages of gradient descent: Theorem 1 beside measurement",
            checks=make_checks(runs, laws, on_forests),
            results={
                "theorem": THEOREM,
                "exponents": laws,
                "parting": [words for quantity in QUANTITIES for words in rates(laws, quantity)],
                "lengths": [{key: value for key, value in row.items() if key != "losses"} for row in measured],
                "figure_9": forests,
                "figure_9_summary": on_forests,
            },
            sections=[
                show_one(runs),
                *([show_forests(pd.DataFrame(forests))] if forests else []),
                Section(
                    "Attention to the parent against length",
                    f"Theorem 1: {THEOREM['missed_attention']}; the dotted line is 1 / n_ctx.",
                    figures={"missed_attention": plot_quantity(runs, "missed_attention", laws)},
                ),
                Section(
                    "The loss gap against length",
                    f"Theorem 1: {THEOREM['loss_gap']}; the edge posterior is what counting along the true edges "
                    "gives. Where some token is absent from a context the reduced model says 0.",
                    figures={"loss_gap": plot_quantity(runs, "loss_gap", laws)},
                    table=runs.drop(columns=["trajectory", "losses"]),
                ),
            ],
        )


def make_task(graph: str, n_ctx: int, d_vocab: int, alpha: float) -> cc.InContextTask:
    return cc.InContextTask(tables.make_graph(graph, n_ctx), d_vocab=d_vocab, alpha=alpha)


def measure_run(
    variant: str, n_ctx: int, seed: int, steps: Sequence[int], batch_size: int, test: int, **of_task: Any
) -> Row:
    """Both stages of one run: attention after stage 1, loss gap after each stage."""
    task, how = make_task(n_ctx=n_ctx, **of_task), algorithm_1.variant(variant)
    model, test_batch = algorithm_1.empty_model(how, task), task.sample(test, seed=(seed, 2))
    entropy = cc.tasks.cross_entropy(test_batch.target_probs, test_batch.target_probs)
    at = cc.RecordAt(n_log_spaced=12).within(steps[0]) if how.reduced else ()
    sizes: Any = {"batch_size": batch_size, "seed": seed}
    record = algorithm_1.run_stage(1, how, model, task, steps[0], record_steps=at, **sizes)
    # A1's softmax is the same for all sequences; in the full model attention is averaged over some.
    tokens = task.sample(16 if how.reduced else 128, seed=(seed, 3)).tokens
    missed = 1.0 - cc.graphs.parent_attention(cc.mean_attention(model, tokens)[0, 0], task.graph).double()
    after_stage_1 = cc.evaluate(model, test_batch) - entropy
    second = algorithm_1.run_stage(2, how, model, task, steps[1], **sizes)
    gaps = cc.evaluate(model, test_batch) - entropy
    whole = algorithm_1.has_every_token(test_batch.tokens, task.d_vocab)
    return {
        "variant": variant,
        "n_ctx": n_ctx,
        "seed": seed,
        "missed_attention": float(missed.mean()),
        "most_missed_attention": float(missed.max()),
        "loss_gap_after_stage_1": float(after_stage_1.mean()),
        "loss_gap": float(gaps.mean()),
        "loss_gap_with_all_tokens": float(gaps[whole].mean()),
        "edge_posterior_gap": task.bayes_loss(test_batch) - float(entropy.mean()),
        "match_strength": algorithm_1.match_strength(model) if how.reduced else float("nan"),
        "share_without_some_token": 1.0 - float(whole.double().mean()),
        "losses": torch.cat([record.losses, second.losses]).tolist() if how == GRADIENT_DESCENT else [],
        "trajectory": [
            [step, float(1 - cc.graphs.parent_attention(attention[0, 0], task.graph).mean())]
            for step, attention in zip(record.steps, [] if record.attention is None else record.attention, strict=False)
        ],
    }


def measure_forest(variant: str, graph: int, seed: int) -> Row:
    """Attention to the parents after stage 1 alone, on a forest of Figure 9 at (d_vocab 3, n_ctx 20, alpha .1)."""
    task = cc.InContextTask(cc.graph_from_parents(tables.figure_9_parents()[graph]), d_vocab=3, alpha=0.1)
    how = algorithm_1.variant(variant)
    tokens, model = task.sample(2048, seed=(seed, 4, graph)).tokens, algorithm_1.empty_model(how, task)
    algorithm_1.run_stage(1, how, model, task, 100, batch_size=1024, seed=seed)
    pattern = cc.mean_attention(model, tokens[: 16 if how.reduced else 2048])[0, 0]
    attention = cc.graphs.parent_attention(pattern, task.graph)
    return {
        "graph": graph,
        "variant": variant,
        "edges": len(attention),
        "mean_parent_attention": float(attention.mean()),
        "min_parent_attention": float(attention.min()),
        "parents_row_maximum": tables.parents_first(pattern, task.graph),
    }


def fit(runs: pd.DataFrame, seed: int) -> Laws:
    def law(rows: pd.DataFrame, quantity: str) -> PowerLaw | None:
        return fit_power_law(rows.n_ctx.tolist(), rows[quantity].tolist(), seed=seed)

    laws = {v.name: {name: law(runs[runs.variant == v.name], name) for name in QUANTITIES} for v in VARIANTS}
    same_tests = runs[runs.variant == VARIANTS[0].name]  # the same test sets for all variants
    return {**laws, "edge posterior": {"loss_gap": law(same_tests, "edge_posterior_gap")}}


def summarize_forests(forests: Sequence[Row]) -> dict[Any, dict[str, Any]]:
    """For each variant: the least mean attention over graphs, and how many graphs reach .99."""
    if not forests:
        return {}
    rows = pd.DataFrame(forests)
    return (
        rows.assign(at_least_99=rows.mean_parent_attention >= 0.99)
        .groupby("variant", sort=False)
        .agg(
            graphs=("graph", "size"),
            graphs_at_least_99=("at_least_99", "sum"),
            mean=("mean_parent_attention", "mean"),
            least_graph=("mean_parent_attention", "min"),
            least_edge=("min_parent_attention", "min"),
            parents_row_maximum=("parents_row_maximum", "sum"),
            edges=("edges", "sum"),
        )
        .to_dict("index")
    )


def rates(laws: Laws, quantity: str) -> list[str]:
    """How a quantity of each variant scales, beside the theorem's power of 1 - attention, -1."""
    return [
        f"{name}: {quantity} scales as {scaling(of[quantity], -1.0)}" for name, of in laws.items() if quantity in of
    ]


def make_checks(runs: pd.DataFrame, laws: Laws, on_forests: Mapping[str, Row]) -> list[Check]:
    checks = [
        Check(
            of["graphs_at_least_99"] == of["graphs"],
            f"{name}: after stage 1 the mean attention to the parent is at least .99 on every Figure-9 graph",
            f"{of['graphs_at_least_99']} of {of['graphs']} graphs at .99 or more; mean {of['mean']:.4f}, least "
            f"{of['least_graph']:.4f}, least edge {of['least_edge']:.3f}",
        )
        for name, of in on_forests.items()
    ]
    for name, of in runs.groupby("variant", sort=False):
        means, law = of.groupby("n_ctx").mean(numeric_only=True), laws[str(name)]
        scaled, lowered = means.index * means.missed_attention, of.loss_gap < of.loss_gap_after_stage_1
        checks += [
            Check(
                bool(scaled.max() <= 1.0) or "refuted",
                f"{name}: 1 - attention to the parent is at most 1 / n_ctx at every length",
                f"{listed(means.missed_attention, '.2g')}; largest n_ctx (1 - attention) {scaled.max():.3f}, at n_ctx "
                f"{scaled.idxmax()}; exponent {law['missed_attention']}",
            ),
            Check(
                bool(lowered.all()),
                f"{name}: stage 2 lowers the loss in every run",
                f"in {lowered.sum()} of {len(of)}; mean gap by n_ctx after stage 1 "
                f"{listed(means.loss_gap_after_stage_1)}; after stage 2 {listed(means.loss_gap)}; edge posterior "
                f"{listed(means.edge_posterior_gap)}",
            ),
            fall_check(law["loss_gap"], f"{name}: the loss gap"),
        ]
    return checks


def show_one(runs: pd.DataFrame) -> Section:
    descent = runs[(runs.variant == GRADIENT_DESCENT.name) & (runs.seed == runs.seed.iloc[0])]
    one = descent.iloc[descent.n_ctx.argmax()]
    missed = {f"n_ctx {run.n_ctx}": [(step, y) for step, y in run.trajectory if step] for run in descent.itertuples()}
    losses = pd.Series(one.losses, index=range(1, len(one.losses) + 1)).rolling(9, min_periods=1).mean()[::9]
    attention = figures.plot_curves(missed, xlabel="step of stage 1", ylabel="1 - attention to the parent", log_y=True)
    label = "loss, mean of 9 steps (nats)"
    loss = figures.plot_curves({"": list(losses.items())}, xlabel="step", ylabel=label, legend=False)
    loss.axvline(one.trajectory[-1][0], color="black", linewidth=0.8)
    return Section(
        "The two stages",
        "Stage 1 moves layer 0's attention alone: it is the graph that is learned there. Stage 2, right of the line, "
        f"moves layer 1 alone: that is where the loss may fall. Gradient descent in the paper's reduced model, seed "
        f"{one.seed}; the loss is that of n_ctx {one.n_ctx}.",
        figures={"stage_1": attention, "one_run": loss},
    )


def show_forests(forests: pd.DataFrame) -> Section:
    named = forests.assign(graph="graph " + forests.graph.astype(str))
    attention = dots_of(named, "graph", "mean_parent_attention", "variant")
    levels = {".99": 0.99, "authors' joint SGD, mean": AUTHORS}
    return Section(
        "Stage 1 on the graphs of Figure 9",
        "Every mark should lie right of .99: 100 steps of 1,024 sequences on layer 0's attention alone, d_vocab 3, "
        "n_ctx 20, alpha .1. The other line is the mean that the authors recorded for training both layers at once.",
        figures={"figure_9": figures.plot_groups(attention, xlabel="mean attention to the parent", levels=levels)},
        table=forests,
    )


def plot_quantity(runs: pd.DataFrame, quantity: str, laws: Laws) -> Axes:
    points = curves_of(runs, "n_ctx", quantity, "{variant}", mean=False)
    bound = ("1 / n_ctx", 1.0, -1.0) if quantity == "missed_attention" else None
    if quantity == "loss_gap":
        points |= curves_of(runs, "n_ctx", "edge_posterior_gap", "edge posterior")
    found = {name: laws[name][quantity] for name in points}
    fits = {name: (law.prefactor, law.exponent) for name, law in found.items() if law is not None}
    return figures.plot_scaling(points, fits, ylabel=QUANTITIES[quantity].replace(", ", "\n", 1), bound=bound)
