"""End a command by Ctrl-C (SIGINT) or by SIGTERM, which clusters send before they kill a job.

The command line installs the handlers by `stoppable`; other programs keep their own.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}  # as shells report these signals
_AGAIN_AFTER = 0.01  # seconds


class Stopped(Exception):
    """Raised by a run that has ended because of a signal. The message says how to continue."""


class _Interrupt(KeyboardInterrupt):
    """Raised by a signal, and raised again if code swallows it, as `__del__`, callbacks and bare `except` clauses do.

    It is not a plain KeyboardInterrupt: if such an exception leaves code that is run from a string, as dataclasses do,
    Python ends by the signal in the end, even if the exception was caught.
    """

    def __del__(self) -> None:
        if not _state.is_over:
            # Not at once, because `__del__` would swallow the exception as well.
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_AFTER)


class _State:
    """The state of the process.

    Attributes:
        received: The signal that ends the command.
        is_deferred: Whether the first SIGTERM only sets `is_requested`.
        is_requested: Whether a run should end after its current iteration.
        is_over: Whether the command has ended.
    """

    received: signal.Signals | None = None
    is_deferred = False
    is_requested = False
    is_over = False


_state = _State()


@contextmanager
def stoppable() -> Iterator[None]:
    """Run a command that SIGINT or SIGTERM ends with one line and exit code 130 or 143, at any moment."""
    install()
    signal.signal(signal.SIGALRM, _interrupt_again)
    sys.unraisablehook = _hide_interrupts(sys.unraisablehook)
    try:
        yield
    except BaseException as error:
        is_reported = isinstance(error, SystemExit) and error.code == exit_code()
        if is_reported or not is_stopped():
            raise
    finally:  # what the command has reported stands, while Python shuts down
        _state.is_over = True
        for number in _EXIT_CODES:
            signal.signal(number, signal.SIG_IGN)
    if is_stopped():
        os.write(2, b"stopped\n")
        sys.exit(exit_code())


def install() -> None:
    """Handle SIGINT and SIGTERM, unless they are ignored, as in the background of a shell."""
    for number in _EXIT_CODES:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _handle)
    os.register_at_fork(after_in_child=_set_up_child)


def is_stopped() -> bool:
    """Return whether a signal ends the command, so that any exception may be the consequence."""
    return _state.received is not None


def exit_code() -> int:
    """Return the exit code of a command that is stopped."""
    return _EXIT_CODES[_state.received or (signal.SIGTERM if _state.is_requested else signal.SIGINT)]


def is_requested() -> bool:
    """Return whether a run should save its state and end, because of a SIGTERM inside `deferred`."""
    return _state.is_requested


@contextmanager
def deferred() -> Iterator[None]:
    """Let the first SIGTERM only set `is_requested`; a second one, or Ctrl-C, ends the command at once.

    Processes that are forked inside, such as data loader workers, do not receive SIGTERM, because schedulers of
    clusters may send it to all processes of a job.
    """
    _state.is_deferred = True
    try:
        yield
    finally:
        _state.is_deferred = False
    if _state.is_requested:  # the run has ended by itself
        _handle(signal.SIGTERM)


def _handle(number: int, *_: object) -> None:
    if number == signal.SIGTERM and _state.is_deferred and not _state.is_requested:
        _state.is_requested = True
        return
    _state.received = _state.received or signal.Signals(number)
    raise _Interrupt


def _interrupt_again(*_: object) -> None:
    if not _state.is_over:
        raise _Interrupt


def _set_up_child() -> None:
    """End a forked process silently by SIGINT, and hide SIGTERM from it inside `deferred`."""
    for number in _EXIT_CODES:
        if signal.getsignal(number) is _handle:
            signal.signal(number, signal.SIG_DFL)
    if _state.is_deferred:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    _state.is_over = True


def _hide_interrupts(before: Callable[[Any], object]) -> Callable[[Any], object]:
    def hook(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, _Interrupt):
            before(unraisable)

    return hook
