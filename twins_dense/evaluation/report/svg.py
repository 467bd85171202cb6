"""Convert figures of matplotlib to SVG that fits into the page.

The colours `#0000NN` become the variables `--chart-NN` of the style sheet, so that they follow the theme. Text stays
text in the font of the page, and no element has an identifier, so that several charts fit on a page.
"""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib.figure import Figure

_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_DROPPED = ("font", "stroke-linejoin", "stroke-miterlimit")  # properties that the style sheet sets, or the default
_DECIMAL = re.compile(r"-?\d+\.\d+")


def plain(text: str) -> str:
    """Return text on one line, with control characters replaced, which SVG cannot contain."""
    return " ".join("".join("�" if _is_control(c) else c for c in text.replace("\n", " ")).split())


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Cn") or character in "\ufffe\uffff"


def to_svg(figure: Figure, description: str, groups: Mapping[str, tuple[Mapping[str, Any], str]]) -> Markup:
    """Return a figure as SVG for the page.

    Args:
        figure: The figure.
        description: Text for screen readers.
        groups: Attributes and tooltips of elements by their `gid`.
    """
    file = io.BytesIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(file.getvalue())
    shapes = {node.get("id"): node for node in root.iter(f"{_SVG}path") if node.get("id")}
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{_SVG}defs", f"{_SVG}metadata"):
                parent.remove(child)
        if parent.tag == f"{_SVG}use":  # a marker, which becomes a path of its own
            shape = shapes[parent.attrib.pop(_LINK)[1:]]
            x, y = parent.attrib.pop("x"), parent.attrib.pop("y")
            parent.tag = f"{_SVG}path"
            parent.attrib.update({"d": shape.get("d", ""), "transform": f"translate({x} {y})"})
    for node in root.iter():
        attributes, tooltip = groups.get(node.attrib.pop("id", ""), ({}, ""))
        node.attrib.update({name: plain(value) for name, value in attributes.items() if value is not None})
        if tooltip:
            title = ElementTree.Element(f"{_SVG}title")
            title.text = plain(tooltip)
            node.insert(0, title)
        _simplify(node)
    view_box = root.get("viewBox", "")
    root.attrib.clear()
    width, height = view_box.split()[2:]
    root.attrib.update(
        {"class": "chart", "viewBox": view_box, "width": width, "height": height, "role": "img"}
        | {"aria-label": plain(description)}
    )
    text = ElementTree.tostring(root, encoding="unicode").replace("ns0:", "").replace(":ns0", "")
    return Markup(re.sub(r">\s+<", "><", text))


def _simplify(node: ElementTree.Element) -> None:
    """Round coordinates, and take colours and fonts from the style sheet of the page."""
    for name in ("d", "x", "y", "transform"):
        if name in node.attrib:
            rounded = _DECIMAL.sub(lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), node.attrib[name])
            node.set(name, " ".join(rounded.split()))
    if node.get("transform", "").startswith("rotate(-0"):
        del node.attrib["transform"]
    node.attrib.pop("clip-path", None)
    if "style" in node.attrib:
        parts = [part.strip() for part in node.attrib.pop("style").split(";")]
        kept = [part for part in parts if part and not part.startswith(_DROPPED)]
        style = re.sub(r"#0000(\d\d)", r"var(--chart-\1)", ";".join(kept).replace(": ", ":"))
        if style:
            node.set("style", style)
