"""Single attention entries as the parts of a circuit: what can be compared with the latent graph, edge by edge.

Keeping some entries (head, query_pos, key_pos) of a layer and cutting the others is a circuit too, on a finer scale
than heads and slots; `EntryModel` answers for it as `CircuitModel` does for edges. If a model has learned the graph,
the entries that matter are its edges.

What an entry's weight is replaced by decides what any method can see. Attention from position to position is the same
on all tokens, so where the weight comes from other tokens ("resample") or from the mean over sequences ("mean") nothing
changes, and exact cutting scores such an entry zero as EAP-IG does. Against "zero" both see it; against the pattern of
permuted positions ("permute") both see that something changes in many entries of a row.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.circuits.build import circuit_model
from causal_circuits.circuits.counterfactuals import Slots, corrupted_inputs
from causal_circuits.circuits.evaluate import CircuitModel, Variants
from causal_circuits.circuits.gradients import check_difference, mean_gradients, need_gradient
from causal_circuits.interventions import Metric, knock_out_edges
from causal_circuits.interventions.measure import check_hooks
from causal_circuits.models import HookedTransformer, live_heads, log_probs
from causal_circuits.tasks import Batch, Task

Entry = tuple[int, int, int]
EntryCounterfactual = Literal["zero", "mean", "resample", "permute"]
ENTRY_COUNTERFACTUALS: tuple[EntryCounterfactual, ...] = get_args(EntryCounterfactual)


@check_arguments
@dataclass(frozen=True)
class EntryModel:
    """A model as a function of which attention entries of one layer it keeps; made by `entry_model`.

    Attributes:
        edges: (head, query_pos, key_pos) of every entry, head by head and row by row: the axis of every mask.
        whole: the model as a function of its circuit, on the same sequences.
        layer: whose entries.
        counterfactual: what is put in place of an entry that is cut; every method that cuts or compares uses it.

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
    task: Task | None = field(repr=False)
    counterfactual: EntryCounterfactual
    clean: Float[Tensor, "head_index batch query_pos key_pos"] = field(repr=False)
    other: Float[Tensor, "head_index batch query_pos key_pos"] = field(repr=False)
    seed: int

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
        replaced = (1 - kept) * self.other.transpose(0, 1)

        def cut(pattern: Tensor, hook: object) -> Tensor:
            pattern = pattern.clone()
            pattern[:, : len(kept)] = pattern[:, : len(kept)] * kept + replaced
            return pattern

        with self.model.hooks(fwd_hooks=[(f"blocks.{self.layer}.attn.hook_pattern", cut)]):
            return whole.cost(log_probs(self.model, whole.batch.tokens)[None])

    def effects(self) -> Float[Tensor, " edge"]:
        """By how much the mean cost rises when one entry is cut, exactly (`knock_out_edges`, where it has the way)."""
        if self.counterfactual == "permute":  # knock_out_edges permutes within a row; here positions change names
            one_less = ~torch.eye(len(self), dtype=torch.bool)
            return self.costs(one_less).mean(dim=-1) - self.costs(self.full[None]).mean()
        found = knock_out_edges(
            self.model,
            self.whole.batch,
            layer=self.layer,
            method=self.counterfactual,
            metric=self.metric,
            task=self.task,
            seed=self.seed,
        )
        return self.vector(found.effect).double()

    def attention(self) -> Float[Tensor, " edge"]:
        """The mean weight of each entry."""
        return self.vector(self.clean.mean(dim=1))

    def gradient_times_attention(self) -> Float[Tensor, " edge"]:
        """Minus weight times derivative, averaged: the effect of setting an entry to zero, to first order."""
        return -self.vector((self.clean * self._derivative(self.clean)).sum(dim=1))

    def attributions(self, points: tuple[float, ...], difference: str) -> Float[Tensor, " edge"]:
        """(other - clean weight) times the derivative averaged over points between the runs.

        "counterfactual": the points lie between the counterfactual weights (0) and the clean ones (1), all entries of
        the layer moving together. "pairs": between the embeddings of a run on other tokens and the clean ones.
        """
        check_difference(difference)
        if difference == "pairs":
            found = mean_gradients(self.whole, points, self.whole.pairs)
            other = self._patterns_at({slot: self.whole.pairs[slot] for slot in self.whole.inputs})
            return self.vector(((other - self.clean) * self._of_layer(found.attention)).sum(dim=1))
        change = self.other - self.clean
        slopes = [self._derivative(self.clean + (1 - point) * change) for point in points]
        return self.vector((change * torch.stack(slopes).mean(dim=0)).sum(dim=1))

    def _derivative(self, weights: Tensor) -> Float[Tensor, "head_index batch query_pos key_pos"]:
        """The derivative of the mean cost by the layer's weights, where they have these values."""
        weights = weights.detach().requires_grad_(True)

        def attend(head: str, pattern: Tensor) -> Tensor:
            layer, number = head[1:].split("H")
            return weights[int(number)][None] if int(layer) == self.layer else pattern

        whole = self.whole
        with torch.enable_grad():
            cost = whole.cost(whole.predict(whole.full[None], whole.inputs, _everything, attend)).mean()
        need_gradient(whole, cost)
        (found,) = torch.autograd.grad(cost, weights)
        return found

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

    def _patterns_at(self, inputs: Slots) -> Float[Tensor, "head_index batch query_pos key_pos"]:
        """The layer's patterns in an uncut run on some inputs."""
        return _patterns(self.whole, self.layer, inputs)


