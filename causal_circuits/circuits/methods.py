"""Seven ways to say which parts of a model matter, behind one signature, so that they can be held to the truth.

Each takes a `CircuitModel` (parts: edges between heads) or an `EntryModel` (parts: attention entries) and gives every
part a score; higher means more needed, in units of the cost where the method has units. `discover` is the front door.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.circuits.gradients import Difference

MethodName = Literal["exact", "attention", "gradient_x_attention", "eap", "eap_ig", "acdc", "random"]
METHODS: tuple[MethodName, ...] = get_args(MethodName)


@runtime_checkable
class Parts(Protocol):
    """What a discovery method needs to know of a model."""

    @property
    def edges(self) -> tuple[object, ...]:
        """The parts, in the order of a forward pass."""

    @property
    def full(self) -> Bool[Tensor, " edge"]:
        """All of them."""

    def __len__(self) -> int: ...
    def costs(self, masks: Bool[Tensor, "circuit edge"]) -> Float[Tensor, "circuit batch"]:
        """The cost with some parts only."""

    def effects(self) -> Float[Tensor, " edge"]:
        """The exact effect of cutting each part alone."""

    def attention(self) -> Float[Tensor, " edge"]:
        """How much attention says for each part."""

    def gradient_times_attention(self) -> Float[Tensor, " edge"]:
        """Attention times the cost's derivative by it."""

    def attributions(self, points: tuple[float, ...], difference: str) -> Float[Tensor, " edge"]:
        """First-order effects from gradients averaged over points between two runs."""


@check_arguments
@dataclass(frozen=True)
class Discovery:
    """What one method says about the parts of one model.

    Attributes:
        method: its name.
        edges: the parts.
        score: [edge], float64; higher: more needed.
        seconds: wall time.

    >>> import causal_circuits as cc
    >>> from causal_circuits import circuits
    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    >>> model = cc.plant_circuit(task.graph, d_vocab=3)
    >>> whole = circuits.circuit_model(model, task.sample(64, seed=0))
    >>> found = circuits.discover(whole, "attention")
    >>> found.method, found.edges == whole.edges, int(found.circuit(3).sum())
    ('attention', True, 3)
    """

    method: MethodName
    edges: tuple[object, ...]
    score: Float[Tensor, " edge"]
    seconds: float

    def circuit(self, size: int) -> Bool[Tensor, " edge"]:
        """The mask of the `size` parts with the highest scores (ties: the later part of the forward pass first)."""
        if not 0 <= size <= len(self.edges):
            raise ValueError(f"a circuit of these parts has 0 .. {len(self.edges)} of them: got {size}")
        order = sorted(range(len(self.edges)), key=lambda part: (-float(self.score[part]), -part))
        mask = torch.zeros(len(self.edges), dtype=torch.bool)
        mask[order[:size]] = True
        return mask

    def above(self, threshold: float) -> Bool[Tensor, " edge"]:
        """The mask of the parts that score more than a threshold."""
        return self.score > threshold


