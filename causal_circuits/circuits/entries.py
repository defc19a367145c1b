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
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.circuits.counterfactuals import corrupted_inputs
from causal_circuits.circuits.evaluate import CircuitModel, circuit_model
from causal_circuits.circuits.forward import Slots
from causal_circuits.circuits.methods import Difference, Parts
from causal_circuits.display import Result
from causal_circuits.interventions import Metric, knock_out_edges
from causal_circuits.interventions.measure import check_hooks
from causal_circuits.models import HookedTransformer, live_heads, log_probs
from causal_circuits.tasks import Batch, Task

Entry = tuple[int, int, int]
EntryCounterfactual = Literal["zero", "mean", "resample", "permute"]
ENTRY_COUNTERFACTUALS: tuple[EntryCounterfactual, ...] = get_args(EntryCounterfactual)


@check_arguments
@dataclass(frozen=True, repr=False, eq=False)
class EntryModel(Parts, Result):
    """A model as a function of which attention entries of one layer it keeps; made by `entry_model`.

    Attributes:
        edges: (head, query_pos, key_pos) of every entry, head by head and row by row: the axis of every mask.
        whole: the model as a function of its circuit, on the same sequences.
        layer: whose entries.
        counterfactual: what is put in place of an entry that is cut; every method that cuts or compares uses it.

    >>> entries = entry_model(model, batch)
    >>> entries.edges[:3], len(entries)
    (((0, 0, 0), (0, 1, 0), (0, 1, 1)), 21)
    """

    edges: tuple[Entry, ...]
    whole: CircuitModel
    layer: int
    model: HookedTransformer = field(repr=False)
    counterfactual: EntryCounterfactual
    clean: Float[Tensor, "head_index batch query_pos key_pos"] = field(repr=False)
    other: Float[Tensor, "head_index batch query_pos key_pos"] = field(repr=False)
    seed: int

    @torch.no_grad()
    def costs(self, masks: Bool[Tensor, "circuit edge"]) -> Float[Tensor, "circuit batch"]:
        """The cost of keeping only some entries, on each sequence, float64."""
        return torch.stack([self._cost(mask) for mask in masks])

    def _cost(self, mask: Tensor) -> Float[Tensor, " batch"]:
        """By the model's own forward, a hook on whose pattern does the cutting."""
        kept = self.matrices(mask.to(self.other))
        replaced = rearrange((1 - kept[:, None]) * self.other, "head_index batch q k -> batch head_index q k")

        def cut(pattern: Tensor, hook: object) -> Tensor:
            pattern = pattern.clone()
            pattern[:, : len(kept)] = pattern[:, : len(kept)] * kept + replaced
            return pattern

        with self.model.hooks(fwd_hooks=[(f"blocks.{self.layer}.attn.hook_pattern", cut)]):
            return self.whole.cost(log_probs(self.model, self.whole.batch.tokens))

    def effects(self) -> Float[Tensor, " edge"]:
        """By how much the mean cost rises when one entry is cut, exactly; by `knock_out_edges` but for "permute"."""
        if self.counterfactual == "permute":  # knock_out_edges permutes within a row; here positions change names
            return super().effects()
        found = knock_out_edges(
            self.model,
            self.whole.batch,
            layer=self.layer,
            method=self.counterfactual,
            metric=self.whole.cost,
            seed=self.seed,
        )
        return self.vector(found.effect).double()

    def attention(self) -> Float[Tensor, " edge"]:
        """The mean weight of each entry."""
        return self.vector(self.clean.mean(dim=1))

    def gradient_times_attention(self) -> Float[Tensor, " edge"]:
        """Minus weight times derivative, averaged: the effect of setting an entry to zero, to first order."""
        return -self.vector((self.clean * self._derivative(self.clean)).sum(dim=1))

    def attributions(self, points: tuple[float, ...], difference: Difference) -> Float[Tensor, " edge"]:
        """(other - clean weight) times the derivative averaged over points between the runs.

        "counterfactual": the points lie between the counterfactual weights (0) and the clean ones (1), all entries of
        the layer moving together. "pairs": between the embeddings of a run on other tokens and the clean ones.
        """
        if difference == "pairs":
            other_run = {slot: self.whole.pairs[slot] for slot in self.whole.inputs}
            change = _patterns(self.whole, self.layer, other_run) - self.clean
            slope = self._stacked(self.whole.gradients_between(points, self.whole.pairs).attention)
        else:
            change = self.other - self.clean
            slope = torch.stack([self._derivative(self.clean + (1 - point) * change) for point in points]).mean(dim=0)
        return self.vector(reduce(change * slope, "head_index batch q k -> head_index q k", "sum"))

    def _derivative(self, weights: Tensor) -> Float[Tensor, "head_index batch query_pos key_pos"]:
        """The derivative of the mean cost by the layer's weights, where they have these values."""
        placed = {f"L{self.layer}H{head}": pattern for head, pattern in enumerate(weights)}
        whole = self.whole
        return self._stacked(whole.forward.gradients(whole.cost, whole.inputs, whole.clean, placed).attention)

    def _stacked(self, by_head: dict[str, Tensor]) -> Float[Tensor, "head_index batch query_pos key_pos"]:
        return torch.stack([found for head, found in by_head.items() if head.startswith(f"L{self.layer}H")])

    def matrices(self, values: Float[Tensor, " edge"]) -> Float[Tensor, "head_index query_pos key_pos"]:
        """One value for each entry as matrices; zero above the diagonal."""
        matrices = values.new_zeros(len(self.clean), *self.clean.shape[2:])
        matrices[self._places()] = values
        return matrices

    def vector(self, matrices: Float[Tensor, "head_index query_pos key_pos"]) -> Float[Tensor, " edge"]:
        """The inverse of `matrices`."""
        return matrices[self._places()]

    def _places(self) -> tuple[Tensor, Tensor, Tensor]:
        head, query, key = torch.tensor(self.edges).unbind(dim=1)
        return head, query, key


