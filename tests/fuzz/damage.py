"""How files and values are damaged: by accident, or by someone who knows the formats and writes checksums that fit."""

import hashlib
import json
import os
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

NASTY: list[Any] = [None, True, -1, 0, 1, 2**31, 2**63, 10**40, -0.0, 0.5, 1e308, float("nan"), float("inf"), "", "x"]
NASTY += ["\x00", "../../etc/passwd", "/etc/passwd", "9" * 5000, [], [[]], {}, {"a": []}, [None] * 50, [-1, 0, 1]]
NOT_JSON = [b"[" * 100_000, b'{"a":' * 50_000, b"", b"\xff\xfe", b"null", b"[1e999]", b"NaN", b"[" * 900 + b"]" * 900]
# What a .npy header may claim: terabytes, nothing, negative sizes, objects, other kinds, things that are no header.
DTYPES = [
    "'<f4'",
    "'<f8'",
    "'>f4'",
    "'|O'",
    "'S0'",
    "'<U9'",
    "'<M8[ns]'",
    "None",
    "5",
    "('<f4',)",
    "('<f4', (2,))",
    "[]",
]
SHAPES = ["(3, 1, 1, 5, 5)", "(1099511627776,)", "(9,)", "()", "(0, 5)", "(-1, 5)", "(True,)", "('x',)", "9", "(2.5,)"]
SHAPES += ["(99999999999999999999999,)", "(" + "9" * 5000 + ",)"]
NO_HEADERS = ["-" * 9000 + "1", "(" * 9000, "1" + "+1j" * 3000, "{{}:1}", "", "{'descr':'<f4'}", "__import__('os')"]
TENSORS = ["F32", "F64", "BF16", "I64", "BOOL", "U8", "C64", "F4", "F6_E2M3", "F8_E8M0", "XX", "", 5, None]


# ---- by accident


def damaged_bytes(content: bytes, chance: random.Random) -> bytes:
    """Truncated, flipped, doubled, padded, replaced."""
    data = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 8])):
        at, n = chance.randrange(len(data) + 1), chance.randrange(1, 20)
        kind = chance.randrange(6)
        if kind == 0:
            del data[at:]
        elif kind == 1 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 2:
            data[at:at] = chance.randbytes(n)
        elif kind == 3:
            del data[at : at + n]
        elif kind == 4:
            data[at : at + n] = data[:n]
        else:
            data[:8] = chance.choice([b"\xff" * 8, b"\x00" * 8, (2**40).to_bytes(8, "little")])
    return bytes(data)


def damaged_value(value: Any, chance: random.Random) -> Any:
    """JSON values with one of them replaced, removed, doubled or renamed."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        name, changed = chance.choice(list(value)), dict(value)
        kind = chance.randrange(4)
        if kind == 0:
            del changed[name]
        elif kind == 1:
            changed[name + "x"] = changed.pop(name)
        else:
            changed[name] = damaged_value(value[name], chance)
        return changed
    if isinstance(value, list) and value and chance.random() < 0.8:
        at, longer = chance.randrange(len(value)), list(value)
        longer[at : at + chance.choice([0, 1, 1, 1])] = [damaged_value(value[at], chance)]
        return longer
    return nested(chance) if chance.random() < 0.05 else chance.choice(NASTY)


def nested(chance: random.Random) -> Any:
    """A list in a list in a list ..."""
    value: Any = 0
    for _ in range(chance.choice([20, 45, 55, 90, 110, 300])):
        value = [value] if chance.random() < 0.5 else {"tuple": [value]}
    return value


def damaged_text(text: str, chance: random.Random) -> bytes:
    """A JSON file with damaged values, or damaged bytes, or brackets without end."""
    kind = chance.randrange(8)
    if kind == 0:
        return chance.choice(NOT_JSON)
    if kind <= 2:
        return damaged_bytes(text.encode(), chance)
    return json.dumps(damaged_value(json.loads(text), chance)).encode()


def damaged_array(
    chance: random.Random, kinds: str = "int64 int8 uint8 float32 float64 bool complex64 U3 object"
) -> Any:
    """An array that is no batch of tokens, or nearly one."""
    shape = [chance.choice([0, 1, 2, 5, 40]) for _ in range(chance.choice([0, 1, 2, 2, 2, 3]))]
    kind = chance.choice(kinds.split())
    values = np.random.default_rng(chance.randrange(2**32)).integers(-1, 5, size=shape)
    array = values.astype(kind) if kind != "object" else np.array([None, [1], "x"], dtype=object)
    if array.dtype.kind == "f" and array.size and chance.random() < 0.5:
        array.flat[chance.randrange(array.size)] = chance.choice([np.nan, np.inf, -1e30])
    return chance.choice([array, array.tolist(), torch.as_tensor(array) if array.dtype.kind in "iufb" else array])


def damage_file(path: Path, content: bytes, chance: random.Random) -> None:
    """A file damaged, gone, or something else in its place: a folder, a pipe, a device, a link, a file of terabytes."""
    if chance.random() < 0.06:
        replace_file(path, chance)
    elif path.suffix == ".json":
        put(path, damaged_text(content.decode(), chance))
    else:
        put(path, damaged_bytes(content, chance))


def put(path: Path, content: bytes) -> None:
    """A regular file in the place of whatever is there."""
    remove(path)
    path.write_bytes(content)


def remove(path: Path) -> None:
    """Whatever is there."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def replace_file(path: Path, chance: random.Random) -> None:
    """Nothing, or what is no regular file, where a file was."""
    remove(path)
    kind = chance.randrange(6)
    if kind == 1:
        path.mkdir()
    elif kind == 2:
        os.mkfifo(path)
    elif kind == 3:
        path.symlink_to(
            chance.choice(["/dev/zero", "/dev/null", "/dev/urandom", "nowhere", path.name, "/etc/hostname"])
        )
    elif kind == 4:
        path.touch()
        os.truncate(path, chance.choice([0, 2**30, 2**40]))  # takes no room on disk
    elif kind == 5:
        path.write_bytes(chance.choice(NOT_JSON))


