"""What the heads carry, what breaks without it, and where a single head stops."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import networkx as nx

import causal_circuits as cc
from causal_circuits import figures
from causal_circuits.pages import Check, Section
from causal_circuits.studies.study import Report
from causal_circuits.studies.tables import p_text

MARGIN = 0.05  # nats
Row = Mapping[str, Any]


def make_report(task: cc.InContextTask, heads: Row, single: Row, repeats: Sequence[Row]) -> Report:
    """Everything, from the heads that were read, a single head's loss and graph, and the seeds."""
    checks = make_checks(task, heads, repeats)
    labels = ("graph", "loss", "heads", "ablated", "cut", "seeds")
    missing = [f"{row['parent']} -> {row['child']}: {row['reason']}" for row in heads["missing"]]
    if len(missing) > 6:
        missing[6:] = [f"and {len(missing) - 6} more, in results.json"]
    return Report(
        title=f"Did these heads share the graph? ({task.graph.graph.get('name', 'DAG')})",
        checks=checks,
        results=make_results(task, heads, single, repeats),
        sections=make_sections(task, heads, single),
        summary=[
            *((label, check.evidence) for label, check in zip(labels, checks, strict=True)),
            *(("missing", sentence) for sentence in missing),
            *(("no head", sentence) for sentence in further_sentences(heads["found"])),
            ("one head", about_single(task, single)),
        ],
        about={"task": repr(task)},
        saved={"model": partial(cc.save_model, heads["model"]), "record": heads["record"].save},
    )


def make_results(task: cc.InContextTask, heads: Row, single: Row, repeats: Sequence[Row]) -> Row:
    """Every number of the table and of the page."""
    found, turn, record = heads["found"], single["turn"], heads["record"]
    return {
        "config": {
            "n_ctx": task.n_ctx,
            "n_heads": cc.models.layout_of(heads["model"]).n_heads,
            "training": record.config,
        },
        "loss": {
            "test": heads["loss"],
            "excess_over_edge_posterior": heads["excess"],
            **asdict(heads["references"]),
            "parents_known": {name_of(which): loss for which, loss in heads["parents_known"].items()},
        },
        "graph": {
            "parents": parents_lists(task.graph),
            "found_parents": parents_lists(found),
            **heads["edges"],
            "head_of_edge": {f"{p}->{c}": found.carriers(p, c) for p, c in sorted(found.edges)},
            "missing": heads["missing"],
            "candidates": [asdict(candidate) for candidate in found.candidates],
        },
        **heads_of(found),
        "turns": [{"head": t.head, "last_key": t.last_key, "support": t.support.tolist()} for t in heads["turns"]],
        "information": heads["information"],
        "knock_out": heads["knock_out"],
        "ablation": [
            {"head": name, "loss": r.loss, "baseline": r.baseline_loss, "standard_error": r.standard_error}
            for name, r in heads["ablated"].items()
        ],
        "single_head": {
            "test_loss": single["loss"],
            "excess_over_edge_posterior": single["excess"],
            "repeats": repeats,
            **heads_of(single["found"]),
            "given": turn.last_key,
            "gain_alone": {str(t): float(turn.support[t]) for t in task.target_parents},
        },
        "timing": {
            "train_s": record.seconds,
            "steps": len(record.losses),
            "train_sequences_per_s": record.sequences_per_s,
            "path": record.path,
        },
    }


def heads_of(found: cc.discovery.ExtractedGraph) -> dict[str, Any]:
    """What each head carries, and the parents that none does."""
    further = [asdict(further) for further in found.further_parents]
    return {"heads": [asdict(head) for head in found.heads], "further_parents": further}


def parents_lists(graph: nx.DiGraph) -> list[list[int]]:
    """The parents of every position and, last, of the target."""
    return [list(cc.graphs.parents_of(graph, node)) for node in sorted(graph.nodes)]


