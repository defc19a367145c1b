"""Files that are whole or not there: each is written beside its place, flushed to disk, and moved there.

Models, records, checkpoints and results all go through `write_files`. A process that is killed at any moment, or a
disk that is full, leaves the earlier files as they were. Tensors are safetensors: nothing is ever unpickled.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

# The JSON of a model, a record or a checkpoint is a few kilobytes; a much longer file is none of ours.
LONGEST_JSON = 2**26


def write_files(folder: str | os.PathLike[str], contents: Mapping[str, bytes | str]) -> Path:
    """Write files of a folder (made if missing), each the whole new one or the old one; returns the folder.

    All are written out before the first is moved to its place; they are moved in the order given.

    Raises:
        OSError: the disk is full, or the folder cannot be written to; every file that was there is unharmed.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     [path.name for path in write_files(folder, {"numbers.json": "[1, 2]"}).iterdir()]
    ['numbers.json']
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts = {folder / f"{name}.part": folder / name for name in contents}
    try:
        for part, content in zip(parts, contents.values(), strict=True):
            with part.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
        for part, path in parts.items():
            os.replace(part, path)
    finally:
        for part in parts:
            with suppress(OSError):
                part.unlink()
    return folder


def read_json(path: str | os.PathLike[str]) -> Any:
    """The values of a JSON file.

    Raises:
        ValueError: it is something else, or longer than any file of ours.
        OSError: there is no such file.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     read_json(write_files(folder, {"numbers.json": "[1, 2]"}) / "numbers.json")
    [1, 2]
    """
    path = Path(path)
    if path.stat().st_size > LONGEST_JSON:
        raise ValueError(f"{path} is longer than any of ours: {path.stat().st_size:,} bytes")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as the content of a safetensors file.

    >>> import torch
    >>> tensors_of(tensor_bytes({"weights": torch.ones(2)}), "anywhere")["weights"]
    tensor([1., 1.])
    """
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ValueError: the file is truncated or is something else.

    >>> import torch
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = write_files(folder, {"a.safetensors": tensor_bytes({"weights": torch.ones(2)})}) / "a.safetensors"
    ...     read_tensors(path)["weights"]
    tensor([1., 1.])
    """
    return tensors_of(Path(path).read_bytes(), path)


def tensors_of(content: bytes, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file's content; `path` is what an error names.

    >>> import torch
    >>> tensors_of(tensor_bytes({"weights": torch.ones(2)}), "anywhere")["weights"]
    tensor([1., 1.])
    """
    try:
        return load(content)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
