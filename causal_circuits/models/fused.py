"""The fused step: loss and every gradient of a two-layer disentangled model in one pass of the native core.

The same quantities as `structured.structured_logits` and its autograd backward, sequence by sequence, with nothing
stored for the batch; `src/native/step.cpp` has the mathematics. The batch sum of the gradient of layer 0's scores is
the gradient of A's position-position block, so recording it costs nothing. Without the core, or when a hook is
attached, training takes the structured forward and autograd.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from causal_circuits import native
from causal_circuits.models.acceptance import takes_fast_forward
from causal_circuits.models.hooked import HookedTransformer
from causal_circuits.models.layout import has_layout, layout_of
from causal_circuits.models.structured import always_plain

Sizes = tuple[int, int, int, int]
# The weights of the core, in its order, as a Stage names them.
TRAINED = ("W_Q.0", "W_Q.1", "W_U")


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
    """Whether the fused step may stand in for autograd: the core, two layers, float32 on a CPU, nothing foreign.

    Foreign is what `models.acceptance` names, and what only autograd would honour: hooks on a parameter's gradient,
    tied parameters, autocast.
    """
    if not (native.available() and has_layout(model)) or always_plain() or torch.is_autocast_enabled("cpu"):
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
    live, n_tok = live_weights(model), sizes_of(model)[1]
    core = native.core().Trainer(sizes_of(model), 1, len(tokens), torch.get_num_threads(), [], [])
    for which, weight in enumerate(live):
        core.weights(which)[0] = weight.flatten().numpy()
    core.next_tokens[0], core.next_targets[0] = tokens.numpy(), target_probs.numpy()
    core.gradients(0, True)
    gradients = [torch.from_numpy(core.gradients_of(which)[0]).view(weight.shape) for which, weight in enumerate(live)]
    for parameter, gradient in zip(_trained_parameters(model), gradients, strict=True):
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
            parameter.grad[tuple(slice(size) for size in gradient.shape)] = gradient
    n_ctx, _, n_heads, _ = sizes_of(model)
    attention, weight_gradient = torch.from_numpy(core.watched[0, : 2 * n_heads * n_ctx**2]).view(
        2, n_heads, n_ctx, n_ctx
    )
    return FusedStep(float(core.losses[0]), attention, gradients[0][:, n_tok:, n_tok:].clone(), weight_gradient)