def _everything(slot: str, edge: int, value: Variants, circuits: Tensor) -> Tensor:
    """Reading in the uncut model."""
    return value.of(circuits)


@torch.no_grad()
def _patterns(whole: CircuitModel, layer: int, inputs: Slots) -> Float[Tensor, "head_index batch query_pos key_pos"]:
    """A layer's patterns in an uncut run on some inputs."""
    found: list[Tensor] = []

    def attend(head: str, pattern: Tensor) -> Tensor:
        if head.startswith(f"L{layer}H"):
            found.append(pattern[0].expand(len(whole.batch), -1, -1))
        return pattern

    whole.run(whole.full[None], inputs, _everything, attend)
    return torch.stack(found)


def _replacements(
    whole: CircuitModel, layer: int, clean: Tensor, counterfactual: EntryCounterfactual, seed: int
) -> Float[Tensor, "head_index batch query_pos key_pos"]:
    """What is put in place of each entry."""
    if counterfactual == "zero":
        return torch.zeros_like(clean)
    if counterfactual == "mean":
        return clean.double().mean(dim=1, keepdim=True).to(clean.dtype).expand_as(clean)
    tokens, dtype = whole.batch.tokens, whole.weights.bias.dtype
    return _patterns(whole, layer, corrupted_inputs(tokens, whole.layout.d_vocab, dtype, counterfactual, seed))


@check_arguments
def entry_model(
    model: HookedTransformer,
    batch: Batch,
    *,
    layer: int = 0,
    counterfactual: EntryCounterfactual = "zero",
    metric: Metric = "loss",
    task: Task | None = None,
    seed: int = 0,
) -> EntryModel:
    """A model of ours as a function of which attention entries of a layer it keeps.

    Args:
        model: one of ours, without hooks.
        batch: sequences and targets.
        layer: 0, where the latent graph lives, or a later one before the last, of which only one row is read.
        counterfactual: what is put in place of an entry's weight: "zero"; its "mean" over sequences; "resample", its
            weight in a run on another sequence's tokens; "permute", in a run whose positions bear each other's names.
        metric, task: as in `circuit_model`.
        seed: of resampling and permuting.

    >>> from causal_circuits import InContextTask, chain_graph, plant_circuit
    >>> task = InContextTask(chain_graph(4), d_vocab=3, alpha=0.1)
    >>> entries = entry_model(plant_circuit(task.graph, d_vocab=3), task.sample(200))
    >>> effect = entries.matrices(entries.effects())[0]
    >>> [(i, j) for _, i, j in entries.edges if effect[i, j] > 1e-3]
    [(1, 0), (2, 1)]
    """
    if counterfactual not in ENTRY_COUNTERFACTUALS:
        raise ValueError(f"counterfactual must be one of {', '.join(ENTRY_COUNTERFACTUALS)}: got {counterfactual!r}")
    heads = [head for at, head in live_heads(model) if at == layer]
    whole = circuit_model(model, batch, metric=metric, task=task, seed=seed)
    if not 0 <= layer < whole.layout.n_layers - 1:
        raise ValueError(
            f"layer must be one before the last, whose rows are all read: got {layer} of {whole.layout.n_layers} layers"
        )
    check_hooks(model, [f"blocks.{layer}.attn.hook_pattern"])
    n_ctx = whole.layout.n_ctx
    entries = tuple((head, i, j) for head in heads for i in range(n_ctx) for j in range(i + 1))
    clean = _patterns(whole, layer, whole.inputs)
    return EntryModel(
        edges=entries,
        whole=whole,
        layer=layer,
        model=model,
        metric=metric,
        task=task,
        counterfactual=counterfactual,
        clean=clean,
        other=_replacements(whole, layer, clean, counterfactual, seed),
        seed=seed,
    )
