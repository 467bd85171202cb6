"""Read a checkpoint without running code from it."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections import OrderedDict
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ..errors import TwinsError


class _Placeholder:
    """Stand-in for a value that is not needed. It ignores the value's arguments and state."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# Classes and functions that a checkpoint may name in addition to those that torch considers safe. They are never
# imported or called: each becomes a placeholder. Building real numpy values would not be safe, because the state of a
# dtype can make raw bytes pass for objects.
_ALLOWED: list[Any] = [
    (_Placeholder, name)
    for name in (
        # arguments of training scripts
        "argparse.Namespace",
        "pathlib.PosixPath",
        "pathlib._local.PosixPath",  # as Python 3.13 writes it
        # scores and learning rates as numpy scalars or arrays, under the names that numpy 1 and numpy 2 write
        "numpy.dtype",
        "numpy.ndarray",
        "numpy.core.multiarray.scalar",
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "numpy._core.multiarray._reconstruct",
        # log history in MMEngine's checkpoints
        "mmengine.logging.history_buffer.HistoryBuffer",
        "builtins.getattr",
    )
]

# First bytes of a torch file: those of a ZIP archive or, in the old format, of a pickle.
_TORCH = (b"PK", b"\x80")


def read_checkpoint(path: str | PathLike[str]) -> Any:
    """Read a safetensors or torch checkpoint into CPU memory.

    Besides tensors and plain Python values, a checkpoint may contain arguments of training scripts, numpy scalars and
    arrays, and MMEngine's log history, which become placeholders.

    Raises:
        TwinsError: If the file is missing, truncated or not a checkpoint, or if it contains any other type.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise TwinsError(f"weights {str(path)!r}: {what}; check the path")
    try:
        start = check_start(path)
        # The content determines the format. The suffix matters only if the content matches neither.
        is_safetensors = start[8:9] == b"{" or (path.suffix == ".safetensors" and not start.startswith(_TORCH))
        return _read_safetensors(path) if is_safetensors else _read_torch(path)
    except TwinsError as error:
        raise TwinsError(f"weights {str(path)!r}: {error}") from None


def check_start(path: Path) -> bytes:
    """Return the first bytes of a checkpoint.

    Raises:
        TwinsError: If the file is empty, a web page or a Git LFS pointer, as failed downloads leave them behind.
    """
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise TwinsError("it is empty; download it again")
    if start.lstrip()[:1] == b"<":
        raise TwinsError("it is a web page and not a checkpoint; check the address and download it again")
    if start.startswith(b"version https://git-lfs"):
        raise TwinsError("it is a Git LFS pointer and not the file itself; download it again with `git lfs pull`")
    return start


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        reason = _first_sentence(error)
        raise TwinsError(f"it is not a complete safetensors file ({reason}); download it again") from None


def _read_torch(path: Path) -> Any:
    with warnings.catch_warnings(), torch.serialization.safe_globals(_ALLOWED):
        warnings.simplefilter("ignore")  # about the pickle protocol; errors say more
        try:
            with path.open("rb") as file:  # not the path, because torch looks at its suffix
                return _without_attributes(torch.load(file, map_location="cpu", weights_only=True))
        except Exception as error:  # the type depends on where a file is broken
            refused = _refused(path, error)
            if refused:
                raise TwinsError(
                    f"it holds {refused} besides tensors and is not read, because that could run code; "
                    "save only its state dict"
                ) from None
            reason = _first_sentence(error)
            raise TwinsError(f"it is not a complete torch checkpoint ({reason}); download it again") from None


def _without_attributes(content: Any) -> Any:
    """Remove the attributes of every `OrderedDict` in a checkpoint: a file can replace `keys` or `items` by them.

    `load_state_dict` would read one attribute, `_metadata`, to convert the parameters of older modules. Ours have none.
    """
    pending, seen = [content], set()
    while pending:
        node = pending.pop()
        if id(node) in seen or not isinstance(node, (dict, list, tuple)):
            continue
        seen.add(id(node))
        if isinstance(node, OrderedDict):
            vars(node).clear()
        pending.extend(dict.values(node) if isinstance(node, dict) else node)
    return content


def _refused(path: Path, error: Exception) -> str:
    """Return the class and function names that torch refuses to read; "" if the file is broken in another way."""
    with contextlib.suppress(Exception):  # it cannot read the old format and some broken files
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
        if names:
            return ", ".join(sorted(names))
    # No public function lists the names in the old format. The error of `torch.load` has the first of them, as in
    # "GLOBAL io.open was not an allowed global" and "GLOBAL os.system whose module os is blocked".
    first = re.search(r"GLOBAL (\S+) (?:was not|whose)", str(error))
    return first[1] if first else ""


def _first_sentence(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line.partition(". ")[0]
