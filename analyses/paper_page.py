"""One page of everything that `reproduce_paper.py` left in a folder, figure by figure. Not a script."""

from pathlib import Path
from typing import Any

from paper_job import read_results
from paper_table import folders
from results_file import versions

from causal_circuits import figures

GOOD = ("agrees", "improves", "every")
WHAT = {
    "heads": "Attention of each head of layer 0: together they hold both parents of every position.",
    "heads_block": "The same in the paper's metric, the softmax of A1's position block.",
    "loss": "The loss in training, against what can be reached.",
    "weights": "The trained matrices, their slots named, beside the true edges.",
    "attention": "Attention of layer 0, a row for each position that looks; true edges outlined.",
    "attention_by_position": "Attention to the true parent by position; below the line it counts as not learned.",
    "attention_by_graph": "Attention to the true parent, graph by graph, beside what the authors' notebook prints.",
}


def write_page(out: Path, seed: int) -> Path | None:
    """Write report.html from the results and figures that lie in `out`; None if there are none."""
    found = [(folder, result) for folder in folders(out) if (result := read_results(folder)) is not None]
    if not found:
        return None
    try:
        verdict = [check(result) for _, result in found]
        sections = [section(folder, result) for folder, result in found]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"a results.json in {out} is none of this script's ({error!r}): make it again") from error
    return figures.write_report(
        out / "report.html",
        title="How Transformers Learn Causal Structure, figure by figure",
        verdict=verdict,
        sections=sections,
        meta={"seed": str(seed), **{name: str(number) for name, number in versions().items()}},
    )


def name_of(result: dict[str, Any]) -> str:
    """Which figure, trained how."""
    kind = "the paper's training" if result["faithful"] else "our recipe"
    return f"Figure {result['figure']}, {kind}{', at toy size' if result['quick'] else ''}"


def check(result: dict[str, Any]) -> figures.Check:
    """The verdict on one figure, with both sides' numbers."""
    row = result["row"]
    claim = f"{name_of(result)} - {row['what']}: {row['verdict']}."
    return figures.Check(row["verdict"].startswith(GOOD), claim, f"Ours: {row['ours']}. Theirs: {row['theirs']}.")


def section(folder: Path, result: dict[str, Any]) -> figures.Section:
    """A figure's pictures, each under the sentence that says what it shows."""
    stems = sorted(path.with_suffix("") for path in (folder / "figures").glob("*.svg"))
    body = "".join(f"<p>{shows(stem)}</p>" + figures.figure_html(stem, alt=shows(stem)) for stem in stems)
    row = result["row"]
    return figures.Section(name_of(result), f"{row['what']}: {row['verdict']}.", body, result["command"])


def shows(stem: Path) -> str:
    """What a picture shows; those of several graphs begin with the graph's name."""
    for name in sorted(WHAT, key=len, reverse=True):
        if stem.name.endswith(name):
            graph = stem.name.removesuffix(name).strip("_").replace("_", " ")
            return f"{graph}: {WHAT[name]}" if graph else WHAT[name]
    return stem.name.replace("_", " ")
