"""Data in ADE20K's layout: problems are reported in one line before a run starts, and samples depend on their seed."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_fixtures import assert_error, twins
from detection_fixtures import ROOT
from mmengine.registry import DefaultScope
from PIL import Image
from segmentation_fixtures import CLASSES, NUM_TRAIN, PHOTOS, write_config

from twins_dense.errors import TwinsError
from twins_dense.frameworks.mmengine import engine
from twins_dense.frameworks.mmengine.segmentors import ADE20KDataset, SegmentationDataset

NO_PHOTOS = "needs real photos: set TWINS_DENSE_TEST_DATA to the folder that holds camvid_mini and ade20k_sample"
LABELS = "annotations/training"


@pytest.fixture(autouse=True)
def mmseg_scope() -> Iterator[None]:
    """Select mmseg's transforms, because other registries contain transforms with the same names."""
    with DefaultScope.overwrite_default_scope("mmseg"):
        yield


@pytest.fixture
def data(label_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(label_data, tmp_path / "data"))


def dataset(data: Path, **options: Any) -> SegmentationDataset:
    arguments: dict[str, Any] = {
        "data_root": str(data),
        "data_prefix": {"img_path": "images/training", "seg_map_path": LABELS},
        "img_suffix": ".png",
        "reduce_zero_label": True,
        "metainfo": {"classes": CLASSES},
        "pipeline": [],
    }
    return SegmentationDataset(**{**arguments, **options})


def change_label(data: Path, number: int, change: Callable[[np.ndarray], Image.Image]) -> None:
    path = data / LABELS / f"{number}.png"
    change(np.array(Image.open(path))).save(path)


def with_value(value: int) -> Callable[[np.ndarray], Image.Image]:
    def change(label: np.ndarray) -> Image.Image:
        label[10, 10] = value
        return Image.fromarray(label)

    return change


def with_palette(label: np.ndarray) -> Image.Image:
    image = Image.fromarray(label).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    return image


# The changes of the label maps 1, 2, … of the training images, and the expected message.
DAMAGES: dict[str, tuple[Callable[[np.ndarray], Image.Image], str, str]] = {
    "value": (with_value(4), "label with values outside the classes", "1.png (4)"),
    "size": (
        lambda label: Image.fromarray(label[:-1]),
        "label whose size differs from that of its image",
        "1.png (80x63 for 80x64)",
    ),
    "palette": (with_palette, "label with a palette", "1.png"),
    "colours": (lambda label: Image.fromarray(np.stack([label] * 3, 2)), "label that is not 8-bit gray", "(mode RGB)"),
}


