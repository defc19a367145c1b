"""Which edges of Figure 9 the paper's training leaves unlearned, what frees them, what predicts them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import scipy  # type: ignore[import-untyped]  # its parts are imported with their first use

from causal_circuits import figures
from causal_circuits.pages import Check, Section
from causal_circuits.pages.report import State
from causal_circuits.statistics import auroc
from causal_circuits.studies.study import Cell, Report, Study, at_least
from causal_circuits.studies.tables import dots_of, is_positive, markdown
from causal_circuits.studies.unlearned_edges.measure import TARGETS, measure_figure_9, train_all

Row = Mapping[str, Any]
Rows = Sequence[Row]
ByVariant = Mapping[str, Mapping[str, Row]]  # variant -> edge -> row
CONTROLS = ("as it is", "as many strangers made roots")
EXPLANATIONS = {
    "earlier siblings made roots": "Redundancy: without its earlier siblings the edge is learned",
    "siblings moved behind": "Redundancy: with the siblings behind it the edge is learned",
    "parent given a parent": "Root: it is the parent's having no cause that matters",
    "roots uniform": "Root law: with uniform roots, whose tokens have fewer witnesses, the edge is learned",
    "child moved forward": "Late: at the first free position after its siblings the edge is learned",
}
GROUPS = ("Figure 9", "new forests")
LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class Config(Study):
    """Which edges the paper's training leaves unlearned in Figure 9, what frees them, and what predicts them.

    Asked of the edges that are at or below one half (block attention) at the end of the paper's training with each
    of three seeds: joint gradient descent from zero, rate 1, 2^14 steps. Graphs are changed in what an explanation says
    should free the edge, beside a control, and trained in that way:

        redundancy   earlier siblings match the query in the same sequences: take them away, or move them behind
        root         a root's token has no cause: give the parent a parent, an earlier position
        root law     frequent tokens of roots have many witnesses: draw roots uniformly
        late         a late row begins with little attention on each position: move the child forward
        control      take away the edges of as many children that are no siblings

    Each explanation is also a number of an edge, known before training: which edges does it tell, in Figure 9, where
    the explanations were thought of, and in forests of the same law that nobody had looked at? And in the trained
    models: the gradient of the slow edge, with its earlier siblings' attention rows made uniform by a hook, against the
    same done to as many strangers' rows.

        python analyses/unlearned_edges.py                 # some six minutes of processor time
    """

    QUICK: ClassVar = {"steps": 20, "batch_size": 64, "targets": 1, "forests": 2}

    steps: int = 2**14  #: of gradient descent (the paper's: 16384)
    batch_size: int = 256  #: sequences a step (the paper's: 1024)
    targets: int = len(TARGETS)  #: edges to change
    forests: int = 40  #: new forests to predict

    def check(self) -> None:
        at_least(1, steps=self.steps, batch_size=self.batch_size, targets=self.targets)
        at_least(2, forests=self.forests)

    def cells(self) -> list[Cell]:
        """One training of all models side by side, and what each explanation makes of the edges of Figure 9."""
        return [Cell("training", train_all, asdict(self), scratch=True), Cell("figure 9", measure_figure_9)]

    def report(self, rows: Mapping[str, Any]) -> Report:
        changed, edges, known = rows["training"]["rows"], rows["training"]["edges"], rows["figure 9"]
        by, groups = by_variant(changed), dict(zip(GROUPS, (known, edges), strict=True))
        predicted = predictions(groups, seed=self.seed)
        told = dots_of(pd.DataFrame(predicted), "cause", "auroc", "forests")
        label, chance = "AUROC: unlearned edges against learned ones", {"chance": 0.5}
        checks = [Check(*judged(name, by)) for name in EXPLANATIONS if name in by] + [best_prediction(predicted)]
        described = f"Figure 9: {describe(known)}. New forests: {describe(edges)}."
        text = (
            "\n## Which edges joint gradient descent leaves unlearned, and why\n\n"
            f"`python analyses/unlearned_edges.py --steps {self.steps} --batch-size {self.batch_size} --targets "
            f"{self.targets} --forests {self.forests} --seed {self.seed}`: gradient descent, rate 1, {self.steps:,} "
            f"steps of {self.batch_size}, from zero; edges that the paper's training (seeds 0, 1, 2) leaves at or "
            "below one half at its end. Block attention to the parent at the end, and the first measured step above "
            f"one half.\n\n{markdown(table_of_variants(by))}\n"
            + "".join(f"* {check.claim}: {check.evidence}.\n" for check in checks)
            + f"\n{gradients_text(by)}\n\n{described}\n\n"
            "AUROC of what each explanation makes of an edge before training (95% from resampled forests):\n\n"
            f"{markdown(table_of_causes(predicted))}"
        )
        return Report(
            title="Which edges the paper's training leaves unlearned",
            checks=checks,
            results={"rows": changed, "edges": edges, "figure_9": known, "predictions": predicted, "section": text},
            sections=[
                Section(
                    "What frees the edge",
                    "One mark for each edge and change; an edge counts as learned to the right of the line at one half "
                    "of block attention (by positions alone, without tokens). The second figure has the edges as they "
                    "are, step by step; the table block attention at the end, and the first step above one half.",
                    figures=plot_changes(by),
                    table=table_of_variants(by),
                ),
                Section(
                    "What predicts it",
                    described,
                    figures={"predictions": figures.plot_groups(told, xlabel=label, levels=chance)},
                    table=table_of_causes(predicted),
                ),
            ],
        )


def by_variant(rows: Rows) -> dict[str, dict[str, Row]]:
    by: dict[str, dict[str, Row]] = {}
    for row in rows:
        by.setdefault(row["variant"], {})[f"graph {row['graph']}: {row['parent']} -> {row['of_child']}"] = row
    return by


def learned(of_variant: Mapping[str, Row]) -> set[str]:
    return {edge for edge, row in of_variant.items() if row["block_attention"] > 0.5}


def judged(name: str, by: ByVariant) -> tuple[State, str, str]:
    """Whether a change frees more of the edges than the control does: a sign test over the edges that differ."""
    freed, control = learned(by[name]), set().union(*(learned(by[other]) for other in CONTROLS)) & by[name].keys()
    only, instead = len(freed - control), len(control - freed)
    p = float(scipy.stats.binom.sf(only - 1, only + instead, 0.5))
    counted = f"it frees {len(freed)} of {len(by[name])}, no change or the control {len(control)}"
    said = f"{'holds' if p <= LEVEL else 'not shown'}: {counted} (sign test, p = {p:.2g})"
    return "passed" if p <= LEVEL else "undecided", EXPLANATIONS[name], said


def predictions(groups: Mapping[str, Rows], *, seed: int, n_boot: int = 1000) -> list[dict[str, Any]]:
    """For each cause and group of forests: AUROC of the unlearned edges, with an interval from resampled forests."""
    found = []
    for group, edges in groups.items():
        unlearned = np.array([edge["unlearned"] for edge in edges])
        forest = np.array([edge["forest"] for edge in edges])
        members = [np.flatnonzero(forest == f) for f in np.unique(forest)]
        generator = np.random.default_rng(seed)
        chosen = [generator.integers(len(members), size=len(members)) for _ in range(n_boot)]
        draws = [np.concatenate([members[k] for k in forests]) for forests in chosen]
        for cause in edges[0]["causes"]:
            score = np.array([edge["causes"][cause] for edge in edges])
            values = np.array([auroc(score[drawn], unlearned[drawn]) for drawn in draws])
            usable = values[~np.isnan(values)]
            low, high = np.quantile(usable, [0.025, 0.975]).tolist() if len(usable) else (float("nan"),) * 2
            row = {"forests": group, "cause": cause, "edges": len(edges), "unlearned": int(unlearned.sum())}
            found.append({**row, "auroc": auroc(score, unlearned), "low": low, "high": high})
    return found


def best_prediction(predicted: Rows) -> Check:
    """The cause that predicts Figure 9 best, and what becomes of it in the new forests."""
    known, new = ({row["cause"]: row for row in predicted if row["forests"] == group} for group in GROUPS)
    best = max(known.values(), key=lambda row: row["auroc"])
    there = new[best["cause"]]
    state = is_positive(there["low"] - 0.5, there["high"] - 0.5)
    return Check(
        state,
        "What predicts Figure 9's unlearned edges best predicts those of new forests",
        f'"{best["cause"]}" tells the unlearned edges best in Figure 9 (AUROC {best["auroc"]:.3f}); in the new forests '
        f"its AUROC is {shown(there)} with {there['unlearned']} of {there['edges']} edges unlearned: it "
        f"{'predicts' if state == 'passed' else 'is not shown to predict'} them",
    )


def shown(row: Row) -> str:
    if np.isnan(row["auroc"]):
        return "not defined"
    return f"{row['auroc']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def describe(edges: Rows) -> str:
    """How far "later child of a root" describes the unlearned edges, and how little it tells which."""
    later = [edge for edge in edges if edge["causes"]["later child of a root"]]
    unlearned, both = (sum(edge["unlearned"] for edge in some) for some in (edges, later))
    return (
        f"{unlearned} of {len(edges)} edges in {len({edge['forest'] for edge in edges})} forests are unlearned; {both} "
        f"of these {unlearned} are later children of a root, and of all {len(later)} later children of a root "
        f"{len(later) - both} are learned"
    )


def gradients_text(by: ByVariant) -> str:
    """What other rows do to the gradient of a slow edge."""
    ratios = {
        name: ", ".join(
            f"{row[f'gradient_{name}'] / row['gradient_as_trained']:.2f}" for row in by["as it is"].values()
        )
        for name in ("sibling_uniform", "stranger_uniform")
    }
    return (
        "Gradient of the slow edge over its value as trained, edge by edge: with its earlier siblings' rows made "
        f"uniform {ratios['sibling_uniform']}; with as many strangers' rows made uniform {ratios['stranger_uniform']}."
    )


def table_of_variants(by: ByVariant) -> list[dict[str, str]]:
    """A row for each variant: block attention at the end and the first step above one half; the edges learned."""

    def cell(row: Row | None) -> str:
        if row is None:
            return "-"
        when = "never" if row["above_half_at"] is None else f"{row['above_half_at']:,}"
        return f"{row['block_attention']:.2f} ({when})"

    return [
        {"variant": name}
        | {edge: cell(rows.get(edge)) for edge in by["as it is"]}
        | {"learned": f"{len(learned(rows))} of {len(rows)}"}
        for name, rows in by.items()
    ]


def table_of_causes(predicted: Rows) -> list[dict[str, str]]:
    table: dict[str, dict[str, str]] = {}
    for row in predicted:
        table.setdefault(row["cause"], {"cause": row["cause"]})[row["forests"]] = shown(row)
    return list(table.values())


def plot_changes(by: ByVariant) -> dict[str, Any]:
    """Block attention at the end, a mark for each edge and change; that of the unchanged edges over the steps."""
    ends = {name: {edge: row["block_attention"] for edge, row in rows.items()} for name, rows in by.items()}
    curves = {edge: row["curve"] for edge, row in by["as it is"].items()}
    label, levels = "block attention of the edge", {"one half": 0.5}
    return {
        "unlearned_edges": figures.plot_groups(ends, xlabel=f"{label} at the end", levels=levels),
        "curves": figures.plot_curves(curves, xlabel="step", ylabel=label, levels=levels),
    }
