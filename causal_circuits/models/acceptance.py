"""What the fast forwards accept, and what has been done to a model since it was built.

A fast forward (structured, compiled, closed form, last position only) computes what a HookedTransformer computes *if*
the model is what it was written for. So it says what it accepts: modules of TransformerLens's own classes with their
own `forward`, config fields at values that it knows, the frozen weights that the layout prescribes, no hook that it
does not call. Everything else takes the plain forward of TransformerLens, or is refused by name (`attachments`); what
nobody thought of is found by `agreement`.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, no_type_check

import torch
from torch import nn
from torch.nn.utils import parametrize

from causal_circuits.arguments import check_arguments
from causal_circuits.models.annotation import HookedTransformer
from causal_circuits.models.layout import frozen_identities, has_layout, layout_of

# Fields of a config that a forward does not depend on, or that the fast forwards read from the model itself (sizes,
# attention scale, MLP). Every other field has to have its default, which stands for "this feature is off".
_FREE_FIELDS = """
    d_model d_head n_layers n_ctx n_heads d_mlp d_vocab d_vocab_out dtype device act_fn attn_only use_attn_scale
    attn_scale use_attn_result use_attn_in use_split_qkv_input use_hook_mlp_in use_hook_tokens model_name tokenizer_name
    from_checkpoint checkpoint_index checkpoint_label_type checkpoint_value n_params default_prepend_bos
    tokenizer_prepends_bos seed init_mode init_weights initializer_range eps trust_remote_code
"""
FREE_FIELDS = frozenset(_FREE_FIELDS.split())
REQUIRED = {"normalization_type": None}  # where the default is not what the fast forwards compute

Kind = Literal[
    "hook", "native hook", "parametrization", "replaced module", "compiled module", "edited weight", "config field"
]


@dataclass(frozen=True)
class Attachment:
    """Something about a model that a fast forward does not know: what it is, and where."""

    kind: Kind
    where: str

    def __str__(self) -> str:
        preposition = {"hook": "on", "native hook": "on", "parametrization": "of"}.get(self.kind, "at")
        return f"{self.kind} {preposition} {self.where}"


_KINDS_OF_HOOKS = ("forward", "forward_pre", "backward", "backward_pre")


@cache
def known_classes() -> frozenset[type[nn.Module]]:
    """Modules whose forward the fast forwards know: a HookedTransformer's, and what computes what they do."""
    from causal_circuits.models.hooked import known_modules
    from causal_circuits.models.reduced import ReducedTransformer

    return known_modules() | {ReducedTransformer}


def foreign(model: HookedTransformer) -> Iterator[Attachment]:
    """Everything about a model that the fast forwards have to know of: hooks, native hooks, foreign modules, edits."""
    from causal_circuits.models.hooked import HookPoint

    if any(getattr(nn.modules.module, f"_global_{kind}_hooks") for kind in _KINDS_OF_HOOKS):
        yield Attachment("native hook", "every module (torch.nn.modules.module)")
    for name, module in model.named_modules():
        if has_hooks(module):
            is_point = type(module) is HookPoint
            yield Attachment("hook" if is_point else "native hook", module.name if is_point else name or "the model")
        if module._compiled_call_impl is not None:
            yield Attachment("compiled module", name or "the model")
        if parametrize.is_parametrized(module):
            for weight in module.parametrizations:  # type: ignore[union-attr]  # a ModuleDict, where there are some
                yield Attachment("parametrization", f"{name}.{weight}".removeprefix("."))
        elif ".parametrizations" not in f".{name}" and (
            type(module) not in known_classes() or not vars(module).keys().isdisjoint(_methods(type(module)))  # type: ignore[arg-type]
        ):
            yield Attachment("replaced module", f"{name or 'the model'} ({type(module).__name__})")
    yield from (Attachment("config field", field) for field in foreign_fields(model))
    if has_layout(model):
        yield from (Attachment("edited weight", name) for name in edited_weights(model))


