"""Column generation: partitions of columns into groups that follow the linear relaxation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from gyroperm.arguments import checked_integer
from gyroperm.arrangement import Arrangement
from gyroperm.pattern import Pattern
from gyroperm.problem import Problem
from gyroperm.solvers.chains import best_of_chains, two_level_chains_in
from gyroperm.solvers.identity import identity_arrangement
from gyroperm.solvers.parallel import parallel_map
from gyroperm.solvers.partition.blocks import dive_in_blocks
from gyroperm.solvers.partition.repair import repair
from gyroperm.solvers.partition.tiles import StartOptions, Tiles
from gyroperm.solvers.registry import register
from gyroperm.solvers.search import Search

# The start's share of the search, for plain N:M and for patterns with a vector level, where
# rounds are counted and at the least against a clock.
_PLAIN_START, _ROUNDS_START, _START = 0.1, 0.5, 0.35
# Seconds of a dive along the columns that a tile keeps, which grow with their number.
_TILE_SECONDS, _KEPT, _GROWTH = 0.6, 192, 1.5
# How much more is set aside for it.
_SPARE = 1.5


@dataclass(frozen=True)
class DiveOptions(StartOptions):
    """Options of :func:`solve`.

    Attributes
    ----------
    start, start_share
        See :class:`~gyroperm.solvers.partition.tiles.StartOptions`; by default a tenth for plain
        N:M, and more where the start also chooses rows and vectors, which stay as they are.
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


def _start_share(search: Search) -> float:
    """What dives leave of the time, in which rows and vectors are chosen; little for plain N:M."""
    if search.problem.pattern.is_plain:
        return _PLAIN_START
    if not search.by_clock:
        return _ROUNDS_START
    threads = min(search.threads, search.problem.tiles)
    dives = _SPARE * tile_seconds(search.problem) / threads
    return max(_START, 1.0 - dives / max(search.seconds_left, dives))


def tile_seconds(problem: Problem) -> float:
    """About how long it takes one thread to dive in all tiles of a pattern with a vector level."""
    return _TILE_SECONDS * problem.tiles * (problem.kept_columns / _KEPT) ** _GROWTH


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
    # Which rows share a tile is settled by the start, and for good: several are tried.
    if not pattern.is_plain and search.by_clock:
        in_a_row = two_level_chains_in(search.seconds_left, search.problem)
        if in_a_row > 1:
            return best_of_chains(search, in_a_row, partial(_valued, options=options))[1]
    return _valued(search, options)[1]


def _valued(search: Search, options: DiveOptions) -> tuple[float, Arrangement]:
    """What is found from one start, after what it keeps."""
    tiles = Tiles(search, options, options.start_share or _start_share(search))
    # Where rounds are counted, what ends the search must not depend on the number of threads.
    threads = search.threads if search.by_clock else 1
    prices = dive_in_blocks(search, tiles, threads)
    whole = sorted(prices)

    def improve(turn: int) -> None:
        t = whole[turn]
        groups = repair(
            tiles.instances[t],
            tiles.groups(t),
            prices[t],
            patience=options.patience,
            clock=tiles.clock(turn, len(whole), threads),
            random=search.random(t),
            record=tiles.recorder(t),
        )
        tiles.replace(t, slice(None), groups)

    parallel_map(improve, range(len(whole)), threads)
    return tiles.value, tiles.arrangement()