def name_of(which: tuple[int, ...]) -> str:
    """A set of parent numbers in words, counted from 1."""
    return "no parent" if not which else "parent " + " + ".join(str(number + 1) for number in which)


def about_single(task: cc.InContextTask, single: Row) -> str:
    """What a single head carries, what it leaves, and which parent of the target it was given."""
    turn, found = single["turn"], single["found"]
    gains = ", ".join(f"{float(turn.support[t]):.2f} for {t}" for t in task.target_parents)
    why = f"one copy holds one token; it was given position {turn.last_key}, which alone gains most ({gains})"
    if turn.last_key is None:
        why = "no position gained enough to put the head on duty"
    return "; ".join([*(head.role for head in found.heads), *further_sentences(found), f"why: {why}"])


def further_sentences(graph: cc.discovery.ExtractedGraph) -> list[str]:
    """What the data show and no head carries."""
    return [
        f"position {further.last_key} is another parent of the target, with parents in {len(further.edges)} rows, "
        f"that no head carries (its rows tell {further.share:.1f} times as much with it)"
        for further in graph.further_parents
    ]


def make_checks(task: cc.InContextTask, heads: Row, repeats: Sequence[Row]) -> list[Check]:
    """The claims, each with the number that decides it."""
    edges, found = heads["edges"], heads["found"]
    unexplained = sum(not row["explained"] for row in heads["missing"])
    on_duty = {f"L0H{head.head}": head.last_key for head in found.heads if head.edges}
    rises = {name: r.loss - r.baseline_loss for name, r in heads["ablated"].items() if name.startswith("L0")}
    return [
        Check(
            not edges["false_edges"] and not unexplained,
            "The union of what the heads carry is the true graph, but for edges that tell nothing or are of no use",
            f"{edges['recovered']} of {edges['edges']} edges, {edges['false_edges']} false, {len(heads['missing'])} "
            f"missing, {unexplained} of them without a reason",
        ),
        Check(
            heads["excess"] <= MARGIN,
            f"It predicts about as well as the posterior that knows the edges (within {MARGIN} nats)",
            f"test loss {heads['loss']:.4f}, edge posterior {heads['references'].edge_posterior:.4f}, "
            f"excess {heads['excess']:+.4f}",
        ),
        Check(
            set(on_duty.values()) == set(task.target_parents),
            "Heads are read without the graph, and agree with it: each parent of the target has a head of its own",
            "; ".join(f"L0H{head.head} {head.role}" for head in found.heads),
        ),
        Check(
            all(rise > MARGIN for name, rise in rises.items() if name in on_duty),
            f"Each of these heads is needed: without it (its output averaged) the loss rises by {MARGIN} nats or more",
            "; ".join(f"{name} {rise:+.4f}" for name, rise in rises.items()),
        ),
        Check(
            all(row["AUROC, own edges"] > 0.9 for row in heads["knock_out"] if row["edges"]),
            "Cutting attention entries one by one, in each head it is its own edges that hurt",
            "; ".join(
                f"{row['head']} {row['effect of its edges']:.4f} nats, another entry "
                f"{row['effect of other entries']:.4f} (AUROC {row['AUROC, own edges']:.3f})"
                if row["edges"]
                else f"{row['head']} carries no edge"
                for row in heads["knock_out"]
            ),
        ),
        Check(
            all(row["excess"] <= MARGIN < row["single_excess"] - row["excess"] for row in repeats),
            f"From each of {len(repeats)} seeds, {len(found.heads)} heads come within {MARGIN} nats of that "
            f"posterior, and a single head, trained for as many steps, stays more than {MARGIN} nats above them",
            "; ".join(f"seed {row['seed']}: {row['excess']:+.4f} and {row['single_excess']:+.4f}" for row in repeats),
        ),
    ]


