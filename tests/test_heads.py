"""Head scores: calibrated, next to TransformerLens's own."""

import oracles
import pytest
import torch
from assertions import assert_given_back, assert_refused
from hypothesis import given
from hypothesis import strategies as st
from transformer_lens.head_detector import detect_head

import causal_circuits as cc
from causal_circuits.heads import calibrated_score
from causal_circuits.models import HookedTransformer

GRAPHS = [cc.chain_graph(10), cc.pairs_graph(10), cc.random_forest(10, 0.3, seed=2)]


@pytest.mark.parametrize("graph", GRAPHS, ids=str)
def test_planted_heads_score_one(graph: object) -> None:
    task = cc.InContextTask(graph, d_vocab=3, alpha=1.0)
    parent, induction = cc.detect_induction_heads(cc.plant_circuit(graph, d_vocab=3), task, n_sequences=300)
    assert parent.parent_score == pytest.approx(1.0, abs=1e-4)
    assert induction.induction_score == pytest.approx(1.0, abs=1e-4)
    assert abs(induction.parent_score) < 0.5
    assert abs(parent.induction_score) < 0.5
    is_chain = graph is GRAPHS[0]
    assert parent.role == ("previous-token" if is_chain else "parent")
    assert induction.role == "induction"
    assert (parent.previous_token_score > 0.99) == is_chain
    assert (parent.layer, parent.head, induction.layer, induction.head) == (0, 0, 1, 0)


def test_planted_heads_of_a_trigram_share_the_parents() -> None:
    graph = cc.ngram_graph(8, order=2)
    task = cc.InContextTask(graph, d_vocab=2, alpha=1.0)
    first, second, induction = cc.detect_induction_heads(cc.plant_circuit(graph, d_vocab=2), task, n_sequences=300)
    assert first.parent_score == pytest.approx(1.0, abs=1e-4)
    assert second.parent_score == pytest.approx(1.0, abs=1e-4)
    assert induction.induction_score == pytest.approx(1.0, abs=1e-4)
    assert induction.role == "induction"


@pytest.mark.parametrize("graph", [*GRAPHS, cc.ngram_graph(8, order=2)], ids=str)
def test_uniform_attention_scores_zero(graph: object) -> None:
    task = cc.InContextTask(graph, d_vocab=3, alpha=0.5)
    model = cc.disentangled_transformer(3, task.n_ctx, (2, 1))
    for head in cc.detect_induction_heads(model, task, n_sequences=200):
        assert head.parent_score == pytest.approx(0.0, abs=1e-5)
        assert head.previous_token_score == pytest.approx(0.0, abs=1e-5)
        assert head.induction_score == pytest.approx(0.0, abs=1e-5)
        assert head.copying_score == 0.0
        assert head.role == "none"


def test_raw_scores_of_perfect_heads_lie_well_below_one() -> None:
    """Why the scores are calibrated: most rows of a perfect head answer to nothing the raw score asks for."""
    task = cc.InContextTask(cc.chain_graph(20), d_vocab=10, alpha=0.1)
    parent, induction = cc.detect_induction_heads(cc.plant_circuit(task.graph, d_vocab=10), task, n_sequences=300)
    assert parent.transformer_lens_parent_score == pytest.approx(18 / 20, abs=1e-3)
    assert induction.transformer_lens_induction_score < 0.7
    assert induction.induction_score > 0.999
    pairs = cc.InContextTask(cc.pairs_graph(20), d_vocab=10)
    half = cc.detect_induction_heads(cc.plant_circuit(pairs.graph, d_vocab=10), pairs, n_sequences=300)[0]
    assert half.transformer_lens_parent_score < 0.5
    assert half.parent_score > 0.999


@given(weight=st.floats(0, 1))
def test_scores_are_linear_in_attention(weight: float) -> None:
    """A share of perfect attention, the rest uniform, scores that share."""
    mask = torch.zeros(2, 5, 5, dtype=torch.bool)
    mask[:, 2, 1] = mask[:, 4, 0] = mask[0, 3, 2] = True
    uniform = (torch.ones(5, 5).double().tril() / torch.arange(1, 6)[:, None]).expand(2, 5, 5)
    perfect = torch.where(mask.any(dim=-1, keepdim=True), mask.double(), uniform)
    found = calibrated_score(weight * perfect + (1 - weight) * uniform, mask)
    assert found == pytest.approx(weight, abs=1e-9)


def test_attention_off_the_mask_scores_below_zero() -> None:
    mask = torch.zeros(1, 3, 3, dtype=torch.bool)
    mask[0, 2, 0] = True
    assert calibrated_score(torch.eye(3)[None], mask) == pytest.approx(-0.5)
    assert calibrated_score(torch.eye(3)[None], torch.zeros_like(mask)) == 0.0


def test_masks_mark_parents_and_matches(fork_task: cc.InContextTask) -> None:
    assert cc.parent_mask(fork_task).nonzero().tolist() == [[1, 0], [2, 0], [3, 1], [5, 4]]
    tokens = fork_task.sample(40, seed=0).tokens
    found = cc.induction_mask(fork_task, tokens)
    for b, sequence in enumerate(tokens.tolist()):
        for i in range(7):
            for j in range(7):
                above = cc.parents_of(fork_task.graph, j) if j < 6 else ()
                assert bool(found[b, i, j]) == (j <= i and bool(above) and sequence[above[0]] == sequence[i])


