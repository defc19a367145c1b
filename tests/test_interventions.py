"""Ablation, knock-out and patching: against loops, against TransformerLens, and always giving the model back."""

from itertools import product

import oracles
import pytest
import torch
from assertions import assert_close, assert_given_back, assert_refused
from torch import Tensor
from transformer_lens import patching

import causal_circuits as cc
from causal_circuits.models import HookedTransformer, live_heads

HEADS = [(1, 1), (2, 1), (1, 2)]
Weights = tuple[oracles.Attention, Tensor]


def case(n_heads: tuple[int, int], n: int = 5) -> tuple[HookedTransformer, cc.Batch, Weights]:
    """A random model over 5 positions and 3 tokens, a batch, and the model's weights for the oracle."""
    model = cc.disentangled_transformer(3, 5, n_heads, init_scale=0.6, seed=2)
    batch = cc.InContextTask(cc.chain_graph(5), d_vocab=3).sample(n, seed=0)
    return model, batch, oracles.weights_of(model, 3, 5, n_heads)


def oracle_losses(weights: Weights, batch: cc.Batch) -> Tensor:
    run = oracles.disentangled_forward(*weights, batch.tokens, 3)
    return oracles.cross_entropies(run.logits, batch.target_probs).detach()


def standard_error(values: Tensor) -> float:
    return float(values.std() / len(values) ** 0.5)


# ---- ablation


@pytest.mark.parametrize("n_heads", HEADS, ids=str)
@pytest.mark.parametrize("method", ["zero", "mean"])
def test_ablation_equals_loops(n_heads: tuple[int, int], method: str) -> None:
    model, batch, weights = case(n_heads)
    before = oracle_losses(weights, batch)
    written = oracles.disentangled_forward(*weights, batch.tokens, 3).written
    for heads in [[head] for head in live_heads(model)] + [live_heads(model)]:
        replacement = {head: written[head].detach().mean(dim=0, keepdim=True) * (method == "mean") for head in heads}
        after = oracles.losses_with_heads_replaced(*weights, batch.tokens, batch.target_probs, 3, replacement).detach()
        with assert_given_back(model):
            found = cc.ablate_heads(model, batch, heads, method)
        assert found.loss == pytest.approx(float(after.mean()), rel=1e-5)
        assert found.baseline_loss == pytest.approx(float(before.mean()), rel=1e-5)
        assert found.standard_error == pytest.approx(standard_error(after - before), rel=1e-3, abs=1e-7)
        assert found.heads == tuple(heads)
        assert found.method == method
        assert abs(found.loss - found.baseline_loss) > 1e-4


def test_ablating_two_layers_together_uses_the_untouched_means() -> None:
    """Each head is given the mean that it has in the untouched run, not the mean after the other's ablation."""
    model, batch, weights = case((1, 1), n=4)
    written = oracles.disentangled_forward(*weights, batch.tokens, 3).written
    replacement = {head: written[head].detach().mean(dim=0, keepdim=True) for head in live_heads(model)}
    after = oracles.losses_with_heads_replaced(*weights, batch.tokens, batch.target_probs, 3, replacement)
    assert cc.ablate_heads(model, batch, live_heads(model), "mean").loss == pytest.approx(after.mean().item(), rel=1e-5)


@pytest.mark.parametrize("n_heads", HEADS, ids=str)
def test_resampling_between_two_sequences_exchanges_them(n_heads: tuple[int, int]) -> None:
    model, batch, weights = case(n_heads, n=2)
    written = oracles.disentangled_forward(*weights, batch.tokens, 3).written
    for head in live_heads(model):
        replacement = {head: written[head].detach().flip(0)}
        after = oracles.losses_with_heads_replaced(*weights, batch.tokens, batch.target_probs, 3, replacement)
        with assert_given_back(model):
            found = cc.ablate_heads(model, batch, [head], "resample", seed=3)
        assert found.loss == pytest.approx(after.mean().item(), rel=1e-5)


