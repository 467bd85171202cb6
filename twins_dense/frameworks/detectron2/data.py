"""COCO-format data for detectron2, checked before training and read in the same order after a resume."""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from detectron2.data import DatasetCatalog, DatasetFromList, MetadataCatalog, build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from pycocotools import mask as mask_api
from torch.utils.data import DataLoader, Dataset, Sampler

from ...data.coco import CocoData, CocoImage, is_instance, load_coco, read_instances, training_images
from ...errors import TwinsError, did_you_mean
from ...evaluation.coco import complete_ground_truth
from ...seeds import derived_seed
from .backbone import logger

# Everything in detectron2 that crops.
_CROPS = (T.CropTransform, T.FixedSizeCrop, T.MinIoURandomCrop, T.RandomCrop, T.RandomCrop_CategoryAreaConstraint)
# Holds the ground truth for detectron2's own evaluator, one file per data set, until the process ends.
_ground_truth_folder = tempfile.TemporaryDirectory(prefix="twins_dense-")


def coco_dataset(
    name: str,
    *,
    training: bool,
    with_masks: bool = False,
    data_root: str | None = None,
    ann_file: str | None = None,
    image_dir: str | None = None,
    filter_empty: bool = True,
    skip_bad: bool = False,
    strict: bool = False,
    allow_outside: bool = False,
    indices: int | None = None,
) -> list[dict[str, Any]]:
    """Return COCO-format data as detectron2's list of dicts, and register it in detectron2's catalogs.

    The data is checked by `load_coco`.

    Args:
        name: Name in detectron2's catalogs. If it is already registered, and `ann_file` and `image_dir` are not given,
            the files of that entry are used (for COCO's own names, they are below the folder DETECTRON2_DATASETS).
        training: Whether to check and filter the data for training. Otherwise ground truth for `COCOEvaluator` is
            written for exactly the returned images, completed with fields that custom annotations may lack.
        with_masks: Whether training needs a segmentation of every instance.
        data_root: Root folder of the data set, to which `ann_file` and `image_dir` are relative. Without these two, it
            replaces the folder in the catalog.
        ann_file: COCO JSON file.
        image_dir: Folder of the images.
        filter_empty: Whether to leave out images without instances in training.
        skip_bad: Whether to leave out and log unusable images and annotations instead of raising an error.
        strict: Whether boxes with a width or a height of zero are errors, instead of being left out and logged.
        allow_outside: Whether the annotation file may name images outside the image folder.
        indices: Number of images to use, from the start of the file; `None` for all.

    Raises:
        TwinsError: if files or annotations cannot be used.
    """
    ann_path, image_path = _find(name, data_root, ann_file, image_dir)
    data = load_coco(
        ann_path,
        image_path,
        skip_bad=skip_bad,
        strict=strict,
        indices=indices,
        refuse_rotated=True,
        allow_outside=allow_outside,
    )
    if data.problems:
        lines = "\n".join(data.problems)
        logger.warning(f"Left out, {len(data.problems)} in all:\n{lines}")
    images = data.images
    if training:
        images = training_images(data, filter_empty=filter_empty, with_masks=with_masks)
    contiguous = {category: label for label, category in enumerate(data.category_ids)}
    records = [_record(image, contiguous) for image in images]
    _register(name, records, data, contiguous, image_path, ann_path if training else _write_ground_truth(data))
    return records


@dataclass(frozen=True)
class TrainingFacts:
    """Properties of a training data set according to its annotation file; the images are not opened.

    Attributes:
        num_images: Number of training images.
        has_run_lengths: Whether an instance has a run-length mask.
    """

    num_images: int
    has_run_lengths: bool


def training_facts(dataset: Mapping[str, Any]) -> TrainingFacts:
    """Read the annotation file of a training data set, given by the arguments of `coco_dataset`.

    Images that `skip_bad` would leave out are counted.

    Raises:
        TwinsError: if the annotation file cannot be found or read.
    """
    ann_path, _ = _find(dataset["name"], *(dataset.get(key) for key in ("data_root", "ann_file", "image_dir")))
    instances = read_instances(ann_path, indices=dataset.get("indices"))
    count = len(instances)
    if dataset.get("filter_empty", True):
        count = sum(map(bool, instances.values()))
    masks = (entry.get("segmentation") for entries in instances.values() for entry in entries)
    return TrainingFacts(max(count, 1), any(isinstance(mask, dict) for mask in masks))


