"""The job of `discovery_benchmark.py`: a unit is one graph, kind of model and seed; it gives a row for each method.

Not a script. Units are kept in DIR/units: an interrupted run goes on, and a finished one can be added to.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import networkx as nx
import torch
from command_line import BEGAN, OneLineParser
from going_on import Units
from results_file import begin, command_of, versions, write_results
from tqdm import tqdm

import causal_circuits as cc
from causal_circuits import circuits, figures

Row = dict[str, Any]
Unit = tuple[str, str, int]
NOT_CONFIG = ("out", "quiet", "quick")
UNITS = "units"  # in --out
COLUMNS = ("auroc", "auprc", "shd", "exact_parent_rate", "regret", "seconds")
SHOWN = ("graph", "model", "is_decoy", "seed", "method", *COLUMNS)
CUTS = ("exact", "acdc")  # the methods that cut: they score entries by the divergence, which no sampling error can hide
ACDC_THRESHOLD = 1e-3  # nats; an entry is worth a tenth or less of an edge between heads, for which 0.01 is the default
TOO_MANY = 14  # edges whose circuits are all tried where there are more than --max-edges: the rest is found greedily
LOW_LOSS = 0.05  # a decoy's loss is at most so many nats above the edge posterior's ...
BLIND = 0.5  # ... and it pays the parents less than this share of their rows' attention, on average


def run_from_arguments(parser: OneLineParser, arguments: argparse.Namespace) -> int:
    """Measure the units that are not done yet, print the table."""
    try:
        cc.InContextTask(make_graph("chain", arguments.n_ctx, 0), d_vocab=arguments.d_vocab, alpha=arguments.alpha)
        begin(arguments)
        kept = kept_units(arguments, parser.prog)
    except ValueError as error:
        parser.error(str(error))
    rows: list[Row] = []
    hidden = arguments.quiet or not sys.stderr.isatty()
    bar = tqdm(list(units(arguments)), desc="benchmark", unit="model", disable=hidden)
    for unit in bar:
        bar.set_postfix_str(" ".join(map(str, unit)))
        rows += kept.made(" ".join(map(str, unit)), partial(measure, *unit, arguments))
    command = command_of(parser.prog)
    write(rows, arguments, command)
    draw(rows, arguments, command)
    print(table(rows, arguments.out))
    return 0


def units(arguments: argparse.Namespace) -> Iterator[Unit]:
    """Every graph, kind of model and seed."""
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    return product(arguments.graphs, arguments.models, seeds)


def make_graph(name: str, n_ctx: int, seed: int) -> nx.DiGraph:
    """The graph of a name; two-parent: every position has the two before it as parents."""
    if name == "two-parent":
        return cc.ngram_graph(n_ctx, order=2)
    graphs = {"chain": cc.chain_graph, "pairs": cc.pairs_graph}
    return graphs[name](n_ctx) if name in graphs else cc.random_forest(n_ctx, 0.4, seed=seed + 1)


@dataclass(frozen=True)
class Subject:
    """A model to discover the graph in: how it came about, and what its predictions and its attention are."""

    model: Any
    task: cc.InContextTask
    recipe: str
    loss: float
    excess: float
    attention: float

    @classmethod
    def of(cls, model: Any, task: cc.InContextTask, recipe: str, seed: int) -> "Subject":
        """Loss and attention on 8,192 sequences of their own."""
        test = task.sample(8192, seed=(seed, 2))
        loss = float(cc.evaluate(model, test).mean())
        seen = attention_to_parents(model, task, test[:1024])
        return cls(model, task, recipe, loss, loss - task.bayes_loss(test), seen)

    @property
    def is_decoy(self) -> bool:
        """A low loss, and little attention to the parents."""
        return self.excess <= LOW_LOSS and self.attention < BLIND


def make_subject(kind: str, task: cc.InContextTask, steps: int, seed: int) -> Subject:
    """A planted, trained or decoy model; of decoys the first recipe's that is one, or the last's."""
    recipes: dict[str, Sequence[Callable[..., Any]]] = {
        "planted": [planted],
        "trained": [trained_in_turns if max(task.in_degrees) > 1 else trained],
        "decoy": [decoy_from_zero, decoy_displaced],
    }
    for recipe in recipes[kind]:
        subject = Subject.of(recipe(task, steps, seed), task, recipe.__name__, seed)
        if kind != "decoy" or subject.is_decoy:
            break
    return subject


def planted(task: cc.InContextTask, steps: int, seed: int) -> Any:
    """The circuit written by hand."""
    return cc.plant_circuit(task.graph, task.d_vocab)


def trained(task: cc.InContextTask, steps: int, seed: int) -> Any:
    """The default recipe."""
    model = cc.disentangled_transformer(task.d_vocab, task.n_ctx)
    return fit(model, task, cc.TrainConfig(stages=cc.default_stages(steps), seed=seed))


def trained_in_turns(task: cc.InContextTask, steps: int, seed: int) -> Any:
    """A head for each parent, one after the other."""
    model = cc.disentangled_transformer(task.d_vocab, task.n_ctx, (max(task.in_degrees), 1))
    config = cc.TurnConfig(steps=steps, settle=min(60, steps // 8), seed=seed)
    cc.train_in_turns(model, task, config, record=cc.RecordAt(steps=()), progress=False)
    return model


def decoy_from_zero(task: cc.InContextTask, steps: int, seed: int) -> Any:
    """Adam at 0.1 on everything: on many graphs it predicts well before it has found them."""
    model = cc.disentangled_transformer(task.d_vocab, task.n_ctx, (max(task.in_degrees), 1))
    return fit(model, task, cc.TrainConfig.joint(steps, 0.1, warm_start=None, seed=seed))


def decoy_displaced(task: cc.InContextTask, steps: int, seed: int) -> Any:
    """The circuit one row or more too late, and trained on from there."""
    model = cc.plant_decoy(task.graph, task.d_vocab, attention_scale=10.0, match_scale=4.0)
    return fit(model, task, cc.TrainConfig.joint(steps, 0.03, warm_start=None, seed=seed))


def fit(model: Any, task: cc.InContextTask, config: cc.TrainConfig) -> Any:
    """The model, trained; nothing is recorded."""
    cc.train(model, task, config, record=cc.RecordAt(steps=()), progress=False)
    return model


def measure(graph_name: str, kind: str, seed: int, arguments: argparse.Namespace) -> list[Row]:
    """One row for each method."""
    began = time.process_time()
    graph = make_graph(graph_name, arguments.n_ctx, seed)
    task = cc.InContextTask(graph, d_vocab=arguments.d_vocab, alpha=arguments.alpha)
    subject = make_subject(kind, task, arguments.steps, seed)
    few = task.sample(arguments.frontier_sequences, seed=(seed, 5))
    whole = circuits.circuit_model(subject.model, few, seed=seed)
    edges = [circuits.discover(whole, method, seed=seed) for method in arguments.methods]
    n_free = int((~circuits.inert_edges(whole)).sum())
    at_once = arguments.max_edges if n_free <= arguments.max_edges else min(arguments.max_edges, TOO_MANY)
    frontier = circuits.oracle_frontier(whole, max_edges=at_once)
    if not frontier.exact:  # then regret is measured against the best circuit that anybody found
        tried = [found.circuit(size) for found in edges for size in range(len(whole) + 1)]
        frontier = frontier.with_circuits(whole, torch.stack(tried))
    about = {
        "graph": graph_name,
        "model": kind,
        "seed": seed,
        "recipe": subject.recipe,
        "loss": subject.loss,
        "excess_over_edge_posterior": subject.excess,
        "attention_to_parents": subject.attention,
        "is_decoy": subject.is_decoy if kind == "decoy" else None,
        "optimum_found": optimum_found(subject, seed) if kind == "planted" else None,
        "regret_is_exact": frontier.exact,
        "frontier_seconds": frontier.seconds,
        "parents": cc.graph_parents(graph),
    }
    scored = score_entries(subject, task.sample(arguments.sequences, seed=(seed, 3)), arguments.methods, seed)
    about["unit_cpu_seconds"] = time.process_time() - began
    return [
        {"method": method} | about | scored[method] | {"regret": circuits.rank(whole, found, frontier).mean_regret}
        for method, found in zip(arguments.methods, edges, strict=True)
    ]


def score_entries(subject: Subject, batch: cc.Batch, methods: Sequence[str], seed: int) -> dict[str, Row]:
    """Each method's scores of layer 0's entries, held to the graph, by its own metric; exact also by the loss."""
    parts = {
        metric: circuits.entry_model(subject.model, batch, metric=metric, seed=seed)
        for metric in ("loss", "kl_to_model")
    }

    def scores_by(metric: str, method: str) -> tuple[circuits.GraphScores, float]:
        one = circuits.discover(parts[metric], method, threshold=ACDC_THRESHOLD, seed=seed)
        return circuits.score_against_graph(parts[metric].matrices(one.score), subject.task.graph), one.seconds

    found = {}
    for method in methods:
        metric = "kl_to_model" if method in CUTS else "loss"
        scores, seconds = scores_by(metric, method)
        found[method] = {
            "metric": metric,
            "auroc": scores.auroc,
            "auprc": scores.auprc,
            "shd": scores.shd,
            "exact_parent_rate": scores.exact_parent_rate,
            "auroc_children": scores.auroc_children,
            "auroc_by_loss": scores_by("loss", method)[0].auroc if method == "exact" else None,
            "seconds": seconds,
        }
    return found


def optimum_found(subject: Subject, seed: int) -> bool:
    """Whether the best of all circuits, by the divergence from the model, is the planted one, edge for edge."""
    batch = subject.task.sample(64, seed=(seed, 5))  # with very few, an edge may not come into play
    whole = circuits.circuit_model(subject.model, batch, metric="kl_to_model", seed=seed)
    frontier, planted_edges = circuits.oracle_frontier(whole), ~circuits.inert_edges(whole)
    return frontier.exact and bool(frontier.masks[frontier.best_size].equal(planted_edges))


def attention_to_parents(model: Any, task: cc.InContextTask, batch: cc.Batch) -> float:
    """The mean weight of layer 1's attention on the edges of the graph, the largest over heads: no effect enters it."""
    entries = [(0, child, parent) for child, parent in cc.graphs.attention_cells(task.graph)]
    pattern = cc.knock_out_edges(model, batch, entries=entries[:1]).attention.amax(dim=0)
    return fmean(float(pattern[child, parent]) for _, child, parent in entries)


