"""Apply a recognised data folder and the options of a training run to a config."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode, LazyCall
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch.optim import AdamW

from ...data.layouts import DataFolder, Split
from ...errors import TwinsError
from .. import recipes
from ..checks import check_training_options
from ..options import TrainingOptions
from .backbone import optimizer_params
from .cfg_node import is_cfg, read_dump
from .config import apply_overrides, check_settings, datasets_of, overridden_cfg_keys
from .data import TrainingFacts, training_facts
from .guards import guarded

# The settings below have one name in a LazyConfig and another one in a CfgNode, which a YAML file becomes.
_CLASSES_KEYS = ("MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.RETINANET.NUM_CLASSES")
_MAX_DETS_KEYS = ("test_topk_per_image", "max_detections_per_image")
_NET = "model.backbone.bottom_up.net"


@guarded
def set_data(config: DictConfig, data: DataFolder) -> None:
    """Train on the "train" split of a folder and evaluate on its "val" split.

    The model gets as many classes as the folder has. A run over whole epochs keeps their number, if the config says how
    many iterations an epoch has (`train.iterations_per_epoch`). Overrides that the config was loaded with have the last
    word.

    Raises:
        TwinsError: if the folder is for another task, has no masks for a Mask R-CNN, or lacks one of the two splits.
    """
    check_settings(config)
    if data.task != "detection":
        raise TwinsError(
            f"data {str(data.root)!r} is for segmentation, but the config is for a detector: use a config whose name "
            "starts with mmseg/"
        )
    with_masks = _with_masks(config)
    if with_masks and not data.has_masks:
        raise TwinsError(
            f"data {str(data.root)!r} has boxes but no masks, which Mask R-CNN needs: use a RetinaNet config, "
            "for example detectron2/retinanet_svt_small_1x"
        )
    for name, dataset in zip(("train", "val"), datasets_of(config, "ann_file"), strict=True):
        split = _split(data, name)
        dataset.name = f"{data.root.name}_{name}"
        dataset.data_root = None
        dataset.ann_file = str(split.ann_file)
        dataset.image_dir = str(split.image_dir)
    evaluator = config.dataloader.evaluator
    if "dataset_name" in evaluator and not OmegaConf.is_interpolation(evaluator, "dataset_name"):
        evaluator.dataset_name = config.dataloader.test.dataset.name
    _set_num_classes(config, len(data.classes))
    facts = training_facts(config.dataloader.train.dataset)
    if with_masks and facts.has_run_lengths:
        _set_mask_format(config, "bitmask")
    epochs = _num_epochs(config)
    if epochs is not None:
        _set_length(config, epochs, facts)
    apply_overrides(config)


@guarded
def set_training(config: DictConfig, options: TrainingOptions) -> None:
    """Change how a config trains, as `TrainingOptions` describes.

    Overrides that the config was loaded with have the last word.

    Raises:
        TwinsError: for a value that is out of range or does not suit the config, or if the number of training images is
            needed and cannot be found out.
    """
    check_settings(config)
    check_training_options(options)
    loader, settings = config.dataloader.train, config.train
    before, epochs = loader.get("total_batch_size"), _num_epochs(config)
    batch = options.batch or (recipes.BATCH_SIZE if options.recipe == "small-data" else None)
    if batch is not None:
        _set_batch(config, batch)
        apply_overrides(config)
    if options.epochs is not None or (epochs is not None and loader.total_batch_size != before):
        _set_length(config, options.epochs or epochs or 1, training_facts(loader.dataset))
    if options.epochs is not None:
        interval = recipes.evaluation_interval(options.epochs, settings.iterations_per_epoch)
        for node, key in _periods(config):
            if OmegaConf.is_interpolation(node, key):
                node[key] = interval * settings.iterations_per_epoch
    if _num_epochs(config) is not None:
        _fit_schedule(config)
    if options.weights is not None:
        _set_backbone(config, "weights", options.weights)
    if options.max_dets is not None:
        _set_max_dets(config, options.max_dets)
    if options.recipe == "small-data":
        _set_small_data(config, pretrained=options.init is not None or _backbone_weights(config))
    if options.lr is not None:
        config.optimizer.lr = options.lr
        settings.auto_scale_lr.enabled = False
    if options.size is not None:
        _set_size(config, options.size)
    if options.anchor_sizes is not None:
        _set_anchor_sizes(config, options.anchor_sizes)
    if options.init is not None:
        settings.init = str(options.init)
    if options.freeze is not None:
        _set_backbone(config, "freeze", options.freeze)
    apply_overrides(config)


def _split(data: DataFolder, name: str) -> Split:
    split = data.splits.get(name)
    if split is None or split.ann_file is None:
        raise TwinsError(f"data {str(data.root)!r} has no {name!r} split, only {', '.join(map(repr, data.splits))}")
    return split


def _with_masks(config: DictConfig) -> bool:
    return bool(config.dataloader.train.dataset.get("with_masks", False))


def _set_num_classes(config: DictConfig, num_classes: int) -> None:
    if is_cfg(config):
        _set_yaml(config, dict.fromkeys(_CLASSES_KEYS, num_classes))
        return
    for node in _nodes(config.model):
        # The other parts of a model refer to one number by an interpolation.
        if "num_classes" in node and not OmegaConf.is_interpolation(node, "num_classes"):
            node.num_classes = num_classes


def _set_mask_format(config: DictConfig, mask_format: str) -> None:
    if is_cfg(config):
        _set_yaml(config, {"INPUT.MASK_FORMAT": mask_format})
    else:
        config.dataloader.train.mapper.instance_mask_format = mask_format


def _num_epochs(config: DictConfig) -> int | None:
    """Return the number of epochs of a config, or `None` if it is not a whole number or not known."""
    settings = config.train
    iterations = settings.get("iterations_per_epoch")
    if not iterations or type(settings.max_iter) is not int or settings.max_iter % iterations:
        return None
    return settings.max_iter // iterations


def _set_batch(config: DictConfig, batch_size: int) -> None:
    """Set the batch size; the run keeps its length in images."""
    loader, settings = config.dataloader.train, config.train
    if "total_batch_size" not in loader:
        raise TwinsError("dataloader.train of the config has no 'total_batch_size': build it with build_train_loader")
    before, loader.total_batch_size = loader.total_batch_size, batch_size
    if _num_epochs(config) is None:
        _set_max_iter(config, math.ceil(settings.max_iter * before / batch_size))


def _set_length(config: DictConfig, epochs: int, facts: TrainingFacts) -> None:
    """Set the number of iterations for a number of epochs; evaluations and checkpoints at each epoch follow."""
    settings, batch_size = config.train, config.dataloader.train.get("total_batch_size")
    if type(batch_size) is not int or batch_size < 1:
        raise TwinsError(f"dataloader.train.total_batch_size={batch_size!r}: choose a whole number, 1 or more")
    before = settings.get("iterations_per_epoch")
    for node, key in _periods(config):
        if node[key] > 0 and before in (None, node[key]):
            node[key] = "${train.iterations_per_epoch}"
    settings.iterations_per_epoch = math.ceil(facts.num_images / batch_size)
    _set_max_iter(config, epochs * settings.iterations_per_epoch)


def _periods(config: DictConfig) -> list[tuple[DictConfig, str]]:
    return [(config.train, "eval_period"), (config.train.checkpointer, "period")]


def _set_max_iter(config: DictConfig, max_iter: int) -> None:
    schedule = config.lr_multiplier
    config.train.max_iter = max_iter
    if "max_iter" in schedule and not OmegaConf.is_interpolation(schedule, "max_iter"):
        schedule.max_iter = max_iter


def _fit_schedule(config: DictConfig) -> None:
    """Limit the warm-up and the logging interval to a part of the run."""
    settings, schedule = config.train, config.lr_multiplier
    if type(schedule.get("warmup_iters")) is int:
        schedule.warmup_iters = recipes.warmup_iterations(schedule.warmup_iters, settings.max_iter)
    settings.log_period = recipes.log_interval(settings.log_period, settings.max_iter)


def _set_small_data(config: DictConfig, *, pretrained: bool) -> None:
    """Use the recipe for small data sets, for the length and the batch size that the run already has."""
    max_iter = config.train.max_iter
    config.optimizer = LazyCall(AdamW)(
        params=LazyCall(optimizer_params)(no_decay=list(recipes.NO_DECAY)),
        lr=recipes.learning_rate(config.dataloader.train.total_batch_size, pretrained=pretrained),
        weight_decay=recipes.WEIGHT_DECAY,
    )
    config.train.auto_scale_lr.enabled = False
    config.train.clip_norm = recipes.CLIP_NORM
    config.lr_multiplier = LazyCall(WarmupParamScheduler)(
        scheduler=LazyCall(CosineParamScheduler)(start_value=1.0, end_value=recipes.FINAL_FACTOR),
        warmup_factor=recipes.WARMUP_FACTOR,
        warmup_length=recipes.warmup_iterations(recipes.WARMUP_ITERATIONS, max_iter) / max_iter,
        rescale_interval=True,  # the cosine takes what the warm-up leaves
    )
    _set_backbone(config, "drop_path_rate", recipes.DROP_PATH_RATE[pretrained])
    if is_cfg(config):
        num_proposals = recipes.num_proposals(read_dump(config.model.cfg).TEST.DETECTIONS_PER_IMAGE)
        topk = {"PRE": recipes.PRE_NMS_TOPK, "POST": num_proposals}
        rpn = {f"MODEL.RPN.{name}_NMS_TOPK_{mode}": topk[name] for name in topk for mode in ("TRAIN", "TEST")}
        _set_yaml(config, {**rpn, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": recipes.ROI_BATCH})
    elif "proposal_generator" in config.model and "roi_heads" in config.model:
        num_proposals = recipes.num_proposals(max(node[key] for node, key in _max_dets(config)))
        config.model.proposal_generator.pre_nms_topk = [recipes.PRE_NMS_TOPK] * 2
        config.model.proposal_generator.post_nms_topk = [num_proposals] * 2
        config.model.roi_heads.batch_size_per_image = recipes.ROI_BATCH


def _set_size(config: DictConfig, size: int) -> None:
    """Set the short side of resized test images, and change all other lengths of the augmentations in proportion."""
    mappers = config.dataloader.train.mapper, config.dataloader.test.mapper
    if is_cfg(config):
        images = read_dump(config.model.cfg).INPUT
        scale = size / images.MIN_SIZE_TEST
        keys = ("MIN_SIZE_TRAIN", "MAX_SIZE_TRAIN", "MIN_SIZE_TEST", "MAX_SIZE_TEST")
        _set_yaml(config, {f"INPUT.{key}": _scaled(images[key], scale) for key in keys})
        return
    resizes = [node for node in _nodes(mappers[1].get("augmentations")) if "short_edge_length" in node]
    if not resizes:
        raise TwinsError(f"size={size}: dataloader.test.mapper of the config has no ResizeShortestEdge; add one")
    before = resizes[-1].short_edge_length
    scale = size / (before if isinstance(before, int) else max(before))
    for mapper in mappers:
        for node in _nodes(mapper.get("augmentations")):
            is_absolute_crop = str(node.get("crop_type", "")).startswith("absolute")
            for key in ("short_edge_length", "max_size", *(("crop_size",) if is_absolute_crop else ())):
                if key in node:
                    node[key] = _scaled(node[key], scale)


def _scaled(length: Any, scale: float) -> Any:
    """Scale one length in pixels or a sequence of them."""
    if isinstance(length, int):
        return round(length * scale)
    return [round(value * scale) for value in length]


def _set_max_dets(config: DictConfig, max_dets: int) -> None:
    if is_cfg(config):
        before = read_dump(config.model.cfg).MODEL.RPN.POST_NMS_TOPK_TEST
        proposals = max(before, max_dets)
        _set_yaml(config, {"TEST.DETECTIONS_PER_IMAGE": max_dets, "MODEL.RPN.POST_NMS_TOPK_TEST": proposals})
    else:
        for node, key in _max_dets(config):
            node[key] = max_dets
        for node in _nodes(config.model):
            if "post_nms_topk" in node:  # the second number is for evaluation
                node.post_nms_topk = [node.post_nms_topk[0], max(node.post_nms_topk[1], max_dets)]
    if not OmegaConf.is_interpolation(config.dataloader.evaluator, "max_dets_per_image"):
        config.dataloader.evaluator.max_dets_per_image = max_dets


def _max_dets(config: DictConfig) -> list[tuple[DictConfig, str]]:
    """Return where a LazyConfig says how many detections per image its model returns."""
    return [(node, key) for node in _nodes(config.model) for key in _MAX_DETS_KEYS if key in node]


def _set_anchor_sizes(config: DictConfig, anchor_sizes: Sequence[float]) -> None:
    """Set the anchor sizes; levels with several scales, as in RetinaNet, get equal steps up to twice the size."""
    option = f"anchor_sizes={tuple(anchor_sizes)!r}"
    generators = [node for node in _nodes(config.model) if "sizes" in node and "aspect_ratios" in node]
    if is_cfg(config):
        generators = [read_dump(config.model.cfg).MODEL.ANCHOR_GENERATOR]
    if len(generators) != 1:
        raise TwinsError(f"{option}: the model of the config has {len(generators)} anchor generators instead of one")
    before = generators[0]["SIZES" if is_cfg(config) else "sizes"]
    if len(anchor_sizes) != len(before):
        raise TwinsError(f"{option}: give {len(before)} sizes, one for each level of the pyramid")
    sizes = [
        [size * 2 ** (step / len(level)) for step in range(len(level))]
        for size, level in zip(anchor_sizes, before, strict=True)
    ]
    if is_cfg(config):
        _set_yaml(config, {"MODEL.ANCHOR_GENERATOR.SIZES": sizes})
    else:
        generators[0].sizes = sizes


def _backbone_weights(config: DictConfig) -> bool:
    key = "model.weights" if is_cfg(config) else f"{_NET}.weights"
    return bool(OmegaConf.select(config, key))


def _set_backbone(config: DictConfig, name: str, value: Any) -> None:
    """Set an argument of `build_net`."""
    if is_cfg(config) and name == "weights":
        config.model.weights = value
    elif is_cfg(config):
        others = {"MODEL.BACKBONE.FREEZE_AT": 0} if name == "freeze" else {}
        _set_yaml(config, {f"MODEL.TWINS.{name.upper()}": value, **others})
    else:
        net = OmegaConf.select(config, _NET)
        if net is None:
            raise TwinsError(f"the config has no {_NET}, which {name}={value!r} is for: use a Twins backbone")
        net[name] = value


def _nodes(part: Any) -> Iterator[DictConfig]:
    """Yield all dictionaries in a part of a LazyConfig."""
    if isinstance(part, DictConfig):
        yield part
        part = [part[key] for key in map(str, part) if not OmegaConf.is_interpolation(part, key)]
    if isinstance(part, (list, ListConfig)):
        for child in part:
            yield from _nodes(child)


def _set_yaml(config: DictConfig, settings: Mapping[str, Any]) -> None:
    """Change settings of the CfgNode that the model and both mappers of a translated YAML file contain.

    Those that the file was loaded with as overrides stay.
    """
    settings = {key: value for key, value in settings.items() if key not in overridden_cfg_keys(config)}
    for owner in (config.model, config.dataloader.train.mapper, config.dataloader.test.mapper):
        cfg: CfgNode = read_dump(owner.cfg)
        cfg.merge_from_list([item for pair in settings.items() for item in pair])
        owner.cfg = cfg.dump()
