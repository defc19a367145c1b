"""From tests to verdicts: child, root or undecided, each with a reason that says no more than what was tested."""

from collections.abc import Sequence
from dataclasses import dataclass
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
    verdict, needed, reason = _decide(i, test, why_not)
    tested = best >= 0 and test.n >= MIN_SEQUENCES
    return Position(
        position=i,
        verdict=verdict,
        parent=best if verdict == "child" else None,
        candidate=best if best >= 0 else None,
        rival=rival if rival >= 0 else None,
        weight=_share(i, best, test),
        p_value=_p_value(i, test),
        p_root=_NAN if _hidden(i, test) else float(test.p_root[i]),
        p_forest=_p_forest(i, test) if tested else _NAN,
        shares_with=tuple(_shares_with(i, test)) if tested else (),
        sequences_needed=needed,
        reason=reason,
        parents=(best,) if verdict == "child" else (),
    )


def _decide(i: int, test: EdgeTest, why_not: dict[int, str]) -> tuple[Verdict, float, str]:
    """Verdict, sequences needed and reason."""
    hidden = _hidden(i, test)
    if i in why_not:
        return "undecided", _NEVER, why_not[i]
    if test.best[i] < 0 and hidden:
        return "undecided", _NEVER, f"{_one_of(hidden)}, of which nothing can be said, may be its parent"
    if test.best[i] < 0:
        return "root", _NEVER, "no earlier position to be a parent"
    if test.n < MIN_SEQUENCES:
        few = f"{test.n} independent sequences cannot support a conclusion: {MIN_SEQUENCES} is the least"
        return "undecided", _NEVER, few
    if _p_value(i, test) < test.level:
        return _decide_edge(i, test)
    if _p_forest(i, test) < test.level:
        return "undecided", *_dependent(i, test)
    if test.p_root[i] < test.level and hidden:
        return "undecided", _NEVER, f"a root unless {_one_of(hidden)}, of which nothing can be said, is its parent"
    if test.p_root[i] < test.level:
        bound = f"no earlier position has {MIN_SHARE:.0%} of an edge's score (p = {test.p_root[i]:.2g})"
        return "root", _NEVER, f"{bound}, and none contradicts independence"
    return "undecided", *_open(i, test)


def _decide_edge(i: int, test: EdgeTest) -> tuple[Verdict, float, str]:
    """Of a position with an entry that is significantly its row's largest."""
    best, share = int(test.best[i]), _share(i, int(test.best[i]), test)
    found = f"position {best} stands out (p = {_p_value(i, test):.2g})"
    scale = "an edge's score" if test.laws else "the score of the edges found"
    cause = "more than one parent, or targets that are not the law" if test.laws else "more than one parent"
    others, p_single = _shares_with(i, test), float(test.forest.p_one_parent[i])
    if not test.forest.fits_targets:
        return "undecided", _NEVER, f"{found}, but no position without an edge is independent of any earlier one"
    if share < MIN_SHARE:
        return "undecided", _NEVER, f"{found} with only {share:.0%} of {scale}: {cause}?"
    if p_single < test.level:
        return (
            "undecided",
            _NEVER,
            f"{found} with {share:.0%} of {scale}, significantly less (p = {p_single:.2g}): {cause}?",
        )
    if others:
        p_value = float(test.forest.p_independent[i].min())
        told = f"{_named(others)} {'tells' if len(others) == 1 else 'tell'} of it what one parent does not explain"
        return "undecided", _NEVER, f"{found}, but {told} (p = {p_value:.2g}): more than one parent?"
    reason = f"parent {best}: p = {_p_value(i, test):.2g}, "
    if np.isfinite(p_single):
        reason += f"{share:.0%} of {scale}"
    else:
        reason += "the only edge: without laws its score is not known, and a further parent may be overlooked"
    return "child", float(test.sequences_needed[i]), reason


def _dependent(i: int, test: EdgeTest) -> tuple[float, str]:
    """Of a position without an edge that is not independent of the earlier ones: sequences needed and reason."""
    others, hidden = _shares_with(i, test), _hidden(i, test)
    shares = (
        f"shares information with {_named(others) if others else 'earlier positions'} (p = {_p_forest(i, test):.2g})"
    )
    if hidden:
        return _NEVER, f"{shares}; {_one_of(hidden)}, of which nothing can be said, may be its parent"
    if not test.forest.fits_targets:
        return _NEVER, f"{shares}, or the targets are not the laws of these tokens"
    for p_short, what in ((test.forest.p_one_parent[i], "the"), (test.p_root[i], f"{MIN_SHARE:.0%} of the")):
        if p_short < test.level:
            return _NEVER, f"{shares}; none has {what} score of an edge (p = {p_short:.2g}): more than one parent?"
    needed, why = _lacking(i, test)
    return needed, f"{shares}, but no parent can be named: {why}"


def _open(i: int, test: EdgeTest) -> tuple[float, str]:
    """Of a position of which neither an edge nor its absence is shown: sequences needed and reason."""
    hidden = _hidden(i, test)
    needed, why = _lacking(i, test)
    among = f"; {_one_of(hidden)}, of which nothing can be said, may be its parent" if hidden else ""
    return needed, f"neither an edge nor its absence is shown by {test.n:,} sequences: {why}{among}"


def _lacking(i: int, test: EdgeTest) -> tuple[float, str]:
    """How many sequences would decide position i, inf if more of them are not known to help; and that in words."""
    best, rival, share = int(test.best[i]), int(test.rival[i]), _share(i, int(test.best[i]), test)
    own = float(test.root_sequences_needed[i] if share < MIN_SHARE else test.sequences_needed[i])
    if test.n < own <= _FORESEEABLE * test.n and not (_hidden(i, test) and share < MIN_SHARE):
        return own, f"about {own:,.0f} are needed"
    if test.n < test.edge_sequences_needed < _NEVER:
        return test.edge_sequences_needed, f"a typical edge needs about {test.edge_sequences_needed:,.0f}"
    score = "" if np.isnan(share) else f", {share:.0%} of an edge's score,"
    if rival >= 0 and not share < MIN_SHARE:
        return _NEVER, f"the largest score{score} is position {best}'s, and position {rival}'s is as large within error"
    return _NEVER, f"the largest score{score} is position {best}'s, and how many more would do is not known"


def _share(i: int, j: int, test: EdgeTest) -> float:
    return float(test.weight[i, j]) if j >= 0 else _NAN


def _p_value(i: int, test: EdgeTest) -> float:
    return float(test.p_value[i, test.best[i]]) if test.best[i] >= 0 else 1.0


def _p_forest(i: int, test: EdgeTest) -> float:
    """The smallest p-value of what a forest implies of position i."""
    implied = [test.forest.p_independent[i].min(), test.forest.p_flat[i]]
    if _p_value(i, test) < test.level:
        implied.append(test.forest.p_one_parent[i])
    return float(np.nanmin(implied))


def _shares_with(i: int, test: EdgeTest) -> list[int]:
    return np.flatnonzero(test.forest.p_independent[i] < test.level).tolist()


def _hidden(i: int, test: EdgeTest) -> list[int]:
    """The earlier positions of which nothing can be said, though they may be parents."""
    return np.flatnonzero(test.hidden[:i]).tolist()


def _named(positions: Sequence[int]) -> str:
    if len(positions) == 1:
        return f"position {positions[0]}"
    return f"positions {', '.join(map(str, positions[:-1]))} and {positions[-1]}"


def _one_of(positions: Sequence[int]) -> str:
    return _named(positions) if len(positions) == 1 else f"one of {_named(positions)}"
