"""What the heads carry, what breaks without it, and where a single head stops."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean
from typing import Any

import networkx as nx
import numpy as np

import causal_circuits as cc
from causal_circuits import figures
from causal_circuits.circuits.ground_truth import auroc
from causal_circuits.figures import Check, Section
from causal_circuits.studies.multi_head.measure import Heads
from causal_circuits.studies.study import Report

MARGIN = 0.05  # nats
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Repeat:
    """k heads and one head, trained from one seed for as many steps.

    Attributes:
        seed: of both trainings and of the test sequences.
        excess, single_excess: test losses of k heads and of one over the edge posterior, nats.
    """

    seed: int
    excess: float
    single_excess: float


def make_report(task: cc.InContextTask, f: Heads, single: Row, repeats: Sequence[Repeat]) -> Report:
    """Everything, from the heads that were read, a single head's loss and graph, and the seeds."""
    cuts = knock_out_rows(task, f)
    return Report(
        title=f"Did these heads share the graph? ({task.graph.graph.get('name', 'DAG')})",
        checks=make_checks(task, f, cuts, repeats),
        results=results(task, f, single, cuts, repeats),
        sections=make_sections(task, f, single, cuts),
        summary=summarize(task, f, single, cuts, repeats),
        about={"task": repr(task), "heads": str(f.n_heads)},
        saved={"model": partial(cc.save_model, f.model), "record": f.record.save},
    )


def counted(task: cc.InContextTask, f: Heads) -> tuple[int, int, int]:
    """True edges that some head carries, all true edges, and false ones."""
    true, found = set(task.graph.edges), set(f.found.edges)
    return len(true & found), len(true), len(found - true)


def results(task: cc.InContextTask, f: Heads, single: Row, cuts: list[Row], repeats: Sequence[Repeat]) -> Row:
    """Every number of the table and of the page."""
    recovered, edges, false = counted(task, f)
    return {
        "config": {"n_ctx": task.n_ctx, "n_heads": f.n_heads, "training": f.record.config},
        "loss": {
            "test": f.test_loss,
            "excess_over_edge_posterior": f.excess,
            **asdict(f.references),
            "parents_known": {name_of(which): loss for which, loss in f.parents_known.items()},
        },
        "graph": {
            "parents": parents_lists(task.graph),
            "found_parents": parents_lists(f.found),
            "edges": edges,
            "recovered": recovered,
            "exact": recovered == edges and not false,
            "false_edges": false,
            "head_of_edge": {f"{p}->{c}": f.found.carriers(p, c) for p, c in sorted(f.found.edges)},
            "missing": [asdict(edge) for edge in f.missing],
            "candidates": [asdict(candidate) for candidate in f.found.candidates],
        },
        "heads": [asdict(head) for head in f.found.heads],
        "further_parents": [asdict(further) for further in f.found.further_parents],
        "turns": [{"head": t.head, "last_key": t.last_key, "support": t.support.tolist()} for t in f.turns],
        "information": f.information,
        "knock_out": cuts,
        "ablation": [
            {
                "head": head_name(r.heads),
                "loss": r.loss,
                "baseline": r.baseline_loss,
                "standard_error": r.standard_error,
            }
            for r in f.ablations
        ],
        "single_head": {
            "test_loss": single["loss"],
            "excess_over_edge_posterior": repeats[0].single_excess,
            "repeats": [asdict(repeat) for repeat in repeats],
            "heads": [asdict(head) for head in single["found"].heads],
            "further_parents": [asdict(further) for further in single["found"].further_parents],
            "given": single["turn"].last_key,
            "gain_alone": {str(t): float(single["turn"].support[t]) for t in task.target_parents},
        },
        "timing": {
            "train_s": f.record.seconds,
            "steps": f.steps,
            "train_sequences_per_s": f.record.sequences_per_s,
            "path": f.record.path,
        },
    }


def parents_lists(graph: nx.DiGraph) -> list[list[int]]:
    """The parents of every position and, last, of the target."""
    return [list(cc.parents_of(graph, node)) for node in sorted(graph.nodes)]


def name_of(which: tuple[int, ...]) -> str:
    """A set of parent numbers in words, counted from 1."""
    return "no parent" if not which else "parent " + " + ".join(str(number + 1) for number in which)


def head_name(heads: Any) -> str:
    """L0H1 of ((0, 1),)."""
    return ", ".join(f"L{layer}H{head}" for layer, head in heads)


def knock_out_rows(task: cc.InContextTask, f: Heads) -> list[Row]:
    """For each head: what cutting its own edges costs, and what cutting any other entry does."""
    rows: list[Row] = []
    for report in f.found.heads:
        effect = f.effect[report.head].nan_to_num(0.0).numpy()  # entries hardly in use were not cut
        own = np.zeros(effect.shape, dtype=bool)
        for parent, child in report.edges:
            own[min(child, task.n_ctx - 1), parent] = True
        visible = np.tril(np.ones(effect.shape, dtype=bool))
        cut, others = effect[own], effect[visible & ~own]
        rows.append(
            {
                "head": f"L0H{report.head}",
                "role": report.role,
                "edges": int(own.sum()),
                "effect of its edges": fmean(cut.tolist()) if own.any() else float("nan"),
                "smallest": float(cut.min()) if own.any() else float("nan"),
                "effect of other entries": fmean(others.tolist()),
                "AUROC, own edges": auroc(effect[visible], own[visible]),
            }
        )
    return rows


