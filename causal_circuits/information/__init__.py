"""Information between positions and the gradient it predicts: exact, at finite context, estimated, compared."""

from typing import TYPE_CHECKING

from causal_circuits._moved import missing
from causal_circuits.information.comparison import (
    EdgeFormation,
    GradientComparison,
    RivalPosition,
    closest_rivals,
    compare_gradient,
    edge_formation,
    through_softmax,
)
from causal_circuits.information.estimate import InformationEstimate, estimate_gradient, estimate_information
from causal_circuits.information.exact import (
    Information,
    chi_squared_information,
    mutual_information,
)
from causal_circuits.information.finite_context import finite_context_gradient, measured_gradient
from causal_circuits.information.gradient import predicted_gradient, score_gradient_of
from causal_circuits.information.match_gradient import match_gradient
from causal_circuits.information.matches import key_sets

__all__ = [
    "EdgeFormation",
    "GradientComparison",
    "Information",
    "InformationEstimate",
    "RivalPosition",
    "chi_squared_information",
    "closest_rivals",
    "compare_gradient",
    "edge_formation",
    "estimate_gradient",
    "estimate_information",
    "finite_context_gradient",
    "key_sets",
    "match_gradient",
    "measured_gradient",
    "mutual_information",
    "predicted_gradient",
    "score_gradient_of",
    "through_softmax",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """No name is added; one that is gone says what to use instead."""
        raise missing(__name__, name)
