"""Figure 9: the paper's 20 random forests, in the paper's metric and in the real attention."""

from collections.abc import Sequence
from functools import partial
from math import isfinite
from statistics import fmean
from typing import Any

import pandas as pd

import causal_circuits as cc
from causal_circuits import figures
from causal_circuits.pages import Section
from causal_circuits.studies.reproduce_paper import measuring
from causal_circuits.studies.reproduce_paper.measuring import PaperFigure, Row
from causal_circuits.studies.tables import figure_9_graphs, interval

RECORDED = "block attention 0.8366 (sd 0.0540), 176 of 182 above .5"
CHOSEN_ON = (0, 13)  # graphs on which the default recipe was chosen: what it reaches on them is no test of it
COUNTS = [
    "edges",
    "recovered",
    "false_edges",
    "recovered_attention_alone",
    "false_edges_attention_alone",
    "above_half_attention",
    "above_half_block",
]


def report(number: str, cells: Sequence[Row]) -> PaperFigure:
    graphs, run = [found for cell in cells for found in cell["graphs"]], cells[0]["run"]
    recorded = [graph["recorded_parent_attention"] for graph in figure_9_graphs()]  # as the authors' notebook prints it
    rows = [
        {"graph": found["name"], "recorded_block_attention": recorded[found["name"]], **found["numbers"]}
        for found in graphs
    ]
    ours, theirs, more = counts(pooled(rows)), RECORDED, {"run": run}
    if run is None:
        held_out = pooled(not_chosen_on(rows))
        more = {"held_out": {"chosen_on": CHOSEN_ON, "graphs": len(not_chosen_on(rows)), **held_out}}
        ours += (
            f"; without graphs {CHOSEN_ON[0]} and {CHOSEN_ON[1]}, on which the recipe was chosen: {counts(held_out)}"
        )
    if len(rows) < 20:
        theirs += f"; on these {len(rows)} graphs {fmean(row['recorded_block_attention'] for row in rows):.4f}"
    return PaperFigure(
        {"graphs": rows, "pooled": pooled(rows), "against_record": against_record(rows), **more},
        what=f"{len(rows)} forests, (3, 20)",
        ours=ours,
        theirs=theirs,
        verdict=default_verdict(rows) if run is None else faithful_verdict(rows),
        sections=[draw(rows, graphs)],
        models={f"graph_{found['name']:02d}": partial(cc.save_model, found["model"]) for found in graphs},
    )


def pooled(rows: Sequence[Row]) -> dict[str, Any]:
    """All graphs together: means over graphs (as the paper's), and over edges."""
    of = pd.DataFrame(rows)
    edges = pd.DataFrame([edge for row in rows for edge in row["parent_attention"]])
    differences = of.mean_block_attention - of.recorded_block_attention
    numbers = {
        "mean_block_attention": of.mean_block_attention.mean(),
        "sd_block_attention": of.mean_block_attention.std(),
        "mean_parent_attention": of.mean_parent_attention.mean(),
        "sd_parent_attention": of.mean_parent_attention.std(),
        "mean_parent_attention_over_edges": edges.attention.mean(),
        "mean_block_attention_over_edges": edges.block.mean(),
        "loss": of.loss.mean(),
        "edge_posterior": of.edge_posterior.mean(),
        "largest_excess": of.excess.max(),
        "mean_difference_to_recorded": differences.mean(),
        "largest_difference_to_recorded": differences.abs().max(),
    }
    return {
        **{name: int(total) for name, total in of[COUNTS].sum().items()},
        **{name: float(value) for name, value in numbers.items()},
        "unlearned_block": unlearned(rows, "block"),
        "unlearned_attention": unlearned(rows, "attention"),
    }


def not_chosen_on(rows: Sequence[Row]) -> list[Row]:
    """The graphs that had no part in the choice of the default recipe."""
    return [row for row in rows if row["graph"] not in CHOSEN_ON]


def against_record(rows: Sequence[Row]) -> dict[str, float]:
    """Mean block attention to the parent less the authors', on the same graphs, with its 95% interval (Student's t)."""
    differences = [row["mean_block_attention"] - row["recorded_block_attention"] for row in rows]
    low, high = interval(differences)
    return {"mean": fmean(differences), "low": low, "high": high, "n": len(rows)}