def summarize(
    task: cc.InContextTask, f: Heads, single: Row, cuts: list[Row], repeats: Sequence[Repeat]
) -> list[tuple[str, str]]:
    """The closing table."""
    recovered, edges, false = counted(task, f)
    lines = [
        (
            "graph",
            f"{recovered} of {edges} edges found, {false} false; {len(f.missing)} missing, "
            f"{sum(edge.explained for edge in f.missing)} of them explained",
        ),
        ("loss", f"{f.test_loss:.4f} = edge posterior {f.references.edge_posterior:.4f} {f.excess:+.4f} nats"),
    ]
    lines += [
        (
            f"head {row['head']}",
            f"{row['role']}; cutting one of its edges costs {row['effect of its edges']:.4f} nats, "
            f"another entry {row['effect of other entries']:.4f} (AUROC {row['AUROC, own edges']:.3f})",
        )
        for row in cuts
    ]
    lines += [("missing", f"{edge.parent} -> {edge.child}: {edge.reason}") for edge in f.missing[:6]]
    if len(f.missing) > 6:
        lines.append(("missing", f"and {len(f.missing) - 6} more, in results.json"))
    lines += [("no head", sentence) for sentence in further_sentences(f.found)]
    seeds = "; ".join(
        f"{r.seed}: excess {r.excess:+.4f} with {f.n_heads[0]} heads, {r.single_excess:+.4f} with one" for r in repeats
    )
    return [
        *lines,
        ("seeds", seeds),
        ("one head", f"excess {repeats[0].single_excess:+.4f} nats; {about_single(task, single)}"),
    ]


def about_single(task: cc.InContextTask, single: Row) -> str:
    """What a single head carries, what it leaves, and which parent of the target it took."""
    roles = [*(head.role for head in single["found"].heads), *further_sentences(single["found"])]
    return "; ".join([*roles, f"why: {why_one_parent(task, single['turn'])}"])


def further_sentences(graph: cc.ExtractedGraph) -> list[str]:
    """What the data show and no head carries."""
    return [
        f"position {further.last_key} is another parent of the target, with parents in {len(further.edges)} rows, "
        f"that no head carries (its rows tell {further.share:.1f} times as much with it)"
        for further in graph.further_parents
    ]


def why_one_parent(task: cc.InContextTask, turn: cc.Turn) -> str:
    """Which parent of the target a single head took, and what the others would have gained it."""
    if turn.last_key is None:
        return "no position gained enough to put the head on duty"
    gains = ", ".join(f"{float(turn.support[t]):.2f} for {t}" for t in task.target_parents)
    return (
        f"one copy at the query holds one token; it was given position {turn.last_key}, which alone gains most "
        f"({gains})"
    )


def make_checks(task: cc.InContextTask, f: Heads, cuts: list[Row], repeats: Sequence[Repeat]) -> list[Check]:
    """The claims, each with the number that decides it."""
    recovered, edges, false = counted(task, f)
    unexplained = sum(not edge.explained for edge in f.missing)
    needed = [row for row in f.ablations if row.heads[0][0] == 0]
    on_duty = {head.head: head.last_key for head in f.found.heads if head.edges}
    return [
        Check(
            not false and not unexplained,
            "The union of what the heads carry is the true graph, but for edges that tell nothing or are of no use",
            f"{recovered} of {edges} edges, {false} false, {len(f.missing)} missing, {unexplained} of them without a "
            "reason",
        ),
        Check(
            f.excess <= MARGIN,
            f"It predicts about as well as the posterior that knows the edges (within {MARGIN} nats)",
            f"test loss {f.test_loss:.4f}, edge posterior {f.references.edge_posterior:.4f}, excess {f.excess:+.4f}",
        ),
        Check(
            set(on_duty.values()) == set(task.target_parents),
            "Heads are read without the graph, and agree with it: each parent of the target has a head of its own",
            "; ".join(f"L0H{head.head} {head.role}" for head in f.found.heads),
        ),
        Check(
            all(row.loss - row.baseline_loss > MARGIN for row in needed if row.heads[0][1] in on_duty),
            f"Each of these heads is needed: without it (its output averaged) the loss rises by {MARGIN} nats or more",
            "; ".join(f"{head_name(r.heads)} {r.loss - r.baseline_loss:+.4f}" for r in needed),
        ),
        Check(
            all(row["AUROC, own edges"] > 0.9 for row in cuts if row["edges"]),
            "Cutting attention entries one by one, in each head it is its own edges that hurt",
            "; ".join(f"{row['head']} AUROC {row['AUROC, own edges']:.3f}" for row in cuts),
        ),
        Check(
            all(repeat.excess <= MARGIN < repeat.single_excess - repeat.excess for repeat in repeats),
            f"From each of {len(repeats)} seeds, {f.n_heads[0]} heads come within {MARGIN} nats of that posterior, "
            f"and a single head, trained for as many steps, stays more than {MARGIN} nats above them",
            "; ".join(f"seed {r.seed}: {r.excess:+.4f} and {r.single_excess:+.4f}" for r in repeats),
        ),
    ]