def make_sections(task: cc.InContextTask, heads: Row, single: Row) -> list[Section]:
    """The evidence, picture by picture."""
    edges, found, graph = heads["edges"], heads["found"], task.graph
    names = {head.head: f"L0H{head.head}" for head in found.heads}
    cut = heads["cut"].clone()
    cut[:, -1] = float("nan")  # the last row serves every prediction: it would drown the others' colours
    nats = partial(figures.plot_matrix, graph=graph, diverging=True)
    return [
        Section(
            "The heads side by side",
            "Attention of each head of layer 0; open squares are the true edges, and the last row stands for the "
            "target.",
            figures={
                f"attention_{names[head.head]}": figures.plot_attention_and_graph(
                    heads["attention"][head.head], graph, title=f"{names[head.head]} {head.role}"
                )
                for head in found.heads
            },
        ),
        Section(
            "The union graph",
            f"{edges['recovered']} of {edges['edges']} edges were found and {edges['false_edges']} false ones drawn. "
            "Where several choices of keys single out the same sequences, the one that can be parents is named.",
            figures={"graph": figures.plot_graph_comparison(graph, found)},
            table=edge_rows(task, found),
        ),
        Section(
            "Missing edges",
            f"{len(heads['missing'])} true edges are carried by no head; each with the reason.",
            table=heads["missing"],
        ),
        Section(
            "The loss in training",
            "Each line is the best that can be predicted with so many parents known and the others not.",
            figures={"loss": figures.plot_loss(heads["record"], loss_lines(task, heads), test_loss=heads["loss"])},
        ),
        Section(
            "What each head was given",
            "Minus the mixed second derivative of the loss: what it gains where the head attends from child to parent, "
            "given what the heads before it carry. In the table: the lift of the target probability of a child's token "
            "when one more parent matches, alone and given all other parents.",
            figures={
                f"turn_L0H{turn.head}": nats(
                    turn.gain,
                    title=f"L0H{turn.head}: gain with its last row on {turn.last_key}",
                    label="nats a unit of score",
                )
                for turn in heads["turns"]
            },
            table=heads["information"],
        ),
        Section(
            "What breaks when an entry is cut",
            "Cutting one attention entry of one head at a time, nats. Entries of less than 1% of their row's attention "
            "were not cut; the last row, which every prediction needs, is in the table only.",
            figures={
                f"knock_out_{name}": nats(
                    cut[head], title=f"Loss when one entry of {name} is cut", label="nats above the whole model"
                )
                for head, name in names.items()
            },
            table=heads["knock_out"],
        ),
        Section(
            "The same task with a single head",
            f"One head ends {single['excess']:+.4f} nats from the edge posterior: {about_single(task, single)}.",
        ),
    ]


def loss_lines(task: cc.InContextTask, heads: Row) -> dict[str, float]:
    """Horizontal lines beside the training loss: for every number of parents known, those that help most."""
    known, references = heads["parents_known"], heads["references"]
    sizes = range(len(task.target_parents))
    best = [min((which for which in known if len(which) == size), key=known.__getitem__) for size in sizes]
    lines = {name_of(which): known[which] for which in best}
    return {**lines, "edge posterior": references.edge_posterior, "entropy": references.entropy}


def edge_rows(task: cc.InContextTask, found: cc.discovery.ExtractedGraph) -> list[Row]:
    """One row for each edge found."""
    said = {(c.parent, c.child): c.reason for c in found.candidates if c.accepted}
    return [
        {
            "parent": parent,
            "child": "target" if child == task.n_ctx else child,
            "heads": ", ".join(f"L0H{head}" for head in found.carriers(parent, child)),
            "attention": facts["weight"],
            "lift": facts["information"],
            "share of a child": facts["information_share"],
            "p (Holm)": p_text(facts["p_value"]),
            "how": said[parent, child],
            "truth": "edge" if task.graph.has_edge(parent, child) else "no edge",
        }
        for parent, child, facts in sorted(found.edges(data=True), key=lambda edge: (edge[1], edge[0]))
    ]
