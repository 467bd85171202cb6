"""Atomic writing: a file appears completely or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, and rename what is written there to `path` at the end.

    Use it for libraries that write to a path themselves. If the block raises, the temporary file is removed and `path`
    is unchanged. The temporary name begins with a dot and does not keep the suffix, so that a file left behind by a
    killed process is not mistaken for a complete one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name in the same folder, then rename it."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
