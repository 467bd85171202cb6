"""Results of trained models: detections, segmentations and classifications of one image."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..errors import TwinsError, one_line
from ..frameworks.prediction import Instances

if TYPE_CHECKING:
    from ..data.drawing import ShowLabels


class _Drawable:
    """A result that can be drawn."""

    def draw(self) -> Image.Image:
        raise NotImplementedError

    def save(self, path: str | Path) -> None:
        """Write the picture that `draw` returns; the suffix of the path selects the format.

        Raises:
            TwinsError: if the file cannot be written.
        """
        save_picture(self.draw(), path)

    def _repr_png_(self) -> bytes:
        """Show the picture in notebooks."""
        buffer = io.BytesIO()
        self.draw().save(buffer, "PNG")
        return buffer.getvalue()


@dataclass(frozen=True, eq=False, repr=False)
class Detections(_Drawable):
    """The objects in an image of H x W pixels, by descending score.

    An index selects detections: a number, a slice, an array of numbers, or a bool array, as in
    `found[found.scores > 0.8]`.

    Attributes:
        image: The image, uint8 RGB (H, W, 3).
        instances: The raw results.
        classes: Names of all classes of the model.
        category_ids: Category id of each class in COCO files.
        path: Path of the image file; `None` for images that were given as objects.
    """

    image: np.ndarray
    instances: Instances
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    path: Path | None = None

    @property
    def boxes(self) -> np.ndarray:
        """Boxes, float32 (N, 4), each x1, y1, x2, y2 in pixels."""
        return self.instances.boxes

    @property
    def scores(self) -> np.ndarray:
        """Scores in 0..1, float32 (N,)."""
        return self.instances.scores

    @property
    def labels(self) -> np.ndarray:
        """Positions in `classes`, int64 (N,)."""
        return self.instances.labels

    @property
    def names(self) -> list[str]:
        """Name of the class of each detection."""
        return [self.classes[label] for label in self.labels.tolist()]

    @property
    def masks(self) -> np.ndarray | None:
        """Masks, bool (N, H, W), or `None` for a detector of boxes alone.

        They are built on each access from the crops that are stored. For large images, iterate over `instances.masks`
        instead, which builds one mask at a time.
        """
        masks = self.instances.masks
        return None if masks is None else masks.to_array()

    def __len__(self) -> int:
        return len(self.instances)

    def __getitem__(self, index: Any) -> Detections:
        if isinstance(index, list):
            index = np.asarray(index, dtype=None if index else np.int64)
        selected = np.atleast_1d(np.arange(len(self))[index])
        return Detections(self.image, self.instances.select(selected), self.classes, self.category_ids, self.path)

    def __repr__(self) -> str:
        counts = {name: self.names.count(name) for name in dict.fromkeys(self.names)}
        listed = ", ".join(f"{count} {name}" for name, count in counts.items())
        return f"Detections({listed or 'none'})"

    def draw(self, show_labels: ShowLabels = "auto") -> Image.Image:
        """Draw the detections on the image.

        Args:
            show_labels: "auto" draws the names that fit, "all" every name, and "none" no name.
        """
        from ..data.drawing import draw_instances

        picture = draw_instances(
            self.image,
            self.boxes,
            self.labels,
            self.classes,
            scores=self.scores,
            masks=self.instances.masks,  # one at a time
            show_labels=show_labels,
        )
        return Image.fromarray(picture)

    def to_coco(self, image_id: int | None = None) -> list[dict[str, Any]]:
        """Return the detections as entries of a COCO results file, with the name of the class as `category`.

        Args:
            image_id: Id of the image, which is added to each entry.
        """
        from ..evaluation.coco import coco_detection

        masks: Iterable[np.ndarray | None] = self.instances.masks or [None] * len(self)
        shared = {} if image_id is None else {"image_id": image_id}
        return [
            {**shared, **coco_detection(box, score, self.category_ids[label], mask), "category": self.classes[label]}
            for box, score, label, mask in zip(
                self.boxes, self.scores.tolist(), self.labels.tolist(), masks, strict=True
            )
        ]

    def to_supervision(self) -> Any:
        """Return the detections as `supervision.Detections`.

        Raises:
            TwinsError: if the package supervision is not installed.
        """
        try:
            import supervision  # type: ignore[import-not-found]
        except ModuleNotFoundError:
            raise TwinsError("supervision is not installed: pip install supervision") from None
        return supervision.Detections(
            xyxy=self.boxes,
            mask=self.masks,
            confidence=self.scores,
            class_id=self.labels,
            data={"class_name": np.array(self.names, dtype=str)},
        )


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation(_Drawable):
    """The classes of the pixels of an image of H x W pixels.

    Attributes:
        image: The image, uint8 RGB (H, W, 3).
        labels: The class of each pixel, numbered as in the label maps of the data set, uint8 (H, W).
        classes: Names of all classes of the model.
        palette: One (R, G, B) in 0..255 per class.
        first_value: Value of the first class in `labels`, 0 or 1.
        confidence: The probability of the class of each pixel, float32 (H, W), if it was requested.
        path: Path of the image file; `None` for images that were given as objects.
    """

    image: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    first_value: int
    confidence: np.ndarray | None = None
    path: Path | None = None

    @property
    def shares(self) -> dict[str, float]:
        """The fraction of the pixels that each class covers, by name, without the classes that are not there."""
        counts = np.bincount((self.labels - self.first_value).ravel(), minlength=len(self.classes)).tolist()
        return {name: count / self.labels.size for name, count in zip(self.classes, counts, strict=True) if count > 0}

    def __repr__(self) -> str:
        largest = sorted(self.shares.items(), key=lambda item: -item[1])
        return f"Segmentation({', '.join(f'{share:.0%} {name}' for name, share in largest)})"

    def draw(self) -> Image.Image:
        """Tint the image with the colours of the classes."""
        from ..data.drawing import draw_classes

        return Image.fromarray(draw_classes(self.image, self.labels - self.first_value, self.palette))

    def legend(self) -> Image.Image:
        """Draw the colour, the label value and the name of each class."""
        from ..data.drawing import draw_legend

        return Image.fromarray(draw_legend(self.classes, self.palette, self.first_value))


@dataclass(frozen=True, eq=False, repr=False)
class Classification(_Drawable):
    """The most probable classes of an image, by descending probability.

    Attributes:
        image: The image, uint8 RGB (H, W, 3).
        labels: Positions in the classes of the model, int64 (k,).
        names: Names of these classes.
        probabilities: Probabilities of these classes, float32 (k,).
        path: Path of the image file; `None` for images that were given as objects.
    """

    image: np.ndarray
    labels: np.ndarray
    names: list[str]
    probabilities: np.ndarray
    path: Path | None = None

    def __repr__(self) -> str:
        listed = (f"{share:.1%} {name}" for name, share in zip(self.names, self.probabilities, strict=True))
        return f"Classification({', '.join(listed)})"

    def draw(self) -> Image.Image:
        """Return the image."""
        return Image.fromarray(self.image)


Result = Detections | Segmentation | Classification


def save_picture(picture: Image.Image, path: str | Path) -> None:
    """Write a picture in the format of the suffix.

    Raises:
        TwinsError: if the suffix is unknown or the file cannot be written.
    """
    try:
        picture.save(path, quality=92)
    except (OSError, ValueError, KeyError) as error:
        raise TwinsError(f"picture {str(path)!r} cannot be written ({one_line(error)}); choose another path") from None
