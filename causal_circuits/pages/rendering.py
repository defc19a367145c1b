"""A figure or a table as files, or as HTML that can share a page with others."""

import base64
import io
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pandas as pd
from markupsafe import escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from causal_circuits import display
from causal_circuits.arguments import check_arguments
from causal_circuits.storage import write_files

PNG_DPI = 150
MAX_SVG_BYTES = 300_000
SMALLEST = 0.6  # of a figure's width; below it the labels cannot be read
LONG_TABLE, WIDE_TABLE = 12, 9  # rows and columns; a table with more of either is folded
_NUMBERS = itertools.count(1)
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


@check_arguments
def save_figure(figure_or_axes: Figure | Axes, path_stem: str | os.PathLike[str]) -> list[Path]:
    """Write ``<path_stem>.png`` (150 dpi) and ``<path_stem>.svg``; the folder is made if missing.

    The same figure gives the same SVG, byte for byte. Each file is whole or not there. A path that ends in .png or .svg
    stands for both files.

    Raises:
        ValueError: the path has the ending of another format.

    >>> with TemporaryDirectory() as folder:
    ...     saved = cc.pages.save_figure(cc.figures.plot_ablation([("L0H0", "mean", 0.98)]), folder + "/ablation")
    ...     [path.name for path in saved]
    ['ablation.png', 'ablation.svg']
    """
    figure, stem = figure_of(figure_or_axes), _stem(path_stem)
    with laid_out(figure):
        contents: dict[str, bytes | str] = {f"{stem.name}.png": _png(figure), f"{stem.name}.svg": _svg(figure)}
    folder = write_files(stem.parent, contents)
    return [folder / name for name in contents]


@check_arguments
def figure_html(figure_or_axes: Figure | Axes | Path, alt: str) -> str:
    """The figure inline: as SVG, or as a PNG data URL if the SVG is larger than 300 kB.

    The ids inside are new at every call, so several figures can stand on one page. On a narrow screen the figure
    shrinks to six tenths of its width and then scrolls.

    Args:
        figure_or_axes: what to show; a path takes what `save_figure` wrote to that stem, which saves drawing it again.
        alt: what the figure shows, in words, for those who do not see it.

    >>> page = cc.pages.figure_html(cc.figures.plot_ablation([("L0H0", "mean", 0.98)]), alt="98% of the gain is lost")
    >>> "<svg" in page, "98% of the gain is lost" in page
    (True, True)
    """
    if not alt.strip():
        raise ValueError("a figure needs an alt text that says what it shows: got an empty one")
    if isinstance(figure_or_axes, Path):
        stem = _stem(figure_or_axes)
        svg = stem.with_name(f"{stem.name}.svg").read_text(encoding="utf-8")
        png = stem.with_name(f"{stem.name}.png").read_bytes
    else:
        figure = figure_of(figure_or_axes)
        svg, png = _svg(figure), partial(_png, figure)
    width = _css_width(svg)
    style = f"width:{width:.0f}px;max-width:100%;min-width:{SMALLEST * width:.0f}px;height:auto"
    if len(svg.encode()) > MAX_SVG_BYTES:
        data = base64.b64encode(png()).decode()
        inner = f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}" style="{style}">'
    else:
        inner = _inline(svg, f"figure-{next(_NUMBERS)}-", alt, style)
    return f'<div class="figure" style="--width:{width:.0f}px">{inner}</div>'


