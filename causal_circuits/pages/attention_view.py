"""CircuitsVis attention views that check their input, work offline, and can share one copy of the JavaScript.

CircuitsVis draws whatever it is given (wrong lengths, integers, averages over the wrong axis) and loads its JavaScript
from a CDN when it can. Here the input is checked first, its own functions write what is drawn, and the script is
always the one of the installed package.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np
from circuitsvis.attention import attention_heads, attention_pattern
from jaxtyping import Float
from markupsafe import Markup
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.pages.circuits_vis import call_of
from causal_circuits.pages.templates import PagePart, render

ROW_SUM_TOLERANCE = 1e-3
MOST_LARGE = 4  # heads that are drawn large, side by side; more get CircuitsVis's selector
_COLOUR = "#0072B2"
_BLANK = "\u2800"  # CircuitsVis silently removes white space from its axis labels; this blank is none to it
Patterns = Float[np.ndarray, "head_index query_pos key_pos"]


@check_arguments
def pattern_view(
    attention: Tensor | np.ndarray,
    labels: Sequence[str],
    head_names: Sequence[str] | None = None,
    steps: Sequence[int] | None = None,
    title: str = "",
    outlined: Mapping[str, Sequence[tuple[int, int]]] | None = None,
) -> PagePart:
    """An interactive view of any attention patterns, checked before it is drawn; `figures.attention_view` for a model.

    Up to four heads are drawn large, side by side; more with CircuitsVis's selector of heads.

    Args:
        attention: [head_index, query_pos, key_pos]; causal, rows sum to 1. With `steps` [step, head_index, ...].
        labels: [n_ctx] strings, one a position, to which CircuitsVis adds the position's number; `position_labels`
            makes them from tokens.
        head_names: one a head, e.g. "L0H0"; None numbers them.
        steps: of training, one for each first index of `attention`: a slider goes through them, the last is shown.
        title: above the view.
        outlined: name of a head -> (query_pos, key_pos) of its entries to outline; not with more than four heads.

    Raises:
        ValueError: labels or names are not strings or of the wrong number, or the attention is not 3-D, square, finite,
            causal and normalised (to 1e-3).

    >>> view = pattern_view(np.array([[[1.0, 0.0], [0.5, 0.5]]]), labels=["3", "query 7"])
    >>> "AttentionPattern" in view, "head 0" in view
    (True, True)
    """
    values = np.asarray(attention.detach().cpu() if isinstance(attention, Tensor) else attention, dtype=np.float64)
    states = values if steps is not None else values[None]
    if steps is not None and (states.ndim != 4 or len(steps) != len(states) or not len(states)):
        raise ValueError(
            f"attention at several steps must be [step, head_index, query_pos, key_pos], one step or more: got shape "
            f"{list(states.shape)} for {len(steps)} steps"
        )
    for state in states:
        _check_shape(state)
    n_heads, n_ctx, _ = states[-1].shape
    names = [f"head {head}" for head in range(n_heads)] if head_names is None else list(head_names)
    _check_number("labels", labels, n_ctx, "position")
    _check_number("head_names", names, n_heads, "head")
    for state in states:
        _check_attention(state)
    panels, frames = _panels(np.tril(states.round(4)), labels, names, outlined or {})
    shown = [f"step {step:,}" for step in steps or ()]
    data = {"panels": panels, "frames": frames if steps is not None else [], "steps": shown}
    told = {"title": title, "names": names, "steps": shown, "panels": panels, "data": _script_json(data)}
    return PagePart(render("attention_view.html.jinja", **told))


def _panels(
    states: np.ndarray, labels: Sequence[str], names: Sequence[str], outlined: Mapping[str, Sequence[tuple[int, int]]]
) -> tuple[list[dict], list[list]]:
    """What CircuitsVis's own functions say of the last state, a panel each; and every state's patterns by panel."""
    look = {"tokens": [label.replace(" ", _BLANK) for label in labels], "max_value": 1, "min_value": -1}
    look |= {"positive_color": _COLOUR, "mask_upper_tri": True}
    last = states[-1].tolist()
    if len(names) > MOST_LARGE:
        drawn = [("the chosen head", attention_heads(last, attention_head_names=list(names), **look))]
        frames = [[state.tolist()] for state in states]
    else:
        drawn = [(name, attention_pattern(attention=head, **look)) for name, head in zip(names, last, strict=True)]
        frames = [state.tolist() for state in states]
    return [{"name": name, "outlined": outlined.get(name, []), **call_of(view)} for name, view in drawn], frames


def _script_json(value: object) -> Markup:
    """JSON in which no character can end the script element or the line."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True)
    return Markup(text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026"))


def _check_number(what: str, values: Sequence[object], n: int, each: str) -> None:
    if len(values) != n:
        raise ValueError(f"{what} must be a list with one string for each {each} ({n}): got {len(values)}")


def _check_shape(values: np.ndarray) -> None:
    if values.ndim != 3 or values.shape[1] != values.shape[2] or 0 in values.shape:
        raise ValueError(
            f"attention must be [head_index, query_pos, key_pos]: got shape {list(values.shape)}; "
            "choose one sequence (pattern[0]) or average over the batch (pattern.mean(0))"
        )


def _check_attention(values: Patterns) -> None:
    """Finite, not negative, zero above the diagonal, rows that sum to one: each within the tolerance."""
    sums = values.sum(axis=-1, keepdims=True)
    rules = (
        (~np.isfinite(values), values, "be finite", "look for an overflow in the scores"),
        (values < -ROW_SUM_TOLERANCE, values, "not be negative", "pass the pattern, not the scores or their gradients"),
        (
            np.triu(np.abs(values), 1) > ROW_SUM_TOLERANCE,
            values,
            "be causal: 0 where key_pos > query_pos",
            "transpose it?",
        ),
        (
            np.abs(sums - 1) > ROW_SUM_TOLERANCE,
            sums,
            f"have rows that sum to 1 within {ROW_SUM_TOLERANCE:g}",
            "pass the pattern after the softmax",
        ),
    )
    for broken, shown, rule, remedy in rules:
        if broken.any():
            head, query, key = (int(index) for index in np.argwhere(broken)[0])
            where = f"head {head}, query {query}" + (f", key {key}" if shown is values else "")
            raise ValueError(f"attention must {rule}: got {shown[head, query, key]:.4g} at {where}; {remedy}")
