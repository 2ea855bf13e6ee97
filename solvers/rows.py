"""Output-channel permutation: rows into tiles, for the vector level."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gyroperm.problem import Problem
from gyroperm.solvers.cooling import Phase, Thermostat, gumbel_noise
from gyroperm.solvers.kernels.rows import row_moves, row_sums
from gyroperm.solvers.parallel import parallel_map
from gyroperm.solvers.search import Search

# A call takes at most so many moves, and no more than fit in about 20 ms: long enough to hide
# the call, short enough to look at the clock. A gain costs C / 20 ns, a sum about 5 ns a column.
_MOST_MOVES = 20
_CALL_NS = 20_000_000


@dataclass
class _Block:
    """The tiles of one block of rows: what :func:`row_moves` works on."""

    tiles: NDArray[np.int32]
    sums: NDArray[np.float64]
    windows: NDArray[np.int32]
    kept: int
    columns: int
    state: NDArray[np.uint64]
    thermostat: Thermostat = field(default_factory=Thermostat)
    stale: int = 0

    @property
    def moves(self) -> int:
        """The moves of one call, the same on any machine."""
        T, C = len(self.tiles), self.columns
        return min(_MOST_MOVES, max(1, int(_CALL_NS / (T * C * (T / 20 + 5)))))


def arrange_rows(
    search: Search,
    scores: NDArray[np.float32],
    tile_rows: NDArray[np.int32],
    col_order: NDArray[np.int32] | None,
    *,
    phase: Phase,
    patience: int,
    stream: int,
) -> NDArray[np.int32]:
    """Rows in tiles so that the vectors that the pattern keeps score the most.

    Parameters
    ----------
    search : Search
    scores : ndarray of float32, shape (R + 1, C)
        What each weight counts at the vector level; the last row, of zeros, stands for virtual
        rows.
    tile_rows : ndarray of int32, shape (T, V)
        Where to start; -1 for virtual rows.
    col_order : ndarray of int32 or None
        The shared order of a windowed pattern.
    phase : Phase
        Its share of the search, and how much moves when.
    patience : int
        Moves in a row without improvement that end the descent.
    stream : int
        Names the random stream.

    Returns
    -------
    ndarray of int32, shape (T, V)
    """
    problem = search.problem
    tile_rows = tile_rows.copy()
    blocks = [
        _block(problem, b, scores, tile_rows, col_order, search.random(stream, b))
        for b, count in enumerate(problem.block_tiles)
        if count > 1 and problem.tile_size > 1
    ]
    shared = problem.pattern.allocation == "global"
    noise = gumbel_noise()

    def run(block: _Block, annealed: bool) -> None:
        stale, moved = row_moves(
            scores,
            block.tiles,
            block.sums,
            block.windows,
            block.kept,
            shared,
            block.moves,
            block.thermostat.temperature if annealed else 0.0,
            noise,
            block.state,
        )
        block.thermostat.count(moved, block.moves * len(block.tiles))
        block.stale = block.stale + block.moves if stale >= block.moves else stale

    active = blocks
    while active and (target := phase.next_target()) is not None:
        parallel_map(partial(run, annealed=target > 0.0), active, search.threads)
        search.record()
        for block in active:
            block.thermostat.steer(target)
        if target == 0.0:
            active = [block for block in active if block.stale < patience]
    return tile_rows


def _block(
    problem: Problem,
    b: int,
    scores: NDArray[np.float32],
    tile_rows: NDArray[np.int32],
    col_order: NDArray[np.int32] | None,
    random: np.random.Generator,
) -> _Block:
    mine = problem.tile_block == b
    first = int(np.argmax(mine))
    count = problem.block_tiles[b]
    # The view writes through to tile_rows: a block's tiles are consecutive.
    tiles = tile_rows[first : first + count]
    if problem.pattern.window is not None:
        assert col_order is not None
        order = np.atleast_2d(col_order)[problem.tile_order[first]]
        windows = order.reshape(-1, problem.pattern.window)
        kept = problem.pattern.kept_per_window
    else:
        windows = np.arange(problem.columns, dtype=np.int32)[None]
        kept = min(problem.kept_columns, problem.columns)
    if problem.pattern.allocation == "global":
        share = problem.kept_rows[b] / sum(problem.kept_rows)
        kept = min(round(problem.total_groups * problem.pattern.m * share), count * problem.columns)
    state = random.integers(0, 2**64, size=1, dtype=np.uint64)
    sums = row_sums(scores, tiles)
    return _Block(tiles, sums, np.ascontiguousarray(windows), kept, problem.columns, state)
