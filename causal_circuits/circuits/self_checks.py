"""Checks that a user can run on their own model before believing anything said about its circuits."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.circuits.build import circuit_model
from causal_circuits.circuits.counterfactuals import Counterfactual, Slots
from causal_circuits.circuits.evaluate import CircuitModel
from causal_circuits.circuits.graph import Granularity
from causal_circuits.interventions import patch_activations
from causal_circuits.models import PROBABILITY_FLOOR, HookedTransformer, layout_of
from causal_circuits.recording import watch_attention
from causal_circuits.tasks import Batch

TOLERANCE = 1e-4


@check_arguments
@dataclass(frozen=True)
class SelfCheck:
    """One law, the largest deviation from it, and whether that is within the tolerance.

    >>> import causal_circuits as cc
    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    >>> model, batch = cc.plant_circuit(task.graph, d_vocab=3), task.sample(64, seed=0)
    >>> from causal_circuits import circuits
    >>> check = circuits.self_checks(model, batch)[0]
    >>> check.passed, check.error < 1e-4
    (True, True)
    """

    law: str
    error: float
    passed: bool


@check_arguments
@torch.no_grad()
def self_checks(
    model: HookedTransformer,
    batch: Batch,
    *,
    counterfactual: Counterfactual = "mean",
    granularity: Granularity = "head",
    seed: int = 0,
) -> tuple[SelfCheck, ...]:
    """Five laws, each checked against the plain TransformerLens forward; errors are of log-probabilities.

    >>> from causal_circuits import InContextTask, chain_graph, plant_circuit
    >>> task = InContextTask(chain_graph(6), d_vocab=3)
    >>> [check.passed for check in self_checks(plant_circuit(task.graph, d_vocab=3), task.sample(50))]
    [True, True, True, True, True]
    """
    before = _n_hooks(model)
    circuits = circuit_model(model, batch, counterfactual=counterfactual, granularity=granularity, seed=seed)
    full, empty = circuits.log_probs(torch.stack([circuits.full, circuits.empty]))
    clean = _log_probs(model, model(batch.tokens))
    corrupted = _corrupted_run(model, circuits)
    patched = patch_activations(
        model, batch.tokens, batch.tokens, lambda log_probs: float(log_probs[:, 0].mean()), by_position=False
    )
    with watch_attention(model) as watched:
        model(batch.tokens, return_type=None)
    rows = [float((pattern.sum(dim=-1) - 1).abs().max()) for pattern in watched.patterns.values()]
    errors = {
        "the full circuit is the clean run": float((full - clean).abs().max()),
        "the empty circuit is the fully corrupted run": float((empty - corrupted).abs().max()),
        "patching a run with its own cache changes nothing": float((patched.metric - patched.clean).abs().max()),
        "rows of attention sum to one": max(rows),
        "no hook is left behind": float(abs(_n_hooks(model) - before)),
    }
    return tuple(SelfCheck(law, error, error <= TOLERANCE) for law, error in errors.items())


def _corrupted_run(model: HookedTransformer, circuits: CircuitModel) -> Float[Tensor, "batch d_vocab"]:
    """The plain forward on corrupted embeddings; of constants, the read-out of a residual stream made of them."""
    if circuits.counterfactual in ("zero", "mean"):
        residual = _stream(model, circuits.corrupted, len(circuits.batch))
        return _log_probs(model, residual @ model.W_U + model.b_U)
    inputs = {slot: circuits.corrupted[slot] for slot in circuits.inputs}
    entering = _stream(model, inputs, len(circuits.batch))
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda residual, hook: entering)]):
        return _log_probs(model, model(circuits.batch.tokens))


def _stream(model: HookedTransformer, slots: Slots, n: int) -> Float[Tensor, "batch pos d_model"]:
    """A residual stream with the given slots, and zeros elsewhere."""
    named, n_ctx = layout_of(model).slots(), layout_of(model).n_ctx
    stream = torch.zeros(n, n_ctx, model.cfg.d_model, dtype=model.W_U.dtype, device=model.W_U.device)
    for slot, value in slots.items():
        stream[..., named[slot].slice] = value
    return stream


def _log_probs(model: HookedTransformer, output: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, "batch d_vocab"]:
    """Log-probabilities at the last position of a plain forward's output."""
    if layout_of(model).kind == "reduced":
        return (output[:, -1] + PROBABILITY_FLOOR).log()
    return output[:, -1].log_softmax(dim=-1)


def _n_hooks(model: HookedTransformer) -> int:
    return sum(len(point.fwd_hooks) + len(point.bwd_hooks) for point in model.hook_dict.values())
