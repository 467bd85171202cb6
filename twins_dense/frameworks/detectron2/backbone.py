"""A Twins backbone for detectron2: an adapter for LazyConfig users, registered builders for CfgNode users."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from torch import Tensor, nn

from ...errors import TwinsError
from ...factory import create_backbone
from ...models.backbone import TwinsBackbone
from ...models.spec import TwinsSpec
from ...weights import load_weights

try:
    from detectron2.config import CfgNode
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
    from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] != "detectron2":
        raise
    raise ImportError(
        "detectron2 is not installed: install torch, then "
        "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git' "
        "(its own guide: https://detectron2.readthedocs.io/tutorials/install.html)"
    ) from None

# Below detectron2's logger, so that what stands here appears in a run's log.
logger = logging.getLogger("detectron2.twins_dense")

# detectron2's names of the levels c2 to c5.
_FEATURES = ["res2", "res3", "res4", "res5"]


class D2Twins(Backbone):
    """Gives detectron2 the levels of a Twins backbone under its names: `res2` (stride 4) to `res5` (stride 32).

    Args:
        net: from `create_backbone` or `build_net`; its `out_indices` decide on the levels.
    """

    def __init__(self, net: TwinsBackbone) -> None:
        super().__init__()
        self.net = net
        self._names = tuple(_FEATURES[index] for index in net.out_indices)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W), RGB, normalised, H and W multiples of 32, to (B, C, H / stride, W / stride) a level."""
        return dict(zip(self._names, self.net(images), strict=True))

    @property
    def size_divisibility(self) -> int:
        """Input pixels: the stride of the architecture's last stage, so that no stage drops cells."""
        return self.net.spec.strides[-1]

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride by name."""
        levels = zip(self._names, self.net.pyramid.channels, self.net.pyramid.strides, strict=True)
        return {name: ShapeSpec(channels=channels, stride=stride) for name, channels, stride in levels}


def build_net(
    variant: str | Mapping[str, Any], *, weights: str | PathLike[str] | None = None, **options: Any
) -> TwinsBackbone:
    """What `create_backbone` builds, from values that a config file can hold; the load report goes to detectron2's log.

    Args:
        variant: one of `list_variants()`, or the arguments of `TwinsSpec.from_columns`.
        weights: checkpoint file that `load_weights` reads.
        options: further arguments of `create_backbone`.
    """
    spec = TwinsSpec.from_columns(**variant) if isinstance(variant, Mapping) else variant
    net = create_backbone(spec, **options)
    if weights:
        logger.info("Backbone weights %s", load_weights(net, weights))
    return net


def optimizer_params(model: nn.Module, *, no_decay: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser: weight decay is 0 where a parameter's name holds one of `no_decay`.

    The published 3x recipes name `pos_block` (the positional encodings) and `norm`.
    """
    groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[any(part in name for part in no_decay)].append(parameter)
    return [
        {"params": parameters, **({"weight_decay": 0.0} if without_decay else {})}
        for without_decay, parameters in groups.items()
        if parameters
    ]


def add_twins_config(cfg: CfgNode) -> None:
    """Add `MODEL.TWINS` and `SOLVER.NO_DECAY` to a config; call it before the YAML file is merged."""
    cfg.MODEL.TWINS = CfgNode()
    cfg.MODEL.TWINS.VARIANT = "svt_small"
    cfg.MODEL.TWINS.OUT_FEATURES = list(_FEATURES)
    cfg.MODEL.TWINS.WINDOW_PADDING = "zeros"
    # None: the family's dense default.
    cfg.MODEL.TWINS.LEVEL_NORM = None
    cfg.MODEL.TWINS.DROP_PATH_RATE = 0.2
    cfg.MODEL.TWINS.CHECKPOINTING = False
    # Of the backbone, in any format of `load_weights`; MODEL.WEIGHTS is for detectron2 checkpoints of whole models.
    cfg.MODEL.TWINS.WEIGHTS = ""
    # For `optimizer_params`, which AdamW needs here; detectron2's own build_optimizer makes SGD.
    cfg.SOLVER.NO_DECAY = []


@BACKBONE_REGISTRY.register()
def build_twins_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> D2Twins:
    """The backbone of `cfg.MODEL.TWINS`."""
    twins = cfg.MODEL.TWINS
    for name in twins.OUT_FEATURES:
        if name not in _FEATURES:
            raise TwinsError(f"MODEL.TWINS.OUT_FEATURES has {name!r}: give some of {', '.join(_FEATURES)}")
    net = build_net(
        twins.VARIANT,
        out_indices=[_FEATURES.index(name) for name in twins.OUT_FEATURES],
        window_padding=twins.WINDOW_PADDING,
        level_norm=twins.LEVEL_NORM,
        drop_path_rate=twins.DROP_PATH_RATE,
        checkpointing=twins.CHECKPOINTING,
        weights=twins.WEIGHTS,
    )
    return D2Twins(net)


@BACKBONE_REGISTRY.register()
def build_twins_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """With an FPN and a pooled p6, for Mask R-CNN."""
    return _build_fpn(cfg, build_twins_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_twins_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """With an FPN, p6 from res5 and p7, for RetinaNet."""
    bottom_up = build_twins_backbone(cfg, input_shape)
    channels = bottom_up.output_shape()["res5"].channels
    return _build_fpn(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS))


def _build_fpn(cfg: CfgNode, bottom_up: D2Twins, top_block: nn.Module) -> FPN:
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
