"""Evaluation during training: the metrics and the losses on the validation images."""

from __future__ import annotations

import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch import nn
from torch.utils.data import DataLoader

from ...data.coco import is_instance
from ...errors import TwinsError
from ...seeds import derived_seed
from .checks import dataset_meta_of, dataset_name_of
from .data import check_masks
from .evaluation import build_test, score
from .guards import building
from .samples import SampleDrawer

_CHANGED_BY_TRAINING = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


class Validation:
    """Evaluate a model on the test data of a config, as often as needed.

    Args:
        config: A complete config.
        model: The model to evaluate, not inside DistributedDataParallel.
        with_losses: Whether to compute the losses of the test images as well.
        num_samples: Number of images to draw at each evaluation.
    """

    def __init__(self, config: DictConfig, model: nn.Module, *, with_losses: bool, num_samples: int) -> None:
        self.model = model
        self.seed = config.train.seed
        with building(config):
            self.loader, self.evaluator = build_test(config)
            self.loss_loader = _build_loss_loader(config) if with_losses else None
        self.sampler = None
        name = dataset_name_of(config.dataloader.test)
        if num_samples and name in DatasetCatalog:
            classes = dataset_meta_of(name)["classes"]
            folder = Path(config.train.output_dir) / "samples"
            self.sampler = SampleDrawer(DatasetCatalog.get(name), classes, folder, num_samples, self.seed)

    @property
    def size(self) -> int:
        """Number of images."""
        return len(self.loader.dataset)

    def __call__(self, iteration: int) -> tuple[dict[str, Any], dict[str, float]]:
        """Return the results of the evaluator by task, which only the first process has, and the losses by name.

        Args:
            iteration: Number of finished iterations, for the names of the pictures.
        """
        evaluators = [self.evaluator]
        if self.sampler is not None:
            self.sampler.iteration = iteration
            evaluators.append(self.sampler)
        results = score(self.model, self.loader, evaluators)
        losses = {} if self.loss_loader is None else mean_losses(self.model, self.loss_loader, self.seed)
        return results, losses


def mean_losses(model: nn.Module, loader: DataLoader, seed: int) -> dict[str, float]:
    """Return the mean losses of the images of a loader in all processes, as `val/NAME`, and their sum as `val/loss`.

    The losses are those of training, but without dropout, stochastic depth and updates of running statistics. The
    proposals that are sampled for an image depend only on the seed. The modes of the modules, torch's random state and
    the event storage of the run remain as they are.

    Args:
        model: The model, not inside DistributedDataParallel.
        loader: Loader of single images with their ground truth.
        seed: Seed of the run.
    """
    modes = {module: module.training for module in model.modules()}
    # RetinaNet's running mean of the number of positive anchors, which it creates in its first iteration.
    normalizer = {name: value for name, value in vars(model).items() if name == "loss_normalizer"}
    sums: Counter[str] = Counter()
    try:
        model.train()
        for module in model.modules():
            if module is getattr(model, "backbone", None) or isinstance(module, _CHANGED_BY_TRAINING):
                module.eval()
        with torch.random.fork_rng(), torch.no_grad(), EventStorage():
            for batch in loader:
                torch.manual_seed(derived_seed(seed, zlib.crc32(str(batch[0]["image_id"]).encode())))
                vars(model).pop("loss_normalizer", None)
                vars(model).update(normalizer)
                losses = {f"val/{name}": value.item() for name, value in model(batch).items()}
                sums.update({**losses, "val/loss": sum(losses.values()), "images": 1})
    finally:
        for module, training in modes.items():
            module.training = training
        vars(model).pop("loss_normalizer", None)
        vars(model).update(normalizer)
    totals: Counter[str] = Counter()
    for part in comm.all_gather(sums):
        totals.update(part)
    count = totals.pop("images")
    return {name: value / count for name, value in totals.items()}


def _build_loss_loader(config: DictConfig) -> DataLoader:
    """Return a loader of the test images, resized as for evaluation, with ground truth as for training."""
    name = dataset_name_of(config.dataloader.test)
    mapper, test_mapper = instantiate(config.dataloader.train.mapper), instantiate(config.dataloader.test.mapper)
    if name not in DatasetCatalog or not hasattr(mapper, "augmentations") or not hasattr(test_mapper, "augmentations"):
        raise TwinsError(
            "--val-loss needs a registered test data set and detectron2's DatasetMapper: leave it out for this config"
        )
    mapper.augmentations = test_mapper.augmentations
    records = DatasetCatalog.get(name)
    check_masks(records, mapper)
    for record in records:
        for annotation in filter(is_instance, record.get("annotations", ())):
            if getattr(mapper, "use_instance_mask", False) and not annotation.get("segmentation"):
                raise TwinsError(
                    f"image {record['file_name']} has an instance without a mask, so the loss of its masks cannot be "
                    "computed: leave out --val-loss, or add the mask"
                )
    return build_detection_test_loader(records, mapper=mapper, num_workers=config.dataloader.test.num_workers)
