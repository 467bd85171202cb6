"""Features on disk: right numbers, whatever happens on the way there, readable by anything."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_fixtures import assert_error, twins
from contracts import SLIM_SVT, random_backbone
from detection_fixtures import one_thread
from PIL import Image, ImageOps
from torch.utils.data import DataLoader

import twins_dense as td
from twins_dense.data.image_lists import ImageList, list_images
from twins_dense.features import prepare as preparing
from twins_dense.features.prepare import Protocol, decode
from twins_dense.imagenet.transforms import image_transform
from twins_dense.weights.preprocessing import Preprocessing

pytest.importorskip("zarr", minversion="3.1", reason="Zarr v3 needs Python 3.11")
import pyarrow.parquet as pq
import zarr

from twins_dense.features import store as storage
from twins_dense.features.extract import Report, Settings, extract
from twins_dense.features.preview import draw_preview, principal_colours

CPU = torch.device("cpu")
CROP = Protocol("crop", 64)
NUM_IMAGES, BAD = 11, 5
# Runs an extraction in a process of its own: SCRIPT OUT IMAGES...
SCRIPT = """
import sys
import torch
from contracts import SLIM_SVT, random_backbone
from pathlib import Path
from twins_dense.data.image_lists import list_images
from twins_dense.features.extract import extract
from twins_dense.features.model import Settings
from twins_dense.features.prepare import Protocol

torch.set_num_threads(1)


def run(out, images, num_workers=1):
    settings = Settings(Protocol("crop", 64), maps=True, pool=True, chunk=2)
    extract(
        random_backbone(SLIM_SVT), list_images(images), Path(out), settings,
        weights_sha256="w", device=torch.device("cpu"), num_workers=num_workers,
    )


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2:])
"""
# Kills extractions at random moments, each in a process of its own, on a disk that takes its time: two while they
# start, eight while they write.
KILLER = """
import os, random, signal, sys, time
from run import run
from twins_dense.features import store

fast = store.LocalStore.set
writing, begun = os.pipe()


async def slow(self, key, value):
    if "/c/" in key:  # a piece of a map
        os.write(begun, b"w")
    time.sleep(0.005)
    await fast(self, key, value)
    time.sleep(0.005)


store.LocalStore.set = slow
out, images = sys.argv[1], sys.argv[2:]
moments = random.Random(3)
for attempt in range(10):
    child = os.fork()
    if not child:
        run(out, images)
        os._exit(0)
    if attempt > 1:
        os.read(writing, 1)
    time.sleep(moments.uniform(0, 0.3))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "was done before it was killed"
    os.set_blocking(writing, False)
    try:
        os.read(writing, 1 << 16)
    except BlockingIOError:
        pass
    os.set_blocking(writing, True)
    parts = os.path.join(out, "parts")
    print(len(os.listdir(parts)) if os.path.isdir(parts) else 0, flush=True)
