"""The best circuit of every size, by trying all of them: what a discovery method can at most reach, and how far it is.

With one head in each of two layers a model has 19 edges and 2^19 circuits, with slots 26 and 2^26. The search leaves
out, and stays exact, circuits with edges into a head that nothing reads (`is_alive`: of 2^26 1.9e7 are different) and
edges that change nothing in any circuit (`inert_edges`: a planted model keeps about ten). Where more than `max_edges`
are left, those that matter most when cut from the whole model are enumerated, greedy circuits are taken in, and the
frontier says so: `exact` is false and no circuit is better than `floor`.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import networkx as nx
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.circuits.evaluate import CircuitModel
from causal_circuits.circuits.graph import LOGITS, Edge
from causal_circuits.circuits.methods import Discovery
from causal_circuits.display import Frame, Result, frame

MAX_EDGES = 19
CODES = 2**18  # circuits that are written out as bits at once


@check_arguments
@dataclass(frozen=True, repr=False, eq=False)
class Frontier(Result):
    """The least cost of every size of circuit.

    Attributes:
        edges: the axis of `masks`.
        cost: [size], float64; mean cost of the best circuit with at most 0, 1, 2, ... edges.
        masks: [size, edge]; that circuit, without dead edges.
        exact: whether no circuit of this model can be better, on these sequences and by this metric.
        floor: no circuit has a lower cost: the least cost itself where the search was exact, else what the metric
            allows (for the loss: the entropy of the targets).
        n_circuits: circuits that the search covered.
        n_evaluated: different ones among them.
        seconds: wall time.

    >>> cost, masks = torch.tensor([1.0, 0.5]), torch.tensor([[False], [True]])
    >>> one = Frontier((("token", "logits"),), cost, masks, True, floor=0.5, n_circuits=2, n_evaluated=2, seconds=0.0)
    >>> one.best_size, one.circuit(1)
    (1, [('token', 'logits')])
    """

    edges: tuple[Edge, ...]
    cost: Float[Tensor, " size"]
    masks: Bool[Tensor, "size edge"]
    exact: bool
    floor: float
    n_circuits: int
    n_evaluated: int
    seconds: float

    @property
    def best_size(self) -> int:
        """The least size whose cost is, to a millionth, the least of all."""
        return int((self.cost <= self.cost.min() + 1e-6).nonzero()[0])

    def with_circuits(self, model: CircuitModel, masks: Bool[Tensor, "circuit edge"]) -> "Frontier":
        """The frontier with circuits found elsewhere taken in: for a search that was not exact, the best known."""
        cost, best = self.cost.clone(), self.masks.clone()
        _improve(cost, best, masks, model.mean_costs(masks))
        _allow_fewer(cost, best)
        return replace(self, cost=cost, masks=best)

    def to_frame(self) -> Frame:
        """A row a size: the least cost, and the circuit that has it."""
        circuits = [", ".join(" -> ".join(edge) for edge in self.circuit(size)) for size in range(len(self.cost))]
        return frame({"size": range(len(self.cost)), "cost": self.cost.numpy(), "circuit": circuits})

    def circuit(self, size: int) -> list[Edge]:
        """The edges of the best circuit with at most `size` edges."""
        return [edge for edge, keep in zip(self.edges, self.masks[size].tolist(), strict=True) if keep]


@check_arguments
@dataclass(frozen=True, repr=False, eq=False)
class Ranking(Result):
    """The circuits that a method builds up from its highest score down, one for every size.

    Attributes:
        method: its name.
        cost: [size]; mean cost of the `size` highest-scoring edges.
        regret: [size]; that minus the least cost of any circuit with at most as many edges.
        faithfulness: [size]; f = (cost of none - cost) / (cost of none - cost of all); 1 is the whole model.

    >>> one = Ranking("exact", torch.tensor([1.0, 0.5, 0.2]), torch.tensor([0, 0.1, 0]), torch.tensor([0, 0.625, 1.0]))
    >>> round(one.mean_regret, 4), round(one.cpr, 4), round(one.cmd, 4)
    (0.0333, 0.5417, 0.4583)
    """

    method: str
    cost: Float[Tensor, " size"]
    regret: Float[Tensor, " size"]
    faithfulness: Float[Tensor, " size"]

    def to_frame(self) -> Frame:
        """A row a size, with its cost, regret and faithfulness."""
        columns = {name: getattr(self, name).numpy() for name in ("cost", "regret", "faithfulness")}
        return frame({"size": range(len(self.cost)), **columns})

    @property
    def mean_regret(self) -> float:
        """The regret averaged over every size, in units of the cost (nats)."""
        return float(self.regret.mean())

    @property
    def cpr(self) -> float:
        """MIB's circuit performance ratio: the mean of f over every size (their grid is too coarse here)."""
        return float(self.faithfulness.mean())

    @property
    def cmd(self) -> float:
        """MIB's circuit-model distance: the mean of ``|1 - f|`` over every size."""
        return float((1 - self.faithfulness).abs().mean())


