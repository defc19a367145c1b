"""The one door to TransformerLens: its HookedTransformer where it has one (3.9), and else (4.x) the same of ours.

TransformerLens 4 has no HookedTransformer, but kept what it was made of: `HookedRootModule` and `HookPoint`. Our
`Transformer` is made of these: the same parameters, names, shapes and order, the same hooks, the same numbers. It knows
embeddings, learned positions, causal attention and an MLP with ReLU; a config field that asks for anything else is
refused by name. It is tested beside TransformerLens 3.9's own class, and on 4.x beside a bridge of the same weights.

This module is imported when the first model is built: importing TransformerLens takes seconds.
"""

import warnings
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, fields
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens import ActivationCache, FactoredMatrix, HookedRootModule
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities import TypedModuleList, lm_cross_entropy_loss

try:
    from transformer_lens import HookedTransformer as LibraryTransformer  # 3.9
    from transformer_lens import components
except ImportError:
    LibraryTransformer = components = None

__all__ = [
    "HookPoint",
    "HookedTransformer",
    "LibraryTransformer",
    "Transformer",
    "TransformerConfig",
    "boot_bridge",
    "build_transformer",
    "known_modules",
]

_UNKNOWN = (
    "on TransformerLens 4 a transformer of causal_circuits has learned positions, causal attention and perhaps an MLP "
    "with ReLU: got {field}={value!r}; take TransformerBridge.boot_native, which every tool for any model takes"
)


@dataclass
class TransformerConfig:
    """The fields of a HookedTransformerConfig that `Transformer` knows, under their names and with their defaults."""

    d_model: int
    d_head: int
    n_layers: int
    n_ctx: int
    n_heads: int
    d_vocab: int
    d_vocab_out: int = -1  # d_vocab
    d_mlp: int | None = None
    act_fn: str = "relu"
    attn_only: bool = False
    use_attn_scale: bool = True
    attn_scale: float = -1.0  # the root of d_head
    use_attn_result: bool = False
    use_attn_in: bool = False
    use_split_qkv_input: bool = False
    use_hook_mlp_in: bool = False
    normalization_type: str | None = None
    positional_embedding_type: str = "standard"
    attention_dir: str = "causal"
    n_key_value_heads: int | None = None
    default_prepend_bos: bool = False
    init_weights: bool = False
    model_name: str = "custom"
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name in _FIXED and getattr(self, field.name) != field.default:
                raise ValueError(_UNKNOWN.format(field=field.name, value=getattr(self, field.name)))
        if not self.attn_only and not self.d_mlp:
            raise ValueError(f"a model with MLPs needs d_mlp, their hidden units: got {self.d_mlp}; or attn_only=True")
        self.d_vocab_out = self.d_vocab if self.d_vocab_out == -1 else self.d_vocab_out
        self.attn_scale = sqrt(self.d_head) if self.attn_scale == -1 else self.attn_scale

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "TransformerConfig":
        """The config of these fields; one that is not known is refused by name."""
        for name in sorted(given.keys() - {field.name for field in fields(cls)}):
            raise ValueError(_UNKNOWN.format(field=name, value=given[name]))
        return cls(**given)


_FIXED = {"act_fn", "normalization_type", "positional_embedding_type", "attention_dir", "n_key_value_heads"}
_FIXED |= {"init_weights"}


def _weight(cfg: TransformerConfig, *shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=cfg.dtype, device=cfg.device))


def _points(n: int) -> list[Any]:
    return [HookPoint() for _ in range(n)]


def _by_head(residual: Tensor, n_heads: int) -> Tensor:
    """[batch, pos, d_model] as [batch, pos, head_index, d_model]."""
    return residual[:, :, None].repeat(1, 1, n_heads, 1)


class Embed(nn.Module):
    """One row a token."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.W_E = _weight(cfg, cfg.d_vocab, cfg.d_model)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, pos, d_model]."""
        return nn.functional.embedding(tokens, self.W_E)  # unlike W_E[tokens] its gradient is the same on any threads


class PosEmbed(nn.Module):
    """One row a position."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.W_pos = _weight(cfg, cfg.n_ctx, cfg.d_model)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, pos, d_model]."""
        return self.W_pos[: tokens.shape[-1]].repeat(len(tokens), 1, 1)


