"""Training: a task, a model and a recipe in; a TrainingRecord out. One loop for single models and for ensembles.

The step is computed by the native core where it applies (two layers, float32, CPU, no hook attached), by the
structured forward with autograd everywhere else. Both give the same gradients.
"""

from typing import TYPE_CHECKING

from causal_circuits._moved import missing
from causal_circuits.training.checkpoints import CheckpointError, Checkpoints, restore_checkpoint
from causal_circuits.training.health import DivergenceError, TrainingHealth, training_health
from causal_circuits.training.loop import train_ensemble
from causal_circuits.training.match_derivative import measured_match_gradient
from causal_circuits.training.match_start import MatchStart, start_from_matches
from causal_circuits.training.progress import TrainingPaused
from causal_circuits.training.recipe import Stage, TrainConfig, default_stages
from causal_circuits.training.steps import evaluate, gradient_step, mean_loss, take_snapshot, trainable_parameters
from causal_circuits.training.train import train

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "DivergenceError",
    "MatchStart",
    "Stage",
    "TrainConfig",
    "TrainingHealth",
    "TrainingPaused",
    "default_stages",
    "evaluate",
    "gradient_step",
    "mean_loss",
    "measured_match_gradient",
    "restore_checkpoint",
    "start_from_matches",
    "take_snapshot",
    "train",
    "train_ensemble",
    "trainable_parameters",
    "training_health",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """No name is added; one that is gone says what to use instead."""
        raise missing(__name__, name)
