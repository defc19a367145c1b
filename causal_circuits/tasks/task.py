"""In-context sequences whose latent structure is a causal graph.

For every sequence a fresh transition matrix pi is drawn from the prior; a position's token is drawn from the row of pi
that its parents' tokens name; what the model must predict is the target's whole row. A model that predicts well has to
find, in context, transitions that match the target's parents - and for that it must know which position is whose parent
(Nichani, Damian & Lee 2024, tasks 1 and 2).
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Any, Literal, NoReturn, final

import networkx as nx
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits import native
from causal_circuits.arguments import Count, Place, Several, check_arguments
from causal_circuits.graphs import parents_of, validate_graph
from causal_circuits.graphs.edges import roots_of
from causal_circuits.storage import digest
from causal_circuits.tasks import draws as _draws
from causal_circuits.tasks import transition_matrices as _matrices
from causal_circuits.tasks.base import Seed, Task, child_sequence, seed_sequence
from causal_circuits.tasks.batch import Batch, chunks
from causal_circuits.tasks.posterior import cross_entropy, posterior

Roots = Literal["stationary", "uniform", "shared"]
# Fills tokens [n, n_ctx] and target_probs [n, d_vocab] with the sequences from the place `first` of a stream on.
Filler = Callable[[int, np.ndarray, np.ndarray], None]

# Sequences are drawn in pieces of this many: the result is the same for any number of threads, and a piece's arrays
# stay in the second-level cache.
PIECE = 512
# Threads that draw the pieces of a large batch.
THREADS = 2
Do = Mapping[int, int | str]  # positions that are set: to a token, "random", or "given"
# Of one transition matrix. A piece holds PIECE of them and their cumulative sums: 0.5 GiB at this limit, a thread.
MAX_MATRIX_ENTRIES = 2**17


@check_arguments
@final
@dataclass(frozen=True, eq=False)
class InContextTask(Task):
    """Sequences drawn from a causal graph with a fresh random transition matrix for each sequence.

    The class is final: native code draws its sequences, which a subclass would not change. For sequences of another
    kind subclass `Task` and override `draws`; for a table of them take `BatchTask`.

    Args:
        graph: a causal graph (see `causal_circuits.graphs`): a forest with a query, or any DAG; the task keeps a frozen
            copy.
        d_vocab: number of tokens, at least 2.
        alpha: Dirichlet concentration of the matrix's rows: a number, or for graphs with at most one
            parent a position also [d_vocab] (one number a row) or [d_vocab, d_vocab] (row by row).
        transition_matrices: of your own, in place of Dirichlet draws: [d_vocab, d_vocab] or, one drawn uniformly
            for each sequence, [n, d_vocab, d_vocab]; for several in-degrees a dict {n_parents: array} whose
            arrays have n_parents + 1 (or + 2) axes.
        roots: the law of a root's token: ``"stationary"`` (of pi; the paper's trees, the default with at most
            one parent), ``"uniform"`` (the default with more), or ``"shared"`` (one Dirichlet draw a
            sequence, which is what the authors' released DAG code does).

    Raises:
        ValueError: naming the rule that is broken, the value, and the remedy.

    >>> task = cc.InContextTask(cc.chain_graph(20), d_vocab=10, alpha=0.1)
    >>> batch = task.sample(4, seed=0)
    >>> batch.tokens.shape, batch.target_probs.shape
    (torch.Size([4, 20]), torch.Size([4, 10]))
    """

    graph: nx.DiGraph = field()  # needed, though Task has None
    d_vocab: Several = 10
    alpha: "float | Sequence[float] | Sequence[Sequence[float]] | np.ndarray | Tensor" = 0.1
    transition_matrices: "np.ndarray | Tensor | Mapping[int, np.ndarray | Tensor] | None" = None
    roots: Roots | None = None

    def __init_subclass__(cls) -> NoReturn:
        raise TypeError(
            f"InContextTask is final, and {cls.__name__} subclasses it: native code draws its sequences, whatever a "
            "subclass overrides; subclass cc.Task and override draws"
        )

    def __post_init__(self) -> None:
        validate_graph(self.graph)
        # of our own: what is computed once must not differ from what the caller makes of its objects afterwards
        object.__setattr__(self, "graph", nx.freeze(self.graph.copy()))
        alpha = _matrices.numbers(self.alpha, "alpha") if isinstance(self.alpha, Tensor) else deepcopy(self.alpha)
        object.__setattr__(self, "alpha", alpha)
        if self.root_law == "stationary" and max(self.in_degrees, default=1) > 1:
            raise ValueError("roots='stationary' needs at most one parent a position: use 'uniform' or 'shared'")
        for in_degree in self.in_degrees:
            if self.d_vocab ** (in_degree + 1) > MAX_MATRIX_ENTRIES:
                raise ValueError(
                    f"a matrix with {in_degree} parents over {self.d_vocab} tokens has d_vocab ** (n_parents + 1) = "
                    f"{self.d_vocab ** (in_degree + 1):,} entries, and {PIECE} sequences are drawn at once; "
                    f"the limit is {MAX_MATRIX_ENTRIES:,}: use fewer parents or tokens"
                )
        _ = self.alphas, self.given_matrices, self.given_laws  # validated where they are made

    @cached_property
    def in_degrees(self) -> tuple[int, ...]:
        """The different numbers of parents, 0 left out; there is one transition matrix for each."""
        return tuple(sorted({degree for _, degree in self.graph.in_degree} - {0}))

    @property
    def root_law(self) -> Roots:
        """How root tokens are drawn (`roots`, with its default filled in)."""
        if self.roots is not None:
            return self.roots
        return "stationary" if max(self.in_degrees, default=1) <= 1 else "uniform"

    @cached_property
    def alphas(self) -> dict[int, Float[np.ndarray, "row token"]]:
        """The Dirichlet parameters of the matrix of each in-degree, row by row."""
        alpha = _matrices.numbers(self.alpha, "alpha")
        if not alpha.size or not np.all(np.isfinite(alpha)) or not np.all(alpha > 0):
            raise ValueError(f"alpha must be positive and finite: got {self.alpha}; the paper uses 0.1")
        if alpha.min() < 1e-4 or alpha.max() > 1e6:
            raise ValueError(f"alpha must lie in [1e-4, 1e6] to be sampled faithfully: got {self.alpha}")
        if alpha.ndim and self.in_degrees != (1,):
            raise ValueError(
                f"alpha by row needs a graph with at most one parent a position: in-degrees {self.in_degrees}"
            )
        if alpha.shape == (self.d_vocab,):
            alpha = alpha[:, None]
        elif alpha.ndim and alpha.shape != (self.d_vocab, self.d_vocab):
            raise ValueError(
                f"alpha must be a number, [d_vocab] or [d_vocab, d_vocab] with d_vocab {self.d_vocab}: "
                f"got shape {list(alpha.shape)}"
            )
        return {k: np.broadcast_to(alpha, (self.d_vocab**k, self.d_vocab)).copy() for k in self.in_degrees}

    @cached_property
    def given_matrices(self) -> dict[int, Float[np.ndarray, "matrix row token"]] | None:
        """The user's transition matrices with parents' tokens flattened into rows, or None when they are drawn."""
        if self.transition_matrices is None:
            return None
        given = (
            self.transition_matrices if isinstance(self.transition_matrices, Mapping) else {1: self.transition_matrices}
        )
        if set(given) != set(self.in_degrees):
            raise ValueError(
                f"transition_matrices must cover the graph's in-degrees {self.in_degrees}: got {tuple(given)}"
            )
        checked = {
            k: _matrices.checked_matrix(_matrices.numbers(matrix, "a transition matrix"), k, self.d_vocab)
            for k, matrix in given.items()
        }
        if len({len(matrix) for matrix in checked.values()}) > 1:
            raise ValueError("transition matrices of different in-degrees must be equally many: give one set of each")
        return checked

    @cached_property
    def given_laws(self) -> Float[np.ndarray, "matrix token"] | None:
        """The stationary laws of the user's transition matrices, where roots need them."""
        if self.given_matrices is None or self.root_law != "stationary":
            return None
        return np.stack([_matrices.stationary_law_of_one(matrix) for matrix in self.given_matrices[1]])

    def draws(self, seed: Seed, first: Place, n: Count) -> Batch:
        """`n` sequences of a seed's stream from its place `first` on, the same for any number of threads.

        Where `is_counter_based` holds, a sequence is a function of the seed and its place. Elsewhere (matrices of the
        user's) every 512 sequences from `first` on have a random stream of their own, so that overlapping calls agree
        only if they start at the same place; sequences of different places are independent all the same.
        """
        native.warn_if_missing(n)
        return self.intervened_draws({}, seed, first, n)

    def intervened_draws(
        self, do: Do, seed: Seed, first: Place, n: Count, given: Int[Tensor, "batch n_ctx"] | None = None
    ) -> Batch:
        """The sequences of `draws`, in which the positions of `do` are set: "given" are those of `given`."""
        tokens = np.empty((n, self.n_ctx), dtype=np.int32) if given is None else given.int().numpy()
        target_probs = np.empty((n, self.d_vocab), dtype=np.float32)
        size = max(PIECE, -(-n // (4 * THREADS))) if self._is_native(do) else PIECE
        fill, pieces = self._filler(seed, do), chunks(n, size)

        def draw(piece: slice) -> None:
            fill(first + piece.start, tokens[piece], target_probs[piece])

        if len(pieces) <= 2:
            for piece in pieces:
                draw(piece)
        else:
            list(_threads(THREADS, os.getpid()).map(draw, pieces))
        return Batch(torch.from_numpy(tokens).long(), torch.from_numpy(target_probs))

    def _is_native(self, do: Do) -> bool:
        """Whether the native core draws the sequences: it counts its random numbers, and sets nothing."""
        return self.is_counter_based and native.available() and not do

    def _filler(self, seed: Seed, do: Do) -> Filler:
        """How sequences are drawn: by the native core, by numpy the same, or from a random stream for each piece."""
        sequence = seed_sequence(seed)
        if not self.is_counter_based:
            return partial(self._fill_from_stream, sequence, do)
        key = _draws.key_of(sequence)
        if self._is_native(do):
            return partial(self.native_sampler().draw, key)
        return partial(self._fill_by_counting, key, do)

    def native_sampler(self) -> Any:
        """The task as the native core samples it, a `_native.Sampler`, where `is_counter_based`."""
        constants, first_row, parents, degrees, roots = self._sampling_plan
        return native.core().Sampler(constants, first_row, parents, degrees, self.d_vocab, roots)

    def identity(self) -> Mapping[str, Any]:
        """Graph, vocabulary and prior."""
        matrices = self.given_matrices
        alphas = {str(k): alpha for k, alpha in self.alphas.items()}
        return {
            "n_ctx": self.n_ctx,
            "edges": sorted([int(parent), int(child)] for parent, child in self.graph.edges),
            "d_vocab": int(self.d_vocab),
            "roots": self.root_law,
            "alpha": {k: float(a.flat[0]) if a.min() == a.max() else digest({k: a}) for k, a in alphas.items()},
            "kernels": None if matrices is None else digest({str(k): matrix for k, matrix in matrices.items()}),
        }

    def draw_matrices(
        self, n: int, generator: np.random.Generator
    ) -> tuple[dict[int, Float[np.ndarray, "batch row token"]], Float[np.ndarray, "batch token"]]:
        """`n` draws of the prior: a transition matrix for each in-degree, and the law of root tokens.

        The law is that of root tokens (`root_law`): the stationary law of the one-parent matrix by default.
        """
        matrices: dict[int, np.ndarray] = {}
        law: np.ndarray | None = None
        if self.given_matrices is not None:
            which = generator.integers(len(next(iter(self.given_matrices.values()))), size=n)
            matrices = {k: matrix[which].astype(np.float32) for k, matrix in self.given_matrices.items()}
            law = None if self.given_laws is None else self.given_laws[which]
        else:
            for k, alpha in self.alphas.items():
                if self.root_law == "stationary":
                    matrices[k], law = _matrices.draw_with_laws(generator, alpha, n)
                else:
                    matrices[k] = _matrices.draw_dirichlet(generator, alpha, n)
        if law is None:
            law = self._rootless_law(n, generator)
        return matrices, law

    def _rootless_law(self, n: int, generator: np.random.Generator) -> Float[np.ndarray, "batch token"]:
        """The law of roots that does not come from the transition matrix."""
        if self.root_law == "shared":
            concentration = np.full((1, self.d_vocab), float(_matrices.numbers(self.alpha, "alpha").mean()))
            return _matrices.draw_dirichlet(generator, concentration, n)[:, 0].astype(np.float64)
        return np.full((n, self.d_vocab), 1.0 / self.d_vocab)

    @cached_property
    def root_positions(self) -> list[int]:
        """Positions without parents, the query left out."""
        return roots_of(self.graph)

    @cached_property
    def _children(self) -> list[tuple[int, tuple[int, ...]]]:
        """Positions with parents, and these parents."""
        parents = {position: parents_of(self.graph, position) for position in range(self.n_ctx)}
        return [(child, above) for child, above in parents.items() if above]

    @cached_property
    def is_counter_based(self) -> bool:
        """Whether every random number is a function of (seed, place): matrices that are drawn, not the user's."""
        return self.transition_matrices is None

    @cached_property
    def _has_tiny_alpha(self) -> bool:
        """Whether stationary laws hang on odds that only logs can tell."""
        return min(float(alpha.min()) for alpha in self.alphas.values()) < _matrices.LOG_SPACE_BELOW

    def _fill_by_counting(
        self, key: _draws.Key, do: Do, first: int, tokens: np.ndarray, target_probs: np.ndarray
    ) -> None:
        """Sequences `first`, `first` + 1, ... of a stream in numpy: what `src/native/sampler.cpp` does."""
        sequences = np.arange(first, first + len(tokens))
        logs = _draws.log_gammas(self._sampling_plan[0], sequences, key).reshape(len(sequences), -1, self.d_vocab)
        rows = _draws.rows_of(logs)
        bounds = np.cumsum([self.d_vocab**k for k in self.in_degrees])
        matrices = dict(zip(self.in_degrees, np.split(rows, bounds, axis=1), strict=False))
        laws: dict[Roots, Callable[[], np.ndarray]] = {
            "stationary": lambda: (
                _matrices.log_stationary_law(_draws.log_rows_of(logs))
                if self._has_tiny_alpha
                else _matrices.stationary_law(matrices[1])
            ),
            "uniform": lambda: np.full((len(rows), self.d_vocab), 1.0 / self.d_vocab),
            "shared": lambda: rows[:, -1],
        }
        numbers, query_numbers = _draws.token_numbers(self.n_ctx, sequences, key)
        queries = np.minimum((query_numbers * np.float32(self.d_vocab)).astype(np.int64), self.d_vocab - 1)
        self._fill(do, matrices, laws[self.root_law](), numbers, queries, tokens, target_probs)

    def _fill_from_stream(
        self, seed: np.random.SeedSequence, do: Do, first: int, tokens: np.ndarray, target_probs: np.ndarray
    ) -> None:
        """Sequences from a random stream for each piece: matrices of the user's."""
        for piece in chunks(len(tokens), PIECE):
            stream = child_sequence(seed, first + piece.start)
            generator, n = np.random.Generator(np.random.SFC64(stream)), len(tokens[piece])
            matrices, law = self.draw_matrices(n, generator)
            uniforms = generator.random(size=(n, self.n_ctx), dtype=np.float32)
            queries = generator.integers(self.d_vocab, size=n)
            self._fill(do, matrices, law, uniforms, queries, tokens[piece], target_probs[piece])

    def _fill(
        self,
        do: Do,
        matrices: dict[int, np.ndarray],
        law: np.ndarray,
        uniforms: np.ndarray,
        queries: np.ndarray,
        tokens: np.ndarray,
        target_probs: np.ndarray,
    ) -> None:
        """Tokens and targets from matrices, root laws, a uniform number for each token, and the queries' tokens."""
        cumulative = {k: _matrices.cumulative_rows(matrix) for k, matrix in matrices.items()}
        sequence = np.arange(len(tokens))
        root_law = _matrices.cumulative_rows(law.astype(np.float32)[:, None])
        for root in self.root_positions:
            if root not in do:
                tokens[:, root] = _matrices.inverse_cdf(root_law, uniforms[:, root])
        if self.has_query:
            tokens[:, -1] = queries
        for position, token in do.items():
            every = (uniforms[:, position] * self.d_vocab).astype(tokens.dtype).clip(max=self.d_vocab - 1)
            if token != "given":
                tokens[:, position] = every if token == "random" else token
        for child, parents in self._children:
            if child in do:
                continue
            row = self.matrix_row(tokens[:, parents]) + sequence * self.d_vocab ** len(parents)
            tokens[:, child] = _matrices.inverse_cdf(cumulative[len(parents)].take(row, axis=0), uniforms[:, child])
        target_row = self.matrix_row(tokens[:, self.target_parents])
        target_probs[:] = matrices[len(self.target_parents)][sequence, target_row]

    @cached_property
    def _sampling_plan(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
        """What the native sampler has to know of the task: see `src/native/sampler.h`."""
        alphas = [self.alphas[k].ravel() for k in self.in_degrees]
        if self.root_law == "shared":
            alphas.append(np.full(self.d_vocab, float(_matrices.numbers(self.alpha, "alpha").mean())))
        most = max(self.in_degrees)
        first_row, row = np.zeros(most + 1, np.int32), 0
        for k in self.in_degrees:
            first_row[k], row = row, row + self.d_vocab**k
        parents, degrees = np.zeros((self.n_ctx + 1, most), np.int32), np.zeros(self.n_ctx + 1, np.int32)
        for node in range(self.n_ctx + 1):
            above = parents_of(self.graph, node)
            parents[node, : len(above)], degrees[node] = above, len(above)
        if self.has_query:
            degrees[self.n_ctx - 1] = -1
        roots = {"uniform": 0, "stationary": 3 if self._has_tiny_alpha else 1, "shared": 2}[self.root_law]
        return _draws.gamma_constants(np.concatenate(alphas)), first_row, parents, degrees, roots

    def matrix_row(self, parent_tokens: np.ndarray) -> np.ndarray:
        """The row of the flattened transition matrix that parents' tokens [..., n_parents] name."""
        row = parent_tokens[..., 0]
        for index in range(1, parent_tokens.shape[-1]):
            row = row * self.d_vocab + parent_tokens[..., index]
        return row

    def bayes_predictor(self, tokens: Int[Tensor, "batch n_ctx"]) -> Float[Tensor, "batch d_vocab"]:
        """The edge posterior: see `causal_circuits.tasks.predictors.edge_posterior`."""
        return posterior(self, tokens, self.graph)

    def bayes_loss(self, batch: Batch) -> float:
        """Mean cross-entropy of the edge posterior on a batch, in nats."""
        return float(cross_entropy(self.bayes_predictor(batch.tokens), batch.target_probs).mean())

    def __repr__(self) -> str:
        name = self.graph.graph.get("name", "graph")
        prior = "given transition matrices" if self.transition_matrices is not None else f"alpha={self.alpha}"
        return f"InContextTask({name}, n_ctx={self.n_ctx}, d_vocab={self.d_vocab}, {prior})"


@cache
def _threads(n: int, process: int) -> ThreadPoolExecutor:
    """Threads that are kept, for to start them takes as long as a thousand sequences; a fork inherits none of them."""
    return ThreadPoolExecutor(n)
