"""Files that are whole or not there: each is written beside its place, flushed to disk, and moved there.

Models, records, checkpoints and results all go through `write_files`. A process that is killed at any moment, or a
disk that is full, leaves the earlier files as they were. Tensors are safetensors: nothing is ever unpickled.
`write_checked` adds checksums, so that `read_checked` notices a file that was truncated or altered later.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
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


# ---- checksums


def write_checked(
    folder: str | os.PathLike[str], name: str, head: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None
) -> Path:
    """Write `name.json`, and `name.safetensors` if there are tensors, with checksums of both; returns the JSON's path.

    The JSON is moved to its place last: the two are there when it is.

    Args:
        folder: made if missing.
        name: of the files, without an ending.
        head: JSON values; "format" names their schema.
        tensors: None writes no second file.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = write_checked(folder, "unit", {"format": "example/1", "loss": 0.25})
    ...     read_checked(path, "example/1")[0]["loss"]
    0.25
    """
    contents: dict[str, bytes | str] = {}
    head = json.loads(json.dumps(head))  # as it will be when it is read
    if tensors is not None:
        content = tensor_bytes(tensors)
        head = {**head, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        contents[f"{name}.safetensors"] = content
    contents[f"{name}.json"] = json.dumps({**head, "own sha256": _own_digest(head)}, indent=1) + "\n"
    return write_files(folder, contents) / f"{name}.json"


def read_checked(
    path: str | os.PathLike[str], format: str, what: str = "file"
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The values and the tensors that `write_checked` wrote, both whole.

    Args:
        path: of the JSON.
        format: that it must have.
        what: an error calls it.

    Raises:
        ValueError: it names the file that is damaged, or of another format.
    """
    path = Path(path)
    try:
        head = read_json(path)
        own = head.pop("own sha256")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the {what} {path} is damaged ({error})") from error
    if own != _own_digest(head):
        raise ValueError(f"the {what} {path} is damaged (its checksum does not fit)")
    if head.get("format") != format:
        raise ValueError(f"the {what} {path} has the format {head.get('format')!r}, not {format!r}")
    if "sha256" not in head:
        return head, {}
    beside = path.with_suffix(".safetensors")
    if not beside.is_file() or beside.stat().st_size != head["size"]:
        raise ValueError(f"the {what} {beside} is damaged (truncated, or missing)")
    content = beside.read_bytes()
    if hashlib.sha256(content).hexdigest() != head["sha256"]:
        raise ValueError(f"the {what} {beside} is damaged (its checksum does not fit)")
    return head, tensors_of(content, beside)


def _own_digest(head: Any) -> str:
    return hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()


def digest(arrays: Mapping[str, "Tensor | np.ndarray"]) -> str:
    """Sixteen hexadecimal digits of names, shapes and bytes.

    >>> digest({"a": np.zeros(2)}) == digest({"a": np.zeros(2)}) != digest({"a": np.ones(2)})
    True
    """
    seen = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(torch.as_tensor(arrays[name]).detach().cpu().numpy())
        seen.update(f"{name} {array.dtype} {array.shape};".encode())
        seen.update(array.tobytes())
    return seen.hexdigest()[:16]


def first_difference(there: Any, here: Any, place: str = "") -> tuple[str, Any, Any] | None:
    """Where two JSON values first differ, and their values there.

    >>> first_difference({"config": {"seed": 1}, "path": "fused"}, {"config": {"seed": 2}, "path": "fused"})
    ('config.seed', 1, 2)
    """
    if isinstance(there, dict) and isinstance(here, dict) and set(there) == set(here):
        pairs = [(f"{place}.{key}".lstrip("."), there[key], here[key]) for key in here]
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        pairs = [(f"{place}[{i}]", a, b) for i, (a, b) in enumerate(zip(there, here, strict=True))]
    else:
        return None if there == here else (place or "the run", there, here)
    return next((found for name, a, b in pairs if (found := first_difference(a, b, name)) is not None), None)
