"""Read YAML files without running code that they name; detectron2 itself reads them with `yaml.unsafe_load`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from detectron2.layers import ShapeSpec

from ...errors import TwinsError, one_line


class _Loader(yaml.SafeLoader):
    """Safe loader that also knows the two Python types in the dumps of our configs."""


_Loader.add_constructor(
    "tag:yaml.org,2002:python/tuple", lambda loader, node: tuple(loader.construct_sequence(node, deep=True))
)
_Loader.add_constructor(
    f"tag:yaml.org,2002:python/object:{ShapeSpec.__module__}.{ShapeSpec.__qualname__}",
    lambda loader, node: ShapeSpec(**loader.construct_mapping(node, deep=True)),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the content of a config file in YAML.

    Raises:
        TwinsError: if the file cannot be read, or contains Python objects.
    """
    try:
        content = yaml.load(path.read_bytes(), Loader=_Loader)
    except yaml.constructor.ConstructorError as error:
        raise TwinsError(
            f"config {str(path)!r} contains a Python object ({one_line(error.problem)}); objects are not read from "
            "YAML or pickles, because that can run code: use the Python config of the run"
        ) from None
    except Exception as error:  # errors of yaml, of the file, or of ShapeSpec
        raise TwinsError(f"config {str(path)!r} cannot be read: {type(error).__name__}: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise TwinsError(
            f"config {str(path)!r} cannot be read: it holds a {type(content).__name__} instead of settings"
        )
    return content
