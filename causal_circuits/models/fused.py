# mypy: disable-error-code="assignment,index,no-untyped-call"
# (the kernel is typed by numba, whose float32 scalars and loop variables mypy reads as numpy generics)
"""The fused step: loss and every gradient of a two-layer disentangled model in one pass, compiled by numba.

The same quantities as `structured.structured_logits` and its autograd backward, sequence by sequence, with
nothing stored for the batch. Notation for one sequence x of length T, one layer-1 head (paper) = layer 0 here:

    P_h[i, j]   pattern of layer-0 head h;  its exp(scores) is a product of two table look-ups,
                exp(E[i, x_i, x_j]) exp(E[i, x_i, S + j]), E[i, a] = A[a] + A[S + i]
    q           the last query's residual times A of layer 1, [d1]
    r_h[k]      q[block h][x_k] + q[block h][S + k];  scores t = q[x] + q[S + .] + sum_h P_h r_h
    p           softmax(t);  u_h = P_h^T p;  logits = sum over blocks of row (W[x] + W[S + .])

Backward, with c_h[k] the gradient that reaches u_h[k]:

    dp = c_0 + sum_h P_h c_h;   dt = p (dp - p.dp);   dP_h = p (x) c_h + dt (x) r_h      (rank two)
    dS_h = P_h (dP_h - rowsum), whose row sums are p (P_h c_h) + dt (P_h r_h): already at hand.

numba is optional: without it, or when a hook is attached, training takes the structured forward and autograd.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from inspect import unwrap  # numba compiles the function itself, not a run-time type check around it
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from transformer_lens import HookedTransformer

from causal_circuits.models.layout import has_layout, layout_of

try:
    import numba
except ImportError:  # the extra "fast" is not installed
    numba = None


@dataclass(frozen=True)
class FusedStep:
    """What one pass over a batch gives.

    Attributes:
        loss: mean cross-entropy in nats.
        attention: [head_index, n_ctx, n_ctx]; layer 0's pattern, averaged over the batch.
        score_gradient: [head_index, n_ctx, n_ctx]; gradient of the mean loss with respect to layer 0's scores,
            summed over the batch.
    """

    loss: float
    attention: Tensor
    score_gradient: Tensor


def can_fuse(model: HookedTransformer) -> bool:
    """Whether the fused step may stand in for autograd: numba, a CPU, float32, two layers, no hook attached."""
    return (
        numba is not None
        and has_layout(model)
        and layout_of(model).kind == "disentangled"
        and layout_of(model).n_layers == 2
        and model.W_U.device.type == "cpu"
        and model.W_U.dtype == torch.float32
        and not any(point.fwd_hooks or point.bwd_hooks for point in model.hook_dict.values())
    )


def fused_step(
    model: HookedTransformer, tokens: Tensor, target_probs: Tensor, n_threads: int | None = None
) -> FusedStep:
    """Set `.grad` of the trainable parameters to the gradient of the mean loss on a batch, and return its record.

    The batch is cut into `n_threads` parts (None: as many as torch uses), which decides the order of summation.
    """
    layout = layout_of(model)
    (m1, m2), d0, d1, n_ctx = layout.n_heads, layout.d_block, layout.width(1), layout.n_ctx
    first, second, unembed = (p.detach() for p in (model.blocks[0].attn.W_Q, model.blocks[1].attn.W_Q, model.W_U))
    table = np.ascontiguousarray(_table(first[:m1, :d0, :d0].numpy(), layout.d_vocab))
    a2, w = np.ascontiguousarray(second[:m2, :d1, :d1].numpy()), unembed.numpy()
    bounds = np.linspace(0, len(tokens), min(n_threads or torch.get_num_threads(), len(tokens)) + 1).astype(int)
    arrays = tokens.numpy(), target_probs.numpy()
    jobs = [(*(a[s:e] for a in arrays), table, a2, w, layout.d_vocab) for s, e in pairwise(bounds)]
    parts = list(_pool().map(lambda job: _kernel()(*job), jobs))
    scale = np.float32(1.0 / len(tokens))
    loss, d_table, d_a2, d_w, pattern = (sum(part) for part in zip(*parts, strict=True))
    rows = d_table.sum(axis=2) * scale  # [head, position, d0]: all tokens at a position
    d_first = torch.zeros_like(first)
    d_first[:m1, : layout.d_vocab, :d0] = torch.from_numpy(d_table.sum(axis=1) * scale)
    d_first[:m1, layout.d_vocab : d0, :d0] = torch.from_numpy(rows)
    d_second = torch.zeros_like(second)
    d_second[:m2, :d1, :d1] = torch.from_numpy(d_a2 * scale)
    model.blocks[0].attn.W_Q.grad, model.blocks[1].attn.W_Q.grad = d_first, d_second
    model.unembed.W_U.grad = torch.from_numpy(d_w * scale)
    gradient = torch.from_numpy(rows[:, :, layout.d_vocab :].copy())
    assert pattern.shape == (m1, n_ctx, n_ctx)
    return FusedStep(float(loss) / len(tokens), torch.from_numpy(pattern * scale), gradient)


def _table(weights: np.ndarray, d_vocab: int) -> np.ndarray:
    """E[head, i, a] = A[a] + A[d_vocab + i], the score row of token a at position i."""
    return weights[:, None, :d_vocab] + weights[:, d_vocab:, None]


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count())


# Sums may be reordered and fused; NaN and infinity keep their meaning, so that a loss that goes wrong is seen.
_REORDERING = {"reassoc", "contract", "arcp", "nsz"}


@cache
def _kernel():  # type: ignore[no-untyped-def]  # numba's dispatcher has no useful static type
    return numba.njit(nogil=True, fastmath=_REORDERING, cache=True, error_model="numpy")(unwrap(_batch_gradient))


def _batch_gradient(tokens, targets, table, a2, w, n_tok):  # type: ignore[no-untyped-def]  # compiled by numba
    n_batch, n_ctx = tokens.shape
    m1, m2, d0, d1 = table.shape[0], a2.shape[0], table.shape[3], a2.shape[1]
    last, n_blocks = n_ctx - 1, 1 + m1
    exp_table = np.empty_like(table)  # token half and position half each scaled by its own largest entry
    for h in range(m1):
        for i in range(n_ctx):
            for a in range(n_tok):
                row, out = table[h, i, a], exp_table[h, i, a]
                out[:n_tok] = np.exp(row[:n_tok] - row[:n_tok].max())
                out[n_tok : n_tok + i + 1] = np.exp(row[n_tok : n_tok + i + 1] - row[n_tok : n_tok + i + 1].max())
                out[n_tok + i + 1 :] = 0.0
    loss = 0.0
    d_table, d_a2, d_w = np.zeros_like(table), np.zeros_like(a2), np.zeros_like(w)
    pattern_sum = np.zeros((m1, n_ctx, n_ctx), np.float32)
    pattern = np.zeros((m1, n_ctx, n_ctx), np.float32)
    mixed = np.zeros((m1, d0), np.float32)  # last row of each pattern, gathered by token and by position
    q, dq = np.empty((m2, d1), np.float32), np.empty(d1, np.float32)
    r, reached = np.empty((m2, m1, n_ctx), np.float32), np.empty((m2, m1, n_ctx), np.float32)
    c, passed = np.empty((m2, n_blocks, n_ctx), np.float32), np.empty((m2, m1, n_ctx), np.float32)
    p, dt, u = (
        np.empty((m2, n_ctx), np.float32),
        np.empty((m2, n_ctx), np.float32),
        np.empty((m2, m1, n_ctx), np.float32),
    )
    d_last = np.empty((m1, n_ctx), np.float32)
    d_mixed = np.empty((m1, d0), np.float32)
    logits, d_logits, acc = np.empty(n_tok, np.float32), np.empty(n_tok, np.float32), np.empty(d0, np.float32)
    dp = np.empty(n_ctx, np.float32)
    for b in range(n_batch):
        x = tokens[b]
        # ---- layer 0
        for h in range(m1):
            for i in range(n_ctx):
                row, e = pattern[h, i], exp_table[h, i, x[i]]
                z = np.float32(0.0)
                for j in range(i + 1):
                    value = e[x[j]] * e[n_tok + j]
                    row[j] = value
                    z += value
                if z < np.float32(1e-25):  # no key comes near both maxima: take the row's own
                    raw = table[h, i, x[i]]
                    top = np.float32(-np.inf)
                    for j in range(i + 1):
                        top = max(top, raw[x[j]] + raw[n_tok + j])
                    z = np.float32(0.0)
                    for j in range(i + 1):
                        row[j] = np.exp(raw[x[j]] + raw[n_tok + j] - top)
                        z += row[j]
                z = np.float32(1.0) / z
                total = pattern_sum[h, i]
                for j in range(i + 1):
                    row[j] *= z
                    total[j] += row[j]
            mixed[h, :n_tok] = 0.0
            for k in range(n_ctx):
                mixed[h, x[k]] += pattern[h, last, k]
                mixed[h, n_tok + k] = pattern[h, last, k]
        # ---- layer 1, last query only
        for m in range(m2):
            qm, first_token, first_position = q[m], a2[m, x[last]], a2[m, n_tok + last]
            for d in range(d1):
                qm[d] = first_token[d] + first_position[d]
            for h in range(m1):
                for k in range(d0):
                    weight, source = mixed[h, k], a2[m, d0 * (1 + h) + k]
                    for d in range(d1):
                        qm[d] += weight * source[d]
            pm, top = p[m], np.float32(-np.inf)
            for h in range(m1):
                o, rh = d0 * (1 + h), r[m, h]
                for k in range(n_ctx):
                    rh[k] = qm[o + x[k]] + qm[o + n_tok + k]
            for j in range(n_ctx):
                score = qm[x[j]] + qm[n_tok + j]
                for h in range(m1):
                    row, rh, s = pattern[h, j], r[m, h], np.float32(0.0)
                    for k in range(n_ctx):
                        s += row[k] * rh[k]
                    reached[m, h, j] = s
                    score += s
                pm[j] = score
                top = max(top, score)
            z = np.float32(0.0)
            for j in range(n_ctx):
                pm[j] = np.exp(pm[j] - top)
                z += pm[j]
            z = np.float32(1.0) / z
            for j in range(n_ctx):
                pm[j] *= z
            for h in range(m1):
                uh = u[m, h]
                uh[:] = 0.0
                for j in range(n_ctx):
                    row, weight = pattern[h, j], pm[j]
                    for k in range(n_ctx):
                        uh[k] += weight * row[k]
        # ---- logits, block by block
        for s in range(n_tok):
            logits[s] = w[x[last], s] + w[n_tok + last, s]
        for h in range(m1):
            for k in range(d0):
                for s in range(n_tok):
                    logits[s] += mixed[h, k] * w[d0 * (1 + h) + k, s]
        for m in range(m2):
            for block in range(n_blocks):
                o = d0 * (n_blocks * (1 + m) + block)
                row = p[m] if block == 0 else u[m, block - 1]
                acc[:n_tok] = 0.0
                for k in range(n_ctx):
                    acc[x[k]] += row[k]
                    for s in range(n_tok):
                        logits[s] += row[k] * w[o + n_tok + k, s]
                for a in range(n_tok):
                    for s in range(n_tok):
                        logits[s] += acc[a] * w[o + a, s]
        top = logits.max()
        z = np.float32(0.0)
        for s in range(n_tok):
            z += np.exp(logits[s] - top)
        log_z = np.log(z) + top
        total_target = np.float32(0.0)
        for s in range(n_tok):
            total_target += targets[b, s]
        for s in range(n_tok):
            loss -= targets[b, s] * (logits[s] - log_z)
            d_logits[s] = total_target * np.exp(logits[s] - log_z) - targets[b, s]
        # ---- backward through W_U
        for s in range(n_tok):
            d_w[x[last], s] += d_logits[s]
            d_w[n_tok + last, s] += d_logits[s]
        for h in range(m1):
            for k in range(d0):
                o, value = d0 * (1 + h) + k, np.float32(0.0)
                for s in range(n_tok):
                    d_w[o, s] += mixed[h, k] * d_logits[s]
                    value += w[o, s] * d_logits[s]
                d_mixed[h, k] = value
        for m in range(m2):
            for block in range(n_blocks):
                o, cb = d0 * (n_blocks * (1 + m) + block), c[m, block]
                row = p[m] if block == 0 else u[m, block - 1]
                for a in range(n_tok):
                    value = np.float32(0.0)
                    for s in range(n_tok):
                        value += w[o + a, s] * d_logits[s]
                    acc[a] = value
                for k in range(n_ctx):
                    value = np.float32(0.0)
                    for s in range(n_tok):
                        value += w[o + n_tok + k, s] * d_logits[s]
                        d_w[o + n_tok + k, s] += row[k] * d_logits[s]
                    cb[k] = acc[x[k]] + value
                acc[:n_tok] = 0.0
                for k in range(n_ctx):
                    acc[x[k]] += row[k]
                for a in range(n_tok):
                    for s in range(n_tok):
                        d_w[o + a, s] += acc[a] * d_logits[s]
        # ---- backward through layer 1
        for m in range(m2):
            pm = p[m]
            inner = np.float32(0.0)
            for j in range(n_ctx):
                value = c[m, 0, j]
                for h in range(m1):
                    row, ch, s = pattern[h, j], c[m, 1 + h], np.float32(0.0)
                    for k in range(n_ctx):
                        s += row[k] * ch[k]
                    passed[m, h, j] = s
                    value += s
                dp[j] = value
                inner += pm[j] * value
            dq[:] = 0.0
            for j in range(n_ctx):
                dt[m, j] = pm[j] * (dp[j] - inner)
                dq[x[j]] += dt[m, j]
                dq[n_tok + j] += dt[m, j]
            for h in range(m1):
                o = d0 * (1 + h)
                acc[:n_ctx] = 0.0
                for j in range(n_ctx):
                    row, weight = pattern[h, j], dt[m, j]
                    for k in range(n_ctx):
                        acc[k] += weight * row[k]
                for k in range(n_ctx):
                    dq[o + x[k]] += acc[k]
                    dq[o + n_tok + k] += acc[k]
            by_token, by_position = d_a2[m, x[last]], d_a2[m, n_tok + last]
            for d in range(d1):
                by_token[d] += dq[d]
                by_position[d] += dq[d]
            for h in range(m1):
                for k in range(d0):
                    source, grad = a2[m, d0 * (1 + h) + k], d_a2[m, d0 * (1 + h) + k]
                    weight, value = mixed[h, k], np.float32(0.0)
                    for d in range(d1):
                        grad[d] += weight * dq[d]
                        value += source[d] * dq[d]
                    d_mixed[h, k] += value
        # ---- backward through layer 0
        for h in range(m1):
            for k in range(n_ctx):
                d_last[h, k] = d_mixed[h, x[k]] + d_mixed[h, n_tok + k]
            for j in range(n_ctx):
                row, grad = pattern[h, j], d_table[h, j, x[j]]
                acc[: j + 1] = 0.0
                mean = np.float32(0.0)
                for m in range(m2):
                    weight_c, weight_r, ch, rh = p[m, j], dt[m, j], c[m, 1 + h], r[m, h]
                    mean += weight_c * passed[m, h, j] + weight_r * reached[m, h, j]
                    for k in range(j + 1):
                        acc[k] += weight_c * ch[k] + weight_r * rh[k]
                if j == last:
                    for k in range(n_ctx):
                        acc[k] += d_last[h, k]
                        mean += row[k] * d_last[h, k]
                for k in range(j + 1):
                    acc[k] = row[k] * (acc[k] - mean)
                    grad[n_tok + k] += acc[k]
                for k in range(j + 1):
                    grad[x[k]] += acc[k]
    return loss, d_table, d_a2, d_w, pattern_sum
