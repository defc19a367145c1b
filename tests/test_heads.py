"""Head scores: calibrated, next to TransformerLens's own."""

import oracles
import pytest
import torch
from assertions import assert_refused
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
    assert (parent.copies_read_by, induction.copies_read_by) == ("keys", "logits")


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


@given(weight=st.floats(0, 1))
def test_scores_are_linear_in_attention(weight: float) -> None:
    """A share of perfect attention, the rest uniform, scores that share."""
    mask = torch.zeros(2, 5, 5, dtype=torch.bool)
    mask[:, 2, 1] = mask[:, 4, 0] = mask[0, 3, 2] = True
    uniform = (torch.ones(5, 5).double().tril() / torch.arange(1, 6)[:, None]).expand(2, 5, 5)
    perfect = torch.where(mask.any(dim=-1, keepdim=True), mask.double(), uniform)
    found = calibrated_score(weight * perfect + (1 - weight) * uniform, mask)
    assert found == pytest.approx(weight, abs=1e-9)


def test_masks_mark_parents_and_matches(fork_task: cc.InContextTask) -> None:
    assert cc.heads.parent_mask(fork_task).nonzero().tolist() == [[1, 0], [2, 0], [3, 1], [5, 4]]
    tokens = fork_task.sample(40, seed=0).tokens
    found = cc.heads.induction_mask(fork_task, tokens)
    for b, sequence in enumerate(tokens.tolist()):
        for i in range(7):
            for j in range(7):
                above = cc.graphs.parents_of(fork_task.graph, j) if j < 6 else ()
                assert bool(found[b, i, j]) == (j <= i and bool(above) and sequence[above[0]] == sequence[i])


def test_masks_of_a_general_graph_follow_the_targets_parents() -> None:
    task = cc.InContextTask(cc.ngram_graph(6, order=2), d_vocab=2)
    tokens = task.sample(40, seed=0).tokens
    assert cc.heads.parent_mask(task)[-1].nonzero().flatten().tolist() == [4, 5]
    assert cc.heads.parent_mask(task)[3].nonzero().flatten().tolist() == [1, 2]
    found = cc.heads.induction_mask(task, tokens)
    assert not found[:, :-1].any()
    for b, sequence in enumerate(tokens.tolist()):
        expected = [j >= 2 and j < 5 and sequence[j - 2 : j] == sequence[4:6] for j in range(6)]
        assert found[b, -1].tolist() == expected


