"""Charts as inline SVG, drawn by matplotlib; their colours follow the light or dark theme of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        name: Name for the legend.
        x: Horizontal positions.
        y: Vertical positions; NaN leaves a gap.
        key: Value of the attribute `data-key` of the line, which lets a control on the page show or hide it.
        strong: Whether to emphasise the line.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    key: str | None = None
    strong: bool = False


def line_chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    description: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    marks: Sequence[tuple[float, float, str]] = (),
) -> Markup:
    """Draw lines. `marks` are points (x, y, text); `description` is read by screen readers."""
    raise NotImplementedError


def bar_chart(
    names: Sequence[str],
    values: Sequence[float],
    *,
    x_label: str,
    description: str,
    intervals: Sequence[tuple[float, float]] | None = None,
) -> Markup:
    """Draw one horizontal bar per name, from top to bottom."""
    raise NotImplementedError


def histogram(
    edges: Sequence[float],
    counts: Sequence[float],
    *,
    x_label: str,
    y_label: str,
    description: str,
    log_x: bool = False,
) -> Markup:
    """Draw a histogram with len(edges) - 1 bars."""
    raise NotImplementedError


def calibration_chart(
    confidence: Sequence[float], accuracy: Sequence[float], counts: Sequence[float], *, y_label: str, description: str
) -> Markup:
    """Draw the accuracy of each bin of confidence beside the diagonal, and the number of predictions in each bin."""
    raise NotImplementedError
