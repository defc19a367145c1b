"""Table, figures and page of `gradient_information.py`. Not a script."""

from pathlib import Path
from typing import Any

import torch
from agreement import PARTS, Agreement, Setting
from scipy.stats import t as student_t

import causal_circuits as cc
from causal_circuits import figures


def table(measured: Agreement, content: dict[str, Any], out: Path) -> str:
    """The short table that ends a run."""
    lines = [
        "graph   d_vocab alpha n_ctx |  on g: corr, slope and its error |  on G: corr, slope and its error "
        "| G on g: corr, slope | noise | parents"
    ]
    for setting in measured.settings:
        row = setting.row()
        lines.append(
            f"{row['graph']:7s} {row['d_vocab']:7d} {row['alpha']:5.2g} {row['n_ctx']:5d} "
            f"|  {row['corr g']:10.4f} {row['slope g']:5.3f} +- {row['slope g: error']:.3f}      "
            f"|  {row['corr G']:10.4f} {row['slope G']:5.3f} +- {row['slope G: error']:.3f}      "
            f"|   {row['G on g: corr']:8.4f} {row['G on g: slope']:5.3f} "
            f"| {row['noise']:5.3f} | {row['parents first']}"
        )
    lines += [
        *(f"{'holds' if check.passed else 'fails'}: {check.claim}: {check.evidence}" for check in verdict(measured)),
        f"time {content['timing']['wall_s']:.0f} s; look at {out / 'report.html'}",
    ]
    return "\n".join(lines)


def forest_line(measured: Agreement) -> str:
    """The random forests in one sentence."""
    total = {
        key: sum(row[key] for row in measured.forests) for key in ("edges", "parents_first", "recovered", "false_edges")
    }
    return (
        f"{len(measured.forests)} random forests: {total['parents_first']} of {total['edges']} parents are the largest "
        f"entry of their row; recover_graph finds {total['recovered']}, {total['false_edges']} false edges"
    )


def draw_figures(measured: Agreement, folder: Path) -> None:
    """Every figure of the page."""
    example = measured.example
    graph, name = example["task"].graph, example["task"]
    for file, predicted, what in (
        ("scatter_g", example["g"], "g, the limit of long contexts"),
        ("scatter_finite", example["finite"], "G, expected at this context length"),
    ):
        figures.save_figure(
            figures.plot_gradient_vs_information(
                example["measured"].value,
                predicted.value,
                graph,
                example["measured"].standard_error,
                title=f"d_vocab {name.d_vocab}, n_ctx {name.n_ctx}, alpha {name.alpha:g}",
                label=f"predicted: {what}",
            ),
            folder / file,
        )
    matrices = {"matrix_measured": example["measured"], "matrix_g": example["g"], "matrix_finite": example["finite"]}
    titles = {
        "matrix_measured": "Minus the gradient, measured",
        "matrix_g": "g: the limit of long contexts",
        "matrix_finite": "G: expected at this context length",
    }
    for file, information in matrices.items():
        below = information.value.tril(-1)
        below[-1] = float("nan")
        figures.save_figure(
            figures.plot_matrix(below, graph, title=titles[file], label="in the unit of g", diverging=True),
            folder / file,
        )
    for quantity, what in (("slope", "slope"), ("correlation", "correlation")):
        figures.save_figure(
            figures.plot_agreement(
                by_context(measured.settings, quantity),
                "context length n_ctx",
                f"{what} of measured on predicted",
                title=f"The {what} against context length, on the limit g and on G at the length itself",
                group_size=2,
            ),
            folder / f"{quantity}_against_n_ctx",
        )
    figures.save_figure(
        figures.plot_agreement(
            by_sequences(measured),
            "sequences in one gradient",
            "correlation of measured and predicted",
            title="Correlation against the number of sequences, on g and on G",
            group_size=2,
        ),
        folder / "correlation_against_sequences",
    )
    figures.save_figure(figures.plot_edge_formation(measured.formation), folder / "formation")


def by_context(settings: list[Setting], quantity: str) -> dict[str, tuple[list[float], list[float]]]:
    """A line for each graph and alpha at the smallest vocabulary, on g and on G."""
    smallest = min(setting.d_vocab for setting in settings)
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for setting in settings:
        if setting.d_vocab == smallest:
            for prediction, key in (("g", "by_g"), ("G", "by_finite")):
                name = f"{setting.graph}, alpha {setting.alpha:g}, on {prediction}"
                x, y = lines.setdefault(name, ([], []))
                x.append(setting.n_ctx)
                y.append(getattr(setting.weights[key], quantity))
    return lines


