"""Build the Twins backbone from an MMEngine config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log

from ...errors import TwinsError
from ...factory import create_backbone
from ...models.backbone import TwinsBackbone, init_for_padding
from ...models.spec import TwinsSpec
from ...weights.load import load_weights


def build_backbone(
    variant: str | TwinsSpec | Mapping[str, Any] | None = None,
    weights: str | None = None,
    freeze: str | None = None,
    **options: Any,
) -> TwinsBackbone:
    """Build a backbone as `create_backbone` does, and log a report on the loaded weights.

    Without weights, its initialisation suits padded images, see `init_for_padding`.

    Args:
        variant: As in `create_backbone`, or the arguments of `TwinsSpec.from_columns`.
        weights: As in `create_backbone`.
        freeze: Part that is not trained, see `TwinsBackbone.freeze`.
        options: Further arguments of `create_backbone`.
    """
    if variant is None:
        raise TwinsError("model.backbone has no variant: choose one, for example model.backbone.variant=svt_small")
    if isinstance(variant, Mapping):
        variant = TwinsSpec.from_columns(**variant)
    net = create_backbone(variant, **options)
    if weights is None:
        init_for_padding(net)
    else:
        print_log(f"Backbone weights {load_weights(net, weights)}", "current")
    if freeze is not None:
        net.freeze(freeze)
    return net
