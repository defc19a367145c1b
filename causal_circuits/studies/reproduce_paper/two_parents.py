"""Figures 5 and 7: two parents a position, two heads that share the graph between them; one training serves both."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch

import causal_circuits as cc
from causal_circuits import figures
from causal_circuits.pages import Section
from causal_circuits.studies.reproduce_paper import measuring
from causal_circuits.studies.reproduce_paper.measuring import Job, PaperFigure, Row

FAITHFUL = cc.TrainConfig.joint(2**16, 0.01, optimizer="adamw", weight_decay=1e-4)
QUICK = cc.TrainConfig.joint(20, 0.01, optimizer="adamw", weight_decay=1e-4, batch_size=128)
INIT_SCALE = 1e-4  # of the paper's A at the start
N_HEADS = (2, 1)
RECORDED_EXCESS = 0.889 - 0.877  # their last loss less their own Bayes line; roots share one draw there
RECORDED = "loss 1.195 (step 512), 1.11 (3,072), .94 (3,584), .889 at the end; their Bayes .877 (roots share one draw)"


def make_task(job: Job) -> cc.InContextTask:
    """Parents ((i - 1) // 2, i - 1), the target's among them; faithful: the authors' roots, which share one draw."""
    n_ctx = 8 if job.quick else 32
    parents = [()] + [tuple(sorted({(i - 1) // 2, i - 1})) for i in range(1, n_ctx + 1)]
    roots: Literal["shared"] | None = "shared" if job.faithful else None
    return cc.InContextTask(cc.graph_from_parents(parents), d_vocab=5, alpha=0.1, roots=roots)


def measure(**settings: Any) -> Row:
    job = Job(**settings)
    task, scale = make_task(job), INIT_SCALE if job.faithful else 0.0
    model = cc.disentangled_transformer(task.d_vocab, task.n_ctx, N_HEADS, init_scale=scale, seed=job.seed)
    test = job.test(task)
    losses, run = train_as_the_paper(model, task, test, job) if job.faithful else (matched(model, task, job), {})
    spaced = sorted({max(1, round(len(losses) * k / 200)) for k in range(1, 201)})
    curve = [[step, float(losses[step - 1])] for step in spaced]
    attention = cc.mean_attention(model, test.tokens[:4096])[0]
    content = {**numbers(model, task, test, attention, job.seed), "loss_curve": curve, **run}
    return {"content": content, "model": model, "true": task.graph, "attention": attention, **job.spent()}


def train_as_the_paper(
    model: cc.models.HookedTransformer, task: cc.InContextTask, test: cc.Batch, job: Job
) -> tuple[torch.Tensor, dict[str, Any]]:
    """The paper's AdamW; the loss is measured as it goes."""
    config, every = (QUICK, 10) if job.quick else (FAITHFUL, 512)

    def look() -> dict[str, float]:
        return {"test_loss": float(cc.evaluate(model, test).mean())}

    losses, run = job.train([model], [task], config, every, look)
    return losses[0], {"run": run}


def matched(model: cc.models.HookedTransformer, task: cc.InContextTask, job: Job) -> torch.Tensor:
    """Our recipe: started where the gradient of order 2 points (`cc.TrainConfig.matched`)."""
    config = cc.TrainConfig.matched(seed=job.seed)
    if job.quick:
        config = cc.TrainConfig.matched(40, batch_size=128, match_start=2048, seed=job.seed)
    return cc.train(model, task, config, record=cc.RecordAt(steps=()), progress=job.progress).losses


def numbers(
    model: cc.models.HookedTransformer, task: cc.InContextTask, test: cc.Batch, attention: torch.Tensor, seed: int
) -> dict[str, Any]:
    """Loss against the edge posterior, which edges the heads carry (`cc.extract_graph`), and who attends to whom."""
    recovery = cc.compare_graphs(task.graph, cc.extract_graph(model, task, batch=task.sample(8192, seed=(seed, 4))))
    # Position 1 has one parent, and so another transition matrix: its edge is not counted.
    counted = {(p, child) for p, child in task.graph.edges if task.graph.in_degree(child) == 2}
    cells = cc.graphs.attention_cells(task.graph)
    two = [(q, keys) for q in range(task.n_ctx) if len(keys := [key for query, key in cells if query == q]) == 2]
    heads = attention[: N_HEADS[0]]
    return {
        "edges": len(counted),
        "recovered": len(counted - set(recovery.missing)),
        "false_edges": len(recovery.false),
        **measuring.excess(model, task, test),
        "one_parent_known": [cc.tasks.subset_loss(task, test, [number]) for number in range(2)],
        # [head][k]: attention of the head to parent number k, averaged over positions with two parents
        "attention_by_head_and_parent": torch.stack([heads[:, q, keys] for q, keys in two]).mean(dim=0).tolist(),
        "edge_attention": [{"query": q, "parent": k, "attention": heads[:, q, k].tolist()} for q, k in cells],
    }


def report(number: str, cells: Sequence[Row]) -> PaperFigure:
    cell = cells[0]
    return PaperFigure(
        cell["content"],
        what="parents ((i-1)//2, i-1), (5, 32), heads (2, 1)",
        ours=said(cell["content"]),
        theirs=RECORDED,
        verdict=verdict_on(cell["content"]),
        sections=[heads_beside_truth(cell) if number == "5" else weights_and_loss(cell)],
        models={"two_parents": partial(cc.save_model, cell["model"])},
    )


def said(content: Row) -> str:
    heads = " ".join(
        "[" + " ".join(f"{weight:.2f}" for weight in head) + "]" for head in content["attention_by_head_and_parent"]
    )
    return (
        f"loss {content['loss']:.4f}, edge posterior {content['edge_posterior']:.4f} ({content['excess']:+.4f} +- "
        f"{content['excess_error']:.4f}); {content['recovered']} of {content['edges']} edges, "
        f"{content['false_edges']} false; attention [head to parent 1, 2]: {heads}"
    )


def verdict_on(content: Row) -> str:
    """Edges found, and the excess beside theirs: their loss and line are of other sequences, known to .001 each."""
    more = content["excess"] - RECORDED_EXCESS
    noise = 2 * (content["excess_error"] ** 2 + 2 * 0.0005**2) ** 0.5
    where = measuring.place(more - noise, more + noise)
    return (
        f"{measuring.graph_found(content)}; excess over the edge posterior {where} theirs "
        f"({more:+.4f}, unpaired: other sequences, and in their task all roots share one draw)"
    )


def heads_beside_truth(cell: Row) -> Section:
    """Figure 5."""
    real, blocks = {}, {}
    for head in range(N_HEADS[0]):
        real[f"L0H{head}: real attention"] = cell["attention"][head]
        blocks[f"L0H{head}: softmax of its position block"] = measuring.block_attention(cell["model"], head)
    plots = {name: figures.plot_attentions(of, cell["true"]) for name, of in (("heads", real), ("heads_block", blocks))}
    return Section("the heads", "Each head of layer 0, the true edges of both parent numbers outlined.", figures=plots)


def weights_and_loss(cell: Row) -> Section:
    """Figure 7."""
    content = cell["content"]
    levels = {f"parent {n + 1} known": loss for n, loss in enumerate(content["one_parent_known"])}
    curve = figures.plot_curves(
        {"training loss": content["loss_curve"]},
        xlabel="step",
        ylabel="cross-entropy (nats)",
        levels={**levels, "edge posterior": content["edge_posterior"]},
    )
    shows = "The trained matrices, their slots named; the loss in training, against what can be reached."
    return Section("weights and loss", shows, figures={"weights": figures.plot_weights(cell["model"]), "loss": curve})
