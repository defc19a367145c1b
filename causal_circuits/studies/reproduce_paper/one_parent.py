"""Figures 2, 6 and 9: trainings on graphs with one parent a position, side by side, and what they learned."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any

import causal_circuits as cc
from causal_circuits import figures
from causal_circuits.pages import Section
from causal_circuits.studies.reproduce_paper import measuring
from causal_circuits.studies.reproduce_paper.measuring import Job, PaperFigure, Row
from causal_circuits.studies.tables import figure_9_parents

Graph = str | int  # one of Figures 2 and 6 by its name, one of Figure 9's by its number
# The paper's training, for the two kinds: gradient descent from zero.
FAITHFUL = {
    str: cc.TrainConfig.joint(2**17, 1.0, optimizer="sgd"),
    int: cc.TrainConfig.joint(2**14, 1.0, optimizer="sgd", schedule="constant"),
}
QUICK = {str: (60, 256), int: (30, 128)}  # steps and batch of our recipe at toy size


def make_task(graph: Graph, job: Job) -> cc.InContextTask:
    n_ctx = 8 if job.quick else 20
    match graph:
        case "chain":
            return cc.InContextTask(cc.chain_graph(n_ctx), d_vocab=10)
        case "pairs":
            return cc.InContextTask(cc.pairs_graph(n_ctx), d_vocab=10)
        case "random forest":
            return cc.InContextTask(cc.random_forest(n_ctx, seed=job.seed), d_vocab=10)
        case "small manual graph":
            return cc.InContextTask(cc.graph_from_parents([-1, 0, 0, 1, 2]), d_vocab=3)
        case _:
            return cc.InContextTask(cc.graph_from_parents(figure_9_parents()[int(graph)]), d_vocab=3, alpha=0.1)


def measure(graphs: Sequence[Graph], **settings: Any) -> Row:
    job = Job(**settings)
    tasks = [make_task(graph, job) for graph in graphs]
    models = [cc.disentangled_transformer(task.d_vocab, task.n_ctx) for task in tasks]
    run = train(graphs, models, tasks, job)
    found = [measure_graph(*given, job) for given in zip(graphs, models, tasks, strict=True)]
    return {"graphs": found, "run": run, **job.spent()}


def train(
    graphs: Sequence[Graph], models: Sequence[cc.models.HookedTransformer], tasks: Sequence[cc.InContextTask], job: Job
) -> dict[str, Any] | None:
    """By our recipe, of which there is nothing to tell; or by the paper's, looked at as it goes."""
    kind = type(graphs[0])
    if not job.faithful:
        steps, size = QUICK[kind] if job.quick else (4500, 1024)
        seeds = [job.seed if isinstance(graph, str) else 1000 * job.seed + graph for graph in graphs]
        configs = [cc.TrainConfig(cc.training.default_stages(steps), size, seed=seed) for seed in seeds]
        cc.train_ensemble(models, tasks, configs, record=cc.RecordAt(steps=()), progress=job.progress)
        return None
    config, every = FAITHFUL[kind], 1000 if kind is str else 512
    if job.quick:
        config, every = replace(config, stages=(replace(config.stages[0], steps=40),), batch_size=256), 20
    tests = [job.test(task) for task in tasks] if kind is str else []

    def look() -> dict[str, float]:
        weights = [
            list(measuring.parent_weights(measuring.block_attention(model), task.graph).values())
            for model, task in zip(models, tasks, strict=True)
        ]
        losses = [float(cc.evaluate(*given).mean()) for given in zip(models, tests, strict=False)]
        return {
            **({"test_loss": fmean(losses)} if losses else {}),
            "mean_block_attention": fmean(map(fmean, weights)),
            "min_block_attention": min(map(min, weights)),
            "above_half_block": sum(weight > 0.5 for of_graph in weights for weight in of_graph),
        }

    return job.train(models, tasks, config, every, look)[1]


def measure_graph(graph: Graph, model: cc.models.HookedTransformer, task: cc.InContextTask, job: Job) -> dict[str, Any]:
    """What one model learned: edges, attention in both metrics, loss; of a named graph also the roles of its heads."""
    member = graph if isinstance(graph, int) else 0
    test, n_sequences = job.test(task, member), 2000 if job.quick else 20_000
    attention = cc.mean_attention(model, test.tokens[:4096])[0, 0]
    in_the_block = measuring.block_attention(model)
    block, real = (measuring.parent_weights(weights, task.graph) for weights in (in_the_block, attention))
    found = cc.extract_graph(model, task, n_sequences=n_sequences, seed=job.seed + member + 1)
    recovery, alone = (cc.compare_graphs(task.graph, other) for other in (found, found.from_attention))
    numbers = {
        "edges": len(block),
        "recovered": len(block) - len(recovery.missing),
        "false_edges": len(recovery.false),
        "recovered_attention_alone": len(block) - len(alone.missing),
        "false_edges_attention_alone": len(alone.false),
        "mean_parent_attention": fmean(real.values()),
        "min_parent_attention": min(real.values()),
        "mean_block_attention": fmean(block.values()),
        "min_block_attention": min(block.values()),
        "above_half_attention": sum(weight > 0.5 for weight in real.values()),
        "above_half_block": sum(weight > 0.5 for weight in block.values()),
        **measuring.excess(model, task, test),
        "parents": cc.graphs.graph_parents(task.graph),
        "parent_attention": [
            {"parent": parent, "child": child, "attention": real[parent, child], "block": weight}
            for (parent, child), weight in block.items()
        ],
    }
    if isinstance(graph, str):
        numbers["heads"] = measuring.head_roles(model, task, job.seed + 1)
    return {"name": graph, "numbers": numbers, "model": model, "true": task.graph, "attention": attention}


