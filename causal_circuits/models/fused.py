"""The fused step: loss and every gradient of a two-layer disentangled model in one pass, compiled by numba.

The same quantities as `structured.structured_logits` and its autograd backward, sequence by sequence, with nothing
stored for the batch. Notation for one sequence x of length T, one layer-1 head (paper) = layer 0 here:

    P_h[i, j]   pattern of layer-0 head h: softmax of A[x_i, x_j] + A[S + i, x_j] + A[x_i, S + j] + A[S + i, S + j]
    q           the last query's residual times A of layer 1, [d1]
    r_h[k]      q[block h][x_k] + q[block h][S + k];  scores t = q[x] + q[S + .] + sum_h P_h r_h
    p           softmax(t);  u_h = P_h^T p;  logits = sum over blocks of row (W[x] + W[S + .])

Backward, with c_h[k] the gradient that reaches u_h[k]:

    dp = c_0 + sum_h P_h c_h;   dt = p (dp - p.dp);   dP_h = p (x) c_h + dt (x) r_h      (rank two)
    dS_h = P_h (dP_h - rowsum), whose row sums are p (P_h c_h) + dt (P_h r_h): already at hand.

p.dp is the product of the outputs p and u_h with what reaches them, c_0 and c_h, so dt is known as soon as a row of
P_h c_h is: rows of P are needed a band at a time. In long contexts, whose rows do not fit the cache, they are not kept
but computed again on the way back, and u_h is summed relative to the largest score so far (an online softmax).

The batch sum of dS_h is the gradient of A's position-position block, so recording it costs nothing. e^scores is a
product of entries of four tables, the exponentials of A's blocks, which are taken once a batch; only if a row's largest
product could underflow (`fused_kernel.arrays.WIDEST_GAP`) is the exponential of every score taken. The arithmetic
stands in `fused_kernel/`. numba is optional: without it, or when a hook is attached, training takes the structured
forward and autograd.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformer_lens import HookedTransformer

from causal_circuits import simd
from causal_circuits.models.acceptance import takes_fast_forward
from causal_circuits.models.layout import has_layout, layout_of
from causal_circuits.models.structured import always_plain

Sizes = tuple[int, int, int, int]
Weights = tuple[np.ndarray, ...]

# A run of this many sequences pays for a kernel compiled for its own sizes (half a minute, up to twice as fast).
FREEZE_FROM = 2**24


@dataclass(frozen=True)
class FusedStep:
    """What one pass over a batch gives.

    Attributes:
        loss: mean cross-entropy in nats.
        attention: [head_index, n_ctx, n_ctx]; layer 0's pattern, averaged over the batch.
        score_gradient: [head_index, n_ctx, n_ctx]; gradient of the mean loss with respect to layer 0's scores,
            summed over the batch.
        weight_gradient: the same shape; gradient with respect to layer 0's pattern, zero above the diagonal.
    """

    loss: float
    attention: Tensor
    score_gradient: Tensor
    weight_gradient: Tensor


def can_fuse(model: HookedTransformer) -> bool:
    """Whether the fused step may stand in for autograd: numba, two layers, float32 on a CPU, nothing foreign.

    Foreign is what `models.acceptance` names, and what only autograd would honour: hooks on a parameter's gradient,
    tied parameters, autocast.
    """
    if not (simd.available() and has_layout(model)) or always_plain() or torch.is_autocast_enabled("cpu"):
        return False
    if layout_of(model).kind != "disentangled" or layout_of(model).n_layers != 2 or not takes_fast_forward(model):
        return False
    trained = _trained_parameters(model)
    return len({parameter.data_ptr() for parameter in trained}) == len(trained) and all(
        parameter.device.type == "cpu"
        and parameter.dtype == torch.float32
        and not parameter._backward_hooks
        and not parameter._post_accumulate_grad_hooks
        for parameter in trained
    )


def _trained_parameters(model: HookedTransformer) -> tuple[torch.nn.Parameter, ...]:
    """W_Q of both layers and W_U."""
    return model.blocks[0].attn.W_Q, model.blocks[1].attn.W_Q, model.unembed.W_U


def sizes_of(model: HookedTransformer) -> Sizes:
    """(n_ctx, d_vocab, heads of layer 0, heads of layer 1)."""
    layout = layout_of(model)
    return layout.n_ctx, layout.d_vocab, *layout.n_heads  # type: ignore[return-value]  # two layers: see can_fuse


def live_weights(model: HookedTransformer) -> tuple[Tensor, Tensor, Tensor]:
    """A1 [m1, d0, d0], A2 [m2, d1, d1] and W_U [d_model, d_vocab]: views of the entries that live heads use."""
    layout = layout_of(model)
    (m1, m2), d0, d1 = layout.n_heads, layout.d_block, layout.width(1)
    first, second = model.blocks[0].attn.W_Q, model.blocks[1].attn.W_Q
    return first.detach()[:m1, :d0, :d0], second.detach()[:m2, :d1, :d1], model.unembed.W_U.detach()


def fused_step(model: HookedTransformer, tokens: Tensor, target_probs: Tensor) -> FusedStep:
    """Set `.grad` of the trainable parameters to the gradient of the mean loss on a batch, and return its record."""
    sizes, live = sizes_of(model), live_weights(model)
    weights = tuple(np.ascontiguousarray(weight.numpy()).reshape(1, -1) for weight in live)
    gradients = tuple(np.empty_like(weight) for weight in weights)
    watched, losses = np.empty((1, 2, sizes[2], sizes[0], sizes[0]), np.float32), np.empty(1)
    batch = tokens.contiguous().numpy()[None], target_probs.contiguous().numpy()[None]
    kernel_for(sizes)(*batch, weights, gradients, watched, np.float32(1.0 / len(tokens)), losses)
    for parameter, gradient, weight in zip(_trained_parameters(model), gradients, live, strict=True):
        if not parameter.requires_grad:
            continue
        parameter.grad = torch.zeros_like(parameter)
        parameter.grad[tuple(slice(size) for size in weight.shape)] = torch.from_numpy(gradient).view(weight.shape)
    n_tok = sizes[1]
    score_gradient = torch.from_numpy(gradients[0].reshape(live[0].shape)[:, n_tok:, n_tok:].copy())
    attention, weight_gradient = torch.from_numpy(watched[0])
    return FusedStep(float(losses[0]), attention, score_gradient, weight_gradient)


Kernel = Callable[[np.ndarray, np.ndarray, Weights, Weights, np.ndarray, np.float32, np.ndarray], None]


def kernel_for(sizes: Sizes, n_sequences: int = 0) -> Kernel:
    """The compiled gradient of `fused_kernel.batch_gradient` for models of these sizes.

    One kernel serves all sizes; runs of `FREEZE_FROM` sequences or more get one whose sizes are constants. It rounds
    differently, so nothing but the length of the run may decide.
    """
    from causal_circuits.models.fused_kernel import compiled, compiled_for, memory  # needs numba

    if n_sequences >= FREEZE_FROM:
        frozen = compiled_for(sizes)
        return lambda *arguments: frozen(*arguments, memory(sizes))
    general = compiled()
    return lambda *arguments: general(*arguments, memory(sizes), sizes)
