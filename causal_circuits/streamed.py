"""Arrays that grow on disk row by row, with a checksum of all rows so far: a damaged file is named, never read.

The checksum runs along as rows are written (SHA-256, 1.5 GB a second), so that to say it costs nothing, however long
the array has become. It covers the file's own header and the rows up to a *seal*: what was written after the last seal,
by a process that was then killed, does not count. A file is mapped only if the numbers that its header claims are all
there: mapped for writing, it would be made as large as its header says.
"""

import hashlib
import os
import tokenize
from dataclasses import dataclass
from io import BufferedIOBase
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np

BLOCK = 2**22
HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# What numpy raises for a header that is none: it is a Python literal, read by `ast.literal_eval` (nothing is run).
NO_HEADER = (
    ValueError,
    TypeError,
    IndexError,
    SyntaxError,
    tokenize.TokenError,
    RecursionError,
    MemoryError,
    OverflowError,
)
# The index of a folder with streamed arrays: what a record holds besides them, and their seals.
INDEX, INDEX_FORMAT = "streamed", "causal_circuits.streamed/2"


@dataclass(frozen=True)
class Seal:
    """How many bytes of a file count, and their SHA-256 in hexadecimal digits."""

    bytes: int
    sha256: str


class StreamedArray:
    """A memory-mapped .npy file that is filled row by row.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     array = StreamedArray.new(Path(folder) / "a.npy", (9, 2), np.dtype("float32"))
    ...     array.append(np.float32([1, 2]))
    ...     seal = array.seal()
    ...     array.append(np.float32([3, 4]))                            # not sealed: it does not count
    ...     read_sealed(Path(folder) / "a.npy", seal)[:1].tolist()
    [[1.0, 2.0]]
    """

    def __init__(self, rows: np.memmap, seen: "hashlib._Hash", n_rows: int) -> None:
        self._rows, self._seen, self._n = rows, seen, n_rows

    @classmethod
    def new(cls, path: Path, shape: tuple[int, ...], dtype: "np.dtype") -> "StreamedArray":
        """An empty file with room for shape[0] rows; one that was there is replaced (a link, not what it leads to)."""
        path.unlink(missing_ok=True)
        rows = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        with path.open("rb") as file:
            return cls(rows, hashlib.sha256(file.read(rows.offset)), 0)

    @classmethod
    def reopen(cls, path: Path, seal: Seal, n_rows: int) -> "StreamedArray":
        """Go on after the first `n_rows` rows, which the seal covers; later ones will be written over.

        Raises:
            ValueError: the file is damaged.
        """
        if path.is_symlink():
            raise ValueError(f"the streamed array {path} is a link: it would be written to outside its folder")
        seen = _check(path, seal)
        rows = _opened(path, "r+")
        if not 0 < n_rows <= len(rows) or seal.bytes != rows.offset + n_rows * (rows.nbytes // len(rows)):
            raise ValueError(f"the streamed array {path} is damaged (its seal is not that of {n_rows} rows)")
        return cls(rows, seen, n_rows)

    def append(self, row: np.ndarray) -> None:
        """Write the next row."""
        self._rows[self._n] = row
        self._seen.update(np.ascontiguousarray(row, self._rows.dtype).data)
        self._n += 1

    def rows(self) -> np.ndarray:
        """The rows so far."""
        return self._rows[: self._n]

    def seal(self) -> Seal:
        """Flush to disk; the seal of all rows so far."""
        self._rows.flush()
        row_bytes = self._rows.nbytes // len(self._rows)
        return Seal(self._rows.offset + self._n * row_bytes, self._seen.hexdigest())


def read_sealed(path: str | os.PathLike[str], seal: Seal) -> np.memmap:
    """The whole array, memory-mapped (what is changed in memory stays there); rows after the seal are unchecked.

    Raises:
        ValueError: the file is truncated, or one of its sealed bytes was altered.
    """
    _check(Path(path), seal)
    return _opened(Path(path), "c")


def npy_header(file: BufferedIOBase) -> tuple[tuple[int, ...], "np.dtype"]:
    """The shape and dtype that a .npy file says it holds, the file left where its numbers begin.

    Raises:
        ValueError: it is no .npy file, or says anything but an array of numbers.

    >>> from io import BytesIO
    >>> np.save(file := BytesIO(), np.float32([[1, 2]]))
    >>> npy_header(BytesIO(file.getvalue()))
    ((1, 2), dtype('float32'))
    """
    try:
        version = np.lib.format.read_magic(file)
        shape, _, dtype = HEADERS[version](file)
    except KeyError as error:
        raise ValueError(f"it has .npy version {version}: save it with numpy.save or numpy.savez") from error
    except NO_HEADER as error:
        said = " ".join(str(error).split())
        raise ValueError(f"it is not a readable .npy array: {said[:200]}") from error
    if dtype.hasobject:
        raise ValueError("it holds Python objects (ragged rows?): it must be one rectangular array of numbers")
    if dtype.kind not in "iufb":
        raise ValueError(f"it must be an array of numbers: it is one of {dtype}")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"sizes must be integers of at least 0: it says {shape}")
    return shape, dtype


def _opened(path: Path, mode: Literal["r+", "c"]) -> np.memmap:
    """A file of ours, mapped; its header must say rows that are there."""
    try:
        with path.open("rb") as file:
            shape, dtype = npy_header(file)
            there = path.stat().st_size - file.tell()
        if not shape or prod(shape) * dtype.itemsize > there:
            raise ValueError(f"it says shape {shape} of {dtype}, and {there:,} bytes are there")
        return np.lib.format.open_memmap(path, mode=mode)
    except ValueError as error:
        raise ValueError(f"the streamed array {path} is damaged ({error})") from error


def _check(path: Path, seal: Seal) -> "hashlib._Hash":
    """The running checksum of a file up to its seal; a ValueError that names the file if it does not fit."""
    if type(seal.bytes) is not int or seal.bytes < 0:
        raise ValueError(f"the streamed array {path} has a seal over {seal.bytes!r} bytes")
    if not path.is_file() or path.stat().st_size < seal.bytes:
        raise ValueError(f"the streamed array {path} is damaged (truncated, or missing)")
    seen, left = hashlib.sha256(), seal.bytes
    with path.open("rb") as file:
        while left and (block := file.read(min(left, BLOCK))):
            seen.update(block)
            left -= len(block)
    if seen.hexdigest() != seal.sha256:
        raise ValueError(f"the streamed array {path} is damaged (its checksum does not fit)")
    return seen