class TestBadData:
    @pytest.mark.parametrize("name", DAMAGES)
    def test_counts_and_the_first_five_files(self, data: Path, name: str) -> None:
        change, kind, first = DAMAGES[name]
        for number in range(1, 8):
            change_label(data, number, change)
        with pytest.raises(TwinsError) as caught:
            dataset(data)
        message = str(caught.value)
        assert "\n" not in message and f"7 × {kind}" in message and first in message and "--skip-bad" in message
        shown = [number for number in range(NUM_TRAIN) if f"{number}.png" in message]
        assert shown == [1, 2, 3, 4, 5] and ", …" in message

    def test_an_image_without_its_label(self, data: Path) -> None:
        (data / LABELS / "3.png").unlink()
        with pytest.raises(TwinsError, match=r"1 × image without its label: \S+3\.png \(no \S+3\.png\)"):
            dataset(data)

    @pytest.mark.parametrize("folder", ["images/training", LABELS])
    def test_a_cut_file(self, data: Path, folder: str) -> None:
        path = data / folder / "2.png"
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(TwinsError, match=r"1 × (image|label) that cannot be read: \S+2\.png"):
            dataset(data)

    def test_several_kinds_at_once(self, data: Path) -> None:
        change_label(data, 0, with_value(77))
        change_label(data, 1, with_palette)
        (data / LABELS / "3.png").unlink()
        with pytest.raises(TwinsError) as caught:
            dataset(data)
        assert str(caught.value).count("1 × ") == 3

    def test_what_is_allowed(self, data: Path) -> None:
        """255 is always ignored. With `reduce_zero_label`, so is 0, and K is a class; otherwise, K is not a class."""
        change_label(data, 0, with_value(255))
        assert len(dataset(data)) == NUM_TRAIN
        with pytest.raises(TwinsError, match=rf"{NUM_TRAIN} × label with values outside the classes: \S+0\.png \(3\)"):
            dataset(data, reduce_zero_label=False)
        assert len(dataset(data, reduce_zero_label=False, metainfo={"classes": ("rest", *CLASSES)})) == NUM_TRAIN

    def test_a_lying_photo_fits_its_standing_label(self, data: Path) -> None:
        """mmcv rotates photos according to their EXIF orientation when it reads them."""
        exif = Image.Exif()
        exif[0x0112] = 6
        (data / "images" / "training" / "0.png").unlink()
        Image.new("RGB", (64, 80)).save(data / "images" / "training" / "0.png", exif=exif)
        made = dataset(data, pipeline=[{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}])
        assert made[0]["img"].shape[:2] == made[0]["gt_seg_map"].shape == (64, 80)

    def test_skip_bad(self, data: Path) -> None:
        change_label(data, 4, with_value(9))
        (data / LABELS / "6.png").unlink()
        made = dataset(data, skip_bad=True)
        names = [Path(made.get_data_info(index)["img_path"]).stem for index in range(len(made))]
        assert names == ["0", "1", "2", "3", "5", "7"]
        assert len(made.problems) == 2 and all("\n" not in line for line in made.problems)

    def test_nothing_left(self, data: Path) -> None:
        shutil.rmtree(data / LABELS)
        (data / LABELS).mkdir()
        with pytest.raises(TwinsError, match=r"no usable image is left: 8 × image without its label"):
            dataset(data, skip_bad=True)

    def test_indices_are_the_first_images(self, data: Path) -> None:
        change_label(data, 6, with_value(9))
        assert len(dataset(data, indices=3)) == 3

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"img_suffix": ".jpg"}, r"contains no \*\.jpg images"),
            ({"data_root": "/no/where"}, "no such folder"),
            ({"metainfo": None}, "no classes"),
        ],
    )
    def test_wrong_settings(self, data: Path, options: dict[str, Any], words: str) -> None:
        with pytest.raises(TwinsError, match=words):
            dataset(data, **options)

    def test_unknown_arguments_are_refused(self, data: Path) -> None:
        with pytest.raises(TypeError, match="reduce_zero"):
            dataset(data, reduce_zero=True)


class TestLabels:
    def test_reduce_zero_label(self, data: Path) -> None:
        stored = np.array(Image.open(data / LABELS / "0.png"))
        steps = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}]
        found = dataset(data, pipeline=steps)[0]["gt_seg_map"]
        assert (found[stored == 0] == 255).all()
        for value in (1, 2, 3):
            assert (found[stored == value] == value - 1).all()

    @pytest.mark.skipif(not (PHOTOS / "ade20k_sample").is_dir(), reason=NO_PHOTOS)
    def test_ade20k(self) -> None:
        """mmseg's metric gives the ground truth a perfect score. `reduce_zero_label` is on by default."""
        from mmseg.evaluation import IoUMetric

        prefix = {"img_path": "images/validation", "seg_map_path": "annotations/validation"}
        steps = [{"type": name} for name in ("LoadImageFromFile", "LoadAnnotations", "PackSegInputs")]
        made = ADE20KDataset(data_root=str(PHOTOS / "ade20k_sample"), data_prefix=prefix, pipeline=steps)
        metric = IoUMetric(prefix="s")
        metric.dataset_meta = made.metainfo
        values = set()
        for index in range(len(made)):
            sample = made[index]["data_samples"]
            truth = sample.gt_sem_seg.data
            values |= set(truth.unique().tolist())
            # Predictions for ignored pixels do not matter.
            prediction = {"data": truth.where(truth != 255, torch.tensor(0))}
            metric.process({}, [{"pred_sem_seg": prediction, "gt_sem_seg": {"data": truth}}])
        assert len(made) == 3 and 255 in values and max(values - {255}) <= 149
        scores = metric.compute_metrics(metric.results)
        assert (scores["mIoU"], scores["aAcc"], scores["mAcc"]) == (100, 100, 100)

    @pytest.mark.skipif(not (PHOTOS / "camvid_mini").is_dir(), reason=NO_PHOTOS)
    def test_camvid(self) -> None:
        config = str(ROOT / "configs/mmseg/semantic_fpn_svt_small_camvid.py")
        result = twins("check-data", config, "--data-root", PHOTOS / "camvid_mini")
        assert result.code == 0, result.err
        lines = result.out.splitlines()
        assert ": 60 images, 11 classes" in lines[0] and ": 20 images, 11 classes" in lines[1] and len(lines) == 2


