"""The compiled core: sampler, training step and optimisers in C++ (`src/native/`), built when the package is installed.

Without it (no C++ compiler was found) everything works in Python, slower. The environment variable
CAUSAL_CIRCUITS_PURE=1 leaves it aside.
"""

import os
import warnings
from functools import cache
from importlib import import_module
from types import ModuleType

# Sequences that are drawn, or trained on, without the core before it is said that it is missing.
SAID_FROM = 10_000


@cache
def _module() -> ModuleType | None:
    if os.environ.get("CAUSAL_CIRCUITS_PURE") == "1":
        return None
    try:
        return import_module("causal_circuits._native")
    except ModuleNotFoundError:
        return None


def available() -> bool:
    """Whether the compiled core is there.

    >>> available() in (True, False)
    True
    """
    return _module() is not None


def core() -> ModuleType:
    """The compiled core; ask `available` first."""
    module = _module()
    if module is None:
        raise ImportError(
            "causal_circuits was installed without its compiled core: install a C++ compiler and reinstall"
        )
    return module


def warn_if_missing(n_sequences: int) -> None:
    """Say once a process that the core is missing, when many sequences are asked for; not where it is left aside.

    Args:
        n_sequences: how many will be drawn or trained on.
    """
    if n_sequences > SAID_FROM and not available() and os.environ.get("CAUSAL_CIRCUITS_PURE") != "1":
        _warn()


@cache
def _warn() -> None:
    warnings.warn(
        "causal_circuits was installed without its compiled core (no C++ compiler was found): it works, some ten times "
        "slower; install a compiler (g++ or clang) and reinstall it",
        RuntimeWarning,
        stacklevel=4,
    )
