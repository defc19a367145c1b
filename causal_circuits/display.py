"""How results show themselves: rows as text for a terminal and as HTML for a notebook or a page; all text is escaped.

The classes of results call this from `__repr__` and `_repr_html_`; figures, which need matplotlib, are elsewhere.
"""

import numbers
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from torch import Tensor

from causal_circuits.arguments import check_arguments

Row = Mapping[str, object]


def table_text(rows: Sequence[Row]) -> str:
    """Rows as aligned columns, a column for each key (in order of first appearance); numbers to the right.

    >>> print(table_text([{"head": "L0H0", "score": 0.98765}, {"head": "L1H0", "score": None}]))
    head   score
    L0H0  0.9877
    L1H0       -
    """
    columns = _columns(rows)
    if not columns:
        return "no rows"
    cells = [[format_value(row.get(column)) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    right = [any(_is_number(row.get(column)) for row in rows) for column in columns]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in [columns, *cells]
    )


@check_arguments
def table_html(rows: Sequence[Row], caption: str) -> str:
    """A table with a column for each key (in order of first appearance); all text escaped, numbers right-aligned.

    Integers as they are (from 10,000 on with commas), other numbers to four significant digits, None and NaN as a dash.

    >>> "<td>L0H0</td>" in table_html([{"head": "L0H0", "loss": 1.7916}], caption="heads")
    True
    """
    columns = _columns(rows)
    right = {c: ' class="number"' if any(_is_number(row.get(c)) for row in rows) else "" for c in columns}
    head = "".join(f'<th scope="col"{right[c]}>{escape(str(c))}</th>' for c in columns)
    cells = [[f"<td{right[c]}>{escape(format_value(row.get(c)))}</td>" for c in columns] for row in rows]
    body = "".join(f"<tr>{''.join(line)}</tr>\n" for line in cells)
    if not columns:
        head, body = '<th scope="col">result</th>', "<tr><td>no rows</td></tr>\n"
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
    )


def format_value(value: object) -> str:
    """A table's text for a value.

    >>> [format_value(value) for value in (0.123456, 12, 250_000, True, None, float("nan"))]
    ['0.1235', '12', '250,000', 'yes', '-', '-']
    """
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
        value = value.item()
    if value is None:
        return "-"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}" if abs(int(value)) >= 10_000 else str(int(value))
    if isinstance(value, numbers.Real):
        number = float(value)
        return "-" if number != number else f"{number:.4g}"
    return str(value)


def short_repr(result: object) -> str:
    """A result's own fields in one line, with the shape in place of an array's numbers."""
    fields = ", ".join(
        f"{name}={list(value.shape)}" if isinstance(value, Tensor) and value.ndim else f"{name}={value!r}"
        for name, value in vars(result).items()
    )
    return f"{type(result).__name__}({fields})"


def short_list(values: Sequence[object], at_most: int = 6) -> str:
    """The first values, and how many more there are.

    >>> short_list(["0 -> 1", "1 -> 2"]), short_list(range(9), at_most=3)
    ('0 -> 1, 1 -> 2', '0, 1, 2 and 6 more')
    """
    shown = ", ".join(str(value) for value in values[:at_most])
    return shown if len(values) <= at_most else f"{shown} and {len(values) - at_most} more"


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real | Tensor | np.ndarray) and not isinstance(value, bool)
