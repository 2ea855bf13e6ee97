"""V:N:M's channel permutation along both axes: rows and columns in turns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gyroperm.arguments import checked_integer
from gyroperm.arrangement import Arrangement
from gyroperm.solvers.assignment import assignment_seconds, max_assignment
from gyroperm.solvers.columns import tile_columns
from gyroperm.solvers.identity import identity_arrangement
from gyroperm.solvers.kernels.joining import kept_if_joined
from gyroperm.solvers.parallel import parallel_map
from gyroperm.solvers.registry import register
from gyroperm.solvers.search import Search
from gyroperm.solvers.slots import reassign_place
from gyroperm.solvers.vectors import arrange_tiles, tile_values, vector_scores

# Scores of this many terms together are worth several threads, and a piece has about so many.
_TERMS_WORTH_THREADS = 1 << 18
_TERMS_PER_PIECE = 1 << 23

# An improvement below this fraction is rounding, not an improvement.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class TwoAxisOptions:
    """Options of :func:`solve`.

    Attributes
    ----------
    rounds : int
        How often rows and columns take turns; 2 as published. Fewer where nothing moves.

    Raises
    ------
    ValueError
        If ``rounds`` is not a positive integer.
    """

    rounds: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "rounds", checked_integer("rounds", self.rounds, 1))


@register("two_axis", options=TwoAxisOptions)
def solve(search: Search, options: TwoAxisOptions) -> Arrangement:
    """Rows and columns of V:N:M in turns ("Beyond 2:4", 2024), by linear assignments.

    The row step releases the row at one place of every tile and assigns them to the tiles where
    the vectors kept are worth the most, place after place. The column step does the same with
    the columns of the windows, for all tiles together. Then every tile keeps the highest
    scoring vectors of each window.

    A round, in the sense of stopping criteria, is one step: all places of one axis.

    Parameters
    ----------
    search : Search
        With ``initial``, its rows and order are where the turns begin.
    options : TwoAxisOptions

    Returns
    -------
    Arrangement

    Raises
    ------
    ValueError
        If the pattern has no windows.

    Notes
    -----
    Faithful are the alternation, its two rounds, and that each axis is permuted by linear
    assignment with the other fixed. Which rows or columns compete in one assignment is this
    module's choice: one place of every tile or window at a time, as RIA does with columns. Both
    steps are judged by whole vectors; what n:m then keeps of them may fall, so the best of all
    turns is returned. Vector N:M is an extension.

    References
    ----------
    Beyond 2:4: Exploring V:N:M Sparsity for Efficient Transformer Inference on GPUs,
    arXiv:2410.16135.
    """
    problem = search.problem
    if problem.pattern.window is None:
        raise ValueError(
            f"method 'two_axis' is for patterns with windows, not for {problem.pattern.name}; it "
            f"takes Pattern.vnm(V, N, M) and Pattern.vector_nm(N, M, L)"
        )
    start = search.initial or identity_arrangement(problem)
    if search.stopped():
        return start
    assert start.col_order is not None
    tile_rows, order = start.tile_rows.copy(), start.col_order.copy()
    best, most = start, sum(tile_values(problem, start, search.threads))
    search.improve(most)
    for _ in range(options.rounds):
        gained = 0.0
        for step in (_move_rows, _move_columns):
            if search.stopped():
                return best
            gained += step(search, tile_rows, order)
            arrangement = arrange_tiles(problem, tile_rows, order)
            value = sum(tile_values(problem, arrangement, search.threads))
            search.record(value)
            if value > most:
                best, most = arrangement, value
        if gained == 0.0:
            break
    return best


def _move_rows(search: Search, tile_rows: NDArray[np.int32], order: NDArray[np.int32]) -> float:
    """Assign the rows at every place of the tiles anew, in place; returns what that gained."""
    problem = search.problem
    if problem.pattern.kept_per_window == problem.pattern.window:
        return 0.0
    gained = 0.0
    for block, count in enumerate(problem.block_tiles):
        if count > 1:
            tiles = np.flatnonzero(problem.tile_block == block)
            columns = np.atleast_2d(order)[problem.tile_order[tiles[0]]]
            # A view that writes through: the tiles of a block are consecutive.
            mine = tile_rows[tiles[0] : tiles[-1] + 1]
            gained += _move_rows_of_block(search, mine, columns)
    return gained


def _move_rows_of_block(
    search: Search, tile_rows: NDArray[np.int32], columns: NDArray[np.int32]
) -> float:
    problem = search.problem
    T, places = tile_rows.shape
    assert problem.pattern.window is not None
    # Windows last, so that all of them are sorted at once.
    layout = columns.reshape(-1, problem.pattern.window).T
    sums = _laid(vector_scores(problem.search_saliency, tile_rows), layout)
    values = np.empty((T, T))
    per_piece = max(1, _TERMS_PER_PIECE // (sums.size or 1))
    pieces = [slice(first, first + per_piece) for first in range(0, T, per_piece)]
    threads = search.threads if T * sums.size >= _TERMS_WORTH_THREADS else 1
    gained = 0.0
    for place in range(places):
        rows = tile_rows[:, place].copy()
        joining = _laid(problem.search_saliency[rows], layout)
        joining[rows < 0] = 0.0
        rest = sums - joining

        def score(
            piece: slice,
            rest: NDArray[np.float64] = rest,
            joining: NDArray[np.float32] = joining,
        ) -> None:
            kept = search.problem.pattern.kept_per_window
            kept_if_joined(rest[piece], joining, kept, values[piece])

        for first in range(0, len(pieces), 2 * threads):
            if search.stopped():
                return gained
            parallel_map(score, pieces[first : first + 2 * threads], threads)
        if not search.affords(assignment_seconds(T)):
            return gained
        to = max_assignment(values.T)
        before, after = np.trace(values), values[to, np.arange(T)].sum()
        if after - before > _ROUNDING * after:
            gained += float(after - before)
            tile_rows[to, place] = rows
            sums[to] = rest[to] + joining
    return gained


def _laid(vectors: NDArray[np.floating], layout: NDArray[np.int32]) -> NDArray[np.floating]:
    """Vectors over the columns of a layout, zero where it has virtual ones."""
    laid = vectors[:, layout]
    laid[:, layout < 0] = 0.0
    return laid


def _move_columns(search: Search, tile_rows: NDArray[np.int32], order: NDArray[np.int32]) -> float:
    """Assign the columns at every place of the windows anew, in place; returns the gain.

    With the rows fixed, choosing the best ``kept`` of each window of M columns for every tile
    is plain kept:M on the tiles' vector scores, (T, C).
    """
    problem = search.problem
    window, kept = problem.pattern.window, problem.pattern.kept_per_window
    if window is None or window == kept:
        return 0.0
    scores = vector_scores(problem.search_saliency, tile_rows)
    gained = 0.0
    for o, columns in enumerate(np.atleast_2d(order)):
        mine = scores[problem.tile_order == o].astype(np.float32)
        X = tile_columns(mine, np.arange(len(mine), dtype=np.int32))
        groups = np.where(columns < 0, problem.columns, columns).astype(np.int64)
        groups = groups.reshape(-1, window)
        for place in range(window):
            more = reassign_place(search, X, groups, place, kept)
            if more is None:
                break
            gained += more
        columns[:] = np.where(groups == problem.columns, -1, groups).reshape(-1)
    return gained
