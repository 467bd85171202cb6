"""COCO-format data as training and evaluation samples, augmented by torchvision.transforms.v2."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from ...data.coco import CocoImage, decode_segmentation, is_instance, load_coco, training_images
from ...data.image_files import read_image
from ...errors import TwinsError
from ...seeds import seeded


class RandomRangeCrop(v2.RandomCrop):
    """Crop to a height and a width drawn independently from `min_size`..`max_size` pixels, both included.

    On an axis where the image is smaller than a bound, its size takes the bound's place: the `absolute_range` crop of
    the multi-scale recipes (384..600).
    """

    def __init__(self, min_size: int, max_size: int) -> None:
        super().__init__(size=max_size)
        self.min_size, self.max_size = min_size, max_size

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the size, then let torchvision draw the place."""
        height, width = v2.functional.get_size(next(x for x in flat_inputs if isinstance(x, tv_tensors.Image)))
        self.size = tuple(
            int(torch.randint(min(side, self.min_size), min(side, self.max_size) + 1, ())) for side in (height, width)
        )
        return super().make_params(flat_inputs)


def build_transforms(configs: Sequence[Mapping[str, Any]]) -> v2.Transform:
    """Build augmentation from config entries such as `dict(type="RandomHorizontalFlip", p=0.5)`.

    `type` is the name of a class of torchvision.transforms.v2 or `RandomRangeCrop`; an argument called `transforms`
    is a list of such entries itself (`RandomChoice`, `RandomApply`, `Compose`). Boxes that a crop leaves without area
    are removed at the end, with their labels and masks.

    Raises:
        TwinsError: for an unknown type or arguments that it doesn't take.
    """
    return v2.Compose([*map(_build_transform, configs), v2.SanitizeBoundingBoxes(min_size=1)])


def _build_transform(config: Mapping[str, Any]) -> v2.Transform:
    arguments = dict(config)
    name = arguments.pop("type", None)
    transform = RandomRangeCrop if name == "RandomRangeCrop" else getattr(v2, str(name), None)
    if not (isinstance(transform, type) and issubclass(transform, v2.Transform)):
        raise TwinsError(f"transform type={name!r} is unknown: use a class of torchvision.transforms.v2")
    if "transforms" in arguments:
        arguments["transforms"] = [_build_transform(inner) for inner in arguments["transforms"]]
    try:
        return transform(**arguments)
    except (TypeError, ValueError) as error:
        raise TwinsError(f"transform {name}: {error}") from None


class CocoDetectionDataset(Dataset):
    """Images and instances of a COCO-format annotation file.

    A sample is `dict(inputs=image, data_samples=element)`: the image uint8 (3, H, W) RGB, and a `BaseDataElement` with

    * meta: `image_id`, `file` (path), `height` and `width` of the stored image in pixels, and, unless `training`,
      `annotations` (the file's own, crowd included, for the metric);
    * when `training`: `boxes` float32 (N, 4) x1 y1 x2 y2 in pixels, `labels` int64 (N,) in 0..K-1 in the order of the
      category ids, and with `with_masks` `masks` uint8 (N, H, W). Crowd regions are left out.

    Args:
        ann_file: COCO JSON; relative paths start at `data_root`.
        image_dir: folder of the images; relative paths start at `data_root`.
        data_root: start of relative paths.
        training: give targets and augment; otherwise give images as stored, with their annotations.
        with_masks: also give instance masks.
        transforms: augmentation, see `build_transforms`; only with `training`.
        filter_empty: when training, leave out images without an instance, as the published recipes do.
        skip_bad: leave out what can't be used and list it, instead of raising; see `load_coco`.
        indices: use only the first that many images of the file.

    Raises:
        TwinsError: where files or annotations can't be used.
    """

    def __init__(
        self,
        ann_file: str,
        image_dir: str,
        *,
        data_root: str = "",
        training: bool,
        with_masks: bool,
        transforms: Sequence[Mapping[str, Any]] = (),
        filter_empty: bool = True,
        skip_bad: bool = False,
        indices: int | None = None,
    ) -> None:
        data = load_coco(Path(data_root) / ann_file, Path(data_root) / image_dir, skip_bad=skip_bad, indices=indices)
        self.source = str(data.ann_file)  # what messages call it
        self.problems = data.problems
        self.training = training
        self.with_masks = with_masks
        self.transforms = build_transforms(transforms)
        self.category_ids = data.category_ids
        self.class_names = data.class_names
        images = data.images
        if training:
            images = training_images(data, filter_empty=filter_empty, with_masks=with_masks)
        self._images = _PackedImages(images)

    @property
    def metainfo(self) -> dict[str, Any]:
        """Class names and category ids in the order of the labels; MMEngine stores it in checkpoints."""
        return {"classes": self.class_names, "category_ids": self.category_ids}

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """The sample of an index, or of an (index, seed) pair: then augmentation depends on that seed alone."""
        if isinstance(key, tuple):
            with seeded(key[1]):
                return self[key[0]]
        source = self._images[key]
        image = tv_tensors.Image(torch.from_numpy(read_image(source.path)).permute(2, 0, 1))
        element = BaseDataElement(
            metainfo={"image_id": source.id, "file": str(source.path), "height": source.height, "width": source.width}
        )
        if self.training:
            image, targets = self.transforms(image, self._targets(source))
            for name, value in targets.items():
                element.set_field(value.as_subclass(Tensor), name)
        else:
            element.set_metainfo({"annotations": list(source.annotations)})
        return {"inputs": image.as_subclass(Tensor), "data_samples": element}

    def _targets(self, source: CocoImage) -> dict[str, Tensor]:
        size = (source.height, source.width)
        instances = [annotation for annotation in source.annotations if is_instance(annotation)]
        boxes = torch.tensor([annotation["bbox"] for annotation in instances], dtype=torch.float32).view(-1, 4)
        boxes = v2.functional.convert_bounding_box_format(
            tv_tensors.BoundingBoxes(boxes, format="XYWH", canvas_size=size),
            new_format=tv_tensors.BoundingBoxFormat.XYXY,
        )
        label_of = {category: label for label, category in enumerate(self.category_ids)}
        targets = {
            "boxes": v2.functional.clamp_bounding_boxes(boxes),
            "labels": torch.tensor([label_of[a["category_id"]] for a in instances], dtype=torch.int64),
        }
        if self.with_masks:
            masks = np.zeros((len(instances), *size), dtype=np.uint8)
            for mask, annotation in zip(masks, instances, strict=True):
                mask[:] = decode_segmentation(annotation["segmentation"], *size)
            targets["masks"] = tv_tensors.Mask(torch.from_numpy(masks))
        return targets


class _PackedImages:
    """Images pickled into one array, which the worker processes of a data loader really share.

    Python objects are copied page by page into every worker that merely reads them, because reading changes their
    reference counts; with COCO's 860,001 annotations that is gigabytes a worker.
    """

    def __init__(self, images: Sequence[CocoImage]) -> None:
        pickled = [pickle.dumps(image, protocol=pickle.HIGHEST_PROTOCOL) for image in images]
        self._ends = np.cumsum([len(item) for item in pickled])
        self._bytes = np.frombuffer(b"".join(pickled), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> CocoImage:
        index = range(len(self))[index]  # negative indices, IndexError
        start = self._ends[index - 1] if index else 0
        return pickle.loads(self._bytes[start : self._ends[index]].tobytes())
