"""What a model, a task and a configuration must be for a training: each refusal says what to do instead."""

import warnings
from collections.abc import Sequence

import torch

from causal_circuits.models import HookedTransformer, attachments, check_forward, has_layout, layout_of
from causal_circuits.models.layout import weights_from
from causal_circuits.tasks import Task
from causal_circuits.training.clamps import block_masks
from causal_circuits.training.match_start import check_match_start
from causal_circuits.training.recipe import TrainConfig
from causal_circuits.training.steps import trainable_parameters


def check_members(models: Sequence[HookedTransformer], tasks: Sequence[Task], configs: Sequence[TrainConfig]) -> None:
    """Refuse models, tasks and configurations that do not fit one another."""
    if not models or not len(models) == len(tasks) == len(configs):
        raise ValueError(
            f"an ensemble needs one task and one config for each model: got {len(models)} models, {len(tasks)} tasks, "
            f"{len(configs)} configs"
        )
    if len({id(model) for model in models}) < len(models):
        raise ValueError("the models of an ensemble must be different objects: two are the same one; build each anew")
    for what, values in (
        ("sizes", {layout_of(model) if has_layout(model) else str(model.cfg) for model in models}),
        ("trainable parameters", {tuple(trainable_parameters(model)) for model in models}),
        ("number of steps", {config.steps for config in configs}),
        ("batch size", {config.batch_size for config in configs}),
    ):
        if len(values) > 1:
            raise ValueError(f"the members of an ensemble must have the same {what}: got {sorted(map(str, values))}")
    for model, task, config in zip(models, tasks, configs, strict=True):
        _check_member(model, task, config)


def _check_member(model: HookedTransformer, task: Task, config: TrainConfig) -> None:
    sizes, known = layout_of(model) if has_layout(model) else model.cfg, trainable_parameters(model)
    if (sizes.d_vocab, sizes.n_ctx) != (task.d_vocab, task.n_ctx):
        raise ValueError(
            f"model and task must have the same (d_vocab, n_ctx): model {(sizes.d_vocab, sizes.n_ctx)}, "
            f"task {(task.d_vocab, task.n_ctx)}"
        )
    if has_layout(model):
        _check_parametrizations(model)
        _check_start(model, task, config)
        _warn_of_missing_heads(model, task)
    elif config.warm_start is not None or config.match_start is not None:
        raise ValueError(
            "an ordinary transformer has no blocks to warm up: give TrainConfig warm_start=None, match_start=None"
        )
    if config.relative_positions and not (has_layout(model) and layout_of(model).kind == "disentangled"):
        raise ValueError("relative_positions is for disentangled models: give TrainConfig relative_positions=False")
    if config.blocks is not None:
        block_masks(model, config.blocks)
    _check_parameters(known)
    if not attachments(model):
        check_forward(model, torch.arange(task.n_ctx)[None] % task.d_vocab)
    for stage in config.stages:
        unknown = [name for name in stage.train or () if name not in known]
        if unknown:
            raise ValueError(f"a stage trains {unknown[0]!r}, which the model has not: it has {', '.join(known)}")


def _check_start(model: HookedTransformer, task: Task, config: TrainConfig) -> None:
    """Refuse to overwrite weights that a training, a file or `plant_circuit` gave the model."""
    if config.match_start is not None:
        check_match_start(model)
        if task.every_position:
            raise ValueError(
                "a start from matches is for targets after the last position, and this task has them after every one: "
                "give TrainConfig match_start=None"
            )
    origin, given = weights_from(model), {"warm_start": config.warm_start, "match_start": config.match_start}
    for name, value in given.items():
        if value is not None and origin is not None:
            raise ValueError(
                f"{name}={value:g} would overwrite weights that the model has from {origin}: go on from them with "
                f"TrainConfig(..., {name}=None), or build a new model"
            )


def _check_parameters(known: dict[str, torch.nn.Parameter]) -> None:
    """Refuse parameters that an optimiser cannot move, or would move twice."""
    if not known:
        raise ValueError("a model needs a trainable parameter to be trained: all are frozen (requires_grad=False)")
    if not all(parameter.is_leaf for parameter in known.values()):
        raise ValueError(
            "a model is trained by parameters of its own: a weight is computed from another tensor (pruning, "
            "weight_norm); remove that first (torch.nn.utils.prune.remove)"
        )
    if any(parameter.is_inference() for parameter in known.values()):
        raise ValueError(
            "a model must be built outside torch.inference_mode() to be trained: torch cannot change its parameters"
        )
    if len({id(parameter) for parameter in known.values()}) < len(known):
        raise ValueError(
            f"trained parameters must be different objects: two of {', '.join(known)} are the same one; untie them"
        )


def _check_parametrizations(model: HookedTransformer) -> None:
    """Refuse a model of ours whose trained weights torch computes anew at each access: nothing would move them."""
    found = [thing for thing in attachments(model) if thing.startswith("parametrization")]
    if found:
        raise ValueError(
            f"a model of ours is trained by its own parameters W_Q and W_U: found a {found[0]}; remove it "
            "(torch.nn.utils.parametrize.remove_parametrizations), or train an ordinary_transformer with it"
        )


def _warn_of_missing_heads(model: HookedTransformer, task: Task) -> None:
    if task.graph is None:  # then nobody knows
        return
    n_heads, needed = layout_of(model).n_heads[0], len(task.target_parents)
    if n_heads < needed:
        warnings.warn(
            f"the target of this task has {needed} parents and layer 0 of the model {n_heads} head(s), each of which "
            f"can copy one: the graph cannot be learned whole; build the model with n_heads=({needed}, 1)",
            stacklevel=5,
        )
