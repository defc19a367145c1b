"""Claim: edges that the paper's training leaves unlearned in Figure 9 are later siblings, held back by the first.

Under joint gradient descent from zero, six of the authors' 182 edges stay below one half; each has a root as parent
that has an earlier child already. What holds them back? Changed graphs are trained in the paper's way (gradient
descent, rate 1, all at once), each change being what one explanation says should free the edge:

    redundancy   an earlier sibling copies the same token, so both match the query in the same sequences, and a second
                 sample of the same row adds little: take the sibling away, or move it behind the edge
    root         a root's token has no cause: give the parent a parent, an earlier position
    root law     roots follow the kernel's stationary law, so frequent tokens have many witnesses: draw them uniformly
    control      nothing of the kind: take away the edge of a child that is no sibling

And in the trained models: the gradient of the slow edge, with the sibling's attention row made uniform by a hook,
against the same done to a stranger's row.

    python analyses/unlearned_edges.py                 # about three minutes
    python analyses/unlearned_edges.py --quick         # seconds; too short to show anything

Interrupted or killed, the same command goes on where it was. DIR gets report.html (look at this), results.json, with a
section for docs/REPRODUCTION.md, and figures/.
"""

import argparse
import sys

from command_line import base_parser, exit_status, parse, read_figure_9

# (graph, parent, child): below one half at step 6,656 of the faithful Figure 9, one earlier child each.
TARGETS = ((7, 2, 17), (9, 0, 11), (10, 1, 11), (12, 0, 18), (17, 0, 8), (18, 2, 18))
D_VOCAB, ALPHA = 3, 0.1
MEASURED_EVERY = 256
EXPLANATIONS = {
    "sibling made a root": 'redundancy, "without the earlier sibling the edge is learned"',
    "sibling moved behind": 'redundancy, "with the sibling behind it the edge is learned"',
    "parent given a parent": 'root, "it is the parent\'s having no cause that matters"',
    "roots uniform": 'root law, "with uniform roots, whose tokens have fewer witnesses, the edge is learned"',
}


