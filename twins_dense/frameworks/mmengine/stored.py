"""MMEngine configs as plain data, for checkpoints, and back, without running code that the data names."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine import registry as registries
from mmengine.config import Config
from mmengine.registry import Registry
from torchvision.transforms import v2

from ...errors import TwinsError, requires_extra
from ..stored_config import check_plain

# The parts of a config that are stored, with the registry of the types in them; `None` if they have no types.
_PARTS: dict[str, Registry | None] = {
    "default_scope": None,
    "model": registries.MODELS,
    "tta_model": registries.MODELS,
    "tta_pipeline": registries.TRANSFORMS,
    **{f"{split}_dataloader": registries.DATASETS for split in ("train", "val", "test")},
    **{f"{split}_evaluator": registries.METRICS for split in ("val", "test")},
    **{f"{split}_cfg": registries.LOOPS for split in ("train", "val", "test")},
    "optim_wrapper": registries.OPTIM_WRAPPERS,
    "param_scheduler": registries.PARAM_SCHEDULERS,
    "auto_scale_lr": None,
    "randomness": None,
}
# Keys inside those parts below which another registry holds. Everything in a model is in MODELS.
_INNER = {
    "pipeline": registries.TRANSFORMS,
    "sampler": registries.DATA_SAMPLERS,
    "batch_sampler": registries.DATA_SAMPLERS,
    "collate_fn": registries.FUNCTIONS,
    "worker_init_fn": registries.FUNCTIONS,
    "optimizer": registries.OPTIMIZERS,
}
# Where types may come from: modules, or single classes. Others can load pickled files that their arguments name, for
# example mmseg's backbones and MMEngine's BaseDataset.
_KNOWN = (
    "twins_dense",
    "mmengine.dataset.sampler",
    "mmengine.dataset.utils",
    "mmengine.model",
    "mmengine.optim",
    "mmengine.runner",
    "mmcv.cnn",
    "mmcv.transforms",
    "mmseg.datasets.transforms.formatting",
    "mmseg.datasets.transforms.loading.LoadAnnotations",
    "mmseg.datasets.transforms.transforms",
    "mmseg.evaluation.metrics.iou_metric",
    "mmseg.models.data_preprocessor",
    *(f"mmseg.models.decode_heads.{head}_head" for head in ("aspp", "fcn", "fpn", "psp", "segformer", "uper")),
    "mmseg.models.losses",
    "mmseg.models.necks.fpn",
    "mmseg.models.segmentors.encoder_decoder",
    "mmseg.models.segmentors.seg_tta",
    "torch.nn",
    "torch.optim",
)
# Files that are read or written when a model or a metric is built. Trained weights come from the checkpoint.
_DROPPED = ("init_cfg", "pretrained", "output_dir")


def to_data(config: Config) -> dict[str, Any]:
    """Return the parts of a config that prediction, evaluation and further training need, as plain data.

    Hooks, logging and paths of the run are left out. Tuples stay tuples, because mmcv treats lists differently.

    Raises:
        TwinsError: if the config holds anything that `from_data` would refuse, such as types of your own.
    """
    data = {key: value for key, value in config.to_dict().items() if key in _PARTS}
    check_plain(data)
    from_data(data)
    return data


def from_data(data: Mapping[str, Any]) -> Config:
    """Return the config that `to_data` has stored. Nothing that the data names is imported.

    Initial weights are left out, because those of the checkpoint replace them.

    Raises:
        TwinsError: if the data is not from `to_data`, or names a type that is not on our list.
    """
    check_plain(dict(data), "the stored config")
    unknown = [key for key in data if key not in _PARTS]
    if unknown or not isinstance(data.get("model"), dict):
        what = f"has {unknown[0]!r}, which is never stored" if unknown else "has no model"
        raise TwinsError(f"the stored config {what}")
    scope = data.get("default_scope", "mmengine")
    if scope == "mmseg":
        with requires_extra("segmentation"):
            from . import segmentors as ours
    elif scope == "mmengine":
        from . import detectors as ours  # type: ignore[no-redef]
    else:
        raise TwinsError(f"the stored config has default_scope={scope!r}")
    checked = {key: _checked(value, _PARTS[key], key, scope) for key, value in data.items()}
    backbone = checked["model"].get("backbone")
    if isinstance(backbone, dict) and "weights" in backbone:
        backbone["weights"] = None
    checked["custom_imports"] = {"imports": [ours.__name__], "allow_failed_imports": False}
    # MMEngine names files after the config, and reads the file unless it is given a text.
    return Config(checked, cfg_text="\n", filename="stored_config.py")


def _checked(node: Any, registry: Registry | None, path: str, scope: str) -> Any:
    """Return a copy of a part of a config without the keys to drop, or raise `TwinsError` for what is not allowed."""
    if isinstance(node, (list, tuple)):
        return type(node)(_checked(item, registry, f"{path}.{number}", scope) for number, item in enumerate(node))
    if not isinstance(node, dict):
        return node
    kept = {}
    for key, value in node.items():
        if key in _DROPPED:
            continue
        if key == "_scope_" or (key == "class_weight" and isinstance(value, str)):  # they would import or read files
            raise TwinsError(f"the stored config has {path}.{key}={value!r}, which is not allowed")
        if key == "constructor" and registry is not None:
            _check_type(value, registries.OPTIM_WRAPPER_CONSTRUCTORS, f"{path}.{key}", scope)
        elif key == "type":
            _check_type(value, registry, f"{path}.{key}", scope)
        inner = registry
        if key == "transforms" and registry is registries.DATASETS:  # see `detection_data.build_transforms`
            inner = None
        elif registry not in (None, registries.MODELS):
            inner = _INNER.get(key, registry)
        kept[key] = _checked(value, inner, f"{path}.{key}", scope)
    return kept


def _check_type(name: Any, registry: Registry | None, path: str, scope: str) -> None:
    """Raise `TwinsError` unless a type is already registered, and comes from one of `_KNOWN`.

    `Registry.get` is not asked, because it imports modules that the name mentions.
    """
    found: Iterator[Any] = iter(())
    if isinstance(name, str):
        found = _transforms(name) if registry is None else _registered(name, registry, scope)
    names = [f"{one.__module__}.{one.__qualname__}" for one in found]
    if not any(full.startswith(f"{known}.") or full == known for full in names for known in _KNOWN):
        raise TwinsError(f"the stored config has {path}={name!r}, which is not a known type")


def _registered(name: str, registry: Registry, default_scope: str) -> Iterator[Any]:
    """Yield the objects that `Registry.get` could return for a name without importing anything."""
    scope, _, plain = name.rpartition(".")
    scopes = (scope,) if scope else (default_scope, registry.scope)
    nodes = [registry]
    for node in nodes:  # it grows
        nodes.extend(node.children.values())
        if node.scope in scopes and plain in node.module_dict:
            yield node.module_dict[plain]


def _transforms(name: str) -> Iterator[Any]:
    from .detection_data import RandomRangeCrop

    found = getattr(v2, name, None)
    if name == "RandomRangeCrop" or (inspect.isclass(found) and issubclass(found, v2.Transform)):
        yield RandomRangeCrop
