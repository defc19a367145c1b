"""What `two_stage.py` makes of its measurements: rates with intervals, table, figures, page. Not a script."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from algorithm_1 import GRADIENT_DESCENT, VARIANTS
from going_on import Units
from power_laws import PowerLaw, fit_power_law
from studies import means_by, write_study

from causal_circuits import figures

Rows = Sequence[dict[str, Any]]
QUANTITIES = {
    "missed_attention": "1 - attention to the parent, mean over edges, after stage 1",
    "loss_gap": "loss - entropy, after stage 2 (nats)",
}
THEOREM = {
    "missed_attention": "softmax(A1)_{i, p(i)} >= 1 - O(1 / n_ctx)",
    "loss_gap": "loss - L* falls like a power of the (effective) length",
}
PAPER_SETTING = "d_vocab 3, n_ctx 20, alpha .1"
AUTHORS = 0.8366  # mean parent attention the authors' notebook prints for Figure 9 (SGD, all parameters at once)


def finish(arguments: argparse.Namespace, units: Units, lengths: Rows, figure_9: Rows) -> str:
    """Fit, draw, write; returns the table."""
    laws = fitted(lengths, arguments.seed)
    content = {
        "theorem": THEOREM,
        "exponents": {
            name: {quantity: None if law is None else asdict(law) for quantity, law in of_variant.items()}
            for name, of_variant in laws.items()
        },
        "parting": parting(lengths, laws),
        "lengths": list(lengths),
        "figure_9": list(figure_9),
        "figure_9_summary": figure_9_summary(figure_9),
    }
    write_study(
        arguments,
        units,
        content,
        draw(lengths, figure_9, laws),
        title="Two stages of gradient descent: Theorem 1 beside measurement",
        verdict=verdict(lengths, laws, content["figure_9_summary"]),
        sections=sections(lengths, figure_9, content["parting"]),
    )
    return table(lengths, laws, content["figure_9_summary"], arguments)


def fitted(lengths: Rows, seed: int) -> dict[str, dict[str, PowerLaw | None]]:
    """A power law for each variant and quantity, and one for the edge posterior's loss gap."""
    laws: dict[str, dict[str, PowerLaw | None]] = {}
    for variant in VARIANTS:
        rows = [row for row in lengths if row["variant"] == variant.name]
        at = [row["n_ctx"] for row in rows]
        laws[variant.name] = {name: fit_power_law(at, [row[name] for row in rows], seed=seed) for name in QUANTITIES}
    rows = [row for row in lengths if row["variant"] == VARIANTS[0].name]  # the same test sets for all variants
    gaps = [row["edge_posterior_gap"] for row in rows]
    laws["edge posterior"] = {"loss_gap": fit_power_law([row["n_ctx"] for row in rows], gaps, seed=seed)}
    return laws


def figure_9_summary(figure_9: Rows) -> dict[str, dict[str, float]]:
    """For each variant: the least mean attention over graphs, and how many graphs reach .99."""
    summary = {}
    for variant in VARIANTS:
        rows = [row for row in figure_9 if row["variant"] == variant.name]
        if rows:
            means = [row["mean_parent_attention"] for row in rows]
            summary[variant.name] = {
                "graphs": len(rows),
                "graphs_at_least_99": sum(mean >= 0.99 for mean in means),
                "mean": sum(means) / len(means),
                "least_graph": min(means),
                "least_edge": min(row["min_parent_attention"] for row in rows),
                "parents_row_maximum": sum(row["parents_row_maximum"] for row in rows),
                "edges": sum(row["edges"] for row in rows),
            }
    return summary


def largest_ratio(lengths: Rows, variant: str) -> tuple[float, int]:
    """The largest n_ctx (1 - attention) over lengths (means over seeds), and at which length it is."""
    missed = means_by(lengths, "n_ctx", "missed_attention", variant=variant)
    return max((n_ctx * value, int(n_ctx)) for n_ctx, value in missed)


def parting(lengths: Rows, laws: dict[str, dict[str, PowerLaw | None]]) -> list[str]:
    """Theorem beside measurement, in sentences that this run's numbers decide."""
    said = [attention_sentence(variant.name, lengths, laws[variant.name]["missed_attention"]) for variant in VARIANTS]
    said += [
        loss_sentence(name, laws[name]["loss_gap"])
        for name in (*(variant.name for variant in VARIANTS), "edge posterior")
    ]
    rows = [row for row in lengths if row["variant"] == GRADIENT_DESCENT.name]
    said += [absent_sentence(rows, n_ctx) for n_ctx in sorted({row["n_ctx"] for row in rows})]
    return [*said, match_sentence(means_by(rows, "n_ctx", "match_strength"))]


