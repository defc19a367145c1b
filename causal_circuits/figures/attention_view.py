"""CircuitsVis attention views that check their input, work offline, and can share one copy of the JavaScript.

CircuitsVis draws whatever it is given (wrong lengths, integers, averages over the wrong axis) and loads its JavaScript
from a CDN when it can. Here the input is checked first, and the script is always the one of the installed package.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from html import escape
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import numpy as np
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.figures.style import MODEL, to_numpy

ROW_SUM_TOLERANCE = 1e-3
_NUMBERS = itertools.count(1)
_BLANK = "\u2800"  # CircuitsVis silently removes white space from its axis labels; this blank is none to it
# CircuitsVis gives a head's thumbnail a twelfth of the window; a fixed size reads better for a few heads. Its white
# names on bright colours are too faint to read: they stand on dark grey here.
_STYLE = (
    "<style>.attention-view{max-width:44rem}.attention-view h2,.attention-view h3,.attention-view h4"
    "{font:600 .85rem system-ui,sans-serif;border:0}"
    ".attention-view h2,.attention-view h4{background:#333!important;color:#fff!important}"
    ".attention-view>div>div:first-of-type>div{flex:0 0 8rem!important;max-width:8rem!important}"
    "@media(max-width:40rem){.attention-view h2{display:none}}"
    ".attention-steps{display:flex;flex-wrap:wrap;gap:.25rem 1rem;align-items:center;max-width:44rem}"
    ".attention-steps input{flex:1 1 12rem}.attention-steps output{min-width:8rem}</style>"
)
# What CircuitsVis leaves out: names for its pictures, and heads that a keyboard can choose.
_NAME = """
const view = document.getElementById("NAME"), thumbnails = () => [...view.querySelectorAll("h4")];
new MutationObserver(() => {
  for (const name of thumbnails()) {
    const button = name.parentElement.parentElement;
    button.setAttribute("role", "button");
    button.setAttribute("aria-label", `Attention of ${name.textContent}`);
    button.tabIndex = 0;
    button.onkeydown = (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); button.click(); }
    };
  }
  for (const picture of view.querySelectorAll("canvas")) {
    const small = picture.closest("[role=button]");
    picture.setAttribute("aria-label", small ? small.getAttribute("aria-label") : "Attention of the chosen head");
  }
}).observe(view, { childList: true, subtree: true });"""
# CircuitsVis keeps no handle on what it rendered, but renders anew when the pointer enters or leaves a head's
# thumbnail: a wrapper hands it the pattern of the step that the slider shows, and the pointer is played.
_SCRUB = """
const slider = document.getElementById("NAME-step"), shown = document.getElementById("NAME-shown");
const frames = FRAMES, steps = STEPS, properties = PROPERTIES;
let locked = 0;
view.addEventListener("click", (event) => {
  const at = thumbnails().findIndex((name) => name.parentElement.parentElement.contains(event.target));
  if (at >= 0) locked = at;
});
const heads = () => CircuitsVis.AttentionHeads({ ...properties, attention: frames[+slider.value] });
CircuitsVis.render("NAME", heads, {});
slider.addEventListener("input", () => {
  slider.setAttribute("aria-valuetext", shown.textContent = steps[+slider.value]);
  const thumbnail = thumbnails()[locked];
  thumbnail.dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
  setTimeout(() => thumbnail.dispatchEvent(new MouseEvent("mouseout", { bubbles: true })), 40);
});"""


@check_arguments
@dataclass(frozen=True)
class AttentionView:
    """An interactive view of attention patterns: shows itself in a notebook, also offline.

    Attributes:
        labels: one a position.
        head_names: one a head.
        properties: what the React component gets, as JSON that is safe inside a script element.
        steps: of training, if a slider goes through them; else empty.
        frames: the patterns at these steps, as JSON.

    >>> import numpy as np
    >>> from causal_circuits import figures
    >>> view = figures.attention_view(np.array([[[1.0, 0.0], [0.5, 0.5]]]), labels=["p0=3", "query=7"])
    >>> view.labels, "AttentionPatterns" in view._repr_html_()
    (('p0=3', 'query=7'), True)
    """

    labels: tuple[str, ...]
    head_names: tuple[str, ...]
    properties: str = field(repr=False)
    steps: tuple[int, ...] = ()
    frames: str = field(default="[]", repr=False)

    def _repr_html_(self) -> str:
        """The view with its own copy of the JavaScript (1.3 MB)."""
        name = f"circuits-vis-{uuid4().hex[:12]}"  # several kernels may write into one notebook
        load = f"globalThis.CircuitsVis ??= (() => {{\n{circuits_vis_bundle()}\nreturn CircuitsVis;\n}})();\n"
        return self._html(name, load)  # a second view of a notebook finds the first one's script

    def fragment(self) -> str:
        """The view without the JavaScript, for a page that carries `circuits_vis_bundle()` once, in a script element.

        The script waits until the page is parsed, so the bundle may stand anywhere. Each call gives new element ids.
        """
        return self._html(f"circuits-vis-{next(_NUMBERS)}", "")

    def _html(self, name: str, load: str) -> str:
        heads = escape(", ".join(self.head_names))
        return (
            f'{_STYLE}{self._slider(name)}<div class="attention-view" id="{name}" role="group" '
            f'aria-label="Attention of {heads}"></div>\n'
            "<noscript><p>The interactive attention view needs JavaScript; everything else on this page does not."
            "</p></noscript>\n"
            f'<script type="module">\n{load}{self._script(name)}\n</script>'
        )

    def _slider(self, name: str) -> str:
        if not self.steps:
            return ""
        last, shown = len(self.steps) - 1, self._step_names()[-1]
        return (
            f'<div class="attention-steps"><label for="{name}-step">Training step</label>'
            f'<input type="range" id="{name}-step" min="0" max="{last}" value="{last}" aria-valuetext="{shown}">'
            f'<output id="{name}-shown" for="{name}-step">{shown}</output></div>\n'
        )

    def _step_names(self) -> list[str]:
        return [f"step {step:,}" for step in self.steps]

    def _script(self, name: str) -> str:
        naming = _NAME.strip().replace("NAME", name) + "\n"
        if not self.steps:
            return f'{naming}CircuitsVis.render("{name}", CircuitsVis.AttentionHeads, {self.properties});'
        values = {"NAME": name, "STEPS": _script_json(self._step_names())}
        values |= {"FRAMES": self.frames, "PROPERTIES": self.properties}  # last: their text holds no other key
        script = _SCRUB.strip()
        for key, value in values.items():
            script = script.replace(key, value)
        return naming + script


@check_arguments
def attention_view(
    attention: Tensor | np.ndarray,
    labels: Sequence[str],
    head_names: Sequence[str] | None = None,
    steps: Sequence[int] | None = None,
) -> AttentionView:
    """An interactive view of the attention patterns of one sequence (or of a batch mean), checked before it is drawn.

    Args:
        attention: [head_index, query_pos, key_pos]; causal, rows sum to 1. With `steps` [step, head_index, ...].
        labels: [n_ctx] strings, one a position; `position_labels` makes them from tokens.
        head_names: one a head, e.g. "L0H0"; None numbers them.
        steps: of training, one for each first index of `attention`: a slider goes through them, the last is shown.

    Raises:
        ValueError: labels or names are not strings or of the wrong number, or the attention is not 3-D, square, finite,
            causal and normalised (to 1e-3).

    >>> view = attention_view(np.array([[[1.0, 0.0], [0.5, 0.5]]]), labels=["p0=3", "query=7"])
    >>> view.head_names
    ('head 0',)
    """
    frames = to_numpy(attention) if steps is not None else to_numpy(attention)[None]
    if steps is not None and (frames.ndim != 4 or len(steps) != len(frames) or not len(frames)):
        raise ValueError(
            f"attention at several steps must be [step, head_index, query_pos, key_pos], one step or more: got shape "
            f"{list(frames.shape)} for {len(steps)} steps"
        )
    for values in frames:
        _check_shape(values)
    n_heads, n_ctx, _ = frames[-1].shape
    names = [f"head {head}" for head in range(n_heads)] if head_names is None else head_names
    _check_strings("labels", labels, n_ctx, "position")
    _check_strings("head_names", names, n_heads, "head")
    for values in frames:
        _check_attention(values)
    patterns = np.tril(frames.round(4)).tolist()
    properties = {
        "attention": patterns[-1],
        "tokens": [label.replace(" ", _BLANK) for label in labels],
        "attentionHeadNames": list(names),
        "maxValue": 1,
        "minValue": -1,
        "positiveColor": MODEL,
        "maskUpperTri": True,
    }
    view = AttentionView(tuple(labels), tuple(names), _script_json(properties))
    return view if steps is None else replace(view, steps=tuple(steps), frames=_script_json(patterns))


@cache
def circuits_vis_bundle() -> str:
    """The JavaScript of the installed CircuitsVis package, safe to stand inside a script element (1.3 MB).

    >>> "</script" in circuits_vis_bundle()
    False
    """
    package = find_spec("circuitsvis")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("attention views need CircuitsVis, which is not installed: pip install circuitsvis")
    path = Path(package.submodule_search_locations[0]) / "dist" / "cdn" / "iife.js"
    if not path.exists():
        raise FileNotFoundError(f"the CircuitsVis package has no {path}: reinstall it (circuitsvis 1.43 has the file)")
    source = path.read_text(encoding="utf-8").split("//# sourceMappingURL=")[0]
    return source.replace("</script", r"<\/script").replace("<!--", r"<\!--")


def _script_json(value: object) -> str:
    """JSON in which no character can end the script element or the line."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True)
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _check_strings(what: str, values: Sequence[object], n: int, each: str) -> None:
    if isinstance(values, str) or len(values) != n:
        got = "one string" if isinstance(values, str) else f"{len(values)}"
        raise ValueError(f"{what} must be a list with one string for each {each} ({n}): got {got}")
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise ValueError(
                f"{what} must be strings: got {value!r} ({type(value).__name__}) at {index}; "
                "use position_labels(tokens) or str()"
            )


