"""What the evidence of `circuit_proof` adds up to, in the order in which a doubter would ask."""

from collections.abc import Sequence
from functools import partial
from statistics import fmean
from typing import Any

import causal_circuits as cc
from causal_circuits import circuits, figures
from causal_circuits.pages import Check, Section
from causal_circuits.studies.circuit_proof.measure import SCRUBBED_WHERE, Evidence
from causal_circuits.studies.study import Report

Formations = Sequence[circuits.CircuitFormation]
CRITERIA = {
    "faithful": "The circuit's mean loss is that of the whole model",
    "complete": "Under random knock-outs circuit and whole model lose alike",
    "minimal": "Every edge of the circuit is needed",
    "sufficient": "The circuit is better than others of its size",
}


def make_report(task: cc.InContextTask, rows: Sequence[dict[str, Any]], *, trained: bool) -> Report:
    """Checks, results, sections, closing table; the circuit in three formats."""
    e: Evidence = rows[0]["evidence"]
    formations = [row["formation"] for row in rows if row["formation"] is not None]
    whole = e.whole(task)
    circuit = whole.mask(e.proof.circuit)
    export = partial(circuits.export_circuit, model=whole, circuit=circuit, discoveries=e.discoveries, proof=e.proof)
    return Report(
        title=f"Which circuit is this, and is it one? ({task.graph.graph.get('name', 'forest')})",
        checks=make_checks(e),
        results=circuits.plain_values(results(task, e, formations)),
        sections=make_sections(task, e, whole, formations),
        summary=summarize(e, formations),
        about={"task": repr(task)},
        saved={
            "circuit.json": lambda path: export(path.parent),
            **({"model": partial(cc.save_model, e.model)} if trained else {}),
        },
    )


def results(task: cc.InContextTask, e: Evidence, formations: Formations) -> dict[str, Any]:
    """Every number of the table, and the evidence behind it."""
    return {
        "config": {"n_ctx": task.n_ctx, "parents": cc.graphs.graph_parents(task.graph)},
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
        "formation": formation_results(formations) if formations else None,
        "timing": {"frontier_s": e.frontier.seconds, "circuits": e.frontier.n_circuits},
    }


def formation_results(formations: Formations) -> dict[str, Any]:
    """When what began to matter, for every seed, and intervals over seeds."""
    first = formations[0]
    of_seed = ("attention_onset", "causal_onset", "circuit_onset", "order_by_pull", "loss", "attention", "share")
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
            {name: getattr(f, name) for name in (*of_seed, "effect")} | {"auroc": [scores.auroc for scores in f.scores]}
            for f in formations
        ],
    }


def onset_intervals(formations: Formations) -> dict[str, circuits.OnsetInterval]:
    """The median onset of edges by each clock, and how much later they matter than they show, over seeds."""
    clocks = {
        "attention": [f.attention_onset for f in formations],
        "causal": [f.causal_onset for f in formations],
        "causal_minus_attention": [f.causal_onset - f.attention_onset for f in formations],
    }
    return {name: circuits.onset_interval(onsets) for name, onsets in clocks.items()}


def summarize(e: Evidence, formations: Formations) -> list[tuple[str, str]]:
    """The closing table."""
    proof = e.proof
    kept = {w: ", ".join(f"{s.claim} {s.recovered:.3f}" for s in e.scrubbed if s.where == w) for w in SCRUBBED_WHERE}
    answer = "yes" if e.encodes_graph else "NO: it predicts by other means"
    return [
        ("laws", f"{sum(check.passed for check in e.checks)} of {len(e.checks)} self-checks hold"),
        ("search", f"the best of {e.frontier.n_circuits:,} circuits for every size, in {e.frontier.seconds:.1f} s"),
        ("verdict", proof.verdict),
        (
            "circuit",
            f"keeps {proof.faithfulness:.3f} [{proof.interval[0]:.3f}, {proof.interval[1]:.3f}] of the gain; loss "
            f"{proof.cost:.4f}, whole model {proof.full_cost:.4f}, edge posterior {e.edge_posterior:.4f}",
        ),
        *(
            (
                "method",
                f"{ranking.method:21s} regret {ranking.mean_regret:7.4f} nats; on the graph: AUROC {scores.auroc:.3f}, "
                f"AUPRC {scores.auprc:.3f}, exact parents {scores.exact_parent_rate:.0%}",
            )
            for ranking, (_, scores) in zip(e.rankings, e.entries, strict=True)
        ),
        *([("formation", formation_line(formations))] if formations else []),
        ("scrubbing", f"of the loss the hypothesis keeps, at positions with parents: {kept['children']}"),
        ("", f"and if nothing else may be of use (roots, query, direct path): {kept['everywhere']}"),
        ("the graph", f"are the entries that matter the latent graph? {answer}"),
    ]


