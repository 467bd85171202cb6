"""Forward passes of detectron2's detectors that can be exported: the same modules and weights, the same detections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.modeling import GeneralizedRCNN, RetinaNet
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, StandardROIHeads
from detectron2.structures import ImageList
from torch import Tensor, nn

from ...deploy.exportable import Outputs
from ...errors import TwinsError
from ..detection_graph import best_of_classes, clip, keep_best, levels_of, normalise, pool_levels, suppress


class _Exportable(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.bgr = model.input_format == "BGR"

    def features(self, image: Tensor, size: Tensor) -> Any:
        mean, std = self.model.pixel_mean.flatten(), self.model.pixel_std.flatten()
        return self.model.backbone(normalise(image.flip(1) if self.bgr else image, size, mean, std))


class ExportableRCNN(_Exportable):
    """detectron2's Faster or Mask R-CNN for a single image, with outputs as described by `Exportable`.

    Raises:
        TwinsError: If the model has a part that cannot be exported.
    """

    def __init__(self, model: GeneralizedRCNN) -> None:
        super().__init__(model)
        rpn, heads = model.proposal_generator, model.roi_heads
        _check_part("proposal_generator", rpn, RPN)
        _check_part("anchor_generator", rpn.anchor_generator, DefaultAnchorGenerator)
        _check_part("roi_heads", heads, StandardROIHeads)
        _check_part("box_predictor", heads.box_predictor, FastRCNNOutputLayers)
        _check_part("box_pooler", heads.box_pooler, ROIPooler)
        _check_part("RPN box2box_transform", rpn.box2box_transform, Box2BoxTransform)
        _check_part("box_predictor.box2box_transform", heads.box_predictor.box2box_transform, Box2BoxTransform)

    def forward(self, image: Tensor, size: Tensor) -> Outputs:
        """Return boxes, scores, labels and, for Mask R-CNN, masks."""
        heads = self.model.roi_heads
        features = self.features(image, size)
        proposals = self._proposals(size, features)
        pooled = _pool(heads.box_pooler, [features[name] for name in heads.box_in_features], proposals)
        logits, deltas = heads.box_predictor(heads.box_head(pooled))
        boxes, scores, labels = self._detections(size, proposals, logits, deltas)
        if not heads.mask_on:
            return boxes, scores, labels
        pooled = _pool(heads.mask_pooler, [features[name] for name in heads.mask_in_features], boxes)
        masks = heads.mask_head.layers(pooled).sigmoid()
        classes = labels if masks.shape[1] > 1 else torch.zeros_like(labels)
        return boxes, scores, labels, masks[torch.arange(boxes.shape[0], device=boxes.device), classes]

    def _proposals(self, size: Tensor, features: Any) -> Tensor:
        rpn = self.model.proposal_generator
        maps = [features[name] for name in rpn.in_features]
        boxes, scores = [], []
        for level, anchors in zip(maps, _anchors(rpn.anchor_generator, maps), strict=True):
            (objectness,), (deltas,) = rpn.rpn_head([level])
            logits = _last(objectness, 1)[:, 0]
            best = keep_best(logits, rpn.pre_nms_topk[False])
            found = clip(rpn.box2box_transform.apply_deltas(_last(deltas, 4)[best], anchors[best]), size)
            usable = ((found[:, 2:] - found[:, :2]) > rpn.min_box_size).all(1)
            boxes.append(found)
            scores.append(suppress(found, torch.where(usable, logits[best].sigmoid(), -1.0), rpn.nms_thresh))
        found, score = torch.cat(boxes), torch.cat(scores)
        best = keep_best(score, rpn.post_nms_topk[False])
        return found[best[torch.nonzero(score[best] >= 0)[:, 0]]]

    def _detections(self, size: Tensor, proposals: Tensor, logits: Tensor, deltas: Tensor) -> Any:
        predictor = self.model.roi_heads.box_predictor
        scores = (logits.sigmoid() if predictor.use_sigmoid_ce else logits.softmax(1))[:, :-1]
        boxes = clip(predictor.box2box_transform.apply_deltas(deltas, proposals).reshape(-1, 4), size)
        boxes = boxes.reshape(-1, deltas.shape[1] // 4, 4)
        rows, labels = torch.nonzero(scores > predictor.test_score_thresh).unbind(1)
        places = labels if boxes.shape[1] > 1 else torch.zeros_like(labels)
        return _without_empty(
            *best_of_classes(
                boxes[rows, places],
                scores[rows, labels],
                labels,
                predictor.test_nms_thresh,
                predictor.test_topk_per_image,
            )
        )


class ExportableRetinaNet(_Exportable):
    """detectron2's RetinaNet for a single image, with outputs as described by `Exportable`.

    Raises:
        TwinsError: If the model has a part that cannot be exported.
    """

    def __init__(self, model: RetinaNet) -> None:
        super().__init__(model)
        _check_part("anchor_generator", model.anchor_generator, DefaultAnchorGenerator)
        _check_part("box2box_transform", model.box2box_transform, Box2BoxTransform)

    def forward(self, image: Tensor, size: Tensor) -> Outputs:
        """Return boxes, scores and labels."""
        model = self.model
        features = self.features(image, size)
        maps = [features[name] for name in model.head_in_features]
        (logits, deltas), boxes, scores, labels = model.head(maps), [], [], []
        for level, anchors in enumerate(_anchors(model.anchor_generator, maps)):
            score = _last(logits[level], model.num_classes).sigmoid().flatten()
            best = keep_best(score, model.test_topk_candidates)
            best = best[torch.nonzero(score[best] > model.test_score_thresh)[:, 0]]
            cells = best // model.num_classes
            boxes.append(model.box2box_transform.apply_deltas(_last(deltas[level], 4)[cells], anchors[cells]))
            scores.append(score[best])
            labels.append(best % model.num_classes)
        # detectron2 clips the boxes of RetinaNet last.
        found, score, label = best_of_classes(
            torch.cat(boxes),
            torch.cat(scores),
            torch.cat(labels),
            model.test_nms_thresh,
            model.max_detections_per_image,
        )
        return _without_empty(clip(found, size), score, label)


def reference_of(model: Any) -> Callable[[Tensor, Tensor], Outputs]:
    """Return detectron2's own forward pass, without resizing, with the inputs and outputs of `Exportable`."""

    @torch.no_grad()
    def reference(image: Tensor, size: Tensor) -> Outputs:
        height, width = size.tolist()
        pixels = (image.flip(1) if model.input_format == "BGR" else image)[0, :, :height, :width]
        padded = image.new_zeros(image.shape)
        padded[0, :, :height, :width] = (pixels - model.pixel_mean) / model.pixel_std
        images = ImageList(padded, [(height, width)])
        features = model.backbone(images.tensor)
        if isinstance(model, RetinaNet):
            maps = [features[name] for name in model.head_in_features]
            (found,) = model.forward_inference(images, maps, model.head(maps))
        else:
            proposals, _ = model.proposal_generator(images, features, None)
            (found,), _ = model.roi_heads(images, features, proposals, None)
        found.pred_boxes.clip((height, width))
        found = found[found.pred_boxes.nonempty()]
        outputs = found.pred_boxes.tensor, found.scores, found.pred_classes
        return (*outputs, found.pred_masks[:, 0]) if found.has("pred_masks") else outputs

    return reference


