"""`train`: the recipe that fits model and task where none is given, and the loop for one model."""

from collections.abc import Mapping
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.models import HookedTransformer, has_layout, layout_of
from causal_circuits.recording import RecordAt, TrainingRecord
from causal_circuits.tasks import Task
from causal_circuits.training.checkpoints import Checkpoints
from causal_circuits.training.loop import OnRecord, train_ensemble
from causal_circuits.training.recipe import TrainConfig


@check_arguments
def train(
    model: HookedTransformer,
    task: Task,
    config: TrainConfig | None = None,
    *,
    record: RecordAt | None = None,
    progress: bool | None = None,
    on_record: OnRecord | None = None,
    checkpoints: Checkpoints | None = None,
    attention: Mapping[int, Float[Tensor, "... n_ctx n_ctx"]] | None = None,
) -> TrainingRecord:
    """Train a model of ours in place on the sequences that a task draws.

    Args:
        model: disentangled, reduced or ordinary (which has no warm start and no default recipe, and whose stages name
            its parameters as TransformerLens does); moved nowhere, so put it on the device you want.
        task: where batches come from, by `draws`; its d_vocab and n_ctx must be the model's. A `BatchTask` trains on
            data of your own.
        config: stages, batch size, warm start and seed; the default is the recipe of `default_stages`, which writes
            nothing in. For a reduced model it is `TrainConfig.warm`, which writes in A2 as Algorithm 1 does, and for a
            model with several copying heads and a target that is no query's `TrainConfig.matched`, which writes in the
            parents that the gradient of order k favours, each head's match and the read-out (`start_from_matches`);
            both refuse a model whose weights are from a training, a file or `plant_circuit`.
        record: which steps to record; the default is twelve, dense at the start.
        progress: show a bar; None shows it on a terminal only.
        on_record: called with (step, model) at every recorded step, to measure the model or keep its weights; a run
            that goes on from a checkpoint calls it again for the steps since.
        checkpoints: where to keep checkpoints; if some of this very run are there, it goes on from the newest.
        attention: layer -> a pattern that it has while it trains, whatever its weights, which then do not move: rows
            are queries, [n_ctx, n_ctx] or one for each head (`clamped_attention`). The record's config holds it.
            Weights are frozen by leaving them out of a stage's `train`, or blocks of them by `TrainConfig.blocks`.

    Raises:
        ValueError: model and task do not fit, a stage names an unknown parameter, or another process trains in the
            folder of `checkpoints` or `record`.
        CheckpointError: the folder holds checkpoints of another run.
        DivergenceError: the loss or a gradient is non-finite; it names the step and what to try.
        OSError: a checkpoint cannot be written; those that were there are unharmed.

    >>> model = cc.disentangled_transformer(d_vocab=3, n_ctx=6)
    >>> record = cc.train(model, task, cc.TrainConfig.joint(20, batch_size=64), record=cc.RecordAt.every(10, until=20))
    >>> len(record.losses), record.steps
    (20, (0, 10, 20))
    """
    if config is None and not has_layout(model):
        raise ValueError(
            "an ordinary transformer has no default recipe: give a config, TrainConfig.joint(4096, 0.01) for one"
        )
    config = config or _default_config(model, task)
    if attention is not None and config.attention is not None:
        raise ValueError("the config has patterns already: give attention=None, or TrainConfig attention=None")
    if attention is not None:
        config = replace(config, attention={layer: pattern.tolist() for layer, pattern in attention.items()})
    (trained,) = train_ensemble(
        [model], [task], [config], record=record, progress=progress, on_record=on_record, checkpoints=checkpoints
    )
    return trained


def _default_config(model: HookedTransformer, task: Task) -> TrainConfig:
    layout = layout_of(model)
    if layout.kind == "reduced":
        return TrainConfig.warm()
    several = layout.n_layers == 2 and layout.n_heads[0] > 1 and not (task.has_query or task.every_position)
    return TrainConfig.matched() if several else TrainConfig()
