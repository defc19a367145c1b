"""Break a model on purpose and see what its loss says: ablation, knock-out, patching, causal scrubbing.

Every function gives the model back as it was - hooks, weights, gradients, settings - also after an exception, and works
on any HookedTransformer whose prediction is read at the last position. Effects are losses in nats unless another
`metric` is asked for, paired sequence by sequence with the untouched run.
"""

from causal_circuits.interventions.ablation import (
    ABLATION_METHODS,
    AblationMethod,
    AblationResult,
    ablate_heads,
    ablate_slots,
)
from causal_circuits.interventions.knock_out import KNOCK_OUT_METHODS, KnockOut, KnockOutMethod, knock_out_edges
from causal_circuits.interventions.measure import other_positions, other_sequences, standard_error
from causal_circuits.interventions.metrics import METRICS, Cost, Metric, make_cost
from causal_circuits.interventions.patching import PatchingResult, patch_activations
from causal_circuits.interventions.path_patching import patch_paths
from causal_circuits.interventions.scrubbing import ScrubbingResult, scrub_hypothesis

__all__ = [
    "ABLATION_METHODS",
    "KNOCK_OUT_METHODS",
    "METRICS",
    "AblationMethod",
    "AblationResult",
    "Cost",
    "KnockOut",
    "KnockOutMethod",
    "Metric",
    "PatchingResult",
    "ScrubbingResult",
    "ablate_heads",
    "ablate_slots",
    "knock_out_edges",
    "make_cost",
    "other_positions",
    "other_sequences",
    "patch_activations",
    "patch_paths",
    "scrub_hypothesis",
    "standard_error",
]
