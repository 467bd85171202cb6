"""Trained segmentors of mmsegmentation in the form that can be exported."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch import Tensor, nn

from ...deploy.exportable import SIZE_STEP, Exportable, Outputs
from ...errors import TwinsError, shown
from .config import test_part
from .predictors import SegmentationPredictor


def exportable_segmentor(config: Config, checkpoint: str | Path) -> Exportable:
    """Load a trained segmentor in the form that can be exported.

    The logits have the size of the network's image. A model with a single channel, x, gets two: 0 and x minus the logit
    of its threshold, so that the larger one gives the label as in mmsegmentation.

    Args:
        config: From `load_config` or `from_data`.
        checkpoint: Checkpoint from a training run of the config, or a published segmentor.

    Raises:
        TwinsError: if the config or the checkpoint cannot be used, or the test settings cannot be expressed in a file.
    """
    resize = describe_resizing(test_part(config, "dataloader").dataset.pipeline)
    predictor = SegmentationPredictor(config, checkpoint, torch.device("cpu"))
    model: Any = predictor.model
    mode = model.test_cfg.get("mode", "whole")
    if mode != "whole":
        raise TwinsError(
            f"model.test_cfg.mode is {mode!r}: only models that are tested on whole images can be exported"
        )
    preprocessor = model.data_preprocessor
    padding = dict(preprocessor.test_cfg or {})
    if set(padding) - {"size_divisor"}:
        raise TwinsError(
            f"model.data_preprocessor.test_cfg is {shown(str(padding))}: only size_divisor can be exported, remove the "
            "rest"
        )
    preprocessing = None
    if preprocessor._enable_normalize:
        preprocessing = {name: getattr(preprocessor, name).flatten().tolist() for name in ("mean", "std")}
    about = {
        "kind": "segmentor",
        "classes": list(predictor.classes),
        "palette": [list(color) for color in predictor.palette],
        "first_value": predictor.first_value,
        "threshold": None,
        "resize": resize,
        "size_step": math.lcm(SIZE_STEP, padding.get("size_divisor") or 1),
        "preprocessing": preprocessing,
        "engine": "mmengine",
    }
    return Exportable(WholeSegmentor(model).eval(), Reference(model), ("logits",), about)


def describe_resizing(pipeline: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the resizing of a test pipeline: the bounds of the shorter and the longer side, and the interpolation.

    Raises:
        TwinsError: for a step that an exported file cannot describe.
    """
    resize = None
    for step in pipeline:
        kind, options = step["type"], {key: value for key, value in step.items() if key != "type"}
        if str(kind).startswith("Load") or kind == "PackSegInputs":
            continue
        scale = options.pop("scale", None)
        sides = (scale, scale) if isinstance(scale, int) else scale
        if kind != "Resize" or resize or options != {"keep_ratio": True} or not isinstance(sides, (tuple, list)):
            raise TwinsError(
                f"the test pipeline has the step {shown(str(dict(step)))}: only one Resize with scale=(W, H) and "
                "keep_ratio=True can be exported"
            )
        # mmcv resizes uint8 images by OpenCV's bilinear interpolation.
        resize = {"short": min(sides), "long": max(sides), "mode": "cv2"}
    return resize


