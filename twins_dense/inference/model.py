"""Trained models as objects: predict on images of any kind, and evaluate."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..data.layouts import recognise
from ..errors import TwinsError, one_line, requires_extra
from ..frameworks import OpenedCheckpoint
from ..frameworks.checks import check_categories
from ..frameworks.prediction import Detector, Segmentor
from .results import Classification, Detections, Result, Segmentation
from .sources import SourceImage, read_sources
from .tiles import View, detect_tiles, detect_views, parse_views, segment_tiles, segment_views

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class PredictOptions:
    """The options of `Model.predict`, checked. `score` is one threshold, or one per class."""

    score: float | np.ndarray
    batch_size: int
    tile: int | None
    overlap: float
    views: Sequence[View]
    confidence: bool
    top: int

    def __post_init__(self) -> None:
        if isinstance(self.score, str) or not np.all((np.asarray(self.score) >= 0) & (np.asarray(self.score) <= 1)):
            raise TwinsError(f"score={self.score!r}: choose a number in 0..1, or 'auto'")
        for name, minimum in (("batch_size", 1), ("tile", 32), ("top", 1)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < minimum):
                raise TwinsError(f"{name}={value!r}: choose a whole number, {minimum} or more")
        if not 0 <= self.overlap <= 0.9:
            raise TwinsError(f"overlap={self.overlap!r}: choose a fraction of the tiles in 0..0.9")


class Model:
    """A trained model, from `load_model`.

    Attributes:
        task: "detection", "segmentation" or "classification".
        classes: Names of the classes, in the order of the labels.
    """

    task: str
    classes: tuple[str, ...]

    def __init__(self, name: str, device: torch.device, precision: Precision) -> None:
        self._name = name
        self._device = device
        self._precision = precision

    def __repr__(self) -> str:
        return f"<{self.task} model {self._name!r}: {len(self.classes)} classes, {self._device}, {self._precision}>"

    def predict(
        self,
        images: Any,
        score: float | Literal["auto"] = 0.5,
        batch_size: int = 1,
        *,
        tile: int | None = None,
        overlap: float = 0.2,
        tta: str | Sequence[str | float] | None = None,
        confidence: bool = False,
        top: int = 5,
    ) -> Any:
        """Run the model on one image or on many.

        The EXIF orientation of files and PIL images is applied first, so that pixel coordinates refer to upright
        images.

        Args:
            images: One image: a path, a PIL image, a uint8 RGB array (H, W, 3), or a uint8 RGB tensor (3, H, W). Or
                many: a folder (searched recursively), a glob, or a list, generator or other iterable of images.
            score: For detectors, the score threshold. "auto" uses `recommended_scores`.
            batch_size: Number of images to compute together; successive images of one size form batches. The results
                are those of single images up to rounding.
            tile: Side of overlapping tiles in pixels, for large images and small objects. Each tile is treated like an
                image of its own, and the results are merged. `None` uses no tiles.
            overlap: Overlap of neighbouring tiles, as a fraction of their side.
            tta: Test-time augmentation: "flip", and factors of the image size, as in "flip,0.8,1.25" or
                ["flip", 0.8, 1.25]. Detections are merged by non-maximum suppression, logits are averaged.
            confidence: For segmentors, whether to return the probability of the class of each pixel as well.
            top: For classifiers, the number of classes to return.

        Returns:
            `Detections`, `Segmentation` or `Classification` for one image. For many, an iterator over them, which reads
            images as it goes and keeps at most one batch in memory.

        Raises:
            TwinsError: if an option is out of range, or an image cannot be read. For many images, the latter is raised
                when the iterator reaches the image.
        """
        thresholds = self.recommended_scores if score == "auto" else score
        options = PredictOptions(thresholds, batch_size, tile, overlap, parse_views(tta), confidence, top)
        self._check(options)
        found = read_sources(images)
        return self._run([found], options)[0] if isinstance(found, SourceImage) else self._stream(found, options)

    @property
    def recommended_scores(self) -> np.ndarray:
        """The score threshold of each class, (K,), that the evaluation of a detector recommends.

        The thresholds have the largest F1 in the finished evaluation of the same checkpoint: in the folder `evaluation`
        of its run, else in the newest evaluation by `twins-dense eval`.

        Raises:
            TwinsError: if there is no such evaluation, or the model is not a detector.
        """
        raise TwinsError(f"score='auto': only detectors have score thresholds, and this is a {self.task} model")

    def evaluate(self, data: str | Path | None = None, *, work_dir: str | Path | None = None) -> dict[str, float]:
        """Evaluate the model as `twins-dense eval` does, and return the metrics by name, with scores as fractions.

        Args:
            data: Folder of images and annotations in any layout that `train --data` recognises. Its validation images
                are used or, if it has none, the fraction that `train --data` holds out. `None` uses the test data of
                the config.
            work_dir: Folder for the results; `None` keeps none.

        Raises:
            TwinsError: if the data or the folder cannot be used.
        """
        raise TwinsError(f"{self._name!r} is a published classifier: evaluate it by `twins-dense validate`")

    def _check(self, options: PredictOptions) -> None:
        """Raise `TwinsError` for an option that the task does not have."""
        if options.confidence and self.task != "segmentation":
            raise TwinsError(f"confidence=True: only segmentors have it, and this is a {self.task} model")

    def _stream(self, images: Iterable[SourceImage], options: PredictOptions) -> Iterator[Result]:
        for batch in _batches(images, options.batch_size):
            yield from self._run(batch, options)

    def _run(self, images: Sequence[SourceImage], options: PredictOptions) -> Sequence[Result]:
        try:
            with torch.inference_mode(), self._autocast():
                return self._predict(images, options)
        except Exception as error:  # of the framework, for example for images that become less than a pixel high
            height, width = images[0].array.shape[:2]
            names = ", ".join(one_line(image.path) for image in images if image.path is not None)
            raise TwinsError(
                f"image {names or 'given'} of {width}x{height} pixels cannot be predicted ({one_line(error)})"
            ) from error

    def _predict(self, images: Sequence[SourceImage], options: PredictOptions) -> Sequence[Result]:
        """Return the results of images of one size."""
        raise NotImplementedError

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._precision == "bfloat16")


class _TrainedModel(Model):
    """A model that `train` trains, with its checkpoint."""

    def __init__(self, checkpoint: OpenedCheckpoint, device: torch.device, precision: Precision) -> None:
        super().__init__(str(checkpoint.path), device, precision)
        self._checkpoint = checkpoint

    def evaluate(self, data: str | Path | None = None, *, work_dir: str | Path | None = None) -> dict[str, float]:
        engine, config, path = self._checkpoint
        config = copy.deepcopy(config)
        with tempfile.TemporaryDirectory() as scratch:
            if data is not None:
                folder = recognise(data, out=Path(scratch) / "data")
                check_categories(f"data {str(data)!r}", folder.classes, f"checkpoint {str(path)!r}", self.classes)
                engine.set_data(config, folder)
            return engine.evaluate(config, path, Path(scratch) / "results" if work_dir is None else work_dir)


class DetectionModel(_TrainedModel):
    """A detector; `predict` returns `Detections`."""

    task = "detection"

    def __init__(
        self, checkpoint: OpenedCheckpoint, detector: Detector, device: torch.device, precision: Precision
    ) -> None:
        super().__init__(checkpoint, device, precision)
        self.classes = detector.classes
        self.category_ids = detector.category_ids
        self._detector = detector

    @functools.cached_property
    def recommended_scores(self) -> np.ndarray:
        with requires_extra("report"):
            from ..evaluation.thresholds import find_evaluation, recommended_thresholds

            return recommended_thresholds(find_evaluation(self._checkpoint.path)).by_class

    def _predict(self, images: Sequence[SourceImage], options: PredictOptions) -> Sequence[Detections]:
        def detect(arrays: Sequence[np.ndarray]) -> Any:
            return detect_views(self._detector, arrays, float(np.min(options.score)), options.views)

        arrays = [image.array for image in images]
        if options.tile is None:
            found = detect(arrays)
        else:
            tiles = functools.partial(
                detect_tiles, detect, tile=options.tile, overlap=options.overlap, batch_size=options.batch_size
            )
            found = list(map(tiles, arrays))
        results = [
            Detections(image.array, instances, self.classes, self.category_ids, image.path)
            for image, instances in zip(images, found, strict=True)
        ]
        if not isinstance(options.score, np.ndarray):
            return results
        return [result[result.scores >= options.score[result.labels]] for result in results]


class SegmentationModel(_TrainedModel):
    """A segmentor; `predict` returns `Segmentation`."""

    task = "segmentation"

    def __init__(
        self, checkpoint: OpenedCheckpoint, segmentor: Segmentor, device: torch.device, precision: Precision
    ) -> None:
        super().__init__(checkpoint, device, precision)
        self.classes = segmentor.classes
        self._segmentor = segmentor

    def _predict(self, images: Sequence[SourceImage], options: PredictOptions) -> Sequence[Segmentation]:
        def segment(arrays: Sequence[np.ndarray]) -> list[torch.Tensor]:
            return segment_views(self._segmentor, arrays, options.views)

        arrays = [image.array for image in images]
        if options.tile is None:
            bands: Iterable[Iterable[torch.Tensor]] = ([logits] for logits in segment(arrays))
        else:
            tiles = functools.partial(
                segment_tiles, segment, tile=options.tile, overlap=options.overlap, batch_size=options.batch_size
            )
            bands = map(tiles, arrays)
        return [self._result(image, parts, options.confidence) for image, parts in zip(images, bands, strict=True)]

    def _result(self, image: SourceImage, bands: Iterable[torch.Tensor], confidence: bool) -> Segmentation:
        labels, confidences = [], []
        for logits in bands:
            labels.append(logits.argmax(dim=0).to(torch.uint8).cpu().numpy())
            if confidence:
                confidences.append(logits.float().softmax(dim=0).amax(dim=0).cpu().numpy())
        first = self._segmentor.first_value
        return Segmentation(
            image.array,
            np.concatenate(labels) + np.uint8(first),
            self.classes,
            self._segmentor.palette,
            first,
            np.concatenate(confidences) if confidence else None,
            image.path,
        )


class ClassificationModel(Model):
    """A published classifier; `predict` returns `Classification`.

    Args:
        name: Catalog name of the weights.
        device: Device to run on.
        precision: Precision of the computation.

    Raises:
        TwinsError: if the weights cannot be read.
    """

    task = "classification"

    def __init__(self, name: str, device: torch.device, precision: Precision) -> None:
        from ..factory import create_classifier
        from ..imagenet.classes import class_names
        from ..imagenet.transforms import image_transform
        from ..weights.catalog import get_weights_spec

        super().__init__(name, device, precision)
        spec = get_weights_spec(name)
        self.classes = class_names()
        self._transform = image_transform(spec.preprocessing)
        self._net = create_classifier(spec.variant, weights=name).to(device).eval()

    def _check(self, options: PredictOptions) -> None:
        super()._check(options)
        if options.tile is not None or len(options.views) > 1:
            raise TwinsError("tile and tta are for detectors and segmentors: leave them out for a classifier")

    def _predict(self, images: Sequence[SourceImage], options: PredictOptions) -> Sequence[Classification]:
        from PIL import Image

        batch = torch.stack([self._transform(Image.fromarray(image.array)) for image in images]).to(self._device)
        probabilities, labels = self._net(batch).float().softmax(dim=1).cpu().topk(min(options.top, len(self.classes)))
        return [
            Classification(
                image.array, best.numpy(), [self.classes[label] for label in best.tolist()], shares.numpy(), image.path
            )
            for image, best, shares in zip(images, labels, probabilities, strict=True)
        ]


def _batches(images: Iterable[SourceImage], size: int) -> Iterator[list[SourceImage]]:
    """Group successive images of one size."""
    batch: list[SourceImage] = []
    for image in images:
        if batch and image.array.shape != batch[0].array.shape:
            yield batch
            batch = []
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
