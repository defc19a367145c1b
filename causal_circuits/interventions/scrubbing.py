"""Causal scrubbing of the paper's circuit: resample everything that the stated hypothesis says does not matter.

The hypothesis (Nichani, Damian & Lee 2024, section 4; the method: Chan et al. 2022, "Causal scrubbing") has two claims:

* **copy**: head 0.h writes at position i nothing but the token of i's parent number h: its output there may be that of
  any other sequence with the same token at that parent.
* **match**: head 1.0 asks with the target's parents' tokens, is answered with the tokens of each position's parents,
  and reports the token of the position itself: queries, keys and values may come from any sequences that agree in just
  these tokens, and what reaches the logits past the head from anywhere.

``where="children"`` holds the claims to positions with parents; ``where="everywhere"`` also resamples what they say
nothing about. (Models trained to the end use that too: a root's token tells about the stationary law.) A true claim
costs nothing: the measure is the loss recovered against scrubbing in the same places with donors drawn freely.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.display import Result
from causal_circuits.graphs import parents_of
from causal_circuits.interventions.measure import check_hooks, check_input, predictions, standard_error
from causal_circuits.interventions.metrics import Metric, make_cost
from causal_circuits.models import HookedTransformer, attachments, live_heads, log_probs
from causal_circuits.tasks import Batch, Task
from causal_circuits.tasks.base import graph_of

Claim = Literal["copy", "match", "both"]
Where = Literal["everywhere", "children"]
HOOKS = ("0.attn.hook_z", "1.attn.hook_q", "1.attn.hook_k", "1.attn.hook_v", "1.hook_resid_pre", "1.hook_resid_post")
DIRECT_PATH = "direct path past layer 1"
_Rows = Int[Tensor, "batch pos"]
_Hook = tuple[str, Callable[..., Tensor | None]]
_Parts = dict[str, list[_Hook]]  # part of a claim -> what puts donors' values there


@check_arguments
@dataclass(frozen=True, repr=False)
class ScrubbingResult(Result):
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
        attached: what was attached to the model (hooks, parametrizations, edited frozen weights), in words.

    >>> losses = {"loss": 0.75, "standard_error": 0.01, "random_loss": 1.0, "baseline_loss": 0.5}
    >>> ScrubbingResult("both", "children", **losses).recovered
    0.5
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
    heads: Sequence[int] | None = None,
    seed: int = 0,
) -> ScrubbingResult:
    """Causal scrubbing of "head 0.h copies the token of parent h; head 1.0 matches it with the query".

    It tests the mechanism, with the graph as a whole: where one edge of eight is false, nine tenths of the loss may
    still be kept. Single edges are told by `knock_out_edges`.

    Args:
        model: any two-layer HookedTransformer whose heads are meant in this order.
        batch: sequences and targets: a thousand or more, so that donors that agree can be found. (A sequence
            with which none agrees is its own donor.)
        task: its graph says who the parents are.
        claim: which of the two claims, or both.
        where: "everywhere" also tests that the model uses nothing but the circuit; "children" holds the claims to the
            positions with parents (and to the row that reads the target's parents, where there is no query).
        metric: "loss" (nats), another of `METRICS`, or a function of log-probabilities, one number a sequence.
        heads: the heads of layer 0 that copy parent 0, 1, ..., where a trained model has them in another order.
        seed: of the donors.

    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3, alpha=0.1)
    >>> scrubbed = scrub_hypothesis(cc.plant_circuit(task.graph, d_vocab=3), task.sample(500), task)
    >>> round(scrubbed.recovered, 3)
    1.0
    """
    check_input(model, batch)
    task.check_tokens(batch.tokens)
    if model.cfg.n_layers != 2:
        raise ValueError(f"the hypothesis is about two layers: this model has {model.cfg.n_layers}")
    check_hooks(model, [f"blocks.{name}" for name in HOOKS])
    in_layer_0 = [head for layer, head in live_heads(model) if layer == 0]
    copying = in_layer_0 if heads is None else [*heads]
    if len({*copying}) < len(copying) or not {*copying} <= {*in_layer_0}:
        raise ValueError(f"heads must be different heads of layer 0, which has {in_layer_0}: got {copying}")
    cost, generator = make_cost(metric, batch, model=model, task=task), torch.Generator().manual_seed(seed)
    untouched, tokens, everywhere = cost(predictions(model, batch.tokens)), batch.tokens, where == "everywhere"

    def cost_of(parts: _Parts) -> Float[Tensor, " batch"]:
        with model.hooks(fwd_hooks=[hook for hooks in parts.values() for hook in hooks]):
            return cost(log_probs(model, tokens))  # in one piece: donors are rows of the same batch

    def is_idle(part: str, hooks: list[_Hook]) -> bool:
        harm = cost_of({part: hooks}) - untouched
        return not float(harm.mean()) > max(3 * standard_error(harm), 1e-6)

    scrubbed, random = (
        cost_of(_parts(copying, task, claim, _Donors(tokens, generator, agree, everywhere))) for agree in (True, False)
    )
    alone = _parts(copying, task, claim, _Donors(tokens, torch.Generator().manual_seed(seed), False, everywhere))
    return ScrubbingResult(
        claim=claim,
        where=where,
        loss=float(cost.sign * scrubbed.mean()),
        standard_error=standard_error(scrubbed - untouched),
        random_loss=float(cost.sign * random.mean()),
        baseline_loss=float(cost.sign * untouched.mean()),
        idle=tuple(part for part, hooks in alone.items() if part != DIRECT_PATH and is_idle(part, hooks)),
        attached=attachments(model),
    )


@dataclass(frozen=True)
class _Donors:
    """Draws, for every sequence, another one that agrees with it in the tokens at some positions."""

    tokens: Int[Tensor, "batch n_ctx"]
    generator: torch.Generator
    agree: bool  # False: every donor is drawn freely
    everywhere: bool  # False: a position of which the hypothesis claims nothing keeps its own value

    def __call__(self, positions: tuple[int, ...]) -> Int[Tensor, " batch"]:
        """The next sequence, in a random order, among those with the same tokens at `positions`."""
        order = torch.randperm(len(self.tokens), generator=self.generator).to(self.tokens.device)
        group = torch.zeros_like(order)
        if self.agree and positions:
            _, group = self.tokens[:, list(positions)].unique(dim=0, return_inverse=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return _next_in_group(order[group[order].argsort(stable=True)], group)

    def at_positions(self, agree_at: Sequence[tuple[int, ...]], claimed: Sequence[bool]) -> _Rows:
        """A donor for each position of each sequence."""
        itself = torch.arange(len(self.tokens), device=self.tokens.device)
        drawn = [
            self(positions) if self.everywhere or is_claimed else itself
            for positions, is_claimed in zip(agree_at, claimed, strict=True)
        ]
        return torch.stack(drawn, dim=1)


def _next_in_group(by_group: Tensor, group: Tensor) -> Int[Tensor, " batch"]:
    """Each sequence's successor in its group, cyclically; `by_group` lists the sequences group by group."""
    sizes = group.bincount()
    ends = sizes.cumsum(0)
    following = torch.arange(1, len(by_group) + 1, device=by_group.device)
    is_last = following == ends[group[by_group]]
    following = torch.where(is_last, (ends - sizes)[group[by_group]], following)
    return torch.empty_like(by_group).scatter_(0, by_group, by_group[following])