# ---- on purpose


def crafted_npy(chance: random.Random) -> bytes:
    """A .npy file that claims what it should not."""
    header = chance.choice(NO_HEADERS)
    if chance.random() < 0.8:
        order = chance.choice(["True", "False", "False", "None"])
        dtype, shape = (values[0] if chance.random() < 0.6 else chance.choice(values) for values in (DTYPES, SHAPES))
        header = f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, }}"
    version = chance.choice([(1, 0), (1, 0), (1, 0), (2, 0), (3, 0), (9, 9)])
    text = header.encode() + b"\n"
    length = struct.pack("<H" if version[0] == 1 else "<I", chance.choice([len(text)] * 9 + [2**16 - 1]))
    return b"\x93NUMPY" + bytes(version) + length + text + bytes(chance.choice([0, 4, 36, 300, 300, 400]))


def crafted_tensors(content: bytes, chance: random.Random) -> bytes:
    """A safetensors file whose header says something else."""
    n = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + n])
    if chance.random() < 0.3:
        header = damaged_value(header, chance)
    else:
        about = header[chance.choice([name for name in header if name != "__metadata__"])]
        what = chance.choice(["dtype", "shape", "data_offsets", "both"])
        if what in ("dtype", "both"):
            about["dtype"] = chance.choice(TENSORS)
        if what in ("shape", "both"):
            about["shape"] = chance.choice([[], [0, 2**62], [0, 2**64], [2**40], [1] * 1000, [-1], [2**32] * 2, ["x"]])
        if what == "data_offsets":
            about["data_offsets"] = chance.choice([[0, 0], [0, 2**62], [2**62, 0], [-1, 4], [0]])
        if what == "both":
            at = about["data_offsets"][0] if isinstance(about["data_offsets"], list) else 0
            about["shape"], about["data_offsets"] = [0, *about["shape"]], [at, at]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + n :]


def reseal(path: Path) -> None:
    """Give the JSON of `write_checked` the checksums of what is there now; as it is if that cannot be done."""
    try:
        head = json.loads(path.read_bytes())
        head.pop("own sha256", None)
        beside = path.with_suffix(".safetensors")
        if beside.is_file() and "sha256" in head:
            content = beside.read_bytes()
            head |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()
        path.write_text(json.dumps({**head, "own sha256": digest}))
    except (ValueError, AttributeError, TypeError, RecursionError):
        return


def forge(path: Path, chance: random.Random) -> None:
    """Change the values or the tensors behind a checked JSON file, and its checksums with them."""
    beside = path.with_suffix(".safetensors")
    if beside.is_file() and chance.random() < 0.5:
        content = beside.read_bytes()
        beside.write_bytes(crafted_tensors(content, chance) if chance.random() < 0.8 else other_tensors(chance))
    else:
        path.write_text(json.dumps(damaged_value(json.loads(path.read_bytes()), chance)))
    reseal(path)


def other_tensors(chance: random.Random) -> bytes:
    """A sound safetensors file of something else."""
    from safetensors.torch import save

    shape = chance.choice([(), (0,), (3,), (2, 2), (0, 7), (1,) * 40])
    dtype = chance.choice([torch.float32, torch.float64, torch.int64, torch.bool, torch.bfloat16, torch.complex64])
    return save({chance.choice(["losses", "steps", "weights.0.W_U", "t0", "x"]): torch.zeros(shape).to(dtype)})
