"""What the figures of the paper measure and compare: attention in its metric, losses, differences in pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import networkx as nx
import torch
from scipy.stats import ttest_1samp

import causal_circuits as cc
from causal_circuits import figures
from causal_circuits.studies.reproduce_paper.training import Job


def block_attention(model: cc.models.HookedTransformer, head: int = 0) -> torch.Tensor:
    """The paper's metric: the causal softmax of A1's position-position block, [query_pos, key_pos]."""
    block = cc.models.attention_block(model, 0, head, "position", "position").detach().double()
    return block.masked_fill(torch.ones_like(block).triu(1).bool(), -torch.inf).softmax(dim=-1).float()


def parent_weights(attention: torch.Tensor, graph: nx.DiGraph) -> dict[tuple[int, int], float]:
    """(parent, child) -> attention [query_pos, key_pos] on the parent, by child."""
    edges = sorted(cc.latent_edges(graph), key=lambda edge: (edge[1], edge[0]))
    return {(parent, child): float(attention[child, parent]) for parent, child in edges}


def excess(model: cc.models.HookedTransformer, task: cc.InContextTask, test: cc.Batch) -> dict[str, float]:
    """The loss beside the edge posterior's on the same sequences, with standard errors, nats."""
    losses = cc.evaluate(model, test)
    posterior = cc.tasks.cross_entropy(task.bayes_predictor(test.tokens), test.target_probs)
    return {
        "loss": float(losses.mean()),
        "loss_error": float(losses.std() / len(test) ** 0.5),
        "edge_posterior": float(posterior.mean()),
        "excess": float((losses - posterior).mean()),
        "excess_error": float((losses - posterior).std() / len(test) ** 0.5),
    }


def measure_forest(model: cc.models.HookedTransformer, task: cc.InContextTask, job: Job, seed: int) -> dict[str, Any]:
    """Graph, attention in both metrics and loss of one model trained on a forest."""
    test = task.sample(job.n_test, seed=(seed, 2))
    block = parent_weights(block_attention(model), task.graph)
    real = parent_weights(cc.mean_attention(model, test.tokens[:4096])[0, 0], task.graph)
    found = cc.extract_graph(model, task, n_sequences=2000 if job.quick else 20_000, seed=seed + 1)
    recovery, alone = (cc.compare_graphs(task.graph, graph) for graph in (found, found.from_attention))
    return {
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


@dataclass(frozen=True)
class Paired:
    """The mean of paired differences, with its 95% interval by Student's t; NaN ends with fewer than two pairs."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def place(self) -> str:
        """Where the interval lies beside zero: "above", "below", "level" or, without an interval, "unknown"."""
        if self.n < 2:
            return "unknown"
        return "above" if self.low > 0 else "below" if self.high < 0 else "level"

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def paired(differences: Sequence[float]) -> Paired:
    """From the differences, one a pair.

    >>> paired([1.0, 2.0, 3.0]).mean
    2.0
    """
    low = high = float("nan")
    if len(differences) > 1:
        low, high = ttest_1samp(differences, 0.0).confidence_interval(0.95)
    return Paired(fmean(differences), float(low), float(high), len(differences))


def weight_panels(model: cc.models.HookedTransformer, graph: nx.DiGraph) -> list[figures.WeightBlocks]:
    """The true adjacency, A1 of every head, A2 of every head and W_U, their slots named."""
    slots = [(slot.name, slot.stop - slot.start) for slot in cc.models.slots(model).values()]
    n_ctx, d_vocab = model.cfg.n_ctx, model.cfg.d_vocab
    adjacency = torch.zeros(n_ctx, n_ctx)
    for cell in cc.graphs.attention_cells(graph):
        adjacency[cell] = 1.0
    position = [("position", n_ctx)]
    panels = [figures.WeightBlocks("True edges", adjacency, position, position, "child", "parent")]
    heads = cc.models.live_heads(model)
    width = d_vocab + n_ctx
    for layer in (0, 1):
        here = [name for name in slots if not name[0].startswith((f"L{layer}", "L1"))]
        for head in [head for at, head in heads if at == layer]:
            weights = model.blocks[layer].attn.W_Q[head, :width, :width].detach()
            title = f"A{layer + 1} of head {head}" if len(heads) > 2 else f"A{layer + 1}"
            panels.append(figures.WeightBlocks(title, weights, here, here))
        width *= 1 + sum(at == layer for at, _ in heads)
    tokens = [("token", d_vocab)]
    panels.append(figures.WeightBlocks("W_U", model.W_U.detach(), slots, tokens, "residual slot", "predicted"))
    return panels


def head_roles(model: cc.models.HookedTransformer, task: cc.InContextTask, seed: int) -> list[dict[str, Any]]:
    """Role and scores of every head."""
    return [
        {"head": f"L{h.layer}H{h.head}", "role": h.role, "parent": h.parent_score, "induction": h.induction_score}
        for h in cc.detect_induction_heads(model, task, seed=seed)
    ]


def roles_text(roles: Sequence[Mapping[str, Any]]) -> str:
    """'L0H0 previous-token, L1H0 induction'."""
    return ", ".join(f"{role['head']} {role['role']}" for role in roles)
