"""Table, figures and page of `gradient_information.py`. Not a script."""

from pathlib import Path
from typing import Any

from agreement import Agreement, Setting

from causal_circuits import figures


def table(measured: Agreement, content: dict[str, Any], out: Path) -> str:
    """The short table that ends a run."""
    lines = [
        "graph   d_vocab alpha n_ctx |  on g: corr slope |  on G: corr slope and its error | G on g: corr slope "
        "| noise | parents"
    ]
    for setting in measured.settings:
        row = setting.row()
        lines.append(
            f"{row['graph']:7s} {row['d_vocab']:7d} {row['alpha']:5.2g} {row['n_ctx']:5d} "
            f"|  {row['corr g']:10.4f} {row['slope g']:5.3f} |  {row['corr G']:10.4f} {row['slope G']:5.3f} "
            f"+- {row['slope G: error']:.3f}      |  {row['G on g: corr']:10.4f} {row['G on g: slope']:5.3f} "
            f"| {row['noise']:5.3f} | {row['parents first']}"
        )
    lines += [
        forest_line(measured),
        f"closed form against a backward pass: relative difference {measured.backward_pass_difference:.1e}",
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
        ("scatter_finite", example["finite"], "G, at this context length"),
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
        "matrix_finite": "G: at this context length",
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
                title=f"The {what} on g tends to 1 as contexts grow; on G it is 1 up to noise",
                group_size=2,
            ),
            folder / f"{quantity}_against_n_ctx",
        )
    figures.save_figure(
        figures.plot_agreement(
            by_sequences(measured),
            "sequences in one gradient",
            "correlation of measured and predicted",
            title="Noise falls with the number of sequences; what is left on g is the short context",
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
    finite = [setting.weights["by_finite"] for setting in measured.settings]
    worst_slope = max(abs(c.slope - 1) for c in finite)
    worst_error = max(setting.prediction_error for setting in measured.settings)
    steep = [abs(s.weights["by_finite"].slope - 1) - 3 * (s.prediction_error + 0.01) for s in measured.settings]
    worst_gap = max(1 - c.noise_share - c.variance_explained for c in finite)
    first = sum(rank == 1 for s in measured.settings for rank in s.weights["by_g"].parent_ranks)
    edges = sum(len(s.weights["by_g"].parent_ranks) for s in measured.settings)
    beaten = sum(s.rivals_beaten for s in measured.settings)
    rivals = sum(s.n_rivals for s in measured.settings)
    wrong = sum(row["edges"] - row["parents_first"] for row in measured.forests)
    return [
        figures.Check(
            max(steep) < 0 and worst_gap < 0.03,
            "The gradient equals the prediction at its own context length, up to sampling noise",
            f"slope on G within {worst_slope:.3f} of 1 (G's kernels alone make an error of up to {worst_error:.3f}); "
            f"at most {max(worst_gap, 0.0):.1%} of the variance is neither "
            "explained nor noise",
        ),
        figures.Check(
            first == edges and beaten == rivals,
            "In every setting the parent is its row's largest entry: no ancestor, sibling or uncle beats it",
            f"{first} of {edges} parents first; {beaten} of {rivals} closest rivals beaten",
        ),
        figures.Check(wrong == 0, "So in random forests of every size", forest_line(measured)),
        figures.Check(
            measured.backward_pass_difference < 0.01,
            "The closed form is what a backward pass through the model gives",
            f"relative difference {measured.backward_pass_difference:.1e} at beta0 = 0.001",
        ),
    ]


def write_page(measured: Agreement, content: dict[str, Any], out: Path) -> None:
    """One self-contained page."""
    command, folder = str(content["command"]), out / "figures"

    def section(title: str, sentence: str, *names: str, more: str = "", wide: bool = False) -> figures.Section:
        shown = "".join(figures.figure_html(folder / name, alt=f"{title}: {name}") for name in names)
        return figures.Section(
            title, sentence, (shown if wide else f'<div class="side-by-side">{shown}</div>') + more, command
        )

    formed = [step for step in measured.formation.formed_at if step is not None]
    figures.write_report(
        out / "report.html",
        title="Is the gradient the mutual information?",
        verdict=verdict(measured),
        sections=[
            section(
                "One gradient, pair by pair",
                "Left, against g, the limit of long contexts: the edges stand out, but lie off the line. Right, "
                "against G, the same at this context length: on the line.",
                "scatter_g",
                "scatter_finite",
            ),
            section(
                "The same as matrices",
                "True edges are outlined. The pale columns, which g lacks, are what a short context does: a position "
                "with children makes its successors frequent, which lowers the column that its token asks for.",
                "matrix_measured",
                "matrix_g",
                "matrix_finite",
            ),
            section(
                "Longer contexts",
                "The slope on g tends to 1 as contexts grow, slowly where kernels are sharp (small alpha): rare tokens "
                "need a long context to show their frequency. The slope on G is 1 up to its error: at sharp kernels "
                "and long contexts a few rare kernels hold much of G, and the kernels drawn for it miss some.",
                "slope_against_n_ctx",
                "correlation_against_n_ctx",
                wide=True,
                more=figures.table_html(
                    [s.row() for s in measured.settings], caption="Every setting, attention weights"
                ),
            ),
            section(
                "More sequences",
                "Against G only noise is left, and it goes; against g the short context's bias stays.",
                "correlation_against_sequences",
                wide=True,
            ),
            section(
                "Over training",
                f"{len(formed)} of {len(measured.formation.edges)} edges form. Rank correlation of how early with the "
                f"pull at the start: {measured.formation.order_agreement:.2f}. An edge that has formed leaves the "
                "gradient, so that its correlation with g falls.",
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
