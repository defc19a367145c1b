"""One process at a time in a folder: two would write over each other's unfinished files.

`train(..., checkpoints=...)` and every analysis's --out go through `alone_in`.
"""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"  # in the folder, while a process is alone there


@contextmanager
def alone_in(folder: str | os.PathLike[str], *, wait: bool = False) -> Iterator[None]:
    """Within, no other process gets into the same folder (made if missing) by this door.

    The system itself takes the lock back when a process ends, also by kill -9. Where there are no locks (not a POSIX
    system, some network file systems), or the folder may only be read, nobody is kept out.

    Args:
        folder: of one run; its subfolders are not meant.
        wait: until the other process has left, where it would be refused.

    Raises:
        ValueError: another process is in there; it names its number and host.
        OSError: the folder cannot be made.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with alone_in(folder):
    ...         print([path.name for path in Path(folder).iterdir()])
    ...     print(list(Path(folder).iterdir()))
    ['.lock']
    []
    """
    path = Path(folder) / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = _locked(path, wait)
    try:
        yield
    finally:
        if lock is not None:
            if _is_at(path, lock):
                path.unlink()
            lock.close()


def _locked(path: Path, wait: bool) -> IO[str] | None:
    """The file, locked, with this process's number in it; None where nothing can be locked."""
    while fcntl is not None:
        try:
            file = path.open("a+", encoding="utf-8", errors="replace")  # whatever a file of this name holds
        except OSError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise ValueError(_refusal(path, file)) from None
        except OSError:
            file.close()
            return None
        if _is_at(path, file):
            with suppress(OSError):  # a full disk: the lock holds, only its number is missing
                file.truncate(0)
                print(f"{os.getpid()} on {platform.node()}", end="", file=file, flush=True)
            return file
        file.close()  # whoever had it before has taken the file away meanwhile
    return None


def _refusal(path: Path, file: IO[str]) -> str:
    with file:
        file.seek(0)
        process = file.read(99) or "unknown"
    return (
        f"one process at a time works in a folder, and {path.parent} is taken by process {process}: wait for its end, "
        "or choose another folder"
    )


def _is_at(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