class Unembed(nn.Module):
    """The read-out."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.W_U, self.b_U = _weight(cfg, cfg.d_model, cfg.d_vocab_out), _weight(cfg, cfg.d_vocab_out)
        self.hook_in, self.hook_out = HookPoint(), HookPoint()

    def forward(self, residual: Tensor) -> Tensor:
        """[batch, pos, d_vocab_out]."""
        return self.hook_out(nn.functional.linear(self.hook_in(residual), self.W_U.T, self.b_U))


class Attention(nn.Module):
    """Causal attention; queries, keys and values may have inputs of their own, [batch, pos, head_index, d_model]."""

    IGNORE: Tensor

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.cfg, into, heads = cfg, (cfg.n_heads, cfg.d_model, cfg.d_head), (cfg.n_heads, cfg.d_head)
        self.W_Q, self.W_O = _weight(cfg, *into), _weight(cfg, *heads, cfg.d_model)
        self.b_Q, self.b_O = _weight(cfg, *heads), _weight(cfg, cfg.d_model)
        self.W_K, self.W_V = _weight(cfg, *into), _weight(cfg, *into)
        self.b_K, self.b_V = _weight(cfg, *heads), _weight(cfg, *heads)
        self.register_buffer("mask", torch.empty((0, 0), dtype=torch.bool, device=cfg.device))  # 3.9's files have it
        self.register_buffer("IGNORE", torch.tensor(-torch.inf, device=cfg.device))
        self.attn_scale = cfg.attn_scale if cfg.use_attn_scale else 1.0
        self.hook_k, self.hook_q, self.hook_v, self.hook_z = _points(4)
        self.hook_attn_scores, self.hook_pattern, self.hook_result = _points(3)
        self.hook_q_input, self.hook_k_input, self.hook_v_input = _points(3)  # where 4.x has them

    QK = property(lambda self: FactoredMatrix(self.W_Q, self.W_K.mT))
    OV = property(lambda self: FactoredMatrix(self.W_V, self.W_O))

    def forward(self, query_input: Tensor, key_input: Tensor, value_input: Tensor) -> Tensor:
        """What the heads write, [batch, pos, d_model]."""
        q = self.hook_q(self._project(query_input, self.W_Q, self.b_Q)).transpose(1, 2)
        k = self.hook_k(self._project(key_input, self.W_K, self.b_K)).transpose(1, 2)
        v = self.hook_v(self._project(value_input, self.W_V, self.b_V)).transpose(1, 2)
        scores = self.hook_attn_scores(self.apply_causal_mask(q @ k.mT / self.attn_scale))
        pattern = self.hook_pattern(scores.softmax(dim=-1).nan_to_num(0.0)).to(v.dtype)
        z = self.hook_z((pattern @ v).transpose(1, 2))
        if self.cfg.use_attn_result:
            return self.hook_result(torch.einsum("bphe,hed->bphd", z, self.W_O)).sum(dim=2) + self.b_O
        return nn.functional.linear(z.flatten(2), self.W_O.flatten(0, 1).T, self.b_O)

    def apply_causal_mask(self, scores: Tensor) -> Tensor:
        """Minus infinity at keys behind the query."""
        past = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        return torch.where(past, scores, self.IGNORE)

    @staticmethod
    def _project(residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if residual.ndim == 4:
            return torch.einsum("bphd,hde->bphe", residual, weight) + bias
        flat = nn.functional.linear(residual, weight.mT.flatten(0, 1), bias.flatten())
        return flat.view(*residual.shape[:2], *bias.shape)


class MLP(nn.Module):
    """One hidden layer with ReLU."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        d_mlp = cfg.d_mlp or 0
        self.W_in, self.b_in = _weight(cfg, cfg.d_model, d_mlp), _weight(cfg, d_mlp)
        self.W_out, self.b_out = _weight(cfg, d_mlp, cfg.d_model), _weight(cfg, cfg.d_model)
        self.hook_pre, self.hook_post = HookPoint(), HookPoint()

    def forward(self, residual: Tensor) -> Tensor:
        """[batch, pos, d_model]."""
        hidden = self.hook_pre(nn.functional.linear(residual, self.W_in.T, self.b_in))
        return nn.functional.linear(self.hook_post(hidden.relu()), self.W_out.T, self.b_out)