def formation_line(formations: Formations) -> str:
    """Onsets in one line."""
    found = onset_intervals(formations)
    shown = ", ".join(f"{name} {i.mean:.0f} [{i.low:.0f}, {i.high:.0f}]" for name, i in list(found.items())[:2])
    orders = [f.order_by_pull for f in formations if f.order_by_pull == f.order_by_pull]
    order = f"; rank correlation of the pull at the start with earliness {fmean(orders):.2f}" if orders else ""
    never = f"{found['causal'].never:.0%} of edges never matter"
    return f"median onset in steps, {len(formations)} seeds: {shown}; {never}{order}"


def make_checks(e: Evidence) -> list[Check]:
    """The claims, each with the number that decides it."""
    scores, both = e.graph_scores, e.scrubbing("children")
    return [
        Check(
            all(check.passed for check in e.checks),
            "The tools obey their own laws on this model",
            "; ".join(f"{check.law}: off by {check.error:.1e}" for check in e.checks),
        ),
        *(Check(c.passed if c.testable else "not tested", CRITERIA[c.name], c.reason) for c in e.proof.criteria),
        Check(
            e.encodes_graph,
            "In nine rows with parents of ten the parents are the entries that matter most",
            f"cut one by one, the parents are the entries that cost most in {scores.exact_parent_rate:.0%} of the rows "
            f"with parents; AUROC {scores.auroc:.3f}",
        ),
        Check(
            both.recovered >= 0.9,
            "Causal scrubbing leaves the paper's hypothesis standing: where a position has parents, head 0.h copies "
            "parent h and head 1.0 matches it with the query",
            f"it keeps {both.recovered:.3f} of the loss that free resampling there destroys (0.9 passes); a model that "
            f"used nothing else would also keep it with all the rest resampled: this one keeps "
            f"{e.scrubbing('everywhere').recovered:.3f}",
        ),
    ]


def plot_effects(task: cc.InContextTask, e: Evidence) -> Any:
    """What cutting each entry of layer 0 costs."""
    effect = e.knock_out.effect.amax(dim=0).clone()
    if task.has_query:
        effect[-1] = float("nan")  # the query's row has no parent, and its effects would drown the others' colours
    title = "Loss when one entry of layer 0 is cut"
    return figures.plot_matrix(effect, task.graph, title=title, label="nats above the whole model", diverging=True)


