"""Prepare image files for the model, and record where the prepared pixels lie in the image."""

from __future__ import annotations

import errno
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..data.image_files import MAX_SIDE, UNREADABLE, check_proportions, decode_image
from ..data.image_lists import ImageList
from ..errors import TwinsError, did_you_mean, one_line
from ..weights.preprocessing import OFFICIAL_PREPROCESSING
from . import EXTRACTION_PROTOCOLS

# Error numbers of problems with the file itself. Others come from the disk, the network or the machine.
_FILE_ERRORS = (
    None,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EACCES,
    errno.EINVAL,
)
STEP = 32  # pixels: the coarsest stride, so that sizes divisible by it have whole cells at every level


@dataclass(frozen=True)
class Protocol:
    """Preparation of images. Pixels are then scaled to 0..1 and normalised by the mean and std of ImageNet.

    * "crop": resize the short side to `size` (bicubic, Pillow), then cut a square of `size` from the centre.
    * "imagenet": like "crop", but resize the short side to `size` * 256 / 224, as for the published classifiers.
    * "native": keep the pixels, and pad the bottom and the right to multiples of 32 with zeros after normalisation.

    Attributes:
        name: Name of the protocol, one of `EXTRACTION_PROTOCOLS`.
        size: Side of the square in pixels, a multiple of 32; `None` for "native".
        upright: Whether to apply the EXIF orientation.
    """

    name: str
    size: int | None
    upright: bool = True

    def __post_init__(self) -> None:
        if self.name not in EXTRACTION_PROTOCOLS:
            raise TwinsError(f"unknown protocol {self.name!r}{did_you_mean(self.name, EXTRACTION_PROTOCOLS)}")
        if self.name == "native":
            if self.size is not None:
                raise TwinsError(f"size={self.size} with the protocol native: leave out the size")
        elif self.size is None or self.size < 2 * STEP or self.size % STEP:
            raise TwinsError(f"size={self.size}: give a multiple of {STEP}, {2 * STEP} or more")
        elif self.size > MAX_SIDE:
            raise TwinsError(f"size={self.size}: give at most {MAX_SIDE}, which already takes gigabytes")

    @property
    def short_side(self) -> int | None:
        """Length of the short side after resizing, in pixels; `None` if images are not resized."""
        if self.size is None or self.name == "crop":
            return self.size
        official = OFFICIAL_PREPROCESSING
        assert official.crop is not None
        return int(self.size * official.short_side / official.crop)

    def apply(self, image: Image.Image) -> tuple[np.ndarray, Geometry]:
        """Return the prepared pixels of an RGB image, uint8 (H, W, 3), and where they lie in the image."""
        width, height = image.size
        if self.size is None or self.short_side is None:
            return np.array(image), Geometry(height, width, height, width, 0, 0, height, width)
        check_proportions(image, self.short_side)
        # Like torchvision, truncate the long side instead of rounding it.
        resized_height, resized_width = (self.short_side * side // min(height, width) for side in (height, width))
        image = image.resize((resized_width, resized_height), Image.Resampling.BICUBIC)
        top, left = (round((side - self.size) / 2) for side in (resized_height, resized_width))
        pixels = np.array(image.crop((left, top, left + self.size, top + self.size)))
        return pixels, Geometry(height, width, resized_height, resized_width, top, left, self.size, self.size)


@dataclass(frozen=True)
class Geometry:
    """Position of the model's input in the image, in pixels.

    A point x of the input lies at (x + crop_left) * width / resized_width in the image, and likewise for y.

    Attributes:
        height: Height of the image, after the EXIF orientation has been applied if the protocol says so.
        width: Width of the image, likewise.
        resized_height: Height of the whole image after resizing.
        resized_width: Width of the whole image after resizing.
        crop_top: First row of the resized image that the model sees.
        crop_left: First column of the resized image that the model sees.
        valid_height: Number of input rows that show the image; the rows below are padding.
        valid_width: Number of input columns that show the image; the columns to the right are padding.
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
    """Result of reading an image file.

    Attributes:
        pixels: uint8 (H, W, 3); `None` if the file cannot be read.
        geometry: Position of the pixels in the image; `None` if the file cannot be read.
        sha256: SHA-256 of the file; `None` if its bytes cannot be read.
        error: Reason why the file cannot be read; `None` if it can.
    """

    pixels: Tensor | None
    geometry: Geometry | None
    sha256: str | None
    error: str | None


def decode(path: str, protocol: Protocol) -> Decoded:
    """Read and prepare an image. If the file is bad, the result contains the reason.

    Raises:
        TwinsError: If the disk fails, which may be temporary and may affect other images too.
    """
    sha256 = None
    try:
        content = Path(path).read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        pixels, geometry = protocol.apply(decode_image(io.BytesIO(content), upright=protocol.upright))
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.errno not in _FILE_ERRORS:
            raise TwinsError(
                f"{path} cannot be read now ({error.strerror}): finished chunks are kept; run the same command again"
            ) from None
        # Pillow's own message only names the buffer.
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else one_line(error)
        return Decoded(None, None, sha256, reason or type(error).__name__)
    return Decoded(torch.from_numpy(pixels), geometry, sha256, None)


@dataclass(frozen=True)
class Chunk:
    """Images that are computed, written and finished together.

    Attributes:
        index: Position among all chunks.
        start: Row of the first image.
        ids: Ids of the images.
        paths: Paths of the images.
    """

    index: int
    start: int
    ids: Sequence[str]
    paths: Sequence[str]


class ChunkSampler:
    """Sampler of the chunks with the given indices, which are built one at a time.

    Attributes:
        num_images: Number of images in these chunks.
    """

    def __init__(self, images: ImageList, chunk_size: int, indices: Sequence[int]) -> None:
        self._images, self._chunk_size, self._indices = images, chunk_size, indices
        self.num_images = sum(min(chunk_size, len(images.ids) - index * chunk_size) for index in indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[Chunk]:
        for index in self._indices:
            rows = slice(index * self._chunk_size, (index + 1) * self._chunk_size)
            yield Chunk(index, rows.start, self._images.ids[rows], self._images.paths[rows])


@dataclass(frozen=True)
class DecodedChunk:
    """A chunk with its pixels. Images of one size share one tensor, which is cheaper to send between processes.

    Attributes:
        chunk: The chunk.
        images: The images, without their pixels.
        pixels: For images of one size, uint8 (B, H, W, 3) with zeros for unreadable images; otherwise one tensor
            (H, W, 3) per image.
    """

    chunk: Chunk
    images: list[Decoded]
    pixels: Tensor | list[Tensor]


class ChunkDecoder(Dataset):
    """Data set that maps chunks to their pixels in data loader workers. It holds no list of the images."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol

    def __getitem__(self, chunk: Chunk) -> DecodedChunk:
        images = [decode(path, self.protocol) for path in chunk.paths]
        size = self.protocol.size
        pixels: Tensor | list[Tensor]
        if size is None:
            pixels = [torch.empty(0, 0, 3, dtype=torch.uint8) if i.pixels is None else i.pixels for i in images]
        else:
            blank = torch.zeros(size, size, 3, dtype=torch.uint8)
            pixels = torch.stack([blank if image.pixels is None else image.pixels for image in images])
        return DecodedChunk(chunk, [replace(image, pixels=None) for image in images], pixels)