def test_masks_of_a_general_graph_follow_the_targets_parents() -> None:
    task = cc.InContextTask(cc.ngram_graph(6, order=2), d_vocab=2)
    tokens = task.sample(40, seed=0).tokens
    assert cc.parent_mask(task)[-1].nonzero().flatten().tolist() == [4, 5]
    assert cc.parent_mask(task)[3].nonzero().flatten().tolist() == [1, 2]
    found = cc.induction_mask(task, tokens)
    assert not found[:, :-1].any()
    for b, sequence in enumerate(tokens.tolist()):
        expected = [j >= 2 and j < 5 and sequence[j - 2 : j] == sequence[4:6] for j in range(6)]
        assert found[b, -1].tolist() == expected


@pytest.mark.parametrize("scale", [2.0, 20.0])
def test_transformer_lens_agrees_on_the_raw_parent_score(scale: float) -> None:
    """head_detector wants one sequence shorter than n_ctx; our mask is a detection pattern like any other."""
    graph = cc.random_forest(9, 0.3, seed=4)
    task = cc.InContextTask(graph, d_vocab=3, alpha=0.5)
    model = cc.plant_circuit(graph, d_vocab=3, attention_scale=scale)
    tokens = task.sample(5, seed=0).tokens
    ours = [head.transformer_lens_parent_score for head in cc.detect_induction_heads(model, task, tokens=tokens)]
    judge = cc.plant_circuit(cc.graph_from_parents([*cc.graph_parents(graph), None]), d_vocab=3, attention_scale=scale)
    copy_weights_but_for_the_last_position(model, judge)
    judge.to_tokens = lambda sequence, **_: sequence
    mask = cc.parent_mask(task).float()
    scores = torch.stack([detect_head(judge, sequence[None], mask) for sequence in tokens]).mean(dim=0)
    assert scores[:, 0].tolist() == pytest.approx(ours, rel=1e-4)
    _, cache = model.run_with_cache(tokens)
    for layer in range(2):
        patterns = cache[f"blocks.{layer}.attn.hook_pattern"][:, 0]
        assert sum(oracles.mul_score(pattern, mask) for pattern in patterns) / 5 == pytest.approx(ours[layer], rel=1e-4)


def copy_weights_but_for_the_last_position(small: HookedTransformer, large: HookedTransformer) -> None:
    """`large` has one more position than `small`; on sequences of small's length both then attend alike."""
    kept = [
        to for name, slot in cc.slots(large).items() for to in range(slot.start, slot.stop - name.endswith("position"))
    ]
    for layer, width in enumerate((12, 24)):
        wide = [index for index in kept if index < width + 1 + layer]
        large.blocks[layer].attn.W_Q.data.zero_()
        block = small.blocks[layer].attn.W_Q[0, :width, :width].detach()
        large.blocks[layer].attn.W_Q.data[0][torch.tensor(wide)[:, None], torch.tensor(wide)] = block


def test_copying_scores() -> None:
    task = cc.InContextTask(cc.chain_graph(8), d_vocab=4)
    model = cc.plant_circuit(task.graph, d_vocab=4)
    assert cc.copying_score(model, 1, 0) == pytest.approx(1.0)
    model.unembed.W_U.data.neg_()
    assert cc.copying_score(model, 1, 0) == pytest.approx(-1.0)
    model.unembed.W_U.data[cc.slots(model)["L1H0.token"].slice] = torch.roll(torch.eye(4), 1, dims=0)
    assert cc.copying_score(model, 1, 0) == pytest.approx(0.0, abs=1e-6)  # eigenvalues 1, i, -1, -i


def test_scoring_gives_the_model_back(random_model: HookedTransformer, chain_task: cc.InContextTask) -> None:
    random_model.add_hook("blocks.0.attn.hook_pattern", lambda pattern, hook: None)
    with assert_given_back(random_model):
        heads = cc.detect_induction_heads(random_model, chain_task, n_sequences=20)
    assert [(head.layer, head.head) for head in heads] == [(0, 0), (0, 1), (1, 0)]
    with assert_given_back(random_model):
        assert_refused(
            lambda: cc.detect_induction_heads(random_model, chain_task, tokens=torch.full((2, 6), 9)), "0 .. 3", "9"
        )


def test_scores_do_not_depend_on_token_names(random_model: HookedTransformer, chain_task: cc.InContextTask) -> None:
    """Renaming tokens and the model's token coordinates alike changes nothing."""
    tokens, order = chain_task.sample(50, seed=0).tokens, torch.tensor([2, 0, 3, 1])
    renamed = cc.disentangled_transformer(4, 6, (2, 1))
    index = torch.arange(renamed.cfg.d_model)
    for name, slot in cc.slots(renamed).items():
        if name.endswith("token"):
            index[slot.start : slot.stop] = slot.start + order.argsort()
    renamed.W_U.data.copy_(random_model.W_U.data[index][:, order.argsort()])
    for layer, width in enumerate((10, 30)):
        block = random_model.blocks[layer].attn.W_Q.data[:, :width, :width]
        renamed.blocks[layer].attn.W_Q.data[:, :width, :width] = block[:, index[:width]][:, :, index[:width]]
    before = cc.detect_induction_heads(random_model, chain_task, tokens=tokens)
    after = cc.detect_induction_heads(renamed, chain_task, tokens=order[tokens])
    for one, other in zip(before, after, strict=True):
        assert one.role == other.role
        for score in ("previous_token_score", "parent_score", "induction_score", "copying_score"):
            assert getattr(one, score) == pytest.approx(getattr(other, score), abs=1e-4)
