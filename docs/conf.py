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
from links import colab_link, links_to_pages, study_page
from pictures import PICTURES, command

project = "causal_circuits"
author = "The causal_circuits authors"
release = cc.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
templates_path = ["_templates"]
default_role = "code"  # `name` in a docstring
html_theme = "furo"
html_title = "causal_circuits"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_math_renderer = "mathml"  # browsers draw it themselves: no script, no network

myst_enable_extensions = ["dollarmath", "substitution"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_output_stderr = "remove"  # tqdm's advice to install ipywidgets

autodoc_member_order = "bysource"
napoleon_use_ivar = True
napoleon_attr_annotations = False  # signatures hold the types
suppress_warnings = ["ref.python"]  # names of axes in shapes are no names of ours

REPOSITORY = os.environ.get("GITHUB_REPOSITORY", "")  # owner/name, which GitHub's runners set
CLONE = f"`git clone https://github.com/{REPOSITORY}`; then, in the new folder:"
myst_substitutions = {"clone": CLONE if REPOSITORY else "In the folder of the sources:"}
DOCS = Path(__file__).parent


def write_study_pages(app: Sphinx) -> None:
    """A page for each study, from its class, its entry in CLAIMS.md and its picture."""
    claims = (DOCS / "CLAIMS.md").read_text(encoding="utf-8")
    for marked in (cc.studies.recover_graph.Config, cc.studies.recover_graph.Config.__init__):
        marked.__annotations__["data"] = Path  # without what it says to the command line
    (DOCS / "studies").mkdir(exist_ok=True)
    for name in cc.studies.NAMES:
        study = getattr(cc.studies, name).Config
        summary = study.__doc__.split("\n\n")[0]
        shown = PICTURES[name][2]
        picture = f"![{shown}](../pictures/{name}.png)\n\n*{shown} `{command(name)}`*"
        page = DOCS / "studies" / f"{name}.md"
        text = study_page(name, summary, claims, picture, quick=bool(study.QUICK))
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def add_colab_link(app: Sphinx, page: str, source: list[str]) -> None:
    """Put the line above a tutorial, where the site is built for a repository on GitHub."""
    if page.startswith("tutorials/") and REPOSITORY:
        notebook = json.loads(source[0])
        notebook["cells"][0]["source"] += ["\n\n", colab_link(page.removeprefix("tutorials/"), REPOSITORY)]
        source[0] = json.dumps(notebook)


def link_pages(app: Sphinx, page: str, source: list[str]) -> None:
    """Let links to files of the repository lead to their pages."""
    pages = {Path(app.env.doc2path(name)).resolve(): name for name in app.env.found_docs}
    pages |= {DOCS.parent / "analyses" / f"{name}.py": f"studies/{name}" for name in cc.studies.NAMES}
    if page == "studies":
        source[0] += "\n```{toctree}\n:hidden:\n:glob:\nstudies/*\n```\n"
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


def keep_colons(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Show `a: b` above an attribute as it stands; napoleon takes what is before the colon for a type."""
    for at, line in enumerate(lines):
        if what in ("attribute", "property") and line.startswith(":type: "):
            lines[:] = [f"{line.removeprefix(':type: ')}: {lines[0]}", *lines[1:at]]
            break


def setup(app: Sphinx) -> None:
    """Register what stands above."""
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("source-read", add_colab_link)
    app.connect("source-read", link_pages)
    app.connect("autodoc-process-docstring", keep_layout)
    app.connect("autodoc-process-docstring", keep_colons, priority=600)  # after napoleon
    app.connect("builder-inited", write_study_pages)
