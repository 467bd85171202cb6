"""Data for detectron2: records, catalogs, its mapper, and ground truth for its evaluator."""

from __future__ import annotations

import importlib.util
import json
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from d2_fixtures import (
    MARKS,
    augmenting_mapper,
    clean_detectron2,  # noqa: F401  (a fixture)
    toy_files,
    twins_log,
)
from detection_fixtures import COCO_MINI, NO_PHOTOS, NUM_TRAIN, NUM_VAL, rectangle, run_python, write_coco
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

import twins_dense as td
from twins_dense.data.coco_masks import decode_segmentation
from twins_dense.frameworks.detectron2.data import build_train_loader, coco_dataset

pytestmark = MARKS
CLASSES = ["circle", "rectangle", "triangle"]  # the classes of the toy data, with ids 1, 2 and 5
Entry = dict[str, Any]


def code_as_list(height: int, width: int, box: tuple[int, int, int, int]) -> Entry:
    """Return a filled rectangle (x, y, width, height) as an uncompressed run-length code."""
    x, y, w, h = box
    counts = [x * height + y, *[h, height - h] * (w - 1), h]
    return {"size": [height, width], "counts": [*counts, height * width - sum(counts)]}


@pytest.fixture
def mixed(tmp_path: Path) -> dict[str, str]:
    """Write three images: one with a polygon, a run-length mask and a crowd; one with only a box; one with nothing.

    The two categories have the ids 4 and 9.
    """
    rng = np.random.default_rng(0)
    sizes = {1: (40, 60), 2: (60, 40), 3: (50, 50)}
    images = {image_id: rng.integers(0, 256, (*size, 3), dtype=np.uint8) for image_id, size in sizes.items()}
    annotations: list[Entry] = [
        {"image_id": 1, "category_id": 9, "bbox": [5, 6, 20, 10], "segmentation": rectangle(5, 6, 20, 10)},
        {
            "image_id": 1,
            "category_id": 4,
            "bbox": [30, 8, 12, 20],
            "segmentation": code_as_list(40, 60, (30, 8, 12, 20)),
        },
        {
            "image_id": 1,
            "category_id": 4,
            "bbox": [0, 30, 50, 10],
            "segmentation": code_as_list(40, 60, (0, 30, 50, 10)),
            "iscrowd": 1,
        },
        {"image_id": 2, "category_id": 4, "bbox": [3, 4, 30, 40]},
    ]
    return write_coco(tmp_path / "mixed", images, annotations, {4: "four", 9: "nine"})


