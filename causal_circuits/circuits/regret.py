"""How far a method's circuits are from the best of their size, and how much of the model they keep."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.circuits.evaluate import CircuitModel
from causal_circuits.circuits.frontier import Frontier
from causal_circuits.circuits.methods import Discovery
from causal_circuits.display import Frame, Result, frame


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
