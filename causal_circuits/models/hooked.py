"""The one door to TransformerLens, which is imported when the first model is built: its import takes seconds."""

import sys
import warnings
from abc import ABC
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer as HookedTransformer
else:

    class HookedTransformer(ABC):  # noqa: B024  # nobody derives from it
        """TransformerLens's HookedTransformer, as annotations name it: its instances are instances of this class.

        >>> from causal_circuits import disentangled_transformer
        >>> isinstance(disentangled_transformer(d_vocab=3, n_ctx=4), HookedTransformer)
        True
        """

        @classmethod
        def __subclasshook__(cls, other: type) -> bool:
            transformer_lens = sys.modules.get("transformer_lens")
            return transformer_lens is not None and issubclass(other, transformer_lens.HookedTransformer)


def build_transformer(config: Any, cls: type[nn.Module] | None = None) -> HookedTransformer:
    """A HookedTransformer with every parameter zero; TransformerLens's notice of its end is not repeated.

    Args:
        config: a HookedTransformerConfig, or its fields as a dict.
        cls: a subclass to make one of.
    """
    import transformer_lens

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="HookedTransformer is deprecated", category=DeprecationWarning)
        model = (cls or transformer_lens.HookedTransformer)(config)
    for parameter in model.parameters():
        parameter.data.zero_()
    return model
