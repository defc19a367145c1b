"""docs/REPRODUCTION.md: one row a figure, from the results.json files of a folder and nothing else."""

from collections.abc import Sequence
from pathlib import Path

import causal_circuits as cc
from causal_circuits.studies.reproduce_paper.measuring import Row
from causal_circuits.studies.tables import markdown

FIGURES = ("2", "5", "6", "7", "8", "9")
HEAD = """# The paper, figure by figure

Every number below was measured by the command in its row; this file is written by

    python analyses/reproduce_paper.py --table docs/REPRODUCTION.md --out {out}

from the `results.json` of each run. "Theirs" is what the authors' code records (or, where it only draws, a re-run of
their algorithm). *Default* is this package's recipe (one parent: from zero, SGD 3, then Adam .03, nothing written in;
two parents: parents, match and read-out written in from sequences); *faithful* is the paper's own optimiser,
schedule, start and number of steps. Attention is the real pattern averaged over test sequences; "block" is the
paper's metric, the softmax of the position block of layer 0's weights (its A1). A verdict compares in pairs - the
same graphs, the same sequences - and gives the mean difference with its 95% interval (Student's t) where the record
allows it; else it says that nothing is paired. Losses in nats; (d_vocab, n_ctx) in brackets. Minutes are wall time on
a shared machine, CPU seconds say what the work cost, both since the last kill, if there was one. Figure 9's record
beside three seeds, edge by edge: [FIGURE_9_SEEDS.md](FIGURE_9_SEEDS.md).

"""


def write_table(out: Path, path: Path) -> None:
    """Write the table of what lies in a folder; a ValueError for a results.json that is something else."""
    folders = [out / f"figure_{figure}{kind}" for figure in FIGURES for kind in ("", "_faithful")]
    try:
        found = [cc.storage.read_json(at / "results.json") for at in folders if (at / "results.json").is_file()]
        text = HEAD.format(out=out) + markdown([row_of(result) for result in found])
        text += "".join(graph_by_graph(result) for result in found if result["figure"] == "9")
        text += section_of_unlearned_edges(out) + not_run(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"a results.json in {out} is none of this study's ({error!r}): make it again") from error
    cc.storage.write_files(path.parent, {path.name: text})


def row_of(result: Row) -> Row:
    row, kind = result["row"], "faithful" if result["faithful"] else "default"
    return {
        "figure": result["figure"],
        "training": kind + (" (quick)" if result["quick"] else ""),
        "what": row["what"],
        "ours": row["ours"],
        "theirs": row["theirs"],
        "verdict": f"**{row['verdict']}**",
        "minutes": f"{result['minutes']:.1f}",
        "CPU s": f"{result['cpu_s']:.0f}",
        "seed": result["seed"],
        "command": f"`{result['command']}`",
    }


def graph_by_graph(result: Row) -> str:
    """The graphs of Figure 9, each beside its recorded number."""
    rows = [
        {
            "graph": row["graph"],
            "edges": row["edges"],
            "recovered": row["recovered"],
            "false": row["false_edges"],
            "by attention alone": f"{row['recovered_attention_alone']}, {row['false_edges_attention_alone']} false",
            "attention": f"{row['mean_parent_attention']:.4f}",
            "block": f"{row['mean_block_attention']:.4f}",
            "theirs (block)": f"{row['recorded_block_attention']:.4f}",
            "loss": f"{row['loss']:.4f}",
            "edge posterior": f"{row['edge_posterior']:.4f}",
        }
        for row in result["graphs"]
    ]
    training = "the paper's training" if result["faithful"] else "our recipe"
    text = f"\n## Figure 9 graph by graph, {training}\n\n" + markdown(rows)
    for metric, words in (("block", "the block's softmax"), ("attention", "real attention")):
        edges = result["pooled"][f"unlearned_{metric}"]
        text += f"\nAt or below one half in {words}: {len(edges)}{': ' if edges else ''}{listed(edges)}.\n"
    return text


def listed(edges: Sequence[Row]) -> str:
    return "; ".join(
        f"graph {edge['graph']}: {edge['parent']} -> {edge['child']} (block {edge['block']:.2f}, attention "
        f"{edge['attention']:.2f}, {'root' if edge['parent_is_root'] else 'inner'} parent, earlier children "
        f"{edge['earlier_children'] or 'none'})"
        for edge in edges
    )


def section_of_unlearned_edges(out: Path) -> str:
    """What the study of the unlearned edges wrote, in this folder or the one above."""
    places = [folder / "unlearned_edges" / "results.json" for folder in (out, out.parent)]
    return next((str(cc.storage.read_json(place)["section"]) for place in places if place.is_file()), "")


def not_run(results: Sequence[Row]) -> str:
    """What the folder does not have; Figure 8 has one training."""
    have = {(result["figure"], result["faithful"] and result["figure"] != "8") for result in results}
    wanted = [
        (figure, faithful) for figure in FIGURES for faithful in (False, True) if (figure, faithful) != ("8", True)
    ]
    absent = [f"figure {n} ({'faithful' if kind else 'default'})" for n, kind in wanted if (n, kind) not in have]
    said = ", ".join(absent) or "nothing"
    return f"\n## What is not here\n\nNot run: {said}. (Figure 8 has one training, the paper's.)\n"
