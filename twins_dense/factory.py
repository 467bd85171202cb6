"""Build models by name, with published weights or your own."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Sequence
from os import PathLike
from typing import Any

from .models.backbone import TwinsBackbone
from .models.classifier import TwinsClassifier
from .models.layers import PartialPatches, WindowPadding
from .models.spec import TwinsSpec, get_spec
from .weights.load import LoadReport, load_weights

_logger = logging.getLogger(__name__)


def create_backbone(
    variant: str | TwinsSpec,
    *,
    out_indices: Sequence[int] = (0, 1, 2, 3),
    window_padding: WindowPadding = "zeros",
    partial_patches: PartialPatches = "drop",
    norm_eps: float | None = None,
    level_norm: bool | None = None,
    drop_path_rate: float = 0.2,
    weights: str | PathLike[str] | None = None,
    checkpointing: bool = False,
) -> TwinsBackbone:
    """Build a Twins backbone for training in a dense model.

    To compute features with trained weights, call `load_backbone` instead.

    Args:
        variant: One of `list_variants()`, or a custom `TwinsSpec`.
        out_indices: Stages to return, in ascending order; (1, 2, 3) returns c3, c4 and c5.
        window_padding: "zeros", "mask" or "upstream_mask", see `LocalAttention`. PCPVT has no windows and ignores it.
        partial_patches: "drop" or "pad", for rows and columns that do not fill a patch, see `PatchEmbed`.
        norm_eps: Epsilon of every LayerNorm; `None` uses the two values of the spec. mmsegmentation trains with 1e-5
            everywhere.
        level_norm: Whether to add a LayerNorm after each stage, which normalises both the returned level and the input
            of the next stage. `None` uses the default of the family in dense models: true for SVT, false for PCPVT.
        drop_path_rate: Stochastic depth rate of the last block; rates grow linearly from 0 at the first. The official
            detection and segmentation models use 0.2, SVT-L for segmentation 0.3.
        weights: Path of a checkpoint or a catalog name, see `load_weights`. `None` keeps the official random
            initialisation.
        checkpointing: Whether to recompute blocks in the backward pass, which saves memory and changes neither outputs
            nor gradients.

    Warns:
        UserWarning: If parameters stay freshly initialised although `weights` is given, such as the level norms of an
            SVT with ImageNet weights. The warning names them.

    Raises:
        TwinsError: For unknown names, values out of range, or weights that do not fit.
    """
    spec = get_spec(variant)
    if norm_eps is not None:
        spec = dataclasses.replace(spec, norm_eps=norm_eps, reduction_norm_eps=norm_eps)
    net = TwinsBackbone(
        spec,
        out_indices=out_indices,
        window_padding=window_padding,
        partial_patches=partial_patches,
        level_norm=spec.level_norm if level_norm is None else level_norm,
        drop_path_rate=drop_path_rate,
        checkpointing=checkpointing,
    )
    if weights is not None:
        report = load_weights(net, weights)
        _logger.info("%s", report)
        if report.initialised:
            warnings.warn(
                f"{report.source} has no values for {', '.join(report.initialised)}: they are freshly initialised. "
                "That is right for training a dense model. To use the weights as they are, call "
                f"load_backbone({spec.name!r}, ...) or create_backbone({spec.name!r}, level_norm=False, ...)",
                stacklevel=2,
            )
    return net


def load_backbone(
    variant: str | TwinsSpec,
    weights: str | PathLike[str],
    *,
    out_indices: Sequence[int] = (0, 1, 2, 3),
    window_padding: WindowPadding = "zeros",
) -> TwinsBackbone:
    """Load a trained backbone to compute features: in eval mode, and with level norms only if the weights have them.

    Args:
        variant: One of `list_variants()`, or a custom `TwinsSpec`.
        weights: Path of a checkpoint or a catalog name, see `load_weights`.
        out_indices: See `create_backbone`.
        window_padding: See `create_backbone`.

    Raises:
        TwinsError: For unknown names, or weights that do not fit.
    """
    net, report = load_backbone_with_report(variant, weights, out_indices=out_indices, window_padding=window_padding)
    _logger.info("%s", report)
    return net


def load_backbone_with_report(
    variant: str | TwinsSpec, weights: str | PathLike[str], **options: Any
) -> tuple[TwinsBackbone, LoadReport]:
    """Load a backbone as `load_backbone` does, and also return the report of `load_weights`."""
    net = create_backbone(variant, **options)
    report = load_weights(net, weights)
    if report.initialised:
        net = create_backbone(variant, level_norm=False, **options)
        report = load_weights(net, weights)
    return net.eval(), report


def create_classifier(
    variant: str | TwinsSpec,
    *,
    num_classes: int = 1000,
    window_padding: WindowPadding = "zeros",
    drop_path_rate: float = 0.1,
    weights: str | PathLike[str] | None = None,
) -> TwinsClassifier:
    """Build a Twins image classifier.

    Args:
        variant: One of `list_variants()`, or a custom `TwinsSpec`.
        num_classes: Number of classes. The published weights have 1000. With another number, the head stays freshly
            initialised and the rest is loaded.
        window_padding: See `create_backbone`. At the published size, 224x224, the three modes are equal.
        drop_path_rate: Stochastic depth rate of the last block; 0.1 is the default of the official training script.
        weights: Path of a checkpoint or a catalog name, see `load_weights`. `None` keeps the official random
            initialisation.

    Raises:
        TwinsError: For unknown names, values out of range, or weights that do not fit.
    """
    net = TwinsClassifier(
        get_spec(variant), num_classes=num_classes, window_padding=window_padding, drop_path_rate=drop_path_rate
    )
    if weights is not None:
        _logger.info("%s", load_weights(net, weights))
    return net
