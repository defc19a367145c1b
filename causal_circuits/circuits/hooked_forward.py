"""Any transformer's forward pass by its hooks, in which every head's query, key and value have inputs of their own.

A reader's input is the residual stream that the pass has built, plus, for every edge along which something else is to
arrive, what arrives minus what the sender wrote. What a reader does with its input is left to the model: LayerNorm is
computed anew, never frozen. Where the model has one stream, the pass runs several copies of each sequence side by side.
Copy 0 holds the stream. Before a layer, the input of every reader with an edge cut is put in a copy of its own; its
query, key, value or MLP output is then taken over into copy 0. So no more is asked of a model than hooks that every
HookedTransformer and bridge calls, whatever its normalisation, positions or MLPs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.circuits.forward import Attend, Forward, Masks, Read, Slots, Variants, read_everything
from causal_circuits.circuits.graph import INPUTS, LOGITS, Edge, depth_of
from causal_circuits.interventions.measure import check_hooks
from causal_circuits.models import HookedTransformer
from causal_circuits.models.layout import head_of
from causal_circuits.models.structured import as_log_probs
from causal_circuits.tasks import Batch

NUMBERS = 2**20  # of all copies of the residual stream, at once
TRIED = 4  # sequences on which hooks are tried
EMBEDDINGS = {"token": "hook_embed", "position": "hook_pos_embed"}
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3}  # relative to the largest number, and to 1
Hook = Callable[[Tensor, object], Tensor | None]


@dataclass(frozen=True, eq=False)
class HookedForward(Forward):
    """A model, and who reads whom in it."""

    model: HookedTransformer
    reads: dict[str, list[tuple[str, int]]]
    output: dict[str, Tensor] = field(repr=False)  # head -> [d_head, d_model], its rows of W_O
    copies: int

    @classmethod
    def of(cls, model: HookedTransformer, edges: Sequence[Edge], batch: Batch) -> "HookedForward":
        """The forward pass of a model whose hooks can do this, tried on a few sequences; of others a ValueError."""
        _refuse(model, batch.tokens[:TRIED])
        reads: dict[str, list[tuple[str, int]]] = {}
        for index, (sender, reader) in enumerate(edges):
            reads.setdefault(reader, []).append((sender, index))
        heads = [reader.split(".")[0] for reader in reads if reader.endswith(".q")]
        weights = model.W_O.detach()
        at_most = (1 + len(INPUTS) * model.cfg.n_heads) * batch.tokens.shape[1] * model.cfg.d_model
        forward = cls(
            model=model,
            reads=reads,
            output={name: weights[head_of(name)] for name in heads},
            copies=max(1, NUMBERS // at_most),
        )
        forward._try(batch.tokens[:TRIED])
        return forward

    @torch.no_grad()
    def embed(self, tokens: Int[Tensor, "batch n_ctx"]) -> Slots:
        """What the embeddings write."""
        senders = {sender for sender, _ in self.reads[LOGITS]}
        hooks = {slot: name for slot, name in EMBEDDINGS.items() if slot in senders}
        _, cache = self.model.run_with_cache(tokens, names_filter=list(hooks.values()))
        return {slot: cache[name].expand(len(tokens), -1, -1) for slot, name in hooks.items()}

    def log_probs(
        self, masks: Masks, inputs: Slots, read: Read, attend: Attend | None = None
    ) -> Float[Tensor, "circuit batch d_vocab"]:
        """By one run of the model; `read` is asked along edges that the masks leave out, and no others."""
        return _Run(self, masks, inputs, read, attend).log_probs()

    def values(self, inputs: Slots) -> Slots:
        """What every sender writes; the last layer's, at the last position alone, repeated."""
        run, last = _Run(self, self.uncut, inputs, read_everything), 2 * (self.model.cfg.n_layers - 1)
        run.log_probs()
        found = {slot: value.values[0] for slot, value in run.values.items()}
        return {
            slot: value[:, -1:].expand(value.shape) if depth_of(slot) >= last else value
            for slot, value in found.items()
        }

    def writes(self, reader: str, slot: str) -> list[str]:
        """A head's or an MLP's one output."""
        return [] if reader == LOGITS else [reader.split(".")[0]]

    def has_weight(self, reader: str, slot: str) -> bool:
        """Nothing is known of weights here."""
        return True

    @torch.no_grad()
    def _try(self, tokens: Int[Tensor, "batch n_ctx"]) -> None:
        """Refuse a model that does not do what its hooks say, or whose stream holds more than its senders wrote."""
        other = (tokens + 1) % self.model.cfg.d_vocab
        inputs = self.embed(tokens)
        replaced = self.embed(other)

        def read(slot: str, edge: int, value: Variants, circuits: Tensor) -> Tensor:
            return replaced[slot][None] if slot in replaced else value.of(circuits)

        run = _Run(self, ~self.uncut, inputs, read)
        found, expected = run.log_probs()[0], as_log_probs(self.model, self.model(other)[:, -1])
        if not expected.isfinite().all():
            raise ValueError("a model whose circuits are asked for must predict finite numbers: found NaN or infinity")
        if not _is_close(found, expected):
            raise ValueError(
                "circuits of this model cannot be computed: with other embeddings sent to every reader it does not "
                "predict as on other tokens; a hook at queries, keys, values or MLPs is without effect, or something "
                "reads the residual stream besides them"
            )
        for hook, (reader, stream) in run.streams.items():
            rest = stream - sum(run.values[sender].values[0] for sender, _ in self.reads[reader])
            if not _is_close(rest, rest.mean(dim=(0, 1), keepdim=True)):
                raise ValueError(
                    f"circuits of this model cannot be computed: at {hook} the residual stream is not the sum of its "
                    "embeddings, heads (z W_O), MLPs and biases; is there a normalisation after a layer's output?"
                )


