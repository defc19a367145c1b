"""From a HookedTransformer and a batch to a function of circuits."""

from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.circuits.counterfactuals import (
    Counterfactual,
    Slots,
    check_counterfactual,
    constant,
    corrupted_inputs,
    embed,
)
from causal_circuits.circuits.evaluate import CircuitModel
from causal_circuits.circuits.graph import Granularity, circuit_edges, circuit_graph
from causal_circuits.circuits.weights import Weights
from causal_circuits.interventions import Metric, make_cost
from causal_circuits.models import HookedTransformer, check_forward, check_model, layout_of
from causal_circuits.models.acceptance import refuse_foreign
from causal_circuits.tasks import Batch, Task
from causal_circuits.tasks.batch import check_tokens


@check_arguments
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
    """A model of ours as a function of its circuit, on a batch.

    Args:
        model: one of ours, without hooks: circuits are computed from its weights.
        batch: sequences and targets.
        counterfactual: what a reader gets in place of a sender that is cut off: "zero"; "mean" (over sequences and
            positions); "resample" (a run on another sequence's tokens); "permute" (a run whose positions bear each
            other's names); "resample_and_permute"; or tokens of your own, one sequence for each.
        granularity: "head" or "slot" (`circuit_graph`).
        metric: "loss" (nats), another of `METRICS`, or a function of log-probabilities, one number a sequence.
        task: what the metric "kl_to_posterior" needs.
        seed: of resampling and permuting.

    >>> from causal_circuits import InContextTask, chain_graph, plant_circuit
    >>> task = InContextTask(chain_graph(6), d_vocab=3, alpha=0.1)
    >>> model = circuit_model(plant_circuit(task.graph, d_vocab=3), task.sample(200))
    >>> induction = [("position", "L0H0.q"), ("position", "L0H0.k"), ("token", "L0H0.v"), ("L1H0", "logits"),
    ...              ("token", "L1H0.q"), ("position", "L1H0.q"), ("L0H0", "L1H0.k"), ("position", "L1H0.k"),
    ...              ("token", "L1H0.v")]
    >>> abs(model.mean_cost(induction) - model.mean_cost(model.full)) < 1e-6 < model.mean_cost(model.empty)
    True
    """
    layout = layout_of(model)
    batch.check(layout.d_vocab)
    check_model(model, layout.d_vocab, batch.tokens.shape[1])
    if model.W_U.dtype.itemsize < 4:
        raise ValueError(f"circuits are evaluated in float32 or float64: got {model.W_U.dtype}; call model.float()")
    refuse_foreign(model, "circuit_model", "call model.reset_hooks(), or build the model anew")
    batch = batch.to(model.W_U.device, model.W_U.dtype)
    check_forward(model, batch.tokens)
    graph = circuit_graph(model, granularity)
    edges = tuple(circuit_edges(graph))
    base = CircuitModel(
        graph=graph,
        edges=edges,
        counterfactual=counterfactual if isinstance(counterfactual, str) else "tokens",
        granularity=granularity,
        batch=batch,
        cost=make_cost(metric, batch, model=model, task=task),
        layout=layout,
        inputs=embed(batch.tokens, layout.d_vocab, model.W_U.dtype),
        clean={},
        corrupted={},
        pairs={},
        weights=Weights.of(model, edges, granularity),
    )
    base = replace(base, clean=_slot_values(base, base.inputs))
    other = "resample" if len(batch) > 1 else "zero"
    return replace(base, corrupted=_corrupted(base, counterfactual, seed), pairs=_corrupted(base, other, seed))


def _corrupted(base: CircuitModel, counterfactual: str | Tensor, seed: int) -> Slots:
    """Every slot's counterfactual value."""
    dtype, tokens, d_vocab = base.weights.bias.dtype, base.batch.tokens, base.layout.d_vocab
    if isinstance(counterfactual, Tensor):
        if counterfactual.shape != tokens.shape:
            raise ValueError(
                f"counterfactual tokens must be one sequence for each of the batch, {list(tokens.shape)}: "
                f"got {list(counterfactual.shape)}"
            )
        check_tokens(counterfactual, d_vocab)
        return _slot_values(base, embed(counterfactual, d_vocab, dtype))
    check_counterfactual(counterfactual)
    if counterfactual in ("zero", "mean"):
        return {slot: constant(value, counterfactual) for slot, value in base.clean.items()}
    return _slot_values(base, corrupted_inputs(tokens, d_vocab, dtype, counterfactual, seed))


def _slot_values(base: CircuitModel, inputs: Slots) -> Slots:
    """The value of every slot in an uncut run on some inputs; of the last layer's, the last row at every position."""
    values = base.run(base.full[None], inputs, lambda slot, edge, value, circuits: value.of(circuits))
    n_ctx = base.layout.n_ctx
    return {slot: value.values[0].expand(-1, n_ctx, -1) for slot, value in values.items()}
