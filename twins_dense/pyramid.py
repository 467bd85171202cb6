"""What a backbone promises to the heads that read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PyramidSpec:
    """Levels of a feature pyramid, finest first.

    Attributes:
        names: `c2`, `c3`, … as detection papers count them; `cN` of a published variant has stride 2**N.
        channels: of each level.
        strides: input pixels per cell of each level.
    """

    names: tuple[str, ...]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
