"""Models on disk: weights in safetensors, sizes in JSON; never pickle."""

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.models.acceptance import foreign
from causal_circuits.models.annotation import HookedTransformer
from causal_circuits.models.build import disentangled_transformer, reduced_transformer
from causal_circuits.models.layout import Layout, layout_of, note_origin
from causal_circuits.storage import read_json, read_tensors, tensor_bytes, write_files

WEIGHTS, CONFIG = "model.safetensors", "model.json"
STORED = ("W_Q", "W_U")
FORMAT = "causal_circuits.model/1"
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


@check_arguments
def save_model(model: HookedTransformer, folder: str | os.PathLike[str]) -> Path:
    """Write a model of ours to a folder (made if missing): `model.safetensors` and `model.json`.

    Only the trained weights are stored; the frozen identities follow from the sizes. Each file is written beside
    its place and moved there, so an interrupted save leaves the earlier files whole.

    Hooks are no part of a file: a warning names those that are on the model.

    Raises:
        ValueError: the model is not what its sizes say (an edited frozen weight, a parametrization, a changed config
            field), so that the file would hold another one; or its dtype is not one of `DTYPES`.

    >>> with TemporaryDirectory() as folder:
    ...     folder = cc.save_model(cc.plant_circuit(cc.chain_graph(6), d_vocab=3), folder)
    ...     sorted(path.name for path in folder.iterdir())
    ['model.json', 'model.safetensors']
    """
    config, weights = model_parts(model)
    return write_files(folder, {WEIGHTS: tensor_bytes(weights), CONFIG: json.dumps(config, indent=2) + "\n"})


def model_parts(model: HookedTransformer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a model of ours is made of: its sizes as JSON values, and its trained weights; errors as `save_model`'s."""
    layout = layout_of(model)
    _check_savable(model)
    trained = {name: p for name, p in model.named_parameters() if name.endswith(STORED)}
    missing = sorted(_shapes(layout).keys() - trained.keys())
    if missing:
        raise ValueError(
            f"a saved model must hold a parameter {missing[0]} of its own: in this one it is computed from another "
            "tensor (pruning, weight_norm) or tied to another parameter; remove that first"
        )
    config = {
        "format": FORMAT,
        "kind": layout.kind,
        "d_vocab": layout.d_vocab,
        "n_ctx": layout.n_ctx,
        "n_heads": list(layout.n_heads),
        "dtype": str(model.W_U.dtype).removeprefix("torch."),
    }
    return config, trained


@check_arguments
def load_model(folder: str | os.PathLike[str], device: torch.device | str = "cpu") -> HookedTransformer:
    """Read a model that `save_model` wrote: the same weights, bit for bit.

    Raises:
        ValueError: a file is missing or is not what `save_model` writes.

    >>> model = cc.plant_circuit(cc.chain_graph(6), d_vocab=3)
    >>> with TemporaryDirectory() as folder:
    ...     again = cc.load_model(cc.save_model(model, folder))
    >>> bool((again.W_Q == model.W_Q).all())
    True
    """
    folder = Path(folder)
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise ValueError(f"a saved model is a folder with {WEIGHTS} and {CONFIG}: {folder} has no {name}")
    weights = read_tensors(folder / WEIGHTS)
    try:
        return model_from(read_json(folder / CONFIG), weights, device)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{folder / CONFIG} does not describe a model saved by causal_circuits: {error!r}") from error


def model_from(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], device: torch.device | str = "cpu"
) -> HookedTransformer:
    """The model of `model_parts`; sizes are compared with the weights before a model of those sizes is built."""
    if config["format"] != FORMAT:
        raise ValueError(f"unknown format {config['format']!r}")
    dtype = DTYPES[config["dtype"]]
    layout = Layout(config["kind"], config["d_vocab"], config["n_ctx"], tuple(config["n_heads"]))
    prescribed = {name: (shape, dtype) for name, shape in _shapes(layout).items()}
    found = {name: (list(weight.shape), weight.dtype) for name, weight in weights.items()}
    for name in prescribed | found:
        said, there = prescribed.get(name), found.get(name)
        if said != there:
            raise ValueError(f"it does not fit {WEIGHTS}: its sizes make {name} {said}, there it is {there}")
    sizes = {"d_vocab": config["d_vocab"], "n_ctx": config["n_ctx"], "dtype": dtype, "device": device}
    build = reduced_transformer if config["kind"] == "reduced" else disentangled_transformer
    model = build(n_heads=config["n_heads"], **sizes)
    parameters = dict(model.named_parameters())
    for name, weight in weights.items():
        parameters[name].data.copy_(weight)
    note_origin(model, "a file")
    return model


def _check_savable(model: HookedTransformer) -> None:
    """Refuse what a file would lose without a word; warn of hooks, which are put on and taken off all the time."""
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})
    if len(dtypes) > 1 or dtypes[0] not in DTYPES:
        allowed, got = ", ".join(DTYPES), " and ".join(dtypes)
        raise ValueError(f"a saved model has one dtype of {allowed}: got {got}; convert it with model.float()")
    hooks = []
    for found in foreign(model):
        if "hook" in found.kind:
            hooks.append(str(found))
        elif found.kind != "edited weight" or not found.where.endswith(STORED):
            raise ValueError(
                "a file holds the queries and the read-out, and the rest follows from the sizes: "
                f"it would lose the {found}; undo it, or keep torch.save(model.state_dict(), path)"
            )
    if hooks:
        warnings.warn(f"hooks are not saved with a model: got a {', a '.join(hooks)}", stacklevel=4)


def _shapes(layout: Layout) -> dict[str, list[int]]:
    """The trained weights of a layout; the frozen ones are no larger."""
    d_model = layout.width(layout.n_layers)
    query = [max(layout.n_heads), d_model, layout.d_head]
    return {"unembed.W_U": [d_model, layout.d_vocab]} | {f"blocks.{k}.attn.W_Q": query for k in range(layout.n_layers)}
