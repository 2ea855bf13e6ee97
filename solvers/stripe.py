"""Channel permutations as published: the best rearrangement of every few stripes, greedily."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import combinations

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
from gyroperm.solvers.kernels.stripe import best_rearrangements
from gyroperm.solvers.registry import register
from gyroperm.solvers.search import Search

# A window with more rearrangements would keep the clock waiting.
_MOST_REARRANGEMENTS = 200_000

# What was published for layers that are searched in parts: then all of it, two stripes to a
# window, with ten times as many regressions as asked for, and as if 100 had been at least.
_PAIRS = 2
_LEAST_ESCAPES, _MORE_ESCAPES = 100, 10

# Rough costs, in nanoseconds: a row of a subset, and a table entry of a rearrangement.
_ROW_NS, _ENTRY_NS = 0.15, 0.6

_LEAST = {"stripes": 2, "escape_attempts": 0, "most_columns": 1}


@dataclass(frozen=True)
class StripeOptions:
    """Options of :func:`solve`.

    Attributes
    ----------
    stripes : int
        The stripes of m columns that make a window, all rearrangements of which are tried. For
        2:4, 2 is the published window of 8 columns (35 rearrangements) and 3 that of 12 (5775).
    escape_attempts : int
        Bounded regressions: so often, where nothing improves, two random columns are exchanged
        and the search goes on from there; the best that was seen is returned. 0, as in the
        published search itself; its library asks for 100.
    most_columns : int
        Layers of more columns are halved until they have no more, if a window has more than 2
        stripes; the halves are searched, then what they make together, two stripes to a window
        and with ``10 * max(escape_attempts, 100)`` regressions, as published.
    """

    stripes: int = 2
    escape_attempts: int = 0
    most_columns: int = 512

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            object.__setattr__(self, name, checked_integer(name, getattr(self, name), least))


@register("stripe", options=StripeOptions)
def solve(search: Search, options: StripeOptions) -> Arrangement:
    """Channel permutations (Pool and Yu, 2021): exhaustive over windows of 2 or 3 stripes.

    A map holds the best rearrangement of every combination of stripes, found by trying all. The
    best that share no stripe are applied, the combinations they touched are searched again, and
    so on until nothing improves; then come the bounded regressions. A round applies what the
    map offers once.

    Parameters
    ----------
    search : Search
        Of plain N:M.
    options : StripeOptions

    Returns
    -------
    Arrangement

    Raises
    ------
    ValueError
        If the pattern is not plain N:M, or a window has too many rearrangements or the layer too
        many windows; the message has the figure.

    Notes
    -----
    A window of 8 columns of 2:4 has 70 subsets of 4, one of 12 has 495: what each keeps is found
    once, and a rearrangement is a sum of 2 or 3 of them. An improvement counts from 2^-22 of what
    its window keeps (0.0001 in the published search), and is judged in float64. A regression is
    not taken back, as published, but what is returned is the best seen rather than the last.

    References
    ----------
    Pool and Yu, Channel Permutations for N:M Sparsity, NeurIPS 2021.
    """
    start = start_of(search, "stripe")
    problem = search.problem
    if not has_moves(problem):
        return start
    m = problem.pattern.m
    stripes = min(options.stripes, problem.groups_per_tile)
    _check_window(stripes, m)
    phases = _phases(search, options, stripes)
    for parts in phases:
        check_map_size(parts, problem.orders)
    return greedy_search(search, start, phases)


def _check_window(stripes: int, m: int) -> None:
    rearrangements = math.factorial(stripes * m) // (
        math.factorial(m) ** stripes * math.factorial(stripes)
    )
    if rearrangements > _MOST_REARRANGEMENTS:
        raise ValueError(
            f"stripes={stripes} makes windows of {stripes * m} columns with {rearrangements} "
            f"rearrangements into stripes of {m}; method 'stripe' tries up to "
            f"{_MOST_REARRANGEMENTS}, 'swap' and 'assign' take any pattern"
        )


def _phases(search: Search, options: StripeOptions, stripes: int) -> list[list[Part]]:
    """The whole layer at once; or its parts, then ever larger ones, two stripes to a window."""
    problem = search.problem
    n, m = problem.pattern.n, problem.pattern.m
    escapes = max(options.escape_attempts, _LEAST_ESCAPES) * _MORE_ESCAPES
    ranges = [(0, problem.groups_per_tile)]
    larger = []
    while stripes > _PAIRS and _are_too_long(ranges, options.most_columns // m, stripes):
        larger.append([Part(*r, _moves(_PAIRS, n, m, problem.tile_size), escapes) for r in ranges])
        ranges = [
            half
            for first, last in ranges
            for half in ((first, (first + last) // 2), ((first + last) // 2, last))
        ]
    moves = _moves(stripes, n, m, problem.tile_size)
    parts = [Part(*r, moves, options.escape_attempts) for r in ranges]
    return [parts, *reversed(larger)]


def _are_too_long(ranges: list[tuple[int, int]], most: int, stripes: int) -> bool:
    """Whether a range of stripes is too long, and all are long enough to be halved."""
    lengths = [last - first for first, last in ranges]
    return max(lengths) > most and min(lengths) >= 2 * stripes


def _moves(stripes: int, n: int, m: int, rows: int) -> Moves:
    layouts, splits = rearrangements(stripes, m)
    subsets = math.comb(stripes * m, m)

    def evaluate(
        X: NDArray[np.float32],
        groups: NDArray[np.int32],
        windows: NDArray[np.int32],
        gains: NDArray[np.float32],
        choices: NDArray[np.int32],
    ) -> None:
        best_rearrangements(X, groups, windows, n, splits, subsets, gains, choices)

    cost = subsets * rows * _ROW_NS + splits.size * _ENTRY_NS
    return Moves(stripes, layouts, evaluate, cost)


@cache
def rearrangements(stripes: int, m: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Every way to deal the columns of a window to its stripes, no change first.

    Stripes of the same columns in another order count once; a stripe whose columns stay together
    stays where it is.

    Parameters
    ----------
    stripes, m : int

    Returns
    -------
    layouts : ndarray of int32, shape (S, stripes * m)
        The columns of each stripe in turn.
    splits : ndarray of int32, shape (S, stripes)
        The rank of each stripe's columns among all subsets of m, in lexicographic order.
    """
    subsets = list(combinations(range(stripes * m), m))
    rank = {subset: i for i, subset in enumerate(subsets)}
    as_they_lie = {subsets.index(tuple(range(s * m, s * m + m))): s for s in range(stripes)}

    @cache
    def deals(columns: tuple[int, ...]) -> list[tuple[int, ...]]:
        if not columns:
            return [()]
        result = []
        for others in combinations(columns[1:], m - 1):
            taken = (columns[0], *others)
            rest = tuple(c for c in columns if c not in taken)
            result += [(rank[taken], *deal) for deal in deals(rest)]
        return result

    def in_place(deal: tuple[int, ...]) -> list[int]:
        staying = {as_they_lie[r]: r for r in deal if r in as_they_lie}
        moving = iter([r for r in deal if r not in as_they_lie])
        return [staying[s] if s in staying else next(moving) for s in range(stripes)]

    splits = np.array([in_place(deal) for deal in deals(tuple(range(stripes * m)))], dtype=np.int32)
    layouts = np.array(subsets, dtype=np.int32)[splits].reshape(len(splits), -1)
    return layouts, splits