def parse_arguments() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The flags."""
    parser = base_parser(__doc__ or "", "reproduce_paper/unlearned_edges")
    parser.add_argument("--steps", type=int, default=4096, help="of gradient descent (default 4096)")
    parser.add_argument("--batch-size", type=int, default=256, help="sequences a step (default 256)")
    parser.add_argument("--targets", type=int, default=len(TARGETS), metavar="N", help="edges to try (default 6)")
    parser.add_argument("--quick", action="store_true", help="one edge, few steps")
    return parser, parse(parser, {"steps": 20, "batch_size": 64, "targets": 1})


def variants(parents: list[int], parent: int, child: int) -> dict[str, tuple[list[int], str | None, int]]:
    """Name -> (parents, law of the roots, the child watched); what a graph does not allow is left out."""
    sibling = next(other for other in range(child) if parents[other] == parent)

    def changed(**new: int) -> list[int]:
        listed = list(parents)
        for position, value in new.items():
            listed[int(position[1:])] = value
        return listed

    made: dict[str, tuple[list[int], str | None, int]] = {
        "as it is": (list(parents), None, child),
        "sibling made a root": (changed(**{f"p{sibling}": -1}), None, child),
        "roots uniform": (list(parents), "uniform", child),
    }
    stranger = unrelated_child(parents, parent, child)
    made["a stranger made a root"] = (changed(**{f"p{stranger}": -1}), None, child)
    behind = [position for position in range(child + 1, len(parents)) if parents[position] == -1]
    if behind:
        moved = changed(**{f"p{sibling}": -1, f"p{behind[0]}": parent})
        made["sibling moved behind"] = (moved, None, child)
        made["sibling moved behind: the sibling"] = (moved, None, behind[0])
    if parent > 0 and parents[parent] == -1:
        made["parent given a parent"] = (changed(**{f"p{parent}": parent - 1}), None, child)
    return made


def unrelated_child(parents: list[int], parent: int, child: int) -> int:
    """The first child before `child` whose parent is another one."""
    return next(i for i in range(child) if parents[i] not in (-1, parent))


def train_variants(arguments: argparse.Namespace, units: object) -> list[dict[str, object]]:
    """One row for each variant of each target."""
    from paper_job import block_attention
    from paper_training import Recipe, train_recipe

    import causal_circuits as cc

    named = []
    for graph, parent, child in TARGETS[: arguments.targets]:
        for name, (parents, law, watched) in variants(read_figure_9()[graph], parent, child).items():
            task = cc.InContextTask(cc.graph_from_parents(parents), d_vocab=D_VOCAB, alpha=ALPHA, roots=law)
            named.append(({"graph": graph, "parent": parent, "child": watched, "variant": name}, task))
    models = [cc.disentangled_transformer(D_VOCAB, task.n_ctx) for _, task in named]

    def measure() -> dict[str, float]:
        weights = [
            float(block_attention(model)[row["child"], row["parent"]])
            for model, (row, _) in zip(models, named, strict=True)
        ]
        return {str(i): weight for i, weight in enumerate(weights)}

    run = train_recipe(
        models,
        [task for _, task in named],
        Recipe(arguments.steps, 1.0, "sgd", "constant", batch_size=arguments.batch_size),
        folder=units.training("variants"),
        seed=arguments.seed,
        deadline=float("inf"),
        quiet=arguments.quiet,
        every=MEASURED_EVERY,
        measure=measure,
    )
    rows = []
    for i, (row, task) in enumerate(named):
        curve = [[entry["step"], entry[str(i)]] for entry in run.history]
        crossed = next((int(step) for step, weight in curve if weight > 0.5), None)
        gradients = sibling_gradients(models[i], task, row, arguments) if row["variant"] == "as it is" else {}
        rows.append({**row, "block_attention": curve[-1][1], "above_half_at": crossed, "curve": curve, **gradients})
    return rows


def sibling_gradients(model: object, task: object, row: dict, arguments: argparse.Namespace) -> dict[str, float]:
    """Minus the gradient of the slow edge's score: as trained, and with one attention row made uniform."""
    import causal_circuits as cc

    parents, parent, child = [-1 if p is None else p for p in cc.graph_parents(task.graph)], row["parent"], row["child"]
    sibling = next(other for other in range(child) if parents[other] == parent)
    batch = task.sample(1024 if arguments.quick else 16_384, seed=(arguments.seed, 7))
    rows = {"as_trained": None, "sibling_uniform": sibling, "stranger_uniform": unrelated_child(parents, parent, child)}
    found = {}
    for name, flat in rows.items():

        def flatten(pattern: object, hook: object, flat: int | None = flat) -> object:
            if flat is None:
                return pattern
            pattern = pattern.clone()
            pattern[:, :, flat, : flat + 1] = 1.0 / (flat + 1)
            return pattern

        with model.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", flatten)]):
            snapshot = cc.take_snapshot(model, batch)
        found[f"gradient_{name}"] = -float(snapshot.score_gradients[0, 0, child, parent])
    return found


def section_text(rows: list[dict], command: str, arguments: argparse.Namespace) -> str:
    """The section of docs/REPRODUCTION.md."""
    names = list(dict.fromkeys(row["variant"] for row in rows))
    edges = list(dict.fromkeys((row["graph"], row["parent"]) for row in rows))
    lines = [
        "\n## Why later siblings stay unlearned under joint gradient descent\n\n",
        f"`{command}`: gradient descent, rate 1, {arguments.steps:,} steps of {arguments.batch_size}, from zero. Block "
        "attention to the parent at the end, and the first measured step above one half.\n\n",
        "| variant | " + " | ".join(f"graph {graph}, parent {parent}" for graph, parent in edges) + " |\n",
        "|---|" + "---|" * len(edges) + "\n",
    ]
    for name in names:
        cells = []
        for edge in edges:
            row = next((r for r in rows if r["variant"] == name and (r["graph"], r["parent"]) == edge), None)
            cells.append("-" if row is None else cell(row))
        lines.append(f"| {name} | " + " | ".join(cells) + " |\n")
    lines.append(verdict(rows))
    return "".join(lines)


