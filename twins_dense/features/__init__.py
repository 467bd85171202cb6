"""Pyramid features of many images on disk: dense maps in Zarr, pooled vectors and an index in Parquet.

A feature folder contains:

    manifest.json    how the features were computed: model, SHA-256 of the weights, image preparation, versions
    index.parquet    one row per image: id, path, size, transform, SHA-256 of the file, the error if the image could
                     not be read, and the pooled vectors
    maps.zarr        a Zarr v3 group. For images of one size it has one array (rows, C, H, W) per level; for images of
                     different sizes it has one group per level, with one array (C, H, W) per image, named by its row

Until the extraction is complete, it also contains `parts`, the index rows of the finished chunks.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from os import PathLike
from typing import TYPE_CHECKING, Literal

from ..errors import TwinsError, requires_extra

if TYPE_CHECKING:
    from .reader import Features

MANIFEST, INDEX, MAPS, PARTS = "manifest.json", "index.parquet", "maps.zarr", "parts"
FORMAT = 1
DTYPES = ("float32", "float16", "bfloat16")
EXTRACTION_PROTOCOLS = ("crop", "imagenet", "native")


def open_features(folder: str | PathLike[str], *, kind: Literal["numpy", "torch"] = "numpy") -> Features:
    """Open a folder written by `twins-dense extract`. Maps are read when they are accessed.

    If the extraction is still running or was interrupted, the features are those of the finished chunks.

    Args:
        folder: Folder of an extraction (its `--out`).
        kind: Whether to return NumPy arrays or torch tensors.

    Raises:
        TwinsError: If the folder contains no features, or a package is missing.
    """
    with optional_packages():
        from .reader import Features
    return Features(folder, kind)


@contextlib.contextmanager
def optional_packages() -> Iterator[None]:
    """Raise `TwinsError` if an import in this context fails because zarr or pyarrow is missing."""
    if sys.version_info < (3, 11):
        raise TwinsError(f"features need zarr 3, which needs Python 3.11 or newer; this is {sys.version.split()[0]}")
    with requires_extra("features"):
        yield
