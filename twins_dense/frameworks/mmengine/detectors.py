"""torchvision's Mask R-CNN and RetinaNet on a Twins pyramid; importing this module registers them in MMEngine."""

from __future__ import annotations

import inspect
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops.feature_pyramid_network import (
    ExtraFPNBlock,
    FeaturePyramidNetwork,
    LastLevelMaxPool,
    LastLevelP6P7,
)

from ...errors import TwinsError, did_you_mean
from ...models.backbone import TwinsBackbone
from . import checkpoints, coco_metric, detection_data, hooks, resuming, samplers, validation_hooks  # noqa: F401  (the imports register classes that configs name)
from .backbone import build_backbone
from .coco_metric import CocoMetric  # noqa: F401
from .config import num_detections

# Arguments of torchvision's detectors that our classes set themselves, or that make no sense in a config.
_OUR_ARGUMENTS = {"backbone", "num_classes", "min_size", "max_size", "kwargs"}


class TwinsFPN(nn.Module):
    """A Twins backbone with a feature pyramid network (arXiv 1612.03144), as the backbone of torchvision's detectors.

    Attributes:
        out_channels: Number of channels of every level.
    """

    def __init__(self, bottom_up: TwinsBackbone, out_channels: int, extra_blocks: ExtraFPNBlock) -> None:
        super().__init__()
        self.bottom_up = bottom_up
        self.fpn = FeaturePyramidNetwork(list(bottom_up.pyramid.channels), out_channels, extra_blocks)
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map images (B, 3, H, W) to levels "0" (finest), "1", …, the names that torchvision's RoI pooling expects."""
        levels = self.bottom_up(images)
        return self.fpn(OrderedDict((str(i), level) for i, level in enumerate(levels)))