class _Run:
    """One run: what its hooks share. Copies of a batch are its slowest axis, [copy, circuit, batch] flattened."""

    def __init__(
        self, forward: HookedForward, masks: Masks, inputs: Slots, read: Read, attend: Attend | None = None
    ) -> None:
        self.forward, self.inputs, self.read, self.attend = forward, inputs, read, attend
        self.circuits, self.shape = torch.arange(len(masks)), (len(masks), len(inputs["token"]))
        self.n = self.shape[0] * self.shape[1]
        self.cut = [self.circuits[without] for without in ~masks.T]  # of each edge: the circuits that lack it
        self.values: dict[str, Variants] = {}  # sender -> what it wrote
        self.streams: dict[str, tuple[str, Tensor]] = {}  # hook -> a reader there, and the stream uncut
        groups = [[reader for reader in group if self._is_cut(reader)] for group in self._groups().values()]
        self.copy = {reader: 1 + place for group in groups for place, reader in enumerate(group)}
        self.n_copies = 1 + max(len(group) for group in groups)

    def _groups(self) -> dict[str, list[str]]:
        """Hook at the stream -> the readers there."""
        found: dict[str, list[str]] = {}
        for reader in self.forward.reads:
            found.setdefault(_stream_of(reader, self.forward.model.cfg.n_layers), []).append(reader)
        return found

    def _is_cut(self, reader: str) -> bool:
        return any(len(self.cut[edge]) for _, edge in self.forward.reads[reader])

    def log_probs(self) -> Float[Tensor, "circuit batch d_vocab"]:
        model, n_ctx = self.forward.model, self.inputs["token"].shape[1]
        tokens = torch.zeros(self.n_copies * self.n, n_ctx, dtype=torch.long, device=model.W_U.device)
        with model.hooks(fwd_hooks=list(self._hooks())):
            logits = model(tokens)[: self.n, -1]
        return self._by_circuit(as_log_probs(model, logits))

    def _by_circuit(self, value: Tensor) -> Float[Tensor, "circuit batch ..."]:
        return rearrange(value, "(circuit batch) ... -> circuit batch ...", circuit=self.shape[0])

    def _by_copy(self, value: Tensor) -> Float[Tensor, "copy _one ..."]:
        return rearrange(value, "(copy one) ... -> copy one ...", copy=self.n_copies)

    def _hooks(self) -> Iterator[tuple[str, Hook]]:
        cfg = self.forward.model.cfg
        yield from ((EMBEDDINGS[slot], partial(self._embed, slot)) for slot in self.inputs)
        yield from ((name, partial(self._to_copies, name, readers)) for name, readers in self._groups().items())
        for layer in range(cfg.n_layers):
            at, heads = f"blocks.{layer}", [head for head in self.forward.output if head.startswith(f"L{layer}H")]
            yield from ((f"{at}.attn.hook_{kind}", partial(self._from_copies, heads, kind)) for kind in INPUTS)
            if self.attend is not None:
                yield f"{at}.attn.hook_pattern", partial(self._attend, self.attend, layer == cfg.n_layers - 1, heads)
            yield f"{at}.attn.hook_z", partial(self._heads_write, heads)
            if not cfg.attn_only:
                yield f"{at}.hook_mlp_out", partial(self._mlp_writes, f"L{layer}MLP")

    def _embed(self, slot: str, value: Tensor, hook: object) -> Tensor:
        own = self.inputs[slot]
        self._write(slot, own.repeat(self.shape[0], 1, 1))
        return own.repeat(self.n_copies * self.shape[0], 1, 1)

    def _write(self, sender: str, value: Float[Tensor, "copy pos d_model"]) -> None:
        self.values[sender] = Variants(self._by_circuit(value), self.circuits)

    def _to_copies(self, name: str, readers: Sequence[str], streams: Tensor, hook: object) -> Tensor:
        """The input of every reader with an edge cut in a copy of its own, from copy 1 on; the read-out's in copy 0."""
        stream = streams[: self.n]
        self.streams[name] = readers[0], stream
        arriving = [self._arriving(reader, stream) for reader in readers if reader in self.copy]
        if readers[0] == LOGITS:
            return torch.cat([*arriving, streams[len(arriving) * self.n :]])
        return torch.cat([stream, *arriving, streams[(1 + len(arriving)) * self.n :]])

    def _arriving(self, reader: str, stream: Tensor) -> Float[Tensor, "copy pos d_model"]:
        found = self._by_circuit(stream).clone()
        for sender, edge in self.forward.reads[reader]:
            value, circuits = self.values[sender], self.cut[edge]
            if len(circuits):
                found[circuits] += self.read(sender, edge, value, circuits) - value.of(circuits)
        return found.flatten(0, 1)

    def _from_copies(
        self, heads: Sequence[str], kind: str, projected: Float[Tensor, "copy pos head_index d_head"], hook: object
    ) -> Tensor:
        """Each head's query, key or value, taken from its copy into copy 0."""
        copies = self._by_copy(projected)
        own = [copies[self.copy.get(f"{head}.{kind}", 0), :, :, index] for index, head in enumerate(heads)]
        return torch.cat([torch.stack(own, dim=2), projected[self.n :]])

    def _attend(self, attend: Attend, is_last: bool, heads: Sequence[str], pattern: Tensor, hook: object) -> Tensor:
        """Patterns looked at or exchanged; of the last layer, the last row."""
        rows, placed = slice(-1, None) if is_last else slice(None), pattern.clone()
        for head, name in enumerate(heads):
            own = attend(name, self._by_circuit(pattern[: self.n, head, rows]))
            placed[: self.n, head, rows] = own.expand(*self.shape, -1, -1).flatten(0, 1)
        return placed

    def _heads_write(self, heads: Sequence[str], z: Float[Tensor, "copy pos head_index d_head"], hook: object) -> None:
        for head, name in enumerate(heads):
            self._write(name, z[: self.n, :, head] @ self.forward.output[name])

    def _mlp_writes(self, sender: str, written: Tensor, hook: object) -> Tensor:
        own = self._by_copy(written)[self.copy.get(f"{sender}.in", 0)]
        self._write(sender, own)
        return torch.cat([own, written[self.n :]])


