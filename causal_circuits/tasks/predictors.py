"""What can be predicted from the context: the lines that a model's loss is read against.

All losses are soft-label cross-entropies in nats at the target, averaged over sequences. From below:

* the *entropy floor*: knowing the transition matrix;
* *exact Bayes*: the graph and every token are used, roots included;
* the *edge posterior*: the graph's edges are used, roots ignored - the line reported everywhere;
* the *best unigram*: token frequencies without the graph;
* *uniform*: log(d_vocab).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.arguments import Count, check_arguments
from causal_circuits.display import Result
from causal_circuits.tasks import transition_matrices as _matrices
from causal_circuits.tasks.batch import Batch, check_probabilities, check_tokens, chunks
from causal_circuits.tasks.posterior import ROUNDED, cross_entropy, mixture_of_given, posterior
from causal_circuits.tasks.task import InContextTask

PSEUDO_COUNTS = np.logspace(-3, 2, 51)  # that a smoothed predictor is calibrated over


@check_arguments
def edge_posterior(task: InContextTask, tokens: Int[Tensor, "batch n_ctx"]) -> Float[Tensor, "batch d_vocab"]:
    """The posterior mean of the target's row given every true edge: (alpha + counts) / (sum of alpha + n).

    Counts run over positions with parents: how often each token followed the target's parents' tokens. Roots
    are no one's child and count for nothing (the authors' released code counts them as children of the
    last token, which is why its "Bayes" line lies higher). With transition matrices of the user's own it is the mixture
    of their rows, weighted by the likelihood of the edges.

    Returns float64 probabilities [batch, d_vocab].

    >>> task = cc.InContextTask(cc.chain_graph(4), d_vocab=2, alpha=1.0)
    >>> cc.tasks.edge_posterior(task, torch.tensor([[0, 1, 1, 0]]))  # 0 was followed by 1 once: (1 + [0, 1]) / (2 + 1)
    tensor([[0.3333, 0.6667]], dtype=torch.float64)
    """
    return posterior(task, tokens, task.graph)


@check_arguments
@dataclass(frozen=True, repr=False, eq=False)
class ExactBayes(Result):
    """The importance-sampled exact posterior mean.

    Attributes:
        probs: float64 [batch, d_vocab].
        effective_draws: mean effective sample size of the importance weights; much below the number of
            draws means that roots are informative and more draws are needed.

    >>> found = cc.tasks.exact_bayes(task, batch.tokens, n_draws=32)
    >>> tuple(found.probs.shape)
    (64, 3)
    """

    probs: Float[Tensor, "batch d_vocab"]
    effective_draws: float


@check_arguments
def exact_bayes(
    task: InContextTask, tokens: Int[Tensor, "batch n_ctx"], n_draws: Count = 256, seed: int = 0
) -> ExactBayes:
    """The exact posterior mean of the target's row: roots, which follow the stationary law, count too.

    Given the edges, the rows of the transition matrix are independent Dirichlets, with mean m; P(t) is proportional to
    m_t times the mean likelihood of the root tokens under the posterior size-biased by pi(t | query). That mean is over
    matrices drawn from it, shared by all t. The loss of the result is too high by an amount of order 1 / effective
    draws: on the pairs graph at (10, 20), where roots matter most, 64, 256 and 1,024 draws lie .0265, .0357 and .0371
    (+- .003) below the edge posterior. Where roots carry no information - they are uniform or shared - this equals the
    edge posterior and nothing is drawn.

    >>> probs = cc.tasks.exact_bayes(task, batch.tokens, n_draws=64).probs
    >>> bool(probs.sum(dim=1).allclose(probs.new_ones(64)))
    True
    """
    task.check_tokens(tokens)
    if task.given_matrices is not None:
        return ExactBayes(mixture_of_given(task, tokens, task.graph, include_roots=True), float("inf"))
    if task.root_law != "stationary" or not task.root_positions:
        return ExactBayes(edge_posterior(task, tokens), float("inf"))
    mean = edge_posterior(task, tokens).numpy()
    log_weights = _log_root_likelihoods(task, tokens.cpu().numpy(), n_draws, np.random.default_rng(seed))
    weights = np.exp(log_weights - log_weights.max(axis=(1, 2), keepdims=True))
    probs = mean * weights.mean(axis=1)
    probs /= probs.sum(axis=1, keepdims=True)
    average = weights @ mean[..., None]
    effective = average.sum(axis=1) ** 2 / (average**2).sum(axis=1)
    return ExactBayes(torch.from_numpy(probs), float(effective.mean()))


def _log_root_likelihoods(
    task: InContextTask, tokens: Int[np.ndarray, "batch n_ctx"], n_draws: int, generator: np.random.Generator
) -> Float[np.ndarray, "batch draw target"]:
    """The log likelihood of each sequence's root tokens under draws of the posterior, size-biased for each target."""
    posterior = np.broadcast_to(task.alphas[1], (len(tokens), task.d_vocab, task.d_vocab)).copy()
    for parent, child in task.graph.edges:
        if child < task.n_ctx:
            np.add.at(posterior, (np.arange(len(tokens)), tokens[:, parent], tokens[:, child]), 1.0)
    in_logs = bool(posterior.min() < _matrices.LOG_SPACE_BELOW)
    query, found = tokens[:, task.target_parents[0]], np.empty((len(tokens), n_draws, task.d_vocab))
    piece = max(1, 2**19 // (n_draws * task.d_vocab**2))
    for part in chunks(len(tokens), piece):
        matrices, log_keep = _posterior_draws(generator, posterior[part], query[part], n_draws, in_logs)
        for i, seen in enumerate(tokens[part]):
            laws = _size_biased_laws(matrices[:, i], int(query[part.start + i]), log_keep[:, i], in_logs)
            found[part.start + i] = np.log(laws[:, :, seen[task.root_positions]] + 1e-300).sum(axis=2).T
    return found


def _posterior_draws(
    generator: np.random.Generator, posterior: np.ndarray, query: np.ndarray, n_draws: int, in_logs: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Matrices [draw, sequence, token, token] from the posterior; log(1 - B) [draw, sequence] to size-bias them by.

    Size-biasing adds one to the Dirichlet parameter of entry (query, t), and if B ~ Beta(1, sum of the row's
    parameters) then (1 - B) row + B e_t has just that law: the draws are shared by all targets t.
    """
    draw = _matrices.draw_log_dirichlet if in_logs else _matrices.draw_dirichlet
    matrices = draw(generator, posterior, n_draws).astype(np.float64)
    rest = posterior[np.arange(len(posterior)), query].sum(axis=-1)
    return matrices, np.log1p(-generator.random(matrices.shape[:2])) / rest


def _size_biased_laws(
    matrices: Float[np.ndarray, "draw token token"],
    query: int,
    log_keep: Float[np.ndarray, " draw"],
    in_logs: bool,
) -> Float[np.ndarray, "target draw token"]:
    """The stationary laws of one sequence's matrices, the query's row size-biased for each target token t."""
    d_vocab = matrices.shape[-1]
    row, keep, moved = matrices[:, query], np.exp(log_keep)[:, None], -np.expm1(log_keep)[:, None]
    points = np.eye(d_vocab)[:, None] * moved
    if in_logs:
        with np.errstate(divide="ignore"):
            rows = np.logaddexp(row + log_keep[:, None], np.log(points))
    else:
        rows = keep * row + points
    order = [query, *(token for token in range(d_vocab) if token != query)]
    laws = np.empty(rows.shape)
    ordered = matrices.transpose(1, 2, 0)[np.ix_(order, order)].transpose(2, 0, 1)  # the draws last, in memory too
    laws[:, :, order] = _matrices.laws_of_first_rows(ordered, rows[:, :, order], in_logs)
    return laws


@check_arguments
def unigram(tokens: Int[Tensor, "batch n_ctx"], d_vocab: int, pseudo_count: float) -> Float[Tensor, "batch d_vocab"]:
    """Token frequencies of the context, smoothed: (pseudo_count + counts) / (d_vocab pseudo_count + n_ctx).

    >>> unigram(torch.tensor([[0, 0, 0, 1]]), d_vocab=2, pseudo_count=1.0)
    tensor([[0.6667, 0.3333]], dtype=torch.float64)
    """
    check_tokens(tokens, d_vocab)
    return smoothed(token_counts(tokens, d_vocab), pseudo_count)


def token_counts(tokens: Int[Tensor, "batch pos"], d_vocab: int) -> Float[Tensor, "batch d_vocab"]:
    """How often each token occurs in each sequence, float64."""
    counts = torch.zeros(len(tokens), d_vocab, dtype=torch.float64)
    return counts.scatter_add_(1, tokens.cpu(), torch.ones(tokens.shape, dtype=torch.float64))


def smoothed(counts: Float[Tensor, "*row d_vocab"], pseudo_count: float) -> Float[Tensor, "*row d_vocab"]:
    """(pseudo_count + counts), each row divided by its sum."""
    if not 0 < pseudo_count < float("inf"):
        raise ValueError(f"pseudo_count must be positive and finite: got {pseudo_count}; 1.0 is Laplace's rule")
    return (counts + pseudo_count) / (counts.sum(dim=-1, keepdim=True) + counts.shape[-1] * pseudo_count)


@check_arguments
def best_unigram_loss(batch: Batch) -> float:
    """The lowest loss of a smoothed unigram on the batch, over pseudo-counts from 0.001 to 100 (log grid).

    >>> 0 < cc.tasks.best_unigram_loss(batch) < 1.2
    True
    """
    batch.check_last_only()
    check_probabilities("target_probs", batch.target_probs, ROUNDED)
    n_ctx, d_vocab = batch.tokens.shape[1], batch.target_probs.shape[-1]
    check_tokens(batch.tokens, d_vocab)
    counts = token_counts(batch.tokens, d_vocab).long().flatten()
    mass = torch.bincount(counts, batch.target_probs.cpu().double().flatten(), minlength=n_ctx + 1)  # on each count
    pseudo_counts = torch.from_numpy(PSEUDO_COUNTS)[:, None]
    log_probs = ((torch.arange(n_ctx + 1) + pseudo_counts) / (n_ctx + d_vocab * pseudo_counts)).log()
    return float(-(log_probs @ mass).max() / len(batch))


@check_arguments
@dataclass(frozen=True, repr=False)
class ReferenceLosses(Result):
    """The lines that a loss is read against, all on the same batch, in nats.

    `exact_bayes` is the edge posterior plus their paired difference on a sub-sample; `exact_bayes_error` is the
    standard error of that difference and `exact_bayes_effective_draws` tells whether the importance sampling held.

    >>> lines = cc.reference_losses(task, batch)
    >>> lines.entropy < lines.edge_posterior < lines.uniform
    True
    """

    entropy: float
    exact_bayes: float
    exact_bayes_error: float
    exact_bayes_effective_draws: float
    edge_posterior: float
    best_unigram: float
    uniform: float


@check_arguments
def reference_losses(
    task: InContextTask, batch: Batch, n_exact: int = 1024, n_draws: int = 256, seed: int = 0
) -> ReferenceLosses:
    """All reference lines on one batch; exact Bayes on its first `n_exact` sequences.

    >>> lines = cc.reference_losses(task, batch, n_draws=64)
    >>> lines.entropy < lines.exact_bayes < lines.best_unigram
    True
    """
    if min(n_exact, len(batch)) < 2:
        raise ValueError(
            f"the error of exact Bayes needs at least 2 sequences: got n_exact={n_exact} and a batch of {len(batch)}"
        )
    posterior = cross_entropy(edge_posterior(task, batch.tokens), batch.target_probs)
    sub = batch[:n_exact]
    exact = exact_bayes(task, sub.tokens, n_draws=n_draws, seed=seed)
    gain = cross_entropy(exact.probs, sub.target_probs) - posterior[: len(sub)]
    return ReferenceLosses(
        entropy=float(cross_entropy(batch.target_probs, batch.target_probs).mean()),
        exact_bayes=float(posterior.mean() + gain.mean()),
        exact_bayes_error=float(gain.std() / max(len(sub), 2) ** 0.5),
        exact_bayes_effective_draws=exact.effective_draws,
        edge_posterior=float(posterior.mean()),
        best_unigram=best_unigram_loss(batch),
        uniform=float(np.log(task.d_vocab)),
    )
