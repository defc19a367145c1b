"""What a compiled kernel was made from: the key under which numba keeps it on disk.

numba looks at the file of the outermost function alone: a kernel would outlive a change of the pieces in other files,
and the next run would compute with the old ones. It also looks at the values that a function closes over.
"""

from collections.abc import Callable
from functools import cache
from hashlib import sha256
from inspect import unwrap  # numba compiles the function itself, not a run-time type check around it
from pathlib import Path
from types import CellType, FunctionType
from typing import Any


def made_from(function: Callable[..., Any], *files: str) -> Callable[..., Any]:
    """A function without a closure, now closing over the fingerprint of its files, which it does not use.

    (As a default argument the fingerprint would cost more than a small kernel at every call.)

    >>> def double(x):
    ...     return 2 * x
    >>> made_from(double)(4), made_from(double).__closure__[0].cell_contents == fingerprint()
    (8, True)
    """
    plain = unwrap(function)
    code = plain.__code__.replace(co_freevars=("sources",))
    return FunctionType(code, plain.__globals__, plain.__name__, plain.__defaults__, (CellType(fingerprint(*files)),))


@cache
def fingerprint(*files: str) -> int:
    """A hash of Python files, with those of this folder; a folder stands for the files in it.

    >>> from causal_circuits import graphs
    >>> fingerprint() == fingerprint(), fingerprint() == fingerprint(graphs.__file__)
    (True, False)
    """
    paths = [Path(__file__).parent, *map(Path, files)]
    found = sorted({path for given in paths for path in (given.glob("*.py") if given.is_dir() else [given])})
    return int(sha256(b"\0".join(path.read_bytes() for path in found)).hexdigest()[:12], 16)