def _stream_of(reader: str, n_layers: int) -> str:
    """The hook at the residual stream that a reader reads."""
    if reader == LOGITS:
        return f"blocks.{n_layers - 1}.hook_resid_post"
    layer, is_mlp = divmod(depth_of(reader), 2)
    return f"blocks.{layer}.hook_resid_{'mid' if is_mlp else 'pre'}"


def _is_close(found: Tensor, expected: Tensor) -> bool:
    size = max(1.0, float(expected.abs().max()))
    return float((found - expected).abs().max()) <= TOLERANCE[found.dtype] * size


def _refuse(model: HookedTransformer, tokens: Int[Tensor, "batch n_ctx"]) -> None:
    """Refuse by name what readers of this kind do not describe."""
    cfg = model.cfg
    shared = cfg.n_key_value_heads
    if shared is not None and shared != cfg.n_heads:
        raise ValueError(
            f"circuits need keys and values of each head's own: this model's are shared (n_key_value_heads={shared})"
        )
    if cfg.attention_dir != "causal":
        raise ValueError(f"circuits need causal attention: this model has attention_dir={cfg.attention_dir!r}")
    if getattr(cfg, "parallel_attn_mlp", False):
        raise ValueError("circuits need MLPs that read what heads wrote: this model has parallel_attn_mlp=True")
    last = cfg.n_layers - 1
    names = [f"blocks.{layer}.{name}" for layer in range(cfg.n_layers)
             for name in ("hook_resid_pre", *(f"attn.hook_{kind}" for kind in (*INPUTS, "pattern", "z")),
                          *(() if cfg.attn_only else ("hook_resid_mid", "hook_mlp_out")))]  # fmt: skip
    names += ["hook_embed", f"blocks.{last}.hook_resid_post"]
    check_hooks(model, names)
    with torch.no_grad():
        _, called = model.run_with_cache(tokens, names_filter=names)
    silent = [name for name in names if name not in called]
    if silent:
        raise ValueError(f"circuits need hooks that the model calls: {silent[0]} is without effect, it is never called")