@check_arguments
def oracle_frontier(model: CircuitModel, *, max_edges: int = MAX_EDGES) -> Frontier:
    """The best circuit of every size: exact, by enumeration, where that is possible.

    Args:
        model: what to find circuits of. A few hundred sequences are enough to rank circuits.
        max_edges: how many edges are enumerated at most, 1 to 30. 19 covers two layers of one head each; 26 the same
            with the slots of head outputs apart (then take few sequences).

    >>> task = cc.InContextTask(cc.chain_graph(5), d_vocab=3, alpha=0.1)
    >>> model = cc.circuits.circuit_model(cc.plant_circuit(task.graph, d_vocab=3), task.sample(20), granularity="slot")
    >>> frontier = oracle_frontier(model)
    >>> frontier.exact, frontier.n_evaluated < 2**9, ("token", "L0H0.v") in frontier.circuit(frontier.best_size)
    (True, True, True)
    """
    if not 1 <= max_edges <= 30:
        raise ValueError(f"max_edges must lie in 1 .. 30: got {max_edges}; {MAX_EDGES} is the default")
    began = time.perf_counter()
    free, exact = _edges_to_enumerate(model, max_edges)
    cost = torch.full((len(model) + 1,), torch.inf, dtype=torch.float64)
    masks = torch.zeros(len(cost), len(model), dtype=torch.bool)
    n_evaluated = 0
    for circuits in _different_circuits(model, free):
        _improve(cost, masks, circuits, model.mean_costs(circuits))
        n_evaluated += len(circuits)
    if not exact:
        greedy = greedy_circuits(model)
        _improve(cost, masks, greedy, model.mean_costs(greedy))
    _allow_fewer(cost, masks)
    return Frontier(
        edges=model.edges,
        cost=cost,
        masks=masks,
        exact=exact,
        floor=float(cost.min()) if exact else _floor(model),
        n_circuits=2 ** len(free),
        n_evaluated=n_evaluated,
        seconds=time.perf_counter() - began,
    )


@check_arguments
def rank(model: CircuitModel, discovery: Discovery, frontier: Frontier) -> Ranking:
    """The circuits of a method, held to the best of their size.

    Args:
        model: the one that the frontier was found with.
        discovery: a method's scores of the same edges.
        frontier: from `oracle_frontier`.

    >>> task = cc.InContextTask(cc.chain_graph(5), d_vocab=3, alpha=0.1)
    >>> model = cc.circuits.circuit_model(cc.plant_circuit(task.graph, d_vocab=3), task.sample(100))
    >>> frontier = cc.circuits.oracle_frontier(model)
    >>> exact, eap = (rank(model, cc.circuits.discover(model, name), frontier) for name in ("exact", "eap"))
    >>> exact.mean_regret < eap.mean_regret
    True
    """
    if discovery.edges != model.edges or frontier.edges != model.edges:
        raise ValueError(
            "model, discovery and frontier must be of the same edges: these are of different models or granularities"
        )
    masks = torch.stack([discovery.circuit(size) for size in range(len(model) + 1)])
    cost = model.mean_costs(masks)
    at_stake = cost[0] - cost[-1]
    return Ranking(discovery.method, cost, cost - frontier.cost, (cost[0] - cost) / at_stake)


def _improve(cost: Tensor, best: Tensor, masks: Bool[Tensor, "circuit edge"], costs: Float[Tensor, " circuit"]) -> None:
    """Put each circuit in the place of its size, if it is better than what is there."""
    sizes = masks.sum(dim=-1)
    for size in sizes.unique().tolist():  # type: ignore[no-untyped-call]  # torch leaves it untyped
        least = int(torch.where(sizes == size, costs, torch.inf).argmin())
        if costs[least] < cost[size]:
            cost[size], best[size] = costs[least], masks[least]