@pytest.mark.parametrize("scale", [2.0, 20.0])
def test_transformer_lens_agrees_on_the_raw_parent_score(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """head_detector wants a sequence shorter than n_ctx; our mask is a detection pattern like any other."""
    graph = cc.random_forest(9, 0.3, seed=4)
    task = cc.InContextTask(graph, d_vocab=3, alpha=0.5)
    model = cc.plant_circuit(graph, d_vocab=3, attention_scale=scale)
    tokens = task.sample(5, seed=0).tokens
    ours = [head.transformer_lens_parent_score for head in cc.detect_induction_heads(model, task, tokens=tokens)]
    monkeypatch.setattr(model.cfg, "n_ctx", 10)
    monkeypatch.setattr(model, "to_tokens", lambda sequence, **_: sequence)
    mask = cc.heads.parent_mask(task).float()
    scores = torch.stack([detect_head(model, sequence[None], mask) for sequence in tokens]).mean(dim=0)
    assert scores[:, 0].tolist() == pytest.approx(ours, rel=1e-4)
    _, cache = model.run_with_cache(tokens)
    for layer in range(2):
        patterns = cache[f"blocks.{layer}.attn.hook_pattern"][:, 0]
        assert sum(oracles.mul_score(pattern, mask) for pattern in patterns) / 5 == pytest.approx(ours[layer], rel=1e-4)


def test_copying_scores() -> None:
    task = cc.InContextTask(cc.chain_graph(8), d_vocab=4)
    model = cc.plant_circuit(task.graph, d_vocab=4)
    assert cc.heads.copying_score(model, 1, 0) == pytest.approx(1.0)
    model.unembed.W_U.data.neg_()
    assert cc.heads.copying_score(model, 1, 0) == pytest.approx(-1.0)
    model.unembed.W_U.data[cc.models.slots(model)["L1H0.token"].slice] = torch.roll(torch.eye(4), 1, dims=0)
    assert cc.heads.copying_score(model, 1, 0) == pytest.approx(0.0, abs=1e-6)  # eigenvalues 1, i, -1, -i


def test_scores_do_not_depend_on_token_names(random_model: HookedTransformer, chain_task: cc.InContextTask) -> None:
    """Renaming tokens and the model's token coordinates alike changes nothing."""
    tokens, order = chain_task.sample(50, seed=0).tokens, torch.tensor([2, 0, 3, 1])
    renamed = cc.disentangled_transformer(4, 6, (2, 1))
    index = torch.arange(renamed.cfg.d_model)
    for name, slot in cc.models.slots(renamed).items():
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


# ---- induction is told from what merely goes along with it


SMALL = {
    "chain": cc.chain_graph(6),
    "pairs": cc.pairs_graph(6),
    "forest": cc.random_forest(6, 0.3, seed=9),
    "two parents": cc.ngram_graph(6, 2),
    "long forest": cc.random_forest(20, 0.3, seed=5),
}


def induction_of(model: HookedTransformer, task: cc.InContextTask) -> cc.heads.HeadScores:
    return cc.detect_induction_heads(model, task, seed=3)[-1]


def empty_model(task: cc.InContextTask) -> HookedTransformer:
    return cc.disentangled_transformer(task.d_vocab, task.n_ctx, (len(task.target_parents), 1))


@pytest.mark.parametrize("alpha", [0.1, 1.0])
@pytest.mark.parametrize("graph", SMALL.values(), ids=SMALL)
def test_only_a_head_that_matches_its_parents_copies_does_induction(graph: object, alpha: float) -> None:
    task = cc.InContextTask(graph, d_vocab=3, alpha=alpha)
    planted = cc.plant_circuit(graph, d_vocab=3)
    assert induction_of(planted, task).role == "induction"
    planted.add_hook("blocks.0.attn.hook_z", lambda z, hook: z * 0)
    blind = induction_of(planted, task)
    assert blind.role == "none"
    assert blind.induction_score == pytest.approx(blind.induction_null, abs=1e-6)
    token = cc.models.slots(empty_model(task))["token"].slice
    for match in (-5.0, 0.0, 5.0):  # attends to other tokens than the query's, uniformly, to the query's own
        model = empty_model(task)
        model.blocks[1].attn.W_Q.data[0, token, token] = match * torch.eye(3)
        assert induction_of(model, task).role == "none"


@pytest.mark.parametrize("alpha", [0.1, 1.0])
@pytest.mark.parametrize("graph", [cc.chain_graph(6), cc.pairs_graph(6), cc.chain_graph(20)], ids=str)
def test_no_head_of_a_decoy_does_induction(graph: object, alpha: float) -> None:
    """Without the null, layer 0 of the chain's decoy scores .38 at alpha .1."""
    task = cc.InContextTask(graph, d_vocab=3, alpha=alpha)
    assert {head.role for head in cc.detect_induction_heads(cc.models.plant_decoy(graph, d_vocab=3), task)} == {"none"}


def test_the_best_attention_without_copies_is_no_induction() -> None:
    """Layer 1 free to prefer any position, and any key token for any query token, is given what correlates best."""
    task = cc.InContextTask(cc.chain_graph(6), d_vocab=3, alpha=0.1)
    model, named = empty_model(task), cc.models.slots(empty_model(task))
    block, last = model.blocks[1].attn.W_Q.data[0], named["position"].slice.stop - 1
    block[named["token"].slice, named["token"].slice] = -3 * torch.eye(3)
    block[last, named["position"].slice] = torch.tensor([-20.0, 1.0, 2.0, 3.0, 3.0, -20.0])
    head = induction_of(model, task)
    assert head.induction_score > 0.3
    assert head.role == "none"


def test_the_null_takes_parents_values_alone_from_another_sequence() -> None:
    """Against a slow oracle: a copy of layer 0's output made position by position."""
    task = cc.InContextTask(cc.pairs_graph(6), d_vocab=3)
    model, tokens = cc.disentangled_transformer(3, 6, init_scale=0.5, seed=1), task.sample(8, seed=0).tokens
    names = [f"blocks.{layer}.attn.hook_{kind}" for layer in range(2) for kind in ("v", "pattern")]
    _, cache = model.run_with_cache(tokens, names_filter=names)
    pattern, values = cache["blocks.0.attn.hook_pattern"][:, 0], cache["blocks.0.attn.hook_v"][:, :, 0]
    taken = torch.zeros(8, 6, values.shape[-1])
    for b in range(8):
        for query in range(6):
            for key in range(query + 1):
                is_parent = query < 5 and key in cc.graphs.parents_of(task.graph, query)
                taken[b, query] += pattern[b, query, key] * values[(b + 4) % 8 if is_parent else b, key]

    def exchange(z: torch.Tensor, hook: object) -> torch.Tensor:
        z[:, :, 0] = taken
        return z

    kept: list[torch.Tensor] = []
    hooks = [
        ("blocks.0.attn.hook_z", exchange),
        ("blocks.1.attn.hook_pattern", lambda pattern, hook: kept.append(pattern[:, 0])),
    ]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        model(tokens)
    mask = cc.heads.induction_mask(task, tokens)
    mask[:, :-1] = False
    found = cc.detect_induction_heads(model, task, tokens=tokens)[-1]
    assert found.induction_null == pytest.approx(calibrated_score(kept[0], mask), abs=1e-5)
    assert_refused(lambda: cc.detect_induction_heads(model, task, tokens=tokens[:1]), "at least 2", "1")


# ---- the circuit that reads the copies


def test_copies_for_keys_are_judged_by_the_head_that_matches_them() -> None:
    graph = cc.chain_graph(8)
    model = cc.plant_circuit(graph, d_vocab=4)
    named, block = cc.models.slots(model), model.blocks[1].attn.W_Q.data[0]
    assert cc.heads.copying_score(model, 0, 0, read_by="keys") == pytest.approx(1.0)
    model.unembed.W_U.data[named["L0H0.token"].slice] = -5 * torch.eye(4)
    # the direct path, which says nothing of the copies
    assert cc.heads.copying_score(model, 0, 0) == pytest.approx(-1.0)
    heads = cc.detect_induction_heads(model, cc.InContextTask(graph, d_vocab=4), n_sequences=50)
    assert heads[0].copying_score == pytest.approx(1.0)
    matching = block[named["token"].slice, named["L0H0.token"].slice]
    matching.neg_()
    assert cc.heads.copying_score(model, 0, 0, read_by="keys") == pytest.approx(-1.0)
    matching.copy_(torch.eye(4) + torch.arange(4.0)[:, None])  # scores are defined up to a constant a query
    assert cc.heads.copying_score(model, 0, 0, read_by="keys") == pytest.approx(1.0)
    matching.zero_()
    assert cc.heads.copying_score(model, 0, 0, read_by="keys") == 0.0
    assert_refused(lambda: cc.heads.copying_score(model, 1, 0, read_by="keys"), "no later head", "logits")
    assert_refused(lambda: cc.heads.copying_score(model, 2, 0), "head", "layer 2")
