"""What the documentation site makes of the repository's texts: links that lead to pages, and a page for each study."""

import re
from collections.abc import Mapping
from pathlib import Path

RELATIVE = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<path>[^():#\s]+)(?P<part>#[^)\s]*)?\)")


def colab_link(notebook: str, repository: str) -> str:
    """The line that opens a notebook of a repository on GitHub (owner/name) in Colab."""
    address = f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/{notebook}.ipynb"
    return f"[Open in Colab]({address}); there, run `%pip install git+https://github.com/{repository}` first."


def links_to_pages(text: str, folder: Path, pages: Mapping[Path, str], site: Path) -> str:
    """A text of a folder whose links to files lead to their pages; a file without a page is named without a link."""

    def to_page(link: re.Match[str]) -> str:
        target = (folder / link["path"]).resolve()
        if link["image"]:
            return f"![{link['text']}](/{target.relative_to(site)})"
        return f"[{link['text']}](/{pages[target]}{link['part'] or ''})" if target in pages else link["text"]

    return RELATIVE.sub(to_page, text)


def study_page(name: str, summary: str, claims: str, picture: str, *, quick: bool) -> str:
    """The page of a study, in docs/studies: its claim, its command, a picture, what was measured, and its flags."""
    title, measured = re.search(
        rf"^## ([^\n]*): `analyses/{name}\.py`\n(.*?)(?=^## |\Z)", claims, flags=re.DOTALL | re.MULTILINE
    ).groups()  # type: ignore[union-attr]  # tests/test_claims.py: each has an entry
    program = name.replace("_", "-") + " DATA" * (name == "recover_graph")
    links = RELATIVE.sub(lambda link: link[0].replace("](", "](../"), measured)
    return f"""# {title}

{summary}

    causal-circuits {program}  # {"--quick for a look, " if quick else ""}--help for every flag

{picture}

## What is claimed, and what would refute it
{links}
## The study and its flags

Each field with a default is a flag of the command above, with dashes for underscores.
In Python: `cc.run(cc.studies.{name}.Config(...))`.

```{{eval-rst}}
.. autoclass:: causal_circuits.studies.{name}.Config
   :members:
   :exclude-members: cells, check, report
   :member-order: bysource
```
"""
