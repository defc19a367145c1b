"""What the figures of the paper measure and compare: attention in its metric, losses, weights; and one figure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx
import torch

import causal_circuits as cc
from causal_circuits.pages import Section

Row = Mapping[str, Any]


@dataclass(frozen=True)
class PaperFigure:
    """One figure of the paper, made again.

    Attributes:
        content: of its results.json, beside command, seed, versions and times.
        what, ours, theirs, verdict: what was trained, both sides' numbers and how they compare, in words.
        sections: its pictures.
        models: name of a folder -> function that writes a model there.
    """

    content: Row
    what: str
    ours: str
    theirs: str
    verdict: str
    sections: Sequence[Section]
    models: Mapping[str, Callable[[Path], Any]]


def block_attention(model: cc.models.HookedTransformer, head: int = 0) -> torch.Tensor:
    """The paper's metric: the causal softmax of the position block of layer 0's weights, [query_pos, key_pos]."""
    block = cc.models.attention_block(model, 0, head, "position", "position").detach().double()
    return block.masked_fill(torch.ones_like(block).triu(1).bool(), -torch.inf).softmax(dim=-1).float()


def parent_weights(attention: torch.Tensor, graph: nx.DiGraph) -> dict[tuple[int, int], float]:
    """(parent, child) -> attention [query_pos, key_pos] on the parent, by child."""
    edges = sorted(cc.latent_edges(graph), key=lambda edge: (edge[1], edge[0]))
    return {(parent, child): float(attention[child, parent]) for parent, child in edges}


def excess(model: cc.models.HookedTransformer, task: cc.InContextTask, test: cc.Batch) -> dict[str, float]:
    losses = cc.evaluate(model, test)
    posterior = cc.tasks.cross_entropy(task.bayes_predictor(test.tokens), test.target_probs)
    return {
        "loss": float(losses.mean()),
        "loss_error": cc.interventions.standard_error(losses),
        "edge_posterior": float(posterior.mean()),
        "excess": float((losses - posterior).mean()),
        "excess_error": cc.interventions.standard_error(losses - posterior),
    }


def edges_found(row: Row) -> str:
    """How many edges were found, by both ways of reading them."""
    return (
        f"{row['recovered']} of {row['edges']} parents, {row['false_edges']} false with the information test, "
        f"{row['recovered_attention_alone']} and {row['false_edges_attention_alone']} false by attention alone"
    )


def graph_found(row: Row) -> str:
    """Whether they are the true graph."""
    whole = row["recovered"] == row["edges"] and not row["false_edges"]
    return (
        f"{'every parent found, none' if whole else 'not every parent found, or some'} false with the information test"
    )


def place(low: float, high: float) -> str:
    """Where an interval lies beside zero."""
    return "above" if low > 0 else "below" if high < 0 else "level with"


def head_roles(model: cc.models.HookedTransformer, task: cc.InContextTask, seed: int) -> list[dict[str, Any]]:
    return [
        {"head": f"L{h.layer}H{h.head}", "role": h.role, "parent": h.parent_score, "induction": h.induction_score}
        for h in cc.detect_induction_heads(model, task, seed=seed)
    ]


def roles_text(roles: Sequence[Row]) -> str:
    """'L0H0 previous-token, L1H0 induction'."""
    return ", ".join(f"{role['head']} {role['role']}" for role in roles)
