"""Channel swap as published: the best exchanges of two columns, greedily."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gyroperm.arguments import checked_integer
from gyroperm.arrangement import Arrangement
from gyroperm.solvers.greedy import (
    Moves,
    Part,
    check_map_size,
    greedy_search,
    has_moves,
    start_of,
)
from gyroperm.solvers.kernels.swap import best_swaps
from gyroperm.solvers.registry import register
from gyroperm.solvers.search import Search

# Rough costs, in nanoseconds: a row of what a column adds to a stripe; and, for each column of a
# stripe, a row of the n-th largest of the others, plus so much for each of the n.
_ROW_NS = 0.15
_OTHERS_NS, _TOP_NS = 2.0, 0.8


@dataclass(frozen=True)
class SwapOptions:
    """Options of :func:`solve`.

    Attributes
    ----------
    escape_attempts : int
        Bounded regressions: so often, where no exchange improves, a random one is made and the
        search goes on from there; the best that was seen is returned.
    """

    escape_attempts: int = 0

    def __post_init__(self) -> None:
        checked = checked_integer("escape_attempts", self.escape_attempts, 0)
        object.__setattr__(self, "escape_attempts", checked)


@register("swap", options=SwapOptions)
def solve(search: Search, options: SwapOptions) -> Arrangement:
    """Channel swap (TETRIS, as Pool and Yu adapted it to N:M): the best exchanges of two columns.

    A map holds what every exchange of two columns of different stripes adds. The best that share
    no stripe are made, the map is mended where they touched it, and so on until no exchange
    improves; then come the bounded regressions. A round makes what the map offers once.

    Parameters
    ----------
    search : Search
        Of plain N:M.
    options : SwapOptions

    Returns
    -------
    Arrangement

    Raises
    ------
    ValueError
        If the pattern is not plain N:M.

    Notes
    -----
    Only the best exchange of every pair of stripes can ever be made, so only that is stored. A
    regression is not taken back, as published, but what is returned is the best seen rather than
    the last.

    References
    ----------
    Ji et al., TETRIS: TilE-matching the TRemendous Irregular Sparsity, NeurIPS 2018.
    Pool and Yu, Channel Permutations for N:M Sparsity, NeurIPS 2021.
    """
    start = start_of(search, "swap")
    problem = search.problem
    if not has_moves(problem):
        return start
    moves = _moves(problem.pattern.n, problem.pattern.m, problem.tile_size)
    parts = [Part(0, problem.groups_per_tile, moves, options.escape_attempts)]
    check_map_size(parts, problem.orders)
    return greedy_search(search, start, [parts])


def _moves(n: int, m: int, rows: int) -> Moves:
    def evaluate(
        X: NDArray[np.float32],
        groups: NDArray[np.int32],
        windows: NDArray[np.int32],
        gains: NDArray[np.float32],
        choices: NDArray[np.int32],
    ) -> None:
        best_swaps(X, groups, windows, n, gains, choices)

    cost = 2 * (m + 3) * m * _ROW_NS
    # The second largest of three needs no list, and costs nothing to speak of.
    if (n, m) != (2, 4):
        cost += 2 * m * m * (_OTHERS_NS + n * _TOP_NS)
    return Moves(2, exchanges(m), evaluate, cost * rows)


def exchanges(m: int) -> NDArray[np.int32]:
    """Row ``i * m + j``, of m * m: two stripes with column i of one and j of the other exchanged.

    Shape (m * m, 2 * m) int32.
    """
    layouts = np.tile(np.arange(2 * m, dtype=np.int32), (m * m, 1))
    move = np.arange(m * m)
    layouts[move, move // m] = m + move % m
    layouts[move, m + move % m] = move // m
    return layouts
