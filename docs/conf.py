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
from sphinx import addnodes
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
smartquotes_action = "qe"  # quotes and dots; of `--flag` it would make one dash
add_module_names = False  # each page of the reference says of which module it is
maximum_signature_line_length = 90  # longer ones have a line for each argument
html_copy_source = False  # a tutorial's source is JSON, which a browser shows as it stands
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
myst_substitutions = {"clone": CLONE if REPOSITORY else "All commands here are given in the folder of the sources."}
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
    """Show what is indented in a study's claim (commands, lists) and in a module's text (formulas) as it stands."""
    if (name.endswith(".Config") and what == "class") or what == "module":
        text = re.sub(r"(?<!::\n\n)(?<=\n\n)(?= {4})", ".. code-block:: none\n\n", "\n".join(lines))
        lines[:] = re.sub(r"(?<=\w) {3,}(?=# )", "  ", text).split("\n")  # comments not below each other: a narrow page


def keep_colons(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Show `a: b` above an attribute as it stands; napoleon takes what is before the colon for a type."""
    for at, line in enumerate(lines):
        if what in ("attribute", "property") and line.startswith(":type: "):
            lines[:] = [f"{line.removeprefix(':type: ')}: {lines[0]}", *lines[1:at]]
            break


def join_names(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Keep `a, b: text` among attributes together: Sphinx takes all before the last blank for a type."""
    form = re.compile(r"(?<=^:ivar )[\w, ]+(?=:)")
    lines[:] = [form.sub(lambda names: names[0].replace(", ", ","), line) for line in lines]


def space_names(app: Sphinx, tree: nodes.document) -> None:
    """Put back the blanks that `join_names` took out, and the dash behind names that is not made of two any more."""
    for names in tree.findall(addnodes.literal_strong):
        names[:] = [nodes.Text(names.astext().replace(",", ", "))]
    for dash in [text for text in tree.findall(nodes.Text) if text == " -- "]:
        dash.parent.replace(dash, nodes.Text(" \N{EN DASH} "))


def drop_stub(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Leave out where a module lists its names, which is for who reads its source."""
    if what == "module":
        text = "\n".join(lines)
        lines[:] = re.sub(r"Names are listed in.*?(\.\n|\.$)", "", text, flags=re.DOTALL).split("\n")


def short_signature(
    app: Sphinx, what: str, name: str, thing: object, options: object, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Arguments as one reads them: a bounded integer is an int, and a default that is made anew is three dots."""
    if signature:
        bounded = r"~?(typing\.)?Annotated\[int, ~?(causal_circuits\.arguments\.)?AtLeast\(smallest=\d+\)\]"
        signature = re.sub(bounded, "int", signature).replace("<factory>", "...")
    return signature, returned


def whole_flags(app: Sphinx, page: str, template: str, context: dict[str, object], tree: object) -> None:
    """Mark flags in a line of code, which the style sheet does not break at their dashes."""
    if isinstance(context.get("body"), str):
        context["body"] = re.sub(r'(?<=<span class="pre)(?=">-{1,2}\w)', " flag", str(context["body"]))


def setup(app: Sphinx) -> None:
    """Register what stands above."""
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("source-read", add_colab_link)
    app.connect("source-read", link_pages)
    app.connect("autodoc-process-docstring", keep_layout)
    app.connect("autodoc-process-docstring", keep_colons, priority=600)  # after napoleon
    app.connect("autodoc-process-docstring", join_names, priority=600)
    app.connect("autodoc-process-docstring", drop_stub)
    app.connect("autodoc-process-signature", short_signature)
    app.connect("doctree-read", space_names)
    app.connect("html-page-context", whole_flags)
    app.connect("builder-inited", write_study_pages)
