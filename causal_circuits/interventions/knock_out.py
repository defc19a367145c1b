"""Cut single attention entries, one at a time, and measure what each costs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, get_args

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.display import Result
from causal_circuits.interventions.closed_form import ChangedRows, has_closed_form
from causal_circuits.interventions.measure import check_hooks, check_input, other_sequences, predictions
from causal_circuits.interventions.metrics import Metric, make_cost
from causal_circuits.models import HookedTransformer, attachments, check_head, live_heads, log_probs
from causal_circuits.tasks import Batch, Task
from causal_circuits.tasks.batch import CHUNK, chunks

KnockOutMethod = Literal["zero", "renormalize", "mean", "resample", "permute"]
KNOCK_OUT_METHODS: tuple[KnockOutMethod, ...] = get_args(KnockOutMethod)
KnockOutPath = Literal["auto", "closed_form", "hooks"]
COPIES = 8192  # sequences times entries that are run at once
_Row = tuple[int, int, list[int]]  # head, query_pos, the key positions to cut


@check_arguments
@dataclass(frozen=True, repr=False, eq=False)
class KnockOut(Result):
    """What cutting single attention entries does to the loss, or to another metric.

    Attributes:
        layer: the layer whose pattern was cut.
        effect: [head_index, query_pos, key_pos]; how much worse the metric is with the entry cut (for the loss: loss
            with minus loss without, nats; positive: the entry was of use); NaN where nothing was cut.
        standard_error: of each effect, over sequences; infinite for a single one.
        attention: the pattern averaged over the same sequences.
        baseline_loss: the metric of the untouched model.
        metric: what was measured.
        path: "closed_form" or "hooks".
        attached: what was attached to the model (hooks, parametrizations, edited frozen weights), in words.

    >>> cuts = cc.knock_out_edges(model, batch)
    >>> cuts.path, bool(cuts.effect[0, 1, 0] > 0), bool(cuts.effect[0, 0, 1].isnan())
    ('closed_form', True, True)
    """

    layer: int
    effect: Float[Tensor, "head_index query_pos key_pos"]
    standard_error: Float[Tensor, "head_index query_pos key_pos"]
    attention: Float[Tensor, "head_index query_pos key_pos"]
    baseline_loss: float
    metric: str = "loss"
    path: str = "hooks"
    attached: tuple[str, ...] = ()


@check_arguments
@torch.no_grad()
def knock_out_edges(
    model: HookedTransformer,
    batch: Batch,
    *,
    layer: int = 0,
    entries: Sequence[tuple[int, int, int]] | None = None,
    method: KnockOutMethod = "zero",
    metric: Metric = "loss",
    task: Task | None = None,
    path: KnockOutPath = "auto",
    seed: int = 0,
) -> KnockOut:
    """Cut single attention entries, one at a time, and measure the loss.

    Two-layer disentangled models without hooks are answered in closed form (`closed_form`), all entries in well under
    a second; any other HookedTransformer by hooks, many entries in one pass. Both give the same numbers.

    Args:
        model: any HookedTransformer.
        batch: sequences and targets; a thousand sequences give effects to about 0.01 nats.
        layer: whose pattern is cut.
        entries: (head, query_pos, key_pos) triples; None takes every causal entry of every live head.
        method: "zero" cuts the entry and leaves the rest of its row; "renormalize" gives its weight to the rest;
            "mean" puts its mean over the batch in its place; "resample" its weight in another sequence; "permute"
            exchanges it with another entry of its row, drawn anew for each sequence.
        metric: "loss" (nats), another of `METRICS`, or a function of log-probabilities, one number a sequence.
        task: what the metric "kl_to_posterior" needs.
        path: "auto", or one of the two ways by name.
        seed: of resampling and permuting.

    >>> cuts = cc.knock_out_edges(model, batch, metric="kl_to_model")
    >>> cc.edge_auroc(cuts.effect[0], task.graph)
    1.0
    """
    check_input(model, batch)
    rows = _rows(model, layer, entries, batch.tokens.shape[1])
    check_hooks(model, [f"blocks.{layer}.attn.hook_pattern"])
    path = _choose_path(model, path)
    cost = make_cost(metric, batch, model=model, task=task)
    patterns, untouched = _patterns_and_predictions(model, batch.tokens, layer)
    baseline, predict = cost(untouched), _predictor(model, batch.tokens, layer, path)
    change_of_row = _changes(patterns, method, seed)
    heads = max(head for at, head in live_heads(model) if at == layer) + 1
    effect, error = (torch.full((heads, *patterns.shape[2:]), torch.nan, dtype=torch.float64) for _ in range(2))
    per_pass = max(1, COPIES // min(len(batch), CHUNK))
    for head, query, keys in rows:
        for some in (keys[part] for part in chunks(len(keys), per_pass)):
            harm = cost(predict(head, query, change_of_row(head, query, some))) - baseline
            effect[head, query, some] = harm.mean(dim=-1).cpu()
            spread = harm.std(dim=-1) if len(batch) > 1 else harm.new_full((len(some),), torch.inf)
            error[head, query, some] = (spread / len(batch) ** 0.5).cpu()
    return KnockOut(
        layer=layer,
        effect=effect.float(),
        standard_error=error.float(),
        attention=patterns[:, :heads].double().mean(dim=0).float().cpu(),
        baseline_loss=float(cost.sign * baseline.mean()),
        metric=cost.name,
        path=path,
        attached=attachments(model),
    )


def _rows(
    model: HookedTransformer, layer: int, entries: Sequence[tuple[int, int, int]] | None, n_ctx: int
) -> list[_Row]:
    """The entries to cut, each once, gathered by head and query."""
    heads = [head for at, head in live_heads(model) if at == layer]
    if not heads:
        raise ValueError(f"layer must be one of the model's {model.cfg.n_layers} layers: got {layer}")
    if entries is None:
        entries = [(head, i, j) for head in heads for i in range(n_ctx) for j in range(i + 1)]
    for head, i, j in entries:
        check_head(model, layer, head)
        if not 0 <= j <= i < n_ctx:
            raise ValueError(f"an attention entry (query, key) needs 0 <= key <= query < {n_ctx}: got ({i}, {j})")
    in_rows = groupby(sorted(set(entries)), key=lambda entry: entry[:2])
    return [(head, query, [key for _, _, key in row]) for (head, query), row in in_rows]


def _choose_path(model: HookedTransformer, path: KnockOutPath) -> KnockOutPath:
    if path == "closed_form" and not has_closed_form(model):
        raise ValueError(
            "the closed form is for two-layer disentangled models with nothing attached: this model is another, or has "
            f"a {next(iter(attachments(model)), 'feature that it does not know')}; use path='hooks'"
        )
    return path if path != "auto" else "closed_form" if has_closed_form(model) else "hooks"


def _changes(
    patterns: Float[Tensor, "batch head_index query_pos key_pos"], method: KnockOutMethod, seed: int
) -> Callable[[int, int, list[int]], Float[Tensor, "entry batch key_pos"]]:
    """A function of (head, query, keys): for each key the change of the row when its entry is cut."""
    generator = torch.Generator().manual_seed(seed)
    donor = other_sequences(len(patterns), seed) if method == "resample" else None

    def of_row(head: int, query: int, keys: list[int]) -> Float[Tensor, "entry batch key_pos"]:
        row, which = patterns[:, head, query], torch.arange(len(keys))
        weight = rearrange(row[:, keys], "batch entry -> entry batch")
        change = row.new_zeros(len(keys), *row.shape)
        if method == "permute":  # two entries of the row change places
            other = torch.randint(max(query, 1), weight.shape, generator=generator).to(row.device)
            other = (other + (other >= torch.tensor(keys, device=row.device)[:, None])).clamp(max=query)[..., None]
            difference = row.expand(len(keys), -1, -1).gather(-1, other)[..., 0] - weight
            change.scatter_(-1, other, -difference[..., None])
            change[which, :, keys] += difference
            return change
        change[which, :, keys] = -weight
        if method == "renormalize":
            rest = row + change
            total = rest.sum(dim=-1, keepdim=True)
            return rest / total.where(total > 0, 1.0) - row
        if method == "mean":
            change[which, :, keys] += row[:, keys].double().mean(dim=0).to(row.dtype)[:, None]
        if donor is not None:
            change[which, :, keys] += row[donor][:, keys].T
        return change

    return of_row


def _predictor(
    model: HookedTransformer, tokens: Tensor, layer: int, path: KnockOutPath
) -> Callable[[int, int, Tensor], Float[Tensor, "entry batch d_vocab"]]:
    """A function of (head, query, change of the row): the log-probabilities of every sequence."""
    pieces = chunks(len(tokens))
    if path == "closed_form":
        changed = [ChangedRows(model, tokens[rows]) for rows in pieces]
        return lambda head, query, change: torch.cat(
            [some.log_probs(layer, head, query, change[:, rows]) for some, rows in zip(changed, pieces, strict=True)],
            dim=1,
        )

    def by_hooks(head: int, query: int, change: Tensor) -> Tensor:
        """One pass over a copy of the sequences for each entry."""
        found = []
        for rows in pieces:
            copies, added = tokens[rows].repeat(len(change), 1), rearrange(change[:, rows], "e b key -> (e b) key")

            def add(pattern: Tensor, hook: object, added: Tensor = added) -> Tensor:
                pattern = pattern.clone()
                pattern[:, head, query] += added
                return pattern

            with model.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_pattern", add)]):
                found.append(rearrange(log_probs(model, copies), "(e b) v -> e b v", e=len(change)))
        return torch.cat(found, dim=1)

    return by_hooks


def _patterns_and_predictions(model: HookedTransformer, tokens: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """The untouched patterns of a layer and log-probabilities, of all sequences."""
    kept: list[Tensor] = []
    with model.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_pattern", lambda pattern, hook: kept.append(pattern))]):
        predicted = predictions(model, tokens)
    return torch.cat(kept), predicted
