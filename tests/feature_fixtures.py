"""Photos, a small backbone, and an extraction of their features, shared by the tests of features."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from cli_fixtures import snapshot
from contracts import SLIM_SVT, random_backbone
from detection_fixtures import child_environment
from PIL import Image

import twins_dense as td
from twins_dense.data.image_lists import ImageList
from twins_dense.features.model import Settings
from twins_dense.features.prepare import Protocol

if TYPE_CHECKING:  # needs zarr
    from twins_dense.features.extract import Report

CPU = torch.device("cpu")
CROP = Protocol("crop", 64)
NUM_IMAGES, BAD = 11, 5


def photo(seed: int, height: int, width: int) -> Image.Image:
    """Draw smooth colours, so that an error of one pixel in resizing or cropping shows."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (5 + seed + c) + c) + np.cos(y / (7 + seed - c)) for c in range(3)]
    return Image.fromarray(np.uint8(np.stack(waves, axis=2) * 60 + 127))


def make_photos(root: Path) -> None:
    """Write portraits and landscapes to two folders, one of them gray; the sixth file is truncated."""
    (root / "more").mkdir()
    for i in range(NUM_IMAGES):
        name = root / ("more" if i % 3 == 2 else "") / f"{i:02d}.png"
        image = photo(i, 70 + 13 * (i % 4), 101 - 11 * (i % 3))
        (image.convert("L") if i == 7 else image).save(name)
    bad = root / "more" / "05.png"
    bad.write_bytes(bad.read_bytes()[:1000])


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of `make_photos`. Tests must not change it."""
    root = tmp_path_factory.mktemp("photos")
    make_photos(root)
    return root


@pytest.fixture(scope="session")
def images(photos: Path) -> ImageList:
    """The photos in the order of their numbers."""
    paths = sorted(map(str, photos.rglob("*.png")), key=lambda path: Path(path).stem)
    assert len(paths) == NUM_IMAGES and Path(paths[BAD]).stem == "05"
    return ImageList(paths, paths, upright=True)


@pytest.fixture(scope="session")
def net() -> td.TwinsBackbone:
    return random_backbone(SLIM_SVT)


def settings(protocol: Protocol = CROP, **changes: Any) -> Settings:
    return dataclasses.replace(Settings(protocol, maps=True, pool=True, chunk=4), **changes)


def run(net: td.TwinsBackbone, images: ImageList, out: Path, what: Settings | None = None, **options: Any) -> Report:
    from twins_dense.features.extract import extract

    options = {"weights_sha256": "w", "device": CPU, "num_workers": 0, **options}
    return extract(net, images, out, what or settings(), **options)


@pytest.fixture(scope="session")
def done(net: td.TwinsBackbone, images: ImageList, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of all photos at 64x64. Tests must not change it."""
    out = tmp_path_factory.mktemp("features") / "done"
    run(net, images, out)
    return out


def assert_same(folder: Path, expected: Path) -> None:
    found, wanted = snapshot(folder), snapshot(expected)
    assert sorted(found) == sorted(wanted)
    assert [name for name, content in wanted.items() if found[name] != content] == []


def program(folder: Path, *arguments: object) -> str:
    """Run Python in a folder, with the test modules on the path, and return what it printed."""
    environment = child_environment()
    environment["PYTHONPATH"] = ":".join(
        [
            str(folder),
            str(Path(__file__).parent),
            str(Path(td.__file__).parents[1]),
            environment.get("PYTHONPATH", ""),
        ]
    )
    result = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
