"""LazyConfigs as plain data, for checkpoints, and back, without running code that the data names."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Mapping
from typing import Any

import detectron2.evaluation
import detectron2.modeling
import detectron2.solver  # noqa: F401  (stored configs name classes of these packages)
from detectron2.config.instantiate import dump_dataclass
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.utils.registry import _convert_target_to_string
from omegaconf import DictConfig, OmegaConf, SCMode
from torch import nn

from ...errors import one_line
from ..stored_config import KEY, StoredConfigError, check_plain, make_record
from .backbone import D2Twins, build_net, logger, optimizer_params
from .cfg_node import build_yaml_mapper, build_yaml_model
from .data import build_train_loader, coco_dataset
from .detection_evaluator import DetectionEvaluator
from .solver import multi_step_lr

_PARTS = ("dataloader", "lr_multiplier", "model", "optimizer", "train")
# Modules whose classes may be built. `detectron2.modeling.mmdet_wrapper` is not among them: it imports what it is told.
_CLASS_MODULES = (
    "detectron2.data.dataset_mapper",
    "detectron2.data.transforms",
    "detectron2.evaluation.coco_evaluation",
    "detectron2.layers",
    "detectron2.modeling.anchor_generator",
    "detectron2.modeling.backbone",
    "detectron2.modeling.box_regression",
    "detectron2.modeling.matcher",
    "detectron2.modeling.meta_arch",
    "detectron2.modeling.poolers",
    "detectron2.modeling.proposal_generator",
    "detectron2.modeling.roi_heads",
    "detectron2.solver.lr_scheduler",
    "fvcore.common.param_scheduler",
    "torch.nn.modules",
    "torch.optim",
)
# Other classes and functions that may be called.
_CALLABLES = (
    D2Twins,
    DetectionEvaluator,
    build_detection_test_loader,
    build_detection_train_loader,
    build_net,
    build_train_loader,
    build_yaml_mapper,
    build_yaml_model,
    coco_dataset,
    multi_step_lr,
    optimizer_params,
)


def to_data(config: DictConfig) -> dict[str, Any]:
    """Return a config as plain data, with interpolations replaced by their values.

    Raises:
        StoredConfigError: if the config holds anything that `from_data` would refuse, such as functions of your own.
    """
    data = plain_data(config)
    check_plain(data)
    from_data(data)
    return data


def plain_data(config: DictConfig) -> dict[str, Any]:
    """Return a config as data, as `to_data` does, but do not check that all of it is plain."""
    parts = OmegaConf.masked_copy(config, list(_PARTS))
    return _plain(OmegaConf.to_container(parts, resolve=True, structured_config_mode=SCMode.INSTANTIATE))


def stored_record(config: DictConfig) -> dict[str, Any]:
    """Return the entry of checkpoints that holds the config; it is empty if the config cannot be stored as data."""
    try:
        return {KEY: make_record("detectron2", to_data(config))}
    except Exception as error:  # training goes on, whatever the config contains
        logger.warning(f"Checkpoints will not contain the config ({one_line(error)}): keep the config file")
        return {}


def from_data(data: Mapping[str, Any]) -> DictConfig:
    """Return the config that `to_data` has stored. Only modules on our list are imported.

    Initial weights are left out, because those of the checkpoint replace them.

    Raises:
        StoredConfigError: if the data is not from `to_data`, or names a class or a function that is not on our list.
    """
    check_plain(dict(data), "the stored config")
    if sorted(data) != sorted(_PARTS):
        raise StoredConfigError(f"the stored config has the parts {', '.join(data)}, not {', '.join(_PARTS)}")
    _check(dict(data), "")
    config = DictConfig(dict(data), flags={"allow_objects": True})
    config.train.init_checkpoint = ""
    config.train.pop("init", None)
    net = OmegaConf.select(config, "model.backbone.bottom_up.net")
    for node in (config.model, net):  # the first for a YAML file, the second for a LazyConfig
        if isinstance(node, DictConfig) and node.get("weights"):
            node.weights = None
    if "evaluator" in config.dataloader:
        config.dataloader.evaluator.pop("output_dir", None)
    return config


def _plain(node: Any) -> Any:
    """Return a copy in which dataclasses and callables are replaced by the data that builds them."""
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        node = dump_dataclass(node)
    if isinstance(node, dict):
        # During training, the node of the optimiser's parameters also holds the model.
        return {key: _plain(value) for key, value in node.items() if not isinstance(value, nn.Module)}
    if isinstance(node, (list, tuple)):
        return [_plain(value) for value in node]
    return _convert_target_to_string(node) if inspect.isclass(node) or inspect.isfunction(node) else node


def _check(node: Any, path: str) -> None:
    if isinstance(node, str) and "${" in node:  # an interpolation, which can read environment variables
        raise StoredConfigError(f"the stored config has {path}={node!r}, which is not plain")
    if isinstance(node, (list, tuple)):
        for number, value in enumerate(node):
            _check(value, f"{path}.{number}")
    elif isinstance(node, dict):
        for key, value in node.items():
            inner = f"{path}.{key}".lstrip(".")
            if key == "_target_" and not _is_known(value):
                raise StoredConfigError(
                    f"the stored config has {inner}={value!r}, which is not on the list of known classes and functions"
                )
            _check(value, inner)


def _is_known(name: Any) -> bool:
    """Return whether a name leads to a class or a function on our list. Nothing is imported to find out."""
    if not isinstance(name, str):
        return False
    module, _, attribute = name.rpartition(".")
    found = getattr(sys.modules.get(module), attribute, None)
    # The object itself decides, because modules also contain what they import.
    full = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
    in_modules = inspect.isclass(found) and any(full.startswith(f"{module}.") for module in _CLASS_MODULES)
    return in_modules or any(found is known for known in _CALLABLES)
