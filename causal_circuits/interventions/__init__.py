"""Break a model on purpose and see what its loss says: ablation, edge knock-out, activation patching.

Every function gives the model back as it was - hooks, weights, gradients - also after an exception, and works
on any HookedTransformer whose prediction is read at the last position. Effects are losses in nats, paired
sequence by sequence with the untouched run.
"""

from causal_circuits.interventions.ablation import ABLATION_METHODS, AblationMethod, AblationResult, ablate_heads
from causal_circuits.interventions.knock_out import KnockOut, KnockOutMethod, knock_out_edges
from causal_circuits.interventions.patching import PatchingResult, patch_activations

__all__ = [
    "ABLATION_METHODS",
    "AblationMethod",
    "AblationResult",
    "KnockOut",
    "KnockOutMethod",
    "PatchingResult",
    "ablate_heads",
    "knock_out_edges",
    "patch_activations",
]
