"""Output-channel permutation: rows into tiles, for the vector level."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gyroperm.problem import Problem
from gyroperm.solvers.cooling import Phase, Thermostat, gumbel_noise
from gyroperm.solvers.kernels.rows import row_moves
from gyroperm.solvers.parallel import parallel_map
from gyroperm.solvers.scores import Scores
from gyroperm.solvers.search import Search

# A call takes at most so many moves, and no more than fit in about 20 ms: long enough to hide
# the call, short enough to look at the clock. A gain costs C / 20 ns, a sum about 2 ns a column.
_MOST_MOVES = 20
_CALL_NS = 20_000_000
# Tiles are dealt into parts of about so many if the sums of a part have so many entries at least:
# a part is worth a thread, and assigns among its own tiles, which takes less time a row.
_PART_TILES = 16
_PART_ENTRIES = 1 << 15


@dataclass(eq=False)
class _Block:
    """The tiles of one block of rows, and their sums."""

    tiles: NDArray[np.int32]
    sums: NDArray[np.float64]
    windows: NDArray[np.int32]
    kept: int
    shared: bool
    random: np.random.Generator
    thermostat: Thermostat = field(default_factory=Thermostat)
    stale: int = 0

    def deal(self) -> list[_Part]:
        """The tiles at random in parts, the same on any machine; all in one if that is small."""
        T, C = self.sums.shape
        count = 1 if self.shared else max(1, min(T // _PART_TILES, T * C // _PART_ENTRIES))
        chosen = np.array_split(self.random.permutation(T), count)
        states = self.random.integers(0, 2**64, size=(count, 1), dtype=np.uint64)
        return [
            _Part(self, mine, self.tiles[mine], self.sums[mine], state)
            for mine, state in zip(chosen, states, strict=True)
        ]

    def collect(self, parts: list[_Part]) -> None:
        """Take over what the parts did."""
        for part in parts:
            self.tiles[part.chosen] = part.tiles
            self.sums[part.chosen] = part.sums
            self.thermostat.count(part.moved, part.moves * len(part.tiles))
        fewest = min(part.stale for part in parts)
        most = min(part.moves for part in parts)
        self.stale = self.stale + most if fewest >= most else fewest


@dataclass(eq=False)
class _Part:
    """Some tiles of a block, whose rows are exchanged among them: what a thread works on."""

    block: _Block
    chosen: NDArray[np.intp]
    tiles: NDArray[np.int32]
    sums: NDArray[np.float64]
    state: NDArray[np.uint64]
    moved: int = 0
    stale: int = 0

    @property
    def moves(self) -> int:
        """The moves of one call, the same on any machine."""
        T, C = self.sums.shape
        return min(_MOST_MOVES, max(1, int(_CALL_NS / (T * C * (T / 20 + 2)))))

    def run(self, scores: Scores, temperature: float, noise: NDArray[np.float32]) -> None:
        block = self.block
        self.stale, self.moved = row_moves(
            scores.values,
            scores.squared,
            self.tiles,
            self.sums,
            block.windows,
            block.kept,
            block.shared,
            self.moves,
            temperature,
            noise,
            self.state,
        )


def arrange_rows(
    search: Search,
    scores: Scores,
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
    scores : Scores
        What each weight counts.
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
    noise = gumbel_noise()

    def run(part: _Part, annealed: bool) -> None:
        temperature = part.block.thermostat.temperature if annealed else 0.0
        part.run(scores, temperature, noise)

    active = blocks
    while active and (target := phase.next_target()) is not None:
        dealt = [block.deal() for block in active]
        parts = [part for mine in dealt for part in mine]
        parallel_map(partial(run, annealed=target > 0.0), parts, search.threads)
        search.record()
        for block, mine in zip(active, dealt, strict=True):
            block.collect(mine)
            block.thermostat.steer(target)
        if target == 0.0:
            active = [block for block in active if block.stale < patience]
    return tile_rows


def _block(
    problem: Problem,
    b: int,
    scores: Scores,
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
        windows = np.empty((0, 0), dtype=np.int32)
        kept = min(problem.kept_columns, problem.columns)
    shared = problem.pattern.allocation == "global"
    if shared:
        share = problem.kept_rows[b] / sum(problem.kept_rows)
        kept = min(round(problem.total_groups * problem.pattern.m * share), count * problem.columns)
    windows = np.ascontiguousarray(windows)
    return _Block(tiles, scores.sums(tiles), windows, kept, shared, random)
