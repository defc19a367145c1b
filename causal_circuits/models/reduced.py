"""The reduced model's class. It derives from TransformerLens's, so this module is imported when a model is built."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from causal_circuits.models.hooked import HookedTransformer
from causal_circuits.models.layout import Block, Layout, layout_of, masked


class ReducedTransformer(HookedTransformer):  # type: ignore[misc]  # untyped
    """A HookedTransformer of which gradient descent moves A1 and A2 alone, copies and unpickled ones too.

    The gradient of every other entry of ``W_Q`` is set to zero by a hook on the parameter. Neither ``copy.deepcopy``
    nor pickle takes such hooks along, so they are registered again when a copy gets its state.
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.mask_gradients()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch does it; `assign` brings new parameters, which are masked anew."""
        loaded = super().load_state_dict(state_dict, strict=strict, assign=assign)
        if assign:
            self.mask_gradients()
        return loaded

    def mask_gradients(self) -> None:
        """Gradients of all entries of W_Q but those of A1 and A2 are zero from here on, so no optimiser moves them."""
        layout = layout_of(self)
        for layer, blocks in enumerate(_reduced_blocks(layout)):
            weights = self.blocks[layer].attn.W_Q
            mask = torch.zeros_like(weights)
            for block in blocks:
                mask[block] = 1.0
            is_trained = weights.requires_grad
            weights.requires_grad_(True)  # torch registers hooks on nothing else; they stay when it is switched off
            weights.register_hook(partial(masked, mask=mask))  # type: ignore[no-untyped-call]
            weights.requires_grad_(is_trained)


def _reduced_blocks(layout: Layout) -> tuple[list[Block], list[Block]]:
    """Where ``W_Q[0]`` holds A1, head by head, and ``W_Q[1]`` holds A2, copy by copy."""
    named, d_vocab, copiers = layout.slots(), layout.d_vocab, range(layout.n_heads[0])
    a1: list[Block] = [(head, named["position"].slice, slice(0, layout.n_ctx)) for head in copiers]
    if len(copiers) == 1:
        return a1, [(0, named["token"].slice, slice(0, d_vocab))]
    return a1, [(0, named[f"L0H{h}.token"].slice, slice(d_vocab * h, d_vocab * (h + 1))) for h in copiers]
