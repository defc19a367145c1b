"""What `induction_head.py` and `causal_graph.py` share: check the arguments, do the job, write everything down.

Not a script. The job itself is `findings.run`, the page is `report_page.write_page`.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import networkx as nx
from command_line import BEGAN, OneLineParser
from findings import N_INFORMATION, Findings, run, share_of_gain
from report_page import draw_figures, write_page
from results_file import begin, remove_ours, result_header, write_results

import causal_circuits as cc
from causal_circuits import figures


def run_from_arguments(
    parser: OneLineParser, arguments: argparse.Namespace, make_graph: Callable[[argparse.Namespace], nx.DiGraph]
) -> int:
    """Check the arguments, run the job, print the table; bad input ends in one line and status 2."""
    try:
        if arguments.steps < 2:
            raise ValueError(f"--steps must be at least 2: got {arguments.steps}")
        if arguments.seed < 0:
            raise ValueError(f"--seed must be 0 or more: got {arguments.seed}")
        graph = make_graph(arguments)
        if not cc.latent_edges(graph):
            raise ValueError(
                "the graph has no edge between context positions: there is nothing to recover; name a parent"
            )
        task = cc.InContextTask(graph, d_vocab=arguments.d_vocab, alpha=arguments.alpha)
        begin(arguments)
    except ValueError as error:
        parser.error(str(error))
    kept = arguments.out / "checkpoints"  # what an interrupted run goes on from
    recipe = cc.TrainConfig.warm if arguments.warm_start else from_zero
    findings = run(task, recipe(arguments.steps, seed=arguments.seed), arguments.quiet, kept)
    write(findings, arguments.out, result_header(parser.prog, arguments))  # sets findings.seconds
    for folder in (kept / "film", kept / "phases", kept):
        remove_ours(folder, "step_*")
    print(table(findings, arguments.out))
    return 0


def from_zero(steps: int, seed: int) -> cc.TrainConfig:
    """The default recipe in so many steps."""
    return cc.TrainConfig(cc.default_stages(steps), seed=seed)


def results(findings: Findings, header: dict[str, Any]) -> dict[str, object]:
    """Every number of the table, as JSON values."""
    f, (on_edges, elsewhere) = findings, findings.effects
    return {
        **header,
        "config": {**header["config"], "n_ctx": f.task.n_ctx, "training": f.record.config},
        "loss": {"test": f.test_loss, "excess_over_edge_posterior": f.test_loss - f.references.edge_posterior}
        | asdict(f.references),
        "graph": {
            "parents": cc.graph_parents(f.task.graph),
            "found_parents": cc.graph_parents(f.found),
            "edges": len(f.context_edges),
            "recovered": f.n_recovered,
            "exact": f.recovery.exact,
            "false_edges": len(f.recovery.false),
            "evidence": f.found.evidence,
            "attention_alone": {
                "recovered": f.n_by_attention,
                "missing": [list(edge) for edge in f.by_attention.missing],
                "false": [list(edge) for edge in f.by_attention.false],
            },
            "mean_parent_attention": fmean(f.parent_attention),
            "min_parent_attention": min(f.parent_attention),
            "candidates": [asdict(candidate) for candidate in f.found.candidates],
        },
        "heads": [asdict(head) for head in f.heads],
        "ablation": [
            {
                "what": what,
                "method": result.method,
                "loss": result.loss,
                "standard_error": result.standard_error,
                "share_of_gain_lost": share_of_gain(f, result),
            }
            for what, result in f.ablations
        ],
        "knock_out": {
            "auroc": f.auroc(),
            "auroc_rows_of_children": f.auroc(children_only=True),
            "effect_true_edges": float(on_edges.mean()),
            "effect_other_entries": float(elsewhere.mean()),
            "smallest_effect_true_edge": float(on_edges.min()),
            "largest_effect_other_entry": float(elsewhere.max()),
        },
        "timing": {
            "wall_s": f.seconds,
            "train_s": f.record.seconds,
            "steps": f.config.steps,
            "train_sequences_per_s": f.record.sequences_per_s,
            "path": f.record.path,
        },
        "training": {"start": f.start} | asdict(f.health),
    }


def table(findings: Findings, out: Path) -> str:
    """The short table that ends a run."""
    f, (on_edges, elsewhere) = findings, findings.effects
    lines = [
        f"graph       {f.n_recovered} of {len(f.context_edges)} parents found, {len(f.recovery.false)} false edges, by "
        f"attention and the information in {N_INFORMATION:,} fresh sequences (computed without the model)",
        f"            {f.n_by_attention} of {len(f.context_edges)} and {len(f.by_attention.false)} false by attention "
        f"alone; attention to the parent {fmean(f.parent_attention):.3f} on average, {min(f.parent_attention):.3f} at "
        "least",
        f"loss        {f.test_loss:.4f} = edge posterior {f.references.edge_posterior:.4f} "
        f"{f.test_loss - f.references.edge_posterior:+.4f} nats (best unigram {f.references.best_unigram:.4f})",
    ]
    for head in f.heads:
        shares = [share_of_gain(f, result) for what, result in f.ablations if what == f"L{head.layer}H{head.head}"]
        lines.append(
            f"head L{head.layer}H{head.head}   {head.role}: parent {head.parent_score:.2f}, induction "
            f"{head.induction_score:.2f}; ablated, {min(shares):.0%} or more of the gain is lost"
        )
    lines.append(f"training    {f.start}")
    lines += [f"training    {f.health.verdict}: {f.health.advice}"] if f.health.advice else []
    lines += [
        f"knock-out   AUROC {f.auroc():.3f} ({f.auroc(children_only=True):.3f} in rows of children); "
        f"a true edge costs {float(on_edges.mean()):.4f} nats, another entry {float(elsewhere.mean()):.4f}",
        f"time        {f.seconds:.1f} s; training {f.record.seconds:.1f} s in all "
        f"({f.record.sequences_per_s:,.0f} sequences/s, {f.record.path} path)",
        f"look at     {out / 'report.html'}",
    ]
    return "\n".join(lines)


def write(findings: Findings, out: Path, header: dict[str, Any]) -> None:
    """Model, record, figures, report and, last, results.json."""
    cc.save_model(findings.model, out / "model")
    findings.record.save(out / "record")
    for name, figure in draw_figures(findings).items():
        figures.save_figure(figure, out / "figures" / name)
    findings.seconds = time.perf_counter() - BEGAN
    content = results(findings, header)
    write_page(findings, content, header["command"], out / "report.html")
    write_results(content, out)
