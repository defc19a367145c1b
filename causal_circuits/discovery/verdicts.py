"""From tests to verdicts: child, root or undecided, each with a reason that says no more than what was tested."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from causal_circuits.arguments import check_arguments
from causal_circuits.discovery.significance import MIN_SHARE, EdgeTest

Verdict = Literal["child", "root", "undecided"]

MIN_SEQUENCES = 30  # independent ones, below which nothing is decided: no tail bound holds with an estimated variance
_NAN = float("nan")
_NEVER = float("inf")  # sequences: more of them are not known to help
_FORESEEABLE = 3  # times the sequences given: a number further off rests on a difference that may be noise


@check_arguments
@dataclass(frozen=True, repr=False)
class Position:
    """The verdict on one position.

    Attributes:
        position: 0 .. n_ctx - 2 (the query is given); 0 .. n_ctx - 1 if the target has several parents.
        verdict: "child", "root" or "undecided".
        parent: of a child of one parent, else None.
        candidate: the earlier position with the largest score, decided or not; None at the first position. Of several
            parents a tuple, None where there is none.
        rival: the position (tuple) whose score comes closest to the candidate's.
        weight: the candidate's score on a scale where 0 is an independent pair and 1 an edge; NaN if unknown.
        p_value: of "the candidate is not the parent", Holm-corrected over all pairs of positions.
        p_root: of "an earlier position has half of an edge's score", Holm-corrected over positions; NaN if it
            cannot be tested, because nothing can be said of an earlier position, say.
        p_forest: of "one parent, or none, explains this position", Holm-corrected over all tests of that kind: where an
            edge was found, that the parent's row alone draws it, elsewhere that it is independent of every earlier
            position; NaN if neither can be tested.
        shares_with: the earlier positions that contradict that, as far as single ones do.
        sequences_needed: of a child, at which its edge is certain at the level; of an undecided position, at which it
            would be decided if more sequences are what is lacking; inf otherwise.
        reason: why, in words.
        parents: of a child, in order; else empty.

    >>> found = cc.recover_graph(task.sample(3000, seed=0))
    >>> found.positions[0], found.positions[1].parent, found.positions[1].p_value < 0.01
    (Position(0, root: no earlier position to be a parent), 0, True)
    """

    position: int
    verdict: Verdict
    parent: int | None = None
    candidate: int | tuple[int, ...] | None = None
    rival: int | tuple[int, ...] | None = None
    weight: float = _NAN
    p_value: float = 1.0
    p_root: float = _NAN
    p_forest: float = _NAN
    shares_with: tuple[int, ...] = ()
    sequences_needed: float = _NEVER
    reason: str = ""
    parents: tuple[int, ...] = ()

    def __repr__(self) -> str:
        return f"Position({self.position}, {self.verdict}: {self.reason})"


def judge_position(i: int, test: EdgeTest, why_not: dict[int, str]) -> Position:
    """The verdict on position i; `why_not` holds the positions that are not tested, and why."""
    best, rival = int(test.best[i]), int(test.rival[i])
    hidden = np.flatnonzero(test.hidden[:i]).tolist()  # not tested, though they may be parents
    p = Position(
        i,
        "undecided",
        candidate=best if best >= 0 else None,
        rival=rival if rival >= 0 else None,
        weight=float(test.weight[i, best]) if best >= 0 else _NAN,
        p_value=float(test.p_value[i, best]) if best >= 0 else 1.0,
        p_root=_NAN if hidden else float(test.p_root[i]),
    )
    if best >= 0 and test.n >= MIN_SEQUENCES:
        others = np.flatnonzero(test.forest.p_independent[i] < test.level).tolist()
        p = replace(p, p_forest=_p_forest(p, test), shares_with=tuple(others))
    unknown = f"{_one_of(hidden)}, of which nothing can be said," if hidden else ""
    return replace(p, reason=why_not[i]) if i in why_not else _decide(p, test, unknown)


def _decide(p: Position, test: EdgeTest, unknown: str) -> Position:
    """The position with its verdict; `unknown` names earlier ones that were not tested, empty if all were."""
    p_root = float(test.p_root[p.position])
    if p.candidate is None and unknown:
        return replace(p, reason=f"{unknown} may be its parent")
    if p.candidate is None:
        return replace(p, verdict="root", reason="no earlier position to be a parent")
    if test.n < MIN_SEQUENCES:
        few = f"{test.n} independent sequences cannot support a conclusion: {MIN_SEQUENCES} is the least"
        return replace(p, reason=few)
    if p.p_value < test.level:
        return _with_edge(p, test)
    if p.p_forest < test.level:
        return _dependent(p, test, unknown)
    if p_root < test.level and unknown:
        return replace(p, reason=f"a root unless {unknown} is its parent")
    if p_root < test.level:
        bound = f"no earlier position has {MIN_SHARE:.0%} of an edge's score (p = {p_root:.2g})"
        return replace(p, verdict="root", reason=f"{bound}, and none contradicts independence")
    needed, why = _lacking(p, test, unknown)
    why += f"; {unknown} may be its parent" if unknown else ""
    told = f"neither an edge nor its absence is shown by {test.n:,} sequences: {why}"
    return replace(p, sequences_needed=needed, reason=told)


def _with_edge(p: Position, test: EdgeTest) -> Position:
    """Of an entry that is significantly its row's largest: the edge, unless it falls short or leaves something over."""
    best, p_single = int(test.best[p.position]), float(test.forest.p_one_parent[p.position])
    found = f"position {best} stands out (p = {p.p_value:.2g})"
    scale = "an edge's score" if test.laws else "the score of the edges found"
    cause = "more than one parent, or targets that are not the law" if test.laws else "more than one parent"
    if not test.forest.fits_targets:
        return replace(p, reason=f"{found}, but no position without an edge is independent of any earlier one")
    if p.weight < MIN_SHARE:
        return replace(p, reason=f"{found} with only {p.weight:.0%} of {scale}: {cause}?")
    if p_single < test.level:
        short = f"{p.weight:.0%} of {scale}, significantly less (p = {p_single:.2g})"
        return replace(p, reason=f"{found} with {short}: {cause}?")
    if p.shares_with:
        p_value, tells = float(test.forest.p_independent[p.position].min()), "tell" + "s" * (len(p.shares_with) == 1)
        told = f"{_named(p.shares_with)} {tells} of it what one parent does not explain (p = {p_value:.2g})"
        return replace(p, reason=f"{found}, but {told}: more than one parent?")
    score = "the only edge: without laws its score is not known, and a further parent may be overlooked"
    score = f"{p.weight:.0%} of {scale}" if np.isfinite(p_single) else score
    needed, reason = float(test.sequences_needed[p.position]), f"parent {best}: p = {p.p_value:.2g}, {score}"
    return replace(p, verdict="child", parent=best, parents=(best,), sequences_needed=needed, reason=reason)


