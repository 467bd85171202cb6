"""mmsegmentation's own Twins backbone, as a reference to compare ours with."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ...factory import create_backbone
from ...models.backbone import TwinsBackbone
from ...models.spec import get_spec
from ...weights.load import load_weights
from . import enable_mmseg


def mmseg_pair(variant: str, device: str) -> tuple[TwinsBackbone, Any]:
    """Return our backbone and mmsegmentation's with the same weights.

    mmsegmentation's backbone is built from its published config; ours uses the same settings: an epsilon of 1e-5 in
    LayerNorm, masked windows and padded patches.
    """
    enable_mmseg()
    import mmseg
    from mmseg.registry import MODELS

    spec = dataclasses.replace(get_spec(variant), norm_eps=1e-5)
    family, size = variant.split("_")
    folder = Path(mmseg.__file__).parent / ".mim" / "configs" / "twins"
    (path,) = folder.glob(f"twins_{family}-{size[0]}_uperhead_*.py")
    config = Config.fromfile(path).model.backbone
    theirs = MODELS.build({**config, "init_cfg": None, "_scope_": "mmseg"}).to(device).eval()
    ours = create_backbone(spec, window_padding="upstream_mask", partial_patches="pad").to(device).eval()
    load_weights(ours, theirs.state_dict())
    return ours, theirs
