"""Compiled kernels: vectors and random numbers for the numba code in `tasks` and `models`. Imports nothing of ours.

numba is optional (the extra "fast"). `available` says whether it is installed; the other files here need it.
"""

from importlib.util import find_spec


def available() -> bool:
    """Whether numba is installed."""
    return find_spec("numba") is not None
