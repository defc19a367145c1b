"""Hold a circuit to four criteria, each a number with its uncertainty, and give one verdict.

With C the circuit, M the whole model, m the mean cost (Wang et al. 2022, "Interpretability in the Wild", section 4):

* **faithful**: C costs what M costs. f = (m(none) - m(C)) / (m(none) - m(M)), bootstrapped over sequences.
* **complete**: for random K within C, |m(C - K) - m(M - K)| is small on average: where C falls, M falls.
* **minimal**: every edge is needed. m(C - e) - m(C) > 0 for each e, Holm-corrected over edges.
* **sufficient** for its size: better than other circuits as large; p = (1 + #at least as good) / (1 + n) over n
  different rivals: all of them where there are few (then p is the exact rank), else a random choice without repetition.
  p cannot fall below 1 / (1 + n): where that is above the level, the criterion cannot be tested.

"Proved" means that all four hold, for this metric, this counterfactual and these sequences.
"""

from dataclasses import dataclass
from itertools import combinations
from math import comb

import torch
from einops import reduce
from jaxtyping import Bool, Float
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.circuits.evaluate import CircuitModel
from causal_circuits.circuits.graph import Circuit, Edge
from causal_circuits.display import Row, table_html, table_text
from causal_circuits.statistics import holm, upper_tail

LEVEL = 0.01  # of each test
FAITHFUL = 0.1  # how far from 1 the interval of f may reach
COMPLETE = 0.1  # largest mean gap, as a share of what the circuit has at stake
SAME = 1e-6  # of what is at stake: a rival that costs at most so much more is as good (rounding, no difference)


@check_arguments
@dataclass(frozen=True)
class NeededEdge:
    """What one edge of the circuit is worth to it.

    Attributes:
        edge: (sender, reader).
        effect: cost of the circuit without it minus cost with it, mean over sequences.
        standard_error: of that.
        p_value: one-sided, against "it is not needed"; Holm-corrected over the circuit's edges.
        needed: p_value below .01.

    >>> NeededEdge(("token", "logits"), effect=0.2, standard_error=0.01, p_value=1e-9, needed=True).needed
    True
    """

    edge: Edge
    effect: float
    standard_error: float
    p_value: float
    needed: bool


@check_arguments
@dataclass(frozen=True)
class Criterion:
    """One criterion, passed or not, and why in one sentence with its numbers.

    Attributes:
        name: "faithful", "complete", "minimal" or "sufficient".
        passed: whether it is shown to hold.
        reason: one sentence with its numbers.
        testable: false where no outcome of its test could pass it.

    >>> Criterion("faithful", True, "the circuit keeps .99 of the gain").passed
    True
    """

    name: str
    passed: bool
    reason: str
    testable: bool = True


