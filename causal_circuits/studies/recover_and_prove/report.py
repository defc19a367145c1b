"""What was found: the checks, the numbers, the closing table."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from statistics import fmean
from typing import Any

import causal_circuits as cc
from causal_circuits import figures
from causal_circuits.pages import Check
from causal_circuits.studies.recover_and_prove.comparison import Comparison
from causal_circuits.studies.recover_and_prove.evidence import make_sections
from causal_circuits.studies.recover_and_prove.measure import N_INFORMATION, Findings
from causal_circuits.studies.study import Report


def make_report(task: cc.InContextTask, findings: Findings) -> Report:
    """Checks, numbers and evidence of one run."""
    compared = Comparison(task, findings)
    checks, comparison = make_checks(compared), figures.plot_graph_comparison(task.graph, findings.found)
    return Report(
        title=f"Did this transformer learn the graph? ({task.graph.graph.get('name', 'forest')})",
        checks=checks,
        results=make_results(compared),
        sections=make_sections(compared),
        summary=summarize(compared, checks),
        about={"task": repr(task), "training": f"{compared.start}; {findings.record.path} path"},
        saved={
            "model": partial(cc.save_model, findings.model),
            "record": findings.record.save,
            "figures/graph": partial(figures.save_figure, comparison),
        },
    )


def make_checks(c: Comparison) -> list[Check]:
    """The claims, each with the number that decides it."""
    heads, n_edges = c.of.heads, len(c.edges)
    roles = [head.role for head in heads]
    one_each = sum(role in ("previous-token", "parent") for role in roles) == 1 == roles.count("induction")
    least = min(row["share_of_gain_lost"] for row in c.ablations)
    on_edges, elsewhere = (float(effects.mean()) for effects in c.effects)
    return [
        Check(
            c.recovery.exact,
            "Layer 0's attention proposes an edge a position; those that have information are the true graph",
            f"{c.found(c.recovery)} of {n_edges} parents, {len(c.recovery.false)} false edges, with the information "
            f"test on {N_INFORMATION:,} fresh sequences, which needs no model; {c.found(c.by_attention)} of {n_edges} "
            f"and {len(c.by_attention.false)} false by attention alone; attention to the parent "
            f"{fmean(c.parent_attention):.3f} on average, {min(c.parent_attention):.3f} at least",
        ),
        Check(
            c.excess <= 0.05,
            "It predicts about as well as the posterior that knows the edges (within 0.05 nats)",
            f"test loss {c.of.test_loss:.4f}, edge posterior {c.of.references.edge_posterior:.4f}, excess "
            f"{c.excess:+.4f} nats (best unigram {c.of.references.best_unigram:.4f})",
        ),
        Check(
            one_each and min(head.copying_score for head in heads) >= 0.5,
            "One head attends to the parent and one does induction, and what both copy is read as the token it is "
            "(copying at least 0.5)",
            "; ".join(
                f"{name_of(head)}: {head.role} (parent {head.parent_score:.2f}, induction {head.induction_score:.2f}), "
                f"copying {head.copying_score:.2f}"
                for head in heads
            ),
        ),
        Check(
            least >= 0.9,
            "Each of the two heads is needed: ablating either loses at least 90% of the gain, by every method",
            f"least share of the gain lost: {least:.0%}",
        ),
        Check(
            c.auroc(children_only=True) >= 0.99,
            "Cutting attention entries one by one, in the row of every child it is the true edge that hurts",
            f"AUROC {c.auroc(children_only=True):.3f} over the rows of children, {c.auroc():.3f} with those of roots; "
            f"a true edge costs {on_edges:.4f} nats, another entry {elsewhere:.4f}",
        ),
    ]


def make_results(c: Comparison) -> dict[str, Any]:
    """Every number, for results.json."""
    on_edges, elsewhere = c.effects
    record = c.of.record
    return {
        "config": {"n_ctx": c.task.n_ctx, "training": record.config},
        "loss": {"test": c.of.test_loss, "excess_over_edge_posterior": c.excess} | asdict(c.of.references),
        "graph": {
            "parents": cc.graphs.graph_parents(c.task.graph),
            "found_parents": cc.graphs.graph_parents(c.of.found),
            "edges": len(c.edges),
            "recovered": c.found(c.recovery),
            "exact": c.recovery.exact,
            "false_edges": len(c.recovery.false),
            "evidence": c.of.found.evidence,
            "attention_alone": {
                "recovered": c.found(c.by_attention),
                "missing": c.by_attention.missing,
                "false": c.by_attention.false,
            },
            "mean_parent_attention": fmean(c.parent_attention),
            "min_parent_attention": min(c.parent_attention),
            "candidates": [asdict(candidate) for candidate in c.of.found.candidates],
        },
        "heads": [asdict(head) for head in c.of.heads],
        "ablation": c.ablations,
        "knock_out": {
            "auroc": c.auroc(),
            "auroc_rows_of_children": c.auroc(children_only=True),
            "effect_true_edges": float(on_edges.mean()),
            "effect_other_entries": float(elsewhere.mean()),
            "smallest_effect_true_edge": float(on_edges.min()),
            "largest_effect_other_entry": float(elsewhere.max()),
        },
        "timing": {
            "train_s": record.seconds,
            "steps": len(record.losses),
            "train_sequences_per_s": record.sequences_per_s,
            "path": record.path,
        },
        "training": {"start": c.start} | asdict(c.of.health),
    }


def summarize(c: Comparison, checks: Sequence[Check]) -> list[tuple[str, str]]:
    """The closing table: the evidence of the checks, and how it was trained."""
    record, health = c.of.record, c.of.health
    speed = f"{record.seconds:.1f} s in all ({record.sequences_per_s:,.0f} sequences/s, {record.path} path)"
    names = ("graph", "loss", "heads", "ablation", "knock-out")
    lines = [(name, check.evidence) for name, check in zip(names, checks, strict=True)]
    advice = [("", f"{health.verdict}: {health.advice}")] if health.advice else []
    return [*lines, ("training", f"{c.start}; {speed}"), *advice]


def name_of(head: cc.heads.HeadScores) -> str:
    """L0H1 is head 1 of layer 0."""
    return f"L{head.layer}H{head.head}"
