"""The progress bar: the loss, and the parents found so far; silence where nobody watches."""

import pytest
import torch
from assertions import unchecked_types

import causal_circuits as cc
from causal_circuits.training.progress import parents_found


def test_uniform_attention_has_found_no_parent_and_a_planted_one_all() -> None:
    """Not even those of a star, whose parent stands first in every row."""
    task, record = cc.InContextTask(cc.graph_from_parents([None, 0, 0, 0, 0]), d_vocab=3), cc.RecordAt(layers=(0,))
    batch = task.sample(64, seed=0)
    for model, n in ((cc.disentangled_transformer(3, 6), 0), (cc.plant_circuit(task.graph, d_vocab=3), 4)):
        measured = cc.training.take_snapshot(model, batch, record=record)
        assert parents_found([task], [measured], record) == f"training, {n} of 4 parents"


def test_a_bar_tells_loss_and_parents_and_nothing_is_said_where_nobody_watches(
    chain_task: cc.InContextTask, capsys: pytest.CaptureFixture[str]
) -> None:
    config = cc.TrainConfig(stages=cc.training.default_stages(120), batch_size=64)
    records = []
    for progress in (True, None, False):
        model = cc.disentangled_transformer(chain_task.d_vocab, chain_task.n_ctx)
        with unchecked_types():
            records.append(cc.train(model, chain_task, config, progress=progress))
        said = capsys.readouterr().err
        assert ("of 4 parents" in said) == ("loss=" in said) == (progress is True)
    assert torch.equal(records[0].losses, records[1].losses)
