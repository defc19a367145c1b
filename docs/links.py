"""Links of the documentation site that differ from those of the repository."""

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