"""


def photo(seed: int, height: int, width: int) -> Image.Image:
    """Smooth colours, so that resizing and cropping by a pixel too much shows."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (5 + seed + c) + c) + np.cos(y / (7 + seed - c)) for c in range(3)]
    return Image.fromarray(np.uint8(np.stack(waves, axis=2) * 60 + 127))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Portraits and landscapes in two folders, one of them gray; the sixth is cut in the middle."""
    root = tmp_path_factory.mktemp("photos")
    (root / "more").mkdir()
    for i in range(NUM_IMAGES):
        name = root / ("more" if i % 3 == 2 else "") / f"{i:02d}.png"
        image = photo(i, 70 + 13 * (i % 4), 101 - 11 * (i % 3))
        (image.convert("L") if i == 7 else image).save(name)
    bad = root / "more" / "05.png"
    bad.write_bytes(bad.read_bytes()[:1000])
    return root


@pytest.fixture(scope="module")
def images(photos: Path) -> ImageList:
    """In the order of their numbers."""
    paths = sorted(map(str, photos.rglob("*.png")), key=lambda path: Path(path).stem)
    assert len(paths) == NUM_IMAGES and Path(paths[BAD]).stem == "05"
    return ImageList(paths, paths, upright=True)


@pytest.fixture(scope="module")
def net() -> td.TwinsBackbone:
    return random_backbone(SLIM_SVT)


def settings(protocol: Protocol = CROP, **changes: Any) -> Settings:
    return dataclasses.replace(Settings(protocol, maps=True, pool=True, chunk=4), **changes)


def run(net: td.TwinsBackbone, images: ImageList, out: Path, what: Settings | None = None, **options: Any) -> Report:
    options = {"weights_sha256": "w", "device": CPU, "num_workers": 0, **options}
    return extract(net, images, out, what or settings(), **options)


@pytest.fixture(scope="module")
def done(net: td.TwinsBackbone, images: ImageList, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of all photos at 64x64. Not to be changed."""
    out = tmp_path_factory.mktemp("features") / "done"
    run(net, images, out)
    return out


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "svt_small.pth"
    torch.save(td.create_classifier("svt_small").state_dict(), path)
    return path


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same(folder: Path, expected: Path) -> None:
    found, wanted = snapshot(folder), snapshot(expected)
    assert sorted(found) == sorted(wanted)
    assert [name for name, content in wanted.items() if found[name] != content] == []