class TransformerBlock(nn.Module):
    """Attention, then perhaps an MLP, each added to the residual stream."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.cfg, self.attn = cfg, Attention(cfg)
        if not cfg.attn_only:
            self.mlp, self.hook_resid_mid = MLP(cfg), HookPoint()
        self.hook_attn_in, self.hook_q_input, self.hook_k_input, self.hook_v_input, self.hook_mlp_in = _points(5)
        self.hook_attn_out, self.hook_mlp_out, self.hook_resid_pre, self.hook_resid_post = _points(4)

    def forward(self, resid_pre: Tensor) -> Tensor:
        """The residual stream after the block."""
        resid_pre = self.hook_resid_pre(resid_pre)
        residual = resid_pre + self.hook_attn_out(self.attn(*self._inputs(resid_pre)))
        if not self.cfg.attn_only:
            residual = self.hook_resid_mid(residual)
            mlp_in = self.hook_mlp_in(residual.clone()) if self.cfg.use_hook_mlp_in else residual
            residual = residual + self.hook_mlp_out(self.mlp(mlp_in))
        return self.hook_resid_post(residual)

    def _inputs(self, resid_pre: Tensor) -> list[Tensor]:
        cfg, attn = self.cfg, self.attn
        if cfg.use_split_qkv_input:
            hooks = [(getattr(self, f"hook_{kind}_input"), getattr(attn, f"hook_{kind}_input")) for kind in "qkv"]
            return [inner(outer(_by_head(resid_pre, cfg.n_heads))) for outer, inner in hooks]
        return [self.hook_attn_in(_by_head(resid_pre, cfg.n_heads)) if cfg.use_attn_in else resid_pre] * 3


def _stacked(part: str, name: str) -> Any:
    """A property: a parameter of every layer, [n_layers, ...]."""
    return property(lambda self: torch.stack([getattr(getattr(block, part), name) for block in self.blocks]))


_SWITCHES = {  # hooks that are called only with a field of the config on
    "attn.hook_result": "use_attn_result",
    **dict.fromkeys(("hook_q_input", "hook_k_input", "hook_v_input"), "use_split_qkv_input"),
    "hook_attn_in": "use_attn_in",
    "hook_mlp_in": "use_hook_mlp_in",
}


class Transformer(HookedRootModule):  # type: ignore[misc]  # untyped
    """A HookedTransformer for TransformerLens 4; weights start at zero."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.embed, self.hook_embed = Embed(cfg), HookPoint()
        self.pos_embed, self.hook_pos_embed = PosEmbed(cfg), HookPoint()
        self.blocks = TypedModuleList([TransformerBlock(cfg) for _ in range(cfg.n_layers)])
        self.unembed = Unembed(cfg)
        self.setup()

    W_E = property(lambda self: self.embed.W_E)
    W_pos = property(lambda self: self.pos_embed.W_pos)
    W_U = property(lambda self: self.unembed.W_U)
    b_U = property(lambda self: self.unembed.b_U)
    W_Q, W_K, W_V, W_O = (_stacked("attn", name) for name in ("W_Q", "W_K", "W_V", "W_O"))
    b_Q, b_K, b_V, b_O = (_stacked("attn", name) for name in ("b_Q", "b_K", "b_V", "b_O"))
    W_in, b_in, W_out, b_out = (_stacked("mlp", name) for name in ("W_in", "b_in", "W_out", "b_out"))
    QK = property(lambda self: FactoredMatrix(self.W_Q, self.W_K.mT))
    OV = property(lambda self: FactoredMatrix(self.W_V, self.W_O))

    def forward(
        self,
        input: Tensor,
        return_type: str | None = "logits",
        *,
        loss_per_token: bool = False,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
    ) -> Any:
        """Logits, "loss" (next-token cross-entropy) or "both" of tokens [batch, pos]; or a residual stream in between.

        With `start_at_layer` the input is the residual stream that this layer reads; with `stop_at_layer` the output is
        the stream that that layer would read.
        """
        if return_type not in ("logits", "loss", "both", None):
            raise ValueError(f"return_type must be 'logits', 'loss', 'both' or None: got {return_type!r}")
        residual = input
        if start_at_layer is None:
            tokens = self.to_tokens(input)
            residual = self.hook_embed(self.embed(tokens)) + self.hook_pos_embed(self.pos_embed(tokens))
        for block in self.blocks[start_at_layer:stop_at_layer]:
            residual = block(residual)
        if stop_at_layer is not None or return_type is None:
            return None if stop_at_layer is None else residual
        logits = self.unembed(residual)
        if return_type == "logits":
            return logits
        if start_at_layer is not None:
            raise ValueError("the loss needs the tokens: with start_at_layer ask for return_type='logits'")
        loss = lm_cross_entropy_loss(logits, tokens, per_token=loss_per_token)
        return loss if return_type == "loss" else (logits, loss)

    def to_tokens(self, input: Any, **options: Any) -> Tensor:
        """Tokens are numbers already, [batch, pos]; the options of tokenizers say nothing about them."""
        tokens = torch.as_tensor(input, device=self.W_U.device)
        return tokens[None] if tokens.ndim == 1 else tokens

    def run_with_cache(
        self, *args: Any, return_cache_object: bool = True, remove_batch_dim: bool = False, **kwargs: Any
    ) -> Any:
        """As HookedRootModule's, with an ActivationCache."""
        output, cache = super().run_with_cache(*args, remove_batch_dim=remove_batch_dim, **kwargs)
        return output, ActivationCache(cache, self, not remove_batch_dim) if return_cache_object else cache

    def check_hooks_to_add(self, hook_point: HookPoint, hook_point_name: str, hook: Any, **options: Any) -> None:
        """Refuse a hook that would not be called."""
        for ending, field in _SWITCHES.items():
            if hook_point_name.endswith(ending) and not getattr(self.cfg, field):
                raise ValueError(f"{hook_point_name} is called only with cfg.{field} on: call set_{field}(True) first")

    def set_use_attn_result(self, value: bool) -> None:
        """Whether what each head writes is computed by itself, for `hook_result`."""
        self.cfg.use_attn_result = value

    def set_use_attn_in(self, value: bool) -> None:
        """Whether each head has an input of its own, `hook_attn_in`."""
        self.cfg.use_attn_in = value

    def set_use_split_qkv_input(self, value: bool) -> None:
        """Whether queries, keys and values of each head have inputs of their own, `hook_q_input`, ..."""
        self.cfg.use_split_qkv_input = value

    def set_use_hook_mlp_in(self, value: bool) -> None:
        """Whether `hook_mlp_in` is called."""
        self.cfg.use_hook_mlp_in = value

    def accumulated_bias(self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True) -> Tensor:
        """The sum of what the biases of layers 0 .. layer - 1 write, [d_model]."""
        blocks = list(self.blocks[:layer])
        written = [block.attn.b_O for block in [*blocks, *self.blocks[layer : layer + mlp_input]]]
        if include_mlp_biases and not self.cfg.attn_only:
            written += [block.mlp.b_out for block in blocks]
        return sum(written, torch.zeros_like(self.W_U[:, 0]))

    def tokens_to_residual_directions(self, tokens: Any) -> Tensor:
        """The read-out of each token, [..., d_model]."""
        return self.W_U.T[torch.as_tensor(tokens, device=self.W_U.device)]

    def _apply(self, fn: Any, recurse: bool = True) -> "Transformer":
        super()._apply(fn, recurse)
        self.cfg.device, self.cfg.dtype = str(self.W_U.device), self.W_U.dtype
        return self


