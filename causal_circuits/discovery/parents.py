"""From matches to verdicts: the target's parents, and of every position its own, none, or why neither can be said.

A choice of keys j is rejected as the parents of position i if, given the match, the gain lies significantly below that
of a draw from the target's law (no correction over j: only the true one must survive), or if a rival's sequences speak
against it: had i the parents j, then where only the rival matches its gain would have mean 0, and where only j matches
that of a draw from the target's law. A child has one choice of keys that is not rejected, and its gain is not that of
an independent token.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from math import comb, log

import networkx as nx
import numpy as np
import scipy  # type: ignore[import-untyped]  # its parts are imported with their first use
import torch
from torch.nn.functional import one_hot

from causal_circuits.discovery.assumptions import not_uniform, tied_to_another
from causal_circuits.discovery.user_data import WRONG_WITH, UserData
from causal_circuits.discovery.verdicts import MIN_SEQUENCES, Position, Verdict
from causal_circuits.information.matches import Gains, MatchSums, chernoff_p_value, match_sums, p_independent
from causal_circuits.information.target_search import Candidate, candidates, p_of_rival

FULL = 0.97  # of a full match, below which a share must lie significantly to contradict it
_OWN = 0.85  # of a full match: a rival that has more where it alone matches is not rejected
_TOLD = 4  # rivals that a reason names
_LONE = "the only child of another number of parents would look the same"


Found = tuple[tuple[int, ...] | None, tuple[Position, ...], tuple[str, ...]]


@dataclass(frozen=True)
class MatchTest:
    """Matches with the target's parents, tested.

    p_full is of "these are the parents", [keys, position], Bonferroni over positions (0 where keys are not earlier);
    p_chance of "independent of the target's law given any match", by position; p_apart and partner are
    `p_independent`'s; n_matches counts pairs of keys and a position after them.
    """

    data: Gains
    first: Candidate
    sums: MatchSums
    p_full: np.ndarray
    p_chance: np.ndarray
    p_apart: np.ndarray
    partner: np.ndarray
    n_matches: int
    level: float


def find_parents(given: UserData, max_parents: int, level: float) -> Found:
    """The target's parents (None: undecided), a verdict on each position, and warnings."""
    why_not = given.why_constant
    allowed = [t for t in range(given.n_ctx) if t not in why_not]
    if given.n_independent < MIN_SEQUENCES:
        few = f"{given.n_independent} independent sequences cannot support a conclusion: {MIN_SEQUENCES} is the least"
        return _nothing(given.n_ctx, few)
    if not allowed:
        return _nothing(given.n_ctx, "every token is constant: no parent can be told")
    tokens, y = torch.from_numpy(given.tokens), torch.from_numpy(given.targets).float()
    laws = y if given.probabilities else one_hot(y.argmax(dim=1), y.shape[1]).float()
    gains = Gains.of(tokens, laws, given.n_independent / len(tokens))
    data, found = candidates(gains, allowed, min(max_parents, len(allowed)))
    test = match_test(data, found[0], level)
    doubt = _doubt(test, found)
    if doubt:
        return _nothing(given.n_ctx, doubt)
    positions = tuple(_position(i, test, why_not.get(i)) for i in range(data.n_ctx))
    positions = tuple(_confirmed(p, test, positions) if p.position in found[0].target else p for p in positions)
    roots = [p.position for p in positions if p.verdict == "root"]
    short = _fall_short_together(test, positions) or _tied_to_target(test, positions)
    short = short or tied_to_another(data, roots)
    doubts = [not_uniform(data), _agree_with_later(test, positions)]
    if data.of_labels:
        doubts.append(_one_more_parent(test, positions))
    children = {p.position for p in positions if p.verdict == "child"}
    for why in doubts:
        doubted = sorted(children & {*why})
        if not short and len(doubted) > len(children) / 2:
            short = f"most children found are in doubt, {_named(tuple(doubted))}: of the first, {why[doubted[0]]}"
        positions = tuple(_with_doubt(p, why.get(p.position, "")) for p in positions)
    if short:
        return _nothing(data.n_ctx, short)
    return found[0].target, positions, tuple(f"position {i}: {why_not[i]}" for i in sorted(why_not))