def cell(row: dict) -> str:
    """Weight and step."""
    when = "never" if row["above_half_at"] is None else f"{row['above_half_at']:,}"
    return f"{row['block_attention']:.2f} ({when})"


def judged(name: str, by: dict[str, list[bool]]) -> str:
    """Whether a change frees more of the edges than no change and the control do."""
    share = sum(by[name]) / len(by[name])
    idle = max(sum(by[other]) / len(by[other]) for other in ("as it is", "a stranger made a root"))
    freed = f"it frees {sum(by[name])} of {len(by[name])}"
    return f"holds: {freed}" if share > idle + 0.25 else f"does not hold: {freed}"


def learned_by_variant(rows: list[dict]) -> dict[str, list[bool]]:
    """Variant -> whether each of its edges was learned."""
    by: dict[str, list[bool]] = {}
    for row in rows:
        by.setdefault(row["variant"], []).append(row["block_attention"] > 0.5)
    return by


def page_parts(rows: list[dict]) -> dict[str, object]:
    """Title, verdict and sections of the page."""
    from causal_circuits import figures

    by = learned_by_variant(rows)
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
    sentence = "One mark for each edge and change; an edge counts as learned to the right of the line at one half."
    return {
        "title": "Why the paper's training leaves later siblings unlearned",
        "verdict": [
            figures.Check(
                judged(name, by).startswith("holds"), f"{explanation[0].upper()}{explanation[1:]}.", judged(name, by)
            )
            for name, explanation in EXPLANATIONS.items()
            if name in by
        ],
        "sections": [
            ("What frees the edge", sentence, ["unlearned_edges"], figures.table_html(changes, "Every training"))
        ],
    }


def verdict(rows: list[dict]) -> str:
    """What came out, counted."""
    by = learned_by_variant(rows)
    counted = "; ".join(f"{name}: {sum(learned)} of {len(learned)}" for name, learned in by.items())
    text = f"\nLearned (above one half): {counted}.\n\n" + "\n".join(
        f"* {explanation}: {judged(name, by)}." for name, explanation in EXPLANATIONS.items() if name in by
    )
    text += "\n"
    trained = [row for row in rows if "gradient_as_trained" in row]
    ratios = {
        name: [row[f"gradient_{name}"] / row["gradient_as_trained"] for row in trained]
        for name in ("sibling_uniform", "stranger_uniform")
    }
    shown = {name: ", ".join(f"{ratio:.2f}" for ratio in of_name) for name, of_name in ratios.items()}
    return text + (
        f"\nGradient of the slow edge over its value as trained, edge by edge: with the sibling's row made uniform "
        f"{shown['sibling_uniform']}; with a stranger's row made uniform {shown['stranger_uniform']}.\n"
    )


def main() -> int:
    """Run from the command line."""
    parser, arguments = parse_arguments()
    from going_on import Units  # after parsing: torch takes seconds to import
    from paper_job import Stopwatch
    from results_file import begin
    from studies import check_counts, write_study

    from causal_circuits import figures

    try:
        check_counts(arguments, steps=1, batch_size=1, targets=1)
        begin(arguments)
        units = Units.of(parser.prog, arguments)
    except ValueError as error:
        parser.error(str(error))
    watch = Stopwatch()
    rows = train_variants(arguments, units)
    command = f"python analyses/unlearned_edges.py --steps {arguments.steps} --batch-size {arguments.batch_size} "
    command += f"--targets {arguments.targets} --seed {arguments.seed}"
    text = section_text(rows, command, arguments)
    values: dict[str, dict[str, float]] = {}
    for row in rows:
        values.setdefault(row["variant"], {})[f"graph {row['graph']}, parent {row['parent']}"] = row["block_attention"]
    plot = figures.plot_groups(values, xlabel="block attention of the edge at the end", levels={"one half": 0.5})
    write_study(
        arguments,
        units,
        {**watch.read(), "rows": rows, "section": text},
        {"unlearned_edges": plot},
        **page_parts(rows),
    )
    print(text.strip())
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
