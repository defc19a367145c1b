"""Slow, obvious re-implementations of what the package computes, in float64, written from the paper's formulas.

Nothing here calls the package. Attention weights are plain lists: ``attention[layer][head]`` is the paper's A^(l)_h,
and ``readout`` is W_O^T, of shape [d_model, d_vocab]. ``parents[i]`` are the parents of position i; where a query
follows, the list ends before it.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

Attention = list[list[Tensor]]
Parents = Sequence[Sequence[int]]


def weights_of(model: object, d_vocab: int, n_ctx: int, n_heads: Sequence[int]) -> tuple[Attention, Tensor]:
    """A^(l)_h and W_O^T of a TransformerLens model, as float64 leaves that gradients can be taken of."""
    width, attention = d_vocab + n_ctx, []
    for layer, heads in enumerate(n_heads):
        w_q = model.blocks[layer].attn.W_Q.detach().double()
        attention.append([w_q[head, :width, :width].clone().requires_grad_() for head in range(heads)])
        width *= 1 + heads
    return attention, model.unembed.W_U.detach().double().clone().requires_grad_()


@dataclass
class Run:
    """One pass of the disentangled transformer: logits [batch, d_vocab], and scores and patterns by (layer, head)."""

    logits: Tensor
    scores: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    patterns: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    written: dict[tuple[int, int], Tensor] = field(default_factory=dict)


def disentangled_forward(
    attention: Attention,
    readout: Tensor,
    tokens: Tensor,
    d_vocab: int,
    edit_pattern: Callable[[int, int, Tensor], Tensor] = lambda layer, head, pattern: pattern,
    edit_written: Callable[[int, int, Tensor], Tensor] = lambda layer, head, written: written,
) -> Run:
    """h_0 = [x, e]; h_l = [h_{l-1}, attn(h_{l-1}; A_l1), ...]; attn(h; A) = softmax(mask(h A h^T)) h; W_O^T h_L."""
    batch, n_ctx = tokens.shape
    x = torch.zeros(batch, n_ctx, d_vocab, dtype=torch.float64)
    for b, i in product(range(batch), range(n_ctx)):
        x[b, i, tokens[b, i]] = 1.0
    h = torch.cat([x, torch.eye(n_ctx, dtype=torch.float64).expand(batch, -1, -1)], dim=-1)
    future = torch.ones(n_ctx, n_ctx, dtype=torch.bool).triu(1)
    run = Run(torch.empty(0))
    for layer, heads in enumerate(attention):
        parts = [h]
        for head, a in enumerate(heads):
            scores = torch.einsum("bid,de,bje->bij", h, a, h)
            if scores.requires_grad:
                scores.retain_grad()
            pattern = edit_pattern(layer, head, torch.softmax(scores.masked_fill(future, -torch.inf), dim=-1))
            written = edit_written(layer, head, torch.einsum("bij,bjd->bid", pattern, h))
            run.scores[layer, head], run.patterns[layer, head], run.written[layer, head] = scores, pattern, written
            parts.append(written)
        h = torch.cat(parts, dim=-1)
    run.logits = torch.einsum("bd,ds->bs", h[:, -1], readout)
    return run


def cross_entropies(logits: Tensor, target_probs: Tensor) -> Tensor:
    """-sum target log softmax(logits) of every sequence."""
    return -(target_probs.double() * torch.log_softmax(logits, dim=-1)).sum(dim=-1)


def reduced_forward(a1: Tensor, a2: Tensor, tokens: Tensor, d_vocab: int) -> Tensor:
    """f = X^T softmax( softmax(mask A1) X A2^T x_T ), one sequence at a time."""
    rows = []
    for sequence in tokens:
        x = torch.nn.functional.one_hot(sequence, d_vocab).double()
        future = torch.ones(len(sequence), len(sequence), dtype=torch.bool).triu(1)
        copied = torch.softmax(a1.masked_fill(future, -torch.inf), dim=-1) @ x
        rows.append(x.T @ torch.softmax(copied @ a2.T @ x[-1], dim=-1))
    return torch.stack(rows)


def losses_with_entry_cut(
    attention: Attention,
    readout: Tensor,
    tokens: Tensor,
    target_probs: Tensor,
    d_vocab: int,
    layer: int,
    head: int,
    query: int,
    key: int,
    renormalize: bool,
) -> Tensor:
    """The loss of each sequence, run alone, with one attention entry set to zero."""

    def cut(at: int, which: int, pattern: Tensor) -> Tensor:
        if (at, which) != (layer, head):
            return pattern
        pattern = pattern.clone()
        pattern[0, query, key] = 0.0
        rest = pattern[0, query].sum()
        if renormalize and rest > 0:
            pattern[0, query] = pattern[0, query] / rest
        return pattern

    losses = []
    for b in range(len(tokens)):
        run = disentangled_forward(attention, readout, tokens[b : b + 1], d_vocab, edit_pattern=cut)
        losses.append(cross_entropies(run.logits, target_probs[b : b + 1]))
    return torch.cat(losses)


def losses_with_heads_replaced(
    attention: Attention,
    readout: Tensor,
    tokens: Tensor,
    target_probs: Tensor,
    d_vocab: int,
    replacement: dict[tuple[int, int], Tensor],
) -> Tensor:
    """The loss of each sequence, run alone, when heads write `replacement[layer, head]` [batch or 1, n_ctx, width]."""
    losses = []
    for b in range(len(tokens)):

        def overwrite(layer: int, head: int, written: Tensor, b: int = b) -> Tensor:
            if (layer, head) not in replacement:
                return written
            other = replacement[layer, head]
            return other[b : b + 1] if len(other) > 1 else other

        run = disentangled_forward(attention, readout, tokens[b : b + 1], d_vocab, edit_written=overwrite)
        losses.append(cross_entropies(run.logits, target_probs[b : b + 1]))
    return torch.cat(losses)


def edge_posterior(
    parents: Parents, target_parents: Sequence[int], alpha: np.ndarray, tokens: Sequence[int]
) -> np.ndarray:
    """(alpha + counts of query -> child) over their sum, counting positions that have parents, as many as the target.

    `alpha` is [d_vocab] * (n_parents + 1): the Dirichlet parameters of the row that each tuple of tokens names.
    """
    query = tuple(tokens[i] for i in target_parents)
    weights = np.array(alpha[query], dtype=np.float64)
    for child, above in enumerate(parents):
        if len(above) == len(target_parents) and tuple(tokens[i] for i in above) == query:
            weights[tokens[child]] += 1.0
    return weights / weights.sum()


def kernel_mixture(
    kernels: np.ndarray, parents: Parents, tokens: Sequence[int], laws: np.ndarray | None = None
) -> np.ndarray:
    """The mean row of a set of one-parent kernels, weighted by the likelihood of edges (and of roots, given laws)."""
    total, row = 0.0, np.zeros(kernels.shape[-1])
    for index, kernel in enumerate(kernels):
        likelihood = 1.0
        for child, above in enumerate(parents):
            if above:
                likelihood *= kernel[tokens[above[0]], tokens[child]]
            elif laws is not None:
                likelihood *= laws[index][tokens[child]]
        total += likelihood
        row += likelihood * kernel[tokens[-1]]
    return row / total


def stationary_law(kernel: np.ndarray) -> np.ndarray:
    """The left eigenvector of eigenvalue one."""
    values, vectors = np.linalg.eig(np.asarray(kernel, dtype=np.float64).T)
    law = np.real(vectors[:, np.argmin(np.abs(values - 1.0))])
    return law / law.sum()


def exact_bayes_two_tokens(parents: Parents, alpha: float, tokens: Sequence[int], n_grid: int = 800) -> np.ndarray:
    """The posterior mean of the query's row for two tokens, by quadrature over both rows of the kernel.

    Rows are (1 - a, a) and (b, 1 - b) with a, b ~ Beta(alpha, alpha), put on a grid of quantiles; the stationary law
    is (b, a) / (a + b). The last position is the query, roots follow the stationary law.
    """
    quantiles = (np.arange(n_grid) + 0.5) / n_grid
    small, large = betaincinv(alpha, alpha, quantiles), betaincinv(alpha, alpha, 1.0 - quantiles)
    a, not_a = small[:, None], large[:, None]  # Beta(alpha, alpha) is symmetric: 1 - quantile(u) = quantile(1 - u)
    b, not_b = small[None, :], large[None, :]
    kernel = [[not_a + 0 * b, a + 0 * b], [b + 0 * a, not_b + 0 * a]]
    law = [b / (a + b), a / (a + b)]
    likelihood = np.ones((n_grid, n_grid))
    for child, above in enumerate(parents):
        likelihood = likelihood * (kernel[tokens[above[0]]][tokens[child]] if above else law[tokens[child]])
    row = np.array([(likelihood * kernel[tokens[-1]][t]).sum() for t in range(2)])
    return row / likelihood.sum()


def sample_sequence(parents: Parents, d_vocab: int, alpha: float, generator: random.Random) -> tuple[int, ...]:
    """One sequence of a forest with a query, by plain loops: a kernel, its stationary law, then token by token."""
    kernel = []
    for _ in range(d_vocab):
        gammas = [generator.gammavariate(alpha, 1.0) for _ in range(d_vocab)]
        kernel.append([gamma / sum(gammas) for gamma in gammas])
    law = stationary_law(np.array(kernel))
    tokens: list[int] = []
    for above in parents:
        weights = kernel[tokens[above[0]]] if above else list(law)
        tokens.append(generator.choices(range(d_vocab), weights=weights)[0])
    return (*tokens, generator.randrange(d_vocab))


def mul_score(pattern: Tensor, mask: Tensor) -> float:
    """sum(att * mask) / sum(att) over one pattern."""
    inside = sum(float(pattern[i, j]) for i, j in product(range(len(pattern)), repeat=2) if mask[i, j])
    return inside / float(pattern.sum())


def sequence_probabilities(parents: Parents, kernels: dict[int, np.ndarray], law: np.ndarray):
    """(tokens, probability) of every sequence: roots from `law`, others from the kernel of their number of parents."""
    for tokens in product(range(len(law)), repeat=len(parents)):
        probability = 1.0
        for child, above in enumerate(parents):
            where = tuple(tokens[i] for i in above)
            probability *= kernels[len(above)][where][tokens[child]] if above else law[tokens[child]]
        yield tokens, probability


def pair_laws(parents: Parents, kernels: dict[int, np.ndarray], law: np.ndarray) -> np.ndarray:
    """P(x_i = a, x_j = b) for all pairs, [i, j, a, b], by summing over every sequence."""
    n, d_vocab = len(parents), len(law)
    joint = np.zeros((n, n, d_vocab, d_vocab))
    for tokens, probability in sequence_probabilities(parents, kernels, law):
        for i, j in product(range(n), repeat=2):
            joint[i, j, tokens[i], tokens[j]] += probability
    return joint


def first_order_gradient(tokens: Sequence[int], target: Sequence[float]) -> np.ndarray:
    """d_vocab (y(x_i) / mu_hat(x_i) - m) 1[x_j = x_T] of one sequence, [i, j], j <= i; mu_hat counts all of it."""
    n_ctx, d_vocab = len(tokens), len(target)
    present = sum(target[a] for a in set(tokens))
    gradient = np.zeros((n_ctx, n_ctx))
    for i in range(n_ctx):
        for j in range(i + 1):
            if tokens[j] == tokens[-1]:
                gradient[i, j] = d_vocab * (target[tokens[i]] / (list(tokens).count(tokens[i]) / n_ctx) - present)
    return gradient


def expected_first_order_gradient(parents: Parents, kernel: np.ndarray, law: np.ndarray) -> np.ndarray:
    """Its expectation over every sequence of a forest and every query, uniform."""
    total, d_vocab = 0.0, len(law)
    for context, probability in sequence_probabilities(parents, {1: kernel}, law):
        for query in range(d_vocab):
            total = total + probability / d_vocab * first_order_gradient((*context, query), kernel[query])
    return total


def slot_ranges(d_vocab: int, n_ctx: int, n_heads: Sequence[int]) -> dict[str, slice]:
    """Name and coordinates of every slot: a head appends a copy of everything it read, token half before position half.

    Layer 1's copy of the tokens that head 0 of layer 0 wrote is "L1H0.L0H0.token", and so on.
    """
    blocks = [""]
    for layer, heads in enumerate(n_heads):
        blocks = blocks + [f"L{layer}H{head}.{block}" for head in range(heads) for block in blocks]
    ranges, start = {}, 0
    for block in blocks:
        for half, width in (("token", d_vocab), ("position", n_ctx)):
            ranges[block + half] = slice(start, start + width)
            start += width
    return ranges


def circuit_forward(
    attention: Attention,
    readout: Tensor,
    embedding: Tensor,
    slots: dict[str, slice],
    arrives: Callable[[str, str, Tensor], Tensor] = lambda slot, reader, own: own,
) -> tuple[Tensor, Tensor]:
    """Logits and the final residual stream, when `arrives(slot, reader, own value)` is what each reader gets.

    Readers are "L0H0.q", "L0H0.k", "L0H0.v", ..., "logits"; `embedding` is [batch, n_ctx, d_vocab + n_ctx].
    """
    h, n_ctx = embedding, embedding.shape[1]
    future = torch.ones(n_ctx, n_ctx, dtype=torch.bool).triu(1)

    def read(reader: str) -> Tensor:
        parts = [arrives(slot, reader, h[..., where]) for slot, where in slots.items() if where.stop <= h.shape[-1]]
        return torch.cat([part.expand(len(h), n_ctx, -1) for part in parts], dim=-1)

    for layer, heads in enumerate(attention):
        written = []
        for head, a in enumerate(heads):
            q, k, v = (read(f"L{layer}H{head}.{name}") for name in "qkv")
            scores = torch.einsum("bid,de,bje->bij", q, a, k)
            pattern = torch.softmax(scores.masked_fill(future, -torch.inf), dim=-1)
            written.append(torch.einsum("bij,bjd->bid", pattern, v))
        h = torch.cat([h, *written], dim=-1)
    return read("logits")[:, -1] @ readout, h


def embedding_of(tokens: Tensor, d_vocab: int) -> Tensor:
    """[x, e] of a batch, float64."""
    batch, n_ctx = tokens.shape
    embedding = torch.zeros(batch, n_ctx, d_vocab + n_ctx, dtype=torch.float64)
    for b, i in product(range(batch), range(n_ctx)):
        embedding[b, i, tokens[b, i]] = embedding[b, i, d_vocab + i] = 1.0
    return embedding


def subset_counts(
    parents: Parents, d_vocab: int, tokens: Sequence[int], which: Sequence[int], pseudo_count: float
) -> list[float]:
    """Smoothed frequencies of what followed the target's tokens at some of its parents, by plain counting."""
    *above, target = parents
    counts = [pseudo_count] * d_vocab
    for position, own in enumerate(above):
        if len(own) == len(target) and all(tokens[own[m]] == tokens[target[m]] for m in which):
            counts[tokens[position]] += 1
    return [count / sum(counts) for count in counts]