def match_test(data: Gains, first: Candidate, level: float) -> MatchTest:
    """The tests of every match."""
    sums, n_matches = match_sums(data, first.target), comb(data.n_ctx, len(first.target) + 1)
    gain, earlier = np.nan_to_num(sums.gain), np.isfinite(sums.gain)
    p_full = data.p_value(FULL * sums.full_mean[:, None] - gain, sums.full_variance[:, None])
    p_full = np.where(earlier, np.minimum(1.0, data.n_ctx * p_full), 0.0)
    p_chance = data.p_value(gain, sums.chance_variance[:, None]).min(axis=0, initial=1.0)
    apart, partner = p_independent(data.tokens, data.d_vocab)
    p_chance = np.minimum(1.0, n_matches * p_chance)
    return MatchTest(data, first, sums, p_full, p_chance, apart**data.independent, partner, n_matches, level)


def _nothing(n_ctx: int, why: str) -> Found:
    """Every position undecided, for one reason."""
    positions = tuple(Position(i, "undecided", reason=why) for i in range(n_ctx))
    return None, positions, (f"nothing can be concluded: {why}",)


def _doubt(test: MatchTest, found: list[Candidate]) -> str:
    """Why the target's parents cannot be told; empty if they can."""
    first, data = test.first, test.data
    k, n_sets = len(first.target), comb(data.n_ctx, len(first.target))
    least = min((_p_of_chance(i, test) for i in first.with_match), default=1.0)
    if least * n_sets >= test.level:
        return (
            f"no position is drawn from the target's law where {k} tokens match: the best target's parents would be "
            f"{_named(first.target)} (p = {min(1.0, least * n_sets):.2g})"
        )
    alike = [other for other in found[1:] if p_of_rival(data, first, other) ** data.independent >= test.level]
    if alike:
        names = " or ".join(_named(candidate.target) for candidate in [first, *alike][:_TOLD])
        return f"the target's parents are {names}: which, these sequences do not tell"
    return ""


def _agree_with_later(test: MatchTest, positions: Collection[Position]) -> dict[int, str]:
    """Root -> that a later position, no child of the target's kind, agrees with it as two children of one row do.

    Its own child, or its child's, agrees with it less than with another child.
    """
    roots = {p.position for p in positions if p.verdict == "root"}
    apart = {p.position for p in positions if p.candidate is None and test.p_apart[p.position] < test.level}
    pairs = {int(test.partner[i]): i for i in sorted(apart, reverse=True)}
    return {i: f"position {pairs[i]} agrees with it: a child of another number of parents?" for i in roots & {*pairs}}


def _tied_to_target(test: MatchTest, positions: Collection[Position]) -> str:
    """Whether a token depends on the target's law where its parents do not match; asked only where it must not.

    It may where it shares an ancestor with the target: a token that tells of the target's parents tells of its law. A
    child may also where two tokens before it or the target were drawn: these tell of its row and of the target's.
    """
    data, graph = test.data, nx.DiGraph((parent, p.position) for p in positions for parent in p.parents)
    graph.add_nodes_from(range(data.n_ctx))
    graph.add_edges_from((t, data.n_ctx) for t in test.first.target)
    undecided = {p.position for p in positions if p.verdict == "undecided"}
    of_target = nx.ancestors(graph, data.n_ctx)
    of_target |= undecided | {*range(max(of_target & undecided, default=0))}  # any earlier position may be an ancestor
    drawn = {p.position for p in positions if p.verdict != "root"}
    for i in range(data.n_ctx):
        above, parents = nx.ancestors(graph, i), sorted(graph.predecessors(i))
        if not of_target.isdisjoint({i, *above}) or (parents and len(drawn & (of_target | above)) > 1):
            continue
        apart = ~data.match(parents, test.first.target) if parents else torch.ones(len(data), dtype=torch.bool)
        off = abs(float(data.observed[apart, i].sum())) - (1 - FULL) * float(data.full_mean[apart].sum())
        p_value = 2 * data.n_ctx * float(data.p_value(off, float(data.chance_variance[apart].sum())))
        if p_value < WRONG_WITH:
            return (
                f"position {i} depends on the target's law without a match of its parents (p = {p_value:.2g}): roots "
                "that follow the transition matrix (max_parents=1 takes them), or laws that prefer a token?"
            )
    return ""


def _with_doubt(p: Position, doubt: str) -> Position:
    if not doubt or p.verdict == "undecided":
        return p
    return replace(p, verdict="undecided", parent=None, parents=(), reason=f"{p.reason}; but {doubt}")


