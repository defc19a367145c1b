"""The documentation site: `make docs` writes it to out/site, without the network.

Pages that stand elsewhere in the repository (README files, notebooks) are links in this folder.
"""

import json
import os
import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

import causal_circuits as cc

sys.path.insert(0, str(Path(__file__).parent))
from links import colab_link, links_to_pages

project = "causal_circuits"
author = "The causal_circuits authors"
release = cc.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
templates_path = ["_templates"]
default_role = "code"  # `name` in a docstring
html_theme = "furo"
html_title = "causal_circuits"
html_math_renderer = "mathml"  # browsers draw it themselves: no script, no network

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_timeout = 600
nb_execution_raise_on_error = True

autodoc_member_order = "bysource"
napoleon_use_ivar = True
napoleon_attr_annotations = False  # signatures hold the types
suppress_warnings = ["ref.python"]  # names of axes in shapes are no names of ours

REPOSITORY = os.environ.get("GITHUB_REPOSITORY", "")  # owner/name, which GitHub's runners set


def add_colab_link(app: Sphinx, page: str, source: list[str]) -> None:
    """Put the line above a tutorial, where the site is built for a repository on GitHub."""
    if page.startswith("tutorials/") and REPOSITORY:
        notebook = json.loads(source[0])
        notebook["cells"][0]["source"] += ["\n\n", colab_link(page.removeprefix("tutorials/"), REPOSITORY)]
        source[0] = json.dumps(notebook)


def link_pages(app: Sphinx, page: str, source: list[str]) -> None:
    """Let links to files of the repository lead to their pages."""
    pages = {Path(app.env.doc2path(name)).resolve(): name for name in app.env.found_docs}
    source[0] = links_to_pages(source[0], Path(app.env.doc2path(page)).resolve().parent, pages, app.srcdir)


def inline_math(self: HTML5Translator, node: nodes.math) -> None:
    """A formula in a line, as MathML."""
    self.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def block_math(self: HTML5Translator, node: nodes.math_block) -> None:
    """A formula on lines of its own."""
    self.body.append(tex2mathml(node.astext(), as_block=True))
    raise nodes.SkipNode


def keep_layout(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Show what is indented in a study's claim (commands, lists) as it stands."""
    if name.endswith(".Config") and what == "class":
        text = re.sub(r"(?<=\n\n)(?= {4})", "::\n\n", "\n".join(lines))
        lines[:] = text.split("\n")


def setup(app: Sphinx) -> None:
    """Register what stands above."""
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("source-read", add_colab_link)
    app.connect("source-read", link_pages)
    app.connect("autodoc-process-docstring", keep_layout)
