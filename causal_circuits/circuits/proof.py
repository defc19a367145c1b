"""Prove a circuit, or say why it is not one: four criteria, each a number with its uncertainty, and one verdict.

With C the circuit, M the whole model, m the mean cost (Wang et al. 2022, "Interpretability in the Wild", section 4):

* **faithful**: C does what M does. f = (m(none) - m(C)) / (m(none) - m(M)), bootstrapped over sequences.
* **complete**: nothing else does it too. For random K within C, |m(C - K) - m(M - K)|: where C falls, M must fall.
* **minimal**: every edge is needed. m(C - e) - m(C) > 0 for each e, Holm-corrected over edges.
* **sufficient** for its size: better than other, random circuits as large; p = (1 + #at least as good) / (1 + n).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from causal_circuits.circuits.evaluate import CircuitModel
from causal_circuits.circuits.graph import Circuit, Edge
from causal_circuits.discovery import holm
from causal_circuits.discovery.testing import upper_tail
from causal_circuits.display import Row, table_html, table_text

LEVEL = 0.01
FAITHFUL = 0.1  # how far from 1 the interval of f may reach
COMPLETE = 0.1  # largest mean gap, as a share of what the circuit has at stake


@dataclass(frozen=True)
class NeededEdge:
    """What one edge of the circuit is worth to it.

    Attributes:
        edge: (sender, reader).
        effect: cost of the circuit without it minus cost with it, mean over sequences.
        standard_error: of that.
        p_value: one-sided, against "it is not needed"; Holm-corrected over the circuit's edges.
        needed: p_value below the level.

    >>> import causal_circuits as cc
    >>> from causal_circuits import circuits
    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    >>> model = cc.plant_circuit(task.graph, d_vocab=3)
    >>> whole = circuits.circuit_model(model, task.sample(64, seed=0))
    >>> proof = circuits.prove_circuit(whole, ~circuits.inert_edges(whole), n_random=99, n_bootstrap=20)
    >>> worst = max(proof.edges, key=lambda edge: edge.effect)
    >>> worst.effect > 0, worst.needed
    (True, True)
    """

    edge: Edge
    effect: float
    standard_error: float
    p_value: float
    needed: bool


@dataclass(frozen=True)
class Criterion:
    """One criterion, passed or not, and why in one sentence with its numbers.

    >>> Criterion("faithful", True, "the circuit keeps .99 of the gain").passed
    True
    """

    name: str
    passed: bool
    reason: str


@dataclass(frozen=True, repr=False)
class CircuitProof:
    """The verdict on a circuit.

    Attributes:
        circuit: its edges.
        cost, full_cost, empty_cost: mean cost of the circuit, of the whole model, and of nothing.
        faithfulness: f, with `interval`, its 95% bootstrap interval over sequences.
        incompleteness: mean over random K of |m(C - K) - m(M - K)|, as a share of m(none) - m(M); `worst_gap` is the
            largest.
        edges: every edge's worth.
        random_costs: mean costs of random circuits of the same size.
        sufficiency_p: the circuit's rank among them, as a p-value; NaN if it is the whole model.
        criteria: the four, in order.

    >>> import causal_circuits as cc
    >>> from causal_circuits import circuits
    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    >>> model = cc.plant_circuit(task.graph, d_vocab=3)
    >>> whole = circuits.circuit_model(model, task.sample(64, seed=0))
    >>> proof = circuits.prove_circuit(whole, ~circuits.inert_edges(whole), n_random=99, n_bootstrap=20)
    >>> len(proof.circuit), [criterion.name for criterion in proof.criteria]
    (9, ['faithful', 'complete', 'minimal', 'sufficient'])
    """

    circuit: tuple[Edge, ...]
    cost: float
    full_cost: float
    empty_cost: float
    faithfulness: float
    interval: tuple[float, float]
    incompleteness: float
    worst_gap: float
    edges: tuple[NeededEdge, ...]
    random_costs: Float[Tensor, " circuit"]
    sufficiency_p: float
    criteria: tuple[Criterion, ...]

    @property
    def proved(self) -> bool:
        """Whether every criterion is met."""
        return all(criterion.passed for criterion in self.criteria)

    @property
    def verdict(self) -> str:
        """One sentence: proved, or what is wrong."""
        if self.proved:
            return f"proved: these {len(self.circuit)} edges are the circuit"
        return "not proved: " + "; ".join(criterion.reason for criterion in self.criteria if not criterion.passed)

    def _rows(self) -> list[Row]:
        return [{"criterion": c.name, "passed": c.passed, "why": c.reason} for c in self.criteria]

    def __repr__(self) -> str:
        return f"{self.verdict}\n{table_text(self._rows())}"

    def _repr_html_(self) -> str:
        edges = [
            {"edge": " -> ".join(e.edge), "cost without it": e.effect, "p (Holm)": e.p_value, "needed": e.needed}
            for e in self.edges
        ]
        return table_html(self._rows(), self.verdict) + table_html(edges, "What each edge of the circuit is worth")


def prove_circuit(
    model: CircuitModel,
    circuit: Circuit,
    *,
    n_random: int = 200,
    n_bootstrap: int = 1000,
    level: float = LEVEL,
    seed: int = 0,
) -> CircuitProof:
    """Hold a circuit to the four criteria.

    Args:
        model: what the circuit is of; a thousand sequences tell effects of 0.01 nats.
        circuit: a DiGraph, a list of edges, or a mask.
        n_random: random knock-outs and random circuits, each.
        n_bootstrap: resamples of the sequences.
        level: of each test.
        seed: of all that is random.

    Raises:
        ValueError: an empty circuit, an edge that the model has not, or nothing at stake (the whole model is no better
            than nothing).

    >>> from causal_circuits import InContextTask, chain_graph, plant_circuit
    >>> from causal_circuits.circuits import circuit_model, inert_edges
    >>> task = InContextTask(chain_graph(8), d_vocab=3, alpha=0.1)
    >>> model = circuit_model(plant_circuit(task.graph, d_vocab=3), task.sample(1000))
    >>> prove_circuit(model, ~inert_edges(model)).verdict
    'proved: these 9 edges are the circuit'
    """
    mask, generator = model.mask(circuit), torch.Generator().manual_seed(seed)
    if not bool(mask.any()):
        raise ValueError("a circuit to prove needs at least one edge: got none")
    if not 0 < level < 1 or n_bootstrap < 1 or 1 + n_random < 1 / level:
        raise ValueError(
            "level must lie in (0, 1), n_bootstrap be at least 1 and n_random at least 1 / level - 1 (or no rank among "
            f"random circuits could reach the level): got {level}, {n_bootstrap}, {n_random}"
        )
    empty, full, own = model.costs(torch.stack([model.empty, model.full, mask]))
    at_stake = float(empty.mean() - full.mean())
    if not at_stake > 0:
        raise ValueError(
            f"nothing is at stake: the whole model costs {float(full.mean()):.4g}, nothing at all "
            f"{float(empty.mean()):.4g}; take another counterfactual or train the model"
        )
    faithfulness = float(empty.mean() - own.mean()) / at_stake
    interval = _bootstrap(empty, full, own, n_bootstrap, generator)
    gaps = _completeness_gaps(model, mask, n_random, generator) / at_stake
    edges = _needed_edges(model, mask, own, level)
    others = _random_circuits(mask, n_random, generator)
    random_costs = model.costs(others).mean(dim=-1) if len(others) else torch.empty(0, dtype=torch.float64)
    p = float((1 + (random_costs <= own.mean()).sum()) / (1 + len(others))) if len(others) else float("nan")
    return CircuitProof(
        circuit=tuple(edge.edge for edge in edges),
        cost=float(own.mean()),
        full_cost=float(full.mean()),
        empty_cost=float(empty.mean()),
        faithfulness=faithfulness,
        interval=interval,
        incompleteness=float(gaps.mean()),
        worst_gap=float(gaps.max()),
        edges=edges,
        random_costs=random_costs,
        sufficiency_p=p,
        criteria=_judge(faithfulness, interval, gaps, edges, p, level),
    )


def _bootstrap(
    empty: Tensor, full: Tensor, own: Tensor, n_bootstrap: int, generator: torch.Generator
) -> tuple[float, float]:
    """The 2.5% and 97.5% quantiles of faithfulness over resampled sequences."""
    draws = torch.randint(len(own), (n_bootstrap, len(own)), generator=generator)
    nothing, everything, circuit = (costs.cpu()[draws].mean(dim=-1) for costs in (empty, full, own))
    f = (nothing - circuit) / (nothing - everything)
    low, high = f.quantile(torch.tensor([0.025, 0.975], dtype=f.dtype)).tolist()
    return low, high


def _completeness_gaps(
    model: CircuitModel, mask: Bool[Tensor, " edge"], n_random: int, generator: torch.Generator
) -> Float[Tensor, " knock_out"]:
    """|m(C - K) - m(M - K)| for random K within C, every edge in it with probability one half."""
    knocked_out = mask & (torch.rand(n_random, len(mask), generator=generator) < 0.5)
    from_circuit, from_model = model.costs(mask & ~knocked_out), model.costs(~knocked_out)
    return (from_circuit.mean(dim=-1) - from_model.mean(dim=-1)).abs()


def _needed_edges(
    model: CircuitModel, mask: Bool[Tensor, " edge"], own: Float[Tensor, " batch"], level: float
) -> tuple[NeededEdge, ...]:
    chosen = mask.nonzero()[:, 0].tolist()
    one_less = mask.repeat(len(chosen), 1)
    one_less[torch.arange(len(chosen)), chosen] = False
    harm = model.costs(one_less) - own
    effects, errors = harm.mean(dim=-1).tolist(), (harm.std(dim=-1) / len(own) ** 0.5).tolist()
    p_values = holm(
        [
            upper_tail(effect / error) if error > 0 else float(effect <= 0)
            for effect, error in zip(effects, errors, strict=True)
        ]
    )
    return tuple(
        NeededEdge(model.edges[part], effect, error, p, p < level)
        for part, effect, error, p in zip(chosen, effects, errors, p_values, strict=True)
    )


def _random_circuits(mask: Bool[Tensor, " edge"], n: int, generator: torch.Generator) -> Bool[Tensor, "circuit edge"]:
    """Random circuits with as many edges as this one, itself left out: none, if it is the whole model."""
    if bool(mask.all()):
        return mask[None][:0]
    tried = torch.rand(4 * n, len(mask), generator=generator).argsort(dim=-1).argsort(dim=-1) < int(mask.sum())
    return tried[(tried != mask).any(dim=-1)][:n]


def _judge(
    faithfulness: float,
    interval: tuple[float, float],
    gaps: Tensor,
    edges: tuple[NeededEdge, ...],
    p: float,
    level: float,
) -> tuple[Criterion, ...]:
    idle = [" -> ".join(edge.edge) for edge in edges if not edge.needed]
    low, high = interval
    return (
        Criterion(
            "faithful",
            low >= 1 - FAITHFUL and high <= 1 + FAITHFUL,
            f"it keeps {faithfulness:.3f} of the gain (95% interval {low:.3f} to {high:.3f}; 1 +- {FAITHFUL} passes)",
        ),
        Criterion(
            "complete",
            float(gaps.mean()) <= COMPLETE,
            f"knocked out alike, circuit and model differ by {float(gaps.mean()):.3f} of the gain on average "
            f"({float(gaps.max()):.3f} at most; a mean of {COMPLETE} is allowed)",
        ),
        Criterion(
            "minimal",
            not idle,
            f"{len(edges) - len(idle)} of {len(edges)} edges are needed (Holm, level {level})"
            + (f"; not shown for {', '.join(idle)}" if idle else ""),
        ),
        Criterion(
            "sufficient",
            not p > level,
            f"other circuits of its size are as good with p = {p:.3g}" if p == p else "no other circuit has its size",
        ),
    )
