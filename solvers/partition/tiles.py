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
    start_share : float, optional
        Its share of a time limit or a number of rounds, in (0, 1); by default what suits the
        method that begins with it.
    """

    #: The methods that cannot be the other one.
    barred: ClassVar[tuple[str, ...]] = ()

    start: str = "assign"
    start_share: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.start, str) or registry.get(self.start).name in self.barred:
            raise ValueError(f"start must name another method, got {self.start!r}")
        share = self.start_share
        if share is not None and (not is_number(share) or not 0 < share < 1):
            raise ValueError(f"start_share must be a number in (0, 1), got {share!r}")


class Tiles:
    """A solution whose tiles order their columns themselves, as partitions of what each keeps.

    Parameters
    ----------
    search : Search
    options : StartOptions
        Say which method's solution it is at first.
    share : float
        That method's share of the search.

    Attributes
    ----------
    instances : list of Instance
        Columns in the order of that solution, so that its partition is ``as_it_lies``.
    """

    def __init__(self, search: Search, options: StartOptions, share: float) -> None:
        method = registry.get(options.start)
        first = search.part(share)
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

    def clock(self, turn: int, turns: int, threads: int = 1) -> Clock:
        """Of one of several equal tasks: its share of the time, from it on.

        So many are worked on at a time, in their order.
        """
        search = self._search
        return Clock(search.seconds_left / -(-(turns - turn) // threads), search.stopped)

    def recorder(self, t: int) -> Callable[[float], None]:
        """What ends a round of the search in which tile t keeps so much."""
        others = math.fsum(self._values[:t]) + math.fsum(self._values[t + 1 :])
        return lambda value: self._search.record(others + value)

    def groups(self, t: int) -> NDArray[np.int32]:
        """The partition of tile t, (G, m): the places of the columns in its instance."""
        return self._best[t]

    def replace(self, t: int, places: NDArray[np.intp] | slice, groups: NDArray[np.int32]) -> None:
        """Make these the groups of tile t at some of the places of its partition."""
        self._best[t][places] = np.sort(groups, axis=1)
        self._values[t] = math.fsum(self.instances[t].values(self._best[t]))

    def arrangement(self) -> Arrangement:
        """The partitions in the columns' original ids."""
        start = self._start
        groups = tuple(
            given.reshape(-1)[best] for given, best in zip(start.groups, self._best, strict=True)
        )
        if start.col_order is None:
            return Arrangement(start.tile_rows, groups)
        order = np.stack([g.reshape(-1) for g in groups])
        one = self._search.problem.orders == 1
        return Arrangement(start.tile_rows, groups, order[0] if one else order)
