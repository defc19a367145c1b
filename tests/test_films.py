"""What is watched in training: the heads on one sequence, the distance to named predictors; roles as labels."""

import dataclasses
import json
import math
import re

import pytest
import torch
from assertions import assert_given_back, assert_refused
from users import users_model

import causal_circuits as cc
from causal_circuits import figures, pages


def trained(task: cc.InContextTask, film: object, steps: int = 12) -> tuple[object, cc.TrainingRecord]:
    model = cc.disentangled_transformer(task.d_vocab, task.n_ctx)
    config = cc.TrainConfig.joint(steps, 0.1, batch_size=32, seed=5)
    return model, cc.train(model, task, config, record=cc.RecordAt(steps=(0, 3, steps)), on_record=film)


def test_a_film_ends_with_what_the_trained_model_does_and_changes_nothing(chain_task: cc.InContextTask) -> None:
    tokens = chain_task.sample(3, seed=2).tokens
    film = cc.films.SequenceRecorder(tokens[1])
    model, record = trained(chain_task, film)
    _, alone = trained(chain_task, None)
    assert torch.equal(record.losses, alone.losses)
    seen = film.result()
    assert seen.steps == record.steps == (0, 3, 12)
    torch.testing.assert_close(seen.attention[-1, 0], cc.mean_attention(model, tokens[1:2])[0, 0])
    assert not torch.allclose(seen.attention[0], seen.attention[-1])


def test_one_sequence_is_looked_at_with_every_live_head_and_nothing_is_left_behind(random_model) -> None:  # type: ignore[no-untyped-def]
    tokens = torch.tensor([0, 3, 1, 1, 2, 0])
    with assert_given_back(random_model):
        seen = cc.films.sequence_attention(random_model, tokens, step=7)
    assert (seen.steps, seen.heads) == ((7,), ((0, 0), (0, 1), (1, 0)))
    _, cache = random_model.run_with_cache(tokens[None])
    for place, (layer, head) in enumerate(seen.heads):
        expected = cache[f"blocks.{layer}.attn.hook_pattern"][0, head]
        rows = slice(-1, None) if layer == 1 else slice(None)
        torch.testing.assert_close(seen.attention[0, place, rows], expected[rows], atol=1e-5, rtol=0)


def test_a_plain_transformer_of_the_users_can_be_looked_at() -> None:
    model = users_model(n_layers=1, n_heads=2, d_vocab=5, normalization_type="LN", dtype=torch.float32)
    seen = cc.films.sequence_attention(model, torch.tensor([4, 0, 2]))
    assert seen.heads == ((0, 0), (0, 1))
    torch.testing.assert_close(seen.attention.sum(dim=-1), torch.ones(1, 2, 3))
    assert figures.position_labels(seen.tokens, names=list("abcde")) == ["e", "a", "query c"]


def test_divergences_are_zero_from_itself_and_equal_the_slow_sum(chain_task: cc.InContextTask) -> None:
    batch = chain_task.sample(16, seed=4)
    model = cc.plant_circuit(chain_task.graph, chain_task.d_vocab)
    own = cc.log_probs(model, batch.tokens).double().exp()
    other = batch.target_probs.double()
    film = cc.films.PredictorRecorder(batch, {"itself": own, "the kernel": other})
    film(3, model)
    measured = film.result()
    pairs = list(zip(other.flatten().tolist(), own.flatten().tolist(), strict=True))
    slow = sum(p * math.log(p / q) for p, q in pairs if p > 0) / len(batch)
    assert measured.divergence[0].tolist() == pytest.approx([0.0, slow], abs=1e-6)
    assert (measured.steps, measured.nearest) == ((3,), ("itself",))


def test_the_named_predictors_are_the_lines_of_the_loss(chain_task: cc.InContextTask) -> None:
    batch = chain_task.sample(256, seed=4)
    losses = {
        name: float(cc.tasks.cross_entropy(probs, batch.target_probs).mean())
        for name, probs in cc.films.named_predictors(chain_task, batch).items()
    }
    lines = cc.reference_losses(chain_task, batch, n_exact=8, n_draws=8)
    assert losses == pytest.approx(
        {"uniform": lines.uniform, "best unigram": lines.best_unigram, "edge posterior": lines.edge_posterior}
    )


