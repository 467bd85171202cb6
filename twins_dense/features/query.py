"""Features of single images, computed as those of a feature folder were."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from ..data.image_files import UNREADABLE
from ..errors import TwinsError, one_line
from ..factory import load_backbone
from ..models.backbone import describe_backbone
from ..models.spec import StageSpec, TwinsSpec
from ..weights.catalog import CATALOG, published_as
from ..weights.download import fetch_weights, sha256_of
from .model import FeatureModel, Settings
from .prepare import Chunk, Decoded, DecodedChunk, Protocol, decode

if TYPE_CHECKING:
    from .reader import Features

Query = str | PathLike[str] | Image.Image


class QueryModel:
    """The model of a feature folder, as `load_model` returns it."""

    def __init__(self, model: FeatureModel, protocol: Protocol, levels: Sequence[str]) -> None:
        self._model, self._protocol, self._levels = model, protocol, levels

    def __call__(self, images: Sequence[Query]) -> dict[str, Tensor]:
        """Return the pooled vectors (Q, C) of images by level, on the CPU. Unreadable images raise `TwinsError`."""
        vectors = [self._compute(image) for image in images]
        return {name: torch.stack(level) for name, level in zip(self._levels, zip(*vectors, strict=True), strict=True)}

    def _compute(self, image: Query) -> list[Tensor]:
        decoded = self._decode(image)
        if decoded.pixels is None:
            raise TwinsError(f"{image} cannot be read ({decoded.error}): choose another image")
        pixels = decoded.pixels[None] if self._protocol.size else [decoded.pixels]
        (batch,) = self._model(DecodedChunk(Chunk(0, 0, [""], [str(image)]), [decoded], pixels))
        return [level[0].float().cpu() for level in batch.vectors]

    def _decode(self, image: Query) -> Decoded:
        if not isinstance(image, Image.Image):
            return decode(os.fspath(image), self._protocol)
        try:
            pixels, geometry = self._protocol.apply(image.convert("RGB"))
        except UNREADABLE as error:
            return Decoded(None, None, None, one_line(error))
        return Decoded(torch.from_numpy(pixels), geometry, None, None)


def load_model(features: Features, weights: str | PathLike[str] | None = None, device: str = "cpu") -> QueryModel:
    """Load the backbone that computed a feature folder.

    Args:
        features: The features.
        weights: Path of the checkpoint, or a catalog name. By default, the catalog is searched for weights with the
            SHA-256 in the manifest.
        device: A torch device.

    Raises:
        TwinsError: If these weights did not compute the features, or none are found.
    """
    described = features.manifest["model"]
    path = _find_weights(features.folder, described["weights_sha256"], weights)
    spec = dict(described["spec"])
    spec["stages"] = tuple(StageSpec(**stage) for stage in spec["stages"])
    net = load_backbone(
        TwinsSpec(**spec),
        path,
        out_indices=[int(name[1:]) - 2 for name in features.levels],
        window_padding=described["window_padding"],
    )
    if any(described[key] != value for key, value in json.loads(json.dumps(describe_backbone(net))).items()):
        raise TwinsError(
            f"{features.folder} was computed with another version of the model: extract the features again"
        )
    preparation = features.manifest["preparation"]
    protocol = Protocol(preparation["protocol"], preparation["size"], preparation["upright"])
    settings = Settings(protocol, maps=False, pool=True, dtype=features.manifest["dtype"], amp=described["amp"])
    target = torch.device(device)
    return QueryModel(FeatureModel(net.to(target), net.pyramid.strides, settings, target), protocol, features.levels)


def _find_weights(folder: Path, sha256: str, weights: str | PathLike[str] | None) -> Path:
    """Return the path of the weights with this SHA-256."""
    if weights is not None:
        path = fetch_weights(weights)
        if sha256_of(path) != sha256:
            raise TwinsError(
                f"weights {os.fspath(weights)!r}: the features of {folder} were computed with other weights, "
                f"with SHA-256 {sha256[:16]}…: give those"
            )
        return path
    downloaded = (spec.path for spec in CATALOG.values() if spec.path.exists())
    path_or_none = next((path for path in downloaded if sha256_of(path) == sha256), None)
    if path_or_none is not None:
        return path_or_none
    published = published_as(sha256)
    if published is None:
        raise TwinsError(
            f"the features of {folder} were computed with weights that are not in the catalog, with SHA-256 "
            f"{sha256[:16]}…: give the weights (--weights FILE)"
        )
    return fetch_weights(published.name)