def attention_sentence(name: str, lengths: Rows, law: PowerLaw | None) -> str:
    """How 1 - attention falls, beside the theorem's exponent -1."""
    largest, at = largest_ratio(lengths, name)
    beside = "" if law is None else f": {law.against(-1.0)}"
    return (
        f"{name}: 1 - attention scales as n_ctx^({law}){beside}; n_ctx (1 - attention) is largest at n_ctx {at}, where "
        f"it is {largest:.2f}. The theorem says O(1 / n_ctx)."
    )


def loss_sentence(name: str, law: PowerLaw | None) -> str:
    """How the loss gap falls, over all lengths and at the long end, beside -1, the rate of counting."""
    if law is None:
        return f"{name}: the loss gap is positive at too few lengths for an exponent."
    return f"{name}: the loss gap scales as n_ctx^({law}); at the long end {long_end(law)}."


def long_end(law: PowerLaw) -> str:
    """The exponent between the two longest lengths, beside -1."""
    last, error = law.last_exponent, law.last_error
    if math.isnan(error):
        return f"its exponent is {last:+.2f}, of one run a length: its error is not known"
    place = "steeper than" if last < -1 - 2 * error else "flatter than" if last > -1 + 2 * error else "no further from"
    within = "" if place != "no further from" else " than two standard errors"
    return f"its exponent is {last:+.2f} +- {error:.2f}, {place} -1{within}"


def absent_sentence(rows: Rows, n_ctx: int) -> str:
    """How much of the loss gap comes from contexts in which some token does not occur (there the model says 0)."""
    at = [row for row in rows if row["n_ctx"] == n_ctx]
    absent = sum(row["share_without_some_token"] for row in at) / len(at)
    gap = sum(row["loss_gap"] for row in at) / len(at)
    kept = sum(row["loss_gap_with_all_tokens"] * (1 - row["share_without_some_token"]) for row in at) / len(at)
    return (
        f"{GRADIENT_DESCENT.name}, n_ctx {n_ctx}: some token is absent from {absent:.1%} of contexts, which hold "
        f"{(gap - kept) / gap:.0%} of the loss gap of {gap:.3g} nats."
    )


def match_sentence(strengths: Sequence[tuple[float, float]]) -> str:
    """Whether stage 2's match grows with the length."""
    values = [strength for _, strength in strengths]
    grows = all(after > before for before, after in pairwise(values))
    shown = ", ".join(f"{n_ctx:.0f}: {strength:.2f}" for n_ctx, strength in strengths)
    return (
        f"{GRADIENT_DESCENT.name}: stage 2 leaves a matching token that much above another in A2, by n_ctx {shown}: it "
        f"{'grows' if grows else 'does not grow'} with every length."
    )


def draw(lengths: Rows, figure_9: Rows, laws: dict[str, dict[str, PowerLaw | None]]) -> dict[str, Any]:
    """Every figure by the name of its file."""
    plots = {}
    for quantity, label in QUANTITIES.items():
        points = {v.name: [(r["n_ctx"], r[quantity]) for r in lengths if r["variant"] == v.name] for v in VARIANTS}
        if quantity == "loss_gap":
            points["edge posterior"] = means_by(lengths, "n_ctx", "edge_posterior_gap")
        found = {name: laws[name][quantity] for name in points}
        fits = {name: (law.prefactor, law.exponent) for name, law in found.items() if law is not None}
        bound = ("1 / n_ctx", 1.0, -1.0) if quantity == "missed_attention" else None
        plots[quantity] = figures.plot_scaling(points, fits, ylabel=label.replace(", ", "\n", 1), bound=bound)
    curves = {
        f"n_ctx {row['n_ctx']}": [(max(step, 1), missed) for step, missed in row["trajectory"] if step]
        for row in lengths
        if row["variant"] == GRADIENT_DESCENT.name and row["seed"] == lengths[0]["seed"]
    }
    plots["stage_1"] = figures.plot_curves(
        curves, xlabel="step of gradient descent", ylabel="1 - attention to the parent", log_y=True
    )
    strength = {v.name: means_by(lengths, "n_ctx", "match_strength", variant=v.name) for v in VARIANTS if v.reduced}
    plots["match_strength"] = figures.plot_curves(
        strength, xlabel="context length n_ctx", ylabel="A2: mean diagonal - mean off-diagonal"
    )
    if figure_9:
        attention = {
            v.name: {f"graph {r['graph']}": r["mean_parent_attention"] for r in figure_9 if r["variant"] == v.name}
            for v in VARIANTS
        }
        levels = {".99": 0.99, "authors' joint SGD, mean": AUTHORS}
        plots["figure_9"] = figures.plot_groups(attention, xlabel="mean attention to the parent", levels=levels)
    return plots