@check_arguments
def discover(
    model: Parts,
    method: MethodName = "exact",
    *,
    steps: int = 5,
    threshold: float = 0.01,
    difference: Difference = "counterfactual",
    seed: int = 0,
) -> Discovery:
    """Score every part of a model by one of seven methods.

    Args:
        model: a `CircuitModel` or an `EntryModel`; its metric and its counterfactual are those of every method that has
            any, so that methods differ in nothing else.
        method: see the functions of this module, one for each.
        steps: of EAP-IG.
        threshold: of ACDC, in units of the cost.
        difference: what EAP and EAP-IG compare the clean run with: "counterfactual", what `model` puts in place of what
            is cut; or "pairs", as published, a run on other tokens, whatever `model` does when it cuts.
        seed: of "random".

    >>> from causal_circuits import InContextTask, chain_graph, plant_circuit
    >>> from causal_circuits.circuits import circuit_model
    >>> task = InContextTask(chain_graph(6), d_vocab=3, alpha=0.1)
    >>> model = circuit_model(plant_circuit(task.graph, d_vocab=3), task.sample(500))
    >>> where = model.edges.index(("position", "L0H0.k"))  # with this edge cut every position has the same key
    >>> [discover(model, method).score[where].item() > 0.01 for method in ("exact", "eap_ig")]
    [True, True]
    >>> abs(discover(model, "eap_ig", difference="pairs").score[where].item()) < 1e-6  # on all tokens the same names
    True
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}: got {method!r}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1: got {steps}; 5 is EAP-IG's default")
    ways: dict[MethodName, Callable[[], Tensor]] = {
        "exact": lambda: exact_knock_out(model),
        "attention": lambda: attention_weight(model),
        "gradient_x_attention": lambda: gradient_times_attention(model),
        "eap": lambda: edge_attribution_patching(model, difference),
        "eap_ig": lambda: edge_attribution_patching_ig(model, steps, difference),
        "acdc": lambda: acdc(model, threshold),
        "random": lambda: random_scores(model, seed),
    }
    began = time.perf_counter()
    score = ways[method]().detach().double().cpu()
    return Discovery(method, tuple(model.edges), score, time.perf_counter() - began)


def exact_knock_out(model: Parts) -> Float[Tensor, " edge"]:
    """The cost without a part minus the cost with it, everything else whole: activation patching of one edge at a time.

    The knock-out of Wang et al. 2022 ("Interpretability in the Wild", section 3), for every part alone. Exact; blind
    to parts that stand in for each other.
    """
    return model.effects()


def attention_weight(model: Parts) -> Float[Tensor, " edge"]:
    """How much attention there is: what one sees by looking at patterns.

    Of an entry: its mean weight. Of an edge between heads: how far the patterns of the heads at its ends are from
    uniform (mean total variation distance; the smaller of two); an edge that touches no head scores 0. Attention
    knows heads, not which of their inputs matter. (Clark et al. 2019, "What Does BERT Look At?", reads models so.)
    """
    return model.attention()


def gradient_times_attention(model: Parts) -> Float[Tensor, " edge"]:
    """Minus weight times the cost's derivative by it: gradient x input (Shrikumar et al. 2016) at the pattern.

    Of an entry: to first order the effect of cutting it. Of an edge between heads: the sum of |weight x derivative|
    over the entries of the heads at its ends (the smaller of two), the head importance of Michel et al. 2019.
    """
    return model.gradient_times_attention()


def edge_attribution_patching(model: Parts, difference: Difference = "counterfactual") -> Float[Tensor, " edge"]:
    """EAP (Syed et al. 2023): (corrupted - clean value of the sender) . derivative by the reader's input, clean run.

    One backward pass for all parts. Wrong where the cost is not linear on the way: at a saturated softmax the
    derivative is near zero, and its sign need not be the effect's; zero for whatever is the same in both runs, as
    cutting against the same run is; and zero everywhere by "kl_to_model", whose derivative at the clean run is zero.
    Of entries with the counterfactual "zero" it is gradient x attention.
    """
    return model.attributions((1.0,), difference)


def edge_attribution_patching_ig(
    model: Parts, steps: int = 5, difference: Difference = "counterfactual"
) -> Float[Tensor, " edge"]:
    """EAP-IG (Hanna et al. 2024): the derivative averaged along the line between the two runs.

    At k / steps of the way from the corrupted to the clean run, k = 0 .. steps - 1, as in the authors' code. Of edges,
    and of entries compared by "pairs", the line runs between the two runs' embeddings (EAP-IG, inputs); of entries
    compared with their counterfactual it runs between the weights themselves, as no embedding gives weights of zero.
    """
    return model.attributions(tuple(k / steps for k in range(steps)), difference)


def acdc(model: Parts, threshold: float = 0.01) -> Float[Tensor, " edge"]:
    """ACDC (Conmy et al. 2023): walk from the logits backwards; cut a part for good if the cost rises by less.

    The score of a part is the rise at its turn, so the parts kept are those that score `threshold` or more.
    """
    if not threshold > 0:
        raise ValueError(f"ACDC's threshold must be positive: got {threshold}; 0.01 nats is the default")
    mask, rise = model.full.clone(), torch.zeros(len(model), dtype=torch.float64)
    current = float(model.costs(mask[None]).mean())
    for part in reversed(range(len(model))):
        mask[part] = False
        without = float(model.costs(mask[None]).mean())
        rise[part] = without - current
        if rise[part] >= threshold:
            mask[part] = True
        else:
            current = without
    return rise


def random_scores(model: Parts, seed: int = 0) -> Float[Tensor, " edge"]:
    """Uniform random numbers, the baseline of MIB (Mueller et al. 2025): what any method has to beat."""
    return torch.rand(len(model), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
