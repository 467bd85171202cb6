"""Features can be read by row and by id, by a data loader, and without this package."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from feature_fixtures import BAD, NUM_IMAGES, run, settings
from torch.utils.data import DataLoader

import twins_dense as td
from twins_dense.data.image_lists import ImageList
from twins_dense.features.prepare import Chunk, Protocol

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


def test_pandas(images: ImageList, done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    features = td.open_features(done)
    frame = features.to_pandas()
    assert len(frame) == NUM_IMAGES and frame["image_id"].tolist() == images.ids
    assert frame["c5_mean"][BAD] is None and "truncated" in frame["error"][BAD]
    np.testing.assert_array_equal(np.stack(frame["c4_mean"].drop(BAD)), features.readable().vectors("c4"))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(td.TwinsError, match=r"^pandas is not installed: pip install pandas$"):
        features.to_pandas()


def test_selection(images: ImageList, done: Path) -> None:
    features = td.open_features(done)
    assert features.select(images.ids[3]).rows.tolist() == [3]
    more = features.select("*/more/*.png")
    assert more.rows.tolist() == [2, BAD, 8] and len(more) == 3
    assert more.readable().rows.tolist() == [2, 8]
    both = features.select([images.ids[7], "*/more/*", images.ids[2]])
    assert both.rows.tolist() == [7, 2, BAD, 8]
    assert both[0]["row"] == 7 and both[images.ids[8]]["row"] == 8
    np.testing.assert_array_equal(both.vectors("c3"), features.vectors("c3")[[7, 2, BAD, 8]])
    np.testing.assert_array_equal(both.map(3, "c2"), features.map(8, "c2"))
    assert both.select("*/more/*").rows.tolist() == [2, BAD, 8]
    assert len(features.select(images.ids[BAD]).readable()) == 0
    assert features.select(images.ids[BAD]).readable().vectors("c3").shape == (0, 12)
    with pytest.raises(td.TwinsError, match=r"has no image '.*03\.png'"):
        both[images.ids[3]]
    near = images.ids[3].replace("03.png", "03.pmg")
    with pytest.raises(td.TwinsError, match=rf"no image that matches '{near}': did you mean '{images.ids[3]}'\?"):
        features.select(near)
    with pytest.raises(td.TwinsError, match=r"no image that matches 'cats/\*': its ids look like"):
        features.select(["*.png", "cats/*"])


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_batches(done: Path, kind: Literal["numpy", "torch"]) -> None:
    features = td.open_features(done, kind=kind)
    batches = list(features.iter_batches(4))
    assert [len(batch["path"]) for batch in batches] == [4, 4, 2]
    rows = [row for batch in batches for row in batch["row"].tolist()]
    assert rows == [row for row in range(NUM_IMAGES) if row != BAD]
    item = features[6]
    assert sorted(batches[1]) == sorted(item) and batches[1]["image_id"][1] == item["image_id"]
    for name in ("c2", "c5", "c4_mean"):
        assert type(batches[1][name]) is type(item[name]) and (batches[1][name][1] == item[name]).all()
    (batch,) = features.select("*/more/*").iter_batches(columns=["c5_mean"])
    assert sorted(batch) == ["c5_mean", "image_id", "path", "row"] and batch["row"].tolist() == [2, 8]
    assert (batch["c5_mean"] == features.vectors("c5")[[2, 8]]).all()
    with pytest.raises(td.TwinsError, match="size=0: give a number of images"):
        features.iter_batches(0)
    with pytest.raises(td.TwinsError, match="has no column 'c6': choose from c2, c3, c4, c5, c2_mean"):
        features.iter_batches(columns=["c6"])


def test_batches_of_images_of_different_sizes(net: td.TwinsBackbone, images: ImageList, tmp_path: Path) -> None:
    run(net, images, tmp_path, settings(Protocol("native", None), pool=False))
    features = td.open_features(tmp_path)
    (batch,) = features.select("*/more/*").iter_batches(columns=["c4"])
    assert [level.shape for level in batch["c4"]] == [features[row]["c4"].shape for row in (2, 8)]
    np.testing.assert_array_equal(batch["c4"][1], features.map(8, "c4"))


def test_a_folder_that_is_being_written(
    net: td.TwinsBackbone, images: ImageList, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features opened after the second of three chunks are those of two chunks, also after the last one."""
    finish_chunk = storage.FeatureStore.finish_chunk

    def stop_before(chunk: int) -> None:
        def finish(store: storage.FeatureStore, part: Chunk, *arguments: Any) -> None:
            if part.index == chunk:
                raise td.TwinsError("stopped")
            finish_chunk(store, part, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(storage.FeatureStore, "finish_chunk", finish)
            with pytest.raises(td.TwinsError, match="stopped"):
                run(net, images, tmp_path)

    stop_before(0)
    for part in (tmp_path / "parts").iterdir():
        part.unlink()
    with pytest.raises(td.TwinsError, match=r"has no finished chunks yet: run `twins-dense extract` again to resume"):
        td.open_features(tmp_path)
    stop_before(1)
    opened = [td.open_features(tmp_path), pickle.loads(pickle.dumps(td.open_features(tmp_path)))]
    whole = td.open_features(done)
    expected = [0, 1, 2, 3, 8, 9, 10]

    def check() -> None:
        for features in opened:
            assert not features.complete and features.rows.tolist() == expected
            np.testing.assert_array_equal(features.vectors("c4"), whole.vectors("c4")[expected])
            np.testing.assert_array_equal(features[-1]["c2"], whole[-1]["c2"])
            np.testing.assert_array_equal(features[4]["c5_mean"], whole[8]["c5_mean"])
            assert features.select("*/more/*").rows.tolist() == [2, 8]
            assert [batch["row"].tolist() for batch in features.iter_batches(5)] == [expected[:5], expected[5:]]
            with pytest.raises(td.TwinsError, match="has no image"):
                features[images.ids[4]]

    check()
    run(net, images, tmp_path)  # removes the parts
    opened += pickle.loads(pickle.dumps(opened))
    check()
    assert td.open_features(tmp_path).complete and whole.complete