@check_arguments
def table_html(rows: Sequence[Mapping[str, object]] | pd.DataFrame, caption: str, *, fold: bool = False) -> str:
    """A table with a column for each key (in order of first appearance, "_" a space), folded if asked for or large.

    Of three rows or more, a column with one value in all is told in the caption instead. Tables of more than 12 rows or
    9 columns are large.

    Integers as they are (from 10,000 on with commas), other numbers to four significant digits, None and NaN as a dash.

    >>> "<td>L0H0</td>" in table_html([{"head": "L0H0", "loss": 1.7916}], caption="heads")
    True
    """
    listed = rows.to_dict("records") if isinstance(rows, pd.DataFrame) else rows
    columns = {_heading(str(key)): key for row in listed for key in row}
    texts = {name: {display.format_value(row.get(key)) for row in listed} for name, key in columns.items()}
    same = {name: told.pop() for name, told in texts.items() if len(listed) > 2 and len(told) == 1}
    shown = [name for name in columns if name not in same] or list(columns)
    if len(shown) < len(columns):
        caption += "; in all rows: " + ", ".join(f"{name} {text}" for name, text in same.items() if name not in shown)
    table = display.table_html([{name: row.get(columns[name]) for name in shown} for row in listed], caption)
    if not fold and len(listed) <= LONG_TABLE and len(shown) <= WIDE_TABLE:
        return table
    return folded(f"{caption} ({len(listed):,} row{'s' * (len(listed) != 1)})", table)


def folded(summary: str, html: str) -> str:
    """What a click unfolds; printed unfolded."""
    return f"<details><summary>{escape(summary)}</summary>{html}</details>"


def _heading(key: str) -> str:
    """Words for the key of a row; the sizes keep their names."""
    return key if key in ("n_ctx", "d_vocab") else key.replace("_", " ")


@contextmanager
def laid_out(figure: Figure) -> Iterator[None]:
    """Lay the figure out once for all renderings inside; its layout engine is given back.

    Inside there is no engine at all: matplotlib draws a figure that has one, be it the placeholder "none", twice.
    """
    engine = figure.get_layout_engine()
    if engine is not None and figure.axes:
        engine.execute(figure)
    with rc_context({"figure.autolayout": False, "figure.constrained_layout.use": False}):
        figure.set_layout_engine(None)
    try:
        yield
    finally:
        figure.set_layout_engine(engine)


def figure_of(figure_or_axes: Figure | Axes) -> Figure:
    """The figure, or that of the axes."""
    figure = figure_or_axes if isinstance(figure_or_axes, Figure) else figure_or_axes.get_figure(root=True)
    if figure is None:
        raise ValueError("axes must belong to a figure to be drawn: these were removed from theirs; plot again")
    return figure


def _stem(path: str | os.PathLike[str]) -> Path:
    """A path without the ending of one of our two formats."""
    path = Path(path)
    if path.name.lower() in ("", "..", ".png", ".svg"):
        raise ValueError(f"a figure's files need a name: got {str(path)!r}; write {str(path.parent / 'figure')!r}")
    kind = path.suffix.lower().removeprefix(".")
    if kind in ("png", "svg"):
        return path.with_suffix("")
    if kind in FigureCanvasBase.get_supported_filetypes():
        raise ValueError(
            f"a figure is written as PNG and SVG: got {path.name}; write {path.stem}, or use matplotlib's savefig"
        )
    return path


def _css_width(svg: str) -> float:
    """The width of one of our SVG documents in CSS pixels; matplotlib writes it in points."""
    found = re.search(r'<svg[^>]*?\swidth="([\d.]+)pt"', svg)
    if found is None:
        raise ValueError("a figure's SVG must give its width in points, as save_figure writes it: found none")
    return float(found[1]) * 96 / 72


def _svg(figure: Figure) -> str:
    """A standalone SVG document; ids depend on the figure alone."""
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "causal_circuits", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", dpi=PNG_DPI, metadata=_NO_METADATA)
    return buffer.getvalue()


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PNG_DPI, metadata={"Software": None})
    return buffer.getvalue()


def _inline(svg: str, prefix: str, alt: str, style: str) -> str:
    """The <svg> element without prologue, its ids and the references to them prefixed, with role and label."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r'(\sid="|(?:xlink:)?href="#|url\(#)', rf"\g<1>{prefix}", svg)
    opening, rest = svg.split(">", 1)
    opening = re.sub(r'\s(?:width|height|version|xmlns:xlink)="[^"]*"', "", opening)
    return f'{opening} role="img" aria-label="{escape(alt)}" style="{style}">{rest}'
