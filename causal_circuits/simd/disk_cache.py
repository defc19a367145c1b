# mypy: ignore-errors
# (numba's classes have no useful static types)
"""Compiled kernels on disk: numba's cache, with a checksum behind every file, and never a reason to stop.

numba keeps what it has compiled in `__pycache__` beside the source, in a folder of the user's, or in NUMBA_CACHE_DIR.
Left to itself it unpickles and runs whatever a crash or a full disk has left there, and raises an error where it
can write to none of these folders.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile

DIGEST = sha256().digest_size


def compile_kernel(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`numba.njit` of a function, kept on disk if there is a folder to write to; a warning says so once if not.

    What stands in a file that was truncated or altered is compiled again, and the file replaced.
    """
    kernel = numba.njit(**options)(function)
    try:
        kernel._cache = _CheckedCache(kernel.py_func)
    except (RuntimeError, OSError):  # numba: "no locator available"
        _warn_once()
    return kernel


class _CheckedCache(FunctionCache):
    """numba's cache of one function, over files with checksums."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file = _CheckedFiles(self._cache_path, self._impl.filename_base, stamp)

    def save_overload(self, signature: Any, compiled: Any) -> None:
        try:
            super().save_overload(signature, compiled)
        except OSError:  # the disk is full, or the folder may no longer be written to
            _warn_once()


class _CheckedFiles(IndexDataCacheFile):
    """An index and data files, each with its SHA-256 behind it; one that is not whole counts as not there.

    Data files carry their key: the index is written first, so that for a moment, or for ever after a crash, it may
    lead to what an earlier version of the source has left there.
    """

    def save(self, key: Any, data: Any) -> None:
        super().save(key, (self._source_stamp, key, data))

    def load(self, key: Any) -> Any:
        found = super().load(key)
        return found[2] if found is not None and found[:2] == (self._source_stamp, key) else None

    @contextmanager
    def _open_for_write(self, path: str) -> Iterator[BytesIO]:
        with super()._open_for_write(path) as file:
            content = BytesIO()
            yield content
            file.write(content.getvalue() + sha256(content.getvalue()).digest())

    def _load_index(self) -> dict[Any, str]:
        return super()._load_index() if _is_whole(self._index_path) else {}

    def _load_data(self, name: str) -> Any:
        if not _is_whole(self._data_path(name)):
            raise FileNotFoundError(self._data_path(name))  # which the caller takes for: compile it
        return super()._load_data(name)


def _is_whole(path: str) -> bool:
    try:
        content = Path(path).read_bytes()
    except OSError:
        return False
    return sha256(content[:-DIGEST]).digest() == content[-DIGEST:]


@cache
def _warn_once() -> None:
    warnings.warn(
        "compiled kernels cannot be kept, neither in the package's folder nor in the user's cache, so every process "
        "compiles them for up to half a minute: set NUMBA_CACHE_DIR to a folder that can be written to",
        stacklevel=3,
    )
