"""`torch.jit.trace`, which detectron2's export uses: a trace works at other sizes than the traced one."""

from __future__ import annotations

import pytest
import torch
from contracts import SLIM_PCPVT, SLIM_SVT, random_backbone

import twins_dense as td

# Feature maps whose sides are multiples of the window (224, 448) and not; batches of other sizes; odd sides.
SIZES = [(1, 64, 96), (2, 96, 64), (1, 224, 224), (2, 160, 288), (1, 33, 47)]


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("traced_size", [(1, 3, 64, 96), (1, 3, 224, 224)], ids=str)
@pytest.mark.parametrize(
    ("spec", "window_padding", "partial_patches"),
    [
        (SLIM_SVT, "zeros", "drop"),
        (SLIM_SVT, "mask", "pad"),
        (SLIM_SVT, "upstream_mask", "drop"),
        (SLIM_PCPVT, "zeros", "pad"),
    ],
)
def test_a_trace_works_at_every_size(
    spec: td.TwinsSpec, window_padding: str, partial_patches: str, traced_size: tuple[int, ...]
) -> None:
    net = random_backbone(spec, window_padding=window_padding, partial_patches=partial_patches).eval()
    with torch.no_grad():
        traced = torch.jit.trace(net, torch.randn(traced_size), check_trace=False)
        for batch, height, width in SIZES:
            images = torch.randn(batch, 3, height, width)
            for ours, expected in zip(traced(images), net(images), strict=True):
                torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