def test_resampling_follows_its_seed_and_global_randomness_is_left_alone() -> None:
    model, batch, _ = case((1, 1), n=40)
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    losses = [cc.ablate_heads(model, batch, [(0, 0)], "resample", seed=seed).loss for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(2), expected)
    assert losses[0] == losses[1] != losses[2]


def test_ablation_in_several_pieces_is_ablation_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, _ = case((2, 1), n=23)
    whole = {method: cc.ablate_heads(model, batch, [(0, 1), (1, 0)], method) for method in cc.ABLATION_METHODS}
    monkeypatch.setattr("causal_circuits.interventions.ablation.CHUNK", 5)
    for method, expected in whole.items():
        found = cc.ablate_heads(model, batch, [(0, 1), (1, 0)], method)
        assert found.loss == pytest.approx(expected.loss, rel=1e-6)
        assert found.standard_error == pytest.approx(expected.standard_error, rel=1e-4)


def test_ablating_a_head_that_writes_nothing_of_use_costs_nothing() -> None:
    task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    model, batch = cc.plant_circuit(task.graph, d_vocab=3, n_heads=(2, 2)), task.sample(50, seed=0)
    for head in ((0, 1), (1, 1)):
        for method in cc.ABLATION_METHODS:
            result = cc.ablate_heads(model, batch, [head], method)
            assert result.loss == pytest.approx(result.baseline_loss, abs=1e-6)


def test_the_circuits_heads_carry_the_whole_gain() -> None:
    task = cc.InContextTask(cc.chain_graph(12), d_vocab=3, alpha=0.1)
    model, batch = cc.plant_circuit(task.graph, d_vocab=3, readout_scale=4.0), task.sample(500, seed=0)
    no_circuit = cc.ablate_heads(model, batch, [(1, 0)], "zero")
    assert no_circuit.loss == pytest.approx(torch.tensor(3.0).log().item(), rel=1e-5)
    assert no_circuit.share_of_gain_lost(no_circuit.loss) == pytest.approx(1.0)
    assert cc.ablate_heads(model, batch, [(0, 0)], "mean").share_of_gain_lost(no_circuit.loss) > 0.3
    useless = cc.AblationResult(((0, 0),), "zero", loss=1.0, baseline_loss=1.0, standard_error=0.0)
    share = useless.share_of_gain_lost(reference_loss=0.5)
    assert share != share, "no gain, no share"


def test_bad_ablations_are_refused() -> None:
    model, batch, _ = case((2, 1))
    assert_refused(lambda: cc.ablate_heads(model, batch, []), "at least one")
    assert_refused(lambda: cc.ablate_heads(model, batch, [(1, 1)]), "no head 1 in layer 1", "(1, 0)")
    assert_refused(lambda: cc.ablate_heads(model, batch, [(2, 0)]), "no head 0 in layer 2")
    assert_refused(lambda: cc.ablate_heads(model, batch, [(0, 0)], "noise"), "zero, mean, resample", "'noise'")
    assert_refused(lambda: cc.ablate_heads(model, batch[:1], [(0, 0)], "resample"), "at least 2", "1")


# ---- knock-out


@pytest.mark.parametrize("method", ["zero", "renormalize"])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("n_heads", [(2, 1), (1, 2)], ids=str)
def test_knock_outs_equal_loops(n_heads: tuple[int, int], layer: int, method: str) -> None:
    model, batch, weights = case(n_heads)
    before = oracle_losses(weights, batch)
    with assert_given_back(model):
        found = cc.knock_out_edges(model, batch, layer=layer, method=method)
    assert found.layer == layer
    assert found.effect.shape == found.standard_error.shape == found.attention.shape == (n_heads[layer], 5, 5)
    assert found.baseline_loss == pytest.approx(float(before.mean()), rel=1e-5)
    assert found.effect.isnan().equal(torch.ones(n_heads[layer], 5, 5).triu(1).bool())
    patterns = oracles.disentangled_forward(*weights, batch.tokens, 3).patterns
    for head in range(n_heads[layer]):
        assert_close(found.attention[head], patterns[layer, head].mean(dim=0), 1e-5)
        for i in range(5):
            for j in range(i + 1):
                after = oracles.losses_with_entry_cut(
                    *weights,
                    batch.tokens,
                    batch.target_probs,
                    3,
                    layer,
                    head,
                    i,
                    j,
                    renormalize=method == "renormalize",
                ).detach()
                assert float(found.effect[head, i, j]) == pytest.approx(float((after - before).mean()), abs=3e-6)
                assert float(found.standard_error[head, i, j]) == pytest.approx(
                    standard_error(after - before), abs=3e-6
                )
    assert found.effect[:, -1].abs().max() > 1e-3