class WholeSegmentor(nn.Module):
    """The forward pass of an `EncoderDecoder` from raw pixels to logits, for `torch.export` at dynamic sizes.

    Args:
        model: The segmentor. The weights are shared with it.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        weights = {id(weight): weight for weight in [*model.parameters(), *model.buffers()]}
        self.model = copy.deepcopy(model, weights)  # the copy has the same tensors, and its modules can be replaced
        self.model.auxiliary_head = None  # for training only
        _replace_modules(self.model)

    def forward(self, image: Tensor, size: Tensor) -> tuple[Tensor]:
        """Map an image and its size (see `Exportable`) to logits (1, K, H, W)."""
        preprocessor, head = self.model.data_preprocessor, self.model.decode_head
        if not preprocessor.channel_conversion:
            image = image.flip(1)  # the model expects BGR
        if preprocessor._enable_normalize:
            image = (image - preprocessor.mean) / preprocessor.std
        height, width = image.shape[2:]
        inside = (torch.arange(height) < size[0]).view(-1, 1) & (torch.arange(width) < size[1])
        image = torch.where(inside, image, float(preprocessor.pad_val))
        logits = head(self.model.extract_feat(image))
        return (
            _classes(F.interpolate(logits, (height, width), mode="bilinear", align_corners=head.align_corners), head),
        )


class Reference:
    """The forward pass of mmsegmentation itself, on the same inputs as `WholeSegmentor`."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, image: Tensor, size: Tensor) -> Outputs:
        height, width = size.tolist()
        bgr = image[0, [2, 1, 0], :height, :width]
        sample = self.model.data_preprocessor({"inputs": [bgr], "data_samples": [_Sample()]}, False)["inputs"]
        bottom, right = (wanted - found for wanted, found in zip(image.shape[2:], sample.shape[2:], strict=True))
        sample = F.pad(sample, (0, right, 0, bottom), value=float(self.model.data_preprocessor.pad_val))
        meta = {"ori_shape": (height, width), "img_shape": (height, width), "pad_shape": tuple(image.shape[2:])}
        return (_classes(self.model.inference(sample, [meta]), self.model.decode_head),)


class _Sample:
    """A sample that ignores the metadata of the padding."""

    def set_metainfo(self, meta: Mapping[str, Any]) -> None:
        pass


class _AdaptivePooling(nn.Module):
    """Adaptive average pooling as two products with matrices, because the exporters need a fixed input size for it."""

    def __init__(self, output_size: Any) -> None:
        super().__init__()
        rows, columns = (output_size, output_size) if isinstance(output_size, int) else output_size
        self.rows, self.columns = int(rows), int(columns)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, rows, columns)."""
        height, width = x.shape[2:]
        return self._averages(height, self.rows) @ x @ self._averages(width, self.columns).T

    @staticmethod
    def _averages(size: int, parts: int) -> Tensor:
        """Return the matrix (parts, size) whose row i averages the positions from i*size/parts to (i+1)*size/parts."""
        part, position = torch.arange(parts).view(-1, 1), torch.arange(size)
        start, end = part * size // parts, ((part + 1) * size + parts - 1) // parts
        inside = ((position >= start) & (position < end)).float()
        return inside / inside.sum(1, keepdim=True)


class _Enlarge(nn.Module):
    """mmsegmentation's `Upsample`, which computes its size by a conversion that fixes it in an export."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        factors = module.scale_factor if isinstance(module.scale_factor, tuple) else (module.scale_factor,) * 2
        self.factors = tuple(int(factor) for factor in factors)
        if self.factors != tuple(factors):
            raise TwinsError(f"the model enlarges maps by {module.scale_factor}: only whole numbers can be exported")
        self.options = {"mode": module.mode, "align_corners": module.align_corners}

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.factors
        return F.interpolate(x, (x.shape[2] * rows, x.shape[3] * columns), **self.options)


def _replace_modules(net: nn.Module) -> None:
    from mmseg.models.utils import Upsample  # imported now, because `segmentors` must be imported before

    for name, module in net.named_children():
        if isinstance(module, nn.AdaptiveAvgPool2d):
            setattr(net, name, _AdaptivePooling(module.output_size))
        elif isinstance(module, Upsample) and module.scale_factor:
            setattr(net, name, _Enlarge(module))
        else:
            _replace_modules(module)


def _classes(logits: Tensor, head: Any) -> Tensor:
    if logits.shape[1] > 1:
        return logits
    threshold = torch.tensor(head.threshold or 0.5)
    return torch.cat([torch.zeros_like(logits), logits - torch.logit(threshold)], dim=1)