def make_sections(task: cc.InContextTask, f: Heads, single: Row, cuts: list[Row]) -> list[Section]:
    """The evidence, picture by picture."""
    recovered, edges, false = counted(task, f)
    graph = {"graph": figures.plot_graph_comparison(task.graph, f.found)}
    loss = figures.plot_loss(f.record, loss_lines(task, f), test_loss=f.test_loss)
    found = [
        Section(
            "The heads side by side",
            "Attention of each head of layer 0; open squares are the true edges, and the last row stands for the "
            "target.",
            figures=plot_heads(task, f),
        ),
        Section(
            "The union graph",
            f"{recovered} of {edges} edges were found and {false} false ones drawn. Where several "
            "choices of keys single out the same sequences, the one that can be parents is named.",
            figures=graph,
            table=edge_rows(task, f),
        ),
        Section(
            "The loss in training",
            "Each line is the best that can be predicted with these parents known and the others not.",
            figures={"loss": loss},
        ),
        Section(
            "What each head was given",
            "Minus the mixed second derivative of the loss: what it gains where the head attends from child to parent, "
            "given what the heads before it carry. In the table: the lift of the target probability of a child's token "
            "when one more parent matches, alone and given all other parents.",
            figures=plot_turns(task, f),
            table=f.information,
        ),
        Section(
            "What breaks when an entry is cut",
            "Cutting one attention entry of one head at a time, nats. Entries of less than 1% of their row's attention "
            "were not cut; the last row, which every prediction needs, is in the table only.",
            figures=plot_knock_outs(task, f),
            table=cuts,
        ),
        Section(
            "The same task with a single head",
            f"One head stops {single['loss'] - f.references.edge_posterior:+.4f} nats above the edge posterior: "
            f"{about_single(task, single)}.",
        ),
    ]
    if f.missing:
        missing = "True edges that no head carries, and why."
        found.insert(2, Section("Missing edges", missing, table=[asdict(edge) for edge in f.missing]))
    return found


def loss_lines(task: cc.InContextTask, f: Heads) -> dict[str, float]:
    """Horizontal lines beside the training loss; of more than five sets of parents the best of every size."""
    k = len(task.target_parents)
    known = {which: loss for which, loss in f.parents_known.items() if len(which) < k}
    if len(known) > 5:
        best = [min((which for which in known if len(which) == size), key=known.__getitem__) for size in range(k)]
        known = {which: known[which] for which in best}
    lines = {name_of(which): loss for which, loss in known.items()}
    return {**lines, "edge posterior": f.references.edge_posterior, "entropy": f.references.entropy}


def plot_heads(task: cc.InContextTask, f: Heads) -> dict[str, Any]:
    """The attention of each head."""
    return {
        f"attention_L0H{report.head}": figures.plot_attention_and_graph(
            f.attention[0, report.head], task.graph, title=f"L0H{report.head} {report.role}"
        )
        for report in f.found.heads
    }


def plot_turns(task: cc.InContextTask, f: Heads) -> dict[str, Any]:
    """What each head gained when it was put on duty."""
    return {
        f"turn_L0H{turn.head}": figures.plot_matrix(
            turn.gain,
            task.graph,
            title=f"L0H{turn.head}: gain with its last row on {turn.last_key}",
            label="nats a unit of score",
            diverging=True,
        )
        for turn in f.turns
    }


def plot_knock_outs(task: cc.InContextTask, f: Heads) -> dict[str, Any]:
    """What cutting each entry costs; the target's row serves every prediction: it would drown the others' colours."""
    drawn = {}
    for report in f.found.heads:
        effect = f.effect[report.head].clone()
        effect[-1] = float("nan")
        drawn[f"knock_out_L0H{report.head}"] = figures.plot_matrix(
            effect,
            task.graph,
            title=f"Loss when one entry of L0H{report.head} is cut",
            label="nats above the whole model",
            diverging=True,
        )
    return drawn


def edge_rows(task: cc.InContextTask, f: Heads) -> list[Row]:
    """One row for each edge found."""
    said = {(c.parent, c.child): c.reason for c in f.found.candidates if c.accepted}
    return [
        {
            "parent": parent,
            "child": "target" if child == task.n_ctx else child,
            "heads": ", ".join(f"L0H{head}" for head in f.found.carriers(parent, child)),
            "attention": round(facts["weight"], 3),
            "lift": round(facts["information"], 3),
            "share of a child": round(facts["information_share"], 2),
            "p (Holm)": f"{facts['p_value']:.1e}" if facts["p_value"] > 1e-300 else "< 1e-300",
            "how": said[parent, child],
            "truth": "edge" if task.graph.has_edge(parent, child) else "no edge",
        }
        for parent, child, facts in sorted(f.found.edges(data=True), key=lambda edge: (edge[1], edge[0]))
    ]
