"""Twins in mmsegmentation; importing this module registers our backbone and data sets.

The import also makes mmseg work without mmcv's compiled operators. In configs, `twins_dense.TwinsBackbone` takes the
arguments of `create_backbone`, and `twins_dense.SegmentationDataset` those of `segmentation_data.SegmentationDataset`.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from mmengine.registry import Registry

from ...errors import requires_extra
from . import checkpoints, hooks, resuming, samplers, validation_hooks  # noqa: F401  (the imports register classes that configs name)
from .backbone import build_backbone
from .mmcv_ops import stand_in

with requires_extra("segmentation"), warnings.catch_warnings():
    stand_in()  # before mmseg is imported
    # mmcv-lite lacks this operator, and Twins models do not use it.
    warnings.filterwarnings("ignore", "Fail to import ``MultiScaleDeformableAttention``")
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=False)

from mmengine.structures import PixelData
from mmseg.models import segmentors
from mmseg.registry import DATASETS, METRICS, MODELS

from .iou_metric import IoUMetric
from .segmentation_data import ADE20KDataset, SegmentationDataset


class SegTTAModel(segmentors.SegTTAModel):
    """mmsegmentation's SegTTAModel, whose results also have the averages over all views as `seg_logits`.

    mmsegmentation leaves the logits of the last view there. Ours are the logarithms of the averaged probabilities or,
    for a model of one channel, the averaged probabilities.
    """

    def merge_preds(self, data_samples_list: list[Any]) -> list[Any]:
        merged = super().merge_preds(data_samples_list)
        for sample, views in zip(merged, data_samples_list, strict=True):
            logits = torch.stack([view.seg_logits.data for view in views])
            is_binary = self.module.out_channels == 1
            mean = logits.mean(0) if is_binary else logits.softmax(1).mean(0).log()
            sample.set_data({"seg_logits": PixelData(data=mean)})
        return merged


# mmseg warns about its own use of a deprecated function, and about settings of the published recipes.
for message in (
    "``build_loss`` would be deprecated",
    "Default ``avg_non_ignore`` is False",
    "The shape of value will convert from",
):
    warnings.filterwarnings("ignore", message, UserWarning)

# Children of mmseg's registries: their scope makes `twins_dense.NAME` work in configs.
_models = Registry("model", parent=MODELS, scope="twins_dense")
_datasets = Registry("dataset", parent=DATASETS, scope="twins_dense")
_metrics = Registry("metric", parent=METRICS, scope="twins_dense")
_models.register_module(name="TwinsBackbone", module=build_backbone)
_datasets.register_module(module=SegmentationDataset)
_datasets.register_module(module=ADE20KDataset)
_models.register_module(module=SegTTAModel)
_metrics.register_module(module=IoUMetric)
