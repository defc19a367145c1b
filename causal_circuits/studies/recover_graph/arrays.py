"""Read a user's arrays from .npz or .safetensors, checked before anything is allocated; nothing is unpickled."""

import zipfile
import zlib
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from causal_circuits.storage import UNREADABLE_TENSORS

NAMES = ("tokens", "target_probs", "labels")
MOST_BYTES = 2**32  # of one array
# Besides OSError: NotImplementedError for an unknown compression, RuntimeError for an encrypted file.
UNREADABLE_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


def read_arrays(path: Path) -> dict[str, Any]:
    """`tokens` and one of `target_probs` and `labels`; a ValueError in one line that says what is wrong instead."""
    readers = {".npz": _read_npz, ".safetensors": _read_safetensors}
    if path.suffix not in readers:
        remedy = (
            "np.unique(words, return_inverse=True) numbers words, np.savez('data.npz', tokens=..., labels=...) writes"
        )
        raise ValueError(f"DATA must be a file that ends in {' or '.join(readers)}: got {path}; {remedy}")
    if not path.is_file():
        raise ValueError(f"DATA must name a readable file: {path} is not one")
    try:
        arrays = readers[path.suffix](path)
    except OSError as error:
        raise ValueError(f"DATA must be readable: {path}: {error.strerror or error}") from error
    except (*UNREADABLE_ZIP, *UNREADABLE_TENSORS) as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is not a readable {path.suffix} file: {said}") from error
    for name, n_axes, shape in (("target_probs", 2, "[sequences, d_vocab]"), ("labels", 1, "[sequences]")):
        if name in arrays and arrays[name].ndim != n_axes:
            raise ValueError(
                f"{name} must be {shape}: got shape {list(arrays[name].shape)}; "
                "laws of the next token are target_probs, next tokens are labels"
            )
    return arrays


def _wanted(held: Iterable[str], path: Path) -> list[str]:
    """The names to read of those that a file holds."""
    found = [name for name in NAMES if name in held]
    if "tokens" not in found or len(found) == 1:
        raise ValueError(
            f"{path} must hold tokens and target_probs or labels: it holds {', '.join(sorted(held)) or 'nothing'}"
        )
    if len(found) == 3:
        raise ValueError(f"{path} holds target_probs and labels: leave one out")
    return found


def _check_size(name: str, n_bytes: int, path: Path) -> None:
    if n_bytes > MOST_BYTES:
        most = f"{MOST_BYTES // 2**30} GiB"
        raise ValueError(f"{name} in {path} takes more than {most}, {n_bytes:,} bytes: take fewer sequences")


def _read_npz(path: Path) -> dict[str, Any]:
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        for name in _wanted(members, path):
            _check_size(name, members[name].file_size, path)
            try:
                with archive.open(members[name]) as stream:
                    arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
            except UNREADABLE_ZIP:
                raise
            except Exception as error:  # numpy raises some ten kinds for a damaged header
                said = " ".join(str(error).split())[:200] or "not enough memory"
                raise ValueError(f"{name} in {path} is not a readable .npy array of numbers: {said}") from error
            if arrays[name].dtype.kind not in "iufb":
                raise ValueError(f"{name} in {path} must be an array of numbers: it is one of {arrays[name].dtype}")
    return arrays


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as archive:
        names = _wanted(archive.keys(), path)
        for name in names:
            _check_size(name, 8 * prod(archive.get_slice(name).get_shape()), path)
        return {name: archive.get_tensor(name) for name in names}