class TestCocoDataset:
    def test_records(self, mixed: dict[str, str]) -> None:
        records = coco_dataset("mixed", training=False, **mixed)
        assert [record["image_id"] for record in records] == [1, 2, 3]
        assert [(record["height"], record["width"]) for record in records] == [(40, 60), (60, 40), (50, 50)]
        assert all(Path(record["file_name"]).is_file() for record in records)
        first, second, third = (record["annotations"] for record in records)
        assert [(a["bbox"], a["bbox_mode"], a["category_id"], a["iscrowd"]) for a in first] == [
            ([5, 6, 20, 10], BoxMode.XYWH_ABS, 1, 0),
            ([30, 8, 12, 20], BoxMode.XYWH_ABS, 0, 0),
            ([0, 30, 50, 10], BoxMode.XYWH_ABS, 0, 1),
        ]
        assert first[0]["segmentation"] == rectangle(5, 6, 20, 10)
        assert isinstance(first[1]["segmentation"]["counts"], bytes)  # compressed, as detectron2 requires
        assert decode_segmentation(first[1]["segmentation"], 40, 60)[8:28, 30:42].all()
        assert "segmentation" not in second[0] and third == []

    def test_catalogs(self, mixed: dict[str, str]) -> None:
        records = coco_dataset("mixed", training=True, **mixed)
        assert DatasetCatalog.get("mixed") == records
        metadata = MetadataCatalog.get("mixed")
        assert metadata.thing_classes == ["four", "nine"]
        assert metadata.thing_dataset_id_to_contiguous_id == {4: 0, 9: 1}
        assert metadata.evaluator_type == "coco"
        assert Path(metadata.json_file) == Path(mixed["data_root"]) / "things.json"
        assert Path(metadata.image_root) == Path(mixed["data_root"]) / "images"

    def test_training_leaves_out_images_without_an_instance(self, mixed: dict[str, str]) -> None:
        records = coco_dataset("mixed", training=True, **mixed)
        assert [record["image_id"] for record in records] == [1, 2]
        records = coco_dataset("mixed", training=True, filter_empty=False, **mixed)
        assert [record["image_id"] for record in records] == [1, 2, 3]

    def test_masks_are_asked_for(self, mixed: dict[str, str]) -> None:
        with pytest.raises(td.TwinsError, match=r"annotation 4 has no segmentation"):
            coco_dataset("mixed", training=True, with_masks=True, **mixed)
        coco_dataset("mixed", training=True, with_masks=True, indices=1, **mixed)

    def test_the_first_images_alone(self, toy_data: Path) -> None:
        records = coco_dataset("toy", training=False, indices=2, **toy_files(toy_data, "val"))
        assert [record["image_id"] for record in records] == [NUM_TRAIN + 1, NUM_TRAIN + 2]
        truth = json.loads(Path(MetadataCatalog.get("toy").json_file).read_text())
        assert [image["id"] for image in truth["images"]] == [NUM_TRAIN + 1, NUM_TRAIN + 2]
        assert {annotation["image_id"] for annotation in truth["annotations"]} == {NUM_TRAIN + 1, NUM_TRAIN + 2}

    def test_bad_files(self, toy_data: Path, tmp_path: Path) -> None:
        shutil.copytree(toy_data, tmp_path / "toy")
        files = toy_files(tmp_path / "toy", "val")
        (tmp_path / "toy" / "val2017" / "000000000010.jpg").unlink()
        with pytest.raises(td.TwinsError) as caught:
            coco_dataset("toy", training=False, **files)
        assert "000000000010.jpg is missing" in str(caught.value) and "--skip-bad" in str(caught.value)
        assert "toy" not in DatasetCatalog
        with twins_log() as log:
            records = coco_dataset("toy", training=False, skip_bad=True, **files)
        assert [record["image_id"] for record in records] == [9, 11, 12, 13]
        (line,) = log
        assert line.startswith("Left out, 1 in all:\n") and "000000000010.jpg is missing" in line
        truth = json.loads(Path(MetadataCatalog.get("toy").json_file).read_text())
        assert [image["id"] for image in truth["images"]] == [9, 11, 12, 13]

    def test_boxes_without_area_are_left_out_unless_strict(self, tmp_path: Path) -> None:
        box = {"image_id": 1, "category_id": 1, "bbox": [8, 4, 24, 12]}
        flat = {**box, "bbox": [8, 4, 0, 12]}
        files = write_coco(tmp_path / "data", {1: np.zeros((48, 64, 3), np.uint8)}, [box, flat], {1: "bar"})
        with twins_log() as log:
            (record,) = coco_dataset("bar", training=True, **files)
        assert [entry["bbox"] for entry in record["annotations"]] == [box["bbox"]]
        assert len(log) == 1 and "has no area" in log[0]
        with pytest.raises(td.TwinsError, match="has no area"):
            coco_dataset("bar", training=True, strict=True, **files)

    @pytest.mark.parametrize(
        ("arguments", "parts"),
        [
            (
                {"name": "coco_2017_vall"},
                ("'coco_2017_vall'", "did you mean 'coco_2017_val'?", "ann_file and image_dir"),
            ),
            ({"name": "mine"}, ("'mine'", "register_coco_instances")),
            ({"name": "ade20k_sem_seg_val"}, ("'ade20k_sem_seg_val'", "not a COCO-format data set")),
            ({"name": "mine", "ann_file": "a.json"}, ("'mine'", "ann_file='a.json'", "give both or neither")),
            ({"name": "mine", "image_dir": "a"}, ("'mine'", "image_dir='a'", "give both or neither")),
            ({"name": "mine", "ann_file": "no.json", "image_dir": "no"}, ("no.json: no such file",)),
            ({"name": "coco_2017_val", "data_root": "nowhere"}, ("nowhere/annotations/instances_val2017.json",)),
        ],
    )
    def test_errors(self, arguments: Entry, parts: tuple[str, ...]) -> None:
        with pytest.raises(td.TwinsError) as caught:
            coco_dataset(training=False, **arguments)
        assert "\n" not in str(caught.value)
        for part in parts:
            assert part in str(caught.value)


