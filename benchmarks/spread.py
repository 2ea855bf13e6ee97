"""The middle and the ends of what several runs gave."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest over seeds."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def text(self, form: str) -> str:
        """For tables, each number in a format such as ``".3f"``: one if they are all the same."""
        median, least, greatest = (
            format(one, form) for one in (self.median, self.least, self.greatest)
        )
        return median if least == greatest else f"{median} ({least}..{greatest})"
