"""Extracted features equal those of the model for all kinds of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_fixtures import snapshot
from contracts import SLIM_SVT, random_backbone
from feature_fixtures import BAD, CROP, NUM_IMAGES, assert_same, run, settings
from PIL import Image

import twins_dense as td
from twins_dense.data.image_lists import ImageList
from twins_dense.features.prepare import Protocol
from twins_dense.imagenet.transforms import image_transform
from twins_dense.weights.preprocessing import Preprocessing

pytest.importorskip("zarr", minversion="3.1", reason="zarr 3 needs Python 3.11")
import zarr


class TestNumbers:
    @pytest.mark.parametrize(("name", "short_side"), [("crop", 64), ("imagenet", 73)])
    @torch.no_grad()
    def test_one_size(
        self, net: td.TwinsBackbone, images: ImageList, tmp_path: Path, name: str, short_side: int
    ) -> None:
        """Compare with torchvision's resizing and cropping, image by image; 64 * 256 / 224 = 73.1."""
        run(net, images, tmp_path, settings(Protocol(name, 64)))
        features = td.open_features(tmp_path)
        transform = image_transform(Preprocessing(short_side, None, 64, "bicubic"))
        for row, path in enumerate(images.paths):
            if row == BAD:
                continue
            with Image.open(path) as file:
                levels = net(transform(file.convert("RGB"))[None])
            item = features[row]
            assert item["path"] == path
            for level, expected in zip(features.levels, levels, strict=True):
                np.testing.assert_allclose(item[level], expected[0], rtol=0, atol=1e-5 * expected.abs().max())
                mean = expected[0].mean((1, 2))
                np.testing.assert_allclose(item[f"{level}_mean"], mean, rtol=0, atol=1e-5 * mean.abs().max())

    @torch.no_grad()
    def test_native_size(self, net: td.TwinsBackbone, images: ImageList, tmp_path: Path) -> None:
        """Compare with each image alone, padded by hand; a vector is the mean over the cells that show the image."""
        run(net, images, tmp_path, settings(Protocol("native", None)))
        features = td.open_features(tmp_path)
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        sizes = set()
        for row, path in enumerate(images.paths):
            if row == BAD:
                continue
            with Image.open(path) as file:
                pixels = torch.from_numpy(np.array(file.convert("RGB")))
            height, width = pixels.shape[:2]
            padded = torch.zeros(1, 3, (height + 31) // 32 * 32, (width + 31) // 32 * 32)
            padded[0, :, :height, :width] = ((pixels / 255 - mean) / std).permute(2, 0, 1)
            sizes.add(padded.shape)
            item, entry = features[row], features.entry(row)
            assert (entry["valid_height"], entry["valid_width"]) == (height, width)
            for level, expected, stride in zip(features.levels, net(padded), (4, 8, 16, 32), strict=True):
                np.testing.assert_allclose(item[level], expected[0], rtol=0, atol=1e-5 * expected.abs().max())
                cells = expected[0, :, : int(np.ceil(height / stride)), : int(np.ceil(width / stride))]
                np.testing.assert_allclose(item[f"{level}_mean"], cells.mean((1, 2)), rtol=0, atol=1e-5)
        assert len(sizes) > 1

    def test_other_types(self, net: td.TwinsBackbone, images: ImageList, done: Path, tmp_path: Path) -> None:
        whole = td.open_features(done)[0]
        for dtype, stored, digits in (("float16", "float16", 11), ("bfloat16", "float32", 8)):
            run(net, images, tmp_path / dtype, settings(dtype=dtype))
            item = td.open_features(tmp_path / dtype)[0]
            as_torch = td.open_features(tmp_path / dtype, kind="torch")[0]
            for name in ("c2", "c5_mean"):
                assert item[name].dtype == stored and as_torch[name].dtype == getattr(torch, dtype)
                np.testing.assert_allclose(item[name], whole[name], rtol=2.0**-digits, atol=1e-6)
                assert not np.array_equal(item[name], whole[name])
                np.testing.assert_array_equal(as_torch[name].float().numpy(), item[name].astype(np.float32))
        assert not np.ascontiguousarray(item["c2"]).view(np.uint32)[...].astype(np.uint32).__and__(0xFFFF).any()

    def test_amp(self, net: td.TwinsBackbone, images: ImageList, done: Path, tmp_path: Path) -> None:
        run(net, images, tmp_path, settings(amp=True))
        whole, item = td.open_features(done)[0]["c5"], td.open_features(tmp_path)[0]["c5"]
        assert 1e-5 < np.abs(whole - item).max() / np.abs(whole).max() < 0.1

    def test_values_too_large_for_float16(self, images: ImageList, tmp_path: Path) -> None:
        net = random_backbone(SLIM_SVT)
        with torch.no_grad():
            net.norm_list[3].weight.fill_(1e6)
        with pytest.raises(td.TwinsError, match=r"^c5 of .*00\.png has values .* in float16: choose --dtype bfloat16"):
            run(net, images, tmp_path, settings(dtype="float16"))
        run(net, images, tmp_path / "other", settings(dtype="bfloat16"))

    def test_workers_change_nothing(self, net: td.TwinsBackbone, images: ImageList, done: Path, tmp_path: Path) -> None:
        report = run(net, images, tmp_path, num_workers=2)
        assert_same(tmp_path, done)
        assert report.num_done == NUM_IMAGES and report.seconds > 0


class TestBadImages:
    def test_a_corrupt_image_costs_nothing_else(self, net: td.TwinsBackbone, images: ImageList, done: Path) -> None:
        features = td.open_features(done)
        entry = features.entry(BAD)
        assert "truncated" in entry["error"] and len(entry["sha256"]) == 64 and entry["valid_height"] is None
        with pytest.raises(td.TwinsError, match=r"row 5 of .*05\.png, has no features: .*truncated"):
            features[BAD]
        assert features.readable().rows.tolist() == [row for row in range(NUM_IMAGES) if row != BAD]
        with pytest.raises(td.TwinsError, match="has no features"):
            features.map(BAD, "c2")
        assert not zarr.open_group(done / "maps.zarr", mode="r")["c2"][BAD].any()
        assert not features.vectors("c2")[BAD].any()
        assert features.map(BAD + 1, "c2").any() and features.vectors("c2")[BAD + 1].any()

    def test_missing_and_foreign_files(self, net: td.TwinsBackbone, photos: Path, tmp_path: Path) -> None:
        (tmp_path / "text.jpg").write_text("no image")
        paths = [str(tmp_path / "gone.jpg"), str(tmp_path / "text.jpg"), str(photos / "00.png")]
        for protocol in (CROP, Protocol("native", None)):
            report = run(net, ImageList(paths, paths, True), tmp_path / protocol.name, settings(protocol))
            assert [line.partition(" (")[0] for line in report.unreadable] == paths[:2]
            assert "No such file" in report.unreadable[0] and "not an image" in report.unreadable[1]
            assert td.open_features(tmp_path / protocol.name).readable().rows.tolist() == [2]

    @pytest.mark.parametrize("protocol", [CROP, Protocol("imagenet", 64)])
    def test_a_long_and_narrow_image(self, net: td.TwinsBackbone, photos: Path, tmp_path: Path, protocol: Any) -> None:
        """Resizing the whole image would take 12 gigabytes."""
        Image.new("L", (60_000, 1)).save(tmp_path / "line.png")
        paths = [str(tmp_path / "line.png"), str(photos / "00.png")]
        report = run(net, ImageList(paths, paths, True), tmp_path / "out", settings(protocol))
        (line,) = report.unreadable
        assert "60000x1 pixels are too long and narrow" in line


class TestFolders:
    def test_a_finished_folder_is_unchanged(self, net: td.TwinsBackbone, images: ImageList, done: Path) -> None:
        before = snapshot(done)
        report = run(net, images, done)
        assert report.num_done == 0 and len(report.unreadable) == 1
        assert snapshot(done) == before

    def test_other_work_is_refused(self, net: td.TwinsBackbone, images: ImageList, done: Path, tmp_path: Path) -> None:
        before = snapshot(done)
        fewer = ImageList(images.ids[1:], images.paths[1:], True)
        for changes, words in (
            ({"weights_sha256": "other"}, r"model\.weights_sha256 w, not other: choose another --out"),
            ({"what": settings(dtype="float16")}, "dtype float32, not float16"),
            ({"what": settings(Protocol("crop", 96))}, r"preparation\.size 64, not 96"),
            ({"images": fewer}, r"of other images \(11, now 10\)"),
            ({"net": random_backbone(SLIM_SVT, window_padding="mask")}, r"model\.window_padding zeros, not mask"),
        ):
            with pytest.raises(td.TwinsError, match=words):
                run(**{"net": net, "images": images, "out": done, **changes})
        assert snapshot(done) == before
        (tmp_path / "mine.txt").write_text("keep me")
        with pytest.raises(td.TwinsError, match="is not empty and contains no features"):
            run(net, images, tmp_path)
        assert snapshot(tmp_path) == {"mine.txt": b"keep me"}
