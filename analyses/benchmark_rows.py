"""The job of `discovery_benchmark.py`: a unit is one graph, kind of model and seed.

A unit gives a row for each method, counterfactual and metric. Not a script. Units are kept in DIR/units: an interrupted
run goes on, and a finished one can be added to.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from benchmark_subjects import Subject, make_graph, make_subject
from command_line import BEGAN, OneLineParser
from going_on import Units
from results_file import begin, command_of, versions, write_results
from tqdm import tqdm

import causal_circuits as cc
from causal_circuits import circuits

Row = dict[str, Any]
Unit = tuple[str, str, int]
Question = tuple[str | None, str | None]  # counterfactual, metric; None: the method has none
NOT_CONFIG = ("out", "quiet", "quick")
UNITS, FORMAT = "units", 2  # in --out; 2: a row for each counterfactual and metric
COUNTERFACTUALS = ("zero", "mean", "resample", "permute")
METRICS = ("loss", "kl_to_model")
PAIRS = ("pairs", "loss")  # gradients between two runs' embeddings, as EAP and EAP-IG are published
OF_EDGES = ("mean", "loss")  # the question that is asked of edges between heads, for regret
ACDC_THRESHOLD = 1e-3  # nats; an entry is worth a tenth or less of an edge between heads, for which 0.01 is the default
ROUNDING = 1e-6  # nats: effects that differ by less are ties
TOO_MANY = 14  # edges whose circuits are all tried where there are more than --max-edges: the rest is found greedily


def run_from_arguments(parser: OneLineParser, arguments: argparse.Namespace) -> int:
    """Measure the units that are not done yet, print the table."""
    from benchmark_page import draw, table

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
    draw(rows, arguments.out, command)
    print(table(rows, arguments.out))
    return 0


def units(arguments: argparse.Namespace) -> Iterator[Unit]:
    """Every graph, kind of model and seed."""
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    return product(arguments.graphs, arguments.models, seeds)


def questions(method: str) -> list[Question]:
    """The counterfactuals and metrics that make sense for a method.

    The derivative of the divergence from the whole model is zero at the whole model, so methods with one gradient,
    taken there, are asked by the loss alone; gradient x attention is EAP against zero. Attention has no question.
    """
    if method in ("attention", "random"):
        return [(None, None)]
    if method == "gradient_x_attention":
        return [("zero", "loss")]
    metrics = METRICS[:1] if method == "eap" else METRICS
    return [*product(COUNTERFACTUALS, metrics), *([PAIRS] if method in ("eap", "eap_ig") else [])]


def measure(graph_name: str, kind: str, seed: int, arguments: argparse.Namespace) -> list[Row]:
    """One row for each method, counterfactual and metric."""
    began = time.process_time()
    graph = make_graph(graph_name, arguments.n_ctx, seed)
    task = cc.InContextTask(graph, d_vocab=arguments.d_vocab, alpha=arguments.alpha)
    subject = make_subject(kind, task, arguments.steps, seed)
    regrets, frontier = regrets_between_heads(subject, arguments, seed)
    about = {
        "graph": graph_name,
        "model": kind,
        "seed": seed,
        "recipe": subject.recipe,
        "loss": subject.loss,
        "excess_over_edge_posterior": subject.excess,
        "attention_to_parents": subject.attention,
        "is_decoy": subject.is_decoy if kind in ("adam", "decoy") else None,
        "optimum_found": optimum_found(subject, seed) if kind == "planted" else None,
        "regret_is_exact": frontier.exact,
        "frontier_seconds": frontier.seconds,
        "parents": cc.graph_parents(graph),
    }
    batch = task.sample(arguments.sequences, seed=(seed, 3))
    scored = [
        {"method": method} | about | score_entries(subject, batch, method, question, seed)
        for method in arguments.methods
        for question in questions(method)
    ]
    by_loss = {
        row["counterfactual"]: row["auroc"] for row in scored if (row["method"], row["metric"]) == ("exact", "loss")
    }
    about = {"unit_cpu_seconds": time.process_time() - began}
    return [
        row
        | about
        | {
            "auroc_by_loss": by_loss[row["counterfactual"]] if row["method"] == "exact" else None,
            "regret": regrets.get((row["method"], row["counterfactual"], row["metric"])),
        }
        for row in scored
    ]


def score_entries(subject: Subject, batch: cc.Batch, method: str, question: Question, seed: int) -> Row:
    """A method's scores of layer 0's entries, held to the graph; all methods on the same sequences."""
    counterfactual, metric = question
    parts = circuits.entry_model(
        subject.model,
        batch,
        counterfactual=counterfactual if counterfactual in COUNTERFACTUALS else "zero",
        metric=metric or "loss",
        seed=seed,
    )
    found = circuits.discover(
        parts,
        method,
        threshold=ACDC_THRESHOLD,
        difference="pairs" if question == PAIRS else "counterfactual",
        seed=seed,
    )
    score = found.score if metric is None else (found.score / ROUNDING).round() * ROUNDING
    scores = circuits.score_against_graph(parts.matrices(score), subject.task.graph)
    return {
        "counterfactual": counterfactual,
        "metric": metric,
        "auroc": scores.auroc,
        "auprc": scores.auprc,
        "shd": scores.shd,
        "exact_parent_rate": scores.exact_parent_rate,
        "auroc_children": scores.auroc_children,
        "seconds": found.seconds,
    }


def regrets_between_heads(
    subject: Subject, arguments: argparse.Namespace, seed: int
) -> tuple[dict[tuple[str, str | None, str | None], float], circuits.Frontier]:
    """By method and question the mean regret of its circuits of edges between heads, and the best circuits."""
    few = subject.task.sample(arguments.frontier_sequences, seed=(seed, 5))
    whole = circuits.circuit_model(subject.model, few, counterfactual=OF_EDGES[0], metric=OF_EDGES[1], seed=seed)
    asked = [(method, question) for method in arguments.methods for question in regret_questions(method)]
    found = [
        circuits.discover(whole, method, difference="pairs" if question == PAIRS else "counterfactual", seed=seed)
        for method, question in asked
    ]
    n_free = int((~circuits.inert_edges(whole)).sum())
    at_once = arguments.max_edges if n_free <= arguments.max_edges else min(arguments.max_edges, TOO_MANY)
    frontier = circuits.oracle_frontier(whole, max_edges=at_once)
    if not frontier.exact:  # then regret is measured against the best circuit that anybody found
        tried = [one.circuit(size) for one in found for size in range(len(whole) + 1)]
        frontier = frontier.with_circuits(whole, torch.stack(tried))
    regrets = {
        (method, *question): circuits.rank(whole, one, frontier).mean_regret
        for (method, question), one in zip(asked, found, strict=True)
    }
    return regrets, frontier


def regret_questions(method: str) -> list[Question]:
    """The rows of a method that say something of edges between heads."""
    asked = questions(method)
    return asked if len(asked) == 1 else [question for question in asked if question in (OF_EDGES, PAIRS)]


def optimum_found(subject: Subject, seed: int) -> bool:
    """Whether the best of all circuits, by the divergence from the model, is the planted one, edge for edge."""
    batch = subject.task.sample(64, seed=(seed, 5))  # with very few, an edge may not come into play
    whole = circuits.circuit_model(subject.model, batch, metric="kl_to_model", seed=seed)
    frontier, planted_edges = circuits.oracle_frontier(whole), ~circuits.inert_edges(whole)
    return frontier.exact and bool(frontier.masks[frontier.best_size].equal(planted_edges))


def kept_units(arguments: argparse.Namespace, program: str) -> Units:
    """What earlier calls measured: it stays, so that more graphs, models and seeds can be asked for."""
    path = arguments.out / "results.json"
    if path.exists() and not any((arguments.out / UNITS).glob("unit_*.json")):
        raise ValueError(f"--out must be empty or hold a run of this benchmark: {path} has no {UNITS}/ beside it")
    free = ("graphs", "models", "seeds", "seed", "quick")
    return Units.of(program, arguments, folder=UNITS, free=free, rows=FORMAT)


def config(arguments: argparse.Namespace) -> dict[str, Any]:
    """The flags that decide numbers."""
    return {name: value for name, value in vars(arguments).items() if name not in NOT_CONFIG}


def write(rows: Sequence[Row], arguments: argparse.Namespace, command: str) -> None:
    """results.json, in one piece."""
    content = {
        "command": command,
        "config": config(arguments),
        "versions": versions(),
        "rows": rows,
        "timing": {"wall_s_of_last_start": time.perf_counter() - BEGAN, "cpu_s": cpu_seconds(rows)},
    }
    write_results(circuits.plain_values(content), arguments.out)


def one_a_model(rows: Sequence[Row]) -> list[Row]:
    """The first row of every unit."""
    return list({(row["graph"], row["model"], row["seed"]): row for row in reversed(rows)}.values())[::-1]


def cpu_seconds(rows: Sequence[Row]) -> float:
    """Of all units together, whenever they ran."""
    return sum(row["unit_cpu_seconds"] for row in one_a_model(rows))
