"""Pixels of a chunk to its features."""

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
    """What is extracted, beside the model and the images.

    Attributes:
        protocol: how images are prepared.
        maps: write the levels as they are.
        pool: write the mean of each level over the cells that show the image, as vectors.
        dtype: of what is written: "float32", "float16" or "bfloat16".
        amp: compute under autocast in bfloat16.
        chunk: images that are computed, written and finished together.
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
            raise TwinsError(f"chunk={self.chunk}: give the number of images, 1 or more")
        if not self.maps and not self.pool:
            raise TwinsError("neither maps nor pooled vectors are to be written: choose one of them, or both")


@dataclass(frozen=True)
class Batch:
    """Features of those images of a chunk that have one size, on the model's device, in the type that is stored.

    Attributes:
        places: of the images in their chunk.
        levels: (B, C, H, W) each, finest first; empty where no maps are wanted.
        vectors: (B, C) each; empty where none are wanted.
    """

    places: list[int]
    levels: list[Tensor]
    vectors: list[Tensor]


class FeatureModel:
    """A backbone from uint8 pixels to what is stored."""

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
        """The features of a chunk, a batch a size; images that can't be read have zeros, or are left out."""
        if isinstance(decoded.pixels, Tensor):
            images = self._normalised(decoded.pixels)
            unreadable = [place for place, image in enumerate(decoded.images) if image.error is not None]
            return [self._features(list(range(len(images))), images, [images.shape[2:]] * len(images), unreadable)]
        # Padding images to a common size would change their features, so only those of one padded size go together.
        places_by_size: dict[tuple[int, int], list[int]] = {}
        for place, pixels in enumerate(decoded.pixels):
            if len(pixels):
                height, width = (side + -side % STEP for side in pixels.shape[:2])
                places_by_size.setdefault((height, width), []).append(place)
        batches = []
        for (height, width), places in places_by_size.items():
            images = torch.zeros(len(places), 3, height, width, device=self._device)
            sizes = [decoded.pixels[place].shape[:2] for place in places]
            for image, place, size in zip(images, places, sizes, strict=True):
                image[:, : size[0], : size[1]] = self._normalised(decoded.pixels[place][None])[0]
            batches.append(self._features(places, images, sizes, []))
        return batches

    def _features(self, places: list[int], images: Tensor, sizes: list[torch.Size], unreadable: list[int]) -> Batch:
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
            [self._rounded(level) for level in levels] if self._settings.maps else [],
            [self._rounded(vector) for vector in vectors],
        )

    def _normalised(self, pixels: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) to float32 (B, 3, H, W), by the arithmetic of torchvision."""
        images = pixels.to(self._device).permute(0, 3, 1, 2).float().div_(255)
        return images.sub_(self._mean).div_(self._std)

    def _rounded(self, values: Tensor) -> Tensor:
        if self._settings.dtype == "bfloat16":
            return values.bfloat16().float()
        return values.to(getattr(torch, self._settings.dtype))


def _means(level: Tensor, sizes: list[torch.Size], stride: int) -> Tensor:
    """(B, C): the mean of each image's cells, those that show but a part of it included, those of padding not."""
    means = []
    for cells, (height, width) in zip(level, sizes, strict=True):
        means.append(cells[:, : -(-height // stride), : -(-width // stride)].mean((1, 2)))
    return torch.stack(means)
