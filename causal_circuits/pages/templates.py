"""The files of this folder - templates, style sheets, scripts - and HTML that brings the scripts that it needs."""

from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from causal_circuits.pages.circuits_vis import circuits_vis_bundle

_ENVIRONMENT = Environment(
    loader=PackageLoader("causal_circuits", "pages"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
# A script finds the parts of its kind by their class, and skips those that it has set up already.
_SCRIPTS = {
    'class="attention-view"': ("circuits_vis", "attention_view.js"),
    'class="graph-view"': ("graph_view.js",),
    'class="graph-film"': ("film.js",),
}


@cache
def asset(name: str) -> Markup:
    """A style sheet or script as it stands in its file, or CircuitsVis's bundle; not escaped."""
    if name == "circuits_vis":  # a second view of a notebook finds it loaded already
        return Markup(f"globalThis.CircuitsVis ??= (() => {{\n{circuits_vis_bundle()}\nreturn CircuitsVis;\n}})();")
    return Markup(files("causal_circuits.pages").joinpath(name).read_text(encoding="utf-8"))


def render(template: str, **values: object) -> str:
    """The template with these values, which are escaped unless they are Markup."""
    return _ENVIRONMENT.get_template(template).render(asset=asset, **values)


def scripts_of(html: str) -> list[Markup]:
    """Each script that some part of the HTML needs, once."""
    return [asset(name) for mark, names in _SCRIPTS.items() if mark in html for name in names]


class PagePart(str):
    """HTML that moves: in a `Section` as it is (the page brings each script once), in a notebook with its own scripts.

    >>> PagePart('<div class="graph-film"></div>')
    <PagePart of 30 characters of HTML: show it in a notebook, or put it into a Section>
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<PagePart of {len(self):,} characters of HTML: show it in a notebook, or put it into a Section>"

    def _repr_html_(self) -> str:
        scripts = "\n".join(f'<script type="module">\n{script}</script>' for script in scripts_of(self))
        return f"<style>\n{asset('parts.css')}</style>\n{self}\n{scripts}"
