"""Arrays that grow on disk row by row, with a checksum of all rows so far: a damaged file is named, never read.

The checksum runs along as rows are written (SHA-256, 1.5 GB a second), so that to say it costs nothing, however long
the array has become. It covers the file's own header and the rows up to a *seal*: what was written after the last seal,
by a process that was then killed, does not count.
"""

import hashlib
import os
import tokenize
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BLOCK = 2**22
# The index of a folder with streamed arrays: what a record holds besides them, and their seals.
INDEX, INDEX_FORMAT = "streamed", "causal_circuits.streamed/1"


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
        """An empty file with room for shape[0] rows; one that was there is written over."""
        rows = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        with path.open("rb") as file:
            return cls(rows, hashlib.sha256(file.read(rows.offset)), 0)

    @classmethod
    def reopen(cls, path: Path, seal: Seal, n_rows: int) -> "StreamedArray":
        """Go on after the first `n_rows` rows, which the seal covers; later ones will be written over.

        Raises:
            ValueError: the file is damaged.
        """
        seen = _check(path, seal)
        return cls(_opened(path, "r+"), seen, n_rows)

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


def _opened(path: Path, mode: str) -> np.memmap:
    try:
        return np.lib.format.open_memmap(path, mode=mode)
    except (ValueError, SyntaxError, tokenize.TokenError) as error:
        raise ValueError(f"the streamed array {path} is damaged ({error})") from error


def _check(path: Path, seal: Seal) -> "hashlib._Hash":
    """The running checksum of a file up to its seal; a ValueError that names the file if it does not fit."""
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
