"""Parts of a page that move: HTML for the body of a section, which shows itself in a notebook too."""

from causal_circuits.figures.page_style import PARTS_STYLE


class PagePart(str):
    """HTML that needs a script: a page carries the script once, a notebook gets it (and the style) with every part.

    Attributes:
        script: JavaScript that finds the parts of its kind by their class, and passes over those it has seen.
    """

    __slots__ = ("script",)
    script: str

    def __new__(cls, html: str, script: str) -> "PagePart":
        """The text itself is the HTML."""
        part = super().__new__(cls, html)
        part.script = script
        return part

    def __repr__(self) -> str:
        return f"<PagePart of {len(self):,} characters of HTML: show it in a notebook, or put it into a Section>"

    def _repr_html_(self) -> str:
        return f"<style>{PARTS_STYLE}</style>\n{self}\n<script>{self.script}</script>"
