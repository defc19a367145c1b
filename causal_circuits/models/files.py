"""Models on disk: weights in safetensors, sizes in JSON; never pickle."""

import json
import os
from pathlib import Path

import torch
from transformer_lens import HookedTransformer

from causal_circuits.models.build import disentangled_transformer, reduced_transformer
from causal_circuits.models.layout import layout_of
from causal_circuits.storage import read_tensors, tensor_bytes, write_files

WEIGHTS, CONFIG = "model.safetensors", "model.json"
FORMAT = "causal_circuits.model/1"


def save_model(model: HookedTransformer, folder: str | os.PathLike[str]) -> Path:
    """Write a model of ours to a folder (made if missing): `model.safetensors` and `model.json`.

    Only the trained weights are stored; the frozen identities follow from the sizes. Each file is written beside
    its place and moved there, so an interrupted save leaves the earlier files whole.
    """
    layout = layout_of(model)
    trained = {name: p for name, p in model.named_parameters() if name.endswith(("W_Q", "W_U"))}
    config = {
        "format": FORMAT,
        "kind": layout.kind,
        "d_vocab": layout.d_vocab,
        "n_ctx": layout.n_ctx,
        "n_heads": list(layout.n_heads),
        "dtype": str(model.W_U.dtype).removeprefix("torch."),
    }
    return write_files(folder, {WEIGHTS: tensor_bytes(trained), CONFIG: json.dumps(config, indent=2) + "\n"})


def load_model(folder: str | os.PathLike[str], device: torch.device | str = "cpu") -> HookedTransformer:
    """Read a model that `save_model` wrote: the same weights, bit for bit.

    Raises:
        ValueError: a file is missing or is not what `save_model` writes.
    """
    folder = Path(folder)
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise ValueError(f"a saved model is a folder with {WEIGHTS} and {CONFIG}: {folder} has no {name}")
    try:
        config = json.loads((folder / CONFIG).read_text())
        if config["format"] != FORMAT:
            raise ValueError(f"unknown format {config['format']!r}")
        dtype = {"float32": torch.float32, "float64": torch.float64}[config["dtype"]]
        sizes = {"d_vocab": config["d_vocab"], "n_ctx": config["n_ctx"], "dtype": dtype, "device": device}
        if config["kind"] not in ("disentangled", "reduced"):
            raise ValueError(f"unknown kind {config['kind']!r}")
        if config["kind"] == "reduced":
            model = reduced_transformer(n_heads=config["n_heads"], **sizes)
        else:
            model = disentangled_transformer(n_heads=config["n_heads"], **sizes)
    except (KeyError, TypeError, ValueError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder / CONFIG} does not describe a model saved by causal_circuits: {error}") from error
    weights, parameters = read_tensors(folder / WEIGHTS), dict(model.named_parameters())
    expected = {name for name in parameters if name.endswith(("W_Q", "W_U"))}
    if expected - set(weights):
        raise ValueError(f"{folder / WEIGHTS} holds no {sorted(expected - set(weights))[0]}: save the model again")
    for name, weight in weights.items():
        if name not in parameters or parameters[name].shape != weight.shape or weight.dtype != dtype:
            raise ValueError(f"{folder / WEIGHTS} does not fit {CONFIG}: {name} is {list(weight.shape)} {weight.dtype}")
        parameters[name].data.copy_(weight)
    return model
