"""Disentangled transformers as HookedTransformers.

Axes used throughout, in TransformerLens's words:

* ``batch``: sequences; ``pos``, ``query_pos``, ``key_pos``: context positions 0 .. n_ctx - 1
* ``head_index``: heads of one layer; ``d_vocab``: tokens; ``d_model``: coordinates of the residual stream
* ``n_ctx``: context length; d_block = d_vocab + n_ctx is the width of one [token | position] copy

This folder is the one door to `transformer_lens`, which is imported when the first model is built.
"""

from causal_circuits.models.acceptance import attachments
from causal_circuits.models.annotation import HookedTransformer
from causal_circuits.models.bridge import as_bridge
from causal_circuits.models.build import (
    attention_block,
    check_head,
    check_model,
    disentangled_transformer,
    live_heads,
    match_blocks,
    plant_circuit,
    reduced_transformer,
    warm_readout,
    warm_start,
)
from causal_circuits.models.decoy import plant_decoy
from causal_circuits.models.equivalence import disentangle, entangle
from causal_circuits.models.files import load_model, save_model
from causal_circuits.models.layout import Layout, Slot, has_layout, layout_of, slots
from causal_circuits.models.ordinary import ordinary_transformer
from causal_circuits.models.structured import (
    PROBABILITY_FLOOR,
    check_forward,
    log_probs,
    logits,
    plain_forward,
    structured_logits,
)

__all__ = [
    "PROBABILITY_FLOOR",
    "HookedTransformer",
    "Layout",
    "Slot",
    "as_bridge",
    "attachments",
    "attention_block",
    "check_forward",
    "check_head",
    "check_model",
    "disentangle",
    "disentangled_transformer",
    "entangle",
    "has_layout",
    "layout_of",
    "live_heads",
    "load_model",
    "log_probs",
    "logits",
    "match_blocks",
    "ordinary_transformer",
    "plain_forward",
    "plant_circuit",
    "plant_decoy",
    "reduced_transformer",
    "save_model",
    "slots",
    "structured_logits",
    "warm_readout",
    "warm_start",
]
