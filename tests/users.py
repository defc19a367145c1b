"""What users have: models built by TransformerLens from a config of their own, with random weights; labels."""

import warnings
from typing import Any

import torch
from torch import nn

import causal_circuits as cc
from causal_circuits.models import HookedTransformer, hooked

SIZES = {"n_layers": 2, "n_heads": 4, "d_head": 4, "d_model": 16, "n_ctx": 6, "d_vocab": 3, "attn_only": True}
DEFAULTS = {**SIZES, "normalization_type": None, "device": "cpu", "dtype": torch.float64}


def randomized(model: nn.Module, scale: float = 0.6) -> HookedTransformer:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def bridge(**fields: Any) -> HookedTransformer:
    """A TransformerBridge, which both lines of TransformerLens have."""
    config = DEFAULTS | fields
    with warnings.catch_warnings(action="ignore"):
        return randomized(hooked.boot_bridge(config, dtype=config["dtype"], device=torch.device("cpu")))


def users_model(**fields: Any) -> HookedTransformer:
    """A HookedTransformer; on TransformerLens 4 ours, and where ours does not know a field, a bridge."""
    with warnings.catch_warnings(action="ignore"):
        try:
            return randomized(hooked.build_transformer(DEFAULTS | {"init_weights": False} | fields))
        except ValueError:
            if hooked.LibraryTransformer is not None:
                raise
            return bridge(**fields)


def labels_of(batch: cc.Batch, seed: int = 0) -> torch.Tensor:
    """Targets drawn from the laws of a batch."""
    return torch.multinomial(batch.target_probs, 1, generator=torch.Generator().manual_seed(seed))[:, 0]
