"""Render a page from sections: the templates, the style sheet and the script become one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


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

    Args:
        title: Title of the page.
        facts: Names and values of what was evaluated: model, data, versions, command.
        headlines: The numbers that matter most.
        sections: The sections, in order.
    """
    return render("page.html.j2", title=title, facts=facts, headlines=headlines, sections=sections)


_ENVIRONMENT = Environment(
    loader=PackageLoader("twins_dense.evaluation.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
