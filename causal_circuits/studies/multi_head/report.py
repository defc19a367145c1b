"""What the heads carry, what breaks without it, and where a single head stops."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import networkx as nx

import causal_circuits as cc
from causal_circuits import figures
from causal_circuits.pages import Check, Section
from causal_circuits.studies.study import Report
from causal_circuits.studies.tables import edge_table, timing_of

MARGIN = 0.05  # nats
Row = Mapping[str, Any]


def make_report(task: cc.InContextTask, heads: Row, single: Row, repeats: Sequence[Row]) -> Report:
    return Report(
        title=f"Did these heads share the graph? ({task.graph.graph.get('name', 'DAG')})",
        checks=make_checks(task, heads, repeats),
        results=make_results(task, heads, single, repeats),
        sections=make_sections(task, heads, single),
        about={"task": repr(task)},
        saved={"model": partial(cc.save_model, heads["model"]), "record": heads["record"].save},
    )


def make_results(task: cc.InContextTask, heads: Row, single: Row, repeats: Sequence[Row]) -> Row:
    found, record = heads["found"], heads["record"]
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
            "without_graph": heads["without_graph"],
            "parents_known": {name_of(which): loss for which, loss in heads["parents_known"].items()},
        },
        "graph": {
            "parents": parents_lists(task.graph),
            "found_parents": parents_lists(found),
            "inferred": [list(edge) for edge in found.inferred],
            **heads["edges"],
            "head_of_edge": {f"{p}->{c}": found.carriers(p, c) for p, c in sorted(found.edges)},
            "missing": heads["missing"],
            "candidates": found.candidates,
        },
        **heads_of(found),
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
        },
        "timing": timing_of(record),
    }


def heads_of(found: cc.discovery.ExtractedGraph) -> dict[str, Any]:
    """What each head carries, and the target's parents that none does."""
    further = [parent for parent, child in found.inferred if child == found.graph["target"]]
    return {"heads": found.heads, "further_parents": further}


def parents_lists(graph: nx.DiGraph) -> list[list[int]]:
    """The parents of every position and, last, of the target."""
    return [list(cc.graphs.parents_of(graph, node)) for node in sorted(graph.nodes)]


def name_of(which: tuple[int, ...]) -> str:
    """A set of parent numbers in words, counted from 1."""
    return "no parent" if not which else "parent " + " + ".join(str(number + 1) for number in which)


def about_single(single: Row) -> str:
    """What a single head carries, and the target's parents that it leaves."""
    left = heads_of(single["found"])["further_parents"]
    lacking = [f"no last row attends to the target's parents {left}, which the sequences show"] if left else []
    return "; ".join([*(head.role for head in single["found"].heads), *lacking, "one copy holds one token"])


def about_the_graph(heads: Row) -> str:
    """How much of the loss the graph is worth: whether a model that predicts well must have learned it."""
    without = heads["without_graph"]
    n = len(without["direct_draws"])
    return (
        f"without any edge {without['loss']:.4f}, so the graph is worth {without['graph_is_worth']:.4f} nats; {n} "
        f"position{'s are draws' if n != 1 else ' is a draw'} from the target's law itself"
    )


def make_checks(task: cc.InContextTask, heads: Row, repeats: Sequence[Row]) -> list[Check]:
    edges, found = heads["edges"], heads["found"]
    unexplained = sum(not row["explained"] for row in heads["missing"])
    on_duty = {f"L0H{head.head}": head.last_key for head in found.heads if head.edges}
    rises = {name: r.loss - r.baseline_loss for name, r in heads["ablated"].items() if name.startswith("L0")}
    return [
        Check(
            not edges["false_edges"] and not unexplained,
            "The union of what the heads carry is the true graph, but for edges that tell nothing or are of no use",
            f"{edges['recovered']} of {edges['edges']} edges ({edges['attended']} attended, {edges['inferred']} "
            f"inferred), {edges['false_edges']} false; attention alone: "
            f"{edges['attention_alone']['recovered']}, {edges['attention_alone']['false_edges']} false; not attended: "
            f"{kinds(heads['missing'])}",
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


def kinds(missing: Sequence[Row]) -> str:
    counts = Counter(row["kind"] for row in missing)
    return ", ".join(f"{n} {kind}" for kind, n in counts.items()) or "none"


def make_sections(task: cc.InContextTask, heads: Row, single: Row) -> list[Section]:
    edges, found, graph = heads["edges"], heads["found"], task.graph
    attentions = {f"L0H{head.head} {head.role}": heads["attention"][head.head] for head in found.heads}
    attentions |= {f"one head alone: {head.role}": single["attention"][head.head] for head in single["found"].heads}
    names = {head.head: f"L0H{head.head}" for head in found.heads}
    cut = heads["cut"].clone()
    cut[:, -1] = float("nan")  # the last row serves every prediction: it would drown the others' colours
    nats = partial(figures.plot_matrix, graph=graph, diverging=True)
    return [
        Section(
            "The heads side by side, and one head alone",
            "Attention of each head of layer 0, and of a single one trained for as many steps; open squares "
            "are the true edges, and the last row stands for the target. The single head ends "
            f"{single['excess']:+.4f} nats from the edge posterior: {about_single(single)}.",
            figures={"attention": figures.plot_attentions(attentions, graph)},
        ),
        Section(
            "The union graph",
            f"{edges['attended']} of {edges['edges']} edges are attended to and confirmed by the sequences, and drawn "
            f"beside the true graph; {edges['inferred']} more are inferred from the sequences alone.",
            figures={"graph": figures.plot_graph_comparison(graph, found)},
            table=edge_table(found, graph).query("accepted").drop(columns="accepted"),
        ),
        Section(
            "Missing edges",
            f"True edges that no head attends to: {len(heads['missing'])} ({kinds(heads['missing'])}). 'Not learned' "
            "if attending to its row's parents would lower the loss, 'not needed' if it would change nothing, 'decoy' "
            "if the row attends elsewhere and the loss would rise.",
            table=heads["missing"],
        ),
        Section(
            "The loss in training",
            "Each line is the best that can be predicted with so many parents known and the others not; without the "
            f"graph: {about_the_graph(heads)}.",
            figures={"loss": figures.plot_loss(heads["record"], loss_lines(task, heads), test_loss=heads["loss"])},
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
    ]


def loss_lines(task: cc.InContextTask, heads: Row) -> dict[str, float]:
    """Horizontal lines beside the training loss: for every number of parents known, those that help most."""
    known, references = heads["parents_known"], heads["references"]
    sizes = range(len(task.target_parents))
    best = [min((which for which in known if len(which) == size), key=known.__getitem__) for size in sizes]
    lines = {name_of(which): known[which] for which in best}
    return {**lines, "edge posterior": references.edge_posterior, "entropy": references.entropy}
