"""The types that the parts of an MMEngine config must have, checked before anything is changed or built."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ...errors import TwinsError, shown

_SPLITS = ("train", "val", "test")


class _Kind(NamedTuple):
    """A type in words and its classes. `or_list` says whether a list of values of this type is valid as well."""

    words: str
    classes: tuple[type, ...]
    or_list: bool = False


_DICT = _Kind("a dict", (Mapping,))
_PART = _Kind("a dict, or None", (Mapping, type(None)))
_PARTS = _Kind("a dict, a list of dicts, or None", (Mapping, type(None)), or_list=True)
_TEXT = _Kind("a string", (str,))
_TEXT_OR_NONE = _Kind("a string, or None", (str, type(None)))
_LIST = _Kind("a list, or None", (list, tuple, type(None)))
_TYPE = _Kind("the name of a type", (str, type))

# The types by the dotted path of a setting; `*` stands for any name or number. Settings may be absent.
_KINDS: dict[str, _Kind] = {
    "model": _DICT,
    "model.backbone": _DICT,
    "model.data_preprocessor": _PART,
    "model.options": _PART,
    "model.module": _DICT,
    "tta_model": _PART,
    "tta_pipeline": _LIST,
    "optim_wrapper": _PART,
    "optim_wrapper.optimizer": _PART,
    "param_scheduler": _PARTS,
    "auto_scale_lr": _PART,
    "default_scope": _TEXT_OR_NONE,
    "default_hooks": _DICT,
    "default_hooks.*": _PART,
    "default_hooks.*.type": _TYPE,
    "custom_hooks": _LIST,
    "custom_hooks.*": _DICT,
    "custom_hooks.*.type": _TYPE,
    "custom_imports": _PART,
    "custom_imports.imports": _Kind("a string, or a list of strings", (str,), or_list=True),
    "env_cfg": _DICT,
    "env_cfg.mp_cfg": _DICT,
    "env_cfg.dist_cfg": _DICT,
    "log_processor": _PART,
    "visualizer": _PART,
    "visualizer.vis_backends": _LIST,
    "visualizer.vis_backends.*": _DICT,
    "randomness": _DICT,
    "randomness.seed": _Kind("a whole number, or None", (int, type(None))),
    "work_dir": _TEXT_OR_NONE,
    "load_from": _TEXT_OR_NONE,
    "init": _TEXT_OR_NONE,
    **{f"{split}_cfg": _PART for split in _SPLITS},
    **{f"{split}_dataloader": _PART for split in _SPLITS},
    **{f"{split}_dataloader.dataset": _DICT for split in _SPLITS},
    **{f"{split}_dataloader.dataset.type": _TYPE for split in _SPLITS},
    **{f"{split}_dataloader.dataset.data_prefix": _PART for split in _SPLITS},
    **{f"{split}_dataloader.dataset.pipeline": _LIST for split in _SPLITS},
    **{f"{split}_evaluator": _PARTS for split in _SPLITS},
    **{f"{split}_evaluator.type": _TYPE for split in _SPLITS},
    **{f"{split}_evaluator.*.type": _TYPE for split in _SPLITS},
}
# Settings that have to be there if the part that holds them is.
_REQUIRED = {
    "default_hooks.*": "type",
    "custom_hooks.*": "type",
    "custom_imports": "imports",
    "optim_wrapper": "optimizer",
    **{f"{split}_dataloader": "dataset" for split in _SPLITS},
    **{f"{split}_dataloader.dataset": "type" for split in _SPLITS},
}


def check_types(config: Mapping[str, Any], name: str) -> None:
    """Raise `TwinsError` for the first part of a config that has the wrong type.

    Args:
        config: The config.
        name: The config in messages.
    """
    for pattern, kind in _KINDS.items():
        for path, value in _settings(config, pattern.split("."), ()):
            valid = isinstance(value, kind.classes)
            if kind.or_list and isinstance(value, (list, tuple)):
                valid = all(isinstance(item, kind.classes) and item is not None for item in value)
            if not valid:
                raise TwinsError(f"{name}: {path} is {shown(reprlib.repr(value))}; it must be {kind.words}")
            required = _REQUIRED.get(pattern)
            if required is not None and value is not None and required not in value:
                raise TwinsError(f"{name}: {path} has no {required!r}; add it")


def _settings(node: Any, parts: Sequence[str], path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Yield the dotted path and the value of each setting that a pattern stands for."""
    if not parts:
        yield ".".join(path), node
    elif parts[0] == "*":
        items = (
            node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, (list, tuple)) else ()
        )
        for key, value in items:
            if isinstance(value, Mapping) or len(parts) == 1:
                yield from _settings(value, parts[1:], (*path, shown(str(key))))
    elif isinstance(node, Mapping) and parts[0] in node:
        yield from _settings(node[parts[0]], parts[1:], (*path, parts[0]))
