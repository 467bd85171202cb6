"""The exception for user errors, and helpers for its message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class TwinsError(ValueError):
    """Raised for user errors: a file, a name, a size or a setting that cannot be used.

    The message is one line that shows the value and says what to do about it. The command line prints it and exits
    with code 2.
    """


def one_line(value: object) -> str:
    """Return the text of an exception or any other value on one line.

    A `KeyError` shows its argument without the quotes that `str` puts around it.
    """
    if isinstance(value, KeyError) and value.args:
        value = value.args[0]
    return " ".join(str(value).split())


def shown(name: object) -> str:
    """Return a name from a file as part of a message: without special characters, and at most 100 characters long."""
    text = name if isinstance(name, str) else repr(name)
    if not text.isprintable():
        text = text.encode("unicode_escape").decode("ascii")
    return text if len(text) <= 100 else f"{text[:60]}…{text[-20:]}"


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return a hint to append after an unknown name: the closest choice, and all choices if there are few."""
    choices = list(choices)
    near = [f"did you mean {match!r}?" for match in difflib.get_close_matches(name, choices, n=1)]
    known = [f"known are {', '.join(choices)}"] if 0 < len(choices) <= 12 else []
    return ": " + " ".join(near + known) if near or known else ""


@contextmanager
def requires_extra(extra: str) -> Iterator[None]:
    """Wrap imports of optional packages. If one is missing, raise `TwinsError` with the extra that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == __name__.partition(".")[0]:
            raise
        raise TwinsError(f"{package} is not installed: pip install 'twins-dense[{extra}]'") from None
