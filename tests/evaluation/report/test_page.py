"""The page of the report: complete HTML that needs no other file and shows any text as text."""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from markupsafe import Markup

from twins_dense.evaluation.report import formatting
from twins_dense.evaluation.report.page import _ENVIRONMENT, Headline, Section, render_page

HOSTILE = "</script><img src=x onerror=alert(1)>{{ 7 * 7 }} \"q\" 's' & 🐈 \u202eright to left " + "long" * 75


class Elements(HTMLParser):
    """The start tags of a page with their attributes, and checks that every element is closed."""

    VOID = {"meta", "link", "br", "input", "img"}

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def component(call: str, **values: Any) -> Markup:
    text = '{% import "components.html.j2" as c %}{{ c.' + call + " }}"
    return Markup(_ENVIRONMENT.from_string(text).render(**values))


def page(**changes: Any) -> str:
    arguments = {
        "title": HOSTILE,
        "facts": [("Data", HOSTILE), ("Command", HOSTILE)],
        "headlines": [Headline("AP", 0.5, (0.4, 0.6))],
        "sections": [Section("a", HOSTILE, component("empty(text)", text=HOSTILE))],
    }
    return render_page(**{**arguments, **changes})


class TestPage:
    def test_hostile_text_is_shown_as_text(self) -> None:
        elements = Elements(page())
        assert "img" not in {tag for tag, _ in elements.found}
        assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]
        assert page().count(html.escape(HOSTILE, quote=False).replace('"', "&#34;").replace("'", "&#39;")) == 8

    def test_nothing_comes_from_elsewhere(self) -> None:
        for tag, attributes in Elements(page()).found:
            assert tag not in ("iframe", "object", "embed", "base")
            for name in ("src", "href", "action"):
                assert attributes.get(name, "#").startswith(("#", "data:"))  # type: ignore[union-attr]
        assert "@import" not in page() and "url(" not in page()

    def test_the_policy_allows_only_the_script_of_the_page(self) -> None:
        content = page()
        (script,) = re.findall(r"<script>(.*?)</script>", content, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', content)
        assert "default-src &#39;none&#39;" in policy and f"&#39;sha256-{html.escape(digest)}&#39;" in policy.replace(
            "&#43;", "+"
        )
        assert content.index("Content-Security-Policy") < content.index("<style>")

    def test_the_contents_link_to_every_section(self) -> None:
        sections = [Section(f"part-{i}", f"Part {i}", Markup("<p>text</p>")) for i in range(3)]
        elements = Elements(page(sections=sections)).found
        ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        targets = [attributes["href"] for tag, attributes in elements if tag == "a"]
        assert {str(target)[1:] for target in targets} <= set(ids)
        assert [targets.count(f"#part-{i}") for i in range(3)] == [2, 2, 2]

    def test_an_empty_page_is_complete(self) -> None:
        elements = Elements(page(facts=[], headlines=[], sections=[])).found
        assert [tag for tag, _ in elements if tag in ("h1", "main", "nav", "dl")] == ["h1", "main"]

    @pytest.mark.parametrize(
        ("headline", "parts"),
        [
            (Headline("AP", 0.57849, (0.541, 0.61)), ["57.8", "95 % interval 54.1 to 61.0"]),
            (
                Headline("AP", 0.5, other=0.4, difference=(0.02, 0.15)),
                ["+10.0 points compared with 40.0 % (95 % interval +2.0 to +15.0), a clear difference."],
            ),
            (
                Headline("AP", 0.4, other=0.5, difference=(-0.15, 0.02)),
                ["−10.0 points compared with 50.0 % (95 % interval −15.0 to +2.0), which may be chance."],
            ),
            (Headline("images", 12345, percent=False), ["12,345"]),
            (Headline("mIoU", math.nan, other=0.5), ["–", "No comparison"]),
        ],
    )
    def test_headlines(self, headline: Headline, parts: list[str]) -> None:
        text = html.unescape(re.sub(r"<[^>]+>", "", page(headlines=[headline]))).replace("\xa0", " ")
        for part in parts:
            assert part in text


class TestTable:
    COLUMNS = [("class", "text"), ("AP", "score"), ("objects", "count"), ("ratio", "number")]

    def test_values_are_formatted_and_can_be_sorted(self) -> None:
        rows = [[HOSTILE, 0.4567, 12345, 0.012345], ["b", None, 0, math.nan]]
        text = component('table("t", columns, rows, "Scores", true)', columns=self.COLUMNS, rows=rows)
        elements = Elements(text).found
        headers = [attributes for tag, attributes in elements if tag == "th" and attributes["scope"] == "col"]
        assert [header["aria-sort"] for header in headers] == ["none"] * 4
        assert [tag for tag, _ in elements].count("button") == 4
        assert re.findall(r">([^<>]*)</td>", text) == ["45.7", "12,345", "0.0123", "–", "0", "–"]
        assert re.findall(r'data-value="([^"]*)"', text) == ["0.4567", "12345", "0.012345", "0"]
        assert "2 rows" in text and 'type="search"' in text and HOSTILE not in text

    def test_long_text_is_cut_after_three_lines(self) -> None:
        text = component('table("t", [("class", "text")], rows)', rows=[["x" * 61], ["y" * 60]])
        assert re.findall(r'<span class="long" title="(x+)">', text) == ["x" * 61] and text.count("<span") == 1

    def test_links_in_cells_stay_links(self) -> None:
        rows = [[Markup('<a href="#x">x</a>'), 0.5, 1, 1]]
        assert '<a href="#x">x</a>' in component('table("t", columns, rows)', columns=self.COLUMNS, rows=rows)


class TestMatrix:
    def test_shares_and_kinds(self) -> None:
        view = formatting.matrix_view(
            ["a", "b", "background"], ["a", "b", "missed"], [[3, 1, 0], [0, 1200, 0], [5, 0, 2]]
        )
        cells = [[(cell.text, cell.share, cell.kind) for cell in row] for _, row in view.rows]
        assert cells[0] == [("3", 0.75, "right"), ("1", 0.25, "wrong"), ("·", 0.0, "zero")]
        assert cells[1][1] == ("1,200", 1.0, "right")
        assert cells[2] == [("5", 0.71, "wrong"), ("·", 0.0, "zero"), ("2", 0.29, "wrong")]

    def test_of_300_classes_the_most_confused_are_shown(self) -> None:
        names = [f"class {i}" for i in range(300)]
        counts = [[10 * (i == j) + (7 if i == 250 and j == 3 else 0) for j in range(300)] for i in range(300)]
        view = formatting.matrix_view(names, names, counts)
        assert len(view.rows) == len(view.columns) == 40 and view.num_hidden == 260
        assert {"class 3", "class 250"} <= set(view.columns) and list(view.columns) == [name for name, _ in view.rows]
        text = component('matrix("m", names, names, counts, "truth", "prediction")', names=names, counts=counts)
        assert "260 are left out" in text
        assert Elements(text).found and len(text) < 150_000

    def test_hostile_names_and_one_class(self) -> None:
        text = component('matrix("m", names, names, [[3]], "truth", "prediction", "All")', names=[HOSTILE])
        assert HOSTILE not in text and "left out" not in text
        assert {tag for tag, _ in Elements(text).found} <= {
            "div",
            "p",
            "table",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
            "span",
            "br",
        }


def test_tabs_are_connected_with_their_panels() -> None:
    text = component('tabs("t", panels)', panels=[("Box", Markup("<p>1</p>")), (HOSTILE, Markup("<p>2</p>"))])
    elements = [attributes for _, attributes in Elements(text).found]
    tabs = [attributes for attributes in elements if attributes.get("role") == "tab"]
    panels = {attributes["id"]: attributes for attributes in elements if attributes.get("role") == "tabpanel"}
    assert [panels[tab["aria-controls"]]["aria-labelledby"] for tab in tabs] == [tab["id"] for tab in tabs]
    assert [tab["aria-selected"] for tab in tabs] == ["true", "false"]
