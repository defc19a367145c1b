"""Seven ways to say which parts of a model matter, behind one signature, so that they can be held to the truth.

Each takes a `CircuitModel` (parts: edges between heads) or an `EntryModel` (parts: attention entries) and gives every
part a score; higher means more needed, in units of the cost where the method has units.

* **exact**: the cost without a part minus the cost with it, everything else whole (Wang et al. 2022, section 3).
* **attention**: what patterns show. Of an entry its mean weight; of an edge how far the patterns at its ends are from
  uniform (mean total variation distance, the smaller of two). It knows heads, not which of their inputs matter.
* **gradient_x_attention**: minus weight times derivative (Shrikumar et al. 2016), the effect of cutting an entry to
  first order. Of an edge the sum of |weight x derivative| at its ends (the smaller), as in Michel et al. 2019.
* **eap** (Syed et al. 2023): (corrupted - clean value of the sender) . derivative by the reader's input, clean run.
  Zero for what is the same in both runs, and everywhere by "kl_to_model", whose derivative at the clean run is zero; at
  a saturated softmax near zero, with a sign that need not be the effect's.
* **eap_ig** (Hanna et al. 2024): the derivative averaged along the line between the two runs, at k / steps of the way
  from the corrupted one, k = 0 .. steps - 1. Of edges, and of entries by "pairs", the line runs between embeddings; of
  entries compared with their counterfactual between the weights, as no embedding gives weights of zero.
* **acdc** (Conmy et al. 2023): from the logits backwards, a part is cut for good if the cost rises by less than the
  threshold; its score is the rise when it was tried.
* **random**: uniform random numbers, the baseline of MIB (Mueller et al. 2025).
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from causal_circuits.arguments import Count, check_arguments
from causal_circuits.display import Frame, Result, frame

MethodName = Literal["exact", "attention", "gradient_x_attention", "eap", "eap_ig", "acdc", "random"]
METHODS: tuple[MethodName, ...] = get_args(MethodName)
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


@check_arguments
@dataclass(frozen=True, repr=False, eq=False)
class Discovery(Result):
    """What one method says about the parts of one model.

    Attributes:
        method: its name.
        edges: the parts.
        score: [edge], float64; higher: more needed.
        seconds: wall time.

    >>> found = Discovery("exact", ("a", "b", "c"), torch.tensor([0.1, 0.3, 0.2], dtype=torch.float64), seconds=0.0)
    >>> found.circuit(2)
    tensor([False,  True,  True])
    """

    method: MethodName
    edges: tuple[object, ...]
    score: Float[Tensor, " edge"]
    seconds: float

    def to_frame(self) -> Frame:
        """A row a part, the highest score first."""
        names = [
            " -> ".join(part) if isinstance(part, tuple) and isinstance(part[0], str) else str(part)
            for part in self.edges
        ]
        parts = frame({"part": names, "score": self.score.numpy()})
        return parts.sort_values("score", ascending=False, ignore_index=True)

    def circuit(self, size: int) -> Bool[Tensor, " edge"]:
        """The mask of the `size` parts with the highest scores (ties: the later part of the forward pass first)."""
        if not 0 <= size <= len(self.edges):
            raise ValueError(f"a circuit of these parts has 0 .. {len(self.edges)} of them: got {size}")
        order = sorted(range(len(self.edges)), key=lambda part: (-float(self.score[part]), -part))
        mask = torch.zeros(len(self.edges), dtype=torch.bool)
        mask[order[:size]] = True
        return mask


@check_arguments
def discover(
    model: Parts,
    method: MethodName = "exact",
    *,
    steps: Count = 5,
    threshold: float = 0.01,
    difference: Difference = "counterfactual",
    seed: int = 0,
) -> Discovery:
    """Score every part of a model by one of seven methods.

    Args:
        model: a `CircuitModel` or an `EntryModel`; its metric and its counterfactual are those of every method that has
            any, so that methods differ in nothing else.
        method: one of the seven that this module lists.
        steps: of EAP-IG.
        threshold: of ACDC, in units of the cost.
        difference: what EAP and EAP-IG compare the clean run with: "counterfactual", what `model` puts in place of what
            is cut; or "pairs", as published, a run on other tokens, whatever `model` does when it cuts.
        seed: of "random".

    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3, alpha=0.1)
    >>> model = cc.circuits.circuit_model(cc.plant_circuit(task.graph, d_vocab=3), task.sample(500))
    >>> where = model.edges.index(("position", "L0H0.k"))  # with this edge cut every position has the same key
    >>> [discover(model, method).score[where].item() > 0.01 for method in ("exact", "eap_ig")]
    [True, True]
    >>> abs(discover(model, "eap_ig", difference="pairs").score[where].item()) < 1e-6  # on all tokens the same names
    True
    """
    if not threshold > 0:
        raise ValueError(f"ACDC's threshold must be positive: got {threshold}; 0.01 nats is the default")
    ways: dict[MethodName, Callable[[], Tensor]] = {
        "exact": model.effects,
        "attention": model.attention,
        "gradient_x_attention": model.gradient_times_attention,
        "eap": partial(model.attributions, (1.0,), difference),
        "eap_ig": partial(model.attributions, tuple(k / steps for k in range(steps)), difference),
        "acdc": partial(_acdc, model, threshold),
        "random": partial(torch.rand, len(model), generator=torch.Generator().manual_seed(seed), dtype=torch.float64),
    }
    began = time.perf_counter()
    score = ways[method]().detach().double().cpu()
    return Discovery(method, tuple(model.edges), score, time.perf_counter() - began)


def _acdc(model: Parts, threshold: float) -> Float[Tensor, " edge"]:
    mask, rise = model.full.clone(), torch.zeros(len(model), dtype=torch.float64)
    current = float(model.mean_costs(mask[None]))
    for part in reversed(range(len(model))):
        mask[part] = False
        without = float(model.mean_costs(mask[None]))
        rise[part] = without - current
        if rise[part] >= threshold:
            mask[part] = True
        else:
            current = without
    return rise
