"""Files that are whole or not there: each is written beside its place, flushed to disk, and moved there.

Models, records, checkpoints and results all go through `write_files`. A process that is killed at any moment, or a
disk that is full, leaves the earlier files as they were. Tensors are safetensors: nothing is ever unpickled.
`write_checked` adds checksums, so that `read_checked` notices a file that was truncated or altered later; rows of an
array that grows on disk have a checksum each (`row_checksum`, `read_rows`). What is damaged is refused by a ValueError.
A checksum finds accidents, not forgeries: contents forged under a checksum that fits are taken.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

LONGEST_JSON = 2**26  # bytes; the JSON of a model, a record or a checkpoint is a few kilobytes
# What safetensors raises for what is none (unknown dtypes, sizes that overflow, a thousand axes).
UNREADABLE_TENSORS = (SafetensorError, KeyError, TypeError, OverflowError, RuntimeError)


def write_files(folder: str | os.PathLike[str], contents: Mapping[str, bytes | str]) -> Path:
    """Write files of a folder (made if missing), each the whole new one or the old one; returns the folder.

    All are written out before the first is moved to its place; they are moved in the order given. A link in the place
    of a file is replaced, not followed.

    Raises:
        OSError: the disk is full, or the folder cannot be written to; every file that was there is unharmed.

    >>> with TemporaryDirectory() as folder:
    ...     [path.name for path in write_files(folder, {"numbers.json": "[1, 2]"}).iterdir()]
    ['numbers.json']
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts = {folder / f"{name}.part": folder / name for name in contents}
    try:
        for part, content in zip(parts, contents.values(), strict=True):
            part.unlink(missing_ok=True)  # left by a process that was killed, or a link to somewhere else
            with part.open("xb") as file:
                # a path in a text may hold bytes that are no UTF-8, as Python reads them from the command line
                file.write(content.encode(errors="surrogateescape") if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
        for part, path in parts.items():
            os.replace(part, path)
    finally:
        for part in parts:
            with suppress(OSError):
                part.unlink()
    return folder


def plain_values(result: object) -> Any:
    """A result of this package as JSON values: dataclasses as objects, tensors as lists, NaN and infinity as null.

    >>> plain_values(cc.circuits.OnsetInterval(mean=20.0, low=10.0, high=30.0, never=float("nan")))
    {'mean': 20.0, 'low': 10.0, 'high': 30.0, 'never': None}
    """
    if is_dataclass(result) and not isinstance(result, type):
        return {field.name: plain_values(getattr(result, field.name)) for field in fields(result)}
    if isinstance(result, Tensor):
        return plain_values(result.tolist())
    if isinstance(result, Mapping):
        return {str(key): plain_values(value) for key, value in result.items()}
    if isinstance(result, list | tuple):
        return [plain_values(value) for value in result]
    if isinstance(result, float):
        return result if isfinite(result) else None
    if isinstance(result, Path):
        return str(result)
    if result is None or isinstance(result, str | bool | int):
        return result
    raise ValueError(f"only results made of numbers, text, tensors and dataclasses can be exported: got {type(result)}")


def read_json(path: str | os.PathLike[str]) -> Any:
    """The values of a JSON file.

    Raises:
        ValueError: it is something else, or longer than any file of ours.
        OSError: there is no such file.
    """
    size = _size(path)
    if size > LONGEST_JSON:
        raise ValueError(f"{path} is longer than any of ours: {size:,} bytes")
    try:
        return json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _size(path: str | os.PathLike[str]) -> int:
    """Bytes of a file; a ValueError for a folder, a device or a pipe."""
    size = Path(path).stat().st_size
    if not Path(path).is_file():
        raise ValueError(f"{path} is not a file")
    return size


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as the content of a safetensors file."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ValueError: the file is truncated, is something else, or is larger than this machine's memory.
    """
    _size(path)
    try:
        return load(Path(path).read_bytes())
    except (*UNREADABLE_TENSORS, MemoryError) as error:
        said = " ".join(str(error).split()) or "longer than this machine's memory"
        raise ValueError(f"{path} is not a readable safetensors file: {said[:200]}") from error


# ---- checksums


def write_checked(
    folder: str | os.PathLike[str], name: str, head: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None
) -> Path:
    """Write `name.json`, and `name.safetensors` if there are tensors, with checksums of both; returns the JSON's path.

    The JSON is moved to its place last: the two are there when it is. In `head`, "format" names their schema.

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
    """The values and the tensors that `write_checked` wrote, both whole; `what` is what an error calls the file.

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
    return head, load(content)


def _own_digest(head: Any) -> str:
    return hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()


def row_checksum(row: np.ndarray) -> int:
    """CRC-32 of a row's type, shape and bytes: 2 microseconds a kilobyte."""
    return zlib.crc32(row.tobytes(), zlib.crc32(f"{row.dtype.str} {row.shape}".encode()))


def read_rows(path: str | os.PathLike[str], checksums: Sequence[int], for_writing: bool = False) -> np.memmap:
    """An array of rows in a .npy file, memory-mapped; `checksums` are those of its first rows.

    Raises:
        ValueError: the file is missing, truncated, or one of these rows was altered.
    """
    try:
        rows = np.lib.format.open_memmap(path, mode="c")  # not "r+": that would lengthen a truncated file
        fits = [row_checksum(row) for row in rows[: len(checksums)]] == list(checksums)
    except Exception as error:  # numpy raises some ten kinds for a damaged header
        raise ValueError(f"the array {path} is damaged ({' '.join(str(error).split())[:200]})") from error
    if not fits:
        raise ValueError(f"the array {path} is damaged (its checksum does not fit)")
    return np.lib.format.open_memmap(path, mode="r+") if for_writing else rows


def digest(arrays: Mapping[str, "Tensor | np.ndarray"]) -> str:
    """Sixteen hexadecimal digits of names, shapes and bytes."""
    seen = hashlib.sha256()
    for name in sorted(arrays):
        tensor = torch.as_tensor(arrays[name]).detach().cpu().contiguous()
        seen.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape) or (1,)};".encode())
        seen.update(tensor.flatten().view(torch.uint8).numpy().tobytes())  # numpy has no bfloat16
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