def unlearned(rows: Sequence[Row], metric: str) -> list[dict[str, Any]]:
    """Every edge at or below one half in a metric: is its parent a root, and had it a child already?"""
    found = []
    for row in rows:
        for edge in row["parent_attention"]:
            if edge[metric] <= 0.5:
                siblings = [child for child in range(edge["child"]) if row["parents"][child] == edge["parent"]]
                root = row["parents"][edge["parent"]] is None
                found.append({"graph": row["graph"], **edge, "parent_is_root": root, "earlier_children": siblings})
    return found


def counts(p: Row) -> str:
    """What was found and reached on some graphs."""
    return (
        f"{measuring.edges_found(p)}; attention {spread(p, 'parent_attention')}, block {spread(p, 'block_attention')}; "
        f"above .5: {p['above_half_attention']} in attention, {p['above_half_block']} in the block; "
        f"loss {p['loss']:.4f}, edge posterior {p['edge_posterior']:.4f}"
    )


def spread(p: Row, name: str) -> str:
    """A mean over graphs and its standard deviation, which one graph has not."""
    deviation = p[f"sd_{name}"]
    return f"{p[f'mean_{name}']:.4f} " + (f"(sd {deviation:.4f})" if isfinite(deviation) else "(one graph)")


def compared(rows: Sequence[Row], level: str, above: str, below: str) -> str:
    """The words for where the difference to the record lies, and its interval."""
    found = against_record(rows)
    word = {"level with": level, "above": above, "below": below}[measuring.place(found["low"], found["high"])]
    return (
        f"{word}; block attention less the record, in pairs: {found['mean']:+.4f} "
        f"[{found['low']:+.4f}, {found['high']:+.4f}] on {found['n']} graphs"
    )


def faithful_verdict(rows: Sequence[Row]) -> str:
    """Whether the paper's training, run again, gives the recorded attention: paired, graph by graph."""
    differs = "differs: {} than recorded"
    return compared(rows, "agrees within the interval", differs.format("higher"), differs.format("lower"))


def default_verdict(rows: Sequence[Row]) -> str:
    """Whether our recipe reaches more than the record, judged on the graphs that it was not chosen on."""
    judged = not_chosen_on(rows)
    if len(judged) < 2:
        return f"{len(judged)} graphs that the recipe was not chosen on: too few to compare with the record"
    p, words = pooled(judged), compared(judged, "level with the record", "improves", "falls short")
    below = "below" if p["loss"] < p["edge_posterior"] else "not below"
    found = f"{measuring.graph_found(p)}; loss {below} the edge posterior"
    return f"{words} that the recipe was not chosen on; there {found}"


def draw(rows: Sequence[Row], graphs: Sequence[Row]) -> Section:
    """Every graph's attention; that to the parent graph by graph beside the authors' numbers, and by position."""
    per_graph = {
        "real attention": "mean_parent_attention",
        "softmax of the block": "mean_block_attention",
        "the authors' (block)": "recorded_block_attention",
    }
    values = {name: {f"graph {row['graph']}": row[key] for row in rows} for name, key in per_graph.items()}
    label = "attention to the true parent, mean over a graph's edges"
    title = "graph {graph}\n{mean_block_attention:.2f} ({recorded_block_attention:.2f})"
    titles = [title.format(**row) for row in rows]
    panels = {name: measuring.block_attention(found["model"]) for name, found in zip(titles, graphs, strict=True)}
    true = {name: found["true"] for name, found in zip(titles, graphs, strict=True)}
    plots: dict[str, Any] = {
        "forests": figures.plot_attentions(panels, true),
        "attention_by_graph": figures.plot_groups(values, xlabel=label, levels={"one half": 0.5}),
    }
    shows = (
        "Softmax of layer 0's position block on every forest, the true edges outlined: above each its mean on them, "
        "and in brackets what the authors' notebook prints; then graph by graph."
    )
    return Section("attention", shows, figures=plots)
