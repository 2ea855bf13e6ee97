"""The vector level: which columns each tile keeps, by a score for every vector."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from gyroperm.arrangement import Arrangement
from gyroperm.problem import Problem
from gyroperm.solvers.kernels.gyro import kept_by_tile
from gyroperm.solvers.parallel import parallel_map

# A matrix of so many entries is worth several threads.
_ENTRIES_WORTH_THREADS = 1 << 18


def rows_as_they_lie(problem: Problem) -> NDArray[np.int32]:
    """Tiles of the kept rows in their original order, shape (T, V), -1 for virtual rows."""
    tile_rows = np.full((problem.tiles, problem.tile_size), -1, dtype=np.int32)
    first = 0
    for rows, tiles in zip(problem.block_rows, problem.block_tiles, strict=True):
        tile_rows[first : first + tiles].reshape(-1)[: len(rows)] = rows
        first += tiles
    return tile_rows


def columns_as_they_lie(problem: Problem) -> NDArray[np.int32]:
    """The shared column order without permutation, virtual columns last."""
    order = np.full(problem.padded_columns, -1, dtype=np.int32)
    order[: problem.columns] = np.arange(problem.columns)
    return order if problem.orders == 1 else np.tile(order, (problem.orders, 1))


def rows_of(saliency: NDArray[np.float32], rows: NDArray[np.int32]) -> NDArray[np.float32]:
    """The named rows; virtual ones are zero."""
    result = saliency[rows]
    result[rows < 0] = 0.0
    return result


def vector_scores(
    saliency: NDArray[np.floating], tile_rows: NDArray[np.int32]
) -> NDArray[np.float64]:
    """The summed saliency of each column vector of each tile, shape (T, C)."""
    scores = np.empty((len(tile_rows), saliency.shape[1]))
    for t, rows in enumerate(tile_rows):
        # A tile of all rows in order needs no gathered copy of the matrix.
        real = rows[rows >= 0]
        whole = np.array_equal(real, np.arange(saliency.shape[0]))
        (saliency if whole else saliency[real]).sum(axis=0, dtype=np.float64, out=scores[t])
    return scores


def choose_vectors(
    problem: Problem, scores: NDArray[np.floating], col_order: NDArray[np.int32] | None = None
) -> list[NDArray[np.int32]]:
    """The highest scoring vectors of each tile that the pattern's allocation allows.

    Parameters
    ----------
    problem : Problem
    scores : ndarray of float, shape (T, C)
    col_order : ndarray of int32, shape (C',) or (orders, C'), optional
        The shared order, for windowed patterns.

    Returns
    -------
    list of T ndarrays of int32
        Column ids, whole groups of them, -1 last where fewer real columns exist. Ascending;
        in windowed patterns window by window, each by its position in the order. Equal scores
        keep the earlier column.
    """
    if problem.pattern.window is not None:
        assert col_order is not None
        return _choose_in_windows(problem, scores, col_order)
    ranked = [np.argsort(-row, kind="stable").astype(np.int32) for row in scores]
    counts = vectors_per_tile(problem, scores, ranked)
    return [_padded(np.sort(r[:k]), k) for r, k in zip(ranked, counts, strict=True)]


def arrange_tiles(
    problem: Problem, tile_rows: NDArray[np.int32], col_order: NDArray[np.int32] | None
) -> Arrangement:
    """The highest scoring vectors of given tiles, in groups as they lie."""
    scores = vector_scores(problem.search_saliency, tile_rows)
    chosen = choose_vectors(problem, scores, col_order)
    groups = tuple(c.reshape(-1, problem.pattern.m) for c in chosen)
    return Arrangement(tile_rows, groups, col_order)


def tile_values(problem: Problem, arrangement: Arrangement, threads: int = 1) -> list[float]:
    """What each tile keeps, in float64, in the scale of ``problem.search_saliency``."""
    saliency, n = problem.search_saliency, problem.pattern.n

    def value(tile: int) -> float:
        # Kernels are compiled for writable arrays; those of an arrangement are not.
        rows, groups = arrangement.tile_rows[tile].copy(), arrangement.groups[tile].copy()
        return float(kept_by_tile(saliency, rows, groups, n))

    worth = saliency.size >= _ENTRIES_WORTH_THREADS
    return parallel_map(value, range(problem.tiles), threads if worth else 1)


def _padded(columns: NDArray[np.int32], count: int) -> NDArray[np.int32]:
    result = np.full(count, -1, dtype=np.int32)
    result[: len(columns)] = columns
    return result


def vectors_per_tile(
    problem: Problem, scores: NDArray[np.floating], ranked: list[NDArray[np.int32]]
) -> list[int]:
    """K_t of each tile: the same for all, or the best spread of one global budget.

    The vectors of a tile are taken m at a time, best first, so each tile's next m are worth no
    more than its last: taking the best next m anywhere is optimal for the summed score.
    """
    m = problem.pattern.m
    if problem.pattern.allocation != "global":
        return [problem.kept_columns] * problem.tiles
    chunks = []
    for t, order in enumerate(ranked):
        padded = np.zeros(problem.padded_columns)
        padded[: problem.columns] = scores[t, order]
        chunks.append(padded.reshape(-1, m).sum(axis=1))
    heap = [(-float(worth[0]), t) for t, worth in enumerate(chunks)]
    heapq.heapify(heap)
    taken = [0] * problem.tiles
    for _ in range(problem.total_groups):
        _, t = heapq.heappop(heap)
        taken[t] += 1
        if taken[t] < len(chunks[t]):
            heapq.heappush(heap, (-float(chunks[t][taken[t]]), t))
    return [m * count for count in taken]


def _choose_in_windows(
    problem: Problem, scores: NDArray[np.floating], col_order: NDArray[np.int32]
) -> list[NDArray[np.int32]]:
    window, kept = problem.pattern.window, problem.pattern.kept_per_window
    orders = np.atleast_2d(col_order)
    result = []
    for t, order in enumerate(orders[problem.tile_order]):
        windows = order.reshape(-1, window)
        worth = np.where(windows >= 0, scores[t][windows], -np.inf)
        places = np.sort(np.argsort(-worth, axis=1, kind="stable")[:, :kept], axis=1)
        result.append(np.take_along_axis(windows, places, axis=1).reshape(-1))
    return result
