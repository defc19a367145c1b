"""Figures 2, 6 and 9: trainings on graphs with one parent a position, side by side, and what they learned."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import causal_circuits as cc
from causal_circuits.studies.reproduce_paper.measuring import Row, block_attention, excess, head_roles, parent_weights
from causal_circuits.studies.reproduce_paper.training import Job
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
    """Train on some graphs side by side, and read the models."""
    job = Job(**settings)
    tasks = [make_task(graph, job) for graph in graphs]
    models = [cc.disentangled_transformer(task.d_vocab, task.n_ctx) for task in tasks]
    run = train(graphs, models, tasks, job)
    found = [measure_graph(*given, job) for given in zip(graphs, models, tasks, strict=True)]
    return {"graphs": found, "run": run, **job.spent()}


def train(
    graphs: Sequence[Graph],
    models: Sequence[cc.models.HookedTransformer],
    tasks: Sequence[cc.InContextTask],
    job: Job,
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
            list(parent_weights(block_attention(model), task.graph).values())
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
    block, real = (parent_weights(weights, task.graph) for weights in (block_attention(model), attention))
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
        **excess(model, task, test),
        "parents": cc.graphs.graph_parents(task.graph),
        "parent_attention": [
            {"parent": parent, "child": child, "attention": real[parent, child], "block": weight}
            for (parent, child), weight in block.items()
        ],
    }
    if isinstance(graph, str):
        numbers["heads"] = head_roles(model, task, job.seed + 1)
    return {"name": graph, "numbers": numbers, "model": model, "true": task.graph, "attention": attention}