def counted(rows: list[Row]) -> list[Row]:
    """The rows that count: where the decoy recipe gave no decoy (it learned the graph, or predicts badly), none."""
    return [row for row in rows if row["is_decoy"] is not False]


def no_decoys(rows: list[Row]) -> list[str]:
    """A line for each graph and seed on which the decoy recipe gave no decoy, and why."""
    failed = {(row["graph"], row["seed"]): row for row in rows if row["is_decoy"] is False}
    return [
        f"no decoy for {graph}, seed {seed}: loss {row['excess_over_edge_posterior']:+.3f} nats from the edge "
        f"posterior ({LOW_LOSS} allowed), attention to the parents {row['attention_to_parents']:.2f} "
        f"(must be below {BLIND})"
        for (graph, seed), row in failed.items()
    ]


def kept_units(arguments: argparse.Namespace, program: str) -> Units:
    """What earlier calls measured: it stays, so that more graphs, models and seeds can be asked for."""
    path = arguments.out / "results.json"
    if path.exists() and not any((arguments.out / UNITS).glob("unit_*.json")):
        raise ValueError(f"--out must be empty or hold a run of this benchmark: {path} has no {UNITS}/ beside it")
    return Units.of(program, arguments, folder=UNITS, free=("graphs", "models", "seeds", "seed", "quick"))


