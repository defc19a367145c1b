"""Question: which edges does the paper's training leave unlearned in Figure 9, and what holds them back?

Asked of the edges that are at or below one half (block attention) at the end of the paper's training with each of three
seeds: joint gradient descent from zero, rate 1, 2^14 steps. Two parts, both trained here in that way:

Changed graphs, each change being what one explanation says should free the edge, beside a control:

    redundancy   earlier siblings copy the same token, so all match the query in the same sequences, and another sample
                 of the same row adds little: take the siblings away, or move them behind the edge
    root         a root's token has no cause: give the parent a parent, an earlier position
    root law     roots follow the kernel's stationary law, so frequent tokens have many witnesses: draw them uniformly
    late         a late row begins with little attention on each position: move the child to the first free position
                 after its siblings
    control      nothing of the kind: take away the edges of as many children that are no siblings

Prediction: each explanation as a number of an edge, known before training, is asked which edges stay unlearned, in
Figure 9, where the explanations were thought of, and in forests of the same law that nobody had looked at.

And in the trained models: the gradient of the slow edge, with its earlier siblings' attention rows made uniform by a
hook, against the same done to as many strangers' rows.

    python analyses/unlearned_edges.py                 # some five minutes of processor time
    python analyses/unlearned_edges.py --quick         # seconds; too short to show anything

Interrupted or killed, the same command goes on where it was. DIR gets report.html (look at this), results.json, with a
section for docs/REPRODUCTION.md, and figures/.
"""

import argparse
import sys

from command_line import base_parser, exit_status, parse, read_figure_9

# (graph, parent, child): block attention at most one half at the end of `reproduce_paper.py --figure 9 --faithful` with
# each of --seed 0, 1 and 2.
TARGETS = ((9, 0, 11), (12, 0, 18), (13, 0, 10), (13, 0, 18), (15, 0, 15), (18, 2, 18), (19, 1, 18))
D_VOCAB, ALPHA, N_CTX = 3, 0.1, 20
MEASURED_EVERY = 256


def parse_arguments() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The flags."""
    parser = base_parser(__doc__ or "", "reproduce_paper/unlearned_edges")
    parser.add_argument("--steps", type=int, default=2**14, help="of gradient descent (default 16384, the paper's)")
    parser.add_argument("--batch-size", type=int, default=256, help="sequences a step (default 256; the paper's 1024)")
    parser.add_argument(
        "--targets", type=int, default=len(TARGETS), metavar="N", help=f"edges to change (default {len(TARGETS)}: all)"
    )
    parser.add_argument("--forests", type=int, default=40, metavar="N", help="new forests to predict (default 40)")
    parser.add_argument("--quick", action="store_true", help="one edge, two forests, few steps")
    return parser, parse(parser, {"steps": 20, "batch_size": 64, "targets": 1, "forests": 2})


def earlier_siblings(parents: list[int], parent: int, child: int) -> list[int]:
    """The children of `parent` before `child`."""
    return [other for other in range(child) if parents[other] == parent]


def strangers(parents: list[int], parent: int, child: int) -> list[int]:
    """As many children of others before `child` as it has earlier siblings (all there are, if fewer)."""
    others = [i for i in range(child) if parents[i] not in (-1, parent)]
    return others[: len(earlier_siblings(parents, parent, child))]


def variants(parents: list[int], parent: int, child: int) -> dict[str, tuple[list[int], str | None, int]]:
    """Name -> (parents, law of the roots, the child watched); what a graph does not allow is left out."""
    siblings, others = earlier_siblings(parents, parent, child), strangers(parents, parent, child)

    def changed(new: dict[int, int]) -> list[int]:
        return [new.get(position, old) for position, old in enumerate(parents)]

    without = dict.fromkeys(siblings, -1)
    made: dict[str, tuple[list[int], str | None, int]] = {
        "as it is": (list(parents), None, child),
        "earlier siblings made roots": (changed(without), None, child),
        "roots uniform": (list(parents), "uniform", child),
        "as many strangers made roots": (changed(dict.fromkeys(others, -1)), None, child),
    }
    behind = [position for position in range(child + 1, len(parents)) if parents[position] == -1][: len(siblings)]
    if len(behind) == len(siblings):
        made["siblings moved behind"] = (changed(without | dict.fromkeys(behind, parent)), None, child)
    if parent > 0 and parents[parent] == -1:
        made["parent given a parent"] = (changed({parent: parent - 1}), None, child)
    between = [i for i in range(max(siblings, default=parent) + 1, child) if parents[i] == -1 and i not in parents]
    if between:
        made["child moved forward"] = (changed({child: -1, between[0]: parent}), None, between[0])
    return made


def trainings(arguments: argparse.Namespace) -> list[tuple[dict[str, object], object]]:
    """(what it is, its task) of every model: each variant of each target, then the new forests."""
    import causal_circuits as cc

    named = []
    for graph, parent, child in TARGETS[: arguments.targets]:
        for name, (parents, law, watched) in variants(read_figure_9()[graph], parent, child).items():
            task = cc.InContextTask(cc.graph_from_parents(parents), d_vocab=D_VOCAB, alpha=ALPHA, roots=law)
            row = {"graph": graph, "parent": parent, "child": watched, "of_child": child, "variant": name}
            named.append((row, task))
    for forest in range(arguments.forests):
        graph = cc.random_forest(N_CTX, seed=1000 + arguments.forests * arguments.seed + forest)
        named.append(({"forest": forest}, cc.InContextTask(graph, d_vocab=D_VOCAB, alpha=ALPHA)))
    return named


def train_all(arguments: argparse.Namespace, units: object) -> tuple[list[dict], list[dict]]:
    """A row for each variant of each target, and one for each edge of the new forests."""
    from paper_job import block_attention, parent_weights
    from paper_training import Recipe, train_recipe

    import causal_circuits as cc

    named = trainings(arguments)
    models = [cc.disentangled_transformer(D_VOCAB, task.n_ctx) for _, task in named]

    def measure() -> dict[str, float]:
        return {
            str(i): float(block_attention(model)[row["child"], row["parent"]])
            for i, (model, (row, _)) in enumerate(zip(models, named, strict=True))
            if "variant" in row
        }

    run = train_recipe(
        models,
        [task for _, task in named],
        Recipe(arguments.steps, 1.0, "sgd", "constant", batch_size=arguments.batch_size),
        folder=units.training("models"),
        seed=arguments.seed,
        deadline=float("inf"),
        quiet=arguments.quiet,
        every=MEASURED_EVERY,
        measure=measure,
    )
    rows, edges = [], []
    for i, (model, (row, task)) in enumerate(zip(models, named, strict=True)):
        if "variant" in row:
            curve = [[entry["step"], entry[str(i)]] for entry in run.history]
            crossed = next((int(step) for step, weight in curve if weight > 0.5), None)
            gradients = sibling_gradients(model, task, row, arguments) if row["variant"] == "as it is" else {}
            rows.append({**row, "block_attention": curve[-1][1], "above_half_at": crossed, "curve": curve, **gradients})
        else:
            weights = parent_weights(block_attention(model), task.graph)
            edges += [{**row, "parent": p, "child": c, "block_attention": weight} for (p, c), weight in weights.items()]
    return rows, edges


def sibling_gradients(model: object, task: object, row: dict, arguments: argparse.Namespace) -> dict[str, float]:
    """Minus the gradient of the slow edge's score: as trained, and with some attention rows made uniform."""
    import causal_circuits as cc

    parents, parent, child = [-1 if p is None else p for p in cc.graph_parents(task.graph)], row["parent"], row["child"]
    batch = task.sample(1024 if arguments.quick else 16_384, seed=(arguments.seed, 7))
    flattened = {
        "as_trained": [],
        "sibling_uniform": earlier_siblings(parents, parent, child),
        "stranger_uniform": strangers(parents, parent, child),
    }
    found = {}
    for name, flat in flattened.items():

        def flatten(pattern: object, hook: object, flat: list[int] = flat) -> object:
            pattern = pattern.clone()
            for position in flat:
                pattern[:, :, position, : position + 1] = 1.0 / (position + 1)
            return pattern

        with model.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", flatten)]):
            snapshot = cc.take_snapshot(model, batch)
        found[f"gradient_{name}"] = float(snapshot.score_gradients[0, 0, child, parent])
    return found


