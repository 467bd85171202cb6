"""The Twins backbone for detectron2: an adapter for LazyConfigs, and registered builders for CfgNode configs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from torch import Tensor, nn

from ...errors import TwinsError
from ...factory import create_backbone
from ...models.backbone import TwinsBackbone, init_for_padding
from ...models.spec import TwinsSpec
from ...weights.load import load_weights

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

# A child of detectron2's logger, so that its messages appear in the log of a run.
logger = logging.getLogger("detectron2.twins_dense")

# detectron2's names for the levels c2 to c5.
_FEATURES = ["res2", "res3", "res4", "res5"]


class D2Twins(Backbone):
    """A Twins backbone with detectron2's names for its levels: `res2` (stride 4) to `res5` (stride 32).

    Args:
        net: Backbone from `create_backbone` or `build_net`; its `out_indices` choose the levels.
    """

    def __init__(self, net: TwinsBackbone) -> None:
        super().__init__()
        self.net = net
        self._names = tuple(_FEATURES[index] for index in net.out_indices)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the pyramid levels.

        Args:
            images: Normalised RGB images (B, 3, H, W); H and W are multiples of 32.

        Returns:
            The levels by name, each of shape (B, C, H / stride, W / stride).
        """
        return dict(zip(self._names, self.net(images), strict=True))

    @property
    def size_divisibility(self) -> int:
        """The stride of the last stage in pixels; no stage drops pixels of images whose sides are multiples of it."""
        return self.net.spec.strides[-1]

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return the channels and the stride of each level, by name."""
        levels = zip(self._names, self.net.pyramid.channels, self.net.pyramid.strides, strict=True)
        return {name: ShapeSpec(channels=channels, stride=stride) for name, channels, stride in levels}


def build_net(
    variant: str | Mapping[str, Any],
    *,
    weights: str | PathLike[str] | None = None,
    freeze: str | None = None,
    **options: Any,
) -> TwinsBackbone:
    """Build a backbone as `create_backbone` does, from values that a config file can contain.

    A report on the loaded weights goes to detectron2's log. Without weights, the initialisation suits padded images,
    see `init_for_padding`.

    Args:
        variant: One of `list_variants()`, or the arguments of `TwinsSpec.from_columns`.
        weights: A file or a catalog name (see `load_weights`).
        freeze: Part that is not trained, see `TwinsBackbone.freeze`.
        options: Further arguments of `create_backbone`.
    """
    spec = TwinsSpec.from_columns(**variant) if isinstance(variant, Mapping) else variant
    net = create_backbone(spec, **options)
    if weights:
        logger.info("Backbone weights %s", load_weights(net, weights))
    else:
        init_for_padding(net)
    if freeze:
        net.freeze(freeze)
    return net


def optimizer_params(model: nn.Module, *, no_decay: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return parameter groups for an optimiser, without weight decay for some of the parameters.

    These are the parameters whose names contain one of the strings in `no_decay`. The published 3x recipes exempt
    `pos_block` (the positional encodings) and `norm`.
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
    """Add `MODEL.TWINS` and `SOLVER.NO_DECAY` to a config; call it before the YAML file is merged.

    `MODEL.BACKBONE.FREEZE_AT`, the number of stages that are not trained, becomes 0 as in the published recipes;
    detectron2's default of 2 is meant for ResNets.
    """
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.TWINS = CfgNode()
    cfg.MODEL.TWINS.VARIANT = "svt_small"
    cfg.MODEL.TWINS.OUT_FEATURES = list(_FEATURES)
    cfg.MODEL.TWINS.WINDOW_PADDING = "zeros"
    # None means the default of the family for dense models: with norms for SVT, without for PCPVT.
    cfg.MODEL.TWINS.LEVEL_NORM = None
    cfg.MODEL.TWINS.DROP_PATH_RATE = 0.2
    cfg.MODEL.TWINS.CHECKPOINTING = False
    # Backbone weights in any format of `load_weights`; MODEL.WEIGHTS is for detectron2 checkpoints of whole models.
    cfg.MODEL.TWINS.WEIGHTS = ""
    # The part that is not trained, see `TwinsBackbone.freeze`; "" for the stages of MODEL.BACKBONE.FREEZE_AT.
    cfg.MODEL.TWINS.FREEZE = ""
    # For `optimizer_params` and AdamW; detectron2's own build_optimizer builds SGD.
    cfg.SOLVER.NO_DECAY = []


@BACKBONE_REGISTRY.register()
def build_twins_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> D2Twins:
    """Build the backbone that `cfg.MODEL.TWINS` describes.

    Raises:
        TwinsError: If the config has no `MODEL.TWINS`, or a setting is unknown or out of range.
    """
    if "TWINS" not in cfg.MODEL:
        raise TwinsError("the config has no MODEL.TWINS: call add_twins_config(cfg) before the YAML file is merged")
    twins = cfg.MODEL.TWINS
    for name in twins.OUT_FEATURES:
        if name not in _FEATURES:
            raise TwinsError(f"MODEL.TWINS.OUT_FEATURES has {name!r}: choose from {', '.join(_FEATURES)}")
    if list(twins.OUT_FEATURES) != [name for name in _FEATURES if name in twins.OUT_FEATURES] or not twins.OUT_FEATURES:
        raise TwinsError(
            f"MODEL.TWINS.OUT_FEATURES={list(twins.OUT_FEATURES)}: list one or more of {', '.join(_FEATURES)}, in this "
            "order and each once"
        )
    net = build_net(
        twins.VARIANT,
        out_indices=[_FEATURES.index(name) for name in twins.OUT_FEATURES],
        window_padding=twins.WINDOW_PADDING,
        level_norm=twins.LEVEL_NORM,
        drop_path_rate=twins.DROP_PATH_RATE,
        checkpointing=twins.CHECKPOINTING,
        weights=twins.WEIGHTS,
        freeze=_frozen_part(cfg),
    )
    return D2Twins(net)


@BACKBONE_REGISTRY.register()
def build_twins_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build the backbone with an FPN and a pooled p6, for Mask R-CNN."""
    return _build_fpn(cfg, build_twins_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_twins_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build the backbone with an FPN, p6 computed from res5, and p7 from p6, for RetinaNet."""
    bottom_up = build_twins_backbone(cfg, input_shape)
    channels = bottom_up.net.spec.stages[-1].dim
    return _build_fpn(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS))


def _build_fpn(cfg: CfgNode, bottom_up: D2Twins, top_block: nn.Module) -> FPN:
    found, levels = list(cfg.MODEL.TWINS.OUT_FEATURES), list(cfg.MODEL.FPN.IN_FEATURES)
    if not levels or levels != _FEATURES[-len(levels) :]:  # the top block extends the level of res5
        raise TwinsError(
            f"MODEL.FPN.IN_FEATURES={levels}: list consecutive levels that end with res5, such as "
            f"{_FEATURES} or {_FEATURES[1:]}"
        )
    missing = [name for name in levels if name not in found]
    if missing:
        raise TwinsError(
            f"MODEL.TWINS.OUT_FEATURES={found} lacks {', '.join(missing)}, which MODEL.FPN.IN_FEATURES={levels} needs: "
            "list all of them"
        )
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def _frozen_part(cfg: CfgNode) -> str | None:
    """Return the part that is not trained, from either of the two settings for it (see `TwinsBackbone.freeze`)."""
    num_stages, part = cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.TWINS.FREEZE
    if type(num_stages) is not int or not 0 <= num_stages <= len(_FEATURES):
        raise TwinsError(
            f"MODEL.BACKBONE.FREEZE_AT={num_stages!r}: choose the number of stages that are not trained, from 0 to "
            f"{len(_FEATURES)}"
        )
    if num_stages and part:
        raise TwinsError(
            f"MODEL.BACKBONE.FREEZE_AT={num_stages} and MODEL.TWINS.FREEZE={part!r}: set one of them and leave the "
            "other one out"
        )
    return f"stages:{num_stages}" if num_stages else part
