"""In-context tasks drawn from a causal graph, and the predictors that a model is measured against."""

from causal_circuits.tasks.base import Task
from causal_circuits.tasks.batch import Batch
from causal_circuits.tasks.batch_task import BatchTask
from causal_circuits.tasks.families import MATRIX_FAMILIES, bounded_below, matrix_family
from causal_circuits.tasks.intervention import InterventionTask
from causal_circuits.tasks.markov import MarkovTask, next_token_predictors
from causal_circuits.tasks.posterior import cross_entropy
from causal_circuits.tasks.predictors import (
    ExactBayes,
    ReferenceLosses,
    best_unigram_loss,
    edge_posterior,
    exact_bayes,
    reference_losses,
    unigram,
)
from causal_circuits.tasks.subsets import subset_loss, subset_losses, subset_predictor
from causal_circuits.tasks.task import InContextTask

__all__ = [
    "MATRIX_FAMILIES",
    "Batch",
    "BatchTask",
    "ExactBayes",
    "InContextTask",
    "InterventionTask",
    "MarkovTask",
    "ReferenceLosses",
    "Task",
    "best_unigram_loss",
    "bounded_below",
    "cross_entropy",
    "edge_posterior",
    "exact_bayes",
    "matrix_family",
    "next_token_predictors",
    "reference_losses",
    "subset_loss",
    "subset_losses",
    "subset_predictor",
    "unigram",
]