def figure_9_edges() -> list[dict[str, object]]:
    """Every edge of Figure 9, and whether all three seeds of the paper's training leave it unlearned."""
    return [
        {"forest": graph, "parent": parent, "child": child, "unlearned": (graph, parent, child) in TARGETS}
        for graph, parents in enumerate(read_figure_9())
        for child, parent in enumerate(parents)
        if parent != -1
    ]


def with_causes(edges: list[dict], graphs: list[object]) -> list[dict]:
    """Each edge with what each explanation makes of it: larger means rather unlearned."""
    import causal_circuits as cc

    tasks = [cc.InContextTask(graph, d_vocab=D_VOCAB, alpha=ALPHA) for graph in graphs]
    pulls = [cc.score_gradient_of(cc.finite_context_gradient(task, n_kernels=128).value) for task in tasks]
    found = []
    for edge in edges:
        graph, parent, child = graphs[edge["forest"]], edge["parent"], edge["child"]
        siblings, root = sum(other < child for other in graph.successors(parent)), graph.in_degree(parent) == 0
        causes = {
            "later child of a root": float(root and siblings > 0),
            "earlier siblings": float(siblings),
            "late: the child's position": float(child),
            "distance to the parent": float(child - parent),
            "earlier siblings x distance": float(siblings * (child - parent)),
            "weak pull: minus the first gradient of its score": -float(pulls[edge["forest"]][child, parent]),
        }
        found.append({**edge, "causes": causes})
    return found


def main() -> int:
    """Run from the command line."""
    parser, arguments = parse_arguments()
    from going_on import Units  # after parsing: torch takes seconds to import
    from paper_job import Stopwatch
    from results_file import begin
    from studies import check_counts, write_study
    from unlearned_page import draw, page_parts, predictions, section_text

    import causal_circuits as cc

    try:
        check_counts(arguments, steps=1, batch_size=1, targets=1, forests=2)
        begin(arguments)
        units = Units.of(parser.prog, arguments)
    except ValueError as error:
        parser.error(str(error))
    watch = Stopwatch()
    forests = [task.graph for row, task in trainings(arguments) if "forest" in row]
    rows, edges = train_all(arguments, units)
    edges = with_causes([{**edge, "unlearned": edge["block_attention"] <= 0.5} for edge in edges], forests)
    known = with_causes(figure_9_edges(), [cc.graph_from_parents(parents) for parents in read_figure_9()])
    predicted = predictions({"Figure 9": known, "new forests": edges}, seed=arguments.seed)
    text = section_text(rows, edges, known, predicted, arguments)
    write_study(
        arguments,
        units,
        {**watch.read(), "rows": rows, "edges": edges, "figure_9": known, "predictions": predicted, "section": text},
        draw(rows, predicted),
        **page_parts(rows, edges, known, predicted),
    )
    print(text.strip())
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