def verdict(lengths: Rows, laws: dict[str, Any], summary: dict[str, dict[str, float]]) -> list[figures.Check]:
    """The claims, each with the numbers that decide it."""
    checks = [
        figures.Check(
            of["graphs_at_least_99"] == of["graphs"],
            f"{name}: after stage 1 the mean attention to the parent is at least .99 on every Figure-9 graph",
            f"{of['graphs_at_least_99']:.0f} of {of['graphs']:.0f} graphs; least {of['least_graph']:.4f}, "
            f"least edge {of['least_edge']:.3f}",
        )
        for name, of in summary.items()
    ]
    for variant in VARIANTS:
        largest, at = largest_ratio(lengths, variant.name)
        checks.append(
            figures.Check(
                largest <= 1.0,
                f"{variant.name}: 1 - attention to the parent is at most 1 / n_ctx at every length",
                f"largest n_ctx (1 - attention) {largest:.3f}, at n_ctx {at}; exponent "
                f"{laws[variant.name]['missed_attention']}",
            )
        )
        runs = [row for row in lengths if row["variant"] == variant.name]
        lowered = sum(row["loss_gap"] < row["loss_gap_after_stage_1"] for row in runs)
        checks.append(
            figures.Check(
                lowered == len(runs),
                f"{variant.name}: stage 2 lowers the loss in every run",
                f"in {lowered} of {len(runs)}; mean gap by n_ctx after stage 1 "
                + ", ".join(f"{n}: {gap:.3g}" for n, gap in means_by(runs, "n_ctx", "loss_gap_after_stage_1"))
                + "; after stage 2 "
                + ", ".join(f"{n}: {gap:.3g}" for n, gap in means_by(runs, "n_ctx", "loss_gap")),
            )
        )
        law = laws[variant.name]["loss_gap"]
        checks.append(
            figures.Check(
                law is not None and law.high < 0,
                f"{variant.name}: the loss gap falls with the length, its exponent's interval below zero",
                f"exponent {law}",
            )
        )
    return checks


def sections(lengths: Rows, figure_9: Rows, said: Sequence[str]) -> list[tuple[str, str, Sequence[str], str]]:
    """The evidence, picture by picture."""
    shown = [{k: v for k, v in row.items() if k not in ("trajectory", "seconds")} for row in lengths]
    parted = figures.table_html([{"theorem and measurement": text} for text in said], caption="Theorem and measurement")
    found = [
        (
            "Attention to the parent against length",
            f"Theorem 1: {THEOREM['missed_attention']}; the dotted line is 1 / n_ctx.",
            ["missed_attention", "stage_1"],
            "",
        ),
        (
            "The loss gap against length",
            f"Theorem 1: {THEOREM['loss_gap']}; the edge posterior is what counting along the true edges gives.",
            ["loss_gap", "match_strength"],
            "",
        ),
        ("Theorem beside measurement", "In sentences that the numbers of this run decide.", [], parted),
    ]
    if figure_9:
        found.insert(
            0,
            (
                "Stage 1 on the graphs of Figure 9",
                f"{PAPER_SETTING}, 100 steps of 1,024 sequences on layer 1's attention alone.",
                ["figure_9"],
                figures.table_html(list(figure_9), caption="After stage 1"),
            ),
        )
    found.append(("Every run", "One row a variant, length and seed.", [], figures.table_html(shown, caption="Runs")))
    return found


def table(lengths: Rows, laws: dict[str, Any], summary: dict[str, Any], arguments: argparse.Namespace) -> str:
    """The short table that ends a run."""
    lines = []
    for name, of in summary.items():
        lines.append(
            f"figure 9    {name:25s} mean attention {of['mean']:.4f}, least graph {of['least_graph']:.4f}; "
            f"{of['graphs_at_least_99']:.0f} of {of['graphs']:.0f} graphs at .99 or more"
        )
    for variant in VARIANTS:
        of_variant = means_by(lengths, "n_ctx", "missed_attention", variant=variant.name)
        values = ", ".join(f"{n_ctx:.0f}: {missed:.2g}" for n_ctx, missed in of_variant)
        lines.append(
            f"attention   {variant.name:25s} 1 - a at {values}; exponent {laws[variant.name]['missed_attention']}"
        )
    gaps = {v.name: means_by(lengths, "n_ctx", "loss_gap", variant=v.name) for v in VARIANTS}
    gaps["edge posterior"] = means_by(lengths, "n_ctx", "edge_posterior_gap")
    for name, series in gaps.items():
        values = ", ".join(f"{n_ctx:.0f}: {gap:.3g}" for n_ctx, gap in series)
        lines.append(f"loss gap    {name:25s} {values}; exponent {laws[name]['loss_gap']}")
    lines.append(f"theorem     {THEOREM['missed_attention']}; {THEOREM['loss_gap']}")
    lines.append(f"look at     {arguments.out / 'report.html'}")
    return "\n".join(lines)
