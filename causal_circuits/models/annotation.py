"""The type of `model` arguments, without the seconds that importing TransformerLens takes."""

import sys
from abc import ABC
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from causal_circuits.models.hooked import LibraryTransformer

    HookedTransformer = LibraryTransformer
else:
    _MODELS = {("transformer_lens", "HookedTransformer"), ("causal_circuits", "Transformer")}
    _BRIDGE = ("transformer_lens", "TransformerBridge")

    class HookedTransformer(ABC):  # noqa: B024  # nobody derives from it
        """A transformer with TransformerLens's hooks: a HookedTransformer, or a TransformerBridge of TransformerLens 4.

        The bridges of 3.9 are none: they call `hook_pattern` after the pattern has been used, so that no edit works.

        >>> isinstance(cc.disentangled_transformer(d_vocab=3, n_ctx=4), HookedTransformer)
        True
        """

        @classmethod
        def __subclasshook__(cls, other: type) -> bool:
            is_old = "transformer_lens.HookedTransformer" in sys.modules
            accepted = _MODELS if is_old else {*_MODELS, _BRIDGE}
            return any((base.__module__.partition(".")[0], base.__name__) in accepted for base in other.__mro__)