def _fall_short_together(test: MatchTest, positions: Collection[Position]) -> str:
    """Whether the children found are, taken together, less than full matches."""
    children = [p.position for p in positions if p.verdict == "child"]
    rows, sums = test.first.best[children], test.sums
    full, gain = sums.full_mean[rows].sum(), sums.gain[rows, children].sum()
    p_value = float(test.data.p_value(FULL * full - gain, sums.full_variance[rows].sum()))
    if not children or p_value >= test.level:
        return ""
    return (
        f"the children of the target's parents {_named(test.first.target)} have {gain / full:.0%} of a full match, "
        f"significantly less (p = {p_value:.2g}): more parents than were allowed, or targets that are not the laws?"
    )


def _one_more_parent(test: MatchTest, positions: Collection[Position]) -> dict[int, str]:
    """Child -> that its label is hit by chance where not also x_j = x_t, for some j and t.

    What a full match gains is estimated from labels, so that matches of some of the parents pass for matches of all.
    """
    data, why = test.data, dict[int, str]()
    for p in (p for p in positions if p.verdict == "child"):
        held, i = data.match(p.parents, test.first.target), p.position
        tokens = one_hot(data.tokens[held], data.d_vocab).float()
        n, hits = (
            len(part) - torch.einsum("njs,nts->jt", part[:, :i], part).numpy()
            for part in (tokens, tokens[data.observed[held, i] > 0])
        )
        # where n is 0, the match implies it
        p_values = np.where(n > 0, scipy.stats.binom.sf(hits - 1, n, 1 / data.d_vocab), 0.0)
        p_value = float(np.delete(p_values, i, axis=1).max()) ** data.independent
        if p_value >= test.level:
            why[i] = f"the target may have one more parent (p = {p_value:.2g}): more than were allowed, or few labels?"
    return why


def _position(i: int, test: MatchTest, why_not: str | None) -> Position:
    best, sums = int(test.first.best[i]), test.sums
    if why_not is not None:
        return Position(i, "undecided", reason=why_not)
    if best < 0:
        return _without_match(i, test)
    p_value, rivals = _against_rivals(i, best, test)
    keys, share = _keys(best, test), float(sums.gain[best, i] / sums.full_mean[best])
    p_full = float(test.p_full[best, i])
    is_child = p_value < test.level and p_full >= test.level
    verdict: Verdict = "child" if is_child else "undecided"
    told = f"parents {_named(keys)}: share {share:.0%} of a full match in {int(sums.n[best]):,} sequences"
    own_token = i in test.first.target and p_full < test.level  # its matches hold it: no sign of dependence
    if not is_child and (own_token or _p_of_chance(i, test) >= test.level):
        return _without_match(i, test)
    if is_child:
        reason = f"{told}, p = {p_value:.2g}"
    elif p_full < test.level:
        reason = f"{told}, significantly less (p = {p_full:.2g}): more parents than were allowed?"
    else:
        others = " or ".join(_named(_keys(rival, test)) for rival in rivals[:_TOLD])
        reason = (
            f"{told}, and {others} {'are' if len(rivals) > 1 else 'is'} not told apart from them (p = {p_value:.2g})"
        )
    return Position(
        position=i,
        verdict=verdict,
        parent=keys[0] if is_child and len(keys) == 1 else None,
        candidate=keys,
        rival=_keys(rivals[0], test) if rivals else None,
        weight=share,
        p_value=p_value,
        p_forest=p_full,
        sequences_needed=_needed(p_value, test) if is_child or rivals else float("inf"),
        reason=reason,
        parents=keys if is_child else (),
    )


def _confirmed(p: Position, test: MatchTest, all_positions: Collection[Position]) -> Position:
    """The verdict on one of the target's parents, whose matches hold its own token: does it agree with other children?

    Where its parents and another child's hold the same tokens, its token is that child's as often as two draws from
    one row are equal; a root's in 1 of d_vocab sequences.
    """
    others = [q for q in all_positions if q.verdict == "child" and q.position not in (*test.first.target, p.position)]
    if p.verdict != "child":
        return p
    data, p_values = test.data, [1.0]
    for other in others:
        if p.position in other.parents:
            continue
        held = data.match(p.parents, other.parents)
        equal = (data.tokens[held, p.position] == data.tokens[held, other.position]).double()
        short = float((data.d_vocab * equal - 1).sum() - data.full_mean[held].sum() / 4)
        n_tests, variance = len(others) * len(test.first.target), (data.d_vocab - 1.0) * len(equal)
        p_values.append(n_tests * float(data.p_value(short, variance)))
    if min(p_values) < test.level:
        return p
    no_other = f"it agrees with no other child (p = {min(p_values):.2g})"
    return _with_doubt(p, f"the target's parents match themselves, and {no_other}")


