"""What the trainings of `unlearned_edges` add up to: which change frees the edges, what predicts them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import binom

from causal_circuits import figures
from causal_circuits.pages import Check, Section
from causal_circuits.statistics import auroc
from causal_circuits.studies.study import Report, Study

Rows = Sequence[Mapping[str, Any]]
CONTROLS = ("as it is", "as many strangers made roots")
EXPLANATIONS = {
    "earlier siblings made roots": 'redundancy, "without its earlier siblings the edge is learned"',
    "siblings moved behind": 'redundancy, "with the siblings behind it the edge is learned"',
    "parent given a parent": 'root, "it is the parent\'s having no cause that matters"',
    "roots uniform": 'root law, "with uniform roots, whose tokens have fewer witnesses, the edge is learned"',
    "child moved forward": 'late, "at the first free position after its siblings the edge is learned"',
}
LEVEL = 0.05


def make_report(rows: Rows, edges: Rows, known: Rows, study: Study) -> Report:
    """Checks, results, sections, and the text for docs/REPRODUCTION.md as closing table."""
    predicted = predictions({"Figure 9": known, "new forests": edges}, seed=study.seed)
    text = section_text(rows, edges, known, predicted, study)
    results = {"rows": rows, "edges": edges, "figure_9": known, "predictions": predicted, "section": text}
    return Report(
        title="Which edges the paper's training leaves unlearned",
        checks=make_checks(rows, predicted),
        results=results,
        sections=make_sections(rows, edges, known, predicted),
        summary=[("", text.strip())],
    )


def make_checks(rows: Rows, predicted: Rows) -> list[Check]:
    """Each explanation beside its control, and the best prediction."""
    by = learned_by_variant(rows)
    checks = [
        Check(judged(name, by)[0], f"{explanation[0].upper()}{explanation[1:]}.", judged(name, by)[1])
        for name, explanation in EXPLANATIONS.items()
        if name in by
    ]
    holds, said = best_prediction(predicted)
    claim = "What predicts Figure 9's unlearned edges best predicts those of new forests"
    return [*checks, Check(holds, claim, said)]


def make_sections(rows: Rows, edges: Rows, known: Rows, predicted: Rows) -> list[Section]:
    """The evidence."""
    changes = [
        {
            "change": row["variant"],
            "graph": row["graph"],
            "edge": f"{row['parent']} to {row['child']}",
            "block attention at the end": row["block_attention"],
            "first step above one half": row["above_half_at"],
        }
        for row in rows
    ]
    return [
        Section(
            "What frees the edge",
            "One mark for each edge and change; an edge counts as learned to the right of the line at one half. Below, "
            "the edges as they are, step by step.",
            figures={"unlearned_edges": plot_changes(rows), "curves": plot_training(rows)},
            table=changes,
        ),
        Section(
            "What predicts it",
            f"Figure 9: {described(known)}. New forests: {described(edges)}.",
            figures=plot_predictions(predicted),
            table=predicted,
        ),
    ]


def edge_of(row: Mapping[str, Any]) -> tuple[int, int, int]:
    """The target that a row is a variant of: rows of one target have its graph, parent and number."""
    return row["graph"], row["parent"], row["of_child"]


def learned_by_variant(rows: Rows) -> dict[str, dict[tuple[int, int, int], bool]]:
    """Variant -> target -> whether it was learned."""
    by: dict[str, dict[tuple[int, int, int], bool]] = {}
    for row in rows:
        by.setdefault(row["variant"], {})[edge_of(row)] = row["block_attention"] > 0.5
    return by


def judged(name: str, by: Mapping[str, Mapping[tuple[int, int, int], bool]]) -> tuple[bool, str]:
    """Whether a change frees more of the edges than the control does: a sign test over the edges that differ."""
    freed = by[name]
    control = {edge: any(by[other][edge] for other in CONTROLS) for edge in freed}
    only, instead = (
        sum(freed[e] and not control[e] for e in freed),
        sum(control[e] and not freed[e] for e in freed),
    )
    p = float(binom.sf(only - 1, only + instead, 0.5))
    counted = f"it frees {sum(freed.values())} of {len(freed)}, no change or the control {sum(control.values())}"
    return p <= LEVEL, f"{'holds' if p <= LEVEL else 'not shown'}: {counted} (sign test, p = {p:.2g})"


def predictions(groups: Mapping[str, Rows], *, seed: int, n_boot: int = 1000) -> list[dict[str, Any]]:
    """For each cause and group of forests: AUROC of the unlearned edges, with an interval from resampled forests."""
    found = []
    for group, edges in groups.items():
        unlearned = np.array([edge["unlearned"] for edge in edges])
        forest = np.array([edge["forest"] for edge in edges])
        members = [np.flatnonzero(forest == f) for f in np.unique(forest)]
        generator = np.random.default_rng(seed)
        draws = [
            np.concatenate([members[k] for k in generator.integers(len(members), size=len(members))])
            for _ in range(n_boot)
        ]
        for cause in edges[0]["causes"]:
            score = np.array([edge["causes"][cause] for edge in edges])
            values = np.array([auroc(score[drawn], unlearned[drawn]) for drawn in draws])
            usable = values[~np.isnan(values)]
            ends = np.quantile(usable, [0.025, 0.975]) if len(usable) else (float("nan"), float("nan"))
            found.append(
                {
                    "forests": group,
                    "cause": cause,
                    "edges": len(edges),
                    "unlearned": int(unlearned.sum()),
                    "auroc": auroc(score, unlearned),
                    "low": float(ends[0]),
                    "high": float(ends[1]),
                }
            )
    return found


def shown(row: Mapping[str, Any]) -> str:
    """An AUROC with its interval."""
    if np.isnan(row["auroc"]):
        return "not defined"
    return f"{row['auroc']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def described(edges: Rows) -> str:
    """How far "later child of a root" describes the unlearned edges, and how little it tells which."""
    later = [edge for edge in edges if edge["causes"]["later child of a root"]]
    unlearned = [edge for edge in edges if edge["unlearned"]]
    both = sum(edge["unlearned"] for edge in later)
    return (
        f"{len(unlearned)} of {len(edges)} edges are unlearned; {both} of these {len(unlearned)} are later children of "
        f"a root, and of all {len(later)} later children of a root {len(later) - both} are learned"
    )


def best_prediction(predicted: Rows) -> tuple[bool, str]:
    """The cause that predicts Figure 9 best, and what becomes of it in the new forests."""
    here = [row for row in predicted if row["forests"] == "Figure 9"]
    best = max(here, key=lambda row: row["auroc"])
    there = next(row for row in predicted if row["forests"] == "new forests" and row["cause"] == best["cause"])
    holds = there["low"] > 0.5
    return holds, (
        f'"{best["cause"]}" tells the unlearned edges best in Figure 9 (AUROC {best["auroc"]:.3f}); in the new forests '
        f"its AUROC is {shown(there)} with {there['unlearned']} of {there['edges']} edges unlearned: it "
        f"{'predicts' if holds else 'is not shown to predict'} them"
    )


def section_text(rows: Rows, edges: Rows, known: Rows, predicted: Rows, study: Any) -> str:
    """The section of docs/REPRODUCTION.md."""
    command = f"python analyses/unlearned_edges.py --steps {study.steps} --batch-size {study.batch_size} "
    command += f"--targets {study.targets} --forests {study.forests} --seed {study.seed}"
    targets = list(dict.fromkeys(edge_of(row) for row in rows))
    lines = [
        "\n## Which edges joint gradient descent leaves unlearned, and why\n\n",
        f"`{command}`: gradient descent, rate 1, {study.steps:,} steps of {study.batch_size}, from zero; edges "
        "that the paper's training (seeds 0, 1, 2) leaves at or below one half at its end. Block attention to the "
        "parent at the end, and the first measured step above one half.\n\n",
        "| variant | " + " | ".join(f"graph {graph}: {p} -> {c}" for graph, p, c in targets) + " |\n",
        "|---|" + "---|" * len(targets) + "\n",
    ]
    for name in dict.fromkeys(row["variant"] for row in rows):
        of_variant = {edge_of(row): row for row in rows if row["variant"] == name}
        cells = [cell(of_variant[edge]) if edge in of_variant else "-" for edge in targets]
        lines.append(f"| {name} | " + " | ".join(cells) + " |\n")
    lines += [
        verdict_text(rows),
        f"\nFigure 9: {described(known)}. {len({e['forest'] for e in edges})} new forests of the same law, trained "
        f"here: {described(edges)}.\n\n",
        "AUROC of what each explanation makes of an edge before training (95% from resampled forests):\n\n",
        "| cause | " + " | ".join(dict.fromkeys(row["forests"] for row in predicted)) + " |\n|---|---|---|\n",
    ]
    for cause in dict.fromkeys(row["cause"] for row in predicted):
        values = [shown(row) for row in predicted if row["cause"] == cause]
        lines.append(f"| {cause} | " + " | ".join(values) + " |\n")
    return "".join([*lines, f"\n{best_prediction(predicted)[1]}.\n"])


def cell(row: Mapping[str, Any]) -> str:
    """Weight and step."""
    when = "never" if row["above_half_at"] is None else f"{row['above_half_at']:,}"
    return f"{row['block_attention']:.2f} ({when})"


def verdict_text(rows: Rows) -> str:
    """What came of the changes, counted."""
    by = learned_by_variant(rows)
    counted = "; ".join(f"{name}: {sum(learned.values())} of {len(learned)}" for name, learned in by.items())
    text = f"\nLearned (above one half): {counted}.\n\n" + "\n".join(
        f"* {explanation}: {judged(name, by)[1]}." for name, explanation in EXPLANATIONS.items() if name in by
    )
    trained = [row for row in rows if "gradient_as_trained" in row]
    ratios = {
        name: ", ".join(f"{row[f'gradient_{name}'] / row['gradient_as_trained']:.2f}" for row in trained)
        for name in ("sibling_uniform", "stranger_uniform")
    }
    return text + (
        "\n\nGradient of the slow edge over its value as trained, edge by edge: with its earlier siblings' rows made "
        f"uniform {ratios['sibling_uniform']}; with as many strangers' rows made uniform "
        f"{ratios['stranger_uniform']}.\n"
    )


def plot_changes(rows: Rows) -> Any:
    """Block attention at the end, a mark for each edge and change."""
    values: dict[str, dict[str, float]] = {}
    for row in rows:
        values.setdefault(row["variant"], {})[edge_name(row)] = row["block_attention"]
    return figures.plot_groups(values, xlabel="block attention of the edge at the end", levels={"one half": 0.5})


def plot_training(rows: Rows) -> Any:
    """Block attention of the unchanged edges over the steps."""
    curves = {edge_name(row): row["curve"] for row in rows if row["variant"] == "as it is"}
    label = "block attention of the edge"
    return figures.plot_curves(curves, xlabel="step", ylabel=label, levels={"one half": 0.5})


def plot_predictions(predicted: Rows) -> dict[str, Any]:
    """AUROC of every cause; nothing where no edge is unlearned."""
    told: dict[str, dict[str, float]] = {}
    for row in predicted:
        if row["auroc"] == row["auroc"]:
            told.setdefault(row["forests"], {})[row["cause"]] = row["auroc"]
    label = "AUROC: unlearned edges against learned ones"
    return {"predictions": figures.plot_groups(told, xlabel=label, levels={"chance": 0.5})} if told else {}


def edge_name(row: Mapping[str, Any]) -> str:
    """The target as figures name it."""
    graph, parent, child = edge_of(row)
    return f"graph {graph}: {parent} -> {child}"
