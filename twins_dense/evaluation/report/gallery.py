"""Pictures of images with what is true and what was predicted, as cards of a gallery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup


@dataclass(frozen=True)
class Shape:
    """An object that is drawn over a picture.

    Attributes:
        box: x1, y1, x2, y2 in pixels of the stored image.
        kind: Its part in the comparison: "truth" (found), "missed", "correct", "wrong_class", "shifted", "duplicate",
            "background", or "annotation" where there are no predictions. The first two belong to the layer "truth", the
            others to the layer "prediction".
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
        layers: Maps that are drawn over it.
    """

    file: str
    title: str
    text: str
    tags: Sequence[str] = ()
    shapes: Sequence[Shape] = ()
    layers: Sequence[Layer] = ()


def gallery(id: str, cards: Sequence[Card], *, filters: Sequence[tuple[str, Sequence[str]]] = ()) -> Markup:
    """Return a gallery of cards: thumbnails with switches for truth and prediction, zoom, and filters.

    Args:
        id: Identifier on the page.
        cards: The images, in order.
        filters: Names of the filters with their tags, such as ("class", ["cat", "dog"]) and ("error", ["missed"]).
    """
    raise NotImplementedError