def _without_match(i: int, test: MatchTest) -> Position:
    """A root, if no keys can be its parents and nothing contradicts its independence."""
    k, after = len(test.first.target), max(test.first.target) < i
    p_root = float(test.p_full[:, i].max(initial=0.0))
    contradicted = min(float(test.p_apart[i]), float(test.p_chance[i]) if after else 1.0)
    verdict: Verdict = "undecided"
    none = f"no {k} earlier positions are its parents" if i >= k else f"fewer than {k} earlier positions"
    if p_root >= test.level:
        keys = _keys(int(test.p_full[:, i].argmax()), test)
        reason = f"{_named(keys)} may be its parents, or none: too few sequences to tell"
    elif contradicted < test.level:
        reason = f"{none}, but it depends on them (p = {contradicted:.2g}): a child of another number of parents?"
    else:
        verdict = "root"
        reason = f"{none} (p = {p_root:.2g}), and nothing contradicts independence" if i >= k else none
        reason += f"; {_LONE}" if i else ""
    needed = _needed(p_root, test) if p_root >= test.level else float("inf")
    return Position(i, verdict, p_root=p_root, p_forest=contradicted, sequences_needed=needed, reason=reason)


def _against_rivals(i: int, best: int, test: MatchTest) -> tuple[float, list[int]]:
    """The p-value of "`best` are not the parents of i", and the keys that are not rejected, the likeliest first."""
    open_to = np.flatnonzero((2 * test.p_full[:, i] >= test.level) & (np.arange(len(test.p_full)) != best))
    rejected = np.delete(2 * test.p_full[:, i], [best, *open_to])
    p_value = max(_p_of_chance(i, test), float(rejected.max(initial=0.0)))
    if p_value >= test.level:
        return min(1.0, p_value), []
    sums, rivals = test.sums, []
    h = sums.gain[open_to, i] - sums.full_mean[open_to] / 2
    for rival in open_to[np.argsort(-h, kind="stable")].tolist():
        p_rival = 2 * _p_of_rival_keys(i, best, rival, test)
        p_value = max(p_value, min(1.0, p_rival))
        if p_rival >= test.level:
            rivals.append(rival)
        if len(rivals) >= _TOLD:
            break
    return p_value, rivals


def _p_of_chance(i: int, test: MatchTest) -> float:
    """Of "independent of the target's law given its best match", Bonferroni over all matches."""
    data, best = test.data, int(test.first.best[i])
    held = data.match(_keys(best, test), test.first.target)
    p_value = chernoff_p_value(float(test.sums.gain[best, i]), [(data.uniform[held], data.values[held])])
    return min(1.0, test.n_matches * p_value**data.independent)


def _p_of_rival_keys(i: int, best: int, rival: int, test: MatchTest) -> float:
    """Of "the rival keys are the parents of i": full gains where only they match, none where only the best do.

    Where many sequences match the rival alone, these have to speak against it too: near copies of x_i among the keys
    can lend the best keys gains that are not theirs, and so can descendants of i among the target's parents.
    """
    data = test.data
    ours, theirs = (data.match(_keys(keys, test), test.first.target) for keys in (best, rival))
    only_ours, only_theirs = ours & ~theirs, theirs & ~ours
    gain, theirs_gain = float(data.observed[only_ours, i].sum()), float(data.observed[only_theirs, i].sum())
    parts = [(data.uniform[only_ours], data.values[only_ours]), (data.law[only_theirs], -data.values[only_theirs])]
    p_value = test.n_matches * chernoff_p_value(gain - theirs_gain, parts) ** data.independent
    full, variance = float(data.full_mean[only_theirs].sum()), float(data.full_variance[only_theirs].sum())
    p_full, p_if_half = (
        data.n_ctx * float(data.p_value(short, variance)) for short in (FULL * full - theirs_gain, full / 2)
    )
    if p_if_half >= test.level:
        return p_value
    return max(p_value, p_full) if theirs_gain < _OWN * full else 1.0


def _keys(index: int, test: MatchTest) -> tuple[int, ...]:
    return tuple(test.sums.keys[index].tolist())


def _needed(p_value: float, test: MatchTest) -> float:
    """How many sequences would take a p-value to the level: its logarithm grows with their number."""
    corrected = 2 * test.n_matches
    if p_value >= 1.0:
        return float("inf")
    return len(test.data) * log(test.level / corrected) / log(max(p_value, 1e-300) / corrected)


def _named(positions: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, positions))})"
