"""Features can be read by row and by id, by a data loader, and without this package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_fixtures import BAD, NUM_IMAGES, run, settings
from torch.utils.data import DataLoader

import twins_dense as td
from twins_dense.data.image_lists import ImageList
from twins_dense.features.prepare import Protocol

pytest.importorskip("zarr", minversion="3.1", reason="zarr 3 needs Python 3.11")
import pyarrow.parquet as pq
import zarr

from twins_dense.features import store as storage


def test_rows_and_ids(images: ImageList, done: Path) -> None:
    features = td.open_features(done)
    assert len(features) == NUM_IMAGES and features.levels == ("c2", "c3", "c4", "c5")
    assert features[images.ids[3]]["row"] == 3 and features[-1]["path"] == images.paths[-1]
    np.testing.assert_array_equal(features[images.ids[3]]["c4"], features[3]["c4"])
    with pytest.raises(IndexError):
        features[NUM_IMAGES]
    with pytest.raises(td.TwinsError, match=r"has no image 'nobody': its ids look like .*00\.png"):
        features["nobody"]


def test_vectors(done: Path, tmp_path: Path, net: td.TwinsBackbone, images: ImageList) -> None:
    features = td.open_features(done)
    vectors = features.vectors("c4")
    assert vectors.shape == (NUM_IMAGES, 20)
    for row in (10, 0, 7):
        np.testing.assert_array_equal(features[row]["c4_mean"], vectors[row])
    run(net, images, tmp_path, settings(pool=False))
    with pytest.raises(td.TwinsError, match=r"no vectors 'c4_mean' \(it has none\): extract them with --pool mean"):
        td.open_features(tmp_path).vectors("c4")


def test_vectors_across_row_groups(
    net: td.TwinsBackbone, images: ImageList, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_ROW_GROUP", 8)
    run(net, images, tmp_path, settings(maps=False))
    assert pq.ParquetFile(tmp_path / "index.parquet").metadata.num_row_groups == 2
    expected, features = td.open_features(done), td.open_features(tmp_path)
    assert not (tmp_path / "maps.zarr").exists()
    for row in (10, 0, 7, 8):
        assert sorted(features[row]) == ["c2_mean", "c3_mean", "c4_mean", "c5_mean", "image_id", "path", "row"]
        np.testing.assert_array_equal(features[row]["c3_mean"], expected[row]["c3_mean"])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_as_a_data_set(done: Path, num_workers: int) -> None:
    features = td.open_features(done, kind="torch")
    features[0]  # opens files, which the workers must not inherit
    batches = list(DataLoader(features.readable(), batch_size=4, num_workers=num_workers))
    assert [batch["c3"].shape for batch in batches] == [(4, 12, 8, 8), (4, 12, 8, 8), (2, 12, 8, 8)]
    assert torch.cat([batch["row"] for batch in batches]).tolist() == [r for r in range(NUM_IMAGES) if r != BAD]
    assert torch.equal(batches[1]["c3"][0], features[4]["c3"])


def test_layout(done: Path) -> None:
    """There is one file per chunk and level, and each image is compressed alone."""
    assert sorted(path.name for path in done.iterdir()) == ["index.parquet", "manifest.json", "maps.zarr"]
    array = zarr.open_array(done / "maps.zarr" / "c2", mode="r")
    assert array.shards == (4, 8, 16, 16) and array.chunks == (1, 8, 16, 16)
    assert len([path for path in (done / "maps.zarr" / "c2" / "c").rglob("*") if path.is_file()]) == 3


def test_foreign_folders(tmp_path: Path) -> None:
    with pytest.raises(td.TwinsError, match=r"contains no features \(manifest\.json is missing\): check the path"):
        td.open_features(tmp_path)
    foreign = "is not the manifest of an extraction"
    contents = {"{": "is damaged", "[]": foreign, '{"a": 1}': foreign, '{"format": 9}': "from a newer twins_dense"}
    for content, words in contents.items():
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(td.TwinsError, match=words):
            td.open_features(tmp_path)
    with pytest.raises(td.TwinsError, match="contains no features"):
        td.open_features(tmp_path / "manifest.json")


def test_missing_maps(net: td.TwinsBackbone, images: ImageList, tmp_path: Path) -> None:
    run(net, images, tmp_path / "native", settings(Protocol("native", None)))
    features = td.open_features(tmp_path / "native")
    assert features.map(-1, "c2").shape == features.map(NUM_IMAGES - 1, "c2").shape
    with pytest.raises(td.TwinsError, match="has no features"):
        features.map(BAD, "c2")
    run(net, images, tmp_path / "pooled", settings(maps=False))
    with pytest.raises(td.TwinsError, match=r"has no maps: .* --maps"):
        td.open_features(tmp_path / "pooled").map(0, "c2")


def test_without_this_package(images: ImageList, done: Path) -> None:
    """zarr and pyarrow are enough to find an image by its path and read its features."""
    code = f"""
import json, sys
import pyarrow.compute as pc, pyarrow.parquet as pq, zarr
columns, path = ["row", "path", "c5_mean"], {images.paths[6]!r}
(entry,) = pq.read_table("index.parquet", columns=columns, filters=[("path", "=", path)]).to_pylist()
array = zarr.open_group("maps.zarr", mode="r")["c5"]
assert "twins_dense" not in sys.modules and "torch" not in sys.modules
version = json.load(open("maps.zarr/c5/zarr.json"))["zarr_format"]
print(json.dumps([entry["row"], float(array[entry["row"]].sum()), entry["c5_mean"][0], array.shape, version]))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=done, capture_output=True, text=True, check=False, timeout=120
    )
    assert result.returncode == 0, result.stderr
    item = td.open_features(done)[6]
    row, total, first, shape, version = json.loads(result.stdout)
    assert (row, shape, version) == (6, [NUM_IMAGES, 28, 2, 2], 3)
    assert total == pytest.approx(float(item["c5"].sum()), rel=1e-4) and first == float(item["c5_mean"][0])
