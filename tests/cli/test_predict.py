"""`twins-dense predict`: pictures and detections of photos of every kind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_fixtures import Malicious, assert_error, cut, snapshot, twins
from detection_fixtures import Run
from PIL import Image
from pycocotools import mask as mask_utils


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several sizes and kinds; two of one name, and two that differ by their suffix alone."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)

    def noise(*shape: int) -> Image.Image:
        return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))

    (root / "folder" / "sub").mkdir(parents=True)
    noise(71, 97, 3).save(root / "single.png")
    noise(61, 83).save(root / "gray.png")
    noise(64, 64, 3).save(root / "folder" / "a.jpg")
    noise(67, 73, 3).save(root / "folder" / "a.png")
    noise(101, 79, 3).save(root / "folder" / "sub" / "a.JPG", "JPEG")
    (root / "folder" / "notes.txt").write_text("no image")
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees
    noise(64, 89, 3).save(root / "turned.jpg", exif=turned)
    return root


# (width, height), upright
SIZES = {
    "single.png": (97, 71),
    "gray.png": (83, 61),
    "folder/a.jpg": (64, 64),
    "folder/a.png": (73, 67),
    "folder/sub/a.JPG": (79, 101),
    "turned.jpg": (64, 89),
}


class TestPredict:
    def test_files_folders_and_globs(self, tiny_run: Run, photos: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        arguments = [photos / "single.png", photos / "folder", f"{photos}/g*.png", f"{photos}/s*.png"]
        arguments.append(photos / "turned.jpg")
        result = twins(
            "predict", tiny_run.config, tiny_run.checkpoint, *arguments, "--out", out, "--score", 0, "model.max_size=90"
        )
        assert result.code == 0, result.err
        entries = json.loads((out / "predictions.json").read_text())
        order = ["single.png", "folder/a.jpg", "folder/a.png", "folder/sub/a.JPG", "gray.png", "turned.jpg"]
        assert [entry["file"] for entry in entries] == [str(photos / name) for name in order]  # each once
        assert len({entry["picture"] for entry in entries}) == len(order)
        count = 0
        for name, entry in zip(order, entries, strict=True):
            width, height = SIZES[name]
            assert (entry["width"], entry["height"]) == (width, height)
            with Image.open(entry["picture"]) as picture:
                assert picture.size == (width, height)
            assert Path(entry["picture"]).is_relative_to(out)
            for detection in entry["detections"]:
                count += 1
                assert set(detection) == {"category_id", "category", "bbox", "score", "segmentation"}
                assert {1: "circle", 2: "rectangle", 5: "triangle"}[detection["category_id"]] == detection["category"]
                x, y, w, h = detection["bbox"]
                assert 0 <= x < x + w <= width + 1e-3 and 0 <= y < y + h <= height + 1e-3
                assert 0 <= detection["score"] <= 1
                assert detection["segmentation"]["size"] == [height, width]
                assert 0 <= mask_utils.area(detection["segmentation"]) <= width * height
        assert count > len(order)
        assert f"{count} instances in 6 images" in result.out

    def test_a_link_to_an_image_elsewhere(self, tiny_run: Run, photos: Path, tmp_path: Path) -> None:
        (tmp_path / "links").mkdir()
        (tmp_path / "links" / "photo.png").symlink_to(photos / "single.png")
        result = twins("predict", tiny_run.config, tiny_run.checkpoint, tmp_path / "links", "--out", tmp_path / "out")
        assert result.code == 0, result.err
        assert (tmp_path / "out" / "photo.jpg").is_file()

    def test_a_score_that_is_neither_a_number_nor_auto(self, photos: Path) -> None:
        for value in ("autom", "1.5", "nan"):
            result = twins("predict", "run", photos, "--score", value)
            assert result.code == 2
            assert f"'{value}' is neither a number in 0..1 nor 'auto'" in result.err

    def test_score(self, tiny_run: Run, photos: Path, tmp_path: Path) -> None:
        """The threshold keeps what is at or above it; the pictures of no detection are the images."""
        kept: dict[float, list[float]] = {}
        for score in (0.0, 0.2, 1.0):
            out = tmp_path / str(score)
            result = twins(
                "predict", tiny_run.config, tiny_run.checkpoint, photos / "single.png", "--out", out, "--score", score
            )
            assert result.code == 0, result.err
            (entry,) = json.loads((out / "predictions.json").read_text())
            kept[score] = [detection["score"] for detection in entry["detections"]]
        assert kept[0.2] == [score for score in kept[0.0] if score >= 0.2]
        assert kept[1.0] == [] and kept[0.0]
        plain = np.asarray(Image.open(photos / "single.png"), dtype=float)
        (empty,) = (tmp_path / "1.0").glob("*.jpg")
        (drawn,) = (tmp_path / "0.0").glob("*.jpg")
        differences = [np.abs(np.asarray(Image.open(path), dtype=float) - plain).mean() for path in (empty, drawn)]
        assert differences[0] < differences[1]

    @pytest.mark.parametrize("content", ["a folder with a file", "a file"])
    def test_refuses_a_folder_that_is_not_empty(
        self, tiny_run: Run, photos: Path, tmp_path: Path, content: str
    ) -> None:
        out = tmp_path / "out"
        if content == "a file":
            out.write_text("mine")
        else:
            out.mkdir()
            (out / "mine.txt").write_text("mine")
        before = snapshot(tmp_path)
        result = twins("predict", tiny_run.config, tiny_run.checkpoint, photos / "single.png", "--out", out)
        assert_error(result, str(out), "not empty", "--out")
        assert snapshot(tmp_path) == before

    def test_a_corrupt_image(self, tiny_run: Run, photos: Path, tmp_path: Path) -> None:
        shutil.copytree(photos / "folder", tmp_path / "in")
        cut(tmp_path / "in" / "a.png")
        arguments = ("predict", tiny_run.config, tiny_run.checkpoint, tmp_path / "in", "--out")
        assert_error(twins(*arguments, tmp_path / "first"), str(tmp_path / "in" / "a.png"), "--skip-bad")
        assert not (tmp_path / "first" / "predictions.json").exists()
        result = twins(*arguments, tmp_path / "second", "--skip-bad")
        assert result.code == 0
        (line,) = [line for line in result.err.splitlines() if line.startswith("left out: ")]
        assert str(tmp_path / "in" / "a.png") in line
        entries = json.loads((tmp_path / "second" / "predictions.json").read_text())
        assert [Path(entry["file"]).name for entry in entries] == ["a.jpg", "a.JPG"]

    @pytest.mark.parametrize("name", ["nothing.jpg", "*.gif", "empty"])
    def test_no_image(self, tiny_run: Run, tmp_path: Path, name: str) -> None:
        (tmp_path / "empty").mkdir()
        argument = str(tmp_path / name)
        result = twins("predict", tiny_run.config, tiny_run.checkpoint, argument, "--out", tmp_path / "out")
        assert_error(result, repr(argument))
        assert not (tmp_path / "out").exists()

    def test_only_overrides(self, tiny_run: Run, tmp_path: Path) -> None:
        result = twins("predict", tiny_run.config, tiny_run.checkpoint, "model.min_size=64", "--out", tmp_path / "out")
        assert_error(result, "no images given")

    def test_the_model_alone_and_its_config(self, tiny_run: Run, photos: Path, tmp_path: Path) -> None:
        """A work directory, a checkpoint, and a config with a checkpoint give the same file, also in batches."""
        contents = []
        sources = ([tiny_run.work_dir], [tiny_run.checkpoint], [tiny_run.config, tiny_run.checkpoint])
        for number, source in enumerate(sources):
            out = tmp_path / str(number)
            arguments = (*source, photos / "folder", "--out", out, "--score", 0.1, "model.max_size=80")
            result = twins("predict", *arguments, "--batch-size", number + 1)
            assert result.code == 0, result.err
            contents.append((out / "predictions.json").read_text().replace(str(out), "OUT"))
        assert contents[0] == contents[1] == contents[2]
        assert json.loads(contents[0])[0]["detections"]

    def test_names_of_pictures(self, tiny_run: Run, tmp_path: Path) -> None:
        """Only images that would overwrite the results of others keep their suffix."""
        folder = tmp_path / "in"
        folder.mkdir()
        names = ["a.jpg", "a.png", "a.PNG", "b.v1.png", "b.v2.png", "c.png", "legend.png"]
        for number, name in enumerate(names):
            Image.new("RGB", (32, 32 + number)).save(folder / name)
        result = twins("predict", tiny_run.checkpoint, folder, "--out", tmp_path / "out", "--score", 1)
        assert result.code == 0, result.err
        entries = json.loads((tmp_path / "out" / "predictions.json").read_text())
        pictures = {Path(entry["file"]).name: Path(entry["picture"]).name for entry in entries}
        assert pictures == {
            "a.PNG": "a.jpg",
            "a.jpg": "a.jpg.jpg",
            "a.png": "a.png.jpg",
            "b.v1.png": "b.v1.jpg",
            "b.v2.png": "b.v2.jpg",
            "c.png": "c.jpg",
            "legend.png": "legend.png.jpg",
        }
        for number, name in enumerate(names):
            with Image.open(tmp_path / "out" / pictures[name]) as picture:
                assert picture.size == (32, 32 + number)

    def test_tiles_and_views(self, tiny_run: Run, photos: Path, tmp_path: Path) -> None:
        options = ("--tile", 48, "--overlap", 0.3, "--tta", "flip,1.5", "--labels", "all", "--precision", "bfloat16")
        arguments = ("predict", tiny_run.checkpoint, photos / "single.png", "--out", tmp_path / "out", "--score", 0.1)
        result = twins(*arguments, *options, "--device", "cpu")
        assert result.code == 0, result.err
        (entry,) = json.loads((tmp_path / "out" / "predictions.json").read_text())
        assert entry["detections"] and (entry["height"], entry["width"]) == (71, 97)

    @pytest.mark.parametrize(
        ("options", "part"),
        [
            (("--tile", "16"), "16"),
            (("--overlap", "1"), "1"),
            (("--score", "2"), "2"),
            (("--score", "best"), "best"),
            (("--batch-size", "0"), "0"),
            (("--tta", "spin"), "'spin'"),
            (("--labels", "some"), "some"),
            (("--device", "abacus"), "'abacus'"),
            (("--precision", "int8"), "int8"),
            (("model.min_sise=3",), "min_sise"),
        ],
    )
    def test_bad_options(
        self, tiny_run: Run, photos: Path, tmp_path: Path, options: tuple[str, ...], part: str
    ) -> None:
        arguments = ("predict", tiny_run.checkpoint, photos / "single.png", "--out", tmp_path / "out", *options)
        result = twins(*arguments)
        assert result.code == 2 and part in result.err.splitlines()[-1]
        assert not (tmp_path / "out").exists()

    def test_recommended_scores_need_an_evaluation(self, tiny_run: Run, photos: Path, tmp_path: Path) -> None:
        checkpoint = tmp_path / "alone" / "epoch_1.pth"
        checkpoint.parent.mkdir()
        checkpoint.write_bytes(tiny_run.checkpoint.read_bytes())
        result = twins("predict", checkpoint, photos / "single.png", "--score", "auto", "--out", tmp_path / "out")
        assert result.code == 2 and f"run `twins-dense eval {checkpoint}` first" in result.err.splitlines()[-1]
        assert not (tmp_path / "out").exists()

    def test_no_such_model(self, photos: Path, tmp_path: Path) -> None:
        result = twins("predict", tmp_path / "nothing", photos / "single.png", "--out", tmp_path / "out")
        assert_error(result, str(tmp_path / "nothing"), "no such work directory")

    def test_a_malicious_checkpoint(self, tiny_run: Run, photos: Path, tmp_path: Path) -> None:
        torch.save({"meta": {}, "state_dict": Malicious(tmp_path / "trace")}, tmp_path / "evil.pth")
        arguments = ("predict", tiny_run.config, tmp_path / "evil.pth", photos / "single.png")
        assert_error(twins(*arguments, "--out", tmp_path / "out"), str(tmp_path / "evil.pth"))
        assert not (tmp_path / "trace").exists() and not (tmp_path / "out").exists()