class TestNumbers:
    @pytest.mark.parametrize(("name", "short_side"), [("crop", 64), ("imagenet", 73)])
    @torch.no_grad()
    def test_one_size(
        self, net: td.TwinsBackbone, images: ImageList, tmp_path: Path, name: str, short_side: int
    ) -> None:
        """Against torchvision's own resizing and cropping, image by image; 64 * 256 / 224 = 73.1."""
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
        """Each image alone, padded by hand; the vector is the mean over cells that show some of it."""
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

    def test_what_float16_cannot_hold(self, images: ImageList, tmp_path: Path) -> None:
        net = random_backbone(SLIM_SVT)
        with torch.no_grad():
            net.norm_list[3].weight.fill_(1e6)
        with pytest.raises(td.TwinsError, match=r"^c5 of .*00\.png has values .* in float16: choose --dtype bfloat16"):
            run(net, images, tmp_path, settings(dtype="float16"))
        run(net, images, tmp_path / "other", settings(dtype="bfloat16"))

    @pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 97), (131, 70), (300, 65), (33, 50)])
    @pytest.mark.parametrize("name", ["crop", "imagenet"])
    def test_geometry(self, height: int, width: int, name: str, tmp_path: Path) -> None:
        """Pixel by pixel torchvision's; and the transform leads from a pixel of the crop back to where it was."""
        protocol = Protocol(name, 64)
        image = photo(1, height, width)
        pixels, geometry = protocol.apply(image)
        transform = image_transform(Preprocessing(protocol.short_side, None, 64, "bicubic", (0, 0, 0), (1, 1, 1)))
        assert torch.equal(torch.from_numpy(pixels).permute(2, 0, 1) / 255, transform(image))
        assert (geometry.height, geometry.width) == (height, width)
        ramp = Image.fromarray(np.repeat(np.linspace(0, 250, width)[None], height, 0).astype(np.uint8)).convert("RGB")
        value = protocol.apply(ramp)[0][30, 30, 0]
        x = (30.5 + geometry.crop_left) * width / geometry.resized_width - 0.5
        assert value == pytest.approx(250 * x / (width - 1), abs=2)

    def test_photos_are_turned_upright(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by 90 degrees
        photo(2, 70, 101).save(tmp_path / "a.png", exif=exif)
        turned = decode(str(tmp_path / "a.png"), Protocol("native", None, upright=True))
        stored = decode(str(tmp_path / "a.png"), Protocol("native", None, upright=False))
        assert turned.pixels is not None and stored.pixels is not None
        assert torch.equal(turned.pixels, stored.pixels.rot90(-1))


class TestWhatCanHappen:
    def test_ten_kills(self, photos: Path, tmp_path: Path) -> None:
        """Killed ten times in a row with SIGKILL, then left alone: not a byte differs."""
        (tmp_path / "run.py").write_text(SCRIPT)
        (tmp_path / "killer.py").write_text(KILLER)
        copies = tmp_path / "copies"
        copies.mkdir()
        files = sorted(photos.rglob("*.png"))
        for number in range(8 * NUM_IMAGES):  # enough work for ten kills
            (copies / f"{number:03d}.png").write_bytes(files[number % NUM_IMAGES].read_bytes())
        program(tmp_path, "run.py", tmp_path / "whole", copies)
        output = program(tmp_path, "killer.py", tmp_path / "killed", copies)
        finished = [int(line) for line in output.split()]
        assert len(finished) == 10 and not (tmp_path / "killed" / "index.parquet").exists()
        assert finished == sorted(finished) and finished[-1] > finished[0]  # each went on where the last was killed
        program(tmp_path, "run.py", tmp_path / "killed", copies)
        assert_same(tmp_path / "killed", tmp_path / "whole")

    def test_two_processes(self, photos: Path, tmp_path: Path) -> None:
        (tmp_path / "run.py").write_text(SCRIPT)
        launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
        program(tmp_path, *launch, "run.py", tmp_path / "two", photos)
        program(tmp_path, "run.py", tmp_path / "one", photos)
        assert_same(tmp_path / "two", tmp_path / "one")

    def test_workers_change_nothing(self, net: td.TwinsBackbone, images: ImageList, done: Path, tmp_path: Path) -> None:
        report = run(net, images, tmp_path, num_workers=2)
        assert_same(tmp_path, done)
        assert report.num_done == NUM_IMAGES and report.seconds > 0

    def test_a_corrupt_image_costs_nothing_else(self, net: td.TwinsBackbone, images: ImageList, done: Path) -> None:
        features = td.open_features(done)
        entry = features.entry(BAD)
        assert "truncated" in entry["error"] and len(entry["sha256"]) == 64 and entry["valid_height"] is None
        with pytest.raises(td.TwinsError, match=r"row 5 of .*05\.png, has no features: .*truncated"):
            features[BAD]
        assert features.readable().indices == [row for row in range(NUM_IMAGES) if row != BAD]
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
            assert td.open_features(tmp_path / protocol.name).readable().indices == [2]

    @pytest.mark.parametrize("protocol", [CROP, Protocol("imagenet", 64)])
    def test_a_long_and_narrow_image(self, net: td.TwinsBackbone, photos: Path, tmp_path: Path, protocol: Any) -> None:
        """Resized as a whole it would have 12 gigabytes."""
        Image.new("L", (60_000, 1)).save(tmp_path / "line.png")
        paths = [str(tmp_path / "line.png"), str(photos / "00.png")]
        report = run(net, ImageList(paths, paths, True), tmp_path / "out", settings(protocol))
        (line,) = report.unreadable
        assert "60000x1 pixels are too long and narrow" in line

    def test_odd_exif(self, net: td.TwinsBackbone, tmp_path: Path) -> None:
        """A resolution unit as a fraction beside the orientation, as some cameras write it."""
        tiff = struct.pack("<2sHIH", b"II", 42, 8, 2)
        tiff += struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHII", 0x0128, 5, 1, 38)
        tiff += struct.pack("<III", 0, 2, 1)
        image = photo(3, 90, 70)
        image.save(tmp_path / "odd.png", exif=b"Exif\0\0" + tiff)
        decoded = decode(str(tmp_path / "odd.png"), Protocol("native", None))
        assert decoded.error is None and decoded.pixels is not None
        np.testing.assert_array_equal(decoded.pixels.numpy(), np.rot90(np.asarray(image), 3))

    @pytest.mark.parametrize("orientation", range(9))
    def test_every_orientation(self, tmp_path: Path, orientation: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = photo(3, 90, 70)
        image.save(tmp_path / "photo.png", exif=exif)
        with Image.open(tmp_path / "photo.png") as file:
            expected = np.asarray(ImageOps.exif_transpose(file))
        decoded = decode(str(tmp_path / "photo.png"), Protocol("native", None))
        assert decoded.pixels is not None
        np.testing.assert_array_equal(decoded.pixels.numpy(), expected)

    @pytest.mark.parametrize("num_workers", [0, 1])
    def test_a_disk_that_does_not_answer(
        self,
        net: td.TwinsBackbone,
        images: ImageList,
        done: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        num_workers: int,
    ) -> None:
        """That is no fault of an image: the run stops, and goes on later."""
        read = Path.read_bytes

        def fail(path: Path) -> bytes:
            if path.name == Path(images.paths[-1]).name:
                raise OSError(errno.EIO, "Input/output error")
            return read(path)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", fail)
            with pytest.raises(
                td.TwinsError, match=r"cannot be read now \(Input/output error\): finished chunks are kept"
            ):
                run(net, images, tmp_path, num_workers=num_workers)
        run(net, images, tmp_path)
        assert_same(tmp_path, done)

    def test_a_killed_reader(
        self, net: td.TwinsBackbone, images: ImageList, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def be_killed(*arguments: Any) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        with monkeypatch.context() as patch:
            patch.setattr(preparing, "decode", be_killed)
            with pytest.raises(td.TwinsError, match=r"a data loader worker died .*fewer --workers"):
                run(net, images, tmp_path, num_workers=1)
        run(net, images, tmp_path)
        assert_same(tmp_path, done)

    def test_two_runs_at_once(self, net: td.TwinsBackbone, images: ImageList, done: Path, tmp_path: Path) -> None:
        store = storage.FeatureStore(tmp_path, json.loads((done / "manifest.json").read_text()))
        with store.locked(), pytest.raises(td.TwinsError, match="another extraction is writing to"):
            run(net, images, tmp_path)
        run(net, images, tmp_path)
        assert_same(tmp_path, done)

    @pytest.mark.parametrize("where", ["maps", "index"])
    def test_a_full_disk(
        self,
        net: td.TwinsBackbone,
        images: ImageList,
        done: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        where: str,
    ) -> None:
        """Full in the middle of the third chunk of three."""

        set_whole, write_whole = storage.LocalStore.set, storage.write_atomically

        async def set_fake(self: Any, key: str, value: Any) -> None:
            if key.startswith("c4/c/2"):
                raise OSError(errno.ENOSPC, "No space left on device")
            await set_whole(self, key, value)

        def write_fake(path: Path, content: bytes) -> None:
            if path.name == "00000002.parquet":
                raise OSError(errno.ENOSPC, "No space left on device")
            write_whole(path, content)

        with monkeypatch.context() as patch:
            if where == "maps":
                patch.setattr(storage.LocalStore, "set", set_fake)
            else:
                patch.setattr(storage, "write_atomically", write_fake)
            with pytest.raises(td.TwinsError, match=r"No space left on device\): finished chunks are kept; .* again"):
                run(net, images, tmp_path)
        assert not (tmp_path / "index.parquet").exists()
        with pytest.raises(td.TwinsError, match=r"is not complete: run `twins-dense extract` again"):
            td.open_features(tmp_path)
        assert run(net, images, tmp_path).num_done == 3  # the last chunk
        assert_same(tmp_path, done)

    def test_a_finished_folder_is_left_alone(self, net: td.TwinsBackbone, images: ImageList, done: Path) -> None:
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


class TestReader:
    def test_rows_and_ids(self, images: ImageList, done: Path) -> None:
        features = td.open_features(done)
        assert len(features) == NUM_IMAGES and features.levels == ("c2", "c3", "c4", "c5")
        assert features[images.ids[3]]["row"] == 3 and features[-1]["path"] == images.paths[-1]
        np.testing.assert_array_equal(features[images.ids[3]]["c4"], features[3]["c4"])
        with pytest.raises(IndexError):
            features[NUM_IMAGES]
        with pytest.raises(td.TwinsError, match=r"has no image 'nobody': its ids look like .*00\.png"):
            features["nobody"]

    def test_vectors(self, done: Path, tmp_path: Path, net: td.TwinsBackbone, images: ImageList) -> None:
        features = td.open_features(done)
        vectors = features.vectors("c4")
        assert vectors.shape == (NUM_IMAGES, 20)
        for row in (10, 0, 7):
            np.testing.assert_array_equal(features[row]["c4_mean"], vectors[row])
        run(net, images, tmp_path, settings(pool=False))
        with pytest.raises(td.TwinsError, match=r"no vectors 'c4_mean' \(it has none\): extract them with --pool mean"):
            td.open_features(tmp_path).vectors("c4")

    def test_vectors_across_row_groups(
        self, net: td.TwinsBackbone, images: ImageList, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    def test_as_a_data_set(self, done: Path, num_workers: int) -> None:
        features = td.open_features(done, kind="torch")
        features[0]  # what is open already must not be in the way of the workers
        batches = list(DataLoader(features.readable(), batch_size=4, num_workers=num_workers))
        assert [batch["c3"].shape for batch in batches] == [(4, 12, 8, 8), (4, 12, 8, 8), (2, 12, 8, 8)]
        assert torch.cat([batch["row"] for batch in batches]).tolist() == [r for r in range(NUM_IMAGES) if r != BAD]
        assert torch.equal(batches[1]["c3"][0], features[4]["c3"])

    def test_without_this_package(self, images: ImageList, done: Path) -> None:
        """Plain zarr and pyarrow find an image by its path."""
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

    def test_layout(self, done: Path) -> None:
        """A file a chunk and level; each image is compressed alone."""
        assert sorted(path.name for path in done.iterdir()) == ["index.parquet", "manifest.json", "maps.zarr"]
        array = zarr.open_array(done / "maps.zarr" / "c2", mode="r")
        assert array.shards == (4, 8, 16, 16) and array.chunks == (1, 8, 16, 16)
        assert len([path for path in (done / "maps.zarr" / "c2" / "c").rglob("*") if path.is_file()]) == 3

    def test_foreign_folders(self, tmp_path: Path) -> None:
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

    def test_maps_that_are_not_there(self, net: td.TwinsBackbone, images: ImageList, tmp_path: Path) -> None:
        run(net, images, tmp_path / "native", settings(Protocol("native", None)))
        features = td.open_features(tmp_path / "native")
        assert features.map(-1, "c2").shape == features.map(NUM_IMAGES - 1, "c2").shape
        with pytest.raises(td.TwinsError, match="has no features"):
            features.map(BAD, "c2")
        run(net, images, tmp_path / "pooled", settings(maps=False))
        with pytest.raises(td.TwinsError, match=r"has no maps: .* --maps"):
            td.open_features(tmp_path / "pooled").map(0, "c2")


class TestPreview:
    def test_colours(self) -> None:
        """Against numpy's SVD, up to sign and stretch: components are correlated by 1."""
        cells = torch.randn(6, 9, 7) * torch.tensor([5.0, 3, 2, 1, 1, 1])[:, None, None]
        colours = principal_colours(cells).numpy().reshape(3, -1)
        rows = cells.numpy().reshape(6, -1).T
        _, _, components = np.linalg.svd(rows - rows.mean(0))
        inside = ((colours > 0) & (colours < 1)).all(0)
        for colour, component in zip(colours, components[:3], strict=True):
            turned = component * np.sign(component[np.abs(component).argmax()])
            assert np.corrcoef(colour[inside], (rows @ turned)[inside])[0, 1] == pytest.approx(1, abs=1e-5)
        assert colours.min() == 0 and colours.max() == 1

    @pytest.mark.parametrize("protocol", [CROP, Protocol("native", None)], ids=lambda protocol: protocol.name)
    def test_pictures(self, net: td.TwinsBackbone, images: ImageList, tmp_path: Path, protocol: Protocol) -> None:
        run(net, images, tmp_path, settings(protocol))
        features = td.open_features(tmp_path)
        drawn = draw_preview(features, 1)
        expected = decode(images.paths[1], protocol).pixels
        assert expected is not None
        height, width = expected.shape[:2]
        assert drawn.shape == (height, 5 * width, 3)
        np.testing.assert_array_equal(drawn[:, :width], expected)
        assert (drawn[:4, width : width + 4] == drawn[0, width]).all()  # a cell of c2


class TestImages:
    def test_lists(self, photos: Path, tmp_path: Path) -> None:
        assert len(list_images([str(photos)]).paths) == NUM_IMAGES
        assert len(list_images([str(photos / "*.png"), str(photos / "00.png")]).paths) == 8  # each once
        names = [str(path.relative_to(photos)) for path in sorted(photos.rglob("*.png"))]
        (photos.parent / "names.txt").write_text("\n".join([*names, ""]))
        listed = list_images([str(photos.parent / "names.txt")], str(photos))
        assert listed.paths == [str(photos / name) for name in names] and listed.ids == listed.paths and listed.upright
        (photos.parent / "marked.txt").write_text("\n".join(names), encoding="utf-8-sig")  # as Windows' editors do
        assert list_images([str(photos.parent / "marked.txt")], str(photos)).paths == listed.paths

    def test_results_are_no_photos(self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        shutil.copytree(photos, tmp_path / "photos")
        (tmp_path / "photos" / "out" / "preview").mkdir(parents=True)
        shutil.copy(photos / "00.png", tmp_path / "photos" / "out" / "preview")
        monkeypatch.chdir(tmp_path / "photos")
        for folder in (".", str(tmp_path / "photos")):
            assert len(list_images([folder]).paths) == NUM_IMAGES + 1
            assert len(list_images([folder], out=Path("out")).paths) == NUM_IMAGES
            assert len(list_images([folder], out=tmp_path / "elsewhere").paths) == NUM_IMAGES + 1

    def test_coco(self, tmp_path: Path) -> None:
        file = tmp_path / "annotations" / "instances_val.json"
        file.parent.mkdir()
        entries = [{"id": 7, "file_name": "b.jpg"}, {"id": 3, "file_name": "a.jpg"}]
        file.write_text(json.dumps({"images": entries}))
        with pytest.raises(td.TwinsError, match="name their folder with --image-dir"):
            list_images([str(file)])
        (tmp_path / "val").mkdir()
        found = list_images([str(file)])
        assert found.ids == ["3", "7"] and not found.upright
        assert found.paths == [str(tmp_path / "val" / name) for name in ("a.jpg", "b.jpg")]
        with pytest.raises(td.TwinsError, match="alone"):
            list_images([str(file), "x.jpg"])

    @pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00"])
    def test_bad_lists(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "bad.txt").write_bytes(content)
        with pytest.raises(td.TwinsError, match=r"bad\.txt"):
            list_images([str(tmp_path / "bad.txt")])


class TestCommand:
    def test_from_photos_to_pictures(self, weights: Path, photos: Path, tmp_path: Path) -> None:
        """ImageNet weights have no level norms, so the features have none; a second call has nothing to do."""
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
    def test_bad_input(self, weights: Path, photos: Path, tmp_path: Path, options: Sequence[str], words: str) -> None:
        arguments = ("--variant", "svt_small", "--weights", weights, "--out", tmp_path / "f")
        assert_error(twins("extract", photos, *arguments, *options), words)
        assert list(tmp_path.iterdir()) == []

    def test_no_image_can_be_read(self, weights: Path, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").write_text("no image")
        options = ("--variant", "svt_small", "--weights", weights, "--size", 64, "--workers", 0)
        result = twins("extract", tmp_path / "a.jpg", *options, "--out", tmp_path / "f")
        assert result.code == 2 and "none of the 1 images can be read" in result.err.splitlines()[-1]

    def test_a_missing_package(self, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("twins_dense.features.extract", "twins_dense.features.reader", "twins_dense.features.store"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setitem(sys.modules, "zarr", None)
        for attempt in (lambda: td.open_features(photos),):
            with pytest.raises(td.TwinsError, match=r"zarr is not installed.*pip install 'twins-dense\[features\]'"):
                attempt()


def program(folder: Path, *arguments: object) -> str:
    """Run Python in a folder that also has the tests' modules; returns what it printed."""
    environment = one_thread()
    environment["PYTHONPATH"] = ":".join(
        [
            str(folder),
            str(Path(__file__).parents[1]),
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
