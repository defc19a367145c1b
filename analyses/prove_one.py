"""The job of `circuit_proof.py`: check, search, prove, compare, scrub, and hold to the graph.

Not a script. `run` is the job, in order; `Evidence` is what it found; `proof_page.py` shows it.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import networkx as nx
import torch
from command_line import OneLineParser
from going_on import Units, weights_of, with_weights
from results_file import begin, result_header, say, write_results

import causal_circuits as cc
from causal_circuits import circuits

KEEPS = 0.99  # the circuit is the smallest that keeps this share of what the best circuit gains
COUNTERFACTUAL = "mean"
RECORDED = 20  # steps, dense at the start
SCRUBBED_WHERE = ("children", "everywhere")  # the paper's claims, and that there is nothing else to the model


@dataclass
class Evidence:
    """Everything that one run found out."""

    task: cc.InContextTask
    model: object
    checks: tuple[circuits.SelfCheck, ...]
    frontier: circuits.Frontier
    whole: circuits.CircuitModel
    proof: circuits.CircuitProof
    discoveries: list[circuits.Discovery]
    rankings: list[circuits.Ranking]
    entries: list[tuple[circuits.Discovery, circuits.GraphScores]]
    knock_out: cc.KnockOut
    scrubbed: list[cc.Scrubbed]
    formations: list[circuits.Formation]  # of one run for each seed; none if the model was loaded
    edge_posterior: float
    seconds: float = 0.0

    @property
    def graph_scores(self) -> circuits.GraphScores:
        """Exact knock-out effects held to the graph."""
        return self.entries[0][1]

    @property
    def hypothesis(self) -> cc.Scrubbed:
        """Both claims, held to the positions that the paper makes them of."""
        return next(s for s in self.scrubbed if (s.claim, s.where) == ("both", "children"))

    @property
    def nothing_else(self) -> cc.Scrubbed:
        """Both claims, and that nothing else is of use."""
        return next(s for s in self.scrubbed if (s.claim, s.where) == ("both", "everywhere"))

    @property
    def encodes_graph(self) -> bool:
        """Whether in nearly every row with parents the entries that matter most are the parents."""
        return self.graph_scores.exact_parent_rate >= 0.9


def run_from_arguments(
    parser: OneLineParser, arguments: argparse.Namespace, make_graph: Callable[[argparse.Namespace], nx.DiGraph]
) -> int:
    """Check the arguments, run the job, print the table; bad input ends in one line and status 2."""
    try:
        graph = make_graph(arguments)
        task = cc.InContextTask(graph, d_vocab=arguments.d_vocab, alpha=arguments.alpha)
        model = None if arguments.model is None else cc.load_model(arguments.model)
        if model is not None:
            cc.models.check_model(model, task.d_vocab, task.n_ctx)
        if not cc.latent_edges(graph):
            raise ValueError("the graph has no edge between context positions: there is nothing to prove")
        begin(arguments)
        weights = None if model is None else cc.storage.digest(dict(model.named_parameters()))
        units = Units.of(parser.prog, arguments, parents=cc.graph_parents(graph), weights=weights)
    except ValueError as error:
        parser.error(str(error))
    evidence = run(task, model, arguments, units)
    write(evidence, arguments, units)
    print(table(evidence, arguments.out))
    return 0


def run(task: cc.InContextTask, model: object | None, arguments: argparse.Namespace, units: Units) -> Evidence:
    """Train if need be, check, search, prove, compare, scrub, hold to the graph; what takes long is a unit."""
    tell, seed = say(arguments.quiet), arguments.seed
    formations: list[circuits.Formation] = []
    if model is None:
        tell(f"{task!r}\n1/6  training with {arguments.formation_seeds} seeds, measuring every edge on the way")
        model, formations = train_and_watch(task, arguments, units)
    proving, searching = (
        task.sample(arguments.sequences, seed=(seed, 3)),
        task.sample(arguments.sequences // 8, seed=(seed, 5)),
    )
    tell("2/6  the tools' own laws, on this model")
    checks = circuits.self_checks(model, proving[:256], counterfactual=COUNTERFACTUAL, seed=seed)
    tell("3/6  the best circuit of every size")
    small = circuits.circuit_model(model, searching, counterfactual=COUNTERFACTUAL, seed=seed)
    shown = not arguments.quiet and sys.stderr.isatty()
    frontier = units.made("frontier", lambda: circuits.oracle_frontier(small, progress=shown))
    tell("4/6  the proof, on fresh sequences")
    whole = circuits.circuit_model(model, proving, counterfactual=COUNTERFACTUAL, seed=seed)
    chosen = frontier.masks[chosen_size(frontier)]
    proof = units.made("proof", lambda: circuits.prove_circuit(whole, chosen, seed=seed))
    tell("5/6  seven methods against the best circuits and against the graph")
    discoveries = [circuits.discover(small, method, seed=seed) for method in circuits.METHODS]
    parts = circuits.entry_model(model, proving, seed=seed)
    entries = [
        units.made(f"entries by {method}", partial(circuits.discover, parts, method, seed=seed))
        for method in circuits.METHODS
    ]
    tell("6/6  causal scrubbing of the paper's hypothesis")
    return Evidence(
        task=task,
        model=model,
        checks=checks,
        frontier=frontier,
        whole=whole,
        proof=proof,
        discoveries=discoveries,
        rankings=[circuits.rank(small, found, frontier) for found in discoveries],
        entries=[(found, circuits.score_against_graph(parts.matrices(found.score), task.graph)) for found in entries],
        knock_out=cc.knock_out_edges(model, proving),
        scrubbed=[
            cc.scrub_hypothesis(model, proving, task, claim, where=where, seed=seed)
            for where in SCRUBBED_WHERE
            for claim in ("copy", "match", "both")
        ],
        formations=formations,
        edge_posterior=task.bayes_loss(proving),
    )


def train_and_watch(
    task: cc.InContextTask, arguments: argparse.Namespace, units: Units
) -> tuple[object, list[circuits.Formation]]:
    """The model of the first seed, and what every edge did on the way, for each seed: each a unit."""
    seeds = range(arguments.seed, arguments.seed + arguments.formation_seeds)
    runs = [units.made(f"training {seed}", partial(watched_training, task, arguments, seed)) for seed in seeds]
    model = with_weights(cc.disentangled_transformer(task.d_vocab, task.n_ctx), runs[0][0])
    return model, [formation for _, formation in runs]


def watched_training(
    task: cc.InContextTask, arguments: argparse.Namespace, seed: int
) -> tuple[dict[str, torch.Tensor], circuits.Formation]:
    """The trained weights of one seed, and what every edge did on the way."""
    model = cc.disentangled_transformer(task.d_vocab, task.n_ctx)
    formation = circuits.watch_formation(
        model,
        task,
        _config(arguments, seed),
        record=cc.RecordAt.log_spaced(RECORDED),
        batch=task.sample(1024, seed=(arguments.seed, 4)),
        counterfactual=COUNTERFACTUAL,
        seed=arguments.seed,
        progress=False if arguments.quiet else None,
    )
    return weights_of(model), formation


def _config(arguments: argparse.Namespace, seed: int) -> cc.TrainConfig:
    """From a warm start, or Adam at 0.1 on everything from zero, whose models often predict without the graph."""
    if arguments.decoy:
        return cc.TrainConfig.joint(arguments.steps, 0.1, seed=seed)
    return cc.TrainConfig.warm(arguments.steps, seed=seed)


def chosen_size(frontier: circuits.Frontier) -> int:
    """The smallest size that keeps `KEEPS` of what the best circuit gains over none."""
    cost = frontier.cost
    enough = cost <= cost[0] - KEEPS * (cost[0] - cost.min())
    return max(1, int(torch.nonzero(enough)[0]))


def results(evidence: Evidence, header: dict[str, Any]) -> dict[str, object]:
    """Every number of the table, and the evidence behind it, as JSON values."""
    e = evidence
    return {
        **header,
        "config": {**header["config"], "n_ctx": e.task.n_ctx, "parents": cc.graph_parents(e.task.graph)},
        "loss": {"whole": e.proof.full_cost, "edge_posterior": e.edge_posterior, "circuit": e.proof.cost},
        "self_checks": e.checks,
        "proof": {**circuits.plain_values(e.proof), "proved": e.proof.proved, "verdict": e.proof.verdict},
        "frontier": e.frontier,
        "methods": [
            {
                "method": ranking.method,
                "mean_regret": ranking.mean_regret,
                "cpr": ranking.cpr,
                "cmd": ranking.cmd,
                "score": found.score,
                "entries": scores,
            }
            for found, ranking, (_, scores) in zip(e.discoveries, e.rankings, e.entries, strict=True)
        ],
        "encodes_graph": e.encodes_graph,
        "scrubbing": [{**circuits.plain_values(s), "recovered": s.recovered} for s in e.scrubbed],
        "formation": formation_results(e.formations),
        "timing": {"wall_s": e.seconds, "frontier_s": e.frontier.seconds, "circuits": e.frontier.n_circuits},
    }


def onset_intervals(formations: list[circuits.Formation]) -> dict[str, circuits.OnsetInterval]:
    """The median onset of edges by each clock, and how much later they matter than they show, over seeds."""
    clocks = {
        "attention": [f.attention_onset for f in formations],
        "causal": [f.causal_onset for f in formations],
        "causal_minus_attention": [f.causal_onset - f.attention_onset for f in formations],
    }
    return {name: circuits.onset_interval(onsets) for name, onsets in clocks.items()}


def formation_results(formations: list[circuits.Formation]) -> dict[str, object] | None:
    """When what began to matter, for every seed, and intervals over seeds."""
    if not formations:
        return None
    first = formations[0]
    return {
        "steps": first.steps,
        "cells": first.cells,
        "information": first.information,
        "pull": first.pull,
        "onset": onset_intervals(formations),
        "circuit_onset": {
            " -> ".join(edge): circuits.onset_interval([f.circuit_onset[k : k + 1] for f in formations])
            for k, edge in enumerate(first.circuit_edges)
        },
        "seeds": [
            {
                "attention_onset": f.attention_onset,
                "causal_onset": f.causal_onset,
                "circuit_onset": f.circuit_onset,
                "order_by_pull": f.order_by_pull,
                "auroc": [scores.auroc for scores in f.scores],
                "loss": f.loss,
                "attention": f.attention,
                "share": f.share,
                "effect": f.effect,
            }
            for f in formations
        ],
    }


def formation_line(formations: list[circuits.Formation]) -> str:
    """Onsets in one line."""
    found = onset_intervals(formations)
    shown = ", ".join(f"{name} {i.mean:.0f} [{i.low:.0f}, {i.high:.0f}]" for name, i in list(found.items())[:2])
    orders = [f.order_by_pull for f in formations if f.order_by_pull == f.order_by_pull]
    order = f"; rank correlation of the pull at the start with earliness {fmean(orders):.2f}" if orders else ""
    never = f"{found['causal'].never:.0%} of edges never matter"
    return f"formation   median onset in steps, {len(formations)} seeds: {shown}; {never}{order}"


def table(evidence: Evidence, out: Path) -> str:
    """The short table that ends a run."""
    e, proof = evidence, evidence.proof
    lines = [
        f"laws        {sum(check.passed for check in e.checks)} of {len(e.checks)} self-checks hold",
        f"search      the best of {e.frontier.n_circuits:,} circuits for every size, in {e.frontier.seconds:.1f} s",
        f"verdict     {proof.verdict}",
        f"circuit     keeps {proof.faithfulness:.3f} [{proof.interval[0]:.3f}, {proof.interval[1]:.3f}] of the gain; "
        f"loss {proof.cost:.4f}, whole model {proof.full_cost:.4f}, edge posterior {e.edge_posterior:.4f}",
    ]
    for ranking, (_, scores) in zip(e.rankings, e.entries, strict=True):
        lines.append(
            f"{ranking.method:21s} regret {ranking.mean_regret:7.4f} nats; on the graph: AUROC {scores.auroc:.3f}, "
            f"AUPRC {scores.auprc:.3f}, exact parents {scores.exact_parent_rate:.0%}"
        )
    kept = {w: ", ".join(f"{s.claim} {s.recovered:.3f}" for s in e.scrubbed if s.where == w) for w in SCRUBBED_WHERE}
    answer = "yes" if e.encodes_graph else "NO: it predicts by other means"
    lines += [formation_line(e.formations)] if e.formations else []
    lines += [
        f"scrubbing   of the loss the hypothesis keeps, at positions with parents: {kept['children']}",
        f"            and if nothing else may be of use (roots, query, direct path): {kept['everywhere']}",
        f"the graph   are the entries that matter the latent graph? {answer}",
        f"look at     {out / 'report.html'}",
    ]
    return "\n".join(lines)


def write(evidence: Evidence, arguments: argparse.Namespace, units: Units) -> None:
    """Model, circuit, figures, report and, last, results.json, which ends the need for units."""
    from proof_page import write_page

    out, header = arguments.out, result_header(units.program, arguments)
    if arguments.model is None:
        cc.save_model(evidence.model, out / "model")
    circuit = evidence.whole.mask(evidence.proof.circuit)
    circuits.export_circuit(out, evidence.whole, circuit, evidence.discoveries, evidence.proof)
    evidence.seconds = units.wall_s()
    write_page(evidence, str(header["command"]), out)
    evidence.seconds = units.wall_s()
    write_results(circuits.plain_values(results(evidence, header)), out)
    units.finish()
