"""What was found beside what is true."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import causal_circuits as cc
from causal_circuits.studies.recover_and_prove.measure import Findings


@dataclass(frozen=True)
class Comparison:
    """What was found beside what is true."""

    task: cc.InContextTask
    of: Findings

    @cached_property
    def recovery(self) -> cc.graphs.GraphRecovery:
        """By attention and the test for information."""
        return cc.compare_graphs(self.task.graph, self.of.found)

    @cached_property
    def by_attention(self) -> cc.graphs.GraphRecovery:
        """By attention alone."""
        return cc.compare_graphs(self.task.graph, self.of.found.from_attention)

    @cached_property
    def edges(self) -> list[tuple[int, int]]:
        """True edges inside the context."""
        return sorted(cc.latent_edges(self.task.graph), key=lambda edge: edge[1])

    @cached_property
    def parent_attention(self) -> list[float]:
        """Mean attention on each true edge: the largest over the heads of layer 0."""
        return [float(self.of.attention[0, :, child, parent].max()) for parent, child in self.edges]

    @cached_property
    def effects(self) -> tuple[Tensor, Tensor]:
        """Knock-out effects of true edges, and of all other causal entries outside the query's row."""
        effect, is_edge = self.of.knock_out.effect.amax(dim=0), cc.heads.parent_mask(self.task)
        causal = torch.ones_like(is_edge).tril()
        causal[-1] = False
        return effect[is_edge & causal], effect[causal & ~is_edge]

    @property
    def excess(self) -> float:
        """Test loss above the edge posterior's, nats."""
        return self.of.test_loss - self.of.references.edge_posterior

    @property
    def start(self) -> str:
        """What the model held before the first step."""
        if self.of.warm_start is None:
            return "from zero, nothing written in"
        return (
            "from a warm start: layer 1's match and the read-out were written in, "
            f"{self.of.warm_start:g} times the identity"
        )

    @cached_property
    def ablations(self) -> list[dict[str, Any]]:
        """A row for each head and method."""
        return [
            {
                "what": what,
                "method": result.method,
                "loss": result.loss,
                "standard_error": result.standard_error,
                "share_of_gain_lost": self.of.share_of_gain(result),
            }
            for what, result in self.of.ablations
        ]

    def auroc(self, children_only: bool = False) -> float:
        """How well knock-out effects tell true edges from other entries."""
        effect = self.of.knock_out.effect.amax(dim=0)
        return cc.edge_auroc(effect, self.task.graph, children_only=children_only)

    def found(self, recovery: cc.graphs.GraphRecovery) -> int:
        """True edges that were found."""
        return len(self.edges) - len(recovery.missing)
