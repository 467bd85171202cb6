"""The one exception that a user of the package is meant to read, and a hint for its message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TwinsError(ValueError):
    """Something that the user gave can't be used: a file, a name, a size, a setting.

    The message is one line that shows the value and says what to do. The command line prints it and exits with 2.
    """


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """ ": did you mean 'x'?" for a near miss, else ": known are …" for a short list, else nothing."""
    choices = list(choices)
    near = difflib.get_close_matches(name, choices, n=1)
    if near:
        return f": did you mean {near[0]!r}?"
    return f": known are {', '.join(choices)}" if 0 < len(choices) <= 12 else ""