def by_sequences(measured: Agreement) -> dict[str, tuple[list[float], list[float]]]:
    """A line for each task, on g and on G."""
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for point in measured.against_sequences:
        for prediction, key in (("g", "correlation_by_g"), ("G", "correlation_by_finite")):
            x, y = lines.setdefault(f"{point['graph']}, d_vocab {point['d_vocab']}, on {prediction}", ([], []))
            x.append(point["n_sequences"])
            y.append(point[key])
    return lines


def verdict(measured: Agreement) -> list[figures.Check]:
    """The claims, each with the number that decides it."""
    first = sum(rank == 1 for s in measured.settings for rank in s.weights["by_g"].parent_ranks)
    edges = sum(len(s.weights["by_g"].parent_ranks) for s in measured.settings)
    beaten = sum(s.rivals_beaten for s in measured.settings)
    rivals = sum(s.n_rivals for s in measured.settings)
    wrong = sum(row["edges"] - row["parents_first"] for row in measured.forests)
    return [
        finite_check(measured.settings),
        *limit_checks(measured.settings),
        figures.Check(
            first == edges and beaten == rivals,
            "In every setting the parent is its row's largest entry: no ancestor, sibling or uncle beats it",
            f"{first} of {edges} parents first; {beaten} of {rivals} closest rivals beaten",
        ),
        *([figures.Check(wrong == 0, "So in random forests", forest_line(measured))] if measured.forests else []),
        figures.Check(
            measured.backward_pass_difference < 0.01,
            "The closed form is what a backward pass through the model gives",
            f"relative difference {measured.backward_pass_difference:.1e} at beta0 = 0.001",
        ),
    ]


def most_errors(n: int) -> float:
    """How many standard errors from 1 the furthest of n slopes lies by chance alone, in 95% of runs at most."""
    return float(student_t.ppf(1 - 0.025 / n, PARTS - 1))


def finite_check(settings: list[Setting]) -> figures.Check:
    """Whether slopes on G are 1 within errors that hold sequences and kernels, and noise is all that is left."""
    finite = [setting.weights["by_finite"] for setting in settings]
    errors = [setting.slope_error_finite for setting in settings]
    furthest = max(abs(c.slope - 1) / error for c, error in zip(finite, errors, strict=True))
    allowed = most_errors(len(settings))
    gap = max(1 - c.noise_share - c.variance_explained for c in finite)
    return figures.Check(
        furthest <= allowed and gap < 0.03,
        "The measured gradient is G, its own expectation computed without sequences: slope 1 within its error, and "
        "less than 3% of the variance neither explained nor noise",
        f"slopes on G within {max(abs(c.slope - 1) for c in finite):.3f} of 1, their errors {min(errors):.3f} to "
        f"{max(errors):.3f} (sequences and kernels); the furthest is {furthest:.1f} errors from 1, and chance allows "
        f"{allowed:.1f} in {len(settings)} settings; at most {max(gap, 0.0):.1%} of the variance is neither explained "
        "nor noise",
    )


def limit_checks(settings: list[Setting]) -> list[figures.Check]:
    """Whether slopes on g, the information, come closer to 1 in longer contexts; nothing for a single length."""
    lines: dict[tuple[str, int, float], list[Setting]] = {}
    for setting in settings:
        lines.setdefault((setting.graph, setting.d_vocab, setting.alpha), []).append(setting)
    ends = [
        (min(of_line, key=lambda s: s.n_ctx), max(of_line, key=lambda s: s.n_ctx))
        for of_line in lines.values()
        if len({s.n_ctx for s in of_line}) > 1
    ]
    if not ends:
        return []
    closer = sum(abs(b.weights["by_g"].slope - 1) < abs(a.weights["by_g"].slope - 1) for a, b in ends)
    slopes = [long.weights["by_g"].slope for _, long in ends]
    allowed = most_errors(len(ends))
    apart = sum(abs(long.weights["by_g"].slope - 1) > allowed * long.slope_error_g for _, long in ends)
    return [
        figures.Check(
            closer == len(ends),
            "The slope on g, the information of the limit, is closer to 1 in the longest context than in the shortest",
            f"in {closer} of {len(ends)} lines (of forests, another one at each length); in the longest contexts it is "
            f"{min(slopes):.3f} to {max(slopes):.3f}, "
            f"other than 1 beyond its error in {apart} of {len(ends)}: there the gradient is not the information",
        )
    ]