@pytest.mark.parametrize("copies", [1, 3, 7, 64])
def test_knock_outs_do_not_depend_on_how_many_run_at_once(copies: int) -> None:
    model, batch, _ = case((2, 1), n=7)
    expected, found = cc.knock_out_edges(model, batch), cc.knock_out_edges(model, batch, copies=copies)
    assert torch.allclose(found.effect, expected.effect, atol=1e-6, equal_nan=True)
    assert torch.allclose(found.standard_error, expected.standard_error, atol=1e-6, equal_nan=True)
    assert torch.allclose(found.attention, expected.attention, atol=1e-6)
    assert found.baseline_loss == pytest.approx(expected.baseline_loss, rel=1e-6)


def test_chosen_entries_alone_are_cut() -> None:
    model, batch, _ = case((2, 1))
    everything, entries = cc.knock_out_edges(model, batch), [(1, 4, 2), (0, 3, 3), (1, 2, 0)]
    found = cc.knock_out_edges(model, batch, entries=entries)
    for head, i, j in product(range(2), range(5), range(5)):
        if (head, i, j) in entries:
            assert float(found.effect[head, i, j]) == pytest.approx(float(everything.effect[head, i, j]), abs=1e-6)
        else:
            assert found.effect[head, i, j].isnan()
            assert found.standard_error[head, i, j].isnan()


def test_an_entry_named_twice_counts_once() -> None:
    model, batch, _ = case((1, 1))
    once, twice = (cc.knock_out_edges(model, batch, entries=[(0, 4, 1)] * n).effect[0, 4, 1].item() for n in (1, 2))
    assert abs(once) > 1e-4
    assert twice == pytest.approx(once, rel=1e-5)


def test_only_the_edges_of_a_planted_circuit_are_of_use() -> None:
    """A cut edge costs loss; an entry that carries no attention costs nothing."""
    task = cc.InContextTask(cc.random_forest(8, 0.3, seed=1), d_vocab=3, alpha=0.1)
    result = cc.knock_out_edges(cc.plant_circuit(task.graph, d_vocab=3, readout_scale=4.0), task.sample(4_000, seed=0))
    edges = {(child, parent) for parent, child in cc.latent_edges(task.graph)}
    for i in range(7):
        for j in range(i):
            effect, error = float(result.effect[0, i, j]), float(result.standard_error[0, i, j])
            if (i, j) in edges:
                assert effect > 3 * error > 0
            else:
                assert abs(effect) < 1e-6


def test_bad_knock_outs_are_refused() -> None:
    model, batch, _ = case((2, 1))
    assert_refused(lambda: cc.knock_out_edges(model, batch, method="noise"), "zero, renormalize, mean", "'noise'")
    assert_refused(lambda: cc.knock_out_edges(model, batch, layer=2), "2 layers", "2")
    assert_refused(lambda: cc.knock_out_edges(model, batch, entries=[(0, 1, 2)]), "key <= query", "(1, 2)")
    assert_refused(lambda: cc.knock_out_edges(model, batch, entries=[(0, 5, 2)]), "< 5", "(5, 2)")
    assert_refused(lambda: cc.knock_out_edges(model, batch, layer=1, entries=[(1, 3, 2)]), "no head 1 in layer 1")
    assert_refused(lambda: cc.knock_out_edges(model, batch, copies=0), "copies", "0")


