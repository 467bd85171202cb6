"""Draw charts as inline SVG with matplotlib; their colours follow the light or dark theme of the page."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from .formatting import shortened
from .svg import plain, to_svg

# `to_svg` turns these colours into variables of the style sheet.
_TEXT, _MUTED, _GRID, _FAINT, _BAR = (f"#0000{number:02d}" for number in range(10, 15))
_SERIES = [f"#0000{number:02d}" for number in range(1, 8)]
_DASHES: list[Any] = ["-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (8, 2, 1.5, 2)), (0, (3, 1.2)), (0, (10, 3)), (0, (1, 3))]
_WIDTH, _HEIGHT = 400.0, 240.0  # in units of the view box; text has a size of 11
_LEFT, _TOP, _BOTTOM, _RIGHT = 44.0, 30.0, 40.0, 14.0  # margins
_CHARACTER = 5.6  # mean width of a character
_LONGEST = 22  # characters of a name in a chart


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        name: Name, which is written beside the line.
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
    log_y: bool = False,
) -> Markup:
    """Draw lines with their names beside them.

    Up to seven lines have a colour and a dash pattern of their own. If there are more, this is only true of the strong
    ones; the others are thin and grey, without a name.

    Args:
        lines: The lines. Points outside the ranges are left out.
        x_label: Label of the horizontal axis.
        y_label: Label of the vertical axis.
        description: Text for screen readers.
        x_range: Limits of the horizontal axis; `None` fits them to the data.
        y_range: Limits of the vertical axis; `None` fits them to the data.
        marks: Points (x, y, text).
        log_y: Whether the vertical axis is logarithmic.
    """
    styled = list(lines) if len(lines) <= len(_SERIES) else [line for line in lines if line.strong][: len(_SERIES)]
    named = styled if len(lines) > 1 else []
    names = [shortened(plain(line.name), _LONGEST) for line in named]
    right = _RIGHT + (12 + _CHARACTER * max(map(len, names)) if names else 0)
    with _figure(_HEIGHT) as figure:
        axes = _axes(figure, _HEIGHT, x_label=x_label, y_label=y_label, right=right)
        groups = {}
        ordered = sorted(range(len(lines)), key=lambda i: (any(line is lines[i] for line in styled), lines[i].strong))
        ends = []
        for i in ordered:
            line = lines[i]
            x, y = _inside(line.x, x_range), _inside(line.y, y_range)
            position = next((k for k, other in enumerate(styled) if other is line), None)
            style: dict[str, Any] = {"color": _FAINT, "linewidth": 1.0}
            if position is not None:
                width = 2.6 if line.strong and len(lines) > 1 else 1.8
                style = {"color": _SERIES[position], "linestyle": _DASHES[position], "linewidth": width}
            (drawn,) = axes.plot(x, y, clip_on=False, gid=f"series-{i}", solid_capstyle="round", **style)
            drawn.get_path().should_simplify = True  # matplotlib does so only for many points
            groups[f"series-{i}"] = ({"class": "series", "data-key": line.key}, line.name)
            if np.isfinite(np.asarray(x) + np.asarray(y)).sum() == 1:
                drawn.set(marker="o", markersize=4, markeredgewidth=0)
            if position is not None and named:
                ends.append((i, position, x, y))
        if log_y:
            axes.set_yscale("log")
            axes.minorticks_off()
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
        axes.margins(x=0)
        axes.set(xlim=x_range, ylim=y_range)
        if y_range is None and not log_y and min((np.nanmin(line.y) for line in lines if len(line.y)), default=0) >= 0:
            _from_zero(axes)
        _label_ends(axes, [(position, names[position], x, y) for _, position, x, y in ends])
        for x_mark, y_mark, text in marks:
            axes.plot([x_mark], [y_mark], "o", color=_TEXT, markersize=5, markeredgewidth=0, clip_on=False)
            is_right = x_mark > np.mean(axes.get_xlim())
            axes.annotate(
                plain(text),
                (x_mark, y_mark),
                (-7 if is_right else 7, 7),
                textcoords="offset points",
                ha="right" if is_right else "left",
                color=_TEXT,
                annotation_clip=False,
            )
        return to_svg(figure, description, groups)


def bar_chart(
    names: Sequence[str],
    values: Sequence[float],
    *,
    x_label: str,
    description: str,
    intervals: Sequence[tuple[float, float]] | None = None,
) -> Markup:
    """Draw one horizontal bar per name, from top to bottom, with its value beside it.

    Args:
        names: Names of the bars.
        values: Lengths of the bars; NaN draws none.
        x_label: Label of the horizontal axis.
        description: Text for screen readers.
        intervals: Bounds of the interval of each value.
    """
    shown = [shortened(plain(name), _LONGEST) for name in names]
    row, top = 20.0, 8.0
    height = top + row * max(len(names), 1) + _BOTTOM
    left = 12 + _CHARACTER * max(map(len, shown), default=0)
    with _figure(height) as figure:
        axes = _axes(figure, height, x_label=x_label, y_label="", left=left, right=56, top=top)
        axes.grid(visible=False)
        axes.grid(axis="x", color=_GRID, linewidth=1)
        rows = np.arange(len(names))
        bars = axes.barh(rows, np.nan_to_num(np.asarray(values, float)), height=0.66, color=_BAR, clip_on=False)
        groups = {}
        for i, bar in enumerate(bars):
            bar.set_gid(f"bar-{i}")
            groups[f"bar-{i}"] = ({"class": "bar"}, f"{names[i]}: {_number(values[i])}")
            end = values[i] if intervals is None else max(values[i], intervals[i][1])
            text = _number(values[i]) if math.isfinite(values[i]) else "–"
            axes.annotate(
                text,
                (end if math.isfinite(end) else 0, i),
                (6, 0),
                textcoords="offset points",
                va="center",
                color=_TEXT,
                annotation_clip=False,
            )
        if intervals is not None:
            for i, (low, high) in enumerate(intervals):
                if math.isfinite(values[i]):
                    axes.plot([low, high], [i, i], color=_TEXT, linewidth=1.2, clip_on=False)
        axes.set_yticks(rows, shown, color=_TEXT)
        axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
        axes.set_xlim(left=min(0, *axes.get_xlim()))
        return to_svg(figure, description, groups)


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
    with _figure(_HEIGHT) as figure:
        axes = _axes(figure, _HEIGHT, x_label=x_label, y_label=y_label)
        if log_x:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.minorticks_off()
        groups = _bars(axes, edges, counts)
        axes.set_xlim(edges[0], edges[-1])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        _from_zero(axes)
        return to_svg(figure, description, groups)


def calibration_chart(
    confidence: Sequence[float], accuracy: Sequence[float], counts: Sequence[float], *, y_label: str, description: str
) -> Markup:
    """Draw the accuracy of each bin of confidence beside the diagonal, and the number of predictions in each bin.

    Args:
        confidence: Mean confidence of each bin, in 0..1; NaN for an empty bin.
        accuracy: Accuracy of each bin, in 0..1; NaN for an empty bin.
        counts: Number of predictions in each bin; the bins divide 0..1 evenly.
        y_label: Label of the vertical axis.
        description: Text for screen readers.
    """
    height, below = 340.0, 86.0
    with _figure(height) as figure:
        upper = _axes(figure, height, x_label="", y_label=y_label, bottom=_BOTTOM + below, right=_RIGHT + 50)
        upper.plot([0, 1], [0, 1], color=_MUTED, linestyle=_DASHES[1], linewidth=1.2)
        upper.annotate(
            "ideal", (1, 1), (6, 0), textcoords="offset points", va="center", color=_MUTED, annotation_clip=False
        )
        is_known = np.isfinite(confidence) & np.isfinite(accuracy)
        x, y = np.asarray(confidence, float)[is_known], np.asarray(accuracy, float)[is_known]
        upper.plot(x, y, color=_SERIES[0], linewidth=1.8, clip_on=False)
        upper.plot(x, y, "o", color=_SERIES[0], markersize=5, markeredgewidth=0, clip_on=False)
        upper.set(xlim=(0, 1), ylim=(0, 1))
        upper.tick_params(labelbottom=False)
        lower = _axes(
            figure, height, x_label="confidence", y_label="predictions", top=height - _BOTTOM - 44, right=_RIGHT + 50
        )
        lower.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        groups = _bars(lower, np.linspace(0, 1, len(counts) + 1), counts)
        lower.set(xlim=(0, 1))
        _from_zero(lower)
        return to_svg(figure, description, groups)


@contextmanager
def _figure(height: float) -> Iterator[Figure]:
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "twins_dense",
        "text.parse_math": False,
        "font.family": "DejaVu Sans",
        "font.size": 11,
        "axes.unicode_minus": True,
        "path.simplify": True,
        "path.simplify_threshold": 0.3,
    }
    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from")  # the browser has other fonts
        yield Figure(figsize=(_WIDTH / 72, height / 72))


def _axes(
    figure: Figure,
    height: float,
    *,
    x_label: str,
    y_label: str,
    left: float = _LEFT,
    right: float = _RIGHT,
    top: float = _TOP,
    bottom: float = _BOTTOM,
) -> Axes:
    """Add axes with the given margins. The label of the vertical axis stands above it, because it is easier to read."""
    box = (left / _WIDTH, bottom / height, (_WIDTH - left - right) / _WIDTH, (height - top - bottom) / height)
    axes = figure.add_axes(box)
    axes.patch.set_visible(False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set(color=_MUTED, linewidth=1)
    axes.tick_params(which="both", length=0, colors=_MUTED, pad=5)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=_GRID, linewidth=1)
    axes.set_xlabel(plain(x_label), color=_MUTED)
    axes.set_title(
        plain(y_label), loc="left", x=-(left - 4) / (_WIDTH - left - right), color=_MUTED, fontsize=11, pad=10
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
    return axes


def _from_zero(axes: Axes) -> None:
    """Start the vertical axis at 0."""
    top = axes.get_ylim()[1]
    axes.set_ylim(0, top if top > 0 else 1)


def _bars(axes: Axes, edges: Any, counts: Sequence[float]) -> dict[str, tuple[dict[str, Any], str]]:
    """Draw the bars of a histogram and return their groups for `to_svg`."""
    groups = {}
    for i, bar in enumerate(axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=_BAR, clip_on=False)):
        bar.set_gid(f"bar-{i}")
        bar.set(edgecolor=_BAR, linewidth=0)
        groups[f"bar-{i}"] = ({"class": "bar"}, f"{_number(edges[i])} to {_number(edges[i + 1])}: {counts[i]:,.6g}")
    return groups


def _label_ends(axes: Axes, ends: Sequence[tuple[int, str, Any, Any]]) -> None:
    """Write the names of lines to the right of the axes, at the height of their last points, without overlap."""
    box = axes.get_window_extent()
    gap = 13.0 * axes.figure.dpi / 72
    places = []
    for position, name, x, y in ends:
        known = np.flatnonzero(np.isfinite(np.asarray(x) + np.asarray(y)))
        if len(known):
            point = (x[known[-1]], y[known[-1]])
            places.append([axes.transData.transform(point)[1], position, name, point])
    places.sort(key=lambda place: place[0])
    heights = [place[0] for place in places]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    overflow = heights[-1] - box.y1 if heights else 0
    if overflow > 0:  # push the stack down from the top
        heights[-1] = box.y1
        for i in reversed(range(len(heights) - 1)):
            heights[i] = min(heights[i], heights[i + 1] - gap)
    leader = {"arrowstyle": "-", "linewidth": 0.7, "shrinkA": 1, "shrinkB": 2, "relpos": (0, 0.5)}
    for (start, position, name, point), height in zip(places, heights, strict=True):
        axes.annotate(
            name,
            point,
            (1 + 10 / (box.width * 72 / axes.figure.dpi), (height - box.y0) / box.height),
            textcoords="axes fraction",
            va="center",
            color=_SERIES[position],
            annotation_clip=False,
            arrowprops=None if abs(height - start) < 2 else leader | {"color": _SERIES[position]},
        )


def _inside(values: Sequence[float], limits: tuple[float, float] | None) -> np.ndarray:
    """Return values as an array with NaN outside the limits."""
    array = np.array(values, float)
    if limits is not None:
        slack = 1e-9 * (limits[1] - limits[0])
        array[(array < limits[0] - slack) | (array > limits[1] + slack)] = np.nan
    return array


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    if 0 < abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        text = f"{float(mantissa):g}e{int(exponent)}"
    else:
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", "−")
