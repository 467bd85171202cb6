"""Compute the features of a chunk from its pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import TwinsError
from ..weights.preprocessing import OFFICIAL_PREPROCESSING
from . import DTYPES
from .prepare import STEP, DecodedChunk, Protocol


@dataclass(frozen=True)
class Settings:
    """Settings of an extraction, apart from the model and the images.

    Attributes:
        protocol: Preparation of the images.
        maps: Whether to write the maps of the levels.
        pool: Whether to write one vector per level, its mean over the cells that show the image.
        dtype: Type of the written values: "float32", "float16" or "bfloat16".
        amp: Whether to compute under autocast in bfloat16.
        chunk: Number of images that are computed, written and finished together.
    """

    protocol: Protocol
    maps: bool = True
    pool: bool = False
    dtype: str = "float32"
    amp: bool = False
    chunk: int = 16

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise TwinsError(f"dtype={self.dtype!r}: choose one of {', '.join(DTYPES)}")
        if self.chunk < 1:
            raise TwinsError(f"chunk={self.chunk}: give a number of images, 1 or more")
        if not self.maps and not self.pool:
            raise TwinsError("neither maps nor pooled vectors would be written: choose at least one of them")


@dataclass(frozen=True)
class Batch:
    """Features of those images in a chunk that have the same size, on the model's device, in the written type.

    Attributes:
        places: Positions of the images in their chunk.
        levels: One tensor (B, C, H, W) per level, finest first; empty if no maps are written.
        vectors: One tensor (B, C) per level; empty if no vectors are written.
    """

    places: list[int]
    levels: list[Tensor]
    vectors: list[Tensor]


class FeatureModel:
    """A backbone together with the normalisation of the pixels and the pooling and rounding of the features.

    Args:
        net: The backbone, in eval mode, on `device`; it may be compiled.
        strides: Strides of the backbone's levels.
        settings: Settings of the extraction.
        device: Device of the backbone.
    """

    def __init__(
        self,
        net: Callable[[Tensor], tuple[Tensor, ...]],
        strides: tuple[int, ...],
        settings: Settings,
        device: torch.device,
    ) -> None:
        self._net, self._strides, self._settings, self._device = net, strides, settings, device
        self._mean = torch.tensor(OFFICIAL_PREPROCESSING.mean, device=device)[:, None, None]
        self._std = torch.tensor(OFFICIAL_PREPROCESSING.std, device=device)[:, None, None]

    @torch.inference_mode()
    def __call__(self, decoded: DecodedChunk) -> list[Batch]:
        """Return the features of a chunk, one batch per image size.

        The maps of unreadable images are zero. With the protocol "native", these images are left out.
        """
        # Full float32 precision and reproducible results, also on GPUs.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            if isinstance(decoded.pixels, Tensor):
                images = self._normalise(decoded.pixels)
                unreadable = [place for place, image in enumerate(decoded.images) if image.error is not None]
                return [self._compute(list(range(len(images))), images, [images.shape[2:]] * len(images), unreadable)]
            return self._compute_many_sizes(decoded.pixels)

    def _compute_many_sizes(self, pixels: list[Tensor]) -> list[Batch]:
        # Padding images to a common size would change their features, so all images of a batch have one padded size.
        places_by_size: dict[tuple[int, int], list[int]] = {}
        for place, image in enumerate(pixels):
            if len(image):
                height, width = (side + -side % STEP for side in image.shape[:2])
                places_by_size.setdefault((height, width), []).append(place)
        batches = []
        for (height, width), places in places_by_size.items():
            images = torch.zeros(len(places), 3, height, width, device=self._device)
            sizes = [pixels[place].shape[:2] for place in places]
            for image, place, size in zip(images, places, sizes, strict=True):
                image[:, : size[0], : size[1]] = self._normalise(pixels[place][None])[0]
            batches.append(self._compute(places, images, sizes, []))
        return batches

    def _compute(self, places: list[int], images: Tensor, sizes: list[torch.Size], unreadable: list[int]) -> Batch:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._settings.amp):
            levels = [level.float() for level in self._net(images)]
        vectors = []
        if self._settings.pool:
            vectors = [_means(level, sizes, stride) for level, stride in zip(levels, self._strides, strict=True)]
        if self._settings.maps and unreadable:
            index = torch.tensor(unreadable, device=self._device)
            levels = [level.index_fill(0, index, 0) for level in levels]
        return Batch(
            places,
            [self._round(level) for level in levels] if self._settings.maps else [],
            [self._round(vector) for vector in vectors],
        )

    def _normalise(self, pixels: Tensor) -> Tensor:
        """Convert uint8 (B, H, W, 3) to float32 (B, 3, H, W) with the same arithmetic as torchvision."""
        images = pixels.to(self._device).permute(0, 3, 1, 2).float().div_(255)
        return images.sub_(self._mean).div_(self._std)

    def _round(self, values: Tensor) -> Tensor:
        """Round to the written type. bfloat16 values are returned as float32, in which they are stored."""
        if self._settings.dtype == "bfloat16":
            return values.bfloat16().float()
        return values.to(getattr(torch, self._settings.dtype))


def _means(level: Tensor, sizes: list[torch.Size], stride: int) -> Tensor:
    """Return the mean (B, C) over the cells that show at least a part of the image, and not only padding."""
    means = []
    for cells, (height, width) in zip(level, sizes, strict=True):
        means.append(cells[:, : -(-height // stride), : -(-width // stride)].mean((1, 2)))
    return torch.stack(means)
