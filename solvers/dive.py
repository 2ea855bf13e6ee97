"""Column generation: partitions of columns into groups that follow the linear relaxation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from gyroperm.arguments import checked_integer
from gyroperm.arrangement import Arrangement
from gyroperm.pattern import Pattern
from gyroperm.solvers.identity import identity_arrangement
from gyroperm.solvers.parallel import parallel_map
from gyroperm.solvers.partition.master import Master
from gyroperm.solvers.partition.relaxation import Clock, generate
from gyroperm.solvers.partition.repair import follow
from gyroperm.solvers.partition.tiles import StartOptions, Tiles
from gyroperm.solvers.registry import register
from gyroperm.solvers.search import Search

# The part of the time that is left for what follows the relaxation.
_RESERVED = 0.5
# The start's share of the search, for plain N:M and for patterns with a vector level.
_PLAIN_START, _START = 0.1, 0.5


@dataclass(frozen=True)
class DiveOptions(StartOptions):
    """Options of :func:`solve`.

    Attributes
    ----------
    start, start_share
        See :class:`~gyroperm.solvers.partition.tiles.StartOptions`; by default a tenth for plain
        N:M, and half where the start also chooses rows and vectors, which stay as they are.
    patience : int
        Parts in a row that are solved anew without improvement, after which it ends.
    """

    barred: ClassVar[tuple[str, ...]] = ("dive", "exact")

    patience: int = 60

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "patience", checked_integer("patience", self.patience, 1))


def can_dive(pattern: Pattern) -> bool:
    """Whether there is a partition to find: tiles with an order of their own, and m above 2."""
    return pattern.window is None and 3 <= pattern.m != pattern.n


@register("dive", options=DiveOptions)
def solve(search: Search, options: DiveOptions) -> Arrangement:
    """Column generation and diving, m above 2; best for up to some 500 columns that are kept.

    The linear relaxation of the set partition is solved over groups that local search finds;
    groups of the largest share are fixed and the rest solved again; then parts of the partition,
    those whose columns pay the most beyond what their groups are worth, are solved to optimality
    by turns. A round is a relaxation or a part that was solved. With a vector level that is done
    for the columns that each tile keeps.
    """
    pattern = search.problem.pattern
    if pattern.window is not None or pattern.m < 3:
        raise ValueError(
            f"method 'dive' does not solve {pattern}; it takes plain n:m, HiNM and TVW with m "
            f"above 2"
        )
    if search.stopped() or not can_dive(pattern):
        return search.initial or identity_arrangement(search.problem)
    share = options.start_share or (_PLAIN_START if pattern.is_plain else _START)
    tiles = Tiles(search, options, share)
    # Where rounds are counted, what ends the search must not depend on the number of threads.
    threads = search.threads if search.by_clock else 1

    def improve(t: int) -> None:
        _improve(search, tiles, t, options.patience, tiles.clock(t, threads))

    parallel_map(improve, range(len(tiles.instances)), threads)
    return tiles.arrangement()


def _improve(search: Search, tiles: Tiles, t: int, patience: int, clock: Clock) -> None:
    """Partition the columns of a tile anew."""
    instance, record = tiles.instances[t], tiles.recorder(t)
    best = instance.as_it_lies
    values = instance.values(best)
    master = Master(len(instance.columns), instance.m)
    master.add(best, values)
    # Diving along prices that are not yet those of the relaxation beats not diving.
    reserve = _RESERVED * clock.left if math.isfinite(clock.left) else 0.0
    u = generate(instance, master, clock, reserve, partial(record, math.fsum(values)))
    if u is not None:
        best = follow(
            instance,
            master,
            best,
            u,
            patience=patience,
            clock=clock,
            random=search.random(t),
            record=record,
        )
        tiles.replace(t, best)
