"""Match detections to the objects of the ground truth as COCO does, and keep the overlaps behind the matches.

hotcoco's matches equal these, but they come without the overlaps from which error types and label suspects follow.
Everything that the report says about detections is derived from the arrays of this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .coco import coco_content, complete_ground_truth
from .record import Record

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
BACKGROUND_IOU = 0.1
"""A detection that overlaps an object by less has nothing to do with it (as in TIDE, see `detection_errors`)."""


@dataclass(frozen=True)
class Matches:
    """Detections and objects as flat arrays, with the matches between them.

    Letters: D detections, G objects, P pairs of a detection and an object of the same image, T IoU thresholds.

    Attributes:
        iou_type: "bbox" or "segm".
        classes: Names of the classes.
        num_images: Number of images.
        image: (D,) position of the image of each detection in the record. Detections are sorted by descending score.
        label: (D,) class.
        score: (D,) score.
        source: (D,) position among the detections of the entry of the image.
        object_image: (G,) position of the image of each object.
        object_label: (G,) class.
        object_area: (G,) area in pixels, as COCO counts it.
        object_crowd: (G,) whether the object is a crowd region, which is not counted.
        object_source: (G,) position among the annotations of the entry of the image.
        pair_detection: (P,) detection of each pair that overlaps by at least `BACKGROUND_IOU`; ascending.
        pair_object: (P,) object of each pair.
        pair_iou: (P,) intersection over union; for crowd regions, over the area of the detection.
        matched: (T, D) object that the detection is matched to at each of `IOU_THRESHOLDS`, else -1.
        ignored: (T, D) whether the detection is matched to a crowd region, so that it does not count.
    """

    iou_type: str
    classes: Sequence[str]
    num_images: int
    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    source: np.ndarray
    object_image: np.ndarray
    object_label: np.ndarray
    object_area: np.ndarray
    object_crowd: np.ndarray
    object_source: np.ndarray
    pair_detection: np.ndarray
    pair_object: np.ndarray
    pair_iou: np.ndarray
    matched: np.ndarray
    ignored: np.ndarray

    @property
    def counted(self) -> np.ndarray:
        """(D,) Whether each detection is counted at an IoU of 0.5: all but those of crowd regions."""
        return ~self.ignored[0]

    @property
    def num_objects(self) -> np.ndarray:
        """(K,) Number of objects of each class, without crowd regions."""
        return np.bincount(self.object_label[~self.object_crowd], minlength=len(self.classes))

    def best_pairs(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return, for each detection, the largest IoU of its pairs and the object of that pair; 0 and -1 without pairs.

        Args:
            chosen: (P,) which pairs to consider.
        """
        iou, best = np.zeros(len(self.score)), np.full(len(self.score), -1)
        pairs = np.flatnonzero(chosen)
        pairs = pairs[np.argsort(self.pair_iou[pairs], kind="stable")]  # of repeated indices, the last assignment stays
        iou[self.pair_detection[pairs]] = self.pair_iou[pairs]
        best[self.pair_detection[pairs]] = self.pair_object[pairs]
        return iou, best


def ground_truth(record: Record) -> dict[str, Any]:
    """Return the ground truth of a record as the content of a COCO annotation file, with the fields for evaluation.

    The annotations are in the order of the entries.
    """
    content, _ = coco_content(record.entries, record.about.settings["category_ids"], record.about.classes)
    return complete_ground_truth(content)


def match_record(record: Record, iou_type: str) -> Matches:
    """Match the detections of a record to its objects.

    Args:
        record: Record of a detector.
        iou_type: "bbox" or "segm".
    """
    entries, settings = record.entries, record.about.settings
    labels = {category: label for label, category in enumerate(settings["category_ids"])}
    max_dets = settings["max_dets"]
    truth = ground_truth(record)["annotations"]
    # COCO breaks ties of scores by the id of the image.
    by_id = sorted(range(len(entries)), key=lambda image: entries[image]["image"]["id"])
    image, label, score, source = _flatten(
        (image, labels[detection["category_id"]], detection["score"], position)
        for image in by_id
        for position, detection in enumerate(entries[image]["detections"])
    )
    order = np.argsort(-score, kind="stable")
    order = order[_rank_in_groups((image * len(labels) + label)[order]) < max_dets]
    image, label, score, source = (values[order] for values in (image, label, score, source))

    objects = [
        (image, position) for image, entry in enumerate(entries) for position in range(len(entry["annotations"]))
    ]
    object_image, object_source = np.array(objects, dtype=np.int64).reshape(-1, 2).T
    object_label = np.array([labels[annotation["category_id"]] for annotation in truth], dtype=np.int64)
    crowd = np.array([bool(annotation["iscrowd"]) for annotation in truth], dtype=bool)
    pair_detection, pair_object, pair_iou = _overlaps(record, truth, iou_type, image, source, object_image, crowd)
    same = label[pair_detection] == object_label[pair_object]
    arrays = (pair_detection[same], pair_object[same], pair_iou[same])
    matched = np.stack([_match(*arrays, crowd, threshold, len(score)) for threshold in IOU_THRESHOLDS])
    return Matches(
        iou_type=iou_type,
        classes=record.about.classes,
        num_images=len(entries),
        image=image,
        label=label,
        score=score,
        source=source,
        object_image=object_image,
        object_label=object_label,
        object_area=np.array([annotation["area"] for annotation in truth], dtype=np.float64),
        object_crowd=crowd,
        object_source=object_source,
        pair_detection=pair_detection,
        pair_object=pair_object,
        pair_iou=pair_iou,
        matched=matched,
        ignored=(matched >= 0) & np.append(crowd, False)[matched],  # -1 is the last
    )


