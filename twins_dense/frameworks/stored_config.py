"""The config of a run inside its checkpoints, as plain data that is never executed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import TwinsError

KEY = "twins_dense"  # of the record in a checkpoint
VERSION = 1


class StoredConfigError(TwinsError):
    """Raised if a config cannot be stored as data, or if stored data is not a config that is safe to build."""


def make_record(engine: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record to store in a checkpoint.

    Args:
        engine: "mmengine" or "detectron2".
        config: The resolved config, from `to_data` of that engine.
    """
    return {"version": VERSION, "engine": engine, "config": dict(config)}


def read_record(content: Any, path: str | Path) -> tuple[str, Mapping[str, Any]] | None:
    """Return the engine and the config data of a checkpoint, or `None` if it holds none.

    Args:
        content: Content of the checkpoint.
        path: Path of the checkpoint, for messages.

    Raises:
        TwinsError: if the record is broken, or comes from a newer version.
    """
    record = content.get(KEY) if isinstance(content, Mapping) else None
    if record is None:
        return None
    if not isinstance(record, Mapping) or not isinstance(record.get("config"), Mapping):
        raise TwinsError(f"checkpoint {str(path)!r}: its stored config is broken; give a config as well")
    version, engine = record.get("version"), record.get("engine")
    if version != VERSION:
        raise TwinsError(
            f"checkpoint {str(path)!r}: its stored config has version {version!r}, and this package reads version "
            f"{VERSION}; update twins_dense, or give a config as well"
        )
    if engine not in ("mmengine", "detectron2"):
        raise TwinsError(f"checkpoint {str(path)!r}: its stored config is for an unknown engine {engine!r}")
    return engine, record["config"]


def check_plain(value: Any, path: str = "the config") -> None:
    """Raise `StoredConfigError` unless a value consists of plain types.

    These are dicts with string keys, lists, tuples, strings, numbers, bools and `None`.

    Args:
        value: The value.
        path: Dotted path of the value in the config, for messages.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            if type(key) is not str:
                raise StoredConfigError(f"{path} has the key {key!r}, which is not a string")
            check_plain(item, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            check_plain(item, f"{path}.{number}")
    elif value is not None and type(value) not in (str, int, float, bool):
        raise StoredConfigError(f"{path} is a {type(value).__qualname__}, which cannot be stored as data")
