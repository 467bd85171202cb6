"""Images to predict on: files, folders, globs, PIL images, arrays and tensors, alone or in any iterable."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..data.image_files import UNREADABLE, check_image, convert_image, read_image
from ..data.image_lists import find_images
from ..errors import TwinsError, one_line

_SUPPORTED = "a path, a PIL image, a uint8 RGB array (H, W, 3), a uint8 tensor (3, H, W), or an iterable of these"


@dataclass(frozen=True)
class SourceImage:
    """An image to predict on.

    Attributes:
        array: uint8 RGB (H, W, 3).
        path: Path of the file; `None` for images that were given as objects.
    """

    array: np.ndarray
    path: Path | None = None


def read_sources(images: Any) -> SourceImage | Iterator[SourceImage]:
    """Read one image, or return an iterator that reads many images one by one.

    The EXIF orientation of files and PIL images is applied.

    Args:
        images: A path of a file, a PIL image, a uint8 RGB array (H, W, 3) or a uint8 RGB tensor (3, H, W) for one
            image. A folder, which is searched recursively, a glob, or an iterable of images for many.

    Raises:
        TwinsError: if there is no such file, or the value is not an image.
    """
    if isinstance(images, (str, Path)):
        if Path(images).is_dir() or (not Path(images).exists() and glob.has_magic(str(images))):
            return map(_read, find_images([str(images)]))
        return _read(images)
    if isinstance(images, (Image.Image, np.ndarray, torch.Tensor)):
        return _read(images)
    if isinstance(images, Iterable):
        return map(_read, images)
    return _read(images)


def readable(files: list[Path], *, skip_bad: bool) -> tuple[list[Path], list[str]]:
    """Check image files before a long run.

    Args:
        files: Paths of the files.
        skip_bad: Whether to leave out unreadable files instead of raising an error.

    Returns:
        The readable files, and one line for each file that is left out.

    Raises:
        TwinsError: if a file cannot be read, or with `skip_bad`, if none can be read.
    """
    good, left_out = [], []
    for file in files:
        try:
            check_image(file)
            good.append(file)
        except UNREADABLE as error:
            line = f"image {file} cannot be read ({one_line(error)})"
            if not skip_bad:
                raise TwinsError(f"{line}: replace it, or add --skip-bad to leave it out") from None
            left_out.append(line)
    if not good:
        raise TwinsError(f"none of the images can be read; the first: {left_out[0]}")
    return good, left_out


def _read(image: Any) -> SourceImage:
    if isinstance(image, (str, Path)):
        if not Path(image).is_file():
            raise TwinsError(f"image {str(image)!r}: no such file; check the path")
        return SourceImage(read_image(image, upright=True), Path(image))
    if isinstance(image, Image.Image):
        try:
            return SourceImage(np.array(convert_image(image, upright=True)))
        except UNREADABLE as error:
            raise TwinsError(f"PIL image {image!r} cannot be read ({one_line(error)})") from None
    if isinstance(image, torch.Tensor):
        if image.dtype != torch.uint8:
            remedy = "; convert values in 0..1 with (image * 255).round().to(torch.uint8)" * image.is_floating_point()
            raise TwinsError(f"the image tensor has dtype {image.dtype}: give uint8 values in 0..255{remedy}")
        if image.ndim != 3 or image.shape[0] != 3:
            raise TwinsError(f"the image tensor has shape {tuple(image.shape)}: give RGB images as (3, H, W)")
        array = image.permute(1, 2, 0).cpu().numpy()
    elif isinstance(image, np.ndarray):
        if image.dtype != np.uint8:
            raise TwinsError(f"the image array has dtype {image.dtype}: give uint8 values in 0..255")
        if image.ndim != 3 or image.shape[2] != 3:
            raise TwinsError(f"the image array has shape {image.shape}: give RGB images as (H, W, 3)")
        array = image
    else:
        raise TwinsError(f"the image is a {type(image).__qualname__}: give {_SUPPORTED}")
    if 0 in array.shape:
        raise TwinsError(f"the image has shape {array.shape}: give images with at least one pixel")
    return SourceImage(
        np.array(array, order="C")
    )  # a copy: the caller may reuse the buffer, and results keep the image