@check_arguments
@dataclass(frozen=True, repr=False, eq=False)
class CircuitProof:
    """The verdict on a circuit.

    Attributes:
        circuit: its edges.
        cost, full_cost, empty_cost: mean cost of the circuit, of the whole model, and of nothing.
        faithfulness: f, with `interval`, its 95% bootstrap interval over sequences.
        incompleteness: mean over random K of ``|m(C - K) - m(M - K)|``, as a share of m(none) - m(M); `worst_gap` is
            the largest.
        edges: every edge's worth.
        random_costs: mean costs of other circuits of the same size, each once.
        n_rivals: how many other circuits have its size; where `random_costs` holds them all, the p-value is exact.
        sufficiency_p: the circuit's rank among them, as a p-value; NaN if it is the whole model.
        p_floor: the least p-value that so many rivals allow, 1 / (1 + their number).
        criteria: the four, in order.

    >>> whole = cc.circuits.circuit_model(model, batch)
    >>> proof = cc.circuits.prove_circuit(whole, ~cc.circuits.inert_edges(whole), n_random=99, n_bootstrap=20)
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
    n_rivals: int
    sufficiency_p: float
    p_floor: float
    criteria: tuple[Criterion, ...]

    @property
    def proved(self) -> bool:
        """Whether every criterion is shown to hold."""
        return all(criterion.passed for criterion in self.criteria)

    @property
    def verdict(self) -> str:
        """One sentence: proved, or what is wrong, or what alone cannot be tested."""
        if self.proved:
            return f"proved: these {len(self.circuit)} edges meet all four criteria"
        open_ = [criterion for criterion in self.criteria if not criterion.passed]
        word = "not proved" if any(criterion.testable for criterion in open_) else "undecided"
        return f"{word}: " + "; ".join(criterion.reason for criterion in open_)

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


@check_arguments
def prove_circuit(
    model: CircuitModel,
    circuit: Circuit,
    *,
    n_random: int = 200,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> CircuitProof:
    """Hold a circuit to the four criteria.

    Args:
        model: what the circuit is of; a thousand sequences tell effects of 0.01 nats.
        circuit: a DiGraph, a list of edges, or a mask.
        n_random: random knock-outs, and other circuits of the same size (all of them, if there are no more), each.
        n_bootstrap: resamples of the sequences.
        seed: of all that is random.

    Raises:
        ValueError: an empty circuit, an edge that the model has not, or nothing at stake (the whole model is no better
            than nothing).

    >>> task = cc.InContextTask(cc.chain_graph(8), d_vocab=3, alpha=0.1)
    >>> model = cc.circuits.circuit_model(cc.plant_circuit(task.graph, d_vocab=3), task.sample(1000))
    >>> prove_circuit(model, ~cc.circuits.inert_edges(model)).verdict
    'proved: these 9 edges meet all four criteria'
    """
    mask, generator = model.mask(circuit), torch.Generator().manual_seed(seed)
    if not bool(mask.any()):
        raise ValueError("a circuit to prove needs at least one edge: got none")
    if n_bootstrap < 1 or 1 + n_random < 1 / LEVEL:
        raise ValueError(
            f"n_bootstrap must be at least 1, n_random at least {1 / LEVEL - 1:.0f} (or no rank among random circuits "
            f"could reach the level {LEVEL}): got {n_bootstrap}, {n_random}"
        )
    costs = model.costs(torch.stack([model.empty, model.full, mask]))
    empty, full, own = costs
    at_stake = float(empty.mean() - full.mean())
    if not at_stake > 0:
        raise ValueError(
            f"nothing is at stake: the whole model costs {float(full.mean()):.4g}, nothing at all "
            f"{float(empty.mean()):.4g}; take another counterfactual or train the model"
        )
    faithfulness, interval = _faithfulness(costs, n_bootstrap, generator)
    gaps = _completeness_gaps(model, mask, n_random, generator) / at_stake
    edges = _needed_edges(model, mask, own)
    rivals = _rivals(mask, n_random, generator)
    random_costs = model.mean_costs(rivals) if len(rivals) else torch.empty(0, dtype=torch.float64)
    n_rivals, floor = comb(len(mask), int(mask.sum())) - 1, 1 / (1 + len(rivals))
    as_good = int((random_costs <= own.mean() + SAME * at_stake).sum())
    p = (1 + as_good) / (1 + len(rivals)) if len(rivals) else float("nan")
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
        n_rivals=n_rivals,
        sufficiency_p=p,
        p_floor=floor,
        criteria=(
            _faithful(faithfulness, interval),
            _complete(gaps),
            _minimal(edges),
            _sufficient(p, floor, len(rivals), n_rivals),
        ),
    )


def _faithfulness(
    costs: Float[Tensor, "3 batch"], n_bootstrap: int, generator: torch.Generator
) -> tuple[float, tuple[float, float]]:
    """The circuit's share of the gain and its 95% interval; `costs` are of nothing, of the model and of the circuit."""

    def share(empty: Tensor, full: Tensor, own: Tensor) -> Tensor:
        return (empty - own) / (empty - full)

    draws = torch.randint(costs.shape[1], (n_bootstrap, costs.shape[1]), generator=generator)
    resampled = share(*reduce(costs.cpu()[:, draws], "cost draw batch -> cost draw", "mean"))
    low, high = resampled.quantile(torch.tensor([0.025, 0.975], dtype=costs.dtype)).tolist()
    return float(share(*costs.mean(dim=-1))), (low, high)


