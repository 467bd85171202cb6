"""Images of any shape in `predict`: a result, or one line; and the results of all other images are kept."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_fixtures
import torch
from cli_fixtures import assert_error, twins
from detection_fixtures import build_tiny, write_config
from inference_fixtures import detection_model
from PIL import Image

from twins_dense.errors import TwinsError
from twins_dense.inference.output import predict_each, write_results

# Widths and heights.
SHAPES = [(1, 1), (2, 1), (1, 60000), (60000, 1), (2, 3000), (3000, 2), (7, 64), (31, 33), (1, 64), (64, 64)]


def write(folder: Path, shapes: Sequence[tuple[int, int]]) -> list[Path]:
    folder.mkdir()
    paths = []
    for number, (width, height) in enumerate(shapes):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        paths.append(folder / f"{number}_{width}x{height}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """The config and a checkpoint with random weights of a detector of each kind, and of a segmentor."""
    from twins_dense.frameworks.mmengine import engine

    folder = tmp_path_factory.mktemp("models")
    found = {}
    for kind in ("TwinsMaskRCNN", "TwinsRetinaNet"):
        meta = {"dataset_meta": {"classes": ("a", "b", "c"), "category_ids": (1, 2, 3)}}
        torch.save({"meta": meta, "state_dict": build_tiny(kind).state_dict()}, folder / f"{kind}.pth")
        found[kind] = [write_config(folder / f"{kind}.py", folder, kind=kind), folder / f"{kind}.pth"]
    path = segmentation_fixtures.write_config(folder / "segmentor.py", folder)
    config = engine.load_config(path)
    from mmengine.registry import MODELS, DefaultScope

    import twins_dense.frameworks.mmengine.segmentors  # noqa: F401  (registers the models)

    with DefaultScope.overwrite_default_scope("mmseg"):
        state = MODELS.build(config.model).state_dict()
    torch.save({"meta": {"dataset_meta": {}}, "state_dict": state}, folder / "segmentor.pth")
    found["segmentor"] = [path, folder / "segmentor.pth"]
    return found


@pytest.mark.parametrize("kind", ["TwinsMaskRCNN", "TwinsRetinaNet", "segmentor"])
def test_images_of_any_shape(models: dict[str, list[Path]], tmp_path: Path, kind: str) -> None:
    files = write(tmp_path / "images", SHAPES)
    for number, file in enumerate(files):
        out = tmp_path / f"out{number}"
        result = twins("predict", *models[kind], file, "--out", out, "--score", 0.9)
        if result.code:
            assert_error(result, str(file), "{}x{} pixels cannot be predicted".format(*SHAPES[number]))
        else:
            (entry,) = json.loads((out / "predictions.json").read_text())
            assert (entry["width"], entry["height"]) == SHAPES[number]
    assert result.code == 0  # of the last shape
    result = twins("predict", *models[kind], *files, "--out", tmp_path / "all", "--score", 0.9, "--skip-bad")
    assert result.code == 0, result.err
    entries = json.loads((tmp_path / "all" / "predictions.json").read_text())
    left_out = [line for line in result.err.splitlines() if line.startswith("left out: image ")]
    assert len(entries) + len(left_out) == len(files)
    assert [entry["file"] for entry in entries] == [str(file) for file in files if str(file) not in result.err]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_an_image_that_is_damaged_in_the_middle(models: dict[str, list[Path]], tmp_path: Path, batch_size: int) -> None:
    files = write(tmp_path / "images", [(64, 64)] * 5)
    content = bytearray(files[2].read_bytes())
    content[3000:6000] = bytes(3000)
    files[2].write_bytes(content)
    arguments = ("predict", *models["TwinsRetinaNet"], *files, "--score", 0.9, "--batch-size", batch_size)
    assert_error(twins(*arguments, "--out", tmp_path / "first"), str(files[2]))
    entries = json.loads((tmp_path / "first" / "predictions.json").read_text() or "[]")
    assert len(entries) == 2 // batch_size * batch_size
    result = twins(*arguments, "--out", tmp_path / "second", "--skip-bad")
    assert result.code == 0 and result.err.count("left out: ") == 1, result.err
    entries = json.loads((tmp_path / "second" / "predictions.json").read_text())
    assert [entry["file"] for entry in entries] == [str(file) for file in files if file != files[2]]


def test_only_bad_images(models: dict[str, list[Path]], tmp_path: Path) -> None:
    (file,) = write(tmp_path / "images", [(64, 64)])
    content = bytearray(file.read_bytes())
    content[3000:6000] = bytes(3000)
    file.write_bytes(content)
    result = twins("predict", *models["TwinsRetinaNet"], file, "--out", tmp_path / "out", "--skip-bad")
    assert result.code == 2 and result.err.splitlines()[-1].startswith("error: no image could be predicted; the first")


class TestPredictEach:
    @pytest.mark.parametrize("bad", [set(), {0}, {9}, {3, 4}, {0, 2, 5, 9}, set(range(10))])
    @pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 20])
    def test_every_other_image_is_predicted(self, bad: set[int], batch_size: int) -> None:
        files = [Path(str(number)) for number in range(10)]

        def predict(part: Sequence[Path], size: int) -> Iterator[Any]:
            for start in range(0, len(part), size):
                batch = [int(str(file)) for file in part[start : start + size]]
                if bad.intersection(batch):
                    raise TwinsError(f"bad {batch}")
                yield from batch

        left_out: list[str] = []
        found = list(predict_each(predict, files, batch_size, left_out))
        assert found == [None if number in bad else number for number in range(10)]
        assert left_out == [f"bad [{number}]" for number in sorted(bad)]

    def test_other_errors_are_raised(self) -> None:
        def predict(part: Sequence[Path], size: int) -> Iterator[Any]:
            raise KeyError("a mistake")
            yield

        with pytest.raises(KeyError):
            list(predict_each(predict, [Path("a")], 1, []))


class TestWriteResults:
    """`predictions.json` is valid after each image, whatever happens then."""

    def results(self, tmp_path: Path) -> Iterator[Any]:
        files = write(tmp_path / "images", [(40, 30)] * 4)
        model = detection_model()
        return write_results(map(model.predict, files), files, tmp_path / "out")

    def entries(self, tmp_path: Path) -> int:
        return len(json.loads((tmp_path / "out" / "predictions.json").read_text()))

    def test_after_each_image(self, tmp_path: Path) -> None:
        for count, _ in enumerate(self.results(tmp_path), start=1):
            assert self.entries(tmp_path) == count
        assert count == 4

    @pytest.mark.parametrize("number", [1, 3])
    def test_a_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        calls = []

        class Full(FileIO):
            def write(self, content: Any) -> int:
                calls.append(content)
                if len(calls) == number:
                    return super().write(bytes(content)[:50])  # a part, and then nothing
                if len(calls) == number + 1:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return super().write(content)

        before = Path.open

        def open_path(path: Path, *arguments: Any, **options: Any) -> Any:
            return Full(path, "w") if path.name == "predictions.json" else before(path, *arguments, **options)

        with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
            patched.setattr(Path, "open", open_path)
            list(self.results(tmp_path))
        assert self.entries(tmp_path) == number - 1
