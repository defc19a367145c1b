"""Several heads, several parents: which head carries which parent of which position, and what no head carries.

Each head of layer 0 proposes, for every row, the position it attends to; its last row proposes a parent of the target,
t, and stands for it unless the other rows plainly go with another one (`head_keys`). Attention cannot tell a proposal
from a habit, so each row is held against data (`row_shares`): it is a child drawn from the target's transition matrix
if, where its keys hold the tokens of their t, its own token was drawn from the target's law. That has a known answer,
1, which no share of some typical row has to be chosen for. Where a parent of the target is carried by no head, no row
reaches it: so whether there are further parents is known too.

The t of a head is a parent of the target if it explains most of what the head's rows tell, and if the model
compares with it: through the last row, or because layer 1 reads the query's own token, which then shows in layer 1's
attention. A last row that is free of that work may carry the parents of the last position itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.discovery.extracted import CandidateEdge, DecidedBy, HeadReport, UncarriedParent
from causal_circuits.discovery.head_keys import (
    DOMINANT,
    attended_keys,
    further_parents,
    joint_keys,
    keys_of_further,
    needed,
    rows_of,
    with_telling_last_keys,
)
from causal_circuits.discovery.row_shares import NO_SHARE, Keys, RowTest, RowVerdict, judge_row
from causal_circuits.information.conditional import ConditionalInformation, HeadKeys, conditional_information
from causal_circuits.statistics import holm, upper_tail

# Sequences that lifts are estimated from; shares, which are cheap, take all that are given.
N_SEQUENCES = 8192


@check_arguments
def judge_heads(
    attention: Float[Tensor, "head_index query_pos key_pos"],
    tokens: Int[Tensor, "batch n_ctx"],
    target_probs: Float[Tensor, "batch d_vocab"],
    heads: Sequence[int],
    min_weight: float,
    level: float,
    last_layer: Float[Tensor, "some_of_batch key_pos"] | None = None,
) -> tuple[list[CandidateEdge], list[HeadReport], list[UncarriedParent]]:
    """Every proposal with its verdict, every head with its edges, and the parents that the heads leave out.

    Args:
        attention: mean patterns of layer 0's live heads; `heads` names them.
        tokens, target_probs: sequences, none of whose graph is known.
        min_weight, level: least attention of an edge, family-wise error of the test.
        last_layer: the last query's attention in the last layer, of the first so many sequences; without it a head's t
            must be what its last row attends to.

    >>> import causal_circuits as cc
    >>> task = cc.InContextTask(cc.ngram_graph(8, 2), d_vocab=2)
    >>> model, batch = cc.plant_circuit(task.graph, d_vocab=2), task.sample(2000, seed=0)
    >>> attention = cc.mean_attention(model, batch.tokens)[0]
    >>> _, reports, _ = judge_heads(attention, batch.tokens, batch.target_probs, [0, 1], min_weight=0.5, level=0.01)
    >>> [report.last_key for report in reports]  # the parents of the target
    [6, 7]
    """
    test, few = RowTest(tokens, target_probs), (tokens[:N_SEQUENCES], target_probs[:N_SEQUENCES])
    copies = with_telling_last_keys([attended_keys(pattern, min_weight) for pattern in attention], test, *few)
    slots = needed({t: joint_keys(t, copies) for t in sorted({own.last_key for own in copies})}, test)
    further = further_parents(slots, test, *few)
    beside = [keys_of_further(f, tokens.shape[1]) for f in further]
    lifts = {
        t: conditional_information(*few, [*(slot for other, slot in slots.items() if other != t), *beside])
        for t in slots
    }
    verdicts = _judge_rows(attention, copies, slots, beside, test, min_weight)
    p_values = holm([verdict.share.p_value for verdict in verdicts])
    reading = _Reading(attention, heads, copies, slots, beside, lifts, verdicts, p_values, min_weight, level)
    children = range(1, attention.shape[-1])
    entries = [reading.judge(index, child) for index in range(len(heads)) for child in children]
    candidates = [entry for entry in entries if entry is not None]
    compared = _compared_tokens(last_layer, tokens, reading)
    candidates += [reading.judge_last_row(index, compared[index]) for index in range(len(heads))]
    return candidates, [reading.report(candidates, index) for index in range(len(heads))], further


def _judge_rows(
    attention: Tensor,
    copies: Sequence[HeadKeys],
    slots: dict[int, HeadKeys],
    beside: Sequence[HeadKeys],
    test: RowTest,
    min_weight: float,
) -> list[RowVerdict]:
    """The verdict of every row, the last position's own included: its last row may carry its parents.

    That row has two uses, so every entry with half the usual attention is tried.
    """
    n_ctx = attention.shape[-1]
    last_keys = {*slots, *(match.last_key for match in beside)}
    known = rows_of(beside) or [{}] * n_ctx
    attended = rows_of(list(slots.values())) or [{}] * n_ctx
    verdicts = [judge_row(test, child, attended[child], last_keys, known[child]) for child in range(n_ctx - 1)]
    tried: dict[int, list[int]] = {}
    for pattern, own in zip(attention, copies, strict=True):
        if own.last_key in slots:
            tried.setdefault(own.last_key, (pattern[-1] >= min_weight / 2).nonzero()[:, 0].tolist())
    choices = [dict(zip(tried, keys, strict=True)) for keys in product(*tried.values())]
    of_last = (judge_row(test, n_ctx - 1, keys, last_keys, {}) for keys in choices)
    nothing = RowVerdict(n_ctx - 1, {}, NO_SHARE, "its heads attend to nothing")
    return [*verdicts, next((verdict for verdict in of_last if verdict.keys), nothing)]


@dataclass(frozen=True)
class _Reading:
    """All that is known of the heads when their entries are judged.

    Attributes:
        copies: each head's t and keys; `slots` those of all heads together, by t, where they are needed.
        beside: what no head carries.
        lifts: by t, of every pair, given what the other heads match and what no head does.
        verdicts, p_values: of every row.
    """

    attention: Float[Tensor, "head_index query_pos key_pos"]
    heads: Sequence[int]
    copies: Sequence[HeadKeys]
    slots: dict[int, HeadKeys]
    beside: Sequence[HeadKeys]
    lifts: dict[int, ConditionalInformation]
    verdicts: Sequence[RowVerdict]
    p_values: Sequence[float]
    min_weight: float
    level: float

    @property
    def n_ctx(self) -> int:
        return self.attention.shape[-1]

    def edges_of(self, index: int) -> list[tuple[int, int]]:
        """(child, key) of the rows before the last that a head carries."""
        own = self.copies[index]
        return [
            (v.child, v.keys[own.last_key])
            for v in self.verdicts[:-1]
            if v.keys.get(own.last_key, -1) == own.keys[v.child] >= 0
        ]

    def judge(self, index: int, child: int) -> CandidateEdge | None:
        """A head's largest entry in a row, or what it stands for; of the last position only if it is accepted."""
        row, own, verdict = self.attention[index, child], self.copies[index], self.verdicts[child]
        favourite, is_last = int(row[: child + 1].argmax()), child == self.n_ctx - 1
        t = own.last_key
        if {copy.keys[child] for copy in self.copies if copy.last_key in self.slots} - {-1} == {*verdict.keys.values()}:
            t = next((other for other, key in verdict.keys.items() if key == favourite), t)  # a row may be swapped
        parent = verdict.keys.get(t, favourite)
        reason = self._why_not(index, child, t, favourite)
        if is_last and reason:
            return None  # the last row has other work: it is judged as the target's
        if reason:
            parent = favourite
        elif is_last and float(row[parent]) >= self.min_weight / 2:
            favourite = parent
        lift = self.lifts.get(t)
        key = verdict.keys.get(t, favourite)
        return CandidateEdge(
            parent=parent,
            child=child,
            head=self.heads[index],
            weight=float(row[parent]),
            margin=_margin(row[: child + 1], parent),
            information=float(lift.value[child, key, t]) if lift is not None else float("nan"),
            information_share=verdict.share.value,
            p_value=self.p_values[child],
            accepted=not reason,
            reason=reason or _how(row, parent, favourite, t, verdict.share.value),
            decided_by="information" if own.keys[child] >= 0 or is_last else "attention",
        )

    def _why_not(self, index: int, child: int, t: int, favourite: int) -> str:
        """Why an entry is no edge; empty if it is one."""
        own, verdict, is_last = self.copies[index], self.verdicts[child], child == self.n_ctx - 1
        if favourite == child and not is_last:
            return "attends to itself, which is no parent"
        if own.keys[child] < 0 and not is_last:
            return f"attention {float(self.attention[index, child].max()):.2f} is below {self.min_weight:g}"
        if t not in self.lifts:
            return f"its head goes with position {t}, which is no parent of the target"
        if verdict.reason:
            return verdict.reason
        standing = joint_keys(own.last_key, self.copies).keys[child] if own.last_key in self.lifts else None
        if own.keys[child] != standing and not is_last:
            return f"another head with position {own.last_key} attends to {standing}"
        if t not in verdict.keys:
            return "its row's parents are carried by other heads"
        if self.p_values[child] >= self.level:
            return f"no information (p = {self.p_values[child]:.2g}): a root, or a child of another transition matrix"
        better = self._better(child, verdict.keys, t)
        return "" if better is None else f"position {better} tells more"

    def _better(self, child: int, keys: Keys, t: int) -> int | None:
        """A key between the row's others that tells more about the child beyond doubt, with t or another free one."""
        parent, lift = keys[t], self.lifts[t]
        if parent == t:
            return None  # always matched: nothing can be told
        above = max((key for key in keys.values() if key < parent), default=-1)
        below = min((key for key in keys.values() if key > parent), default=child)
        free = torch.zeros(lift.value.shape[1:], dtype=torch.bool)
        free[above + 1 : below, self._free(t)] = True
        value = lift.value[child] * free
        key, other = divmod(int(value.argmax()), self.n_ctx)
        own, best = float(value[parent, t]), float(value[key, other])
        doubt = 2 * float(lift.standard_error[child, key, other])
        return key if own < DOMINANT * best and own < best - doubt else None

    def _free(self, t: int) -> list[int]:
        """The positions that stand for no other parent of the target."""
        taken = {*self.lifts, *(match.last_key for match in self.beside)}
        return [other for other in range(self.n_ctx) if other == t or other not in taken]

    def judge_last_row(self, index: int, compared: int | None) -> CandidateEdge:
        """Whether the head's t is a parent of the target: the t that explains most of what its rows tell."""
        row, t, edges = self.attention[index, -1], self.copies[index].last_key, self.edges_of(index)
        weight = float(row[t])
        telling = [(child, key) for child, key in edges if key != t]  # a key that is t itself always matches
        total, mean, p = torch.zeros(self.n_ctx), 0.0, 1.0
        if t in self.lifts and telling:
            cells = tuple(torch.tensor(telling).T)
            total = self.lifts[t].value[cells].sum(dim=0)
            error = float(self.lifts[t].standard_error[cells].square().sum(dim=0)[t]) ** 0.5
            mean, p = float(total[t]) / len(telling), upper_tail(float(total[t]) / error)
        copies_it = int(row.argmax()) == t and weight >= self.min_weight / 2
        best = max(self._free(t), key=lambda other: float(total[other]))
        by: DecidedBy = "information"
        reason = ""
        if t not in self.lifts or not telling:
            reason = "no row agrees with it"
        elif float(total[t]) < DOMINANT * float(total[best]):
            reason = f"position {best} explains more of what its rows tell"
        elif compared is None and not copies_it:
            by, reason = "attention", f"the head's rows go with position {t}, which its last row does not copy"
        elif compared not in (None, t):
            by, reason = "attention", f"its rows go with position {t}, but layer 1 compares them with {compared}"
        return CandidateEdge(
            parent=t,
            child=self.n_ctx,
            head=self.heads[index],
            weight=weight,
            margin=_margin(row, t),
            information=mean,
            information_share=1.0 if edges else 0.0,
            p_value=p,
            accepted=not reason,
            reason=reason
            or f"attention {weight:.2f}; {len(edges)} rows agree with it"
            + ("" if copies_it else "; layer 1 compares with it all the same"),
            decided_by=by,
        )

    def report(self, candidates: Sequence[CandidateEdge], index: int) -> HeadReport:
        head, t = self.heads[index], self.copies[index].last_key
        edges = tuple((c.parent, c.child) for c in candidates if c.head == head and c.accepted)
        within = sum(child < self.n_ctx for _, child in edges)
        of_target = t if (t, self.n_ctx) in edges else "none"
        role = f"carries a parent of {within} positions, and {of_target} of the target" if edges else "carries nothing"
        return HeadReport(head, t, float(self.attention[index, -1, t]), edges, role)


