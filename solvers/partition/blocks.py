"""Dives in blocks of a partition's groups: tiles whole where they are small, else by parts."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gyroperm.solvers.parallel import parallel_map
from gyroperm.solvers.partition.diving import dive
from gyroperm.solvers.partition.pool import Pool
from gyroperm.solvers.partition.relaxation import Clock, generate
from gyroperm.solvers.partition.tiles import Tiles
from gyroperm.solvers.search import Search

# Groups of a block at the most. The time of a dive grows with their cube, what it gains does not;
# blocks of half as many gain next to nothing, so that some more are not divided up.
_GROUPS, _UNDIVIDED = 96, 128
# The part of the time that is left for what follows the relaxation.
_RESERVED = 0.5
# A block is not begun in less than so much of what the others took on average.
_WORTH = 0.7


@dataclass(frozen=True, eq=False)
class _Block:
    """Some groups of a tile's partition, by their places; ``whole`` if they are all."""

    tile: int
    places: NDArray[np.intp]
    whole: bool


class _Pace:
    """Whether what is left of a search suffices for one more block."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self._seconds: list[float] = []

    def suffices(self) -> bool:
        """Judged by the blocks so far."""
        if not self._seconds:
            return not self._search.stopped()
        mean = math.fsum(self._seconds) / len(self._seconds)
        return self._search.seconds_left > _WORTH * mean and not self._search.stopped()

    def note(self, seconds: float) -> None:
        """What a block took."""
        self._seconds.append(seconds)


def dive_in_blocks(search: Search, tiles: Tiles, threads: int) -> dict[int, NDArray[np.float64]]:
    """Improve every tile's partition by dives.

    Tiles of more groups than a block holds are dealt into blocks at random, and anew for as long
    as that gains. Each gets as much time as it takes.

    Parameters
    ----------
    search : Search
    tiles : Tiles
        Changed in place; no tile is worth less afterwards.
    threads : int

    Returns
    -------
    dict of int to ndarray of float64, shape (C',)
        The prices of the columns of those tiles that were a block as a whole.
    """
    prices: dict[int, NDArray[np.float64]] = {}
    pace = _Pace(search)

    def improve(block: _Block, inner: int) -> bool:
        if not pace.suffices():
            return False
        begin = time.perf_counter()
        gained, u = _improve(search, tiles, block, inner)
        if u is not None and block.whole:
            prices[block.tile] = u
        pace.note(time.perf_counter() - begin)
        return gained

    active = list(range(len(tiles.instances)))
    turn = 0
    while active:
        blocks = [block for t in active for block in _dealt(search, tiles, t, turn)]
        # Where blocks are too few for all threads, those share the search for groups.
        inner = max(1, threads // max(1, len(blocks)))
        gained = parallel_map(partial(improve, inner=inner), blocks, threads)
        again = {
            block.tile
            for block, more in zip(blocks, gained, strict=True)
            if more and not block.whole
        }
        active = sorted(again) if pace.suffices() else []
        turn += 1
    return prices


def _dealt(search: Search, tiles: Tiles, t: int, turn: int) -> list[_Block]:
    """A tile's groups at random in blocks of equal size."""
    G = tiles.instances[t].groups
    count = 1 if G <= _UNDIVIDED else -(-G // _GROUPS)
    places = search.random(t, turn).permutation(G)
    return [_Block(t, np.sort(part), count == 1) for part in np.array_split(places, count)]


def _improve(
    search: Search, tiles: Tiles, block: _Block, threads: int
) -> tuple[bool, NDArray[np.float64] | None]:
    """Dive in a block: whether that gained, and the prices of its columns in the tile's order."""
    groups = tiles.groups(block.tile)[block.places]
    columns = np.sort(groups.reshape(-1)) if block.whole else groups.reshape(-1)
    place = np.empty(len(tiles.instances[block.tile].columns), dtype=np.int32)
    place[columns] = np.arange(len(columns), dtype=np.int32)
    start = np.sort(place[groups], axis=1)
    part = tiles.instances[block.tile].part(columns)
    values = part.values(start)
    clock = Clock(search.seconds_left, search.stopped)
    # Diving along prices that are not yet those of the relaxation beats not diving.
    reserve = _RESERVED * clock.left if math.isfinite(clock.left) else 0.0
    pool = Pool(start, values, part.shares(start))

    def record() -> None:
        search.record(tiles.value)

    u = generate(part, pool, clock, reserve, record, threads)
    if u is None:
        return False, None
    found = dive(part, pool, clock, threads)
    gained = found is not None and math.fsum(part.values(found)) > math.fsum(values)
    if found is not None and gained:
        tiles.replace(block.tile, block.places, columns[found])
    record()
    return gained, u