def column_sentence(measured: Agreement) -> str:
    """How much lower than g the columns of positions with children are, and the other columns, edges left out."""
    example = measured.example
    graph, g, measured_g = example["task"].graph, example["g"].value, example["measured"].value
    below = (measured_g - g).tril(-1)[:-1, :-1]
    counted = torch.ones_like(below, dtype=torch.bool).tril(-1)
    for parent, child in cc.latent_edges(graph):
        counted[child, parent] = False
    has_children = torch.tensor([bool(set(graph.successors(j)) & set(range(len(below)))) for j in range(len(below))])
    means = [float(below[counted & columns].mean()) for columns in (has_children[None, :], ~has_children[None, :])]
    return (
        f"Measured less g, mean over pairs that are no edge: {means[0]:+.3f} in columns of positions with children, "
        f"{means[1]:+.3f} in the others."
    )


def sequences_sentence(measured: Agreement) -> str:
    """Correlations from the fewest and from all sequences, and what the noise alone would leave."""
    points = measured.against_sequences
    if not points:
        return "Not swept in this run."
    ends = [
        [p for p in points if p["n_sequences"] == n] for n in sorted({p["n_sequences"] for p in points}, reverse=True)
    ]
    many, few = ends[0], ends[-1]

    def mean(of: list[dict[str, Any]], key: str) -> float:
        return sum(point[key] for point in of) / len(of)

    return (
        f"From {few[0]['n_sequences']:,} to {many[0]['n_sequences']:,} sequences the mean correlation goes from "
        f"{mean(few, 'correlation_by_finite'):.3f} to {mean(many, 'correlation_by_finite'):.3f} on G, and from "
        f"{mean(few, 'correlation_by_g'):.3f} to {mean(many, 'correlation_by_g'):.3f} on g; the share of noise in the "
        f"measured variance from {mean(few, 'noise_share'):.3f} to {mean(many, 'noise_share'):.3f}."
    )


def formation_sentence(measured: Agreement) -> str:
    """Which edges form, in which order, and what becomes of the correlation with g."""
    formation = measured.formation
    formed = [step for step in formation.formed_at if step is not None]
    start, end = (formation.comparisons[at].correlation for at in (0, -1))
    return (
        f"{len(formed)} of {len(formation.edges)} edges form. Rank correlation of how early with the pull at the "
        f"start: {formation.order_agreement:.2f}. The gradient's correlation with g goes from {start:.2f} at step "
        f"{formation.steps[0]} to {end:.2f} at step {formation.steps[-1]:,}."
    )


def example_sentence(measured: Agreement) -> str:
    """Slope and correlation of the setting shown pair by pair, on g and on G."""
    example = measured.example
    on_g, on_finite = (
        cc.compare_gradient(example["measured"].value, example[name].value, example["task"].graph)
        for name in ("g", "finite")
    )
    return (
        f"Left, against g, the limit of long contexts: correlation {on_g.correlation:.3f}, slope {on_g.slope:.3f}. "
        f"Right, against G, the expected gradient at this context length: {on_finite.correlation:.3f} and "
        f"{on_finite.slope:.3f}."
    )


def write_page(measured: Agreement, content: dict[str, Any], out: Path) -> None:
    """One self-contained page."""
    command, folder = str(content["command"]), out / "figures"

    def section(title: str, sentence: str, *names: str, more: str = "", wide: bool = False) -> figures.Section:
        shown = "".join(figures.figure_html(folder / name, alt=f"{title}: {name}") for name in names)
        return figures.Section(
            title, sentence, (shown if wide else f'<div class="side-by-side">{shown}</div>') + more, command
        )

    figures.write_report(
        out / "report.html",
        title="Is the gradient the mutual information?",
        verdict=verdict(measured),
        sections=[
            section(
                "One gradient, pair by pair",
                example_sentence(measured),
                "scatter_g",
                "scatter_finite",
            ),
            section(
                "The same as matrices",
                f"True edges are outlined. {column_sentence(measured)}",
                "matrix_measured",
                "matrix_g",
                "matrix_finite",
            ),
            section(
                "Longer contexts",
                "Theory: the slope on g tends to 1 as contexts grow, the slope on G is 1 at every length. "
                + " ".join(f"{c.evidence[0].upper()}{c.evidence[1:]}." for c in limit_checks(measured.settings)),
                "slope_against_n_ctx",
                "correlation_against_n_ctx",
                wide=True,
                more=figures.table_html(
                    [s.row() for s in measured.settings], caption="Every setting, attention weights"
                ),
            ),
            section(
                "More sequences",
                sequences_sentence(measured),
                "correlation_against_sequences",
                wide=True,
            ),
            section(
                "Over training",
                formation_sentence(measured),
                "formation",
                wide=True,
            ),
        ],
        meta={
            "command": command,
            "wall time": f"{content['timing']['wall_s']:.0f} s",
            **{name: str(number) for name, number in content["versions"].items()},
        },
    )
