"""`twins-dense extract` writes features and previews, and reports bad input."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from cli_fixtures import assert_error, snapshot, twins
from feature_fixtures import CROP

import twins_dense as td
from twins_dense.features.prepare import decode

pytest.importorskip("zarr", minversion="3.1", reason="zarr 3 needs Python 3.11")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "svt_small.pth"
    torch.save(td.create_classifier("svt_small").state_dict(), path)
    return path


def test_from_photos_to_previews(weights: Path, photos: Path, tmp_path: Path) -> None:
    """ImageNet weights have no level norms, so the features have none. A second call changes nothing."""
    arguments = ("extract", photos, "--variant", "svt_small", "--weights", weights, "--out", tmp_path / "f")
    options = ("--size", 64, "--levels", "c5,c4", "--workers", 0, "--device", "cpu", "--preview")
    result = twins(*arguments, *options)
    assert result.code == 0, result.err
    assert "features of 10 images, 1 unreadable" in result.out and "10 pictures" in result.out
    assert "05.png" in result.err
    features = td.open_features(tmp_path / "f")
    assert features.levels == ("c4", "c5") and not features.manifest["model"]["level_norm"]
    classifier = td.create_classifier("svt_small", weights=weights).eval()
    decoded = decode(features.entry(0)["path"], CROP)
    assert decoded.pixels is not None
    preparation = features.manifest["preparation"]
    mean, std = (torch.tensor(preparation[name]) for name in ("mean", "std"))
    with torch.no_grad():
        logits = classifier(((decoded.pixels / 255 - mean) / std).permute(2, 0, 1)[None])
        c5 = torch.from_numpy(features[0]["c5"])
        again = classifier.head(classifier.norm(c5.permute(1, 2, 0)).mean((0, 1)))
    torch.testing.assert_close(again, logits[0], rtol=1e-4, atol=1e-5)
    before = snapshot(tmp_path / "f")
    assert twins(*arguments, *options[:-1]).code == 0
    assert snapshot(tmp_path / "f") == before


def test_coco_names_that_lead_outside(weights: Path, photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "images.json"
    file.write_text(json.dumps({"images": [{"id": 1, "file_name": str(photos.resolve() / "00.png")}]}))
    (tmp_path / "images").mkdir()
    arguments = ("extract", file, "--image-dir", tmp_path / "images", "--variant", "svt_small", "--weights", weights)
    options = ("--size", 64, "--levels", "c5", "--workers", 0, "--device", "cpu", "--out", tmp_path / "f")
    assert_error(twins(*arguments, *options), f"{file}: image ", "00.png is not in the folder", "add --allow-outside")
    assert not (tmp_path / "f").exists()
    result = twins(*arguments, *options, "--allow-outside")
    assert result.code == 0 and "features of 1 images, 0 unreadable" in result.out, result.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--size", "100"], "size=100: give a multiple of 32"),
        (["--protocol", "native", "--size", "64"], "leave out the size"),
        (["--levels", "c6"], "unknown level 'c6'"),
        (["--window-padding", "none"], "--window-padding 'none'"),
        (["--pool", "mean", "--preview"], "add --maps"),
        (["--device", "warp"], "--device 'warp'"),
        (["--variant", "svt_tiny"], "unknown variant 'svt_tiny'"),
        (["--weights", "gone.pth"], "'gone.pth': no such file"),
    ],
)
def test_bad_input(weights: Path, photos: Path, tmp_path: Path, options: Sequence[str], words: str) -> None:
    arguments = ("--variant", "svt_small", "--weights", weights, "--out", tmp_path / "f")
    assert_error(twins("extract", photos, *arguments, *options), words)
    assert list(tmp_path.iterdir()) == []


def test_no_image_can_be_read(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no image")
    options = ("--variant", "svt_small", "--weights", weights, "--size", 64, "--workers", 0)
    result = twins("extract", tmp_path / "a.jpg", *options, "--out", tmp_path / "f")
    assert result.code == 2 and "none of the 1 images can be read" in result.err.splitlines()[-1]


def test_a_missing_package(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("twins_dense.features.extract", "twins_dense.features.reader", "twins_dense.features.store"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "zarr", None)
    for attempt in (lambda: td.open_features(photos),):
        with pytest.raises(td.TwinsError, match=r"zarr is not installed.*pip install 'twins-dense\[features\]'"):
            attempt()
