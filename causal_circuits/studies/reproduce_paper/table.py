"""docs/REPRODUCTION.md: one row a figure, from the results.json files of a folder and nothing else."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import causal_circuits as cc

FIGURES = ("2", "5", "6", "7", "8", "9")
HEAD = """# The paper, figure by figure

Every number below was measured by the command in its row; this file is written by

    python analyses/reproduce_paper.py --table docs/REPRODUCTION.md --out {out}

from the `results.json` of each run. "Theirs" is what the authors' code records (or, where it only draws, a re-run of
their algorithm). *Default* is this package's recipe (one parent: from zero, SGD 3, then Adam .03, nothing written
in; two parents: heads in turns, with match and read-out written in); *faithful* is the paper's own optimiser, schedule,
start and number of steps. Attention is the real pattern averaged over test sequences; "block" is the paper's metric,
the softmax of A1's position block. A verdict compares in pairs - the same graphs, the same sequences - and gives the
mean difference with its 95% interval (Student's t) where the record allows it; else it says that nothing is paired.
Losses in nats; (d_vocab, n_ctx) in brackets. Minutes are wall time on a shared machine, CPU seconds say what the work
cost. Figure 9's record beside three seeds, edge by edge: [FIGURE_9_SEEDS.md](FIGURE_9_SEEDS.md).

| figure | training | what | ours | theirs | verdict | minutes | CPU s | seed | command |
|---|---|---|---|---|---|---|---|---|---|
"""
GRAPHS_HEAD = """
## Figure 9 graph by graph, {training}

| graph | edges | recovered | false | by attention alone | attention | block | theirs (block) | loss | edge posterior |
|---|---|---|---|---|---|---|---|---|---|
"""


def write_table(out: Path, path: Path) -> None:
    """Write the table of what lies in a folder.

    Raises:
        ValueError: a results.json there is something else; it names the folder.
    """
    folders = [out / f"figure_{figure}{kind}" for figure in FIGURES for kind in ("", "_faithful")]
    try:
        found = [read(folder) for folder in folders if (folder / "results.json").is_file()]
        unlearned = next((read(at / "unlearned_edges") for at in (out, out.parent) if has_edges(at)), {"section": ""})
        text = HEAD.format(out=out) + "".join(map(line, found))
        text += "".join(map(graph_by_graph, found)) + unlearned["section"] + not_run(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"a results.json in {out} is none of this study's ({error!r}): make it again") from error
    cc.storage.write_files(path.parent, {path.name: text})


def read(folder: Path) -> dict[str, Any]:
    """A results.json."""
    return dict(cc.storage.read_json(folder / "results.json"))


def has_edges(folder: Path) -> bool:
    """Whether the study of the unlearned edges was run there."""
    return (folder / "unlearned_edges" / "results.json").is_file()


def line(result: Mapping[str, Any]) -> str:
    """The row of one figure."""
    row, kind = result["row"], "faithful" if result["faithful"] else "default"
    cells = [
        result["figure"],
        kind + (" (quick)" if result["quick"] else ""),
        row["what"],
        row["ours"],
        row["theirs"],
        f"**{row['verdict']}**",
        f"{result['minutes']:.1f}",
        f"{result['cpu_s']:.0f}",
        str(result["seed"]),
        f"`{result['command']}`",
    ]
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |\n"


def graph_by_graph(result: Mapping[str, Any]) -> str:
    """The graphs of Figure 9, each beside its recorded number."""
    if result["figure"] != "9":
        return ""
    text = GRAPHS_HEAD.format(training="the paper's training" if result["faithful"] else "our recipe")
    for row in result["graphs"]:
        text += (
            f"| {row['graph']} | {row['edges']} | {row['recovered']} | {row['false_edges']} | "
            f"{row['recovered_attention_alone']}, {row['false_edges_attention_alone']} false | "
            f"{row['mean_parent_attention']:.4f} | {row['mean_block_attention']:.4f} | "
            f"{row['recorded_block_attention']:.4f} | {row['loss']:.4f} | {row['edge_posterior']:.4f} |\n"
        )
    for metric, words in (("block", "the block's softmax"), ("attention", "real attention")):
        edges = result["pooled"][f"unlearned_{metric}"]
        text += f"\nAt or below one half in {words}: {': '.join([str(len(edges)), *listed(edges)])}.\n"
    return text


def listed(edges: Sequence[Mapping[str, Any]]) -> list[str]:
    """Edges in words; none for no edge."""
    said = "; ".join(
        f"graph {edge['graph']}: {edge['parent']} -> {edge['child']} (block {edge['block']:.2f}, attention "
        f"{edge['attention']:.2f}, {'root' if edge['parent_is_root'] else 'inner'} parent, earlier children "
        f"{edge['earlier_children'] or 'none'})"
        for edge in edges
    )
    return [said] if said else []


def not_run(results: Sequence[Mapping[str, Any]]) -> str:
    """What the folder does not have."""
    have = {(result["figure"], bool(result["faithful"])) for result in results}
    wanted = [(figure, faithful) for figure in FIGURES for faithful in (False, True)]
    have |= {("8", not faithful) for figure, faithful in have if figure == "8"}  # it has one training, the paper's
    absent = [
        f"figure {n} ({'faithful' if faithful else 'default'})" for n, faithful in wanted if (n, faithful) not in have
    ]
    said = ", ".join(absent) or "nothing"
    return f"\n## What is not here\n\nNot run: {said}. (Figure 8 has one training, the paper's.)\n"