def reduced_forward_of_heads(a1: Tensor, a2: Tensor, tokens: Tensor, d_vocab: int) -> Tensor:
    """f of the reduced model with several heads, [d_vocab]: copies compared head by head, in plain loops."""
    n = len(tokens)
    x = torch.eye(d_vocab, dtype=a1.dtype)[tokens]
    scores = torch.zeros(n, dtype=a1.dtype)
    for own, match in zip(a1, a2, strict=True):
        copies = [sum(w * x[j] for j, w in enumerate(torch.softmax(own[i, : i + 1], dim=0))) for i in range(n)]
        scores += torch.stack([copies[-1] @ match @ copies[i] for i in range(n)])
    return torch.softmax(scores, dim=0) @ x


def gradient_by_autograd(parents: Parents, kernels: dict[int, np.ndarray], law: np.ndarray, beta0: float) -> np.ndarray:
    """Minus the gradient of the reduced model's expected loss w.r.t. A1 = 0, times d_vocab n_ctx / beta0."""
    *context, target = parents
    n, d_vocab = len(context), len(law)
    a1 = torch.zeros(n, n, dtype=torch.float64, requires_grad=True)
    a2, loss = beta0 * torch.eye(d_vocab, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for tokens, probability in sequence_probabilities(context, kernels, law):
        f = reduced_forward(a1, a2, torch.tensor(tokens)[None], d_vocab)[0]
        y = torch.from_numpy(kernels[len(target)][tuple(tokens[t] for t in target)])
        seen = f > 0  # the model says nothing of tokens that do not occur, whatever A1
        loss = loss - probability * (y[seen] * f[seen].log()).sum()
    loss.backward()
    return -a1.grad.numpy() * d_vocab * n / beta0
