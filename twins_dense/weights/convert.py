"""Convert a weights file to the parameter names of another project."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from ..atomic import write_atomically
from ..errors import TwinsError
from .keymap import Conversion, convert
from .load import read_state_dict

_SUFFIXES = (".pth", ".safetensors")


def convert_file(
    source: str, out: str | Path, *, to: str, task: str | None = None, dry_run: bool = False
) -> Conversion:
    """Convert a weights file from any known format, and write the converted state dict.

    Args:
        source: Path of a file, or a catalog name. The format is recognised by the keys of the state dict.
        out: Path of the new file, "NAME.pth" or "NAME.safetensors".
        to: Target format, one of `FORMATS`.
        task: Part of the model to write, one of `TASKS`; `None` writes everything that the format supports.
        dry_run: Whether to convert without writing the file.

    Returns:
        The conversion.

    Raises:
        TwinsError: If the source cannot be read or converted, or if `out` exists or has another suffix.
    """
    out = Path(out)
    if out.suffix not in _SUFFIXES:
        raise TwinsError(f"OUT {str(out)!r}: end its name in {' or '.join(_SUFFIXES)}")
    if out.exists():
        raise TwinsError(f"OUT {str(out)!r} exists: name a new file")
    state = read_state_dict(source)
    try:
        conversion = convert(state, to=to, task=task)
    except TwinsError as error:
        raise TwinsError(f"weights {source!r}: {error}") from None
    if not dry_run:
        write_atomically(out, _serialise(conversion.state, out.suffix))
    return conversion


def _serialise(state: dict[str, Any], suffix: str) -> bytes:
    # Copy: torch would write the whole storage behind a view, and safetensors refuses tensors that share memory.
    state = {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    if suffix == ".safetensors":
        return save(state)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