def _without_empty(boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Set the scores of boxes without an area to 0, and sort again."""
    usable = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
    scores, order = torch.where(usable, scores, 0.0).sort(descending=True)
    return boxes[order], scores, labels[order]


def _last(predictions: Tensor, channels: int) -> Tensor:
    """Rearrange predictions (1, A * channels, h, w) to (h * w * A, channels), the order of the anchors."""
    return predictions[0].permute(1, 2, 0).reshape(-1, channels)


def _anchors(generator: DefaultAnchorGenerator, maps: Sequence[Tensor]) -> list[Tensor]:
    anchors = []
    for level, cell, stride in zip(maps, generator.cell_anchors, generator.strides, strict=True):
        height, width = level.shape[2:]
        y, x = (
            torch.arange(n, device=cell.device).to(cell.dtype) * stride + generator.offset * stride
            for n in (height, width)
        )
        y, x = torch.meshgrid(y, x, indexing="ij")
        anchors.append((torch.stack([x, y, x, y], 2)[:, :, None] + cell).reshape(-1, 4))
    return anchors


def _pool(pooler: ROIPooler, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    levels = levels_of(boxes, len(maps), pooler.min_level, pooler.canonical_box_size, pooler.canonical_level)
    return pool_levels(maps, boxes, levels, lambda i, rois: pooler.level_poolers[i](maps[i], rois))


def _check_part(name: str, part: object, known: type) -> None:
    if type(part) is not known:
        raise TwinsError(
            f"the model's {name} is a {type(part).__name__}, which cannot be exported: "
            f"use detectron2's {known.__name__}"
        )
