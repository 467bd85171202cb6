"""Segment single images with a trained config of mmsegmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS

from ...data.draw import draw_classes, draw_legend
from ..prediction import Prediction
from .config import test_part
from .runner import load_model


class SegmentationPredictor:
    """Calls a trained segmentor on one image at a time, prepared as the config's test data is.

    Args:
        config: from `load_config`.
        checkpoint: of a training run of the config, or a published segmentor.

    Attributes:
        legend: uint8 RGB picture of the classes' colours, names and values in labels.

    Raises:
        TwinsError: where the config or the checkpoint can't be used.
    """

    def __init__(self, config: Config, checkpoint: str | Path) -> None:
        self.model, meta = load_model(config, checkpoint)
        dataset = test_part(config, "dataloader").dataset
        # Its classes, without looking for its files.
        self.meta = {**DATASETS.build({**dataset, "lazy_init": True}).metainfo, **meta}
        steps = [step for step in dataset.pipeline if not step["type"].startswith("Load")]
        self.prepare = Compose([{"type": "LoadImageFromNDArray"}, *steps])
        self.first_value = 1 if self.meta["reduce_zero_label"] else 0
        self.legend = draw_legend(self.meta["classes"], self.meta["palette"], self.first_value)

    def __call__(self, image: np.ndarray) -> Prediction:
        """Segment a uint8 RGB (H, W, 3) image; `found` has the share of pixels of each class that is there."""
        sample = self.prepare({"img": np.ascontiguousarray(image[:, :, ::-1])})  # mmseg's pipelines read BGR
        batch = {"inputs": [sample["inputs"]], "data_samples": [sample["data_samples"]]}
        with torch.inference_mode():
            (found,) = self.model.test_step(batch)  # type: ignore[operator]
        classes = found.pred_sem_seg.data[0].cpu().numpy().astype(np.uint8)
        counts = np.bincount(classes.ravel(), minlength=len(self.meta["classes"]))
        shares = {name: count / classes.size for name, count in zip(self.meta["classes"], counts.tolist(), strict=True)}
        found_shares = {name: share for name, share in shares.items() if share > 0}
        picture = draw_classes(image, classes, self.meta["palette"])
        return Prediction(found_shares, picture, (classes + self.first_value).astype(np.uint8))
