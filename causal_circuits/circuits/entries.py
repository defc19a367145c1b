"""Single attention entries as the parts of a circuit: what can be compared with the latent graph, edge by edge.

Keeping some entries (head, query_pos, key_pos) of a layer and cutting the others is a circuit too, on a finer scale
than heads and slots; `EntryModel` answers for it as `CircuitModel` does for edges. If a model has learned the graph,
the entries that matter are its edges.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from causal_circuits.circuits.build import circuit_model
from causal_circuits.circuits.evaluate import CircuitModel
from causal_circuits.circuits.gradients import mean_gradients, others
from causal_circuits.interventions import Metric, knock_out_edges
from causal_circuits.interventions.measure import check_hooks
from causal_circuits.models import HookedTransformer, live_heads, log_probs
from causal_circuits.tasks import Batch, InContextTask

Entry = tuple[int, int, int]


@dataclass(frozen=True)
class EntryModel:
    """A model as a function of which attention entries of one layer it keeps; made by `entry_model`.

    Attributes:
        edges: (head, query_pos, key_pos) of every entry, head by head and row by row: the axis of every mask.
        whole: the model as a function of its circuit, on the same sequences.
        layer: whose entries.

    >>> import causal_circuits as cc
    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    >>> model, batch = cc.plant_circuit(task.graph, d_vocab=3), task.sample(64, seed=0)
    >>> from causal_circuits import circuits
    >>> entries = circuits.entry_model(model, batch)
    >>> entries.edges[:3], len(entries.edges)  # (head, query_pos, key_pos)
    (((0, 0, 0), (0, 1, 0), (0, 1, 1)), 21)
    """

    edges: tuple[Entry, ...]
    whole: CircuitModel
    layer: int
    model: HookedTransformer = field(repr=False)
    metric: Metric
    task: InContextTask | None = field(repr=False)

    def __len__(self) -> int:
        return len(self.edges)

    @property
    def full(self) -> Bool[Tensor, " edge"]:
        """Every entry kept."""
        return torch.ones(len(self.edges), dtype=torch.bool)

    @torch.no_grad()
    def costs(self, masks: Bool[Tensor, "circuit edge"]) -> Float[Tensor, "circuit batch"]:
        """The cost of keeping only some entries, on each sequence, float64."""
        return torch.cat([self._cost(mask) for mask in masks])

    def _cost(self, mask: Tensor) -> Float[Tensor, "1 batch"]:
        """By the structured forward, a hook on whose pattern does the cutting."""
        kept, whole = self.matrices(mask.to(self.whole.weights.bias.dtype)), self.whole

        def cut(pattern: Tensor, hook: object) -> Tensor:
            pattern = pattern.clone()
            pattern[:, : len(kept)] *= kept
            return pattern

        with self.model.hooks(fwd_hooks=[(f"blocks.{self.layer}.attn.hook_pattern", cut)]):
            return whole.cost(log_probs(self.model, whole.batch.tokens)[None])

    def effects(self) -> Float[Tensor, " edge"]:
        """By how much the mean cost rises when one entry is cut, exactly (`knock_out_edges`)."""
        found = knock_out_edges(self.model, self.whole.batch, layer=self.layer, metric=self.metric, task=self.task)
        return self.vector(found.effect).double()

    def attention(self) -> Float[Tensor, " edge"]:
        """The mean weight of each entry."""
        patterns = mean_gradients(self.whole, [1.0], self.whole.pairs).patterns
        return self.vector(self._of_layer(patterns).mean(dim=1))

    def gradient_times_attention(self) -> Float[Tensor, " edge"]:
        """Minus weight times derivative, averaged: the effect of cutting an entry to first order."""
        found = mean_gradients(self.whole, [1.0], self.whole.pairs)
        return -self.vector((self._of_layer(found.patterns) * self._of_layer(found.attention)).sum(dim=1))

    def attributions(self, points: tuple[float, ...], difference: str) -> Float[Tensor, " edge"]:
        """(other - clean weight) times the derivative averaged over points between the runs."""
        other = others(self.whole, difference)
        found = mean_gradients(self.whole, points, other)
        clean = self._of_layer(self._patterns_at(self.whole.inputs))
        corrupted = self._of_layer(self._patterns_at({slot: other[slot] for slot in self.whole.inputs}))
        return self.vector(((corrupted - clean) * self._of_layer(found.attention)).sum(dim=1))

    def matrices(self, values: Float[Tensor, " edge"]) -> Float[Tensor, "head_index query_pos key_pos"]:
        """One value for each entry as matrices; zero above the diagonal."""
        n_heads, n_ctx = self.whole.layout.n_heads[self.layer], self.whole.layout.n_ctx
        matrices = values.new_zeros(n_heads, n_ctx, n_ctx)
        matrices[self._places()] = values
        return matrices

    def vector(self, matrices: Float[Tensor, "head_index query_pos key_pos"]) -> Float[Tensor, " edge"]:
        """The inverse of `matrices`."""
        return matrices[self._places()]

    def _places(self) -> tuple[Tensor, Tensor, Tensor]:
        head, query, key = torch.tensor(self.edges).unbind(dim=1)
        return head, query, key

    def _of_layer(self, by_head: dict[str, Tensor]) -> Float[Tensor, "head_index batch query_pos key_pos"]:
        heads = range(self.whole.layout.n_heads[self.layer])
        return torch.stack([by_head[f"L{self.layer}H{head}"] for head in heads])

    @torch.no_grad()
    def _patterns_at(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Every head's pattern in an uncut run on some inputs."""
        patterns: dict[str, Tensor] = {}

        def attend(head: str, pattern: Tensor) -> Tensor:
            patterns[head] = pattern[0].expand(len(self.whole.batch), -1, -1)
            return pattern

        self.whole.run(self.whole.full[None], inputs, lambda slot, edge, value, which: value.of(which), attend)
        return patterns


def entry_model(
    model: HookedTransformer,
    batch: Batch,
    *,
    layer: int = 0,
    metric: Metric = "loss",
    task: InContextTask | None = None,
    seed: int = 0,
) -> EntryModel:
    """A model of ours as a function of which attention entries of a layer it keeps.

    Args:
        model: one of ours, without hooks.
        batch: sequences and targets.
        layer: 0, where the latent graph lives, or a later one before the last, of which only one row is read.
        metric, task: as in `circuit_model`.
        seed: of the other run that EAP compares with.

    >>> from causal_circuits import chain_graph, plant_circuit
    >>> task = InContextTask(chain_graph(4), d_vocab=3, alpha=0.1)
    >>> entries = entry_model(plant_circuit(task.graph, d_vocab=3), task.sample(200))
    >>> effect = entries.matrices(entries.effects())[0]
    >>> [(i, j) for _, i, j in entries.edges if effect[i, j] > 1e-3]
    [(1, 0), (2, 1)]
    """
    heads = [head for at, head in live_heads(model) if at == layer]
    whole = circuit_model(model, batch, metric=metric, task=task, seed=seed)
    if not 0 <= layer < whole.layout.n_layers - 1:
        raise ValueError(
            f"layer must be one before the last, whose rows are all read: got {layer} of {whole.layout.n_layers} layers"
        )
    check_hooks(model, [f"blocks.{layer}.attn.hook_pattern"])
    n_ctx = whole.layout.n_ctx
    entries = tuple((head, i, j) for head in heads for i in range(n_ctx) for j in range(i + 1))
    return EntryModel(edges=entries, whole=whole, layer=layer, model=model, metric=metric, task=task)