def test_films_refuse_what_does_not_fit(chain_task: cc.InContextTask, random_model) -> None:  # type: ignore[no-untyped-def]
    batch = chain_task.sample(4, seed=1)
    assert_refused(lambda: cc.films.sequence_attention(random_model, batch.tokens), "integers [n_ctx]", "[4, 6]")
    assert_refused(cc.films.SequenceRecorder(batch.tokens[0]).result, "seen no step", "on_record=film")
    assert_refused(cc.films.PredictorRecorder(batch, {"u": batch.target_probs}).result, "seen no step")
    assert_refused(lambda: cc.films.PredictorRecorder(batch, {}), "at least one predictor")
    assert_refused(lambda: cc.films.PredictorRecorder(batch, {"u": batch.target_probs[:2]}), "'u'", "[4, 4]", "[2, 4]")


def test_a_view_of_several_steps_has_a_slider_and_shows_the_last(chain_task: cc.InContextTask) -> None:
    film = cc.films.SequenceRecorder(chain_task.sample(1, seed=2).tokens[0])
    trained(chain_task, film)
    view = figures.sequence_view(film.result(), chain_task.graph, roles=["<b>", "induction"])
    html = str(view)
    assert 'type="range" min="0" max="2" value="2"' in html
    assert "<output>step 12</output>" in html
    assert "<b>" not in html
    (handed,) = re.findall(r'<script type="application/json">(.*)</script>', html)
    tokens = json.loads(handed)["panels"][0]["properties"]["tokens"]
    shown = [re.sub(r"\s", "", token).replace("\u2800", " ") for token in tokens]
    assert shown == figures.position_labels(film.result().tokens)
    outlined = [panel["outlined"] for panel in json.loads(handed)["panels"]]
    assert outlined == [[[child, parent] for parent, child in sorted(cc.latent_edges(chain_task.graph))], []]
    one = figures.sequence_view(dataclasses.replace(film.result(), steps=(0,), attention=film.result().attention[:1]))
    assert 'type="range"' not in one
    assert_refused(lambda: figures.sequence_view(film.result(), roles=["one"]), "each of the 2 heads", "got 1")
    assert_refused(lambda: figures.sequence_view(film.result(), cc.chain_graph(7)), "7 against 6")


def test_attention_at_several_steps_is_checked_at_each() -> None:
    lower = torch.ones(3, 3).tril()
    frames = (lower / lower.sum(dim=1, keepdim=True)).expand(2, 1, 3, 3).clone()
    labels = ["a", "b", "c"]
    assert "<output>step 5</output>" in pages.pattern_view(frames, labels, steps=(0, 5))
    assert_refused(lambda: pages.pattern_view(frames, labels, steps=(0,)), "[2, 1, 3, 3] for 1 steps")
    assert_refused(lambda: pages.pattern_view(frames[0], labels, steps=(0,)), "[1, 3, 3] for 1 steps")
    frames[0, 0, 2, 0] = torch.nan
    assert_refused(lambda: pages.pattern_view(frames, labels, steps=(0, 5)), "be finite")


def test_a_film_in_a_folder_is_whole_after_an_interrupted_run(chain_task, tmp_path) -> None:  # type: ignore[no-untyped-def]
    config, batch = cc.TrainConfig.joint(12, batch_size=8), chain_task.sample(50)
    tokens = batch.tokens[0]

    def run(folder: object, stops: bool) -> tuple[object, object, cc.TrainingRecord]:
        heads = cc.films.SequenceRecorder(tokens, folder=folder / "heads")
        near = cc.films.PredictorRecorder(batch, cc.films.named_predictors(chain_task, batch), folder=folder / "near")

        def watch(step: int, model: object) -> None:
            if stops and step > 7:
                raise RuntimeError("the power went")
            heads(step, model)
            near(step, model)

        model = cc.disentangled_transformer(4, 6)
        record = cc.RecordAt.every(1, 12)
        kept = cc.Checkpoints(folder, every=5)
        found = cc.train(model, chain_task, config, record=record, on_record=watch, checkpoints=kept, progress=False)
        return heads.result(found.steps), near.result(found.steps), found

    with pytest.raises(RuntimeError, match="power"):
        run(tmp_path / "cut", stops=True)
    heads, near, record = run(tmp_path / "cut", stops=False)
    whole_heads, whole_near, _ = run(tmp_path / "whole", stops=False)
    assert heads.steps == near.steps == record.steps == tuple(range(13))
    assert torch.equal(heads.attention, whole_heads.attention)
    assert torch.equal(near.divergence, whole_near.divergence)
    again = cc.films.SequenceRecorder(tokens, folder=tmp_path / "cut" / "heads").result()
    assert again.heads == whole_heads.heads
    with pytest.raises(ValueError, match="has not seen step 99"):
        cc.films.SequenceRecorder(tokens, folder=tmp_path / "cut" / "heads").result([99])