@torch.no_grad()
def _patterns(whole: CircuitModel, layer: int, inputs: Slots) -> Float[Tensor, "head_index batch query_pos key_pos"]:
    """A layer's patterns in an uncut run on some inputs."""
    found = whole.forward.patterns(inputs)
    return torch.stack([pattern for head, pattern in found.items() if head.startswith(f"L{layer}H")])


def _replacements(
    whole: CircuitModel, layer: int, clean: Tensor, counterfactual: EntryCounterfactual, seed: int
) -> Float[Tensor, "head_index batch query_pos key_pos"]:
    if counterfactual == "zero":
        return torch.zeros_like(clean)
    if counterfactual == "mean":
        return clean.double().mean(dim=1, keepdim=True).to(clean.dtype).expand_as(clean)
    return _patterns(whole, layer, corrupted_inputs(whole.forward, whole.batch.tokens, counterfactual, seed))


@check_arguments
@torch.inference_mode(False)
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
    """A model as a function of which attention entries of a layer it keeps.

    Args:
        model: as `circuit_model` takes it.
        batch: sequences and targets.
        layer: 0, where the latent graph lives, or a later one before the last, of which only one row is read.
        counterfactual: what is put in place of an entry's weight: "zero"; its "mean" over sequences; "resample", its
            weight in a run on another sequence's tokens; "permute", in a run whose positions bear each other's names.
        metric, task: as in `circuit_model`.
        seed: of resampling and permuting.

    >>> task = cc.InContextTask(cc.chain_graph(4), d_vocab=3, alpha=0.1)
    >>> entries = entry_model(cc.plant_circuit(task.graph, d_vocab=3), task.sample(200))
    >>> effect = entries.matrices(entries.effects())[0]
    >>> [(i, j) for _, i, j in entries.edges if effect[i, j] > 1e-3]
    [(1, 0), (2, 1)]
    """
    heads = [head for at, head in live_heads(model) if at == layer]
    whole = circuit_model(model, batch, metric=metric, task=task, seed=seed)
    n_layers, n_ctx = model.cfg.n_layers, batch.tokens.shape[1]
    if not 0 <= layer < n_layers - 1:
        raise ValueError(
            f"layer must be one before the last, whose rows are all read: got {layer} of {n_layers} layers"
        )
    check_hooks(model, [f"blocks.{layer}.attn.hook_pattern"])
    clean = _patterns(whole, layer, whole.inputs)
    return EntryModel(
        edges=tuple((head, i, j) for head in heads for i in range(n_ctx) for j in range(i + 1)),
        whole=whole,
        layer=layer,
        model=model,
        counterfactual=counterfactual,
        clean=clean,
        other=_replacements(whole, layer, clean, counterfactual, seed),
        seed=seed,
    )
