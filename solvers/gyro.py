"""Gyro-permutation as published: sample, cluster, assign; rows first, then columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from gyroperm.arrangement import Arrangement
from gyroperm.problem import Problem
from gyroperm.solvers.assignment import max_assignment
from gyroperm.solvers.clustering import balanced_clusters, cluster_sums
from gyroperm.solvers.kernels.gain import relu_gain
from gyroperm.solvers.kernels.gyro import join_thresholds
from gyroperm.solvers.parallel import parallel_map
from gyroperm.solvers.registry import register
from gyroperm.solvers.search import Search
from gyroperm.solvers.vectors import (
    arrange_tiles,
    choose_vectors,
    columns_as_they_lie,
    rows_as_they_lie,
    rows_of,
    tile_values,
    vector_scores,
)

# Random streams: rows draw from (_ROWS, block, pass), columns from (_COLUMNS, tile).
_ROWS, _COLUMNS = 0, 1

# An improvement below this fraction is rounding, not an improvement.
_ROUNDING = 1e-12

# Scores of this many terms together are worth several threads.
_TERMS_WORTH_THREADS = 1 << 22

# How the scoring of column assignments is cut, whatever the number of threads: released vectors
# to a piece, pieces of each thread between two looks at the clock, and tiles to a batch (which
# bounds the memory of their scores).
_GROUPS_PER_PIECE = 64
_PIECES_PER_LOOK = 2
_TILES_PER_BATCH = 16


@dataclass(frozen=True)
class GyroOptions:
    """Options of gyro-permutation.

    Parameters
    ----------
    schedule : sequence of int, optional
        Rows sampled from each tile, entry after entry; an entry above V samples all V. By
        default halving from V / 2 down to 1. The authors' released recipe is
        (8, 1, 4, 1, 2, 1, 1).
    ocp_patience : int
        Row passes that may fail before the schedule moves on to its next entry. The released
        code has 1 or 3, by recipe.
    icp_patience : int
        Column assignments that may fail before a tile is done; 3 as published. As in the
        released code, failures need not be consecutive.
    cluster_iterations : int
        At most so many iterations of balanced k-means in each row pass; it ends earlier where
        the clusters repeat.

    Raises
    ------
    ValueError
        If the schedule is empty or a number is not a positive integer.
    """

    schedule: tuple[int, ...] | None = None
    ocp_patience: int = 3
    icp_patience: int = 3
    cluster_iterations: int = 20

    def __post_init__(self) -> None:
        for name in ("ocp_patience", "icp_patience", "cluster_iterations"):
            object.__setattr__(self, name, _positive(name, getattr(self, name)))
        if self.schedule is None:
            return
        if not isinstance(self.schedule, Sequence) or isinstance(self.schedule, str):
            raise ValueError(f"schedule must be a sequence of integers, got {self.schedule!r}")
        if not self.schedule:
            raise ValueError("schedule must hold at least one entry, got none")
        entries = (_positive(f"schedule[{i}]", entry) for i, entry in enumerate(self.schedule))
        object.__setattr__(self, "schedule", tuple(entries))

    def sample_sizes(self, tile_size: int) -> tuple[int, ...]:
        """The schedule for tiles of ``tile_size`` rows."""
        if self.schedule is not None:
            return tuple(min(size, tile_size) for size in self.schedule)
        halvings = range(1, max(2, tile_size.bit_length()))
        return tuple(max(1, tile_size >> shift) for shift in halvings)


def _positive(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    return int(value)


@register("gyro", options=GyroOptions)
def solve(search: Search, options: GyroOptions) -> Arrangement:
    """Gyro-permutation (Yu et al., 2024): sample, cluster and assign rows, then columns.

    Output-channel permutation (OCP) first: a pass samples s rows of every tile, clusters them
    into as many balanced clusters of s rows, scores each cluster in what is left of each tile
    by the column vectors the tile would keep, and assigns clusters to tiles; it is accepted if
    more is kept at the vector level. Then vectors are chosen, once. Then input-channel
    permutation (ICP), tile by tile: an assignment releases one vector of every group of m and
    puts each back where n:m keeps the most; a tile is done after a few failures. The levels
    stay apart, as published: OCP does not see n:m, and ICP does not change which vectors are
    kept.

    A round, in the sense of stopping criteria, is a row pass over one block, or one assignment
    in every unfinished tile.

    Parameters
    ----------
    search : Search
    options : GyroOptions

    Returns
    -------
    Arrangement

    Notes
    -----
    The paper describes HiNM. Elsewhere it means: plain N:M has no vector level, so only columns
    move. Ragged tiles (TVW) are scored by the vectors they keep at present, and the global
    budget is spread anew to judge a pass. Windowed patterns keep the column order as it is
    given or lies, for the method has no order that tiles share: rows move, each window's
    vectors are chosen, and with them the groups.

    References
    ----------
    Yu, Yi, Lee and Shin, Toward Efficient Permutation for Hierarchical N:M Sparsity on GPUs,
    arXiv:2407.20496.
    """
    _compile_kernels()
    problem = search.problem
    arrangement = _permute_rows(search, options, _start(search))
    if problem.pattern.window is None and problem.pattern.n < problem.pattern.m:
        arrangement = _permute_columns(search, options, arrangement)
    return arrangement


@cache
def _compile_kernels() -> None:
    """Compile what a short search may not reach, so that no later search pays for it."""
    vectors = np.ones((2, 1), dtype=np.float32)
    slots = np.zeros((1, 2), dtype=np.int64)
    thresholds = np.empty((1, 1), dtype=np.float32)
    join_thresholds(vectors, slots, slots[0, :1], 1, thresholds)
    relu_gain(vectors, thresholds, np.empty((1, 2), dtype=np.float32))


def _start(search: Search) -> Arrangement:
    """Where the search begins: the arrangement it was given, or everything as it lies."""
    if search.initial is not None:
        return search.initial
    problem = search.problem
    order = columns_as_they_lie(problem) if problem.pattern.shared_order else None
    return arrange_tiles(problem, rows_as_they_lie(problem), order)


# --- Output channels: which rows share a tile ------------------------------------------------


def _permute_rows(search: Search, options: GyroOptions, start: Arrangement) -> Arrangement:
    """Move rows between the tiles of their block while that keeps more at the vector level."""
    problem = search.problem
    search.improve(sum(tile_values(problem, start)))
    prunes_vectors = problem.kept_columns < problem.padded_columns
    if problem.tile_size == 1 or max(problem.block_tiles) == 1 or not prunes_vectors:
        return start
    level = _VectorLevel(problem, start)
    for size in options.sample_sizes(problem.tile_size):
        for block in range(len(problem.blocks)):
            if problem.block_tiles[block] == 1:
                continue
            failures = 0
            while failures < options.ocp_patience and not search.stopped():
                if not level.move_rows(search, block, size, options.cluster_iterations):
                    failures += 1
                # What a pass keeps at the vector level says nothing of what the mask keeps.
                search.record()
    if not level.moved:
        return start
    arrangement = arrange_tiles(problem, level.tile_rows, start.col_order)
    search.improve(sum(tile_values(problem, arrangement)))
    return arrangement


class _VectorLevel:
    """Tiles of rows, judged by the column vectors they keep.

    Parameters
    ----------
    problem : Problem
    start : Arrangement
        The tiles to begin with, and the shared column order, where there is one.
    """

    def __init__(self, problem: Problem, start: Arrangement) -> None:
        self.problem = problem
        self.tile_rows = start.tile_rows
        self.order = start.col_order
        self.moved = False
        self._passes = 0
        self._scores = vector_scores(problem.search_saliency, self.tile_rows)
        self._keep, self._total = self._judge(self._scores)

    def move_rows(self, search: Search, block: int, size: int, iterations: int) -> bool:
        """One pass over the tiles of a block; whether it was accepted."""
        problem = self.problem
        rng = search.random(_ROWS, block, self._passes)
        self._passes += 1
        tiles = np.flatnonzero(problem.tile_block == block)
        places = np.argsort(rng.random((len(tiles), problem.tile_size)), axis=1)[:, :size]
        sampled = self.tile_rows[tiles[:, None], places]
        saliency = rows_of(problem.search_saliency, sampled.reshape(-1))
        clusters = balanced_clusters(saliency, len(tiles), rng, iterations, search.stopped)
        rest = self._scores[tiles] - cluster_sums(
            saliency, np.arange(saliency.shape[0]), len(tiles)
        )
        joining = cluster_sums(saliency, clusters, len(tiles))
        to = max_assignment(self._gains(block, rest, joining, search.threads))
        scores = self._scores.copy()
        scores[tiles[to]] = rest[to] + joining
        keep, total = self._judge(scores)
        if not total > self._total * (1.0 + _ROUNDING):
            return False
        moved = self.tile_rows.copy()
        moved[tiles[to][:, None], places[to]] = sampled.reshape(-1)[clusters.reshape(-1, size)]
        # Ascending within a tile, virtual rows (-1, the largest unsigned) last.
        self.tile_rows = np.sort(moved.view(np.uint32), axis=1).view(np.int32)
        self.moved = True
        self._keep, self._total = keep, total
        self._scores = vector_scores(problem.search_saliency, self.tile_rows)
        return True

    def _judge(self, scores: NDArray[np.float64]) -> tuple[NDArray[np.int64], float]:
        """How many vectors each tile keeps (of each window), and all that they sum to."""
        chosen = choose_vectors(self.problem, scores, self.order)
        kept = sum(float(s[c[c >= 0]].sum()) for s, c in zip(scores, chosen, strict=True))
        if self.problem.pattern.window is not None:
            keep = [self.problem.pattern.kept_per_window] * len(chosen)
        else:
            keep = [int((c >= 0).sum()) for c in chosen]
        return np.array(keep, dtype=np.int64), kept

    def _gains(
        self,
        block: int,
        rest: NDArray[np.float64],
        joining: NDArray[np.float64],
        threads: int,
    ) -> NDArray[np.float64]:
        """``gain[j, i]``: what tile i of the block keeps if cluster j joins what is left."""
        if self.order is not None:
            order = np.atleast_2d(self.order)[block if self.problem.orders > 1 else 0]
            rest = np.where(order >= 0, rest[:, order], 0.0)
            joining = np.where(order >= 0, joining[:, order], 0.0)
        window = self.problem.pattern.window or rest.shape[1]
        keep = self._keep[self.problem.tile_block == block]

        def kept(tile: int) -> NDArray[np.float64]:
            sums = (rest[tile] + joining).reshape(len(joining), -1, window)
            first = window - keep[tile]
            if 0 < first < window:
                sums.partition(first, axis=2)
            return sums[:, :, first:].sum(axis=(1, 2))

        worth = rest.size * len(joining) >= _TERMS_WORTH_THREADS
        return np.stack(parallel_map(kept, range(len(rest)), threads if worth else 1), axis=1)


# --- Input channels: which kept vectors of a tile share a group ------------------------------


def _permute_columns(search: Search, options: GyroOptions, start: Arrangement) -> Arrangement:
    """Regroup the kept vectors of every tile while that keeps more at the n:m level."""
    problem = search.problem
    values = tile_values(problem, start)
    tiles = [
        _Tile(problem, start.tile_rows[t], start.groups[t], search.random(_COLUMNS, t), values[t])
        for t in range(problem.tiles)
    ]
    active = [tile for tile in tiles if len(tile.slots) > 1]
    while active and not search.stopped():
        for first in range(0, len(active), _TILES_PER_BATCH):
            if first and search.stopped():
                break
            _assign_vectors(search, active[first : first + _TILES_PER_BATCH])
        search.record(sum(tile.value for tile in tiles))
        active = [tile for tile in active if tile.failures < options.icp_patience]
    groups = tuple(tile.groups for tile in tiles)
    order = start.col_order
    if order is not None:
        # Plain N:M: the one tile of an order holds its columns, group by group.
        order = np.concatenate([g.reshape(-1) for g in groups]).reshape(order.shape)
    return Arrangement(start.tile_rows, groups, order)


def _assign_vectors(search: Search, tiles: list[_Tile]) -> None:
    """One assignment in each of some tiles; in none where the search is stopped before."""
    for tile in tiles:
        tile.release()
    pieces = [(tile, piece) for tile in tiles for piece in tile.pieces]
    worth = sum(tile.terms for tile in tiles) >= _TERMS_WORTH_THREADS
    batch = _PIECES_PER_LOOK * search.threads
    for first in range(0, len(pieces), batch):
        if first and search.stopped():
            return
        parallel_map(
            lambda pair: pair[0].score(pair[1]),
            pieces[first : first + batch],
            search.threads if worth else 1,
        )
    for tile in tiles:
        tile.assign()


class _Tile:
    """The kept vectors of one tile in groups of m.

    Parameters
    ----------
    problem : Problem
    rows : ndarray of int32, shape (V,)
    groups : ndarray of int32, shape (G, m)
    rng : numpy.random.Generator
        Draws which vector of each group is released.
    value : float
        What the groups keep, in float64.
    """

    def __init__(
        self,
        problem: Problem,
        rows: NDArray[np.int32],
        groups: NDArray[np.int32],
        rng: np.random.Generator,
        value: float,
    ) -> None:
        self.value = value
        self.failures = 0
        self.slots: NDArray[np.int64] = np.arange(groups.size, dtype=np.int64).reshape(groups.shape)
        self._columns = groups.reshape(-1)
        self._n = problem.pattern.n
        self._rng = rng
        saliency = problem.search_saliency
        # One vector a row, so that scores run over contiguous memory; virtual ones are zero.
        self._vectors = np.zeros((groups.size, len(rows)), dtype=np.float32)
        real = self._columns >= 0
        real_rows = rows >= 0
        block = saliency[np.ix_(rows[real_rows], self._columns[real])]
        self._vectors[np.ix_(real, real_rows)] = block.T
        self._vacant = np.zeros(len(groups), dtype=np.int64)
        self._released = self.slots[:, 0]
        self._joining = np.empty((len(groups), len(rows)), dtype=np.float32)
        self._thresholds = np.empty_like(self._joining)
        self._gain = np.empty((0, 0), dtype=np.float32)

    @property
    def groups(self) -> NDArray[np.int32]:
        """The columns of each group, shape (G, m)."""
        return self._columns[self.slots]

    @property
    def terms(self) -> int:
        """The terms of all scores of one assignment."""
        return self._thresholds.size * len(self.slots)

    @property
    def pieces(self) -> list[slice]:
        """Cuts of the groups that can be scored apart."""
        starts = range(0, len(self.slots), _GROUPS_PER_PIECE)
        return [slice(start, start + _GROUPS_PER_PIECE) for start in starts]

    def release(self) -> None:
        """Take one vector out of every group."""
        size = len(self.slots)
        self._vacant = self._rng.integers(self.slots.shape[1], size=size)
        self._released = self.slots[np.arange(size), self._vacant]
        self._joining = self._vectors[self._released]
        self._gain = np.empty((size, size), dtype=np.float32)
        join_thresholds(self._vectors, self.slots, self._vacant, self._n, self._thresholds)

    def score(self, piece: slice) -> None:
        """Score every released vector in some of the groups."""
        relu_gain(self._joining, self._thresholds[piece], self._gain[piece])

    def assign(self) -> None:
        """Put every released vector back where they keep the most, if that is more than now."""
        to = max_assignment(self._gain.T)
        improvement = self._gained(to) - self._gained(np.arange(len(to)))
        # The scores of a finished assignment are large; do not hold them until the next.
        self._gain = np.empty((0, 0), dtype=np.float32)
        if not improvement > _ROUNDING * self.value:
            self.failures += 1
            return
        self.value += improvement
        self.slots[to, self._vacant[to]] = self._released

    def _gained(self, to: NDArray[np.integer]) -> float:
        over = self._joining - self._thresholds[to].astype(np.float64)
        return float(np.maximum(over, 0.0, out=over).sum())