def make_sections(
    task: cc.InContextTask, e: Evidence, whole: circuits.CircuitModel, formations: Formations
) -> list[Section]:
    """The evidence, picture by picture."""
    effects = {edge.edge: edge.effect for edge in e.proof.edges}
    found = [
        Section(
            "The circuit",
            f"The smallest circuit that keeps 99% of what the best of {e.frontier.n_circuits:,} circuits gains: "
            f"{len(e.proof.circuit)} of {len(whole)} edges. The number on an edge is what the circuit loses without "
            "it, nats.",
            figures={"circuit": figures.plot_circuit(whole.graph, whole.mask(e.proof.circuit), effects=effects)},
        ),
        Section(
            "Each edge's worth",
            "Each edge cut alone, on sequences that the search has not seen; filled dots pass Holm's correction.",
            figures={"needed_edges": figures.plot_needed_edges(e.proof)},
        ),
        Section(
            "The best circuits, and what the methods find",
            "The thick line is the least cost of any circuit with so many edges; the other lines take a method's "
            "highest-scoring edges, so the gap is its regret. All methods are asked by the loss; an edge that is cut "
            "reads its mean, an entry that is cut is set to zero, and gradients compare with the same. CPR is the area "
            "under a method's share of the gain against the share of edges, CMD the area between that share and 1.",
            figures={"frontier": figures.plot_frontier(e.frontier, e.rankings)},
            table=method_rows(e),
        ),
        Section(
            "The entries that matter, and the graph",
            "Layer 0's attention, and what cutting each entry costs; true edges are outlined. A model that predicts by "
            "other means has a low loss and no match here.",
            figures={
                "attention": figures.plot_attention_and_graph(e.knock_out.attention.amax(dim=0), task.graph),
                "knock_out": plot_effects(task, e),
            },
        ),
        Section(
            "Causal scrubbing",
            "Everything that the paper's hypothesis calls irrelevant is resampled; what remains of the loss is the "
            "hypothesis's share. 'children' holds it to positions with parents, of which the paper speaks. "
            "'everywhere' also resamples roots, the query's row and the path past layer 0: what is lost only there is "
            "what the model uses besides the circuit (a root's token, too, tells about the transition matrix).",
            table=scrub_rows(e),
        ),
    ]
    if formations:
        found.append(
            Section(
                "When each edge began to matter",
                "Attention on each edge; its share of the effects of all entries of its row, each cut alone; and that "
                f"effect itself, at {len(formations[0].steps)} steps. Dotted lines mark onsets: the first step from "
                "which an edge stays half-way from its first to its last value. Below, the onsets in "
                f"{len(formations)} runs with other data. {pull_sentence(formations)}",
                figures={
                    "formation": figures.plot_formation(formations[0]),
                    "onsets": figures.plot_onsets(formations),
                },
                table=onset_rows(formations),
            )
        )
    return found


def pull_sentence(formations: Formations) -> str:
    """What the edges' information, and its pull through the softmax of a row, say of the order of onsets."""
    information = formations[0].information
    orders = [f.order_by_pull for f in formations if f.order_by_pull == f.order_by_pull]
    found = f"{min(orders):.2f} to {max(orders):.2f} over these runs" if orders else "not defined here"
    return (
        f"The edges' information is {float(information.min()):.3f} to {float(information.max()):.3f}; Spearman's rank "
        f"correlation of its pull, through the softmax of a row, with earliness is {found}."
    )


def method_rows(e: Evidence) -> list[dict[str, object]]:
    """One row for each method."""
    return [
        {
            "method": ranking.method,
            "mean regret (nats)": ranking.mean_regret,
            "CPR": ranking.cpr,
            "CMD": ranking.cmd,
            "AUROC": scores.auroc,
            "AUPRC": scores.auprc,
            "structural Hamming distance": scores.shd,
            "exact parents": f"{scores.exact_parent_rate:.0%}",
            "seconds": found.seconds,
        }
        for ranking, (found, scores) in zip(e.rankings, e.entries, strict=True)
    ]


def onset_rows(formations: Formations) -> list[dict[str, object]]:
    """One row for each clock."""
    return [
        {
            "clock": name.replace("_", " "),
            "mean": round(found.mean, 1),
            "from": round(found.low, 1),
            "to": round(found.high, 1),
            "edges without an onset": f"{found.never:.0%}",
        }
        for name, found in onset_intervals(formations).items()
    ]


def scrub_rows(e: Evidence) -> list[dict[str, object]]:
    """One row for each claim."""
    return [
        {
            "claim": scrubbed.claim,
            "where": scrubbed.where,
            "loss": scrubbed.loss,
            "whole model": scrubbed.baseline_loss,
            "free resampling": scrubbed.random_loss,
            "share kept": round(scrubbed.recovered, 3),
        }
        for scrubbed in e.scrubbed
    ]
