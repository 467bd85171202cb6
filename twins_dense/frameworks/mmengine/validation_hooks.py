"""Hooks for MMEngine's validation loop: sample pictures and validation losses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from PIL import Image
from torch import Tensor, nn

from ...data.drawing import coco_truth, draw_classes, draw_comparison, side_by_side
from ...data.image_files import read_image
from ...seeds import derived_seed, seeded
from ..samples import MIN_SCORE, choose_samples
from .checkpoints import unwrapped
from .hooks import by_iterations

_COUNT = "number of images"


@HOOKS.register_module()
class SamplePicturesHook(Hook):
    """Draw the same few validation images at each evaluation: the truth on the left, the prediction on the right.

    The pictures are written to `samples/epoch_N` or `samples/iter_N` in the work directory. The seed of the run chooses
    the images. Detections with a score below 0.3 are left out.

    Args:
        num_images: Number of images.
    """

    def __init__(self, num_images: int) -> None:
        self.num_images = num_images
        self.chosen: dict[str, int] = {}  # number of the picture, by path of the image

    def before_val_epoch(self, runner: Runner) -> None:
        dataset = runner.val_dataloader.dataset
        infos = [dataset.get_data_info(index) for index in choose_samples(len(dataset), self.num_images, runner.seed)]
        self.chosen = {str(info.get("path", info.get("img_path"))): number for number, info in enumerate(infos, 1)}

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] | None = None
    ) -> None:
        step = f"iter_{runner.iter}" if by_iterations(runner) else f"epoch_{runner.epoch}"
        for sample in outputs or ():
            path = sample.metainfo.get("file", sample.metainfo.get("img_path"))
            if path in self.chosen:
                picture = _draw(sample, read_image(path), runner.val_dataloader.dataset.metainfo)
                target = Path(runner.work_dir) / "samples" / step / f"{self.chosen[path]}_{Path(path).stem}.jpg"
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(target, quality=90)


@HOOKS.register_module()
class ValidationLossHook(Hook):
    """Add the mean losses over the validation images to the metrics, as `val/loss`, `val/loss_mask`, …

    The losses are those of training, but all layers are in eval mode: there is no stochastic depth, and BatchNorm uses
    its running statistics and keeps them. The random generators are restored. The images are not augmented.
    """

    priority = "HIGHEST"  # before other hooks log and save the metrics

    def before_val_epoch(self, runner: Runner) -> None:
        self.sums: dict[str, Tensor] = {}

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] | None = None
    ) -> None:
        model: Any = unwrapped(runner.model)
        batch = dict(data_batch)
        if hasattr(model, "detector"):
            dataset = runner.val_dataloader.dataset
            roi_heads = getattr(model.detector, "roi_heads", None)
            with_masks = roi_heads is not None and roi_heads.has_mask()
            batch["data_samples"] = [_with_targets(s, dataset, with_masks) for s in batch["data_samples"]]
        with torch.no_grad(), seeded(derived_seed(runner.seed, batch_idx)), _returning_losses(model):
            prepared = model.data_preprocessor(batch, False)
            _, losses = model.parse_losses(model(**prepared, mode="loss"))
        num_images = len(batch["inputs"])
        losses = {name: value.detach() * num_images for name, value in losses.items() if "loss" in name}
        losses[_COUNT] = torch.tensor(float(num_images), device=next(iter(losses.values())).device)
        self.sums = {name: value + self.sums.get(name, 0) for name, value in losses.items()}

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        sums = torch.stack(list(self.sums.values()))
        all_reduce(sums)
        values = dict(zip(self.sums, sums.tolist(), strict=True))
        count = values.pop(_COUNT)
        if metrics is not None:
            metrics.update({f"val/{name}": value / count for name, value in values.items()})


@contextmanager
def _returning_losses(model: nn.Module) -> Iterator[None]:
    """Make a model in eval mode return losses; its layers stay in eval mode.

    torchvision's detectors return losses only if they and their heads are in training mode. mmseg's segmentors do not
    care.
    """
    detector = getattr(model, "detector", None)
    parts = [part for part in (detector, *(getattr(detector, name, None) for name in ("rpn", "roi_heads"))) if part]
    for part in parts:
        part.training = True  # of this module only; `train()` would change the layers inside as well
    try:
        yield
    finally:
        for part in parts:
            part.training = False


def _with_targets(sample: BaseDataElement, dataset: Any, with_masks: bool) -> BaseDataElement:
    """Return a sample of the validation data with the fields that training needs."""
    targets = dataset.targets(sample.metainfo, with_masks)
    fields = {name: value.as_subclass(Tensor) for name, value in targets.items()}
    return BaseDataElement(metainfo=sample.metainfo, **fields)


def _draw(sample: Any, image: np.ndarray, metainfo: Mapping[str, Any]) -> np.ndarray:
    """Draw the truth beside the prediction."""
    if hasattr(sample, "pred_sem_seg"):
        maps = (field.data[0].cpu().numpy() for field in (sample.gt_sem_seg, sample.pred_sem_seg))
        return side_by_side(*(draw_classes(image, classes, metainfo["palette"]) for classes in maps))
    annotations, size = sample.metainfo["annotations"], image.shape[:2]
    truth = coco_truth(annotations, metainfo["category_ids"], *size, with_masks="masks" in sample)
    kept = sample.scores >= MIN_SCORE
    prediction = {name: value[kept].cpu().numpy() for name, value in sample.items()}
    return draw_comparison(image, truth, prediction, metainfo["classes"])