def _flatten(rows: Iterator[tuple[int, int, float, int]]) -> tuple[np.ndarray, ...]:
    columns = np.array(list(rows), dtype=np.float64).reshape(-1, 4).T
    image, label, score, source = columns
    return image.astype(np.int64), label.astype(np.int64), score, source.astype(np.int64)


def _rank_in_groups(groups: np.ndarray) -> np.ndarray:
    """Return how many earlier elements are of the same group as each element."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    ranks = np.empty_like(groups)
    ranks[order] = np.arange(len(groups)) - np.repeat(starts, np.diff(starts, append=len(groups)))
    return ranks


def _overlaps(
    record: Record,
    truth: Sequence[Any],
    iou_type: str,
    image: np.ndarray,
    source: np.ndarray,
    object_image: np.ndarray,
    crowd: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pairs that overlap by at least `BACKGROUND_IOU`, sorted by detection: detection, object and IoU."""
    from hotcoco import mask as mask_api

    by_image = np.argsort(image, kind="stable")  # keeps the order of scores within an image
    bounds = np.searchsorted(image[by_image], np.arange(len(record.entries) + 1))
    object_bounds = np.searchsorted(object_image, np.arange(len(record.entries) + 1))
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = [(np.empty(0, np.int64),) * 2 + (np.empty(0),)]
    for index, entry in enumerate(record.entries):
        chosen = by_image[bounds[index] : bounds[index + 1]]
        first, last = object_bounds[index : index + 2]
        if not len(chosen) or first == last:
            continue
        detections = [entry["detections"][position] for position in source[chosen]]
        if iou_type == "segm":
            size = entry["image"]["height"], entry["image"]["width"]
            shapes: Any = [_rle(mask_api, annotation["segmentation"], *size) for annotation in truth[first:last]]
            iou = mask_api.iou([detection["segmentation"] for detection in detections], shapes, crowd[first:last])
        else:
            shapes = np.array([annotation["bbox"] for annotation in truth[first:last]], dtype=np.float64)
            boxes = np.array([detection["bbox"] for detection in detections], dtype=np.float64)
            iou = mask_api.iou(boxes, shapes, crowd[first:last])
        rows, columns = np.nonzero(iou >= BACKGROUND_IOU)
        found.append((chosen[rows], columns + first, iou[rows, columns]))
    detection, object_, overlap = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(detection, kind="stable")
    return detection[order], object_[order], overlap[order]


def _rle(mask_api: Any, segmentation: Any, height: int, width: int) -> Any:
    if isinstance(segmentation, list):
        return mask_api.merge(mask_api.fr_py_objects(segmentation, height, width))
    return segmentation


def _match(
    detection: np.ndarray, object_: np.ndarray, iou: np.ndarray, crowd: np.ndarray, threshold: float, num: int
) -> np.ndarray:
    """Return the object of each detection, else -1.

    In the order of their scores, detections take the free object of their class with the largest IoU. If none is free,
    they take a crowd region, which stays free. Of equal IoUs, COCO takes that of the last object.
    """
    chosen = np.flatnonzero(iou >= threshold)
    chosen = chosen[np.lexsort((-object_[chosen], -iou[chosen], crowd[object_[chosen]], detection[chosen]))]
    matched = np.full(num, -1)
    taken: set[int] = set()
    last = -1
    candidates = zip(*(values.tolist() for values in (detection[chosen], object_[chosen])), strict=True)
    for current, candidate in candidates:
        if current != last and candidate not in taken:
            matched[current] = candidate
            last = current
            if not crowd[candidate]:
                taken.add(candidate)
    return matched
