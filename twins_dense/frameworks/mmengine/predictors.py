"""Trained detectors and segmentors, which compute raw results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS
from mmengine.structures import BaseDataElement
from torch import Tensor

from ...errors import TwinsError
from ..prediction import Instances
from .config import building, test_part
from .runner import load_model


class TorchvisionPredictor:
    """A `Detector` on one of torchvision's detectors.

    Args:
        config: From `load_config` or `from_data`.
        checkpoint: Checkpoint from a training run of the config.
        device: Device to run on.

    Raises:
        TwinsError: if the config or the checkpoint cannot be used.
    """

    task: Literal["detection"] = "detection"

    def __init__(self, config: Config, checkpoint: str | Path, device: torch.device) -> None:
        self.model, meta = load_model(config, checkpoint, device)
        if not {"classes", "category_ids"} <= meta.keys():
            raise TwinsError(
                f"checkpoint {str(checkpoint)!r} does not name its classes: use a checkpoint of `twins-dense train`"
            )
        self.classes = tuple(meta["classes"])
        self.category_ids = tuple(meta["category_ids"])

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray], *, score: float, scale: float = 1.0) -> list[Instances]:
        """Find the objects in images of one size (see `Detector`)."""
        model: Any = self.model
        model.set_score_threshold(score)
        tensors = [torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1) for image in images]
        sample = BaseDataElement()
        with _resized(model.detector.transform, scale):
            results = model.val_step({"inputs": tensors, "data_samples": [sample] * len(tensors)})
        return [
            Instances.from_tensors(found.boxes, found.scores, found.labels, found.get("masks")) for found in results
        ]


class SegmentationPredictor:
    """A `Segmentor` on one of mmsegmentation's segmentors. Images are prepared like the test data of the config.

    Args:
        config: From `load_config` or `from_data`.
        checkpoint: Checkpoint from a training run of the config, or a published segmentor.
        device: Device to run on.

    Raises:
        TwinsError: if the config or the checkpoint cannot be used.
    """

    task: Literal["segmentation"] = "segmentation"

    def __init__(self, config: Config, checkpoint: str | Path, device: torch.device) -> None:
        self.model, stored = load_model(config, checkpoint, device)
        dataset = test_part(config, "dataloader").dataset
        # `lazy_init` gives access to the classes without reading any files.
        meta = {**DATASETS.build({**dataset, "lazy_init": True}).metainfo, **stored}
        self.classes = tuple(meta["classes"])
        self.palette = tuple(tuple(color) for color in meta["palette"])
        self.first_value = 1 if meta["reduce_zero_label"] else 0
        self._pipelines: dict[float, Compose] = {}  # by scale
        self._steps = [step for step in dataset.pipeline if not step["type"].startswith("Load")]

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray], *, scale: float = 1.0) -> list[Tensor]:
        """Return the logits of images of one size (see `Segmentor`)."""
        # mmseg's pipelines expect BGR.
        prepare = self._pipeline(scale)
        samples = [prepare({"img": np.ascontiguousarray(image[:, :, ::-1])}) for image in images]
        batch = {key: [sample[key] for sample in samples] for key in ("inputs", "data_samples")}
        model: Any = self.model
        logits = [found.seg_logits.data.float() for found in model.test_step(batch)]
        # A head with a single channel returns the probability of the second class.
        threshold = getattr(model.decode_head, "threshold", None) or 0.5
        return [_two_classes(x, threshold) if len(x) == 1 else x for x in logits]

    def _pipeline(self, scale: float) -> Compose:
        """Return the test pipeline of the config for arrays, with its sizes multiplied by a factor."""
        if scale not in self._pipelines:
            steps = [dict(step) for step in self._steps]
            for step in steps:
                if step["type"] == "Resize" and "scale" in step:
                    sides = step["scale"] if isinstance(step["scale"], tuple) else (step["scale"],) * 2
                    step["scale"] = tuple(round(side * scale) for side in sides)
            self._pipelines[scale] = Compose([{"type": "LoadImageFromNDArray"}, *steps])
        return self._pipelines[scale]


def predictor(
    config: Config, checkpoint: str | Path, device: torch.device
) -> TorchvisionPredictor | SegmentationPredictor:
    """Load a trained model that computes raw results."""
    kind = SegmentationPredictor if config.get("default_scope") == "mmseg" else TorchvisionPredictor
    with building(config):
        return kind(config, checkpoint, device)


@contextmanager
def _resized(transform: Any, scale: float) -> Iterator[None]:
    """Multiply the size that torchvision's transform resizes images to."""
    before = transform.min_size, transform.max_size
    transform.min_size = tuple(round(side * scale) for side in transform.min_size)
    transform.max_size = round(transform.max_size * scale)
    try:
        yield
    finally:
        transform.min_size, transform.max_size = before


def _two_classes(probability: Tensor, threshold: float) -> Tensor:
    logit = torch.logit(probability) - torch.logit(probability.new_tensor(threshold))
    return torch.cat([torch.zeros_like(logit), logit])
