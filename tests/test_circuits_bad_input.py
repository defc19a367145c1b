"""Whatever is wrong with the input, every intervention and every circuit tool says so, and gives the model back."""

from collections.abc import Callable

import pytest
import torch
from assertions import assert_given_back, assert_refused

import causal_circuits as cc
from causal_circuits import circuits
from causal_circuits.models import HookedTransformer

TASK = cc.InContextTask(cc.chain_graph(6), d_vocab=3, alpha=0.1)
BATCH = TASK.sample(20)


def mean_log_prob(predicted: torch.Tensor) -> torch.Tensor:
    return predicted[:, 0].mean()


TOOLS: dict[str, Callable[[HookedTransformer, cc.Batch], object]] = {
    "ablate_heads": lambda model, batch: cc.ablate_heads(model, batch, [(0, 0)]),
    "knock_out_edges": lambda model, batch: cc.knock_out_edges(model, batch),
    "knock_out_edges, hooks": lambda model, batch: cc.knock_out_edges(model, batch, path="hooks"),
    "patch_activations": lambda model, batch: cc.patch_activations(
        model, batch.tokens, batch.tokens.flip(0), mean_log_prob
    ),
    "patch_paths": lambda model, batch: cc.patch_paths(model, batch.tokens, batch.tokens.flip(0), mean_log_prob),
    "scrub_hypothesis": lambda model, batch: cc.scrub_hypothesis(model, batch, TASK),
    "circuit_model": lambda model, batch: circuits.circuit_model(model, batch),
    "entry_model": lambda model, batch: circuits.entry_model(model, batch),
    "self_checks": lambda model, batch: circuits.self_checks(model, batch),
}
BY_TOKENS = ("patch_activations", "patch_paths")  # these are given no targets


def model_of_the_chain() -> HookedTransformer:
    return cc.plant_circuit(TASK.graph, d_vocab=3)


def with_weight(value: float) -> HookedTransformer:
    model = model_of_the_chain()
    model.blocks[0].attn.W_Q.data[0, 0, 0] = value
    return model


def without_hooks() -> HookedTransformer:
    model = model_of_the_chain()
    for name in [name for name in model.hook_dict if "attn" in name or "resid" in name]:
        del model.hook_dict[name]
    return model


BAD: dict[str, tuple[Callable[[], HookedTransformer], cc.Batch, str]] = {
    "an empty batch": (model_of_the_chain, BATCH[:0], "got "),
    "a NaN among the weights": (lambda: with_weight(float("nan")), BATCH, "blocks.0.attn.W_Q holds NaN"),
    "an infinity among the weights": (lambda: with_weight(float("inf")), BATCH, "blocks.0.attn.W_Q holds NaN or inf"),
    "a model of other sizes": (lambda: cc.plant_circuit(cc.chain_graph(7), 3), BATCH, "7"),
    "unknown tokens": (model_of_the_chain, cc.Batch(BATCH.tokens + 3, BATCH.target_probs), "integers in 0 .. 2"),
    "targets that are NaN": (
        model_of_the_chain,
        cc.Batch(BATCH.tokens, BATCH.target_probs * torch.nan),
        "probabilities",
    ),
    "a model without hooks": (without_hooks, BATCH, "the model has no hook 'blocks.0."),
}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_named_and_the_model_given_back(bad: str, tool: str) -> None:
    make, batch, words = BAD[bad]
    if (bad == "targets that are NaN" and tool in BY_TOKENS) or (bad, tool) == (
        "a model without hooks",
        "circuit_model",  # computed from the weights: it needs no hook
    ):
        TOOLS[tool](make(), batch)
        return
    model = make()
    with assert_given_back(model):
        assert_refused(lambda: TOOLS[tool](model, batch), words)


@pytest.mark.parametrize("tool", BY_TOKENS)
def test_a_patching_metric_that_is_not_a_number_is_named(tool: str) -> None:
    def not_a_number(predicted: torch.Tensor) -> float:
        return float("nan")

    model = model_of_the_chain()
    with assert_given_back(model):
        assert_refused(
            lambda: getattr(cc, tool)(model, BATCH.tokens, BATCH.tokens.flip(0), not_a_number),
            "the metric must be a number: it is NaN for",
        )


def test_a_metric_that_is_not_a_number_is_named_by_circuits_and_their_methods() -> None:
    def not_a_number(predicted: torch.Tensor) -> torch.Tensor:
        return predicted.sum(dim=-1) * torch.nan

    model = model_of_the_chain()
    with assert_given_back(model):
        whole = circuits.circuit_model(model, BATCH, metric=not_a_number)
        parts = circuits.entry_model(model, BATCH, metric=not_a_number)
        for call in (
            lambda: circuits.discover(whole, "exact"),
            lambda: circuits.discover(whole, "eap"),
            lambda: circuits.discover(parts, "acdc"),
            lambda: circuits.oracle_frontier(whole),
            lambda: circuits.prove_circuit(whole, whole.full),
            lambda: cc.ablate_heads(model, BATCH, [(0, 0)], metric=not_a_number),
            lambda: cc.knock_out_edges(model, BATCH, metric=not_a_number),
        ):
            assert_refused(call, "'not_a_number' must be a number for every sequence", "NaN for")


def test_the_effect_of_a_single_sequence_has_no_standard_error() -> None:
    cut = cc.knock_out_edges(model_of_the_chain(), BATCH[:1])
    assert cut.standard_error.isinf().sum() == (~cut.effect.isnan()).sum()
