"""Targets after every position: batches, losses, gradients and trainings, and the Markov chains that have them."""

import numpy as np
import pytest
import torch

import causal_circuits as cc
from causal_circuits.models import structured_logits
from causal_circuits.tasks import MarkovTask, next_token_predictors
from causal_circuits.training.relative_positions import share_by_distance
from causal_circuits.training.steps import TRAINING_STREAM

TASK = MarkovTask(n_ctx=7, d_vocab=3)


def a_model(n_heads=(1, 1), seed=0):
    return cc.disentangled_transformer(3, 7, n_heads, init_scale=0.3, seed=seed)


@pytest.mark.parametrize("n_heads", [(1, 1), (2, 1), (1, 1, 1)])
def test_the_structured_forward_is_the_plain_one(n_heads):
    model, tokens = a_model(n_heads).double(), TASK.sample(5, seed=0).tokens
    torch.testing.assert_close(
        structured_logits(model, tokens, every_position=True), model(tokens), rtol=1e-10, atol=1e-10
    )
    with cc.models.plain_forward():
        plain = cc.log_probs(model, tokens, every_position=True)
    torch.testing.assert_close(cc.log_probs(model, tokens, every_position=True), plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "build", [a_model, lambda: cc.models.ordinary_transformer(3, 7), lambda: cc.reduced_transformer(3, 7)]
)
def test_the_loss_is_the_mean_over_positions(build):
    model, batch = build(), TASK.sample(6, seed=1)
    output = model(batch.tokens)
    log_probs = (output + 1e-9).log() if type(model).__name__ == "ReducedTransformer" else output.log_softmax(-1)
    expected = torch.stack([-(batch.target_probs[:, t] * log_probs[:, t]).sum(-1) for t in range(7)]).mean(0)
    torch.testing.assert_close(cc.evaluate(model, batch), expected.double().detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(cc.training.mean_loss(model, batch), expected.mean(), rtol=1e-5, atol=1e-6)


def test_a_training_step_is_a_step_on_that_loss():
    model, other = a_model(), a_model()
    config = cc.TrainConfig.joint(1, 0.5, optimizer="sgd", schedule="constant", batch_size=16)
    cc.train(model, TASK, config)
    other.zero_grad()
    batch = TASK.draws((0, TRAINING_STREAM), 0, 16)
    cc.training.mean_loss(other, batch).backward()
    torch.testing.assert_close(model.W_U, other.W_U - 0.5 * other.unembed.W_U.grad, rtol=1e-5, atol=1e-6)


def test_labels_after_every_position_are_one_hot_targets():
    batch = cc.Batch([[0, 1, 2], [2, 2, 1]], [[1, 2, 0], [2, 1, 1]])
    assert batch.every_position
    assert batch.target_probs.argmax(-1).tolist() == [[1, 2, 0], [2, 1, 1]]
    assert batch.last.target_probs.argmax(-1).tolist() == [0, 1]
    record = cc.train(cc.disentangled_transformer(3, 3), cc.BatchTask(batch), cc.TrainConfig.joint(2, batch_size=2))
    assert record.losses[0] == pytest.approx(np.log(3), abs=1e-6)


def test_one_hot_integers_are_not_taken_for_labels_after_every_position():
    tokens, one_hot = torch.tensor([[0, 1, 2], [2, 2, 1]]), torch.tensor([[0, 0, 1], [0, 1, 0]])
    with pytest.raises(ValueError, match="give probabilities as floats"):
        cc.Batch(tokens, one_hot)
    assert not cc.Batch(tokens, one_hot.float()).every_position
    with pytest.raises(ValueError, match="pseudo_count must be positive"):
        next_token_predictors(tokens, 3, alpha=0.0)


TOOLS = {
    "ablate_heads": lambda model, batch: cc.ablate_heads(model, batch, [(0, 0)]),
    "knock_out_edges": cc.knock_out_edges,
    "scrub_hypothesis": lambda model, batch: cc.scrub_hypothesis(model, batch, TASK),
    "extract_graph": lambda model, batch: cc.extract_graph(model, cc.BatchTask(batch)),
    "recover_graph": lambda model, batch: cc.recover_graph(batch),
    "measured_gradient": lambda model, batch: cc.measured_gradient(batch.tokens, batch.target_probs),
    "circuits": lambda model, batch: cc.circuits.circuit_model(model, batch),
    "best_unigram_loss": lambda model, batch: cc.tasks.best_unigram_loss(batch),
    "match_gradient": lambda model, batch: cc.information.match_gradient(batch, (6,)),
    "measured_match_gradient": lambda model, batch: cc.training.measured_match_gradient(model, batch, (6,)),
    "make_cost": lambda model, batch: cc.interventions.make_cost("loss", batch),
    "subset_loss": lambda model, batch: cc.tasks.subset_loss(TASK, batch, [0]),
}


@pytest.mark.parametrize("tool", TOOLS)
def test_tools_of_the_last_position_refuse_such_a_batch(tool):
    model, batch = a_model(), TASK.sample(40, seed=0)
    TOOLS[tool](model, batch.last)
    with pytest.raises(ValueError, match=r"batch\.last|must be .*\[batch, d_vocab\]"):
        TOOLS[tool](model, batch)


def test_a_task_whose_batches_are_of_the_other_kind_is_refused():
    class Wrong(cc.Task):
        graph, d_vocab = cc.chain_graph(7), 3

        def draws(self, seed, first, n):
            return TASK.draws(seed, first, n)

    with pytest.raises(ValueError, match=r"every position"):
        Wrong().sample(4)


def test_the_gradient_by_distance_is_that_of_a_vector():
    """Autograd through W_Q[position, position] = v[i - j]."""
    model, batch = a_model().double(), TASK.sample(9, seed=2).to("cpu", torch.float64)
    cc.training.mean_loss(model, batch).backward()
    share_by_distance(model)
    distance = torch.arange(7)[:, None] - torch.arange(7)
    v = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    weights = model.blocks[0].attn.W_Q.detach().clone()
    own = cc.models.slots(model)["position"].slice
    shared = weights.clone()
    shared[0, own, own] = weights[0, own, own] + v[distance.clamp(min=0)] * (distance >= 0)
    swapped = torch.func.functional_call(model, {"blocks.0.attn.W_Q": shared}, (batch.tokens,))
    loss = -(batch.target_probs * swapped.log_softmax(-1)).sum(-1).mean()
    (expected,) = torch.autograd.grad(loss, v)
    gradient = model.blocks[0].attn.W_Q.grad[0]
    for i in range(7):
        torch.testing.assert_close(gradient[own, own][i, : i + 1], expected[: i + 1].flip(0))
    tokens = cc.models.slots(model)["token"].slice
    assert not gradient[tokens, own].any()
    assert not gradient[own, tokens].any()
    assert gradient[tokens, tokens].any()


def test_a_training_with_relative_positions_keeps_them_and_other_models_are_refused():
    model, config = cc.disentangled_transformer(3, 7), cc.TrainConfig.joint(5, relative_positions=True, batch_size=16)
    cc.train(model, TASK, config)
    own = cc.models.slots(model)["position"].slice
    block = model.W_Q[0, 0][own, own].detach()
    for d in range(7):
        assert float(block.diagonal(-d).max() - block.diagonal(-d).min()) < 1e-6
    last = cc.InContextTask(cc.chain_graph(7), d_vocab=3)
    record = cc.train(cc.disentangled_transformer(3, 7), last, config)
    assert record.path == "structured"  # the fused step does not know it
    with pytest.raises(ValueError, match="disentangled"):
        cc.train(cc.models.ordinary_transformer(3, 7), TASK, config)


@pytest.mark.parametrize("prior", ["dirichlet", "doubly stochastic", "independent"])
def test_chains_follow_their_matrices(prior):
    task = MarkovTask(n_ctx=400, d_vocab=2, prior=prior)
    batch = task.sample(300, seed=0)
    following = torch.nn.functional.one_hot(batch.tokens[:, 1:], 2)
    surprise = following - batch.target_probs[:, :-1]  # a martingale difference
    assert surprise.mean().abs() < 5 * 0.5 / (300 * 400) ** 0.5
    assert (surprise[..., 0] * (batch.tokens[:, :-1] == 0)).mean().abs() < 5 * 0.5 / (300 * 400) ** 0.5
    first = (batch.tokens[:, 0] == 0).double().mean()
    assert abs(first - (batch.tokens == 0).double().mean()) < 5 * 0.5 / 300**0.5  # stationary from the start
    if prior == "independent":
        assert torch.equal(batch.target_probs, batch.target_probs[:, :1].expand(-1, 400, -1))


def test_predictors_are_counts_and_bigram_is_exact_bayes():
    tokens = torch.tensor([[0, 1, 0, 0, 1]])
    bigram = next_token_predictors(tokens, 2)["bigram"][0]
    assert bigram[:, 1].tolist() == pytest.approx([1 / 2, 1 / 2, 2 / 3, 2 / 4, 1 / 3])
    batch = MarkovTask(n_ctx=100, d_vocab=2).sample(4000, seed=3)
    truth = batch.target_probs[:, -1].double()
    published = {"uniform": 0.213, "unigram": 0.087, "bigram": 0.0093}  # Edelman et al. (2024)
    for name, probs in next_token_predictors(batch.tokens, 2).items():
        kl = torch.xlogy(truth, truth).sum(-1) - (truth * probs[:, -1].log()).sum(-1)
        assert abs(float(kl.mean()) - published[name]) < 4 * float(kl.std()) / 4000**0.5


def test_the_recorder_of_predictors_averages_over_positions():
    model, batch = a_model(), TASK.sample(6, seed=4)
    predicted = next_token_predictors(batch.tokens, 3)
    film = cc.films.PredictorRecorder(batch, predicted)
    film(0, model)
    own = model(batch.tokens).detach().double().log_softmax(-1)
    every = [(probs * (probs.log() - own)).sum(-1).mean() for probs in predicted.values()]
    torch.testing.assert_close(film.result().divergence[0], torch.stack(every), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="must give one row"):
        cc.films.PredictorRecorder(batch.last, predicted)
