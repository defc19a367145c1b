"""What a model predicts when it may use a circuit only: any number of circuits at once, exactly.

A reader gets every sender's value as it is *in this circuit* where the circuit has the edge, and the sender's
counterfactual value where it has not. So the full circuit is the clean run, and the empty one the fully corrupted run.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import networkx as nx
import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.circuits.counterfactuals import Counterfactual, constant, corrupted_inputs
from causal_circuits.circuits.forward import Forward, Gradients, Masks, Read, SlotForward, Slots, Variants
from causal_circuits.circuits.graph import Circuit, Edge, Granularity, circuit_edges, circuit_graph, circuit_mask
from causal_circuits.circuits.hooked_forward import HookedForward
from causal_circuits.circuits.methods import Difference, Parts
from causal_circuits.display import Result
from causal_circuits.interventions import Cost, Metric, make_cost
from causal_circuits.interventions.measure import check_input
from causal_circuits.models import HookedTransformer, has_layout
from causal_circuits.models.acceptance import refuse_foreign
from causal_circuits.models.structured import usable_for_gradients
from causal_circuits.tasks import Batch, Task
from causal_circuits.tasks.batch import check_tokens


@check_arguments
@dataclass(frozen=True, repr=False, eq=False)
class CircuitModel(Parts, Result):
    """A model as a function of its circuit, on a fixed batch; made by `circuit_model`.

    Attributes:
        graph: of everything the model could use; `edges` are those a circuit may have.
        edges: the axis of every mask.
        counterfactual: what stands in for a sender that is cut off.
        granularity: "head" or "slot".
        batch: the sequences.
        cost: the metric, lower being better.
        inputs: the embeddings of the clean run.
        clean: every slot's value in the clean run (of the last layer's slots, that of the last row).
        corrupted: every slot's counterfactual value.
        pairs: every slot's value in a run on other tokens, for the methods that compare pairs of runs.
        forward: the model's forward pass: from the weights of a disentangled model, with hooks on any other.

    >>> whole = circuit_model(model, batch)
    >>> whole.edges[:2], len(whole)
    ((('token', 'L0H0.q'), ('position', 'L0H0.q')), 19)
    >>> whole.mean_cost(whole.full) < whole.mean_cost(whole.empty)
    True
    """

    graph: nx.DiGraph
    edges: tuple[Edge, ...]
    counterfactual: str
    granularity: Granularity
    batch: Batch
    cost: Cost
    inputs: Slots = field(repr=False)
    clean: Slots = field(repr=False)
    corrupted: Slots = field(repr=False)
    pairs: Slots = field(repr=False)
    forward: Forward = field(repr=False)

    def mask(self, circuit: Circuit) -> Bool[Tensor, " edge"]:
        """A circuit (a DiGraph, a list of edges, or a mask already) as a mask; refused if it is another model's."""
        return circuit_mask(self.edges, circuit)

    @property
    def empty(self) -> Bool[Tensor, " edge"]:
        """The circuit that has none."""
        return ~self.full

    @torch.no_grad()
    def log_probs(self, masks: Masks) -> Float[Tensor, "circuit batch d_vocab"]:
        """The prediction at the last position with each circuit."""
        return torch.cat(list(self._predictions(masks)))

    @torch.no_grad()
    def costs(self, masks: Masks) -> Float[Tensor, "circuit batch"]:
        """The cost of each circuit on each sequence, float64."""
        return torch.cat([self.cost(piece) for piece in self._predictions(masks)])

    def mean_cost(self, circuit: Circuit) -> float:
        """The mean cost of one circuit."""
        return float(self.mean_costs(self.mask(circuit)[None]))

    def attention(self) -> Float[Tensor, " edge"]:
        """Of each edge, the mean total variation distance from uniform of the patterns at its ends (the smaller)."""
        patterns = self.forward.patterns(self.inputs)
        return self._by_heads({head: _selectivity(pattern) for head, pattern in patterns.items()})

    def gradient_times_attention(self) -> Float[Tensor, " edge"]:
        """Of each edge, the sum of ``|weight x derivative|`` over the patterns at its ends (the smaller of two)."""
        patterns = self.forward.patterns(self.inputs)
        by_pattern = self.forward.gradients(self.cost, self.inputs, self.clean).attention
        return self._by_heads({head: float((patterns[head] * by_pattern[head]).abs().sum()) for head in patterns})

    def attributions(self, points: tuple[float, ...], difference: Difference) -> Float[Tensor, " edge"]:
        """(other - clean value of the sender) . derivative of the cost by the reader's input, averaged over points."""
        return -self.gradients_between(points, self.pairs if difference == "pairs" else self.corrupted).edges

    def gradients_between(self, points: tuple[float, ...], other: Slots) -> Gradients:
        """Mean derivatives at points between the embeddings of another run (0) and the clean ones (1).

        Edges: along the difference of their sender's clean value from the other run's.
        """
        away = {slot: clean - other[slot] for slot, clean in self.clean.items()}
        found = []
        for point in points:
            inputs = {slot: other[slot] + point * (clean - other[slot]) for slot, clean in self.inputs.items()}
            found.append(self.forward.gradients(self.cost, inputs, away))
        return Gradients(
            edges=torch.stack([one.edges for one in found]).mean(dim=0),
            attention={
                head: torch.stack([one.attention[head] for one in found]).mean(dim=0) for head in found[0].attention
            },
        )

    def _by_heads(self, of_head: dict[str, float]) -> Float[Tensor, " edge"]:
        """The smaller value of the heads at an edge's two ends; 0 where there is none."""
        ends = [[node.split(".")[0] for node in edge] for edge in self.edges]
        return torch.tensor([min((of_head[node] for node in pair if node in of_head), default=0.0) for pair in ends])

    def _predictions(self, masks: Masks) -> Iterator[Float[Tensor, "circuit batch d_vocab"]]:
        if masks.dtype != torch.bool or masks.ndim != 2 or masks.shape[1] != len(self.edges) or not len(masks):
            raise ValueError(
                f"masks must be Boolean [circuit, edge={len(self.edges)}], one circuit or more: "
                f"got {masks.dtype} {list(masks.shape)}"
            )
        pieces = masks.split(max(1, self.forward.copies // len(self.batch)))  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return (self.forward.log_probs(piece, self.inputs, self._reader(piece)) for piece in pieces)

    def _reader(self, masks: Masks) -> Read:
        """Reading in a circuit: the value if the circuit has the edge, its counterfactual if not."""

        def read(slot: str, edge: int, value: Variants, circuits: Tensor) -> Tensor:
            keeps, corrupted = masks[circuits, edge], self.corrupted[slot]
            if bool(keeps.all()):
                return value.of(circuits)
            corrupted = corrupted[:, -value.values.shape[2] :]  # one row, where the value has only the last
            if not bool(keeps.any()):
                return corrupted.expand(len(circuits), len(self.batch), -1, -1)
            return torch.where(rearrange(keeps.to(corrupted.device), "c -> c 1 1 1"), value.of(circuits), corrupted)

        return read


def _selectivity(pattern: Float[Tensor, "batch query_pos key_pos"]) -> float:
    """The last rows of a causal pattern against uniform attention over the keys that each may see."""
    n_rows, n_keys = pattern.shape[-2:]
    seen = torch.ones(n_keys, n_keys, dtype=pattern.dtype, device=pattern.device).tril()[-n_rows:]
    distance = (pattern - seen / seen.sum(dim=-1, keepdim=True)).abs() / 2
    return float(reduce(distance, "batch query_pos key_pos -> batch query_pos", "sum").mean())


@check_arguments
@torch.inference_mode(False)
@torch.no_grad()
def circuit_model(
    model: HookedTransformer,
    batch: Batch,
    *,
    counterfactual: Counterfactual | Int[Tensor, "batch n_ctx"] = "mean",
    granularity: Granularity = "head",
    metric: Metric = "loss",
    task: Task | None = None,
    seed: int = 0,
) -> CircuitModel:
    """A model as a function of its circuit, on a batch.

    Args:
        model: any HookedTransformer or bridge; a disentangled one without hooks, as its circuits are computed from its
            weights.
        batch: sequences and targets.
        counterfactual: what a reader gets in place of a sender that is cut off: "zero"; "mean" (over sequences and
            positions); "resample" (a run on another sequence's tokens); "permute" (a run whose positions bear each
            other's names); "resample_and_permute"; or tokens of your own, one sequence for each.
        granularity: "head" or "slot" (`circuit_graph`).
        metric: "loss" (nats), another of `METRICS`, or a function of log-probabilities, one number a sequence.
        task: what the metric "kl_to_posterior" needs.
        seed: of resampling and permuting.

    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3, alpha=0.1)
    >>> model = circuit_model(cc.plant_circuit(task.graph, d_vocab=3), task.sample(200))
    >>> induction = [("position", "L0H0.q"), ("position", "L0H0.k"), ("token", "L0H0.v"), ("L1H0", "logits"),
    ...              ("token", "L1H0.q"), ("position", "L1H0.q"), ("L0H0", "L1H0.k"), ("position", "L1H0.k"),
    ...              ("token", "L1H0.v")]
    >>> abs(model.mean_cost(induction) - model.mean_cost(model.full)) < 1e-6 < model.mean_cost(model.empty)
    True
    """
    check_input(model, batch)
    if isinstance(counterfactual, Tensor):
        check_tokens(counterfactual, model.cfg.d_vocab)
    if model.W_U.dtype.itemsize < 4:
        raise ValueError(f"circuits are evaluated in float32 or float64: got {model.W_U.dtype}; call model.float()")
    if has_layout(model):
        refuse_foreign(model, "circuit_model", "call model.reset_hooks(), or build the model anew")
    if model.W_U.is_inference():
        raise ValueError("circuits need gradients: build the model outside torch.inference_mode()")
    batch = usable_for_gradients(batch).to(model.W_U.device, model.W_U.dtype)
    graph = circuit_graph(model, granularity)
    edges = tuple(circuit_edges(graph))
    forward = SlotForward.of(model, edges, granularity) if has_layout(model) else HookedForward.of(model, edges, batch)
    inputs = forward.embed(batch.tokens)
    clean = forward.values(inputs)
    return CircuitModel(
        graph=graph,
        edges=edges,
        counterfactual=counterfactual if isinstance(counterfactual, str) else "tokens",
        granularity=granularity,
        batch=batch,
        cost=make_cost(metric, batch, model=model, task=task),
        inputs=inputs,
        clean=clean,
        corrupted=_corrupted(forward, batch.tokens, clean, counterfactual, seed),
        pairs=_corrupted(forward, batch.tokens, clean, "resample" if len(batch) > 1 else "zero", seed),
        forward=forward,
    )


def _corrupted(forward: Forward, tokens: Tensor, clean: Slots, counterfactual: str | Tensor, seed: int) -> Slots:
    if isinstance(counterfactual, Tensor):
        if counterfactual.shape != tokens.shape:
            raise ValueError(
                f"counterfactual tokens must be one sequence for each of the batch, {list(tokens.shape)}: "
                f"got {list(counterfactual.shape)}"
            )
        return forward.values(forward.embed(counterfactual))
    if counterfactual in ("zero", "mean"):
        return {slot: constant(value, counterfactual) for slot, value in clean.items()}
    return forward.values(corrupted_inputs(forward, tokens, counterfactual, seed))
