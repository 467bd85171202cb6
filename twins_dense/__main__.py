"""The command `twins-dense`, also as `python -m twins_dense`, which is what torchrun can start."""

import os
import signal
from typing import NoReturn


class _Interrupt(KeyboardInterrupt):
    """Ctrl-C.

    If a plain KeyboardInterrupt leaves code that is run from a string, as dataclasses do, Python ends by the signal in
    the end, even if the exception was caught.
    """


def main() -> None:
    """Run the command line. Ctrl-C ends it with one line and exit code 130, also while modules are imported."""
    is_interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not in the background of a shell
    if is_interruptible:
        signal.signal(signal.SIGINT, _end)
    from .cli import main as run

    if is_interruptible:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        run()
    finally:  # what the command has reported stands, while Python shuts down
        if is_interruptible:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end(*_: object) -> NoReturn:
    os.write(2, b"stopped\n")
    os._exit(130)


def _interrupt(*_: object) -> NoReturn:
    raise _Interrupt


if __name__ == "__main__":
    main()
