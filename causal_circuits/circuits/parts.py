"""What a discovery method needs to know of a model: costs of some of its parts, and estimates of what each is worth."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Difference = Literal["pairs", "counterfactual"]
AT_ONCE = 2**14  # circuits whose costs on single sequences are held at once


class Parts(ABC):
    """A model as a function of which of its parts it keeps: edges between heads, or attention entries."""

    edges: tuple[object, ...]  # the parts, in the order of a forward pass: the axis of every mask

    def __len__(self) -> int:
        return len(self.edges)

    @property
    def full(self) -> Bool[Tensor, " edge"]:
        """The mask that keeps every part."""
        return torch.ones(len(self), dtype=torch.bool)

    @abstractmethod
    def costs(self, masks: Bool[Tensor, "circuit edge"]) -> Float[Tensor, "circuit batch"]:
        """The cost of keeping only some parts, on each sequence, float64."""

    def mean_costs(self, masks: Bool[Tensor, "circuit edge"]) -> Float[Tensor, " circuit"]:
        """The cost of keeping only some parts, mean over sequences."""
        return torch.cat([self.costs(some).mean(dim=-1) for some in masks.split(AT_ONCE)])  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def effects(self) -> Float[Tensor, " edge"]:
        """By how much the mean cost rises when one part is cut from the whole model, float64."""
        one_less = ~torch.eye(len(self), dtype=torch.bool)
        costs = self.mean_costs(torch.cat([self.full[None], one_less]))
        return costs[1:] - costs[0]

    @abstractmethod
    def attention(self) -> Float[Tensor, " edge"]:
        """How much attention says for each part."""

    @abstractmethod
    def gradient_times_attention(self) -> Float[Tensor, " edge"]:
        """Attention times the cost's derivative by it."""

    @abstractmethod
    def attributions(self, points: tuple[float, ...], difference: Difference) -> Float[Tensor, " edge"]:
        """First-order effects from gradients averaged over points between the other run (0) and the clean one (1)."""
