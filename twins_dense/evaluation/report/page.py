"""Render a page from sections: the templates, the style sheet and the script become one HTML file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from . import formatting

GENERATOR = "twins-dense report"  # by this name, a file is recognised as a report


@dataclass(frozen=True)
class Section:
    """A section of the page, with an entry in the table of contents.

    Attributes:
        id: Identifier for links, such as "classes".
        title: Title in sentence case, such as "Scores by class".
        html: Content, usually from `render`.
    """

    id: str
    title: str
    html: Markup


@dataclass(frozen=True)
class Headline:
    """A number at the top of the page.

    Attributes:
        name: Name, such as "box AP50".
        value: The value.
        interval: Bounds of its 95 % interval; `None` if unknown.
        other: Value of the evaluation that this one is compared with.
        difference: Bounds of the 95 % interval of value - other.
        explanation: One sentence that says what the number means.
        percent: Whether the value is a fraction to be shown in percent.
    """

    name: str
    value: float
    interval: tuple[float, float] | None = None
    other: float | None = None
    difference: tuple[float, float] | None = None
    explanation: str = ""
    percent: bool = True


def render(template: str, **values: Any) -> Markup:
    """Render a template of the folder `templates/`. Values are escaped unless they are `Markup`."""
    return Markup(_ENVIRONMENT.get_template(template).render(**values))


def render_page(
    title: str, facts: Sequence[tuple[str, str]], headlines: Sequence[Headline], sections: Sequence[Section]
) -> str:
    """Return the whole page as HTML that needs no other file.

    All style sheets and scripts of the folder `templates/` become part of the page. Its content security policy allows
    only this script and no connection to anywhere.

    Args:
        title: Title of the page.
        facts: Names and values of what was evaluated: model, data, versions, command.
        headlines: The numbers that matter most.
        sections: The sections, in order.
    """
    style, script = _joined(".css"), _joined(".js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return render(
        "page.html.j2",
        title=title,
        facts=facts,
        headlines=headlines,
        sections=sections,
        policy=policy,
        generator=GENERATOR,
        style=Markup(style),
        script=Markup(script),
    )


def _joined(suffix: str) -> str:
    """Return the files of a kind in the folder `templates/`, the page's own first."""
    folder = Path(__file__).parent / "templates"
    found = sorted(folder.glob(f"*{suffix}"), key=_page_first)
    return "\n".join(item.read_text(encoding="utf-8") for item in found)


def _page_first(item: Path) -> tuple[bool, str]:
    return not item.name.startswith("page."), item.name


_ENVIRONMENT = Environment(
    loader=PackageLoader("twins_dense.evaluation.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {
    "cell": formatting.cell,
    "sort_value": formatting.sort_value,
    "percent": formatting.percent,
    "headline_value": formatting.headline_value,
    "comparison": formatting.comparison,
    "sentence": lambda text: text[:1].upper() + text[1:],
}
_ENVIRONMENT.globals["matrix_view"] = formatting.matrix_view
