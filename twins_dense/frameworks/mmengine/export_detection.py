"""Forward passes of torchvision's detectors that can be exported.

torchvision's own forward passes contain Python loops and sizes that depend on the data, which `torch.export` rejects.
These run the same modules, without copies of the weights, and return the same detections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign, roi_align

from ...deploy.exportable import Exportable, Outputs
from ...errors import TwinsError
from ..detection_graph import best_of_classes, clip, keep_best, levels_of, normalise, pool_levels, suppress
from .detectors import TorchvisionDetector

# torchvision drops detections with a shorter side, in pixels.
_MIN_SIDE = 1e-2


def exportable_detector(model: TorchvisionDetector, meta: Mapping[str, Any]) -> Exportable:
    """Return a trained detector in the form that can be exported.

    Args:
        model: The detector, on the CPU, in eval mode.
        meta: Metadata of its data set, with `classes` and `category_ids`.

    Raises:
        TwinsError: If the detector has a part that cannot be exported.
    """
    detector: Any = model.detector
    masks = isinstance(detector, MaskRCNN)
    net = (ExportableMaskRCNN if masks else ExportableRetinaNet)(detector).eval()
    heads = detector.roi_heads if masks else detector
    transform = detector.transform
    return Exportable(
        net,
        _mask_rcnn_reference(detector) if masks else _retinanet_reference(detector),
        ("boxes", "scores", "labels", "masks") if masks else ("boxes", "scores", "labels"),
        {
            "kind": "detector",
            "engine": "mmengine",
            "classes": list(meta["classes"]),
            "category_ids": list(meta["category_ids"]),
            "masks": masks,
            "score_threshold": float(heads.score_thresh),
            "max_detections": int(heads.detections_per_img),
            "thresholds": None,
            "resize": {"short": transform.min_size[-1], "long": transform.max_size, "mode": "bilinear"},
            # In the units of the input, 0..255.
            "preprocessing": {"mean": net.mean.tolist(), "std": net.std.tolist()},
        },
    )


class ExportableMaskRCNN(nn.Module):
    """torchvision's Mask R-CNN for a single image, with outputs as described by `Exportable`.

    Raises:
        TwinsError: If the detector has a part that cannot be exported.
    """

    def __init__(self, detector: MaskRCNN) -> None:
        super().__init__()
        self.detector = detector
        self.strides = detector.backbone.bottom_up.pyramid.strides
        heads = detector.roi_heads
        for name, pool in (("box_roi_pool", heads.box_roi_pool), ("mask_roi_pool", heads.mask_roi_pool)):
            _check_part(name, pool, MultiScaleRoIAlign)
            if pool.sampling_ratio < 1:
                raise TwinsError(
                    f"the sampling_ratio={pool.sampling_ratio} of the detector's {name} cannot be exported: "
                    "set it to 2, which is torchvision's default"
                )
            if not set(pool.featmap_names) <= {str(i) for i in range(4)}:
                raise TwinsError(
                    f"the featmap_names={pool.featmap_names} of the detector's {name} cannot be exported: "
                    "choose from '0', '1', '2' and '3', the levels of the backbone"
                )
        _check_part("rpn_anchor_generator", detector.rpn.anchor_generator, AnchorGenerator)
        self.mean = nn.Buffer(_per_channel(detector.transform.image_mean), persistent=False)
        self.std = nn.Buffer(_per_channel(detector.transform.image_std), persistent=False)

    def forward(self, image: Tensor, size: Tensor) -> Outputs:
        """Return boxes, scores, labels and masks."""
        heads = self.detector.roi_heads
        features = self.detector.backbone(normalise(image, size, self.mean, self.std))
        proposals = self._proposals(image, size, list(features.values()))
        pooled = self._pool(heads.box_roi_pool, features, proposals)
        logits, deltas = heads.box_predictor(heads.box_head(pooled))
        boxes, scores, labels = self._detections(size, proposals, logits, deltas)
        pooled = self._pool(heads.mask_roi_pool, features, boxes)
        masks = heads.mask_predictor(heads.mask_head(pooled)).sigmoid()
        return boxes, scores, labels, masks[torch.arange(boxes.shape[0], device=boxes.device), labels + 1]

    def _proposals(self, image: Tensor, size: Tensor, maps: Sequence[Tensor]) -> Tensor:
        rpn = self.detector.rpn
        boxes, scores = [], []
        for level, anchors in zip(maps, _anchors(rpn.anchor_generator, image, maps), strict=True):
            (objectness,), (deltas,) = rpn.head([level])
            logits = _last(objectness, 1)[:, 0]
            best = keep_best(logits, rpn.pre_nms_top_n())
            found = clip(rpn.box_coder.decode_single(_last(deltas, 4)[best], anchors[best]), size)
            score = logits[best].sigmoid()
            usable = ((found[:, 2:] - found[:, :2]) >= rpn.min_size).all(1) & (score >= rpn.score_thresh)
            boxes.append(found)
            scores.append(suppress(found, torch.where(usable, score, -1.0), rpn.nms_thresh))
        found, score = torch.cat(boxes), torch.cat(scores)
        best = keep_best(score, rpn.post_nms_top_n())
        return found[best[torch.nonzero(score[best] >= 0)[:, 0]]]

    def _pool(self, pool: MultiScaleRoIAlign, features: Mapping[str, Tensor], boxes: Tensor) -> Tensor:
        # The pyramid has more levels than the backbone; they have other names than "0", "1", ….
        chosen = [i for i in range(len(self.strides)) if str(i) in pool.featmap_names]
        maps = [features[str(i)] for i in chosen]
        strides = [self.strides[i] for i in chosen]
        return pool_levels(
            maps,
            boxes,
            levels_of(boxes, len(maps), strides[0].bit_length() - 1, pool.canonical_scale, pool.canonical_level),
            lambda i, rois: roi_align(maps[i], rois, pool.output_size, 1 / strides[i], pool.sampling_ratio),
        )

    def _detections(
        self, size: Tensor, proposals: Tensor, logits: Tensor, deltas: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        heads = self.detector.roi_heads
        boxes = clip(heads.box_coder.decode_single(deltas, proposals).reshape(-1, 4), size)
        boxes = boxes.reshape(-1, logits.shape[1], 4)[:, 1:]  # without the background
        scores = logits.softmax(1)[:, 1:]
        usable = (scores > heads.score_thresh) & ((boxes[:, :, 2:] - boxes[:, :, :2]) >= _MIN_SIDE).all(2)
        rows, labels = torch.nonzero(usable).unbind(1)
        return best_of_classes(
            boxes[rows, labels], scores[rows, labels], labels, heads.nms_thresh, heads.detections_per_img
        )


class ExportableRetinaNet(nn.Module):
    """torchvision's RetinaNet for a single image, with outputs as described by `Exportable`.

    Raises:
        TwinsError: If the detector has a part that cannot be exported.
    """

    def __init__(self, detector: RetinaNet) -> None:
        super().__init__()
        self.detector = detector
        _check_part("anchor_generator", detector.anchor_generator, AnchorGenerator)
        self.mean = nn.Buffer(_per_channel(detector.transform.image_mean), persistent=False)
        self.std = nn.Buffer(_per_channel(detector.transform.image_std), persistent=False)

    def forward(self, image: Tensor, size: Tensor) -> Outputs:
        """Return boxes, scores and labels."""
        detector = self.detector
        maps = list(detector.backbone(normalise(image, size, self.mean, self.std)).values())
        boxes, scores, labels = [], [], []
        for level, anchors in zip(maps, _anchors(detector.anchor_generator, image, maps), strict=True):
            outputs = detector.head([level])
            logits, deltas = outputs["cls_logits"][0], outputs["bbox_regression"][0]
            score = logits.sigmoid().flatten()
            best = keep_best(score, detector.topk_candidates)
            best = best[torch.nonzero(score[best] > detector.score_thresh)[:, 0]]
            cells = best // logits.shape[1]
            boxes.append(clip(detector.box_coder.decode_single(deltas[cells], anchors[cells]), size))
            scores.append(score[best])
            labels.append(best % logits.shape[1])
        return best_of_classes(
            torch.cat(boxes), torch.cat(scores), torch.cat(labels), detector.nms_thresh, detector.detections_per_img
        )


def _mask_rcnn_reference(detector: Any) -> Callable[[Tensor, Tensor], Outputs]:
    heads = detector.roi_heads
    # torchvision's pools keep the scales that they infer from their first image. That of a small image with a wide
    # padding would be wrong.
    names = [str(i) for i in range(len(detector.backbone.bottom_up.pyramid.strides))]
    maps = {
        name: torch.zeros(1, 1, 512 // stride, 512 // stride)
        for name, stride in zip(names, detector.backbone.bottom_up.pyramid.strides, strict=True)
    }
    for pool in (heads.box_roi_pool, heads.mask_roi_pool):
        pool.scales = None
        pool(maps, [torch.tensor([[0.0, 0.0, 32.0, 32.0]])], [(512, 512)])

    @torch.no_grad()
    def reference(image: Tensor, size: Tensor) -> Outputs:
        images = _prepared(detector, image, size)
        features = detector.backbone(images.tensors)
        proposals, _ = detector.rpn(images, features)
        (found,), _ = heads(features, proposals, images.image_sizes)
        return found["boxes"], found["scores"], found["labels"] - 1, found["masks"].squeeze(1)

    return reference


def _retinanet_reference(detector: Any) -> Callable[[Tensor, Tensor], Outputs]:
    cells = detector.anchor_generator.num_anchors_per_location()

    @torch.no_grad()
    def reference(image: Tensor, size: Tensor) -> Outputs:
        images = _prepared(detector, image, size)
        maps = list(detector.backbone(images.tensors).values())
        counts = [level.shape[2] * level.shape[3] * cells for level, cells in zip(maps, cells, strict=True)]
        outputs = {name: list(values.split(counts, 1)) for name, values in detector.head(maps).items()}
        anchors = [list(detector.anchor_generator(images, maps)[0].split(counts))]
        (found,) = detector.postprocess_detections(outputs, anchors, images.image_sizes)
        return found["boxes"], found["scores"], found["labels"]

    return reference


def _prepared(detector: Any, image: Tensor, size: Tensor) -> ImageList:
    """Normalise and pad an image as torchvision does, without resizing it."""
    height, width = size.tolist()
    pixels = detector.transform.normalize(image[0, :, :height, :width] / 255)
    padded = F.pad(pixels, (0, image.shape[3] - width, 0, image.shape[2] - height))
    return ImageList(padded[None], [(height, width)])


def _check_part(name: str, part: object, known: type) -> None:
    if type(part) is not known:
        raise TwinsError(
            f"the detector's {name} is a {type(part).__name__}, which cannot be exported: "
            f"use torchvision's {known.__name__}"
        )


def _per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values) * 255


def _last(predictions: Tensor, channels: int) -> Tensor:
    """Rearrange predictions (1, A * channels, h, w) to (h * w * A, channels), the order of the anchors."""
    return predictions[0].permute(1, 2, 0).reshape(-1, channels)


def _anchors(generator: AnchorGenerator, image: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
    """Return the anchors (h * w * A, 4) of each level, as `AnchorGenerator` computes them."""
    anchors = []
    for level, cell in zip(maps, generator.cell_anchors, strict=True):
        height, width = level.shape[2:]
        y = torch.arange(height, device=image.device) * (image.shape[2] // height)
        x = torch.arange(width, device=image.device) * (image.shape[3] // width)
        y, x = torch.meshgrid(y, x, indexing="ij")
        corners = torch.stack([x, y, x, y], 2).to(cell.dtype)
        anchors.append((corners[:, :, None] + cell).reshape(-1, 4))
    return anchors