def _check_shape(values: np.ndarray) -> None:
    if values.ndim != 3 or values.shape[1] != values.shape[2] or 0 in values.shape:
        raise ValueError(
            f"attention must be [head_index, query_pos, key_pos]: got shape {list(values.shape)}; "
            "choose one sequence (pattern[0]) or average over the batch (pattern.mean(0))"
        )


def _check_attention(values: np.ndarray) -> None:
    """Finite, not negative, zero above the diagonal, rows that sum to one: each within the tolerance."""
    rules = (
        (~np.isfinite(values), "be finite", "look for an overflow in the scores"),
        (values < -ROW_SUM_TOLERANCE, "not be negative", "pass the pattern, not the scores or their gradients"),
        (np.triu(np.abs(values), 1) > ROW_SUM_TOLERANCE, "be causal: 0 where key_pos > query_pos", "transpose it?"),
    )
    for broken, rule, remedy in rules:
        if broken.any():
            head, query, key = (int(index) for index in np.argwhere(broken)[0])
            where = f"head {head}, query {query}, key {key}"
            raise ValueError(f"attention must {rule}: got {values[head, query, key]:.4g} at {where}; {remedy}")
    sums = values.sum(axis=-1)
    if (off := np.abs(sums - 1) > ROW_SUM_TOLERANCE).any():
        head, query = (int(index) for index in np.argwhere(off)[0])
        raise ValueError(
            f"attention rows must sum to 1 within {ROW_SUM_TOLERANCE:g}: got {sums[head, query]:.4g} at head {head}, "
            f"query {query}; pass the pattern after the softmax"
        )
