"""Who computes what: the parts of a product over blocks that stay, balanced beforehand."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

# What beginning and ending a tile takes, and sharing one, in steps of 64 kept columns: filling
# the pipeline and writing out; writing sums to the workspace and reading them again.
TILE_STEPS = 2
SHARING_STEPS = 4


@dataclass(frozen=True, eq=False)
class Schedule:
    """The items of work of each block of a launch, as the kernels read them.

    Parameters
    ----------
    work_ptr : ndarray of int32, shape (B + 1,)
        The items of block b are ``items[work_ptr[b] : work_ptr[b + 1]]``.
    items : ndarray of int32, shape (I, 8)
        Of each: tile, first column of X, first step (counted over all tiles), steps, part, parts,
        the workspace slot of part 0, counter.
    slots : int
        Slots of the workspace, each of a tile's rows times a block's columns of float32.
    counters : int
        How many tiles are shared between blocks.
    """

    work_ptr: NDArray[np.int32]
    items: NDArray[np.int32]
    slots: int
    counters: int

    @property
    def blocks(self) -> int:
        """B, the blocks of the launch."""
        return len(self.work_ptr) - 1

    @property
    def longest(self) -> int:
        """The steps of the block that has the most, what begins and shares tiles included."""
        cost = self.items[:, 3] + TILE_STEPS + SHARING_STEPS * (self.items[:, 5] > 1)
        sums = np.concatenate([[0], np.cumsum(cost)])
        return int(np.diff(sums[self.work_ptr]).max(initial=0))


def balanced(tile_steps: ArrayLike, n: int, block_n: int, blocks: int) -> Schedule:
    """A schedule of ``W X`` for tiles of any length.

    Whole tiles, longest first, each to the block that has the least so far; or, where that leaves
    blocks waiting, equal shares of all steps in a row, so that tiles at the boundaries are shared
    (stream-K, Osama et al., PPoPP 2023): whichever ends earlier.

    Parameters
    ----------
    tile_steps : array_like of int, shape (T,)
        The steps of 64 kept columns of each tile.
    n : int
        Columns of X.
    block_n : int
        Columns that a block computes at a time.
    blocks : int
        Blocks that the device holds at once.

    Raises
    ------
    ValueError
        If ``n``, ``block_n`` or ``blocks`` is below 1.
    """
    for name, value in (("n", n), ("block_n", block_n), ("blocks", blocks)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    steps = np.asarray(tile_steps, dtype=np.int64)
    whole = longest_first(steps, n, block_n, blocks)
    shared = equal_shares(steps, n, block_n, blocks)
    return shared if shared.longest < whole.longest else whole


def estimated(tile_steps: ArrayLike, column_blocks: int, blocks: int) -> tuple[float, int]:
    """About what :func:`balanced` comes to, without making a schedule.

    Parameters
    ----------
    tile_steps, blocks
        As there.
    column_blocks : int
        N over a block's columns, rounded up.

    Returns
    -------
    longest : float
        The steps of the block that has the most, and what begins its tiles after the first.
    blocks : int
        Those that have anything to do.
    """
    steps = np.asarray(tile_steps, dtype=np.int64)
    lengths = np.maximum(steps, 1)
    whole = whole_longest(steps, column_blocks, blocks)
    share = -(-int(lengths.sum()) * column_blocks // blocks)
    begun = min(share, 1 + -(-share // int(lengths.mean())))
    if share + begun * TILE_STEPS + min(begun, 2) * SHARING_STEPS < whole:
        busy = min(blocks, int(lengths.sum()) * column_blocks)
        return float(share + (begun - 1) * TILE_STEPS), busy
    return whole - TILE_STEPS, min(blocks, len(steps) * column_blocks)


def whole_longest(tile_steps: NDArray[np.integer], column_blocks: int, blocks: int) -> float:
    """What no assignment of whole tiles beats: a block has k + 1 of the longest k B + 1."""
    cost = np.sort(tile_steps.astype(np.int64) + TILE_STEPS)[::-1]
    items = np.repeat(cost, column_blocks)
    every = items[::blocks]
    return float(max(items.sum() / blocks, (every * np.arange(1, len(every) + 1)).max()))


def longest_first(tile_steps: NDArray[np.int64], n: int, block_n: int, blocks: int) -> Schedule:
    """Whole tiles, longest first, each to the block that has the least so far."""
    tiles, columns = _all_items(len(tile_steps), n, block_n)
    order = np.argsort(-tile_steps[tiles], kind="stable")
    blocks = min(blocks, len(tiles))
    load = [(0, block) for block in range(blocks)]
    of_block: list[list[int]] = [[] for _ in range(blocks)]
    for item in order:
        steps, block = load[0]
        of_block[block].append(item)
        heapq.heapreplace(load, (steps + int(tile_steps[tiles[item]]) + TILE_STEPS, block))
    chosen = np.concatenate([np.asarray(items, dtype=np.int64) for items in of_block])
    first = np.concatenate([[0], np.cumsum(tile_steps)])
    items = np.zeros((len(chosen), 8), dtype=np.int32)
    items[:, 0] = tiles[chosen]
    items[:, 1] = columns[chosen]
    items[:, 2] = first[tiles[chosen]]
    items[:, 3] = tile_steps[tiles[chosen]]
    items[:, 5] = 1
    work_ptr = np.cumsum([0, *map(len, of_block)]).astype(np.int32)
    return Schedule(work_ptr, items, slots=0, counters=0)


def equal_shares(tile_steps: NDArray[np.int64], n: int, block_n: int, blocks: int) -> Schedule:
    """All steps in a row, cut into equal shares; tiles at the cuts are shared."""
    tiles, columns = _all_items(len(tile_steps), n, block_n)
    # A tile without steps still writes its rows: it counts as one.
    length = np.maximum(tile_steps[tiles], 1)
    ends = np.cumsum(length)
    starts = ends - length
    blocks = int(min(blocks, ends[-1]))
    cuts = np.arange(1, blocks) * ends[-1] // blocks
    borders = np.unique(np.concatenate([starts, cuts]))
    owner = np.searchsorted(starts, borders, side="right") - 1
    sizes = np.diff(np.concatenate([borders, ends[-1:]]))
    first = np.concatenate([[0], np.cumsum(tile_steps)])
    items = np.zeros((len(borders), 8), dtype=np.int32)
    items[:, 0] = tiles[owner]
    items[:, 1] = columns[owner]
    items[:, 2] = first[tiles[owner]] + borders - starts[owner]
    items[:, 3] = np.where(tile_steps[tiles[owner]] > 0, sizes, 0)
    parts = np.bincount(owner, minlength=len(tiles))
    items[:, 4] = np.arange(len(borders)) - np.searchsorted(owner, owner)
    items[:, 5] = parts[owner]
    is_shared = parts > 1
    in_slots = np.where(is_shared, parts, 0)
    slot = np.cumsum(in_slots) - in_slots
    counter = np.cumsum(is_shared.astype(np.int64)) - 1
    items[:, 6] = np.where(is_shared, slot, 0)[owner]
    items[:, 7] = np.where(is_shared, counter, 0)[owner]
    work_ptr = np.searchsorted(borders, np.concatenate([[0], cuts, ends[-1:]]))
    return Schedule(
        work_ptr.astype(np.int32), items, int(parts[is_shared].sum()), int(is_shared.sum())
    )


def _all_items(tiles: int, n: int, block_n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    # Tiles run fastest: blocks that work at the same time read the same columns of X.
    columns = np.arange(0, n, block_n)
    return np.tile(np.arange(tiles), len(columns)), np.repeat(columns, tiles)
