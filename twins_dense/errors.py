"""The one exception that a user of the package is meant to read, and a hint for its message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TwinsError(ValueError):
    """Something that the user gave can't be used: a file, a name, a size, a setting.

    The message is one line that shows the value and says what to do. The command line prints it and exits with 2.
    """


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """What to put behind an unknown name: a near miss among the choices, and the choices where they are few."""
    choices = list(choices)
    near = [f"did you mean {match!r}?" for match in difflib.get_close_matches(name, choices, n=1)]
    known = [f"known are {', '.join(choices)}"] if 0 < len(choices) <= 12 else []
    return ": " + " ".join(near + known) if near or known else ""
