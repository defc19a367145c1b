"""Checks that a user can run on their own model before believing anything said about its circuits."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.circuits.counterfactuals import Counterfactual
from causal_circuits.circuits.evaluate import CircuitModel, circuit_model
from causal_circuits.circuits.graph import Granularity
from causal_circuits.interventions import patch_activations
from causal_circuits.models import HookedTransformer, has_layout, slots
from causal_circuits.models.structured import as_log_probs
from causal_circuits.recording import watch_attention
from causal_circuits.tasks import Batch

TOLERANCE = 1e-4
START = "blocks.0.hook_resid_pre"


@check_arguments
@dataclass(frozen=True)
class SelfCheck:
    """One law, the largest deviation from it, and whether that is within the tolerance.

    >>> SelfCheck("the full circuit is the clean run", error=1e-6, passed=True).passed
    True
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
    """Five laws, each checked against the plain TransformerLens forward of any model; errors are of log-probabilities.

    >>> [check.passed for check in self_checks(model, task.sample(50))]
    [True, True, True, True, True]
    """
    n_hooks = _n_hooks(model)
    circuits = circuit_model(model, batch, counterfactual=counterfactual, granularity=granularity, seed=seed)
    full, empty = circuits.log_probs(torch.stack([circuits.full, circuits.empty]))
    clean = as_log_probs(model, model(batch.tokens)[:, -1])
    patched = patch_activations(
        model, batch.tokens, batch.tokens, lambda log_probs: float(log_probs[:, 0].mean()), by_position=False
    )
    with watch_attention(model) as watched:
        model(batch.tokens, return_type=None)
    rows = [float((pattern.sum(dim=-1) - 1).abs().max()) for pattern in watched.patterns.values()]
    errors = {
        "the full circuit is the clean run": float((full - clean).abs().max()),
        "the empty circuit is the fully corrupted run": float((empty - _corrupted_run(model, circuits)).abs().max()),
        "patching a run with its own cache changes nothing": float((patched.metric - patched.clean).abs().max()),
        "rows of attention sum to one": max(rows),
        "no hook is left behind": float(abs(_n_hooks(model) - n_hooks)),
    }
    return tuple(SelfCheck(law, error, error <= TOLERANCE) for law, error in errors.items())


def _corrupted_run(model: HookedTransformer, circuits: CircuitModel) -> Float[Tensor, "batch d_vocab"]:
    """The plain forward from corrupted embeddings; of constants, from a final residual stream made of them."""
    other, end = circuits.corrupted, f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    place, senders = (end, other) if circuits.counterfactual in ("zero", "mean") else (START, circuits.inputs)

    def put(stream: Tensor, hook: object) -> Tensor:
        if not has_layout(model):  # a sum of what senders wrote, and biases
            return stream + sum(other[sender] - circuits.clean[sender] for sender in senders)
        for slot in senders:
            stream[..., slots(model)[slot].slice] = other[slot]
        return stream

    with model.hooks(fwd_hooks=[(place, put)]):
        return as_log_probs(model, model(circuits.batch.tokens)[:, -1])


def _n_hooks(model: HookedTransformer) -> int:
    return sum(len(point.fwd_hooks) + len(point.bwd_hooks) for point in model.hook_dict.values())
