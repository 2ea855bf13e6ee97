"""The best of so many random permutations: what any search must beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gyroperm.arguments import checked_integer
from gyroperm.arrangement import Arrangement
from gyroperm.problem import Problem
from gyroperm.solvers.columns import groups_value, tile_columns
from gyroperm.solvers.identity import identity_arrangement
from gyroperm.solvers.kernels.shuffling import best_shuffle
from gyroperm.solvers.parallel import parallel_map
from gyroperm.solvers.registry import register
from gyroperm.solvers.search import Search
from gyroperm.solvers.vectors import (
    choose_vectors,
    columns_as_they_lie,
    rows_as_they_lie,
    tile_values,
    vector_scores,
)

# Random streams: orders draw from (_ORDERS, order, call), arrangements from (_ARRANGEMENTS, i).
_ORDERS, _ARRANGEMENTS = 0, 1

# A call draws as many orders as fit in about 3 ms, at about 0.3 ns an entry and 5 ns a column;
# a round has so many calls, or arrangements of two levels, whatever the number of threads.
_CALL_NS = 3_000_000
_CALLS = 16


@dataclass(frozen=True)
class RandomOptions:
    """Options of :func:`solve`.

    Attributes
    ----------
    count : int
        How many permutations are drawn.

    Raises
    ------
    ValueError
        If ``count`` is not a positive integer.
    """

    count: int = 1000

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", checked_integer("count", self.count, 1))


@register("random", options=RandomOptions)
def solve(search: Search, options: RandomOptions) -> Arrangement:
    """The best of so many random permutations, the baseline of Pool and Yu (2021).

    Plain N:M draws column orders. Elsewhere a permutation is a random tiling of the rows, in
    windowed patterns with a random shared order; each tile keeps its highest scoring vectors
    and, where their order is its own, deals them at random into groups.

    A round, in the sense of stopping criteria, is 16 permutations; for plain N:M, 16 times as
    many as take about 3 ms.

    Parameters
    ----------
    search : Search
        With ``initial``, that competes with the permutations drawn.
    options : RandomOptions

    Returns
    -------
    Arrangement

    Notes
    -----
    Pool and Yu draw 100,000 orders of plain 2:4; the other patterns are extensions. Where a
    layer has several orders of its own, the best of each is kept.

    References
    ----------
    Pool and Yu, Channel Permutations for N:M Sparsity, NeurIPS 2021.
    """
    start = search.initial or identity_arrangement(search.problem)
    if search.stopped():
        return start
    if search.problem.pattern.is_plain:
        return _best_orders(search, options.count, start)
    return _best_arrangement(search, options.count, start)


# --- Plain N:M: column orders ----------------------------------------------------------------


def _best_orders(search: Search, count: int, start: Arrangement) -> Arrangement:
    problem = search.problem
    m, n = problem.pattern.m, problem.pattern.n
    X = [tile_columns(problem.search_saliency, rows) for rows in start.tile_rows]
    groups = list(start.groups)
    values = [
        groups_value(x, np.where(g < 0, problem.columns, g), n)
        for x, g in zip(X, groups, strict=True)
    ]
    search.improve(sum(values))
    cost = X[0].size * 0.3 + problem.padded_columns * 5
    per_call = max(1, int(_CALL_NS / cost))
    base = np.arange(problem.padded_columns, dtype=np.int32)
    np.minimum(base, problem.columns, out=base)

    def draw(job: tuple[int, int]) -> tuple[float, NDArray[np.int32]]:
        tile, first = job
        state = search.random(_ORDERS, tile, first).integers(0, 2**64, size=1, dtype=np.uint64)
        best = np.empty_like(base)
        amount = min(per_call, count - first)
        return best_shuffle(X[tile], base.copy(), m, n, amount, state, best), best

    for begin in range(0, count, per_call * _CALLS):
        firsts = range(begin, min(count, begin + per_call * _CALLS), per_call)
        jobs = [(tile, first) for tile in range(problem.tiles) for first in firsts]
        for at in range(0, len(jobs), search.threads):
            if search.stopped():
                break
            batch = jobs[at : at + search.threads]
            for (tile, _), (value, order) in zip(
                batch, parallel_map(draw, batch, search.threads), strict=True
            ):
                if value > values[tile]:
                    values[tile] = value
                    groups[tile] = np.where(order == problem.columns, -1, order).reshape(-1, m)
        search.record(sum(values))
        if search.stopped():
            break
    order = np.stack([g.reshape(-1) for g in groups])
    return Arrangement(start.tile_rows, tuple(groups), order if problem.orders > 1 else order[0])


# --- Two levels: rows, vectors, groups -------------------------------------------------------


def _best_arrangement(search: Search, count: int, start: Arrangement) -> Arrangement:
    problem = search.problem
    best, most = start, sum(tile_values(problem, start, search.threads))
    search.improve(most)
    for begin in range(0, count, _CALLS):
        numbers = range(begin, min(count, begin + _CALLS))
        for at in range(0, len(numbers), search.threads):
            if search.stopped():
                return best
            batch = numbers[at : at + search.threads]
            drawn = parallel_map(lambda i: _drawn(search, i), batch, search.threads)
            if search.stopped():
                return best
            values = parallel_map(lambda a: sum(tile_values(problem, a)), drawn, search.threads)
            for arrangement, value in zip(drawn, values, strict=True):
                if value > most:
                    best, most = arrangement, value
        search.record(most)
    return best


def _drawn(search: Search, number: int) -> Arrangement:
    """A random arrangement; the same for the same number."""
    problem = search.problem
    rng = search.random(_ARRANGEMENTS, number)
    tile_rows = _random_tiles(problem, rng)
    order = None
    if problem.pattern.window is not None:
        order = rng.permuted(columns_as_they_lie(problem), axis=-1)
    chosen = choose_vectors(problem, vector_scores(problem.search_saliency, tile_rows), order)
    if order is None:
        chosen = [rng.permutation(columns) for columns in chosen]
    return Arrangement(tile_rows, tuple(c.reshape(-1, problem.pattern.m) for c in chosen), order)


def _random_tiles(problem: Problem, rng: np.random.Generator) -> NDArray[np.int32]:
    """The rows of every block dealt at random into its tiles."""
    tile_rows = rows_as_they_lie(problem)
    for block in range(len(problem.blocks)):
        mine = problem.tile_block == block
        tile_rows[mine] = rng.permutation(tile_rows[mine].reshape(-1)).reshape(
            -1, tile_rows.shape[1]
        )
    return tile_rows