class TestNames:
    """Names in detectron2's catalog lead to the right files."""

    def test_below_the_folder_of_the_environment(
        self, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "coco").symlink_to(toy_data)
        code = (
            "import json; from twins_dense.frameworks.detectron2.data import coco_dataset\n"
            "for name in ('train', 'val'):\n"
            "    records = coco_dataset(f'coco_2017_{name}', training=name == 'train')\n"
            "    print(json.dumps([record['file_name'] for record in records]))\n"
        )
        monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
        result = run_python("-W", "ignore", "-c", code)
        assert result.returncode == 0, result.stderr
        train, val = map(json.loads, result.stdout.splitlines())
        assert len(train) == NUM_TRAIN and len(val) == NUM_VAL
        assert train[0] == str(tmp_path / "coco" / "train2017" / "000000000001.jpg")

    @pytest.mark.parametrize("training", [True, False])
    def test_below_a_data_root(self, toy_data: Path, training: bool) -> None:
        for _ in range(2):  # the second time, the catalog has the files of the first call
            records = coco_dataset("coco_2017_val", training=training, data_root=str(toy_data))
            assert [record["image_id"] for record in records] == [9, 10, 11, 12, 13]

    @pytest.mark.parametrize("training", [True, False])
    def test_a_name_of_ones_own(self, toy_data: Path, training: bool) -> None:
        register_coco_instances(
            "my_toy", {}, str(toy_data / "annotations" / "instances_val2017.json"), str(toy_data / "val2017")
        )
        for _ in range(2):
            records = coco_dataset("my_toy", training=training)
            assert [record["image_id"] for record in records] == [9, 10, 11, 12, 13]
        assert MetadataCatalog.get("my_toy").thing_classes == CLASSES

    def test_for_training_after_evaluation(self, toy_data: Path) -> None:
        register_coco_instances(
            "my_toy", {}, str(toy_data / "annotations" / "instances_val2017.json"), str(toy_data / "val2017")
        )
        coco_dataset("my_toy", training=False, indices=2)
        assert len(coco_dataset("my_toy", training=True)) == NUM_VAL

    def test_a_second_data_set_under_a_name(self, toy_data: Path, mixed: dict[str, str]) -> None:
        coco_dataset("mine", training=False, **toy_files(toy_data, "val"))
        assert MetadataCatalog.get("mine").thing_classes == CLASSES
        MetadataCatalog.get("mine").thing_colors = [(1, 2, 3)] * 3
        coco_dataset("mine", training=False, **toy_files(toy_data, "val"))
        assert MetadataCatalog.get("mine").thing_colors == [(1, 2, 3)] * 3  # because the classes are the same
        records = coco_dataset("mine", training=False, **mixed)
        metadata = MetadataCatalog.get("mine")
        assert metadata.thing_classes == ["four", "nine"]
        assert metadata.thing_dataset_id_to_contiguous_id == {4: 0, 9: 1}
        assert metadata.get("thing_colors") is None
        assert Path(metadata.image_root) == Path(mixed["data_root"]) / "images"
        assert DatasetCatalog.get("mine") == records

    def test_colours_of_coco_stay(self, tmp_path: Path) -> None:
        """Predictions of COCO's categories are drawn in detectron2's colours for them."""
        known = MetadataCatalog.get("coco_2017_val")
        colours, ids = list(known.thing_colors), known.thing_dataset_id_to_contiguous_id
        categories = dict(zip(ids, known.thing_classes, strict=True))
        images = {1: np.zeros((32, 32, 3), np.uint8)}
        files = write_coco(
            tmp_path / "coco", images, [{"image_id": 1, "category_id": 90, "bbox": [1, 1, 9, 9]}], categories
        )
        (record,) = coco_dataset("coco_2017_val", training=False, **files)
        assert record["annotations"][0]["category_id"] == 79
        assert MetadataCatalog.get("coco_2017_val").thing_colors == colours


