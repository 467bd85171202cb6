"""Helpers that run the command line in this process and check its errors."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twins_dense.cli import main


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


def twins(*arguments: object) -> Result:
    """Run the command line in this process, which saves the seconds needed to import torch."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    before = sys.argv
    sys.argv = ["twins-dense", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = before
    return Result(code, out.getvalue(), err.getvalue())


def assert_error(result: Result, *parts: str) -> str:
    """Check for exit code 2 and a one-line error that contains the parts, and return the line.

    The log goes to the standard output.
    """
    assert result.code == 2, result.err
    line = result.err.removesuffix("\n")
    assert line.startswith("error: ") and "\n" not in line
    assert "Traceback" not in result.out
    for part in parts:
        assert part in line, line
    return line


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


class Malicious:
    """Object whose pickle runs a command that creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.target}",))
