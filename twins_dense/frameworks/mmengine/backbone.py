"""What the adapters to MMEngine's models share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log

from ...errors import TwinsError
from ...factory import create_backbone
from ...models.backbone import TwinsBackbone
from ...models.spec import TwinsSpec
from ...weights import load_weights


def build_backbone(
    variant: str | TwinsSpec | Mapping[str, Any] | None = None, weights: str | None = None, **options: Any
) -> TwinsBackbone:
    """`create_backbone` for configs, which reports loaded weights to the run's log.

    Args:
        variant: as there, or the arguments of `TwinsSpec.from_columns`.
        weights: as there.
        options: the other arguments of `create_backbone`; it refuses what it doesn't know.
    """
    if variant is None:
        raise TwinsError("model.backbone has no variant: name one, for example model.backbone.variant=svt_small")
    if isinstance(variant, Mapping):
        variant = TwinsSpec.from_columns(**variant)
    net = create_backbone(variant, **options)
    if weights is not None:
        print_log(f"Backbone weights {load_weights(net, weights)}", "current")
    return net