HookedTransformer: Any = LibraryTransformer or Transformer


def build_transformer(config: Any, cls: type[nn.Module] | None = None) -> Any:
    """A HookedTransformer (or `cls`) of a config, or of its fields, with every parameter zero."""
    made_by = cls or HookedTransformer
    if issubclass(made_by, Transformer) and isinstance(config, Mapping):
        config = TransformerConfig.of(config)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="HookedTransformer is deprecated", category=DeprecationWarning)
        model = made_by(copy(config))
    for parameter in model.parameters():
        parameter.data.zero_()
    return model


def known_modules() -> frozenset[type[nn.Module]]:
    """The classes of modules that a HookedTransformer without normalisation is made of."""
    own = {Transformer, TransformerBlock, Attention, MLP, Embed, PosEmbed, Unembed}
    if components is not None:
        names = ("TransformerBlock", "Attention", "MLP", "Embed", "PosEmbed", "Unembed")
        own |= {LibraryTransformer, *(getattr(components, name) for name in names)}
    return frozenset({*own, HookPoint, TypedModuleList, nn.Identity})


def boot_bridge(config: dict[str, Any], *, dtype: torch.dtype, device: torch.device) -> Any:
    """A TransformerBridge around a small model, its weights random; without normalisation unless asked for."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    fields = {"normalization_type": None, "default_prepend_bos": False, "device": str(device), **config}
    return TransformerBridge.boot_native(TransformerBridgeConfig(**fields), dtype=dtype, device=device)
