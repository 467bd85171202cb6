"""Pictures of images with what is true and what was predicted, as cards of a gallery."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from ...errors import TwinsError
from .page import Section, render
from .pictures import palette_picture, path_data, thumbnail

# For each kind of shape: the switch that shows it, and its name in the legend. Colours and dashes are in gallery.css.
_KINDS: Mapping[str, tuple[str, str]] = {
    "truth": ("truth", "found object"),
    "missed": ("truth", "missed object"),
    "correct": ("prediction", "correct"),
    "wrong_class": ("prediction", "wrong class"),
    "shifted": ("prediction", "wrong position"),
    "duplicate": ("prediction", "duplicate"),
    "background": ("prediction", "no object there"),
    "annotation": ("annotations", "annotation"),
}
_PLAIN = ("truth", "correct", "annotation")  # kinds that are drawn below the others, which are errors
_NUM_TINTS = 7  # colours of annotations in gallery.css, one per label
_FIRST = 12  # images that are shown before a button asks for more
_SHOWN = ("truth", "prediction", "annotations")  # switches that are on at first


@dataclass(frozen=True)
class Shape:
    """An object that is drawn over a picture.

    Attributes:
        box: x1, y1, x2, y2 in pixels of the stored image.
        kind: Its part in the comparison: "truth" (found), "missed", "correct", "wrong_class", "shifted", "duplicate",
            "background", or "annotation" where there are no predictions. The switch "truth" shows the first two,
            "annotations" the last, and "prediction" the others.
        label: Text beside it, such as "cat 0.83".
        contours: Outlines of its mask, each (N, 2) x and y in pixels; empty for a box.
    """

    box: Sequence[float]
    kind: str
    label: str
    contours: Sequence[np.ndarray] = ()


@dataclass(frozen=True)
class Layer:
    """A map that is drawn over a picture, such as a predicted label map.

    Attributes:
        name: Name of the switch that shows it, such as "prediction".
        indices: uint8 (H, W), indices into `palette`; other values are transparent.
        palette: One (R, G, B) in 0..255 per index.
        names: Names of the indices for the legend, such as the names of the classes; empty for no legend.
    """

    name: str
    indices: np.ndarray
    palette: Sequence[Sequence[int]]
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Card:
    """An image of a gallery.

    Attributes:
        file: Path of the image.
        title: Title, such as the name of the file.
        text: One line about it, such as "3 missed, 1 wrong class; F1 0.67".
        tags: Values by which the gallery can be filtered, such as the names of classes and kinds of errors.
        shapes: Objects that are drawn over it.
        layers: Maps that are drawn over it. They belong to the upright image, whereas shapes belong to the stored one;
            the two differ if the file has an EXIF orientation.
    """

    file: str
    title: str
    text: str
    tags: Sequence[str] = ()
    shapes: Sequence[Shape] = ()
    layers: Sequence[Layer] = ()


def gallery(id: str, cards: Sequence[Card], *, filters: Sequence[tuple[str, Sequence[str]]] = ()) -> Markup:
    """Return a gallery of cards: thumbnails with switches for truth and prediction, zoom, and filters.

    A card whose image cannot be read has a placeholder instead of the picture.

    Args:
        id: Identifier on the page.
        cards: The images, in order.
        filters: Names of the filters with their tags, such as ("class", ["cat", "dog"]) and ("error", ["missed"]). Tags
            that no card has are left out.
    """
    used = {shape.kind for card in cards for shape in card.shapes}
    kinds = [(kind, name) for kind, (_, name) in _KINDS.items() if kind in used]
    layers = [layer.name for card in cards for layer in card.layers]
    groups = list(dict.fromkeys([*(_KINDS[kind][0] for kind, _ in kinds), *layers]))
    annotated = [shape.label for card in cards for shape in card.shapes if shape.kind == "annotation"]
    tints = {label: index % _NUM_TINTS for index, label in enumerate(dict.fromkeys(annotated))}
    switches = [(name, name in _SHOWN or len(groups) == 1) for name in groups]
    num_tagged = Counter(tag for card in cards for tag in set(card.tags))
    return render(
        "gallery.html.j2",
        id=id,
        first=_FIRST,
        cards=[_card(card, groups, tints) for card in cards],
        groups=switches,
        kinds=kinds if len(kinds) > 1 else [],
        legends=_legends(cards, switches),
        has_layers=bool(layers),
        filters=[(name, [(tag, num_tagged[tag]) for tag in tags if num_tagged[tag]]) for name, tags in filters],
    )


def gallery_section(
    id: str,
    title: str,
    cards: Sequence[Card],
    *,
    text: str,
    empty: str,
    filters: Sequence[tuple[str, Sequence[str]]] = (),
) -> Section:
    """Return a section with a gallery.

    Args:
        id: Identifier of the section.
        title: Title of the section.
        cards: The images, in order.
        text: What to look at.
        empty: Sentence that replaces the gallery if there is no card.
        filters: Filters, as for `gallery`.
    """
    pictures = gallery(f"{id}-gallery", cards, filters=filters) if cards else None
    return Section(id, title, render("gallery_section.html.j2", text=text, gallery=pictures, empty=empty))


def _card(card: Card, groups: Sequence[str], tints: Mapping[str, int]) -> dict[str, Any]:
    """Return the values of the template for a card."""
    values = {"title": card.title, "text": card.text, "tags": json.dumps(list(dict.fromkeys(card.tags)))}
    try:
        uri, width, height = thumbnail(card.file, upright=bool(card.layers))
    except TwinsError:
        return {**values, "problem": f"{card.file} is missing or cannot be read."}
    shapes: dict[int, list[dict[str, str]]] = {}
    for shape in _in_drawing_order(card.shapes):
        shapes.setdefault(groups.index(_KINDS[shape.kind][0]), []).append(_shape(shape, tints))
    layers = [(groups.index(layer.name), palette_picture(layer.indices, layer.palette)) for layer in card.layers]
    picture = {"uri": uri, "height": height, "width": width, "layers": layers, "shapes": shapes}
    return {**values, "problem": None, "picture": picture}


def _in_drawing_order(shapes: Iterable[Shape]) -> list[Shape]:
    """Return the shapes that can be drawn: large ones below small ones, and errors on top."""

    def key(shape: Shape) -> tuple[bool, float]:
        x1, y1, x2, y2 = shape.box
        return shape.kind not in _PLAIN, -(x2 - x1) * (y2 - y1)

    return sorted((shape for shape in shapes if np.isfinite(shape.box).all()), key=key)


def _shape(shape: Shape, tints: Mapping[str, int]) -> dict[str, str]:
    x1, y1, x2, y2 = shape.box
    # Outlines of one or two pixels have no area, and would not be seen.
    outlines = [outline for outline in shape.contours if len(outline) > 2]
    corners = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)])
    box = " ".join(f"{value:.0f}" for value in shape.box)
    classes = [f"kind-{shape.kind}"]
    if shape.kind == "annotation":
        classes.append(f"tint-{tints[shape.label]}")
    if shape.kind not in _PLAIN:
        classes.append("error")
    return {"classes": " ".join(classes), "label": shape.label, "box": box, "path": path_data(outlines or [corners])}


def _legends(cards: Iterable[Card], switches: Sequence[tuple[str, bool]]) -> list[dict[str, Any]]:
    """Return the names and colours that the maps use; layers with the same names share a legend."""
    groups = [name for name, _ in switches]
    found: dict[tuple[str, ...], tuple[set[int], dict[str, str]]] = {}
    for layer in (layer for card in cards for layer in card.layers if layer.names):
        used, colors = found.setdefault(tuple(layer.names), (set(), {}))
        used.add(groups.index(layer.name))
        for index in np.unique(layer.indices).tolist():
            if index < len(layer.names):
                colors[layer.names[index]] = ",".join(str(int(value)) for value in layer.palette[index])
    return [
        {
            "groups": sorted(used),
            "shown": any(switches[group][1] for group in used),
            "colors": [(name, colors[name]) for name in names if name in colors],
        }
        for names, (used, colors) in found.items()
    ]
