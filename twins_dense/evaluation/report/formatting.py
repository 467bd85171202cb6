"""Format numbers as the page shows them: in sentences, headlines, tables and matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

if TYPE_CHECKING:
    from .page import Headline

UNKNOWN = "–"
_MOST = 40  # classes of a matrix
_LONG = 60  # characters of a text that is cut after three lines


def is_known(value: Any) -> bool:
    """Return whether a value is not `None` or NaN."""
    return value is not None and not (isinstance(value, (float, np.floating)) and math.isnan(value))


def percent(value: float) -> str:
    """Return a fraction in percent with one decimal, without the sign, such as "57.8"."""
    return _with_minus(f"{100 * value:.1f}") if is_known(value) else UNKNOWN


def number(value: float) -> str:
    """Return an integer with thousands separators, or another number with three significant digits."""
    if not is_known(value):
        return UNKNOWN
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞"
    is_integer = float(value).is_integer()
    return _with_minus(f"{value:,.0f}" if is_integer or abs(value) >= 1000 else f"{value:.3g}")


def number_of(count: int, noun: str) -> str:
    """Return a count with its noun, such as "1 image" or "1,234 classes"."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"


def shortened(text: str, limit: int) -> str:
    """Return a text with at most `limit` characters, the last of which is "…" if it was longer."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def cell(value: Any, kind: str) -> Any:
    """Return the content of a table cell of a kind: "text", "count", "score" or "number"."""
    if isinstance(value, str) and len(value) > _LONG and not isinstance(value, Markup):
        return Markup('<span class="long" title="{0}">{0}</span>').format(value)
    if isinstance(value, Markup) or kind == "text":
        return value if is_known(value) else UNKNOWN
    return percent(value) if kind == "score" else number(value)


def sort_value(value: Any, kind: str) -> Markup:
    """Return the attribute of a table cell by which its column is sorted."""
    if kind == "text" or isinstance(value, str) or not is_known(value):
        return Markup("")
    return Markup(' data-value="{}"').format(f"{float(value):.9g}")


def headline_value(value: float, is_percent: bool) -> str:
    """Return the value of a headline without its unit."""
    return percent(value) if is_percent else number(value)


def comparison(headline: Headline) -> str:
    """Return a sentence that compares a headline with the other evaluation."""
    assert headline.other is not None
    if not (is_known(headline.value) and is_known(headline.other)):
        return "No comparison: one of the two values is unknown."
    unit, sign = (" points", "\u00a0%") if headline.percent else ("", "")

    def signed(value: float) -> str:
        text = headline_value(abs(value), headline.percent)
        return f"{'−' if value < 0 else '+'}{text}"

    text = (
        f"{signed(headline.value - headline.other)}{unit} compared with "
        f"{headline_value(headline.other, headline.percent)}{sign}"
    )
    if headline.difference is None:
        return f"{text}."
    low, high = headline.difference
    verdict = "a clear difference" if low > 0 or high < 0 else "which may be chance"
    return f"{text} (95\u00a0% interval {signed(low)} to {signed(high)}), {verdict}."


@dataclass(frozen=True)
class MatrixCell:
    """A cell of a matrix.

    Attributes:
        text: The count.
        share: Share of the sum of the row, with two decimals; 0 for an empty row.
        kind: Class of the style sheet: "right" on the diagonal, "wrong" or "zero".
    """

    text: str
    share: float
    kind: str


@dataclass(frozen=True)
class MatrixView:
    """The part of a matrix that is shown.

    Attributes:
        columns: Names of the columns.
        rows: Names of the rows with their cells.
        num_hidden: Number of rows that are left out.
    """

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[MatrixCell]]]
    num_hidden: int


def matrix_view(rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]]) -> MatrixView:
    """Return the cells of a matrix of counts; of a large square matrix, only the most confused classes.

    The order of rows and columns is kept. Cells whose row and column have the same position are right, except in the
    last row and column if they have different names, such as "background" and "missed".
    """
    counts = np.asarray(values, float).reshape(len(rows), len(columns))
    shown, shown_columns = list(range(len(rows))), list(range(len(columns)))
    if len(rows) == len(columns) > _MOST:
        confusions = counts - np.diag(np.diag(counts))
        order = np.argsort(-(confusions.sum(0) + confusions.sum(1)), kind="stable")
        shown = shown_columns = sorted(order[:_MOST].tolist())
    sums = counts.sum(1)

    def cell_of(i: int, j: int) -> MatrixCell:
        count = float(counts[i, j])
        if not count:
            return MatrixCell("·", 0.0, "zero")
        is_right = len(rows) == len(columns) and i == j and rows[i] == columns[j]
        return MatrixCell(number(count), round(count / float(sums[i]), 2), "right" if is_right else "wrong")

    found = [(rows[i], [cell_of(i, j) for j in shown_columns]) for i in shown]
    return MatrixView([columns[j] for j in shown_columns], found, len(rows) - len(shown))


def _with_minus(text: str) -> str:
    return text.replace("-", "−")
