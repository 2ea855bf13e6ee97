"""The solution that partitions of columns begin with, and the solution they make in its place."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gyroperm.arguments import is_number
from gyroperm.arrangement import Arrangement
from gyroperm.solvers import registry
from gyroperm.solvers.partition.instance import Instance, scaled
from gyroperm.solvers.partition.relaxation import Clock
from gyroperm.solvers.search import Search


@dataclass(frozen=True)
class StartOptions:
    """Options of methods that begin with another method's solution.

    Attributes
    ----------
    start : str
        The method that finds the solution to begin with.
    start_share : float
        Its share of a time limit or a number of rounds, in (0, 1).
    """

    #: The methods that cannot be the other one.
    barred: ClassVar[tuple[str, ...]] = ()

    start: str = "assign"
    start_share: float = 0.3

    def __post_init__(self) -> None:
        if not isinstance(self.start, str) or registry.get(self.start).name in self.barred:
            raise ValueError(f"start must name another method, got {self.start!r}")
        share = self.start_share
        if not is_number(share) or not 0 < share < 1:
            raise ValueError(f"start_share must be a number in (0, 1), got {share!r}")


class Tiles:
    """A plain N:M solution as partitions: each tile has all columns in an order of its own.

    Parameters
    ----------
    search : Search
    options : StartOptions
        Say which method's solution it is at first.

    Attributes
    ----------
    instances : list of Instance
        Columns in the order of that solution, so that its partition is ``as_it_lies``.
    """

    def __init__(self, search: Search, options: StartOptions) -> None:
        method = registry.get(options.start)
        first = search.part(options.start_share)
        self._start = method.solve(first, method.make_options(None))
        self._search = search
        search.record(first.best)
        pattern = search.problem.pattern
        saliency, _ = scaled(search.problem.saliency)
        self.instances = [
            Instance.of_tile(saliency, rows, groups.reshape(-1), pattern.n, pattern.m)
            for rows, groups in zip(self._start.tile_rows, self._start.groups, strict=True)
        ]
        self._best = [instance.as_it_lies for instance in self.instances]
        self._values = [
            math.fsum(instance.values(instance.as_it_lies)) for instance in self.instances
        ]

    @property
    def value(self) -> float:
        """What all tiles keep, in the scale of the search."""
        return math.fsum(self._values)

    def clock(self, t: int) -> Clock:
        """Of tile t, whose share of the time is that of each tile from it on."""
        search = self._search
        return Clock(search.seconds_left / (len(self.instances) - t), search.stopped)

    def recorder(self, t: int) -> Callable[[float], None]:
        """What ends a round of the search in which tile t keeps so much."""
        others = math.fsum(self._values[:t]) + math.fsum(self._values[t + 1 :])
        return lambda value: self._search.record(others + value)

    def replace(self, t: int, groups: NDArray[np.int32]) -> None:
        """Make this, (G, m), the partition of tile t."""
        self._best[t] = groups
        self._values[t] = math.fsum(self.instances[t].values(groups))

    def arrangement(self) -> Arrangement:
        """The partitions in the columns' original ids."""
        start = self._start
        groups = tuple(
            given.reshape(-1)[best] for given, best in zip(start.groups, self._best, strict=True)
        )
        order = np.stack([g.reshape(-1) for g in groups])
        one = self._search.problem.orders == 1
        return Arrangement(start.tile_rows, groups, order[0] if one else order)