def _dependent(p: Position, test: EdgeTest, unknown: str) -> Position:
    """Of a position without an edge that is not independent of the earlier ones."""
    others = _named(p.shares_with) if p.shares_with else "earlier positions"
    shares = f"shares information with {others} (p = {p.p_forest:.2g})"
    if unknown:
        return replace(p, reason=f"{shares}; {unknown} may be its parent")
    if not test.forest.fits_targets:
        return replace(p, reason=f"{shares}, or the targets are not the laws of these tokens")
    p_single, p_root = float(test.forest.p_one_parent[p.position]), float(test.p_root[p.position])
    for p_short, what in ((p_single, "the"), (p_root, f"{MIN_SHARE:.0%} of the")):
        if p_short < test.level:
            none = f"none has {what} score of an edge (p = {p_short:.2g}): more than one parent?"
            return replace(p, reason=f"{shares}; {none}")
    needed, why = _lacking(p, test, unknown)
    return replace(p, sequences_needed=needed, reason=f"{shares}, but no parent can be named: {why}")


def _lacking(p: Position, test: EdgeTest, unknown: str) -> tuple[float, str]:
    """How many sequences would decide the position, inf if more of them are not known to help; and that in words."""
    i, is_weak = p.position, p.weight < MIN_SHARE
    own = float(test.root_sequences_needed[i] if is_weak else test.sequences_needed[i])
    if test.n < own <= _FORESEEABLE * test.n and not (unknown and is_weak):
        return own, f"about {own:,.0f} are needed"
    if test.n < test.edge_sequences_needed < _NEVER:
        return test.edge_sequences_needed, f"a typical edge needs about {test.edge_sequences_needed:,.0f}"
    score = "" if np.isnan(p.weight) else f", {p.weight:.0%} of an edge's score,"
    largest = f"the largest score{score} is position {p.candidate}'s, and"
    if p.rival is not None and not is_weak:
        return _NEVER, f"{largest} position {p.rival}'s is as large within error"
    return _NEVER, f"{largest} how many more would do is not known"


def _p_forest(p: Position, test: EdgeTest) -> float:
    """The smallest p-value of what a forest implies of a position."""
    i, forest = p.position, test.forest
    implied = [forest.p_independent[i].min(), forest.p_flat[i]]
    return float(np.nanmin([*implied, forest.p_one_parent[i]] if p.p_value < test.level else implied))


def _named(positions: Sequence[int]) -> str:
    if len(positions) == 1:
        return f"position {positions[0]}"
    return f"positions {', '.join(map(str, positions[:-1]))} and {positions[-1]}"


def _one_of(positions: Sequence[int]) -> str:
    return _named(positions) if len(positions) == 1 else f"one of {_named(positions)}"
