"""The fused step: loss and every gradient of a two-layer model in one pass of the native core.

The same quantities as the forwards of `models.structured` and their autograd backward, sequence by sequence, with
nothing stored for the batch; `src/native/step.cpp` and `reduced.cpp` have the mathematics. The batch sum of the
gradient of layer 0's scores is the gradient of A's position-position block (of a reduced model's A1), so recording it
costs nothing. Without the core, or when a hook is attached, training takes the structured forward and autograd.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from causal_circuits import native
from causal_circuits.models.acceptance import takes_fast_forward
from causal_circuits.models.annotation import HookedTransformer
from causal_circuits.models.layout import Block, has_layout, layout_of, masked
from causal_circuits.models.structured import always_plain, has_only_a1_and_a2

Sizes = tuple[int, int, int, int]
# The weights of the core, in its order, as a Stage names them; a reduced model has the first two.
TRAINED = ("W_Q.0", "W_Q.1", "W_U")


def can_fuse(model: HookedTransformer) -> bool:
    """Whether the fused step may stand in for autograd: the core, two layers, float32 on a CPU, nothing foreign.

    Foreign is what `models.acceptance` names, and what only autograd would honour: hooks on a parameter's gradient,
    tied parameters, autocast. A reduced model has one copying head and nothing but A1 and A2.
    """
    if not (native.available() and has_layout(model)) or always_plain() or torch.is_autocast_enabled("cpu"):
        return False
    if layout_of(model).n_layers != 2 or not takes_fast_forward(model):
        return False
    if layout_of(model).kind == "reduced" and not has_only_a1_and_a2(model):
        return False
    trained = [parameter for parameter, _ in _trained(model)]
    return len({parameter.data_ptr() for parameter in trained}) == len(trained) and all(
        parameter.device.type == "cpu"
        and parameter.dtype == torch.float32
        and all(
            isinstance(hook, partial) and hook.func is masked for hook in (parameter._backward_hooks or {}).values()
        )
        and not parameter._post_accumulate_grad_hooks
        for parameter in trained
    )


def _trained(model: HookedTransformer) -> tuple[tuple[torch.nn.Parameter, Block], ...]:
    """The core's weights: each one's parameter, and the entries of it that live heads use."""
    layout, first, second = layout_of(model), model.blocks[0].attn.W_Q, model.blocks[1].attn.W_Q
    (m1, m2), named = layout.n_heads, layout.slots()
    if layout.kind == "reduced":
        a1 = (slice(m1), named["position"].slice, slice(layout.n_ctx))
        return (first, a1), (second, (slice(m2), named["token"].slice, slice(layout.d_vocab)))
    a1, a2 = (
        (slice(heads), slice(width), slice(width)) for heads, width in ((m1, layout.d_block), (m2, layout.width(1)))
    )
    return (first, a1), (second, a2), (model.unembed.W_U, (slice(None),))


def sizes_of(model: HookedTransformer) -> Sizes:
    """(n_ctx, d_vocab, heads of layer 0, heads of layer 1)."""
    layout = layout_of(model)
    return layout.n_ctx, layout.d_vocab, *layout.n_heads  # type: ignore[return-value]  # two layers: see can_fuse


def live_weights(model: HookedTransformer) -> tuple[Tensor, ...]:
    """A1 [m1, d0, d0], A2 [m2, d1, d1] and W_U [d_model, d_vocab]: views of the entries that live heads use.

    Of a reduced model A1 [1, n_ctx, n_ctx] and A2 [1, d_vocab, d_vocab].
    """
    return tuple(parameter.detach()[block] for parameter, block in _trained(model))


def score_gradients(model: HookedTransformer, first_gradient: Tensor) -> Tensor:
    """The gradient of layer 0's scores, summed over the batch, [..., head, n_ctx, n_ctx], from that of its weights."""
    start = 0 if layout_of(model).kind == "reduced" else layout_of(model).d_vocab
    return first_gradient[..., start:, start:]


def new_trainer(
    model: HookedTransformer, members: int, batch_size: int, n_threads: int, samplers: Any = (), keys: Any = ()
) -> Any:
    """The core's trainer for models of these sizes; without samplers, the caller fills the batches."""
    sizes, reduced = sizes_of(model), layout_of(model).kind == "reduced"
    return native.core().Trainer(sizes, members, batch_size, n_threads, list(samplers), list(keys), reduced)


def fused_step(model: HookedTransformer, tokens: Tensor, target_probs: Tensor) -> float:
    """Set `.grad` of the trainable parameters to the gradient of the mean loss on a batch; return the loss, nats."""
    core = new_trainer(model, 1, len(tokens), torch.get_num_threads())
    for which, weight in enumerate(live_weights(model)):
        core.weights(which)[0] = weight.flatten().numpy()
    core.next_tokens[0], core.next_targets[0] = tokens.numpy(), target_probs.numpy()
    core.gradients(0, False)
    for which, (parameter, block) in enumerate(_trained(model)):
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
            parameter.grad[block] = torch.from_numpy(core.gradients_of(which)[0]).view_as(parameter[block])
    return float(core.losses[0])