def _find(name: str, data_root: str | None, ann_file: str | None, image_dir: str | None) -> tuple[Path, Path]:
    if (ann_file is None) != (image_dir is None):
        raise TwinsError(f"data set {name!r}: ann_file={ann_file!r}, image_dir={image_dir!r}: give both or neither")
    if ann_file is not None and image_dir is not None:
        root = Path(data_root or "")
        return root / ann_file, root / image_dir
    metadata = MetadataCatalog.get(name) if name in DatasetCatalog else None
    if metadata is None or not metadata.get("json_file") or not metadata.get("image_root"):
        raise TwinsError(
            f"{name!r} is not a COCO-format data set in detectron2's catalog{did_you_mean(name, DatasetCatalog)}; "
            "register it with register_coco_instances, or give its ann_file and image_dir"
        )
    # In entries that we registered, json_file may be the ground truth that was generated from ann_file.
    files = Path(metadata.get("ann_file", metadata.json_file)), Path(metadata.image_root)
    if data_root is None:
        return files
    folder = os.path.commonpath(files)
    return Path(data_root) / files[0].relative_to(folder), Path(data_root) / files[1].relative_to(folder)


def _record(image: CocoImage, contiguous: dict[int, int]) -> dict[str, Any]:
    """Return an image in detectron2's standard format, including crowd regions, which detectron2's mapper removes."""
    annotations = []
    for annotation in image.annotations:
        entry = {
            "bbox": annotation["bbox"],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": contiguous[annotation["category_id"]],
            "iscrowd": annotation.get("iscrowd", 0),
        }
        segmentation = annotation.get("segmentation")
        if segmentation:
            if isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
                segmentation = mask_api.frPyObjects(segmentation, image.height, image.width)
            entry["segmentation"] = segmentation
        annotations.append(entry)
    return {
        "file_name": str(image.path),
        "image_id": image.id,
        "height": image.height,
        "width": image.width,
        "annotations": annotations,
    }


def _write_ground_truth(data: CocoData) -> Path:
    content = complete_ground_truth(
        {
            "images": [{"id": image.id, "height": image.height, "width": image.width} for image in data.images],
            "annotations": [annotation for image in data.images for annotation in image.annotations],
            "categories": list(data.categories),
        }
    )
    handle, path = tempfile.mkstemp(suffix=".json", dir=_ground_truth_folder.name)
    with os.fdopen(handle, "w") as file:
        json.dump(content, file, default=bytes.decode)  # compressed run-length codes are bytes
    return Path(path)


def _register(
    name: str,
    records: list[dict[str, Any]],
    data: CocoData,
    contiguous: dict[int, int],
    image_dir: Path,
    json_file: Path,
) -> None:
    """Register a data set in detectron2's catalogs, replacing any data set of the same name."""
    colors = None
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
    if name in MetadataCatalog:
        previous = MetadataCatalog.get(name)
        if previous.get("thing_classes") == list(data.class_names):
            colors = previous.get("thing_colors")
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(
        thing_classes=list(data.class_names),
        thing_dataset_id_to_contiguous_id=contiguous,
        json_file=str(json_file),
        ann_file=str(data.ann_file),
        coco_images=data.images,  # for our own evaluator
        image_root=str(image_dir),
        evaluator_type="coco",
        **({} if colors is None else {"thing_colors": colors}),
    )


