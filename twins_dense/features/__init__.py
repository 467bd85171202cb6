"""Pyramid features of many images on disk: dense maps as Zarr arrays, vectors and the index as Parquet.

A folder of features holds

    manifest.json    what computed them: model, weights' SHA-256, preparation of the images, versions
    index.parquet    a row an image: id, path, size, transform, SHA-256 of the file, why it has none; pooled vectors
    maps.zarr        a Zarr v3 group: for images of one size an array (rows, C, H, W) a level; for images of many sizes
                     a group a level with an array (C, H, W) an image, named by its row

and, until it is complete, `parts`: the finished chunks' rows of the index.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from os import PathLike
from typing import TYPE_CHECKING, Literal

from ..errors import TwinsError

if TYPE_CHECKING:
    from .reader import Features

MANIFEST, INDEX, MAPS, PARTS = "manifest.json", "index.parquet", "maps.zarr", "parts"
FORMAT = 1
DTYPES = ("float32", "float16", "bfloat16")


def open_features(folder: str | PathLike[str], *, kind: Literal["numpy", "torch"] = "numpy") -> Features:
    """Open what `twins-dense extract` has written; maps are read when they are asked for.

    Args:
        folder: the --out of `extract`, complete.
        kind: of the arrays that come out.

    Raises:
        TwinsError: where it is no such folder or not complete yet, or a package is missing.
    """
    with needed_packages():
        from .reader import Features
    return Features(folder, kind)


@contextlib.contextmanager
def needed_packages() -> Iterator[None]:
    """Around the import of what a detector doesn't need: where it is missing, a line says how to get it."""
    try:
        yield
    except ImportError as error:
        raise TwinsError(
            f"{error.name} is not installed, which features need (on Python 3.11 or newer): "
            "pip install 'twins-dense[features]'"
        ) from None