@pytest.mark.parametrize("n_heads", HEADS, ids=str)
def test_transformer_lens_agrees_on_knock_outs(n_heads: tuple[int, int]) -> None:
    """Its pattern patching, with a clean run whose patterns are all zero, sets one entry to zero at a time."""
    model, batch, _ = case(n_heads)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(2)]
    _, cache = model.run_with_cache(batch.tokens, names_filter=names)
    nothing = {name: torch.zeros_like(cache[name]) for name in names}

    def loss(logits: Tensor) -> Tensor:
        return -(batch.target_probs * logits[:, -1].log_softmax(dim=-1)).sum(dim=-1).mean()

    with torch.no_grad():
        theirs = patching.get_act_patch_attn_head_pattern_dest_src_pos(model, batch.tokens, nothing, loss)
    for layer in range(2):
        ours = cc.knock_out_edges(model, batch, layer=layer)
        for head, i in product(range(n_heads[layer]), range(5)):
            expected = theirs[layer, head, i, : i + 1] - ours.baseline_loss
            assert torch.allclose(ours.effect[head, i, : i + 1], expected, atol=2e-6)


# ---- patching


def first_token_log_prob(log_probs: Tensor) -> Tensor:
    return log_probs[:, 0].mean()


def pair() -> tuple[HookedTransformer, Tensor, Tensor]:
    model, batch, _ = case((2, 1), n=12)
    return model, batch.tokens[:6], batch.tokens[6:]


@pytest.mark.parametrize("by_position", [True, False])
def test_patching_a_run_with_itself_changes_nothing(by_position: bool) -> None:
    model, clean, _ = pair()
    with assert_given_back(model):
        result = cc.patch_activations(model, clean, clean, first_token_log_prob, by_position=by_position)
    assert result.clean == result.corrupted
    assert torch.allclose(result.metric, torch.tensor(result.clean), atol=1e-6)


def test_patching_everything_at_the_entrance_recovers_the_clean_run() -> None:
    model, clean, corrupted = pair()
    names = ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre", "hook_embed"]
    result = cc.patch_activations(model, clean, corrupted, first_token_log_prob, names=names, by_position=False)
    assert abs(result.clean - result.corrupted) > 1e-3
    assert torch.allclose(result.recovered, torch.ones(3, 1), atol=1e-4)
    assert result.metric.shape == (3, 1)


def test_patching_equals_loops_over_token_replacements() -> None:
    """Patching the embedding of one position is replacing its token."""
    model, clean, corrupted = pair()
    weights = oracles.weights_of(model, 3, 5, (2, 1))
    with assert_given_back(model):
        result = cc.patch_activations(model, clean, corrupted, first_token_log_prob, names=["hook_embed"])
    assert result.metric.shape == (1, 5)
    for position in range(5):
        mixed = corrupted.clone()
        mixed[:, position] = clean[:, position]
        logits = oracles.disentangled_forward(*weights, mixed, 3).logits
        expected = float(first_token_log_prob(logits.detach().log_softmax(dim=-1)))
        assert float(result.metric[0, position]) == pytest.approx(expected, rel=1e-5)


def test_patching_one_heads_output_equals_the_oracle() -> None:
    model, clean, corrupted = pair()
    weights = oracles.weights_of(model, 3, 5, (2, 1))
    written = oracles.disentangled_forward(*weights, clean, 3).written
    result = cc.patch_activations(
        model,
        clean,
        corrupted,
        first_token_log_prob,
        names=["blocks.0.attn.hook_z", "blocks.1.attn.hook_z"],
        by_position=False,
    )
    for layer in range(2):
        logits = oracles.disentangled_forward(
            *weights,
            corrupted,
            3,
            edit_written=lambda at, head, own, layer=layer: written[at, head] if at == layer else own,
        ).logits
        expected = float(first_token_log_prob(logits.detach().log_softmax(dim=-1)))
        assert float(result.metric[layer, 0]) == pytest.approx(expected, rel=1e-5)


def test_the_default_patches_residual_streams_and_attention_outputs() -> None:
    model, clean, corrupted = pair()
    result = cc.patch_activations(model, clean, corrupted, first_token_log_prob)
    assert result.names == (
        "blocks.0.hook_resid_pre", "blocks.0.attn.hook_z", "blocks.1.hook_resid_pre", "blocks.1.attn.hook_z"
    )  # fmt: skip
    assert result.metric.shape == (4, 5)
    causal = result.recovered[2, -1]  # the last row of layer 1's input, and of nothing else
    assert not torch.isclose(causal, torch.tensor(0.0), atol=1e-4)