def _parts(copying: list[int], task: Task, claim: Claim, donors: _Donors) -> _Parts:
    """The hooks that put donors' values in place of the model's own, for each part of a claim."""
    parents = [parents_of(graph_of(task), position) for position in range(task.n_ctx)]
    parts: _Parts = {}
    if claim in ("copy", "both"):
        parts["what layer 0 writes"] = [_copying_heads(copying, task, parents, donors)]
    return parts if claim == "copy" else parts | _matching_head(task, parents, donors)


def _copying_heads(copying: list[int], task: Task, parents: list[tuple[int, ...]], donors: _Donors) -> _Hook:
    """The head that copies parent h, from a sequence with the same token at each position's parent number h."""
    if not task.has_query:  # the last row reads the target's parents
        parents = [*parents[:-1], tuple(task.target_parents)]
    rows = {}
    for number, head in enumerate(copying):
        own = [some[number : number + 1] for some in parents]
        rows[head] = donors.at_positions(own, [bool(parent) for parent in own])

    def take(z: Tensor, hook: object) -> Tensor:
        z, positions = z.clone(), torch.arange(z.shape[1], device=z.device)
        for head, donor in rows.items():
            z[:, :, head] = z[donor, positions, head]
        return z

    return "blocks.0.attn.hook_z", take


def _matching_head(task: Task, parents: list[tuple[int, ...]], donors: _Donors) -> _Parts:
    """Queries, keys and values of layer 1 from donors that agree in what is matched; the direct path from anywhere.

    At positions with parents alone, only keys and values are claimed.
    """
    n_ctx, has_parents = task.n_ctx, [bool(own) for own in parents]
    keys = donors.at_positions(parents, has_parents)
    values = donors.at_positions([(i,) for i in range(n_ctx)], has_parents)
    queries = donors.at_positions([()] * (n_ctx - 1) + [tuple(task.target_parents)], [False] * n_ctx)
    anyone, entered = donors(()), list[Tensor]()

    def take(activation: Tensor, hook: object, rows: _Rows) -> Tensor:
        return activation[rows, torch.arange(n_ctx, device=activation.device)]

    def remember(residual: Tensor, hook: object) -> None:
        entered.append(residual)

    def from_anyone(residual: Tensor, hook: object) -> Tensor:
        return residual - entered[0] + entered[0][anyone]

    parts: _Parts = {
        "keys of layer 1": [("blocks.1.attn.hook_k", partial(take, rows=keys))],
        "values of layer 1": [("blocks.1.attn.hook_v", partial(take, rows=values))],
    }
    if not donors.everywhere:
        return parts
    return parts | {
        "queries of layer 1": [("blocks.1.attn.hook_q", partial(take, rows=queries))],
        DIRECT_PATH: [("blocks.1.hook_resid_pre", remember), ("blocks.1.hook_resid_post", from_anyone)],
    }