def _completeness_gaps(
    model: CircuitModel, mask: Bool[Tensor, " edge"], n_random: int, generator: torch.Generator
) -> Float[Tensor, " knock_out"]:
    """|m(C - K) - m(M - K)| for random K within C, every edge in it with probability one half."""
    knocked_out = mask & (torch.rand(n_random, len(mask), generator=generator) < 0.5)
    return (model.mean_costs(mask & ~knocked_out) - model.mean_costs(~knocked_out)).abs()


def _needed_edges(
    model: CircuitModel, mask: Bool[Tensor, " edge"], own: Float[Tensor, " batch"]
) -> tuple[NeededEdge, ...]:
    chosen = mask.nonzero()[:, 0].tolist()
    harm = model.costs(mask & ~torch.eye(len(mask), dtype=torch.bool)[chosen]) - own
    effects, errors = harm.mean(dim=-1).tolist(), (harm.std(dim=-1) / len(own) ** 0.5).tolist()
    found = zip(effects, errors, strict=True)
    p_values = holm([upper_tail(effect / error) if error > 0 else float(effect <= 0) for effect, error in found])
    return tuple(
        NeededEdge(model.edges[part], effect, error, p, p < LEVEL)
        for part, effect, error, p in zip(chosen, effects, errors, p_values, strict=True)
    )


def _rivals(mask: Bool[Tensor, " edge"], n: int, generator: torch.Generator) -> Bool[Tensor, "circuit edge"]:
    """Other circuits with as many edges, each once: all of them if there are at most n, else n drawn at random."""
    n_edges, size = len(mask), int(mask.sum())
    own = tuple(mask.nonzero()[:, 0].tolist())
    if comb(n_edges, size) - 1 <= n:
        chosen = dict.fromkeys(combinations(range(n_edges), size))
    else:
        chosen = {own: None}
        while len(chosen) <= n:
            chosen[tuple(sorted(torch.randperm(n_edges, generator=generator)[:size].tolist()))] = None
    chosen.pop(own)
    rivals = torch.zeros(len(chosen), n_edges, dtype=torch.bool)
    for rival, edges in zip(rivals, chosen, strict=True):
        rival[list(edges)] = True
    return rivals


def _faithful(faithfulness: float, interval: tuple[float, float]) -> Criterion:
    low, high = interval
    reason = f"it keeps {faithfulness:.3f} of the gain (95% interval {low:.3f} to {high:.3f}; 1 +- {FAITHFUL} passes)"
    return Criterion("faithful", low >= 1 - FAITHFUL and high <= 1 + FAITHFUL, reason)


def _complete(gaps: Float[Tensor, " knock_out"]) -> Criterion:
    mean, worst = float(gaps.mean()), float(gaps.max())
    reason = (
        f"knocked out alike, circuit and model differ by {mean:.3f} of the gain on average over {len(gaps)} random "
        f"knock-outs ({worst:.3f} at most among them; a mean of {COMPLETE} is allowed)"
    )
    return Criterion("complete", mean <= COMPLETE, reason)


def _minimal(edges: tuple[NeededEdge, ...]) -> Criterion:
    idle = [" -> ".join(edge.edge) for edge in edges if not edge.needed]
    reason = f"{len(edges) - len(idle)} of {len(edges)} edges are needed (Holm, level {LEVEL})"
    return Criterion("minimal", not idle, reason + (f"; not shown for {', '.join(idle)}" if idle else ""))


def _sufficient(p: float, floor: float, n_tried: int, n_rivals: int) -> Criterion:
    if not n_rivals:
        return Criterion("sufficient", False, "sufficiency cannot be tested: no other circuit has its size", False)
    if floor > LEVEL:
        reason = (
            f"sufficiency cannot be tested at level {LEVEL}: {n_rivals} other circuits have its size, so that p is "
            f"{floor:.3g} at least (here {p:.3g})"
        )
        return Criterion("sufficient", False, reason, False)
    which = f"all {n_rivals}" if n_tried == n_rivals else f"{n_tried} of {n_rivals:,}"
    reason = (
        f"against {which} other circuits of its size p = {p:.3g} (so many allow {floor:.3g} at least; {LEVEL} passes)"
    )
    return Criterion("sufficient", p <= LEVEL, reason)