def test_bad_patches_are_refused() -> None:
    model, clean, corrupted = pair()
    assert_refused(
        lambda: cc.patch_activations(model, clean, corrupted[:3], first_token_log_prob),
        "equal shape",
        "[6, 5]",
        "[3, 5]",
    )
    assert_refused(
        lambda: cc.patch_activations(model, clean, corrupted, first_token_log_prob, names=["blocks.0.mlp.hook_post"]),
        "no hook 'blocks.0.mlp.hook_post'", "hook_embed",
    )  # fmt: skip


# ---- the model comes back


def fail(log_probs: Tensor) -> float:
    raise RuntimeError("on purpose")


def test_the_model_comes_back_from_a_metric_that_raises() -> None:
    model, clean, corrupted = pair()
    model.W_U.sum().backward()  # a gradient that must survive
    with assert_given_back(model), pytest.raises(RuntimeError, match="on purpose"):
        cc.patch_activations(model, clean, corrupted, fail)


@pytest.mark.parametrize("name", ["blocks.0.attn.hook_pattern", "blocks.1.attn.hook_z", "blocks.1.hook_resid_pre"])
def test_the_model_comes_back_from_a_users_hook_that_raises(name: str) -> None:
    model, batch, _ = case((2, 1))
    calls = [
        lambda: cc.ablate_heads(model, batch, [(0, 0)]),
        lambda: cc.knock_out_edges(model, batch),
        lambda: cc.patch_activations(model, batch.tokens, batch.tokens, first_token_log_prob),
    ]
    for call in calls:
        model.reset_hooks()
        fired: list[int] = []

        def fail_at_the_second_run(activation: Tensor, hook: object, fired: list[int] = fired) -> None:
            fired.append(1)
            if len(fired) == 2:
                raise RuntimeError("on purpose")

        model.add_hook(name, fail_at_the_second_run)
        with assert_given_back(model), pytest.raises(RuntimeError, match="on purpose"):
            call()


def test_a_users_own_hook_survives_and_counts() -> None:
    """Interventions act on the model as the user has it: with a hook that flattens head 0, on top of that."""
    model, batch, weights = case((2, 1))
    uniform = (torch.ones(5, 5).tril() / torch.arange(1, 6)[:, None]).expand(5, 5, 5)
    fired: list[int] = []

    def flatten(pattern: Tensor, hook: object) -> Tensor:
        fired.append(1)
        pattern = pattern.clone()
        pattern[:, 0] = uniform[0]
        return pattern

    model.add_hook("blocks.0.attn.hook_pattern", flatten)
    attention = [[torch.zeros_like(weights[0][0][0]), *weights[0][0][1:]], weights[0][1]]
    expected = float(oracle_losses((attention, weights[1]), batch).mean())
    with assert_given_back(model):
        ablated = cc.ablate_heads(model, batch, [(1, 0)], "zero")
        cut = cc.knock_out_edges(model, batch, entries=[(0, 4, 0)])
        patched = cc.patch_activations(model, batch.tokens, batch.tokens, first_token_log_prob)
    assert ablated.baseline_loss == pytest.approx(expected, rel=1e-5)
    assert cut.baseline_loss == pytest.approx(expected, rel=1e-5)
    assert cut.attention[0, -1].tolist() == pytest.approx([0.2] * 5)
    after = oracles.losses_with_entry_cut(
        attention, weights[1], batch.tokens, batch.target_probs, 3, 0, 0, 4, 0, renormalize=False
    )
    assert float(cut.effect[0, 4, 0]) == pytest.approx(after.mean().item() - expected, abs=3e-6)
    assert torch.allclose(patched.metric, torch.tensor(patched.clean), atol=1e-6)
    n_fired = len(fired)
    model(batch.tokens)
    assert len(fired) == n_fired + 1
