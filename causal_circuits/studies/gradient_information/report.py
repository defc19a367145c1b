"""What the cells of `gradient_information` add up to: checks with errors, tables, figures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd
import torch
from scipy.stats import t as student_t

import causal_circuits as cc
from causal_circuits import figures
from causal_circuits.pages import Check, Section
from causal_circuits.studies.gradient_information.measure import CHECK_BETA_0, PARTS, Matrices, Setting
from causal_circuits.studies.study import Report

Lines = dict[str, tuple[list[float], list[float]]]


def make_report(rows: Mapping[str, Any]) -> Report:
    """Checks, results, sections and closing table."""
    measured = [row for name, row in rows.items() if name.startswith("setting")]
    forests = [row for name, row in rows.items() if name.startswith("forest")]
    settings = [row["setting"] for row in measured]
    sweep = [point for row in measured for point in row["sweep"]]
    matrices = next(row["matrices"] for row in measured if row["matrices"] is not None)
    formation, difference = rows["training"], rows["closed form"]
    checks = [
        check_slope_on_expectation(settings),
        *check_slope_on_limit(settings),
        *check_parents(settings, forests),
        Check(
            difference < 0.01,
            "The closed form is what a backward pass through the model gives",
            f"relative difference {difference:.1e} at beta0 = {CHECK_BETA_0:g}",
        ),
    ]
    return Report(
        title="Is the gradient the mutual information?",
        checks=checks,
        results={
            "settings": [asdict(setting) for setting in settings],
            "against_sequences": sweep,
            "forests": forests,
            "backward_pass_difference": difference,
            "training": formation_results(formation),
        },
        sections=make_sections(settings, sweep, matrices, formation),
        summary=[
            *((f"{s.graph} {s.d_vocab}", setting_line(s)) for s in settings),
            *(("holds" if check.passed else "fails", f"{check.claim}: {check.evidence}") for check in checks),
        ],
    )


def setting_row(setting: Setting) -> dict[str, Any]:
    """The numbers of the table."""
    by_g, by_finite, bias = (setting.weights[name] for name in ("by_g", "by_finite", "bias"))
    return {
        "graph": setting.graph,
        "d_vocab": setting.d_vocab,
        "alpha": setting.alpha,
        "n_ctx": setting.n_ctx,
        "corr g": by_g.correlation,
        "slope g": by_g.slope,
        "slope g: error": setting.slope_error_g,
        "corr G": by_finite.correlation,
        "slope G": by_finite.slope,
        "slope G: error": setting.slope_error_finite,
        "G on g: corr": bias.correlation,
        "G on g: slope": bias.slope,
        "noise": by_g.noise_share,
        "parents first": f"{sum(rank == 1 for rank in by_g.parent_ranks)}/{len(by_g.parent_ranks)}",
    }


def setting_line(setting: Setting) -> str:
    """One line of the closing table."""
    row = setting_row(setting)
    return (
        f"alpha {row['alpha']:<4g} n_ctx {row['n_ctx']:3d}: slope on g {row['slope g']:.3f} +- "
        f"{row['slope g: error']:.3f} (correlation {row['corr g']:.4f}), on G {row['slope G']:.3f} +- "
        f"{row['slope G: error']:.3f} ({row['corr G']:.4f}); parents first {row['parents first']}"
    )


def formation_results(formation: cc.information.EdgeFormation) -> dict[str, Any]:
    """The training as JSON values."""
    return {
        "steps": list(formation.steps),
        "correlation": [comparison.correlation for comparison in formation.comparisons],
        "rows_right": [comparison.rows_right for comparison in formation.comparisons],
        "edges": [list(edge) for edge in formation.edges],
        "formed_at": list(formation.formed_at),
        "information": formation.information.tolist(),
        "order_agreement": formation.order_agreement,
    }


def largest_by_chance(n: int) -> float:
    """How many standard errors from 1 the furthest of n slopes lies by chance alone, in 95% of runs at most."""
    return float(student_t.ppf(1 - 0.025 / n, PARTS - 1))


def check_slope_on_expectation(settings: Sequence[Setting]) -> Check:
    """Whether slopes on G are 1 within errors that hold sequences and matrices, and noise is all that is left."""
    finite = [setting.weights["by_finite"] for setting in settings]
    errors = [setting.slope_error_finite for setting in settings]
    furthest = max(abs(c.slope - 1) / error for c, error in zip(finite, errors, strict=True))
    allowed = largest_by_chance(len(settings))
    unexplained = max(1 - c.noise_share - c.variance_explained for c in finite)
    return Check(
        furthest <= allowed and unexplained < 0.03,
        "The measured gradient is G, its own expectation computed without sequences: slope 1 within its error, and "
        "less than 3% of the variance neither explained nor noise",
        f"slopes on G within {max(abs(c.slope - 1) for c in finite):.3f} of 1, their errors {min(errors):.3f} to "
        f"{max(errors):.3f} (sequences and matrices); the furthest is {furthest:.1f} errors from 1, and chance allows "
        f"{allowed:.1f} in {len(settings)} settings; at most {max(unexplained, 0.0):.1%} of the variance is neither "
        "explained nor noise",
    )


def check_slope_on_limit(settings: Sequence[Setting]) -> list[Check]:
    """Whether slopes on g, the information, come closer to 1 in longer contexts; nothing for a single length."""
    lines: dict[tuple[str, int, float], list[Setting]] = {}
    for setting in settings:
        lines.setdefault((setting.graph, setting.d_vocab, setting.alpha), []).append(setting)
    ordered = [sorted(line, key=lambda s: s.n_ctx) for line in lines.values()]
    ends = [(line[0], line[-1]) for line in ordered if line[0].n_ctx < line[-1].n_ctx]
    if not ends:
        return []
    closer = sum(abs(b.weights["by_g"].slope - 1) < abs(a.weights["by_g"].slope - 1) for a, b in ends)
    slopes = [long.weights["by_g"].slope for _, long in ends]
    allowed = largest_by_chance(len(ends))
    apart = sum(abs(long.weights["by_g"].slope - 1) > allowed * long.slope_error_g for _, long in ends)
    return [
        Check(
            closer == len(ends),
            "The slope on g, the information of the limit, is closer to 1 in the longest context than in the shortest",
            f"in {closer} of {len(ends)} lines (of forests, another one at each length); in the longest contexts it is "
            f"{min(slopes):.3f} to {max(slopes):.3f}, "
            f"other than 1 beyond its error in {apart} of {len(ends)}: there the gradient is not the information",
        )
    ]


def check_parents(settings: Sequence[Setting], forests: Sequence[Mapping[str, Any]]) -> list[Check]:
    """Whether parents are the largest entries of their rows, in the settings and in random forests."""
    ranks = [rank for setting in settings for rank in setting.weights["by_g"].parent_ranks]
    first = sum(rank == 1 for rank in ranks)
    beaten, rivals = sum(s.rivals_beaten for s in settings), sum(s.n_rivals for s in settings)
    checks = [
        Check(
            first == len(ranks) and beaten == rivals,
            "In every setting the parent is its row's largest entry: no ancestor, sibling or uncle beats it",
            f"{first} of {len(ranks)} parents first; {beaten} of {rivals} closest rivals beaten",
        )
    ]
    if forests:
        total = pd.DataFrame(forests)[["edges", "parents_first", "recovered", "false_edges"]].sum()
        evidence = (
            f"{len(forests)} random forests: {total.parents_first} of {total.edges} parents are the largest entry of "
            f"their row; recover_graph finds {total.recovered}, {total.false_edges} false edges"
        )
        checks.append(Check(bool(total.parents_first == total.edges), "So in random forests", evidence))
    return checks


def make_sections(
    settings: Sequence[Setting],
    sweep: Sequence[Mapping[str, Any]],
    matrices: Matrices,
    formation: cc.information.EdgeFormation,
) -> list[Section]:
    """The evidence, picture by picture."""
    at_length = " ".join(f"{c.evidence[0].upper()}{c.evidence[1:]}." for c in check_slope_on_limit(settings))
    return [
        Section(
            "Longer contexts",
            f"Theory: the slope on g tends to 1 as contexts grow, the slope on G is 1 at every length. {at_length}",
            figures={f"{what}_against_n_ctx": plot_against_length(settings, what) for what in ("slope", "correlation")},
            table=[setting_row(setting) for setting in settings],
        ),
        Section("One gradient, pair by pair", example_sentence(matrices), figures=scatters(matrices)),
        Section(
            "The same as matrices",
            f"True edges are outlined. {column_sentence(matrices)}",
            figures=matrix_plots(matrices),
        ),
        Section(
            "More sequences",
            sequences_sentence(sweep),
            figures={"correlation_against_sequences": plot_against_sequences(sweep)} if sweep else {},
        ),
        Section(
            "Over training",
            formation_sentence(formation),
            figures={"formation": figures.plot_edge_formation(formation)},
        ),
    ]


def scatters(example: Matrices) -> dict[str, Any]:
    """Measured against predicted, every pair of positions a dot."""
    predictions = {
        "scatter_g": (example.g, "g, the limit of long contexts"),
        "scatter_finite": (example.finite, "G, expected at this context length"),
    }
    return {
        name: figures.plot_gradient_vs_information(
            example.measured.value,
            predicted.value,
            example.graph,
            example.measured.standard_error,
            label=f"predicted: {what}",
        )
        for name, (predicted, what) in predictions.items()
    }


def matrix_plots(example: Matrices) -> dict[str, Any]:
    """Measured and predicted entries below the diagonal."""
    titles = {
        "matrix_measured": (example.measured, "Minus the gradient, measured"),
        "matrix_g": (example.g, "g: the limit of long contexts"),
        "matrix_finite": (example.finite, "G: expected at this context length"),
    }
    drawn = {}
    for name, (information, title) in titles.items():
        below = information.value.tril(-1)
        below[-1] = float("nan")
        drawn[name] = figures.plot_matrix(below, example.graph, title=title, label="in the unit of g", diverging=True)
    return drawn


def plot_against_length(settings: Sequence[Setting], quantity: str) -> Any:
    """A line for each graph and alpha at the smallest vocabulary, on g and on G."""
    lines: Lines = {}
    smallest = min(setting.d_vocab for setting in settings)
    for setting in settings:
        for prediction, key in (("g", "by_g"), ("G", "by_finite")) if setting.d_vocab == smallest else ():
            x, y = lines.setdefault(f"{setting.graph}, alpha {setting.alpha:g}, on {prediction}", ([], []))
            x.append(setting.n_ctx)
            y.append(getattr(setting.weights[key], quantity))
    title = f"The {quantity} against context length, on the limit g and on G at the length itself"
    label = f"{quantity} of measured on predicted"
    return figures.plot_agreement(lines, "context length n_ctx", label, title=title, group_size=2)


def plot_against_sequences(sweep: Sequence[Mapping[str, Any]]) -> Any:
    """A line for each task, on g and on G."""
    lines: Lines = {}
    for point in sweep:
        for prediction, key in (("g", "correlation_by_g"), ("G", "correlation_by_finite")):
            x, y = lines.setdefault(f"{point['graph']}, d_vocab {point['d_vocab']}, on {prediction}", ([], []))
            x.append(point["n_sequences"])
            y.append(point[key])
    title = "Correlation against the number of sequences, on g and on G"
    label = "correlation of measured and predicted"
    return figures.plot_agreement(lines, "sequences in one gradient", label, title=title, group_size=2)


def example_sentence(example: Matrices) -> str:
    """Slope and correlation of the setting shown pair by pair, on g and on G."""
    on_g, on_finite = (
        cc.compare_gradient(example.measured.value, predicted.value, example.graph)
        for predicted in (example.g, example.finite)
    )
    return (
        f"First against g, the limit of long contexts: correlation {on_g.correlation:.3f}, slope {on_g.slope:.3f}; "
        f"then against G, the expected gradient at this context length: {on_finite.correlation:.3f} and "
        f"{on_finite.slope:.3f}."
    )


def column_sentence(example: Matrices) -> str:
    """How much lower than g the columns of positions with children are, and the other columns, edges left out."""
    below = (example.measured.value - example.g.value).tril(-1)[:-1, :-1]
    counted = torch.ones_like(below, dtype=torch.bool).tril(-1)
    for parent, child in cc.latent_edges(example.graph):
        counted[child, parent] = False
    n = len(below)
    has_children = torch.tensor([any(child < n for child in example.graph.successors(j)) for j in range(n)])
    means = [float(below[counted & columns].mean()) for columns in (has_children[None, :], ~has_children[None, :])]
    return (
        f"Measured less g, mean over pairs that are no edge: {means[0]:+.3f} in columns of positions with children, "
        f"{means[1]:+.3f} in the others."
    )


def sequences_sentence(sweep: Sequence[Mapping[str, Any]]) -> str:
    """Correlations from the fewest and from all sequences, and what the noise alone would leave."""
    if not sweep:
        return "Not swept in this run."
    means = pd.DataFrame(sweep).groupby("n_sequences")[["correlation_by_finite", "correlation_by_g", "noise_share"]]
    few, many = means.mean().iloc[0], means.mean().iloc[-1]
    return (
        f"From {few.name:,} to {many.name:,} sequences the mean correlation goes from "
        f"{few.correlation_by_finite:.3f} to {many.correlation_by_finite:.3f} on G, and from "
        f"{few.correlation_by_g:.3f} to {many.correlation_by_g:.3f} on g; the share of noise in the measured variance "
        f"from {few.noise_share:.3f} to {many.noise_share:.3f}."
    )


def formation_sentence(formation: cc.information.EdgeFormation) -> str:
    """Which edges form, in which order, and what becomes of the correlation with g."""
    formed = [step for step in formation.formed_at if step is not None]
    start, end = (formation.comparisons[at].correlation for at in (0, -1))
    return (
        f"{len(formed)} of {len(formation.edges)} edges form. Rank correlation of how early with the pull at the "
        f"start: {formation.order_agreement:.2f}. The gradient's correlation with g goes from {start:.2f} at step "
        f"{formation.steps[0]} to {end:.2f} at step {formation.steps[-1]:,}."
    )