def config(arguments: argparse.Namespace) -> dict[str, Any]:
    """The flags that decide numbers."""
    return {name: value for name, value in vars(arguments).items() if name not in NOT_CONFIG}


def write(rows: list[Row], arguments: argparse.Namespace, command: str) -> None:
    """results.json, in one piece."""
    content = {
        "command": command,
        "config": config(arguments),
        "versions": versions(),
        "rows": rows,
        "timing": {"wall_s_of_last_start": time.perf_counter() - BEGAN, "cpu_s": cpu_seconds(rows)},
    }
    write_results(circuits.plain_values(content), arguments.out)


def draw(rows: list[Row], arguments: argparse.Namespace, command: str) -> None:
    """The figure and the page."""
    folder = arguments.out / "figures"
    figures.save_figure(figures.plot_benchmark(counted(rows)), folder / "benchmark")
    sentence = (
        "A dot for each graph and seed, a bar at the mean. Top: the chance that a method scores an edge of the latent "
        "graph above another attention entry. Middle: in how many rows the parents score highest. Bottom: how much "
        "worse its circuits are than the best of their size. On decoys a good method finds no edges, for none are used."
    )
    sentence = " ".join([sentence, *(f"Left out: {line}." for line in no_decoys(rows))])
    shown = figures.figure_html(folder / "benchmark", alt=sentence)
    models = figures.table_html(model_rows(rows), caption="Every model")
    listed = figures.table_html([{name: row[name] for name in SHOWN} for row in rows], caption="Every row")
    figures.write_report(
        arguments.out / "report.html",
        title="Which methods find the circuit?",
        verdict=verdict(rows),
        sections=[
            figures.Section("Methods, held to the truth", sentence, shown, command),
            figures.Section(
                "The models", "A low loss is no sign of the graph: decoys predict as well.", models, command
            ),
            figures.Section(
                "Every number", "Regret in nats; seconds are those of scoring all entries.", listed, command
            ),
        ],
        meta={"command": command, "CPU time of all models": f"{cpu_seconds(rows):.0f} s", **versions()},
    )


