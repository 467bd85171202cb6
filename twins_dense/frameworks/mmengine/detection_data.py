"""COCO-format data sets for MMEngine, augmented by torchvision.transforms.v2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.registry import DATASETS
from mmengine.structures import BaseDataElement
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from ...data.coco import is_instance, load_coco, training_images
from ...data.coco_masks import decode_segmentation
from ...data.image_files import read_image
from ...errors import TwinsError, one_line
from .samplers import SeededItems


class RandomRangeCrop(v2.RandomCrop):
    """Crop to a height and a width drawn independently from `min_size` to `max_size` pixels, both included.

    Bounds that exceed the side of the image are clamped to it before the size is drawn. This is the `absolute_range`
    crop of the multi-scale recipes (384 to 600 pixels).
    """

    def __init__(self, min_size: int, max_size: int) -> None:
        super().__init__(size=max_size)
        self.min_size, self.max_size = min_size, max_size

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the size, then let torchvision draw the position."""
        height, width = v2.functional.get_size(next(x for x in flat_inputs if isinstance(x, tv_tensors.Image)))
        self.size = tuple(
            int(torch.randint(min(side, self.min_size), min(side, self.max_size) + 1, ())) for side in (height, width)
        )
        return super().make_params(flat_inputs)


def build_transforms(configs: Sequence[Mapping[str, Any]]) -> v2.Transform:
    """Build an augmentation pipeline from config entries such as `dict(type="RandomHorizontalFlip", p=0.5)`.

    `type` is the name of a class of torchvision.transforms.v2, or `RandomRangeCrop`. An argument called `transforms`
    (of `RandomChoice`, `RandomApply` or `Compose`) is a list of such entries. Boxes that a crop leaves without area
    are removed at the end, together with their labels and masks.

    Raises:
        TwinsError: for an unknown type, or arguments that the type does not accept.
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
        raise TwinsError(f"transform {name}: {one_line(error)}") from None


@DATASETS.register_module()
class CocoDetectionDataset(SeededItems):
    """Images and instances of a COCO-format annotation file.

    A sample is `dict(inputs=image, data_samples=element)`. The image is uint8 RGB (3, H, W). The element is a
    `BaseDataElement` with

    * meta information: `image_id`, `file` (path), `height` and `width` of the stored image in pixels, and, unless
      `training`, `annotations` (the entries of the file, including crowd regions, for the metric);
    * if `training`: `boxes` float32 (N, 4) as x1 y1 x2 y2 in pixels, `labels` int64 (N,) in 0..K-1 in the order of the
      category ids, and, if `with_masks`, `masks` uint8 (N, H, W). Crowd regions are left out.

    `metainfo` holds the `classes` and `category_ids` in the order of the labels; MMEngine stores it in checkpoints.

    Args:
        ann_file: COCO JSON file, absolute or relative to `data_root`.
        image_dir: Folder of the images, absolute or relative to `data_root`.
        data_root: Root folder of the data set.
        training: Whether to return augmented images with targets, instead of stored images with annotations.
        with_masks: Whether targets include instance masks.
        transforms: Augmentation for training (see `build_transforms`).
        filter_empty: Whether to leave out images without instances in training, as the published recipes do.
        skip_bad: Whether to leave out and list unusable images and annotations instead of raising an error (see
            `load_coco`).
        strict: Whether boxes with a width or a height of zero are errors, instead of being left out and listed.
        allow_outside: Whether the annotation file may name images outside `image_dir`.
        indices: Number of images to use, from the start of the file; `None` for all.

    Attributes:
        source: The annotation file, for messages.
        problems: One line for each image or annotation that was left out.

    Raises:
        TwinsError: if files or annotations cannot be used.
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
        strict: bool = False,
        allow_outside: bool = False,
        indices: int | None = None,
    ) -> None:
        root = Path(data_root)
        data = load_coco(
            root / ann_file,
            root / image_dir,
            skip_bad=skip_bad,
            strict=strict,
            indices=indices,
            allow_outside=allow_outside,
        )
        self.source = str(data.ann_file)
        self.problems = data.problems
        self.training = training
        self.with_masks = with_masks
        self.transforms = build_transforms(transforms)
        self.category_ids = data.category_ids
        self.class_names = data.class_names
        self._images = data.images
        if training:
            self._images = training_images(data, filter_empty=filter_empty, with_masks=with_masks)
        super().__init__(
            ann_file=ann_file,
            metainfo={"classes": data.class_names, "category_ids": data.category_ids},
            data_root=data_root,
            data_prefix={"img_path": image_dir},
            pipeline=[self._sample],
            test_mode=not training,
        )

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return one dictionary per image; MMEngine packs them into one array that data loader workers share."""
        images, self._images = self._images, ()
        return [dict(vars(image)) for image in images]

    def _sample(self, info: Mapping[str, Any]) -> dict[str, Any]:
        image = tv_tensors.Image(torch.from_numpy(read_image(info["path"])).permute(2, 0, 1))
        element = BaseDataElement(
            metainfo={
                "image_id": info["id"],
                "file": str(info["path"]),
                "height": info["height"],
                "width": info["width"],
            }
        )
        if self.training:
            image, targets = self.transforms(image, self.targets(info, self.with_masks))
            for name, value in targets.items():
                element.set_field(value.as_subclass(Tensor), name)
        else:
            element.set_metainfo({"annotations": list(info["annotations"])})
        return {"inputs": image.as_subclass(Tensor), "data_samples": element}

    def targets(self, info: Mapping[str, Any], with_masks: bool) -> dict[str, Tensor]:
        """Return the boxes, labels and, if `with_masks`, masks of an image, without augmentation.

        Args:
            info: `annotations`, and the `height` and `width` of the stored image.
            with_masks: Whether to include masks.
        """
        size = (info["height"], info["width"])
        instances = [annotation for annotation in info["annotations"] if is_instance(annotation)]
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
        if with_masks:
            masks = np.zeros((len(instances), *size), dtype=np.uint8)
            for mask, annotation in zip(masks, instances, strict=True):
                mask[:] = decode_segmentation(annotation["segmentation"], *size)
            targets["masks"] = tv_tensors.Mask(torch.from_numpy(masks))
        return targets
