"""Members of an ensemble come out as if each had been trained alone."""

import pytest
import torch
from assertions import assert_refused

import causal_circuits as cc

GRAPHS = [cc.chain_graph(6), cc.pairs_graph(6), cc.random_forest(6, seed=4)]


def members(configs: list[cc.TrainConfig], n_heads: tuple[int, ...] = (1, 1)) -> tuple[list, list]:
    """A model and a task for each configuration, over three graphs."""
    models = [cc.disentangled_transformer(4, 6, n_heads, init_scale=0.1, seed=i) for i in range(len(configs))]
    return models, [cc.InContextTask(GRAPHS[i % 3], d_vocab=4, alpha=0.3) for i in range(len(configs))]


def assert_members_equal_single_runs(configs: list[cc.TrainConfig], n_heads: tuple[int, ...] = (1, 1)) -> None:
    record = cc.RecordAt(steps=(0, 7, configs[0].steps))
    models, tasks = members(configs, n_heads)
    records = cc.train_ensemble(models, tasks, configs, record=record)
    alone, tasks = members(configs, n_heads)
    for model, single, task, config, found in zip(models, alone, tasks, configs, records, strict=True):
        expected = cc.train(single, task, config, record=record)
        assert torch.allclose(found.losses, expected.losses, rtol=1e-5)
        assert found.config == expected.config
        assert torch.allclose(found.attention, expected.attention, atol=1e-5)
        for (name, trained), reference in zip(model.named_parameters(), single.parameters(), strict=True):
            scale = max(float(reference.detach().abs().max()), 1.0)
            assert float((trained - reference).detach().abs().max()) <= 1e-5 * scale, name


@pytest.mark.parametrize("n", [1, 2, 5])
def test_graphs_and_seeds(n: int) -> None:
    stages = (cc.Stage(10, 0.1, train=("W_Q.0",)), cc.Stage(10, 0.05, schedule="cosine"))
    assert_members_equal_single_runs([cc.TrainConfig(stages, batch_size=32, seed=seed) for seed in range(n)])


def test_hyper_parameters_may_differ() -> None:
    first = [
        cc.TrainConfig.joint(12, 0.05, batch_size=16),
        cc.TrainConfig.joint(12, 1.0, optimizer="sgd", batch_size=16, warm_start=None),
        cc.TrainConfig.joint(12, 0.05, batch_size=16, seed=3),
        cc.TrainConfig((cc.Stage(5, 0.1, train=("W_Q.0", "W_U")), cc.Stage(7, 0.02, weight_decay=0.1)), batch_size=16),
    ]
    assert_members_equal_single_runs(first, n_heads=(2, 1))


def test_models_that_cannot_be_fused_are_trained_one_by_one() -> None:
    configs = [cc.TrainConfig.joint(4, batch_size=8, seed=seed) for seed in range(2)]
    models, tasks = members(configs)
    models = [model.double() for model in models]
    records = cc.train_ensemble(models, tasks, configs)
    assert [record.path for record in records] == ["structured"] * 2
    fused = cc.train_ensemble(*members(configs), configs)
    for record, other in zip(records, fused, strict=True):
        assert other.path == "fused"
        assert torch.allclose(record.losses, other.losses, rtol=1e-5)


def test_a_member_that_diverges_is_named_and_every_model_keeps_its_weights() -> None:
    stages = [cc.Stage(9, rate, optimizer="sgd") for rate in (0.1, 3e38)]
    configs = [cc.TrainConfig((stage,), batch_size=16) for stage in stages]
    models, tasks = members(configs)
    with pytest.raises(FloatingPointError, match=r"member 1 .* lower the learning rate \(now 3e\+38\)"):
        cc.train_ensemble(models, tasks, configs)
    assert torch.isfinite(models[0].W_U).all()
    assert models[0].W_U.abs().sum() > 0


def test_bad_ensembles_are_refused() -> None:
    config = cc.TrainConfig.joint(4, batch_size=8)
    models, tasks = members([config] * 2)
    assert_refused(lambda: cc.train_ensemble([], [], []), "one task and one config for each model")
    assert_refused(lambda: cc.train_ensemble(models, tasks, [config]), "2 models", "1 configs")
    assert_refused(lambda: cc.train_ensemble([models[0]] * 2, tasks, [config] * 2), "two are the same one")
    other = cc.TrainConfig.joint(5, batch_size=8)
    assert_refused(lambda: cc.train_ensemble(models, tasks, [config, other]), "same number of steps", "['4', '5']")
    other = cc.TrainConfig.joint(4, batch_size=9)
    assert_refused(lambda: cc.train_ensemble(models, tasks, [config, other]), "same batch size")
    wide = cc.disentangled_transformer(5, 6)
    assert_refused(lambda: cc.train_ensemble([models[0], wide], tasks, [config] * 2), "same sizes")