class TestMapping:
    @pytest.fixture
    def records(self, mixed: dict[str, str]) -> list[Entry]:
        return coco_dataset("mixed", training=True, with_masks=True, indices=1, **mixed)

    def load(self, records: list[Entry], **changes: Any) -> Entry:
        mapper = augmenting_mapper(**{"augmentations": [], **changes})
        ((entry,),) = islice(build_train_loader(records, mapper=mapper, total_batch_size=1), 1)
        return entry

    def test_bitmasks(self, records: list[Entry], mixed: dict[str, str]) -> None:
        """Boxes are corners, labels follow the ids, both masks are in the right place, and the crowd is left out."""
        entry = self.load(records, instance_mask_format="bitmask")
        instances = entry["instances"]
        assert instances.gt_boxes.tensor.tolist() == [[5, 6, 25, 16], [30, 8, 42, 28]]
        assert instances.gt_classes.tolist() == [1, 0]
        expected = torch.zeros(2, 40, 60, dtype=torch.bool)
        expected[0, 6:16, 5:25] = True
        expected[1, 8:28, 30:42] = True
        assert torch.equal(instances.gt_masks.tensor, expected)
        pixels = np.asarray(Image.open(Path(mixed["data_root"]) / "images" / "1.png"))
        assert np.array_equal(entry["image"].numpy(), pixels.transpose(2, 0, 1))  # RGB

    def test_boxes_alone(self, records: list[Entry]) -> None:
        instances = self.load(records, use_instance_mask=False)["instances"]
        assert set(instances.get_fields()) == {"gt_boxes", "gt_classes"} and len(instances) == 2

    def test_polygons_can_not_hold_run_length_masks(self, records: list[Entry]) -> None:
        with pytest.raises(td.TwinsError) as caught:
            self.load(records, instance_mask_format="polygon")
        line = str(caught.value)
        assert "1.png" in line and "dataloader.train.mapper.instance_mask_format=bitmask" in line and "\n" not in line

    @pytest.mark.parametrize(
        "crop",
        [
            T.RandomCrop("absolute", (30, 30)),
            T.FixedSizeCrop((30, 30)),
            T.RandomCrop_CategoryAreaConstraint("absolute", (30, 30)),
            T.MinIoURandomCrop(),
            T.CropTransform(0, 0, 30, 30),
        ],
        ids=lambda crop: type(crop).__name__,
    )
    @pytest.mark.parametrize("nested", [False, True])
    def test_crops_of_polygons_need_shapely(
        self, records: list[Entry], monkeypatch: pytest.MonkeyPatch, crop: Any, nested: bool
    ) -> None:
        del records[0]["annotations"][1]  # it has a run-length mask
        augmentations = [T.RandomFlip(), T.RandomApply(T.AugmentationList([crop]), prob=0.5) if nested else crop]
        self.load(records, augmentations=augmentations)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(td.TwinsError, match="with shapely, which is not installed: pip install shapely"):
            self.load(records, augmentations=augmentations)
        self.load(records, augmentations=[T.RandomFlip(), T.ResizeShortestEdge(48)])
        self.load(records, augmentations=augmentations, use_instance_mask=False)

    def test_crowds_may_have_run_length_masks(self, records: list[Entry]) -> None:
        """COCO's crowds have such masks."""
        del records[0]["annotations"][1]
        assert len(self.load(records, instance_mask_format="polygon")["instances"]) == 1


# Ground truth as detections


def score_of_truth(name: str, records: list[Entry], *, with_masks: bool = True) -> dict[str, dict[str, float]]:
    """Return the result of detectron2's evaluator if every instance is detected with score 1."""
    evaluator = COCOEvaluator(name)
    evaluator.reset()
    for record in records:
        shown = [annotation for annotation in record["annotations"] if not annotation["iscrowd"]]
        size = (record["height"], record["width"])
        boxes = torch.tensor([annotation["bbox"] for annotation in shown], dtype=torch.float64).reshape(-1, 4)
        found = Instances(
            size,
            pred_boxes=Boxes(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)),
            scores=torch.ones(len(shown)),
            pred_classes=torch.tensor([annotation["category_id"] for annotation in shown], dtype=torch.int64),
        )
        if with_masks:
            masks = [decode_segmentation(annotation["segmentation"], *size) for annotation in shown]
            found.pred_masks = torch.from_numpy(np.stack(masks) if masks else np.zeros((0, *size), np.uint8))
        evaluator.process([record], [{"instances": found}])
    return evaluator.evaluate()


