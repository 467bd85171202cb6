"""The error for data with problems, which lists all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import TwinsError


class DataError(TwinsError):
    """Raised if single images or annotations of a data set cannot be used.

    The message is one line with the number of problems and the first of them.

    Attributes:
        problems: One line per problem.
    """

    def __init__(self, source: str | Path, problems: Sequence[str], remedy: str) -> None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems, the first"
        super().__init__(f"{source}: {count}: {problems[0]}; {remedy}")
        self.problems = tuple(problems)