class TestSeeds:
    PIPELINE = (
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations"},
        {"type": "RandomResize", "scale": (96, 64), "ratio_range": (0.5, 2.0), "keep_ratio": True},
        {"type": "RandomCrop", "crop_size": (48, 48), "cat_max_ratio": 0.75},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "PhotoMetricDistortion"},
        {"type": "PackSegInputs"},
    )

    def test_a_sample_is_a_function_of_its_seed(self, data: Path) -> None:
        made = dataset(data, pipeline=list(self.PIPELINE))
        first = made[(2, 12345)]
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        again = made[(2, 12345)]
        assert torch.equal(first["inputs"], again["inputs"])
        assert torch.equal(first["data_samples"].gt_sem_seg.data, again["data_samples"].gt_sem_seg.data)
        others = [made[(2, seed)]["inputs"] for seed in range(2**62, 2**62 + 4)]
        assert all(other.shape != first["inputs"].shape or not torch.equal(other, first["inputs"]) for other in others)

    def test_the_surroundings_keep_their_random_numbers(self, data: Path) -> None:
        made = dataset(data, pipeline=list(self.PIPELINE))

        def draw() -> tuple[float, float, float]:
            return random.random(), np.random.rand(), torch.rand(()).item()

        random.seed(3), np.random.seed(3), torch.manual_seed(3)
        expected = [draw(), draw()]
        random.seed(3), np.random.seed(3), torch.manual_seed(3)
        before = draw()
        made[(0, 7)]
        assert [before, draw()] == expected


class TestCheckData:
    def test_lists_the_splits(self, data: Path, tmp_path: Path) -> None:
        result = twins("check-data", write_config(tmp_path / "c.py", data))
        assert (result.code, result.err) == (0, "")
        assert result.out.splitlines() == [
            f"train: {data}/images/training: 8 images, 3 classes",
            f"val: {data}/images/validation: 5 images, 3 classes",
        ]

    @pytest.mark.parametrize("name", DAMAGES)
    def test_and_train_refuse_alike(self, data: Path, tmp_path: Path, name: str) -> None:
        change, kind, first = DAMAGES[name]
        change_label(data, 1, change)
        config = write_config(tmp_path / f"{name}.py", data)
        line = assert_error(twins("check-data", config), f"1 × {kind}", first)
        assert assert_error(twins("train", config, "--work-dir", tmp_path / "work")) == line
        assert not (tmp_path / "work").exists()

    def test_skip_bad(self, data: Path, tmp_path: Path) -> None:
        change_label(data, 1, with_value(9))
        result = twins("check-data", write_config(tmp_path / "c.py", data), "--skip-bad")
        assert result.code == 0, result.err
        lines = result.out.splitlines()
        assert lines[0].endswith("7 images, 3 classes, left out 1") and "1.png" in lines[1] and len(lines) == 3

    def test_detection_data(self, toy_data: Path, tmp_path: Path) -> None:
        from detection_fixtures import write_config as write_detection_config

        result = twins("check-data", write_detection_config(tmp_path / "d.py", toy_data))
        assert result.code == 0, result.err
        assert [line.rpartition(": ")[2] for line in result.out.splitlines()] == [
            "8 images, 3 classes",
            "5 images, 3 classes",
        ]

    def test_other_number_of_classes(self, data: Path, tmp_path: Path) -> None:
        config = engine.load_config(write_config(tmp_path / "c.py", data), ["model.decode_head.num_classes=7"])
        with pytest.raises(
            TwinsError, match=r"3 categories, but the model has 7 classes: add model.decode_head.num_classes=3"
        ):
            engine.train(config, tmp_path / "work")

    def test_mmseg_s_own_data_sets_are_not_checked(self, data: Path, tmp_path: Path) -> None:
        config = write_config(tmp_path / "c.py", data)
        text = config.read_text().replace("twins_dense.SegmentationDataset", "mmseg.BaseSegDataset")
        config.write_text(text.replace("    skip_bad=False,\n", ""))
        line = assert_error(twins("train", config, "--work-dir", tmp_path / "work"))
        assert "'mmseg.BaseSegDataset' does not check its files: use" in line


def test_names_that_lead_outside(data: Path, tmp_path: Path) -> None:
    """A list of images can name files outside the folders, which are read only if that is allowed."""
    for folder in ("images", "annotations"):
        (data / folder / "training" / "0.png").rename(data / folder / "elsewhere.png")
    (tmp_path / "names.txt").write_text("../elsewhere\n1\n")
    options = {"ann_file": str(tmp_path / "names.txt")}
    with pytest.raises(TwinsError, match=r"1 × file outside its folder \(add --allow-outside .*elsewhere\.png"):
        dataset(data, **options)
    assert len(dataset(data, skip_bad=True, **options)) == 1
    assert len(dataset(data, allow_outside=True, **options)) == 2
