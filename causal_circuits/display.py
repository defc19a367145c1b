"""How results show themselves: rows as text for a terminal and as HTML for a notebook or a page; all text is escaped.

The classes of results call this from `__repr__` and `_repr_html_`; figures, which need matplotlib, are elsewhere.
"""

import dataclasses
import numbers
import reprlib
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from causal_circuits.arguments import check_arguments

if TYPE_CHECKING:
    import pandas

Row = Mapping[str, object]
Frame: TypeAlias = "pandas.DataFrame"
MOST_ROWS = 100  # of a result in a notebook


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


def frame(data: object, columns: Sequence[str] | None = None) -> Frame:
    """A DataFrame of rows, or of columns by name."""
    import pandas  # half a second, for tables alone

    return pandas.DataFrame(data, columns=columns)


class Result:
    """How a frozen dataclass of results shows itself: its fields in a line, in a notebook its rows or its fields."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={text}' for name, text in self._shown().items())})"

    def _repr_html_(self) -> str:
        if not hasattr(self, "to_frame"):
            rows = [{"field": name, "value": text} for name, text in self._shown().items()]
            return table_html(rows, type(self).__name__)
        frame = self.to_frame()
        more = f"; the first {MOST_ROWS} of {len(frame):,} rows" if len(frame) > MOST_ROWS else ""
        return table_html(frame.head(MOST_ROWS).to_dict("records"), repr(self) + more)

    def _shown(self) -> dict[str, str]:
        fields = [field.name for field in dataclasses.fields(self) if field.repr]  # type: ignore[arg-type]
        return {name: _SHORT.repr(getattr(self, name)) for name in fields}


class _Short(reprlib.Repr):
    """Values in a few words: shapes for arrays, names for what is nested, numbers to four digits."""

    def __init__(self) -> None:
        super().__init__()
        self.maxdict, self.maxstring, self.maxother = 3, 40, 60

    def repr1(self, x: Any, level: int) -> str:
        if isinstance(x, Tensor | np.ndarray) and x.ndim:
            return str(list(x.shape))
        if isinstance(x, float | Tensor | np.ndarray | np.generic):
            return str(float(f"{x:.4g}")) if isinstance(x, float) else str(x.item())
        if vars(object)["__repr__"] == type(x).__repr__:  # which would tell an address
            return type(x).__name__ if vars(object)["__str__"] == type(x).__str__ else str(x)
        if dataclasses.is_dataclass(x) or isinstance(x, torch.nn.Module) or callable(x):
            return f"{type(x).__name__}(...)"
        return super().repr1(x, level)

    def repr_instance(self, x: Any, level: int) -> str:
        text = repr(x)
        return text.split("\n")[0] if "\n" in text else super().repr_instance(x, level)

    def repr_tuple(self, x: tuple, level: int) -> str:
        if len(x) <= 4:
            return super().repr_tuple(x, level)
        return f"({self.repr1(x[0], level - 1)}, ... {len(x)} in all)"


_SHORT = _Short()


def short_list(values: Sequence[object], at_most: int = 6) -> str:
    """The first values, and how many more there are."""
    shown = ", ".join(str(value) for value in values[:at_most])
    return shown if len(values) <= at_most else f"{shown} and {len(values) - at_most} more"


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real | Tensor | np.ndarray) and not isinstance(value, bool)
