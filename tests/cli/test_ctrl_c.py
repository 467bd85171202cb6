"""Ctrl-C and SIGTERM end a command with one line and exit code 130 or 143, also while modules are imported."""

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


SWALLOWING = """\
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from twins_dense import cli
from twins_dense.stopping import stoppable


class Swallowing:
    def __del__(self):
        os.kill(os.getpid(), signal.{signal})
        for _ in range(1000): pass


def bare():
    try:
        os.kill(os.getpid(), signal.{signal})
        for _ in range(1000): pass
    except BaseException:
        pass


def program():
    {swallow}()
    time.sleep(60)


with stoppable():
    cli.run(program)
"""


@pytest.mark.parametrize("swallow", ["Swallowing", "bare"])
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_that_code_swallows_is_raised_again(swallow: str, name: str, code: int) -> None:
    program = SWALLOWING.format(swallow=swallow, signal=name)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (result.returncode, result.stderr.strip()) == (code, "stopped"), result.stderr