class TestEvaluation:
    @pytest.mark.parametrize("split", ["train", "val"])
    def test_toy_ground_truth_is_perfect(self, toy_data: Path, split: str) -> None:
        records = coco_dataset("toy", training=False, **toy_files(toy_data, split))
        found = score_of_truth("toy", records)
        for kind in ("bbox", "segm"):
            assert [found[kind][name] for name in ("AP", "AP50", "AP75")] == pytest.approx([100, 100, 100])
            assert [found[kind][f"AP-{name}"] for name in CLASSES] == pytest.approx([100, 100, 100])

    @pytest.mark.skipif(not COCO_MINI.is_dir(), reason=NO_PHOTOS)
    @pytest.mark.parametrize("split", ["train", "val"])
    def test_real_ground_truth_is_perfect(self, split: str) -> None:
        records = coco_dataset("real", training=False, **toy_files(COCO_MINI, split))
        assert any(annotation["iscrowd"] for record in records for annotation in record["annotations"])
        found = score_of_truth("real", records)
        for kind in ("bbox", "segm"):
            assert [found[kind][name] for name in ("AP", "AP50", "AP75")] == pytest.approx([100, 100, 100])

    def test_custom_annotations(self, mixed: dict[str, str]) -> None:
        """They lack areas and mostly `iscrowd`, and include an uncompressed mask and an instance with only a box."""
        records = coco_dataset("mixed", training=False, **mixed)
        found = score_of_truth("mixed", records, with_masks=False)
        assert [found["bbox"][name] for name in ("AP", "AP-four", "AP-nine")] == pytest.approx([100, 100, 100])

    def test_custom_masks(self, mixed: dict[str, str]) -> None:
        records = coco_dataset("mixed", training=False, indices=1, **mixed)
        found = score_of_truth("mixed", records)
        assert (found["bbox"]["AP"], found["segm"]["AP"]) == pytest.approx((100, 100))

    def test_what_is_left_out_does_not_count(self, toy_data: Path, tmp_path: Path) -> None:
        shutil.copytree(toy_data, tmp_path / "toy")
        (tmp_path / "toy" / "val2017" / "000000000010.jpg").unlink()
        records = coco_dataset("toy", training=False, skip_bad=True, **toy_files(tmp_path / "toy", "val"))
        assert score_of_truth("toy", records)["bbox"]["AP"] == pytest.approx(100)
        records = coco_dataset("toy", training=False, indices=2, **toy_files(toy_data, "val"))
        assert score_of_truth("toy", records)["bbox"]["AP"] == pytest.approx(100)

    def test_it_can_be_less(self, toy_data: Path) -> None:
        records = coco_dataset("toy", training=False, **toy_files(toy_data, "val"))
        for annotation in (annotation for record in records for annotation in record["annotations"]):
            annotation["category_id"] = (annotation["category_id"] + 1) % 3
        assert score_of_truth("toy", records)["bbox"]["AP"] < 10


@pytest.mark.parametrize("orientation", [None, 0, 1, 3, 6])  # 0 means no orientation; some cameras write it
def test_pixels_are_counted_as_they_are_stored(tmp_path: Path, orientation: int | None) -> None:
    """Boxes in COCO format belong to the stored image, but detectron2 rotates images by their EXIF orientation."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[4:16, 8:32] = 255
    annotation = {"image_id": 1, "category_id": 1, "bbox": [8, 4, 24, 12]}
    images = {1: pixels, 2: pixels}
    files = write_coco(tmp_path / "data", images, [annotation, {**annotation, "image_id": 2}], {1: "bar"})
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(tmp_path / "data" / "images" / "2.png", exif=exif)
    if orientation in (3, 6):
        for training in (True, False):
            with pytest.raises(td.TwinsError) as caught:
                coco_dataset("bar", training=training, **files)
            assert "2.png has the EXIF orientation" in str(caught.value) and "\n" not in str(caught.value)
    records = coco_dataset("bar", training=True, skip_bad=True, **files)
    assert [record["image_id"] for record in records] == ([1] if orientation in (3, 6) else [1, 2])
    mapper = augmenting_mapper(augmentations=[], use_instance_mask=False)
    for (entry,) in islice(build_train_loader(records, mapper=mapper, total_batch_size=1), len(records)):
        ((x1, y1, x2, y2),) = entry["instances"].gt_boxes.tensor.long().tolist()
        assert (entry["image"][:, y1:y2, x1:x2] == 255).all()
        assert entry["image"].long().sum() == 255 * 3 * 24 * 12
