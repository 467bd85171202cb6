"""From an image file to the pixels that a model takes, and where they lie in the image."""

from __future__ import annotations

import errno
import hashlib
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..data.image_files import UNREADABLE, check_proportions, decode_image
from ..errors import TwinsError, did_you_mean
from ..weights.preprocessing import OFFICIAL_PREPROCESSING

PROTOCOLS = ("crop", "imagenet", "native")
# Errors of reading that say something of a file. Others are of the disk, the network or the machine.
_OF_THE_FILE = (
    None,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EACCES,
    errno.EINVAL,
)
STEP = 32  # pixels; the coarsest stride, so that every cell of every level is whole


@dataclass(frozen=True)
class Protocol:
    """How images become what a model takes; then pixels are scaled to 0..1 and normalised by ImageNet's mean and std.

    * "crop": the short side is resized to `size` (bicubic, Pillow), and a square of `size` is cut from the middle.
    * "imagenet": the same, but the short side is resized to `size` * 256 / 224: the published classifiers' protocol.
    * "native": pixels as they are; zeros (after normalisation) fill up to multiples of 32 at the bottom and right.

    Attributes:
        name: one of `PROTOCOLS`.
        size: side of the square in pixels, a multiple of 32; `None` for "native".
        upright: turn photos as their EXIF orientation says.
    """

    name: str
    size: int | None
    upright: bool = True

    def __post_init__(self) -> None:
        if self.name not in PROTOCOLS:
            raise TwinsError(f"unknown protocol {self.name!r}{did_you_mean(self.name, PROTOCOLS)}")
        if self.name == "native":
            if self.size is not None:
                raise TwinsError(f"size={self.size} with the protocol native: leave the size away")
        elif self.size is None or self.size < 2 * STEP or self.size % STEP:
            raise TwinsError(f"size={self.size}: give a multiple of {STEP}, {2 * STEP} or more")

    @property
    def short_side(self) -> int | None:
        """To which images are resized, in pixels."""
        if self.size is None or self.name == "crop":
            return self.size
        official = OFFICIAL_PREPROCESSING
        assert official.crop is not None
        return int(self.size * official.short_side / official.crop)

    def apply(self, image: Image.Image) -> tuple[np.ndarray, Geometry]:
        """An RGB image to uint8 (H, W, 3), and where that lies in the image."""
        width, height = image.size
        if self.size is None or self.short_side is None:
            return np.array(image), Geometry(height, width, height, width, 0, 0, height, width)
        check_proportions(image, self.short_side)
        # The long side is cut, not rounded, as torchvision does it.
        resized_height, resized_width = (self.short_side * side // min(height, width) for side in (height, width))
        image = image.resize((resized_width, resized_height), Image.Resampling.BICUBIC)
        top, left = (round((side - self.size) / 2) for side in (resized_height, resized_width))
        pixels = np.array(image.crop((left, top, left + self.size, top + self.size)))
        return pixels, Geometry(height, width, resized_height, resized_width, top, left, self.size, self.size)


@dataclass(frozen=True)
class Geometry:
    """Sizes in pixels; x of the model's input is (x + crop_left) * width / resized_width of the image, y likewise.

    Attributes:
        height: of the image, turned upright where the protocol says so.
        width: likewise.
        resized_height: of the whole image as it was resized.
        resized_width: likewise.
        crop_top: first row of the resized image that the model sees.
        crop_left: first column.
        valid_height: rows of the model's input that are image; what lies below is padding.
        valid_width: columns likewise.
    """

    height: int
    width: int
    resized_height: int
    resized_width: int
    crop_top: int
    crop_left: int
    valid_height: int
    valid_width: int


@dataclass(frozen=True)
class Decoded:
    """An image file as it was read.

    Attributes:
        pixels: uint8 (H, W, 3); `None` where it can't be read.
        geometry: likewise.
        sha256: of the file; `None` where there is none.
        error: why it can't be read.
    """

    pixels: Tensor | None
    geometry: Geometry | None
    sha256: str | None
    error: str | None


def decode(path: str, protocol: Protocol) -> Decoded:
    """Read and prepare an image; what is wrong with the file is noted.

    Raises:
        TwinsError: where the disk, and not the file, is in the way: that passes, and may concern all others too.
    """
    sha256 = None
    try:
        content = Path(path).read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        pixels, geometry = protocol.apply(decode_image(io.BytesIO(content), upright=protocol.upright))
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.errno not in _OF_THE_FILE:
            raise TwinsError(
                f"{path} can't be read now ({error.strerror}): what is finished is kept; run the same command again"
            ) from None
        # Pillow names the buffer, which says nothing.
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else " ".join(str(error).split())
        return Decoded(None, None, sha256, reason or type(error).__name__)
    return Decoded(torch.from_numpy(pixels), geometry, sha256, None)


@dataclass(frozen=True)
class Chunk:
    """Images that are worked on, written and finished together.

    Attributes:
        index: its place among all chunks.
        start: row of its first image.
        ids: of its images.
        paths: of its images.
    """

    index: int
    start: int
    ids: Sequence[str]
    paths: Sequence[str]


@dataclass(frozen=True)
class DecodedChunk:
    """A chunk with its images read: those of one size in one tensor, which reaches the model's process in one piece.

    Attributes:
        chunk: what it is.
        images: of each image, without pixels.
        pixels: for one size uint8 (B, H, W, 3), zeros for unreadable images; else one (H, W, 3) an image.
        seconds: that reading took.
    """

    chunk: Chunk
    images: list[Decoded]
    pixels: Tensor | list[Tensor]
    seconds: float


class ChunkDecoder(Dataset):
    """Runs in worker processes: a chunk's paths to its pixels. Holds nothing itself, however many images there are."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol

    def __getitem__(self, chunk: Chunk) -> DecodedChunk:
        start = time.perf_counter()
        images = [decode(path, self.protocol) for path in chunk.paths]
        size = self.protocol.size
        pixels: Tensor | list[Tensor]
        if size is None:
            pixels = [torch.empty(0, 0, 3, dtype=torch.uint8) if i.pixels is None else i.pixels for i in images]
        else:
            blank = torch.zeros(size, size, 3, dtype=torch.uint8)
            pixels = torch.stack([blank if image.pixels is None else image.pixels for image in images])
        images = [Decoded(None, image.geometry, image.sha256, image.error) for image in images]
        return DecodedChunk(chunk, images, pixels, time.perf_counter() - start)