class TorchvisionDetector(BaseModel):
    """A torchvision detector as a model of MMEngine's Runner.

    `forward` takes the samples of `CocoDetectionDataset`, collated into lists: uint8 RGB images of any size and their
    `BaseDataElement`s. torchvision's own transform inside the detector resizes the images, normalises them (ImageNet
    mean and standard deviation) and pads them to multiples of 32. Boxes and masks are in pixels of the input images.
    """

    # torchvision's Mask R-CNN reserves label 0 for the background; its RetinaNet does not. In our samples and results,
    # labels always start at 0.
    label_offset = 0

    def __init__(self, detector: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.detector = detector
        self.num_classes = num_classes

    def forward(
        self,
        inputs: Sequence[Tensor],
        data_samples: Sequence[BaseDataElement],
        mode: Literal["loss", "predict"] = "predict",
    ) -> dict[str, Tensor] | list[BaseDataElement]:
        """Return the losses by name, or the detections of each image on the CPU.

        Detections are `BaseDataElement`s with `boxes`, `scores`, `labels` and, for Mask R-CNN, `masks`.
        """
        images = [image.float() / 255 for image in inputs]
        if mode == "loss":
            targets = [{**dict(sample.items()), "labels": sample.labels + self.label_offset} for sample in data_samples]
            losses = self.detector(images, targets)
            # MMEngine sums the values with "loss" in their names; torchvision's RetinaNet calls one `classification`.
            return {name if name.startswith("loss") else f"loss_{name}": value for name, value in losses.items()}
        return [
            self._element(sample, output) for sample, output in zip(data_samples, self.detector(images), strict=True)
        ]

    def _element(self, sample: BaseDataElement, output: Mapping[str, Tensor]) -> BaseDataElement:
        fields = {**output, "labels": output["labels"] - self.label_offset}
        if "masks" in fields:
            fields["masks"] = fields["masks"].squeeze(1) > 0.5
        return BaseDataElement(metainfo=sample.metainfo, **{name: value.cpu() for name, value in fields.items()})

    def set_score_threshold(self, score: float) -> None:
        """Drop detections with a lower score before computing their masks, which take most of the memory for photos."""
        getattr(self.detector, "roi_heads", self.detector).score_thresh = score


@MODELS.register_module()
class TwinsMaskRCNN(TorchvisionDetector):
    """Mask R-CNN (arXiv 1703.06870) on c2–c5 and a pooled p6.

    Args:
        backbone: Arguments of `create_backbone`; `variant` may be the arguments of `TwinsSpec.from_columns`.
        num_classes: Number of classes without the background.
        min_size: Short side of the resized image in pixels. If several are given, training draws one for each image and
            evaluation uses the last.
        max_size: Limit of the long side in pixels.
        fpn_channels: Number of channels of the pyramid levels.
        anchor_sizes: Size of the anchors of each level, from fine to coarse, in pixels of the resized image; `None` for
            torchvision's default.
        max_dets: Largest number of detections per image.
        options: Further keyword arguments of torchvision's `MaskRCNN`.
    """

    label_offset = 1

    def __init__(
        self,
        backbone: Mapping[str, Any],
        num_classes: int,
        min_size: int | Sequence[int] = 800,
        max_size: int = 1333,
        fpn_channels: int = 256,
        anchor_sizes: Sequence[float] | None = None,
        max_dets: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        fpn = TwinsFPN(build_backbone(**backbone), fpn_channels, LastLevelMaxPool())
        _check_sizes(min_size, max_size)
        options = _checked_options(MaskRCNN, options)
        settings: dict[str, Any] = {"box_detections_per_img": num_detections(max_dets, options)}
        if anchor_sizes is not None:
            sizes = [(size,) for size in _checked_anchor_sizes(anchor_sizes, len(fpn.bottom_up.pyramid.names) + 1)]
            settings["rpn_anchor_generator"] = _anchor_generator(sizes)
        detector = MaskRCNN(fpn, num_classes + 1, min_size, max_size, **{**options, **settings})
        # detectron2's initialisation. With torchvision's, the standard deviation of the mask logits depends on the
        # number of classes: with one class, masks start out so certain and wrong that their loss is 9 instead of 0.7.
        nn.init.normal_(detector.roi_heads.mask_predictor.mask_fcn_logits.weight, std=0.001)
        super().__init__(detector, num_classes)


@MODELS.register_module()
class TwinsRetinaNet(TorchvisionDetector):
    """RetinaNet (arXiv 1708.02002) on c3–c5, with p6 computed from c5, and p7 from p6.

    The arguments are those of `TwinsMaskRCNN`. As in torchvision, each level has anchors of three sizes: the given one,
    and 2^(1/3) and 2^(2/3) times that, rounded down to whole pixels.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        num_classes: int,
        min_size: int | Sequence[int] = 800,
        max_size: int = 1333,
        fpn_channels: int = 256,
        anchor_sizes: Sequence[float] | None = None,
        max_dets: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        _check_sizes(min_size, max_size)
        bottom_up = build_backbone(**{"out_indices": (1, 2, 3), **backbone})
        extra_blocks = LastLevelP6P7(bottom_up.pyramid.channels[-1], fpn_channels)
        # Otherwise torchvision would compute p6 from p5 if c5 has as many channels as the pyramid.
        extra_blocks.use_P5 = False
        fpn = TwinsFPN(bottom_up, fpn_channels, extra_blocks)
        options = _checked_options(RetinaNet, options)
        settings: dict[str, Any] = {"detections_per_img": num_detections(max_dets, options)}
        if anchor_sizes is not None:
            sizes = _checked_anchor_sizes(anchor_sizes, len(bottom_up.pyramid.names) + 2)
            settings["anchor_generator"] = _anchor_generator(
                [(size, int(size * 2 ** (1 / 3)), int(size * 2 ** (2 / 3))) for size in sizes]
            )
        super().__init__(RetinaNet(fpn, num_classes, min_size, max_size, **{**options, **settings}), num_classes)


def _check_sizes(min_size: int | Sequence[int], max_size: int) -> None:
    short_sides = [min_size] if isinstance(min_size, int) else min_size
    if not all(isinstance(side, int) and 0 < side <= max_size for side in short_sides):
        raise TwinsError(f"model.min_size={min_size!r}: choose 1 to model.max_size={max_size!r} pixels")


def _checked_anchor_sizes(sizes: Any, num_levels: int) -> list[float]:
    numbers = list(sizes) if isinstance(sizes, (list, tuple)) else []
    # torchvision rounds half sides to whole pixels, so smaller anchors would have no area.
    if len(numbers) != num_levels or not all(type(size) in (int, float) and 2 <= size < math.inf for size in numbers):
        raise TwinsError(f"model.anchor_sizes={sizes!r}: give {num_levels} numbers, 2 or more, one for each level")
    return numbers


def _anchor_generator(sizes: Sequence[tuple[float, ...]]) -> AnchorGenerator:
    return AnchorGenerator(tuple(sizes), ((0.5, 1.0, 2.0),) * len(sizes))


def _checked_options(detector: type[nn.Module], options: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return the options, or raise `TwinsError` for an unknown one, which torchvision would ignore."""
    known = [name for name in inspect.signature(detector).parameters if name not in _OUR_ARGUMENTS]
    for name in options or {}:
        if name not in known:
            raise TwinsError(
                f"model.options has {name!r}, which torchvision's {detector.__name__} does not accept"
                f"{did_you_mean(name, known)}"
            )
    return options or {}
