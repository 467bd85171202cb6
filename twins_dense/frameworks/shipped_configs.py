"""Find, list and copy the configs that come with the package."""

from __future__ import annotations

import ast
import fnmatch
from collections.abc import Iterator
from pathlib import Path

from ..atomic import write_atomically
from ..errors import TwinsError, did_you_mean

_SUFFIXES = (".py", ".yaml", ".yml")


def configs_dir() -> Path:
    """Return the folder of the configs, inside an installed package or at the top of a checkout of the repository."""
    installed = Path(__file__).parents[1] / "configs"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "configs"


def list_configs(pattern: str = "*") -> list[str]:
    """Return the names of the experiments that match a pattern, such as "torchvision/mask_rcnn_*".

    A name consists of the folder and the file name without `.py`; YAML files keep their suffix.
    """
    files = (path for path in configs_dir().glob("*/*") if path.suffix in _SUFFIXES)
    names = (path.relative_to(configs_dir()).as_posix().removesuffix(".py") for path in files)
    return sorted(name for name in names if fnmatch.fnmatchcase(name, pattern))


def find_config(name: str | Path) -> Path:
    """Return the file of a config, given by its path or by its name in `list_configs`.

    A path that exists takes precedence over a name.

    Raises:
        TwinsError: if there is no such file and no such name.
    """
    path = Path(name)
    if path.is_file():
        return path
    key = path.as_posix().removesuffix(".py")
    names = list_configs()
    if key in names:
        return configs_dir() / (key if Path(key).suffix in _SUFFIXES else f"{key}.py")
    raise TwinsError(
        f"config {str(name)!r}: no such file; check the path, or choose a name from `twins-dense configs list`"
        f"{did_you_mean(key, names)}"
    )


def is_config(name: str | Path) -> bool:
    """Return whether a name looks like a config: a path with the suffix of configs, or a name in `list_configs`."""
    return Path(name).suffix in _SUFFIXES or Path(name).as_posix() in list_configs()


def copy_config(name: str | Path, folder: str | Path) -> list[Path]:
    """Copy a config and all files that it inherits from, so that the copy works on its own.

    Args:
        name: Path or name of the config (see `find_config`).
        folder: Destination; the files keep their paths relative to the config.

    Returns:
        The new files, the config first.

    Raises:
        TwinsError: if one of the new files already exists (then nothing is written), or if the config inherits from a
            file outside its folder.
    """
    source = find_config(name)
    files = list(dict.fromkeys(_with_inherited(source)))
    outside = next((file for file in files if not file.is_relative_to(source.parent)), None)
    if outside is not None:
        raise TwinsError(f"config {str(name)!r} inherits from {outside}, outside its folder: copy that folder instead")
    targets = [Path(folder) / file.relative_to(source.parent) for file in files]
    existing = next((target for target in targets if target.exists()), None)
    if existing is not None:
        raise TwinsError(f"{existing} already exists: choose another folder")
    for file, target in zip(files, targets, strict=True):
        write_atomically(target, file.read_bytes())
    return targets


def _with_inherited(path: Path) -> Iterator[Path]:
    """Yield a config and all files that it inherits from, directly or indirectly."""
    yield path
    if path.suffix != ".py":
        return
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        # MMEngine: `_base_` is a path or a list of paths.
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["_base_"]:
            bases = ast.literal_eval(node.value)
            for base in [bases] if isinstance(bases, str) else bases:
                yield from _with_inherited(path.parent / base)
        # LazyConfig: relative imports.
        elif isinstance(node, ast.ImportFrom) and node.level and node.module:
            parent = path.parents[node.level - 1]
            yield from _with_inherited(parent.joinpath(*node.module.split(".")).with_suffix(".py"))
