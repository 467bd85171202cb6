"""Charts of the report: SVG that follows the theme, without identifiers, with any text."""

from __future__ import annotations

import math
from collections.abc import Callable
from xml.etree import ElementTree

import numpy as np
import pytest
from markupsafe import Markup

from twins_dense.evaluation.report import charts

HOSTILE = "</text></svg><script>alert(1)</script> \"q\" 's' & $x^{2}$ \\frac 🐈 \u202eright to left\x00\nline"


def lines(count: int, name: str = "class", points: int = 101) -> list[charts.Line]:
    x = np.linspace(0, 1, points)
    return [charts.Line(f"{name} {i}", x, (1 - x ** (1 + i % 7)) * 0.99**i, key=f"{name} {i}") for i in range(count)]


def curves(drawn: list[charts.Line], **options: object) -> Markup:
    return charts.line_chart(drawn, x_label="recall", y_label="precision", description="Curves", **options)  # type: ignore[arg-type]


CHARTS: dict[str, Callable[[str], Markup]] = {
    "lines": lambda name: curves(lines(3, name), marks=[(0.5, 0.5, name)], x_range=(0, 1), y_range=(0, 1)),
    "bars": lambda name: charts.bar_chart(
        [name, "b"], [1.5, math.nan], x_label=name, description=name, intervals=[(1, 2), (0, 0)]
    ),
    "histogram": lambda name: charts.histogram(
        [1, 10, 100], [3, 4000], x_label=name, y_label=name, description=name, log_x=True
    ),
    "calibration": lambda name: charts.calibration_chart(
        [0.2, math.nan, 0.9], [0.1, math.nan, 0.7], [30, 0, 5], y_label=name, description=name
    ),
}


@pytest.mark.parametrize("kind", CHARTS)
class TestEveryChart:
    def test_is_responsive_and_described(self, kind: str) -> None:
        root = ElementTree.fromstring(CHARTS[kind]("plain"))
        assert root.get("role") == "img" and root.get("aria-label")
        assert root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}"

    def test_has_no_identifier_so_that_charts_cannot_clash(self, kind: str) -> None:
        svg = CHARTS[kind]("plain")
        assert all(part not in svg for part in (' id="', "url(", "<use", "href", "clip-path"))

    def test_is_deterministic(self, kind: str) -> None:
        assert CHARTS[kind]("plain") == CHARTS[kind]("plain")

    def test_takes_all_colours_and_fonts_from_the_style_sheet(self, kind: str) -> None:
        svg = CHARTS[kind]("plain")
        assert "var(--chart-" in svg and "#" not in svg and "font" not in svg

    def test_shows_hostile_text_as_text(self, kind: str) -> None:
        svg = CHARTS[kind](HOSTILE)
        root = ElementTree.fromstring(svg)
        assert "script" not in {node.tag.split("}")[-1] for node in root.iter()}
        text = " ".join(filter(None, (node.text for node in root.iter())))
        assert "</text></svg>" in text
        assert "\x00" not in svg

    def test_is_small(self, kind: str) -> None:
        assert len(CHARTS[kind]("plain")) < 15_000


def test_dollar_signs_are_no_formulas() -> None:
    svg = charts.bar_chart(["$x^2$", "5 $ and 6 $"], [1, 2], x_label="$n_i$", description="")
    assert all(f">{text}</text>" in svg for text in ("$x^2$", "5 $ and 6 $", "$n_i$"))


def test_lines_differ_by_dash_as_well_as_by_colour() -> None:
    root = ElementTree.fromstring(curves(lines(7)))
    groups = [node for node in root.iter() if node.get("class") == "series"]
    assert [group.get("data-key") for group in groups] == [f"class {i}" for i in range(7)]
    styles = [path.get("style", "") for group in groups for path in group if path.tag.endswith("path")]
    dashes = {style.split("stroke-dasharray:")[-1].split(";")[0] if "dasharray" in style else "" for style in styles}
    assert len(dashes) == 7


def test_many_lines_are_grey_except_strong_ones_and_small() -> None:
    drawn = lines(80)
    drawn[40] = charts.Line("the mean", drawn[0].x, drawn[0].y, strong=True)
    svg = curves(drawn)
    assert svg.count('class="series"') == 80 and svg.count("data-key") == 79
    assert svg.count("var(--chart-13)") == 79 and ">the mean</text>" in svg and ">class 3</text>" not in svg
    assert len(svg) < 45_000


def test_points_outside_the_range_and_unknown_ones_leave_gaps() -> None:
    line = charts.Line("a", [0, 1, 2, 3, 4, 5], [0.5, 0.6, math.nan, 0.7, 7.0, 0.8])
    (path,) = (
        node[1].get("d", "")
        for node in ElementTree.fromstring(curves([line], y_range=(0, 1))).iter()
        if node.get("class") == "series"
    )
    assert path.count("M") == 2 or path.count("M") == 3
    numbers = [float(number) for number in path.replace("M", "").replace("L", "").split()]
    assert min(numbers) >= 0 and len(numbers) <= 10


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_draw(count: int) -> None:
    assert curves(lines(count, points=1)).startswith("<svg")
    assert charts.bar_chart([], [], x_label="", description="").startswith("<svg")
