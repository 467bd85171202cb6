"""Ctrl-C ends a command with one line and exit code 130, also while modules are imported."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

# Sends SIGINT when a module is imported, at the start or from code in a string, as dataclasses run it.
PROGRAM = """\
import builtins, os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
before = builtins.__import__
def stopping(name, *arguments, **options):
    if name == {module!r}:
        builtins.__import__ = before
        exec({kill!r})
    return before(name, *arguments, **options)
builtins.__import__ = stopping
sys.argv = ["twins-dense", "info"]
runpy.run_module("twins_dense", run_name="__main__", alter_sys=True)
"""
KILL = "os.kill(os.getpid(), signal.SIGINT)\nfor _ in range(1000): pass"


@pytest.mark.parametrize("module", ["click", "errors", "torch", "models.spec"])
def test_while_modules_are_imported(module: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(module=module, kill=KILL)], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr.strip()) == (130, "stopped"), result.stderr


def test_a_command_in_the_background_is_not_stopped() -> None:
    program = PROGRAM.format(module="click", kill=KILL).replace("signal.default_int_handler", "signal.SIG_IGN")
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0 and "svt_small" in result.stdout, result.stderr
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
