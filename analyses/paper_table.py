"""docs/REPRODUCTION.md: one row a figure, from the results.json files of the runs and nothing else. Not a script."""

from pathlib import Path
from typing import Any

from paper_job import read_results

import causal_circuits as cc

FIGURES = ("2", "5", "6", "7", "8", "9")
HEAD = """# The paper, figure by figure

Every number below was measured by the command in its row; this file is written by

    python analyses/reproduce_paper.py --table docs/REPRODUCTION.md --out {out}

from the `results.json` of each run. "Theirs" is what the authors' code records (or, where it only draws, a re-run of
their algorithm). *Default* is this package's recipe; *faithful* is the paper's own optimiser, schedule, start and
number of steps. Attention is the real pattern averaged over test sequences; "block" is the paper's metric, the softmax
of A1's position block. Losses in nats; (d_vocab, n_ctx) in brackets. Minutes are wall time on a shared machine, CPU
seconds say what the work cost.

| figure | training | what | ours | theirs | verdict | minutes | CPU s | seed | command |
|---|---|---|---|---|---|---|---|---|---|
"""


# Found once, beside the authors' notebook, edge by edge; its numbers are not part of this repository.
GRAPH_0 = """
### Graph 0, and others that differ from the record

The authors' notebook prints 1 - block attention for every edge. Beside the run of the table (seed 0):

* The children are right: in 20 of 20 graphs the positions with a printed value are those with a parent here.
* The parents are right as far as training tells: all 6 edges that the record leaves unlearned are unlearned here too
  (graphs 9, 12, 13 twice, 15, 19; here also 13: 0 -> 7 and 18: 2 -> 18), which wrong parents would not bring about. One
  function draws the parents of every graph, so graph 0 cannot be wrong alone. There each parent has one child: no
  later sibling, which would make the record lower than our run, and it is higher.
* What differs in graph 0 is every one of its 8 edges. Over the learned edges of a graph, the mean of 1 - attention in
  the record divided by ours is .93 to 1.12 in 13 graphs (in graphs 5 and 14 edge by edge, to .03), .77 to .83 in graphs
  2, 8, 11 and 17, one half in graphs 0 (.073 against .147) and 15 (.093 against .174), and 1.48 in graph 18.
  So graph 0 is not alone: in some runs all of layer 1 has come further at the last step.
* Graph 0 varies from seed to seed, graph 12 hardly does. The faithful recipe (`paper_forests.FAITHFUL`) with other data
  seeds: graph 0 ends at .9043 and .8572 (5001, 5002), .8518, .8439, .8888 and .8926 (6001 to 6004), with the table's
  .8529 a mean of .870 and a standard deviation of .024 (record: .9269); graph 12 at .7633 and .7644 (5003, 5004; table:
  .7710; record: .7622); graph 15 at .7354 and .7694 (6005, 6006; table: .7439; record: .8095).

So the record of graph 0 lies 2.3 standard deviations above seven seeds of ours, .023 above the highest: a run on the
high side rather than another task, but not reached here. Excluded: another tree, a printing error in one edge, later
siblings. Not found: what in a run's data decides how far layer 1 comes on this graph, and why graph 15 too is higher.
"""


def write_table(out: Path, path: Path) -> str:
    """Write the table of what is in `out`; returns a line that says so."""
    results = [found for folder in folders(out) if (found := read_results(folder)) is not None]
    six = read_results(out / "unlearned_edges") or {"section": ""}
    try:
        text = HEAD.format(out=out) + "".join(line(result) for result in results)
        text += "".join(section(result) for result in results) + six["section"] + missing(results)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"a results.json in {out} is none of this script's ({error!r}): make it again") from error
    cc.storage.write_files(path.parent, {path.name: text})
    return f"table       {len(results)} rows in {path}"


def folders(out: Path) -> list[Path]:
    """Where the runs of each figure are: default, then faithful."""
    return [out / f"figure_{figure}{kind}" for figure in FIGURES for kind in ("", "_faithful")]


def line(result: dict[str, Any]) -> str:
    """The row of one run."""
    row, kind = result["row"], "faithful" if result["faithful"] else "default"
    kind += " (quick)" if result["quick"] else ""
    cells = [
        result["figure"],
        kind,
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


def section(result: dict[str, Any]) -> str:
    """Graph by graph, where a figure has many graphs with a recorded number."""
    if result["figure"] != "9" or not result["graphs"]:
        return ""
    kind = "the paper's training" if result["faithful"] else "our recipe"
    if result["faithful"] and not result["complete"]:
        kind += f", at step {result['run']['steps_done']:,} of {result['run']['recipe']['steps']:,}"
    lines = [
        f"\n## Figure 9 graph by graph, {kind}\n\n",
        "| graph | edges | recovered | false | attention | block | theirs (block) | loss | edge posterior |\n",
        "|---|---|---|---|---|---|---|---|---|\n",
    ]
    for row in result["graphs"]:
        lines.append(
            f"| {row['graph']} | {row['edges']} | {row['recovered']} | {row['false_edges']} | "
            f"{row['mean_parent_attention']:.4f} | {row['mean_block_attention']:.4f} | "
            f"{row['recorded_block_attention']:.4f} | {row['loss']:.4f} | {row['edge_posterior']:.4f} |\n"
        )
    for metric, words in (("block", "the block's softmax"), ("attention", "real attention")):
        edges = result["pooled"][f"unlearned_{metric}"]
        lines.append(
            f"\nAt or below one half in {words}: {len(edges)}" + (".\n" if not edges else ": " + listed(edges) + ".\n")
        )
    seed_0 = result["faithful"] and not result["quick"] and result["complete"] and result["seed"] == 0
    return "".join(lines) + (GRAPH_0 if seed_0 else "")  # its numbers are those of this run


def listed(edges: list[dict[str, Any]]) -> str:
    """Edges in words."""
    return "; ".join(
        f"graph {edge['graph']}: {edge['parent']} -> {edge['child']} (block {edge['block']:.2f}, attention "
        f"{edge['attention']:.2f}, {'root' if edge['parent_is_root'] else 'inner'} parent, earlier children "
        f"{edge['earlier_children'] or 'none'})"
        for edge in edges
    )


def missing(results: list[dict[str, Any]]) -> str:
    """What was not run or not finished, said at the end."""
    have = {(result["figure"], result["faithful"]) for result in results}
    absent = [
        f"figure {figure} ({'faithful' if faithful else 'default'})"
        for figure in FIGURES
        for faithful in (False, True)
        if (figure, faithful) not in have and not (figure == "8" and (figure, not faithful) in have)
    ]
    unfinished = [
        f"figure {r['figure']} ({'faithful' if r['faithful'] else 'default'})" for r in results if not r["complete"]
    ]
    text = "\n## What is not here\n\n"
    text += f"Not run: {', '.join(absent) or 'nothing'}. (Figure 8 has one training, the paper's.)\n"
    return text + f"Begun and not finished (the row says at which step): {', '.join(unfinished) or 'nothing'}.\n"