# Figure 2 shows heat maps only: these come from an independent re-run of the authors' algorithm, in code of its own.
RERUN = {"loss at step 8,000": 1.8135, "loss at the end": 1.8056, "mean block attention": 0.737, "least": 0.659}


def report(number: str, cells: Sequence[Row]) -> PaperFigure:
    trained = [(found, cell["run"]) for cell in cells for found in cell["graphs"]]
    runs = [run for _, run in trained if run]
    graphs = {found["name"]: found["numbers"] | ({"run": run} if run else {}) for found, run in trained}
    rerun = (
        f"; a re-run of their algorithm: loss {RERUN['loss at step 8,000']} at step 8,000, {RERUN['loss at the end']} "
        f"at the end, block attention {RERUN['mean block attention']} (least {RERUN['least']}), every parent above .5 "
        "by 6,000"
    )
    verdict = measuring.graph_found(
        {key: sum(graph[key] for graph in graphs.values()) for key in ("edges", "recovered", "false_edges")}
    )
    return PaperFigure(
        {"graphs": graphs, **({"run": merged_runs(runs)} if runs else {})},
        what=", ".join(graphs),
        ours="; ".join([*(said(name, graph) for name, graph in graphs.items()), *map(said_of_run, runs[:1])]),
        theirs=f"heat maps only{rerun if number == '2' else ''}",
        verdict=f"{verdict}; {beside_rerun(graphs['chain'])}" if runs and number == "2" else verdict,
        sections=[draw(found, run) for found, run in trained],
        models={stem(found["name"]): partial(cc.save_model, found["model"]) for found, _ in trained},
    )


def merged_runs(runs: Sequence[Row]) -> dict[str, Any]:
    """The times of several trainings of one recipe together."""
    wall_s, cpu_s = (sum(run[name] for run in runs) for name in ("train_wall_s", "train_cpu_s"))
    times = {"train_wall_s": wall_s, "train_cpu_s": cpu_s, "steps_per_cpu_s": runs[0]["steps_done"] / cpu_s}
    return {**runs[0], **times, "history": []}


def stem(name: str) -> str:
    return name.replace(" ", "_")


def said(name: str, graph: Row) -> str:
    return (
        f"{name}: {measuring.edges_found(graph)}; attention {graph['mean_parent_attention']:.3f} (block "
        f"{graph['mean_block_attention']:.3f}, least {graph['min_block_attention']:.3f}), "
        f"loss {graph['loss']:.4f} (edge posterior {graph['edge_posterior']:.4f}); "
        f"{measuring.roles_text(graph['heads'])}"
    )


def said_of_run(run: Row) -> str:
    """How a training of the paper's went: its loss at step 8,000, and when every parent was above one half."""
    early = [f"step 8,000: loss {entry['test_loss']:.4f}; " for entry in run["history"] if entry["step"] == 8000]
    crossed = next((int(entry["step"]) for entry in run["history"] if entry["min_block_attention"] > 0.5), None)
    return "".join(early) + (
        f"every parent above .5 by step {crossed:,}" if crossed else "not every parent is above .5"
    )


def beside_rerun(graph: Row) -> str:
    """Loss and attention less those of the re-run: one run each, on other test sequences, so nothing is paired."""
    loss, error = graph["loss"] - RERUN["loss at the end"], graph["loss_error"]
    block = graph["mean_block_attention"] - RERUN["mean block attention"]
    where = "within" if abs(loss) <= 2 * error else "beyond"
    return (
        f"less the re-run's: block attention {block:+.3f}, loss {loss:+.4f}, {where} two standard errors of our test "
        f"set ({error:.4f} each; other sequences; how runs vary is not known)"
    )


def draw(found: Row, run: Row | None) -> Section:
    """Weights by slot, both attentions beside the true graph, and the curve of the paper's training."""
    name, graph, model = found["name"], found["true"], found["model"]
    attentions = {
        f"{name}: real attention of layer 0": found["attention"],
        f"{name}: softmax of its position block": measuring.block_attention(model),
    }
    plots: dict[str, Any] = {
        f"{stem(name)}_weights": figures.plot_weights(model),
        f"{stem(name)}_attention": figures.plot_attentions(attentions, graph),
    }
    if run:
        keys = ("mean_block_attention", "min_block_attention")
        curves = {key.replace("_", " "): [(entry["step"], entry[key]) for entry in run["history"]] for key in keys}
        plots[f"{stem(name)}_curve"] = figures.plot_curves(
            curves, xlabel="step", ylabel="attention to the parent (block)", levels={"one half": 0.5}
        )
    shows = "The trained matrices, their slots named; layer 0's attention, a row for each query, true edges outlined."
    return Section(name, shows, figures=plots)
