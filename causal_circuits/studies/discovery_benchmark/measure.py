"""What `discovery_benchmark` measures on one model: a row for each method, counterfactual and metric."""

import time
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch

import causal_circuits as cc
from causal_circuits import circuits
from causal_circuits.studies.discovery_benchmark.subjects import Subject, make_graph, make_subject

Row = dict[str, Any]
SCORES = ("auroc", "auprc", "shd", "exact_parent_rate", "auroc_children")
Question = tuple[Any, Any]  # counterfactual, metric; None: the method has none
COUNTERFACTUALS = ("zero", "mean", "resample", "permute")
METRICS = ("loss", "kl_to_model")
PAIRS = ("pairs", "loss")  # gradients between two runs' embeddings, as EAP and EAP-IG are published
OF_EDGES: Question = ("mean", "loss")  # the question that is asked of edges between heads, for regret
ACDC_THRESHOLD = 1e-3  # nats; an entry is worth a tenth or less of an edge between heads, for which 0.01 is the default
ROUNDING = 1e-6  # nats: effects that differ by less are ties
TOO_MANY = 14  # edges whose circuits are all tried where there are more than --max-edges: the rest is found greedily


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


def measure(
    graph: str,
    model: str,
    seed: int,
    methods: Sequence[Any],
    d_vocab: int,
    n_ctx: int,
    alpha: float,
    steps: int,
    sequences: int,
    frontier_sequences: int,
    max_edges: int,
) -> list[Row]:
    began = time.process_time()
    task = cc.InContextTask(make_graph(graph, n_ctx, seed), d_vocab=d_vocab, alpha=alpha)
    subject = make_subject(model, task, steps, seed)
    regrets, frontier = regrets_between_heads(subject, methods, frontier_sequences, max_edges, seed)
    batch = task.sample(sequences, seed=(seed, 3))
    rows = [
        {"method": method} | score_entries(subject, batch, method, question, seed)
        for method in methods
        for question in questions(method)
    ]
    exact = [row for row in rows if row["method"] == "exact"]
    by_loss = {row["counterfactual"]: row["auroc"] for row in exact if row["metric"] == "loss"}
    about = {
        "graph": graph,
        "model": model,
        "seed": seed,
        "recipe": subject.recipe,
        "loss": subject.loss,
        "excess_over_edge_posterior": subject.excess,
        "attention_to_parents": subject.attention,
        "is_decoy": subject.is_decoy if model in ("adam", "decoy") else None,
        "optimum_found": optimum_found(subject, seed) if model == "planted" else None,
        "regret_is_exact": frontier.exact,
        "frontier_seconds": frontier.seconds,
        "parents": cc.graphs.graph_parents(task.graph),
        "unit_cpu_seconds": time.process_time() - began,
    }
    for row in rows:
        row["auroc_by_loss"] = by_loss[row["counterfactual"]] if row["method"] == "exact" else None
        row["regret"] = regrets.get((row["method"], row["counterfactual"], row["metric"]))
    return [about | row for row in rows]


def score_entries(subject: Subject, batch: cc.Batch, method: Any, question: Question, seed: int) -> Row:
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
    row = {"counterfactual": counterfactual, "metric": metric, "seconds": found.seconds}
    return row | {name: getattr(scores, name) for name in SCORES}


def regrets_between_heads(
    subject: Subject, methods: Sequence[Any], n_sequences: int, max_edges: int, seed: int
) -> tuple[dict[tuple[Any, ...], float], circuits.Frontier]:
    """By method and question the mean regret of its circuits of edges between heads, and the best circuits."""
    few = subject.task.sample(n_sequences, seed=(seed, 5))
    whole = circuits.circuit_model(subject.model, few, counterfactual=OF_EDGES[0], metric=OF_EDGES[1], seed=seed)
    asked = [(method, question) for method in methods for question in regret_questions(method)]
    found = [
        circuits.discover(whole, method, difference="pairs" if question == PAIRS else "counterfactual", seed=seed)
        for method, question in asked
    ]
    n_free = int((~circuits.inert_edges(whole)).sum())
    at_once = max_edges if n_free <= max_edges else min(max_edges, TOO_MANY)
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