@cache
def _methods(cls: type[nn.Module]) -> frozenset[str]:
    """What a module would have to have of its own for a call to do something else: a method of its class, replaced."""
    return frozenset(name for name in dir(cls) if callable(getattr(cls, name, None)) and name != "_compiled_call_impl")


@check_arguments
def attachments(model: HookedTransformer) -> tuple[str, ...]:
    """What has been attached to a model, or edited in it, in words; results carry it as ``attached``.

    Hooks of TransformerLens and of torch, parametrizations and, in a model of ours, frozen weights and config fields
    that are no longer what the model was built with.

    >>> model = cc.disentangled_transformer(d_vocab=3, n_ctx=4)
    >>> attachments(model)
    ()
    >>> model.add_hook("blocks.0.attn.hook_z", lambda z, hook: z * 0)
    >>> attachments(model)
    ('hook on blocks.0.attn.hook_z',)
    """
    ours = has_layout(model)
    return tuple(
        str(found) for found in foreign(model) if ours or found.kind not in ("replaced module", "config field")
    )


def is_bridge(model: HookedTransformer) -> bool:
    """Whether the model is a TransformerBridge."""
    return hasattr(model, "original_model")


@no_type_check  # asked of every module before every fast forward
def has_hooks(module: nn.Module) -> bool:
    """Whether torch calls anything before or after this module's forward or backward, a bridge's own hooks left out."""
    tables = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(
        not getattr(hook, "__module__", "").startswith("transformer_lens.model_bridge")
        for table in tables
        for hook in table.values()
    )


def foreign_fields(model: HookedTransformer) -> list[str]:
    """The config fields that no fast forward knows, by name and value."""
    defaults = _defaults(model.cfg.__class__)
    found = []
    for name, value in vars(model.cfg).items():
        if name in FREE_FIELDS or (name in defaults and value == REQUIRED.get(name, defaults[name])):
            continue
        found.append(f"{name}={value!r}")
    return found


@cache
def _defaults(config: Any) -> dict[str, Any]:
    """The fields of a class of configs, and what stands for "this feature is off"."""
    if config.__name__ == "TransformerBridgeConfig":  # no dataclass, though its base is one
        defaults = vars(config(d_model=1, d_head=1, n_layers=1, n_ctx=1))
        return defaults | {"architecture": "TransformerLensNative"}
    return {field.name: field.default for field in dataclasses.fields(config)}


@torch.no_grad()
def edited_weights(model: HookedTransformer) -> list[str]:
    """The frozen weights of a model of ours that are not what its layout prescribes (identity blocks, else zeros)."""
    identities = frozen_identities(layout_of(model))
    edited = []
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, blocks in identities.items():
        weight = parameters.get(name)
        if weight is None:
            edited.append(name)
            continue
        diagonals = [weight[block].diagonal() for block in blocks]
        ones = sum(diagonal.numel() for diagonal in diagonals)
        if int(weight.count_nonzero()) != ones or not all(bool((diagonal == 1).all()) for diagonal in diagonals):
            edited.append(name)
    edited += [f"blocks.{layer}.attn.attn_scale" for layer, b in enumerate(model.blocks) if b.attn.attn_scale != 1.0]
    return edited


def takes_fast_forward(model: HookedTransformer, served: Callable[[str], bool] = lambda name: False) -> bool:
    """Whether there is nothing about a model but hooks that a fast forward calls itself (`served`, by name)."""
    return all(found.kind == "hook" and served(found.where) for found in foreign(model))


@check_arguments
def refuse_foreign(model: HookedTransformer, tool: str, remedy: str) -> None:
    """Raise a ValueError that names the first thing that `tool`, which reads the weights alone, would not see."""
    for found in foreign(model):
        if is_bridge(model) and found.kind == "replaced module":
            continue  # a bridge is made of other modules
        raise ValueError(f"{tool} reads the model's weights alone and would not see the {found}: {remedy}")
