"""Read a checkpoint without running anything in it."""

from __future__ import annotations

import contextlib
import re
import warnings
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ..errors import TwinsError


class _Placeholder:
    """Stands for a value that nobody needs; takes whatever the value would be made of, and does nothing with it."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# All that a checkpoint may name beside what torch itself reads safely. None of it is looked up or called: each becomes
# a placeholder. numpy's types are not harmless enough to be made (a dtype's state can pass raw bytes off as objects).
_ALLOWED: list[Any] = [
    (_Placeholder, name)
    for name in (
        # the arguments of training scripts
        "argparse.Namespace",
        "pathlib.PosixPath",
        # scores and learning rates as numpy scalars, or arrays; numpy 1 and numpy 2 write different names
        "numpy.dtype",
        "numpy.ndarray",
        "numpy.core.multiarray.scalar",
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "numpy._core.multiarray._reconstruct",
        # the log history in MMEngine's checkpoints
        "mmengine.logging.history_buffer.HistoryBuffer",
        "builtins.getattr",
    )
]


_TORCH = (b"PK", b"\x80")  # how torch's files begin: as a ZIP archive, and the older ones as a pickle


def read_checkpoint(path: str | PathLike[str]) -> Any:
    """Everything that a `.safetensors` or torch checkpoint holds, on the CPU.

    Beside tensors and plain Python, a checkpoint may hold the arguments of a training script, numpy's scalars and
    arrays, and MMEngine's log history; they become placeholders.

    Raises:
        TwinsError: for a missing or truncated file, one that holds anything else, or one that is no checkpoint at all.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise TwinsError(f"weights {str(path)!r}: {what}; check the path")
    try:
        start = check_start(path)
        # By what it is, and by its name where that can't be seen.
        is_safetensors = start[8:9] == b"{" or (path.suffix == ".safetensors" and not start.startswith(_TORCH))
        return _read_safetensors(path) if is_safetensors else _read_torch(path)
    except TwinsError as error:
        raise TwinsError(f"weights {str(path)!r}: {error}") from None


def check_start(path: Path) -> bytes:
    """The first bytes; refused, by its name, is what downloads leave in a file's place: nothing, a page, a pointer."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise TwinsError("it is empty; fetch it again")
    if start.lstrip()[:1] == b"<":
        raise TwinsError("it is a web page, and no checkpoint; fetch it again, and look whether the address is right")
    if start.startswith(b"version https://git-lfs"):
        raise TwinsError("it is the pointer of a Git LFS file, and not the file; fetch it again with `git lfs pull`")
    return start


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise TwinsError(f"it is no whole safetensors file ({_first_sentence(error)}); fetch it again") from None


def _read_torch(path: Path) -> Any:
    with warnings.catch_warnings(), torch.serialization.safe_globals(_ALLOWED):
        warnings.simplefilter("ignore")  # about the pickle protocol, where the error says more
        try:
            with path.open("rb") as file:  # not the path, whose suffix torch goes by
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # what torch raises for a broken file depends on where it breaks off
            refused = _refused(path, error)
            if refused:
                raise TwinsError(
                    f"it holds {refused} beside tensors and is not read, because that could run code; "
                    "save its state dict alone"
                ) from None
            raise TwinsError(f"it is no whole torch checkpoint ({_first_sentence(error)}); fetch it again") from None


def _refused(path: Path, error: Exception) -> str:
    """What the file holds that torch doesn't read; empty where the file is broken in another way."""
    # torch names the first: "GLOBAL io.open was not an allowed", "GLOBAL os.system whose module is".
    first = re.search(r"GLOBAL (\S+) (?:was not|whose)", str(error))
    names = {first[1]} if first else set()
    with contextlib.suppress(Exception):  # it looks into the newer of the two file formats only
        names |= set(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    return ", ".join(sorted(names))


def _first_sentence(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line.partition(". ")[0]
