"""Apply a recognised data folder and the options of a training run to an MMEngine config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

from ...data.label_maps import class_palette
from ...data.layouts import DataFolder, Split
from ...errors import TwinsError
from .. import recipes
from ..checks import check_training_options
from ..options import TrainingOptions
from .config import OWN_MAX_DETS, apply_overrides, guarded, is_segmentor, model_of, settings_called
from .recipes import apply_small_data_recipe
from .schedules import set_epochs, shorten_warm_up, world_size

# The long side is limited in the proportion of the published size, 800 to 1333 pixels.
_LONG_SIDE = 1333 / 800


@guarded
def set_data(config: Config, data: DataFolder) -> None:
    """Make a config use a recognised data folder, with its classes, for training and evaluation.

    Overrides that the config was loaded with are applied once more at the end.

    Raises:
        TwinsError: if the folder is for another task, has no masks for Mask R-CNN, or lacks a split.
    """
    name, segments = str(config.filename), is_segmentor(config)
    task = "segmentation" if segments else "detection"
    if data.task != task:
        raise TwinsError(
            f"config {name!r} is for {task}, but {str(data.root)!r} has data for {data.task}: choose a config for "
            f"{data.task}, see `twins-dense configs list`"
        )
    with_masks = model_of(config).type == "TwinsMaskRCNN"
    if with_masks and not data.has_masks:
        raise TwinsError(
            f"config {name!r} trains Mask R-CNN, but not all objects in {str(data.root)!r} have a mask: "
            f"choose a RetinaNet config, for example {_with_retinanet(name)!r}"
        )
    for split, key in (("train", "train"), ("val", "val"), ("val", "test")):
        loader = config.get(f"{key}_dataloader")
        if loader is None:
            continue
        if split not in data.splits:
            raise TwinsError(f"{str(data.root)!r} has no split {split!r}, but only {', '.join(data.splits)}: add it")
        if segments:
            loader.dataset = {**_kept(loader.dataset), **_label_maps(data, data.splits[split])}
        else:
            files = {"ann_file": str(data.splits[split].ann_file), "image_dir": str(data.splits[split].image_dir)}
            loader.dataset.update(files, data_root="", with_masks=with_masks and key == "train")
    for key in () if segments else ("val_evaluator", "test_evaluator"):
        if config.get(key) is not None:
            config[key].iou_types = ("bbox", "segm") if with_masks else ("bbox",)
    _set_everywhere(config.model, "num_classes", len(data.classes))
    apply_overrides(config)


@guarded
def set_training(config: Config, options: TrainingOptions) -> None:
    """Change how a config trains, as `TrainingOptions` describes.

    Overrides that the config was loaded with are applied once more at the end.

    Raises:
        TwinsError: for a value that is out of range or does not suit the config, or if the number of training images is
            needed and cannot be found out.
    """
    check_training_options(options)
    model = model_of(config)
    if options.size is not None:
        (_set_crop_size if is_segmentor(config) else _set_short_side)(config, options.size)
    small_data = options.recipe == "small-data"
    batch = options.batch or (recipes.BATCH_SIZE if small_data else None)
    if batch is not None:
        if batch % world_size():
            raise TwinsError(f"batch={batch} does not divide among {world_size()} processes: choose a multiple of them")
        config.train_dataloader.batch_size = batch // world_size()
    for name in ("max_dets", "anchor_sizes"):
        value = getattr(options, name)
        if value is not None and is_segmentor(config):
            raise TwinsError(f"{name}={value}: config {str(config.filename)!r} is for segmentation; leave it out")
        if value is not None:
            model[name] = value
    if options.max_dets is not None:  # it takes the place of torchvision's own setting
        for name in OWN_MAX_DETS:
            (model.get("options") or {}).pop(name, None)
    if options.weights is not None:
        model.backbone.weights = options.weights
    if options.epochs is not None:
        set_epochs(config, options.epochs)
    if small_data:
        pretrained = options.init is not None or model.backbone.get("weights") is not None
        apply_small_data_recipe(config, pretrained=pretrained)
    elif options.recipe is not None:
        shorten_warm_up(config)
    if options.lr is not None:
        config.optim_wrapper.optimizer.lr = options.lr
        config.auto_scale_lr = {"enable": False}
    if options.init is not None:
        config.init = str(options.init)
    if options.freeze is not None:
        model.backbone["freeze"] = options.freeze  # as an attribute, it is a method of ConfigDict
    apply_overrides(config)


def _with_retinanet(config: str) -> str:
    return config.replace("mask_rcnn", "retinanet") if "mask_rcnn" in config else "torchvision/retinanet_svt_small_1x"


def _kept(dataset: Mapping[str, Any]) -> dict[str, Any]:
    names = ("pipeline", "skip_bad", "allow_outside", "indices", "test_mode")
    return {name: dataset[name] for name in names if name in dataset}


def _label_maps(data: DataFolder, split: Split) -> dict[str, Any]:
    """Return the settings of `SegmentationDataset` for one split."""
    return {
        "type": "twins_dense.SegmentationDataset",
        "data_root": "",
        "data_prefix": {"img_path": str(split.image_dir), "seg_map_path": str(split.label_dir)},
        "ann_file": str(split.names) if split.names else "",
        "img_suffix": split.image_suffix,
        "seg_map_suffix": split.label_suffix,
        "reduce_zero_label": data.reduce_zero_label,
        "metainfo": {"classes": data.classes, "palette": class_palette(len(data.classes))},
    }


def _set_everywhere(node: Any, name: str, value: Any) -> None:
    for path, _ in list(settings_called(name, node, "")):
        *parents, _last = path.split(".")[1:]
        parent = node
        for part in parents:
            parent = parent[int(part) if isinstance(parent, list) else part]
        parent[name] = value


def _set_short_side(config: Config, size: int) -> None:
    """Resize images for a detector to a short side of `size`; several sizes, and those of crops, scale with it."""
    model = model_of(config)
    several = isinstance(model.min_size, (list, tuple))
    ratio = size / (model.min_size[-1] if several else model.min_size)
    model.min_size = tuple(round(side * ratio) for side in model.min_size) if several else size
    model.max_size = round(size * _LONG_SIDE)
    _scale(config.train_dataloader.dataset.get("transforms", []), ("min_size", "max_size"), ratio)


def _set_crop_size(config: Config, size: int) -> None:
    """Train a segmentor on crops of `size` pixels; the scales of images in training and evaluation change with it."""
    preprocessor = model_of(config).data_preprocessor
    ratio = size / preprocessor.size[0]
    preprocessor.size = (size, size)
    pipelines = [loader.dataset.pipeline for name, loader in config.items() if name.endswith("_dataloader") and loader]
    _scale([*pipelines, config.get("tta_pipeline")], ("scale", "crop_size"), ratio)


def _scale(node: Any, names: tuple[str, ...], ratio: float) -> None:
    """Multiply every setting below `node` that has one of the names, a number or several, and round to pixels."""
    if isinstance(node, (list, tuple)):
        for item in node:
            _scale(item, names, ratio)
    elif isinstance(node, dict):
        for name, value in node.items():
            if name in names and isinstance(value, (list, tuple)):
                node[name] = type(value)(round(side * ratio) for side in value)
            elif name in names:
                node[name] = round(value * ratio)
            else:
                _scale(value, names, ratio)