def build_train_loader(
    dataset: list[dict[str, Any]],
    *,
    mapper: Callable[[dict[str, Any]], dict[str, Any]],
    total_batch_size: int,
    num_workers: int = 0,
    seed: int = 0,
) -> DataLoader:
    """Build detectron2's training loader, with batches that depend only on the seed and the iteration.

    As in detectron2, the images of a batch are either all wide or all tall. The images and the augmentation of an
    iteration do not depend on the data loader worker that prepares it, and are the same after a resume.

    Args:
        dataset: List from `coco_dataset`, or any list in detectron2's standard format with widths and heights.
        mapper: A mapper such as `DatasetMapper`.
        total_batch_size: Number of images per iteration, over all processes.
        num_workers: Number of data loader workers per process.
        seed: Seed of the order and the augmentation.

    Raises:
        TwinsError: if the number of processes does not divide the batch size, or the mapper cannot handle the masks.
    """
    world_size = comm.get_world_size()
    if total_batch_size < 1 or total_batch_size % world_size:
        raise TwinsError(
            f"dataloader.train.total_batch_size={total_batch_size} (in a YAML file SOLVER.IMS_PER_BATCH): "
            f"choose a multiple of {world_size}, the number of processes"
        )
    check_masks(dataset, mapper)
    is_wide = [record["width"] > record["height"] for record in dataset]
    return build_detection_train_loader(
        _SeededDataset(DatasetFromList(dataset, copy=False), mapper),
        mapper=None,
        sampler=PositionSampler(is_wide, total_batch_size // world_size, seed),
        total_batch_size=total_batch_size,
        aspect_ratio_grouping=False,  # the sampler groups them
        num_workers=num_workers,
    )


class PositionSampler(Sampler[tuple[int, int]]):
    """Endless (index, seed) pairs for one process, grouped so that the images of a batch are all wide or all tall.

    Args:
        is_wide: For each image, whether it is wider than tall.
        batch_size: Number of images per iteration in this process.
        seed: Seed of the order; it must be the same in all processes.

    Attributes:
        first_iteration: Number of batches to skip at the start, for a resumed run.
    """

    def __init__(self, is_wide: Sequence[bool], batch_size: int, seed: int) -> None:
        self.is_wide = torch.tensor(is_wide)  # a tensor, because data loader workers share its memory
        self.batch_size = batch_size
        self.seed = seed
        self.first_iteration = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for batch in islice(self._batches(), self.first_iteration, None):
            for position, index in batch:
                yield index, derived_seed(self.seed, position)

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        is_wide = self.is_wide.tolist()
        buckets: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        for position, index in islice(enumerate(self._shuffled()), comm.get_rank(), None, comm.get_world_size()):
            bucket = buckets[is_wide[index]]
            bucket.append((position, index))
            if len(bucket) == self.batch_size:
                yield list(bucket)
                bucket.clear()

    def _shuffled(self) -> Iterator[int]:
        for epoch in count():
            generator = torch.Generator().manual_seed(derived_seed(self.seed, epoch))
            yield from torch.randperm(len(self.is_wide), generator=generator).tolist()


class _SeededDataset(Dataset):
    """Data set that looks up an (index, seed) pair and maps the record with all randomness drawn from that seed."""

    def __init__(self, records: Dataset, mapper: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self.records = records
        self.mapper = mapper

    def __len__(self) -> int:
        return len(self.records)  # type: ignore[arg-type]

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        index, seed = key
        with torch.random.fork_rng(devices=[]):
            seed_all_rng(seed % 2**31)
            return self.mapper(self.records[index])


def check_masks(dataset: list[dict[str, Any]], mapper: Any) -> None:
    """Raise `TwinsError` if the data set has masks that detectron2's mapper would reject in the middle of a run."""
    if not getattr(mapper, "use_instance_mask", False):
        return
    if _crops(mapper.augmentations) and importlib.util.find_spec("shapely") is None:
        raise TwinsError("detectron2 crops polygons with shapely, which is not installed: pip install shapely")
    if mapper.instance_mask_format != "polygon":
        return
    for record in dataset:
        for annotation in filter(is_instance, record.get("annotations", ())):
            if isinstance(annotation.get("segmentation"), dict):
                raise TwinsError(
                    f"image {record['file_name']} has a run-length mask instead of a polygon: "
                    "add dataloader.train.mapper.instance_mask_format=bitmask (YAML: INPUT.MASK_FORMAT=bitmask)"
                )


def _crops(augmentation: Any) -> bool:
    """Return whether an augmentation or a transform, or one inside it, crops polygons."""
    inner = [getattr(augmentation, name, None) for name in ("aug", "tfm")]
    inner += [*getattr(augmentation, "augs", ()), *getattr(augmentation, "transforms", ())]
    return isinstance(augmentation, _CROPS) or any(map(_crops, filter(None, inner)))
