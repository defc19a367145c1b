"""Memory that a compiled kernel works in, kept from call to call."""

import threading
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

Sizes = ParamSpec("Sizes")
Made = TypeVar("Made")


class KeptPerThread(Generic[Sizes, Made]):
    """What `make(*sizes)` gave this thread, kept while it is asked for the same sizes.

    >>> memory = KeptPerThread(bytearray)
    >>> memory(3) is memory(3), memory(3) is memory(4)
    (True, False)
    """

    def __init__(self, make: Callable[Sizes, Made]) -> None:
        self._make, self._own = make, threading.local()

    def __call__(self, *sizes: Sizes.args, **named: Sizes.kwargs) -> Made:
        """What was made for these sizes."""
        if getattr(self._own, "sizes", None) != (sizes, named):
            self._own.made, self._own.sizes = self._make(*sizes, **named), (sizes, named)
        made: Made = self._own.made
        return made