def _allow_fewer(cost: Tensor, best: Tensor) -> None:
    """Put a smaller circuit in the place of a larger one that is no better: at most so many edges."""
    for size in range(1, len(cost)):
        if cost[size - 1] <= cost[size]:
            cost[size], best[size] = cost[size - 1], best[size - 1]


def greedy_circuits(model: CircuitModel) -> Bool[Tensor, "size edge"]:
    """A good circuit of every size, without a search: from all edges down, each time less the least useful one."""
    found = [model.full]
    for _ in model.edges:
        one_less = found[-1] & ~torch.eye(len(model), dtype=torch.bool)[found[-1]]
        found.append(one_less[int(model.mean_costs(one_less).argmin())])
    return torch.stack(found)


@check_arguments
def inert_edges(model: CircuitModel) -> Bool[Tensor, " edge"]:
    """The edges that change nothing in any circuit: zero weights, or a sender that the counterfactual leaves alone.

    Backwards from the logits: a slot is of use if a reader of use has a weight on it that is not zero.

    >>> whole = cc.circuits.circuit_model(model, batch)
    >>> int(inert_edges(whole).sum()), len(whole)  # a planted circuit uses 9 of 19
    (10, 19)
    """
    inert = torch.from_numpy(~is_alive(model, np.ones((1, len(model.edges)), dtype=bool), _influences(model, True))[0])
    same = {slot for slot, value in model.inputs.items() if bool((value == model.corrupted[slot]).all())}
    return inert | torch.tensor([sender in same for sender, _ in model.edges])


def is_alive(
    model: CircuitModel, masks: Bool[np.ndarray, "circuit edge"], influences: nx.DiGraph | None = None
) -> Bool[np.ndarray, "circuit edge"]:
    """Which edges of each circuit lead, through the circuit, to the logits."""
    graph = _influences(model) if influences is None else influences
    alive = np.zeros_like(masks)
    reaches = {LOGITS: np.ones(len(masks), dtype=bool)}  # node -> the circuits in which it reaches the logits
    for node in reversed(list(nx.topological_sort(graph))):
        for _, following, edge in graph.out_edges(node, data="edge"):
            through = reaches[following] if edge is None else reaches[following] & masks[:, edge]
            reaches[node] = reaches[node] | through if node in reaches else through
            if edge is not None:
                alive[:, edge] |= through
        reaches.setdefault(node, np.zeros(len(masks), dtype=bool))
    return alive


def _influences(model: CircuitModel, by_weights: bool = False) -> nx.DiGraph:
    """Slots -> readers, along numbered edges, -> the slots that these write; without zero blocks of the weights."""
    forward, graph = model.forward, nx.DiGraph()
    for reader, readings in forward.reads.items():
        for slot, edge in readings:
            if by_weights and not forward.has_weight(reader, slot):
                continue
            node = (reader, slot) if reader.endswith(".v") else reader
            graph.add_edge(slot, node, edge=edge)
            graph.add_edges_from((node, to) for to in forward.writes(reader, slot))
    graph.add_node(LOGITS)
    return graph


def _edges_to_enumerate(model: CircuitModel, max_edges: int) -> tuple[list[int], bool]:
    """The edges that are not inert, and whether these are all; if too many, those that hurt or help most when cut."""
    free = (~inert_edges(model)).nonzero()[:, 0].tolist()
    if len(free) <= max_edges:
        return free, True
    effect = model.effects().abs().tolist()
    return sorted(sorted(free, key=effect.__getitem__, reverse=True)[:max_edges]), False


def _different_circuits(model: CircuitModel, free: Sequence[int]) -> Iterator[Bool[Tensor, "circuit edge"]]:
    """All circuits over some edges that have no dead ones, in batches."""
    n = len(free)
    for start in range(0, 2**n, CODES):
        codes = np.arange(start, min(start + CODES, 2**n))
        masks = np.zeros((len(codes), len(model)), dtype=bool)
        masks[:, list(free)] = (codes[:, None] >> np.arange(n - 1, -1, -1)) & 1  # early edges change least often
        different = masks[(is_alive(model, masks) == masks).all(axis=1)]
        if len(different):
            yield torch.from_numpy(different)


def _floor(model: CircuitModel) -> float:
    target = model.batch.target_probs.double()
    entropy = -float(torch.special.xlogy(target, target).sum(dim=-1).mean())
    floors = {"loss": entropy, "kl_to_model": 0.0, "kl_to_posterior": 0.0, "accuracy": -1.0}
    return floors.get(model.cost.name, -float("inf"))
