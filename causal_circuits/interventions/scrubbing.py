"""Causal scrubbing of the paper's circuit: resample everything that the stated hypothesis says does not matter.

The hypothesis (Nichani, Damian & Lee 2024, section 4; the method: Chan et al. 2022, "Causal scrubbing") has two claims:

* **copy**: head 0.h writes at position i nothing but the token of i's parent number h. So its output there may be
  replaced by its output in any other sequence with the same token at that parent.
* **match**: head 1.0 asks with the target's parents' tokens, is answered with the tokens of each position's parents,
  and reports the token of the position itself. So its query, each key and each value may be replaced by those of any
  sequences that agree in just these tokens, and what reaches the logits past the head may come from anywhere.

The paper speaks of positions that have parents. Whether that is *all* there is to a model is a question of its own:
``where="children"`` holds the claims to those positions and leaves everything else as it is; ``where="everywhere"``
also resamples what the hypothesis passes over in silence - heads at roots and at the query, and the path past layer 1.
A model trained to the end is found to use these too: a root's token tells about the kernel's stationary law.

A claim that is true costs nothing: the loss stays. The measure is the loss recovered against scrubbing in the same
places without any agreement (every donor drawn freely), which destroys what the circuit is for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.graphs import parents_of
from causal_circuits.interventions.measure import check, check_hooks, predictions, standard_error
from causal_circuits.interventions.metrics import Cost, Metric, make_cost
from causal_circuits.models import HookedTransformer, attachments, live_heads, log_probs
from causal_circuits.tasks import Batch, Task
from causal_circuits.tasks.base import graph_of

Claim = Literal["copy", "match", "both"]
Where = Literal["everywhere", "children"]
HOOKS = ("0.attn.hook_z", "1.attn.hook_q", "1.attn.hook_k", "1.attn.hook_v", "1.hook_resid_pre", "1.hook_resid_post")
_Donors = Int[Tensor, "batch pos"]
_Hook = tuple[str, Callable[..., Tensor | None]]


@check_arguments
@dataclass(frozen=True)
class Scrubbed:
    """What is left of a model's loss when only the hypothesis is kept.

    Attributes:
        claim: "copy", "match" or "both".
        where: "everywhere" or "children".
        loss: mean metric with everything else resampled.
        standard_error: of its paired difference from the untouched model.
        random_loss: the same with donors drawn freely.
        baseline_loss: the untouched model.
        idle: the parts of the claim that say nothing about this model: even donors drawn freely do no significant harm
            there (three standard errors), so that no claim about them could have failed.
        recovered: (random - scrubbed) / (random - untouched): 1 if the claim is all there is to it, 0 if it is empty;
            NaN if a part of the claim is idle.
        attached: what was attached to the model (hooks, parametrizations, edited frozen weights), in words: it was
            analysed with it.

    >>> import causal_circuits as cc
    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    >>> model, batch = cc.plant_circuit(task.graph, d_vocab=3), task.sample(64, seed=0)
    >>> scrubbed = cc.scrub_hypothesis(model, batch, task)
    >>> scrubbed.claim, scrubbed.loss < scrubbed.random_loss
    ('both', True)
    """

    claim: Claim
    where: Where
    loss: float
    standard_error: float
    random_loss: float
    baseline_loss: float
    idle: tuple[str, ...] = ()
    attached: tuple[str, ...] = ()

    @property
    def recovered(self) -> float:
        """The share of the loss that the claim keeps; NaN if a part of it is idle or nothing is at stake."""
        at_stake = self.random_loss - self.baseline_loss
        return float("nan") if self.idle or not at_stake else (self.random_loss - self.loss) / at_stake


@check_arguments
@torch.no_grad()
def scrub_hypothesis(
    model: HookedTransformer,
    batch: Batch,
    task: Task,
    claim: Claim = "both",
    *,
    where: Where = "everywhere",
    metric: Metric = "loss",
    seed: int = 0,
) -> Scrubbed:
    """Causal scrubbing of "head 0.h copies the token of parent h; head 1.0 matches it with the query".

    Args:
        model: any two-layer HookedTransformer whose heads are meant in this order.
        batch: sequences and targets: a thousand or more, so that donors that agree can be found. (A sequence
            that nobody agrees with is its own donor.)
        task: its graph says who the parents are.
        claim: which of the two claims, or both.
        where: "everywhere" also tests that the model uses nothing but the circuit; "children" holds the claims to the
            positions with parents (and to the row that reads the target's parents, where there is no query).
        metric: "loss" (nats), another of `METRICS`, or a function of log-probabilities, one number a sequence.
        seed: of the donors.

    >>> from causal_circuits import InContextTask, chain_graph, plant_circuit
    >>> task = InContextTask(chain_graph(6), d_vocab=3, alpha=0.1)
    >>> scrubbed = scrub_hypothesis(plant_circuit(task.graph, d_vocab=3), task.sample(500), task)
    >>> round(scrubbed.recovered, 3)
    1.0
    """
    check(model, batch)
    task.check_tokens(batch.tokens)
    if claim not in get_args(Claim):
        raise ValueError(f"claim must be one of {', '.join(get_args(Claim))}: got {claim!r}")
    if where not in get_args(Where):
        raise ValueError(f"where must be one of {', '.join(get_args(Where))}: got {where!r}")
    if model.cfg.n_layers != 2:
        raise ValueError(f"the hypothesis is about two layers: this model has {model.cfg.n_layers}")
    check_hooks(model, [f"blocks.{name}" for name in HOOKS])
    cost, generator = make_cost(metric, batch, model=model, task=task), torch.Generator().manual_seed(seed)
    agreeing, free = (_Donor(batch.tokens, generator, agree, where) for agree in (True, False))
    untouched = cost(predictions(model, batch.tokens))
    scrubbed, random = (cost(_scrubbed_predictions(model, batch.tokens, task, claim, d)) for d in (agreeing, free))
    return Scrubbed(
        claim=claim,
        where=where,
        loss=float(cost.sign * scrubbed.mean()),
        standard_error=standard_error(scrubbed - untouched),
        random_loss=float(cost.sign * random.mean()),
        baseline_loss=float(cost.sign * untouched.mean()),
        idle=_idle_parts(model, batch.tokens, task, claim, where, cost, untouched, seed),
        attached=attachments(model),
    )


class _Donor:
    """Draws, for every sequence, another one that agrees with it in the tokens at some positions."""

    def __init__(
        self, tokens: Int[Tensor, "batch n_ctx"], generator: torch.Generator, agree: bool, where: Where = "everywhere"
    ) -> None:
        self.tokens, self.generator, self.agree, self.where = tokens, generator, agree, where

    def __call__(self, positions: tuple[int, ...]) -> Int[Tensor, " batch"]:
        """The next sequence, in a random order, among those with the same tokens at `positions`."""
        order = torch.randperm(len(self.tokens), generator=self.generator).to(self.tokens.device)
        if self.agree and positions:
            _, group = self.tokens[:, list(positions)].unique(dim=0, return_inverse=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        else:
            group = torch.zeros_like(order)
        return _next_in_group(order[group[order].argsort(stable=True)], group)

    def at_positions(self, agree_at: Callable[[int], tuple[int, ...]], claimed: Callable[[int], bool]) -> _Donors:
        """A donor for each position of each sequence; itself, where the hypothesis claims nothing and is not asked."""
        itself = torch.arange(len(self.tokens), device=self.tokens.device)
        everywhere = self.where == "everywhere"
        columns = range(self.tokens.shape[1])
        return torch.stack([self(agree_at(i)) if everywhere or claimed(i) else itself for i in columns], dim=1)


def _next_in_group(by_group: Tensor, group: Tensor) -> Int[Tensor, " batch"]:
    """Each sequence's successor in its group, around in a circle; `by_group` lists the sequences group by group."""
    sizes = group.bincount()
    ends = sizes.cumsum(0)
    following = torch.arange(1, len(by_group) + 1, device=by_group.device)
    is_last = following == ends[group[by_group]]
    following = torch.where(is_last, (ends - sizes)[group[by_group]], following)
    donor = torch.empty_like(by_group)
    donor[by_group] = by_group[following]
    return donor


def _scrubbed_predictions(
    model: HookedTransformer, tokens: Tensor, task: Task, claim: Claim, donor: _Donor
) -> Float[Tensor, "batch d_vocab"]:
    """The prediction with everything that the claim leaves open taken from donors."""
    parts = _hooks_by_part(model, task, claim, donor)
    with model.hooks(fwd_hooks=[hook for hooks in parts.values() for hook in hooks]):
        return log_probs(model, tokens)  # in one piece: donors are rows of the same batch


def _idle_parts(
    model: HookedTransformer,
    tokens: Tensor,
    task: Task,
    claim: Claim,
    where: Where,
    cost: Cost,
    untouched: Float[Tensor, " batch"],
    seed: int,
) -> tuple[str, ...]:
    """The parts of a claim at which donors drawn freely, at this part alone, do no significant harm."""
    free = _Donor(tokens, torch.Generator().manual_seed(seed), agree=False, where=where)
    idle = []
    for part, hooks in _hooks_by_part(model, task, claim, free).items():
        if part == _DIRECT_PATH:  # the claim is that it is of no use
            continue
        with model.hooks(fwd_hooks=hooks):
            harm = cost(log_probs(model, tokens)) - untouched
        if not float(harm.mean()) > max(3 * standard_error(harm), 1e-6):
            idle.append(part)
    return tuple(idle)


_DIRECT_PATH = "direct path past layer 1"


def _hooks_by_part(model: HookedTransformer, task: Task, claim: Claim, donor: _Donor) -> dict[str, list[_Hook]]:
    """The hooks that put donors' values in place of the model's own, for each part of a claim."""
    parts: dict[str, list[_Hook]] = {}
    if claim in ("copy", "both"):
        take = partial(_take_heads, donors=_copy_donors(model, task, donor))
        parts["what layer 0 writes"] = [("blocks.0.attn.hook_z", take)]
    return parts if claim == "copy" else parts | _match_hooks(task, donor)


def _copy_donors(model: HookedTransformer, task: Task, donor: _Donor) -> dict[int, _Donors]:
    """For each head of layer 0 and each position, a sequence with the same token at that head's parent."""
    target = graph_of(task).number_of_nodes() - 1

    def parent(position: int, head: int) -> tuple[int, ...]:
        is_read_out = position == task.n_ctx - 1 and not task.has_query
        return parents_of(graph_of(task), target if is_read_out else position)[head : head + 1]

    found = {}
    for head in [head for layer, head in live_heads(model) if layer == 0]:
        own = partial(parent, head=head)
        found[head] = donor.at_positions(own, lambda i, own=own: bool(own(i)))  # type: ignore[misc]
    return found


def _take_heads(z: Tensor, hook: object, donors: dict[int, _Donors]) -> Tensor:
    z, positions = z.clone(), torch.arange(z.shape[1], device=z.device)
    for head, rows in donors.items():
        z[:, :, head] = z[rows, positions, head]
    return z


def _match_hooks(task: Task, donor: _Donor) -> dict[str, list[_Hook]]:
    """Queries, keys and values of layer 1 from donors that agree in what is matched; the direct path from anywhere.

    Held to positions with parents, their keys and values alone: the query and the direct path are not theirs.
    """
    n_ctx, asked = task.n_ctx, tuple(task.target_parents)

    def has_parents(position: int) -> bool:
        return bool(parents_of(graph_of(task), position))

    keys = donor.at_positions(lambda i: parents_of(graph_of(task), i), has_parents)
    values = donor.at_positions(lambda i: (i,), has_parents)
    queries = donor.at_positions(lambda i: asked if i == n_ctx - 1 else (), lambda i: False)
    anyone, entered = donor(()), list[Tensor]()

    def take(activation: Tensor, hook: object, rows: _Donors) -> Tensor:
        return activation[rows, torch.arange(n_ctx, device=activation.device)]

    def remember(residual: Tensor, hook: object) -> None:
        entered.append(residual)

    def from_anyone(residual: Tensor, hook: object) -> Tensor:
        return residual - entered[0] + entered[0][anyone]

    taken: dict[str, list[_Hook]] = {
        "keys of layer 1": [("blocks.1.attn.hook_k", partial(take, rows=keys))],
        "values of layer 1": [("blocks.1.attn.hook_v", partial(take, rows=values))],
    }
    if donor.where == "children":
        return taken
    return taken | {
        "queries of layer 1": [("blocks.1.attn.hook_q", partial(take, rows=queries))],
        _DIRECT_PATH: [("blocks.1.hook_resid_pre", remember), ("blocks.1.hook_resid_post", from_anyone)],
    }
