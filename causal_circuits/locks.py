"""One process at a time in a folder: two would write over each other's unfinished files.

A file is written beside its place and moved there. With two writers of 400 writes each, nearly half of all reads found
a damaged file.

`train(..., checkpoints=...)` and every analysis's --out take an exclusive lock on `DIR/.lock` (the kernel's own, by
filelock), which ends with its process, also by kill -9.
"""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"  # in the folder, while a process works there


@contextmanager
def exclusive_lock(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Within, no other process gets an exclusive lock on the same folder (made if missing; subfolders are not meant).

    Where the file system has no locks, or the folder may only be read, no process is kept out.

    Raises:
        ValueError: another process holds the lock; it names its number and host.
        OSError: the folder cannot be made.

    >>> with TemporaryDirectory() as folder:
    ...     with exclusive_lock(folder):
    ...         print([path.name for path in Path(folder).iterdir()])
    ...     print(list(Path(folder).iterdir()))
    ['.lock']
    []
    """
    path = Path(folder) / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
        path.write_text(f"{os.getpid()} on {platform.node()}")
    except Timeout:
        raise ValueError(
            f"one process at a time works in a folder, and {path.parent} is taken by process {holder(path.parent)}: "
            "wait for its end, or choose another folder"
        ) from None
    except OSError:  # no locks here, or a full disk
        pass
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):
                path.unlink()  # still locked: whoever opened this file before sees that it is gone, and opens anew
        lock.release()


def holder(folder: str | os.PathLike[str]) -> str:
    """The process that works in a folder, and its host; "unknown" if none is to be read."""
    with suppress(OSError):
        return (Path(folder) / LOCK).read_text(errors="replace")[:99] or "unknown"
    return "unknown"
