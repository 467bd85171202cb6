"""Search among pooled vectors equals brute force, finds planted duplicates, and reports bad input."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_fixtures import assert_error, twins
from feature_fixtures import BAD, NUM_IMAGES, make_photos
from PIL import Image

import twins_dense as td
from twins_dense.data.image_lists import ImageList

pytest.importorskip("zarr", minversion="3.1", reason="zarr 3 needs Python 3.11")
from twins_dense.features import search as searching


def brute_force(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Return the cosine of every vector with the query, in float64."""
    vectors, query = vectors.astype(np.float64), query.astype(np.float64)
    return vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)


@pytest.mark.parametrize("block", [3, 65_536])
def test_equals_brute_force(images: ImageList, done: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(searching, "_BLOCK", block)
    features = td.open_features(done)
    vectors = features.readable().vectors("c5")
    query = np.random.default_rng(0).normal(size=vectors.shape[1])
    found = features.search(query, 4)
    scores = brute_force(vectors, query)
    order = np.argsort(-scores)[:4]
    assert found.rows == features.readable().rows[order].tolist()
    assert found.ids == [images.ids[row] for row in found.rows] and found.paths == found.ids
    np.testing.assert_allclose(found.scores, scores[order], atol=1e-5)
    assert features.search(torch.from_numpy(query), 4).rows == found.rows


def test_an_image_of_the_folder(images: ImageList, done: Path) -> None:
    """The image itself is left out. There are at most as many neighbours as other images."""
    features = td.open_features(done)
    found = features.search(images.ids[3], 100, "c3")
    assert sorted([*found.rows, 3, BAD]) == list(range(NUM_IMAGES))
    assert found.scores == sorted(found.scores, reverse=True)
    scores = brute_force(features.vectors("c3")[found.rows], features.vectors("c3")[3])
    np.testing.assert_allclose(found.scores, scores, atol=1e-5)
    some = features.select("*/more/*")
    assert sorted(some.search(images.ids[2]).rows) == [8]
    with pytest.raises(td.TwinsError, match=r"has no features: .*truncated"):
        features.search(images.ids[BAD])


def test_prepared_vectors(images: ImageList, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors of large sets are written once, and again if the features change."""
    expected = td.open_features(done).search(images.ids[0], 9)
    monkeypatch.setattr(searching, "_LARGE", 5)
    folder = tmp_path / "f"
    shutil.copytree(done, folder)
    assert td.open_features(folder).search(images.ids[0], 9) == expected
    file = folder / "search" / "c5_mean.npy"
    assert [path.name for path in file.parent.iterdir()] == ["c5_mean.npy"]
    inode = file.stat().st_ino
    assert td.open_features(folder).search(images.ids[0], 9) == expected and file.stat().st_ino == inode
    np.save(file, np.zeros((10, 28), np.float32))  # whose time differs
    assert td.open_features(folder).search(images.ids[0], 9) == expected
    os.utime(folder / "index.parquet", ns=(1, 1))
    inode = file.stat().st_ino
    assert td.open_features(folder).search(images.ids[0], 9) == expected and file.stat().st_ino != inode
    shutil.rmtree(file.parent)
    file.parent.write_text("in the way")
    assert td.open_features(folder).search(images.ids[0], 9) == expected


@pytest.mark.parametrize("block", [2, 256])
def test_duplicates(monkeypatch: pytest.MonkeyPatch, done: Path, block: int) -> None:
    """A chain of near pairs is one group, and pairs are found across blocks."""
    monkeypatch.setattr(searching, "_NUM_QUERIES", block)
    monkeypatch.setattr(searching, "_BLOCK", block + 1)
    search = searching.VectorSearch(td.open_features(done))
    angles = np.radians([0, 90, 180, 270, 8, 95, 16, 45, 135, 315])
    search._matrix = torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], axis=1)).float()
    ids = search.features.index["image_id"].to_pylist()
    assert search.duplicates(np.cos(np.radians(9))) == [[ids[0], ids[4], ids[6]], [ids[1], ids[5]]]
    assert search.duplicates(0.9999) == []
    for threshold in (0, 1.5, float("nan")):
        with pytest.raises(td.TwinsError, match="give a cosine above 0"):
            search.duplicates(threshold)


def test_bad_queries(done: Path) -> None:
    features = td.open_features(done)
    with pytest.raises(td.TwinsError, match=r"query of shape \(3,\): a vector of c5 has shape \(28,\)"):
        features.search(np.ones(3))
    with pytest.raises(td.TwinsError, match="not finite"):
        features.search(np.full(28, np.nan))
    with pytest.raises(td.TwinsError, match="k=0: give a number of neighbours"):
        features.search(np.ones(28), 0)
    with pytest.raises(td.TwinsError, match="no vectors 'c6_mean'"):
        features.search(np.ones(28), 3, "c6")


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Folder with photos, the weights of a classifier and the vectors of the photos, two of which are equal."""
    root = tmp_path_factory.mktemp("search")
    photos, weights, folder = root / "photos", root / "weights.pth", root / "vectors"
    photos.mkdir()
    make_photos(photos)
    shutil.copy(photos / "03.png", photos / "copy.png")
    torch.save(td.create_classifier("svt_small").state_dict(), weights)
    options = ("--variant", "svt_small", "--weights", weights, "--out", folder, "--pool", "mean", "--size", 64)
    result = twins("extract", photos, *options, "--levels", "c4,c5", "--workers", 0, "--device", "cpu")
    assert result.code == 0, result.err
    return photos, weights, folder


def test_command(extracted: tuple[Path, Path, Path], tmp_path: Path) -> None:
    photos, weights, folder = extracted
    query = photos / "03.png"
    outputs = ("--out", tmp_path / "sheet.png", "--html", tmp_path / "page.html")
    result = twins("search", folder, query, "-k", 3, *outputs)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert len(lines) == 4 and lines[1] == f"  1.000  {photos / 'copy.png'}"
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] > 1000
    assert (tmp_path / "page.html").read_text().count("<img ") == 4
    # An image file that is not in the folder.
    shutil.copy(query, tmp_path / "new.png")
    result = twins("search", folder, tmp_path / "new.png", "-k", 2, "--weights", weights, "--json", "--level", "c4")
    assert result.code == 0, result.err
    content = json.loads(result.out)
    (found,) = content["queries"]
    assert content["level"] == "c4" and sorted(found["ids"]) == [str(query), str(photos / "copy.png")]
    assert found["scores"] == pytest.approx([1, 1], abs=1e-4)
    with Image.open(query) as image:
        again = td.open_features(folder).search(image, 2, "c4", weights=weights)
    assert again.scores == pytest.approx(found["scores"], abs=1e-6)
    result = twins("search", folder, "--duplicates", 1, "--json")
    assert json.loads(result.out)["groups"] == [[str(query), str(photos / "copy.png")]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["03.png", "--level", "c2"], "has no vectors 'c2_mean' (it has c4_mean, c5_mean)"),
        (["03.pmg"], "is neither an image of"),
        (["03.png", "-k", "0"], "-k"),
        (["03.png", "--out", "sheet.jpg"], "name it *.png"),
        (["NEW"], "give the weights (--weights FILE)"),
        (["NEW", "--weights", "OTHER"], "were computed with other weights, with SHA-256"),
        (["NEW", "--weights", "gone.pth"], "'gone.pth': no such file"),
        (["TEXT", "--weights", "WEIGHTS"], "cannot be read (not an image): choose another image"),
        (["--duplicates", "1.5"], "1.5"),
    ],
)
def test_bad_input(extracted: tuple[Path, Path, Path], tmp_path: Path, options: Sequence[str], words: str) -> None:
    photos, weights, folder = extracted
    (tmp_path / "other.pth").write_bytes(b"no weights")
    (tmp_path / "text.png").write_text("no image")
    shutil.copy(photos / "03.png", tmp_path / "new.png")
    names = {"NEW": tmp_path / "new.png", "OTHER": tmp_path / "other.pth", "TEXT": tmp_path / "text.png"}
    names |= {"WEIGHTS": weights, "03.png": photos / "03.png", "03.pmg": photos / "03.pmg"}
    result = twins("search", folder, *(names.get(option, option) for option in options))
    assert result.code == 2 and words in result.err.splitlines()[-1], result.err
    if options == ["03.pmg"]:
        assert_error(result, f"did you mean '{photos / '03.png'}'?")


def test_neither_queries_nor_duplicates(extracted: tuple[Path, Path, Path]) -> None:
    result = twins("search", extracted[2])
    assert result.code == 2 and "either one or more queries, or --duplicates" in result.err
