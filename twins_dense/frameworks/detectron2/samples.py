"""Pictures of the ground truth beside the predictions for a few validation images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data.detection_utils import read_image
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode
from PIL import Image

from ...data.coco import is_instance
from ...data.coco_masks import decode_segmentation
from ...data.drawing import draw_comparison
from ..samples import MIN_SCORE, choose_samples


class SampleDrawer(DatasetEvaluator):
    """Draw the ground truth beside the detections for some images, while another evaluator evaluates all of them.

    Args:
        records: The data set in detectron2's standard format.
        classes: Class names in the order of the labels.
        folder: Folder of the pictures, which are `iter_N/NUMBER_FILE.jpg` for an evaluation after N iterations.
        count: Number of images, which are the same at each evaluation.
        seed: Seed of the run, which chooses the images.
    """

    def __init__(
        self, records: Sequence[Mapping[str, Any]], classes: list[str], folder: Path, count: int, seed: int
    ) -> None:
        indices = choose_samples(len(records), count, seed)
        self.records = {records[index]["image_id"]: records[index] for index in indices}
        self.numbers = {image_id: number for number, image_id in enumerate(self.records, 1)}
        self.classes = classes
        self.folder = folder
        self.iteration = 0

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for entry, output in zip(inputs, outputs, strict=True):
            if entry["image_id"] in self.records and "instances" in output:
                self._draw(self.records[entry["image_id"]], output["instances"].to("cpu"))

    def _draw(self, record: Mapping[str, Any], found: Any) -> None:
        found = found[found.scores >= MIN_SCORE]
        prediction = {"boxes": found.pred_boxes.tensor, "labels": found.pred_classes, "scores": found.scores}
        if found.has("pred_masks"):
            prediction["masks"] = found.pred_masks
        folder = self.folder / f"iter_{self.iteration}"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{self.numbers[record['image_id']]}_{Path(record['file_name']).stem}.jpg"
        image = read_image(record["file_name"], "RGB")
        picture = draw_comparison(image, _truth(record, with_masks="masks" in prediction), prediction, self.classes)
        Image.fromarray(picture).save(folder / name, quality=90)


def _truth(record: Mapping[str, Any], *, with_masks: bool) -> dict[str, Any]:
    annotations = [annotation for annotation in record.get("annotations", ()) if is_instance(annotation)]
    truth: dict[str, Any] = {
        "boxes": [BoxMode.convert(entry["bbox"], entry["bbox_mode"], BoxMode.XYXY_ABS) for entry in annotations],
        "labels": [entry["category_id"] for entry in annotations],
    }
    if with_masks and all(entry.get("segmentation") for entry in annotations):
        size = record["height"], record["width"]
        truth["masks"] = [decode_segmentation(entry["segmentation"], *size) for entry in annotations]
    return truth
