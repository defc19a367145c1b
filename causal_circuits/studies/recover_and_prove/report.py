"""What was found: the checks, the numbers, the closing table."""

from dataclasses import asdict
from functools import partial
from statistics import fmean
from typing import Any

import causal_circuits as cc
from causal_circuits import figures, pages
from causal_circuits.pages import Check
from causal_circuits.studies.recover_and_prove.evidence import make_sections, plot_six_steps
from causal_circuits.studies.recover_and_prove.measure import N_INFORMATION, Findings
from causal_circuits.studies.study import Report
from causal_circuits.studies.tables import timing_of


def make_report(f: Findings) -> Report:
    """Checks, numbers and evidence of one run."""
    graph = f.task.graph
    attention = figures.plot_attention_and_graph(
        f.attention[0, 0], graph, title="Attention of L0H0, mean over sequences"
    )
    speed = f"{f.record.seconds:.1f} s in all ({f.record.sequences_per_s:,.0f} sequences/s, {f.record.path} path)"
    return Report(
        title=f"Did this transformer learn the graph? ({f.task.graph.graph['name']})",
        checks=make_checks(f),
        results=make_results(f),
        sections=make_sections(f),
        summary=[
            ("training", f"{f.start}; {speed}"),
            *([("", f"{f.health.verdict}: {f.health.advice}")] if f.health.advice else []),
        ],
        about={"task": repr(f.task), "training": f"{f.start}; {f.record.path} path"},
        saved={
            "model": partial(cc.save_model, f.model),
            "record": f.record.save,
            "figures/graph": partial(pages.save_figure, figures.plot_graph_comparison(graph, f.found)),
            "figures/attention": partial(pages.save_figure, attention),
            "figures/attention_film": partial(pages.save_figure, plot_six_steps(f)),
        },
    )


def make_checks(f: Findings) -> list[Check]:
    n_edges, roles = len(f.edges), [head.role for head in f.heads]
    one_each = sum(role in ("previous-token", "parent") for role in roles) == 1 == roles.count("induction")
    least = min(row["share_of_gain_lost"] for row in f.ablation_rows)
    on_edges, elsewhere = (float(effects.mean()) for effects in f.effects)
    return [
        Check(
            f.recovery.exact,
            "Layer 0's attention proposes an edge a position; those that have information are the true graph",
            f"{f.count(f.recovery)} of {n_edges} parents, {len(f.recovery.false)} false edges, with the information "
            f"test on {N_INFORMATION:,} fresh sequences, which needs no model; {f.count(f.by_attention)} of {n_edges} "
            f"and {len(f.by_attention.false)} false by attention alone; attention to the parent "
            f"{fmean(f.parent_attention):.3f} on average, {min(f.parent_attention):.3f} at least",
        ),
        Check(
            f.excess <= 0.05,
            "It predicts about as well as the posterior that knows the edges (within 0.05 nats)",
            f"test loss {f.test_loss:.4f}, edge posterior {f.references.edge_posterior:.4f}, excess "
            f"{f.excess:+.4f} nats (best unigram {f.references.best_unigram:.4f})",
        ),
        Check(
            one_each and min(head.copying_score for head in f.heads) >= 0.5,
            "One head attends to the parent and one does induction, and what both copy is read as the token it is "
            "(copying at least 0.5)",
            "; ".join(
                f"L{head.layer}H{head.head}: {head.role} (parent {head.parent_score:.2f}, induction "
                f"{head.induction_score:.2f}), copying {head.copying_score:.2f}"
                for head in f.heads
            ),
        ),
        Check(
            least >= 0.9,
            "Each of the two heads is needed: ablating either loses at least 90% of the gain, by every method",
            f"least share of the gain lost: {least:.0%}",
        ),
        Check(
            f.auroc(children_only=True) >= 0.99,
            "Cutting attention entries one by one, in the rows of children true edges hurt most (AUROC at least 0.99)",
            f"AUROC {f.auroc(children_only=True):.3f} over the rows of children, {f.auroc():.3f} with those of roots; "
            f"a true edge costs {on_edges:.4f} nats, another entry {elsewhere:.4f}",
        ),
    ]


def make_results(f: Findings) -> dict[str, Any]:
    on_edges, elsewhere = f.effects
    return {
        "config": {"n_ctx": f.task.n_ctx, "training": f.record.config},
        "loss": {"test": f.test_loss, "excess_over_edge_posterior": f.excess} | asdict(f.references),
        "graph": {
            "parents": cc.graphs.graph_parents(f.task.graph),
            "found_parents": cc.graphs.graph_parents(f.found),
            "edges": len(f.edges),
            "recovered": f.count(f.recovery),
            "exact": f.recovery.exact,
            "false_edges": len(f.recovery.false),
            "evidence": f.found.evidence,
            "attention_alone": {
                "recovered": f.count(f.by_attention),
                "missing": f.by_attention.missing,
                "false": f.by_attention.false,
            },
            "mean_parent_attention": fmean(f.parent_attention),
            "min_parent_attention": min(f.parent_attention),
            "candidates": f.found.candidates,
        },
        "heads": f.heads,
        "ablation": f.ablation_rows,
        "knock_out": {
            "auroc": f.auroc(),
            "auroc_rows_of_children": f.auroc(children_only=True),
            "effect_true_edges": float(on_edges.mean()),
            "effect_other_entries": float(elsewhere.mean()),
            "smallest_effect_true_edge": float(on_edges.min()),
            "largest_effect_other_entry": float(elsewhere.max()),
        },
        "timing": timing_of(f.record),
        "training": {"start": f.start} | asdict(f.health),
    }
