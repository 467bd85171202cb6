"""The error for data with problems, which lists all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import TwinsError

_NUM_SHOWN = 20


class DataError(TwinsError):
    """Raised if single images or annotations of a data set cannot be used.

    Attributes:
        problems: One line per problem.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)

    def first_problems(self) -> Iterator[str]:
        """Yield the first twenty problems, and the number of the others."""
        yield from self.problems[:_NUM_SHOWN]
        if len(self.problems) > _NUM_SHOWN:
            yield f"… and {len(self.problems) - _NUM_SHOWN} more"


def data_error(source: str | Path, problems: Sequence[str], remedy: str) -> DataError:
    """Return an error whose message is one line with the number of problems, the first of them and the remedy."""
    if len(problems) == 1:
        return DataError(f"{source}: 1 problem: {problems[0]}; {remedy}", problems)
    count = f"{len(problems)} problems, the first"
    return DataError(f"{source}: {count}: {problems[0]}; {remedy} (`twins-dense check-data` lists more)", problems)