def _margin(row: Tensor, key: int) -> float:
    """What an entry has above the rest of its row."""
    return float(row[key] - row.index_fill(0, torch.tensor(key), 0.0).max())


def _how(row: Tensor, parent: int, favourite: int, t: int, share: float) -> str:
    """How an accepted edge was told."""
    if parent == favourite:
        return f"attention {float(row[parent]):.2f}, {share:.0%} of a child's information"
    return (
        f"attends to {favourite} (attention {float(row[favourite]):.2f}), which singles out the same sequences: of "
        f"different parents in order, only with {parent} for {t}; {share:.0%} of a child's information"
    )


def _compared_tokens(last_layer: Tensor | None, tokens: Tensor, reading: _Reading) -> list[int | None]:
    """For each head the t whose token layer 1 compares its copies with: it attends to a child where they are equal.

    The sum over the head's edges of E[log attention | x_key = x_t] - E[log attention | x_key != x_t], largest over t.
    """
    if last_layer is None:
        return [None] * len(reading.heads)
    scores, tokens = last_layer.double().clamp(min=1e-12).log(), tokens[: len(last_layer)]
    scores = scores - scores.mean(dim=0)
    found: list[int | None] = []
    for index in range(len(reading.heads)):
        total = torch.zeros(reading.n_ctx, dtype=torch.float64)
        edges = reading.edges_of(index)
        for child, key in edges:
            same = (tokens[:, [key]] == tokens).double()
            share = same.mean(dim=0)
            total += (scores[:, child] @ same / len(same)) / (share * (1 - share)).clamp(min=1e-12)
        found.append(int(total.argmax()) if edges else None)
    return found