def one_a_model(rows: list[Row]) -> list[Row]:
    """The first row of every unit."""
    return list({(row["graph"], row["model"], row["seed"]): row for row in reversed(rows)}.values())[::-1]


def model_rows(rows: list[Row]) -> list[Row]:
    """One row for each model: how it came about, its loss, its attention."""
    return [
        {
            "graph": row["graph"],
            "model": row["model"],
            "seed": row["seed"],
            "recipe": row["recipe"].replace("_", " "),
            "loss above edge posterior (nats)": round(row["excess_over_edge_posterior"], 4),
            "attention to parents": round(row["attention_to_parents"], 3),
            "is a decoy": {None: "", True: "yes", False: "no: not counted"}[row["is_decoy"]],
        }
        for row in one_a_model(rows)
    ]


def cpu_seconds(rows: list[Row]) -> float:
    """Of all units together, whenever they ran."""
    return sum(row["unit_cpu_seconds"] for row in one_a_model(rows))


def verdict(rows: list[Row]) -> list[figures.Check]:
    """What the rows say about planted circuits, and about decoys."""
    checks = []
    exact = [row for row in counted(rows) if row["method"] == "exact"]
    planted = [row for row in exact if row["model"] == "planted"]
    if planted:
        least = min(row["auroc"] for row in planted)
        checks.append(
            figures.Check(
                least == 1.0, "On planted circuits exact knock-out finds every edge", f"AUROC {least:.3f} at least"
            )
        )
        checks.append(
            figures.Check(
                all(row["optimum_found"] for row in planted),
                "On planted circuits the best of all circuits is the planted one, edge for edge",
                f"by the divergence from the whole model, on {sum(row['optimum_found'] for row in planted)} of "
                f"{len(planted)}",
            )
        )
    rates = {kind: [row["exact_parent_rate"] for row in exact if row["model"] == kind] for kind in ("trained", "decoy")}
    if all(rates.values()):
        checks.append(
            figures.Check(
                min(rates["trained"]) > max(rates["decoy"]),
                "Exact knock-out tells every model that learned the graph from every one that only predicts well",
                f"parents are the entries that cost most in {min(rates['trained']):.0%} of rows or more (trained), "
                f"{max(rates['decoy']):.0%} or less (decoys)",
            )
        )
    return checks


def table(rows: list[Row], out: Path) -> str:
    """Means over graphs and seeds, a line for each kind of model and method."""
    kept = counted(rows)
    lines = ["model    method                 AUROC  AUPRC    SHD  exact parents  regret  seconds"]
    for kind, method in dict.fromkeys((row["model"], row["method"]) for row in kept):
        some = [row for row in kept if (row["model"], row["method"]) == (kind, method)]
        mean = {name: fmean(row[name] for row in some) for name in COLUMNS}
        lines.append(
            f"{kind:8s} {method:21s} {mean['auroc']:6.3f} {mean['auprc']:6.3f} {mean['shd']:6.1f} "
            f"{mean['exact_parent_rate']:14.0%} {mean['regret']:7.4f} {mean['seconds']:8.3f}"
        )
    for kind in dict.fromkeys(row["model"] for row in kept):
        excess = fmean(row["excess_over_edge_posterior"] for row in kept if row["model"] == kind)
        lines.append(f"{kind:8s} test loss {excess:+.4f} nats from the edge posterior")
    lines += no_decoys(rows)
    lines.append(f"time     {cpu_seconds(rows):.0f} CPU seconds for {len(one_a_model(rows))} models")
    lines.append(f"look at  {out / 'report.html'}")
    return "\n".join(lines)
