"""Independent chains of a search against a clock: side by side, in a row, the best kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from gyroperm.problem import Problem
from gyroperm.solvers.parallel import parallel_map
from gyroperm.solvers.search import Search

A = TypeVar("A")

# A chain anneals for so many moves of G groups for each pair of them, before another is worth
# more than a longer one. Measured at G = 16 and 32: a move, of every group, takes so many ns for
# each pair and row, and for each pair besides.
_MOVES, _ROW_NS, _PAIR_NS = 200, 0.07, 4.0
# With a vector level, tiles many enough even out their luck with rows: chains must be far longer
# before another pays. Measured at V = 32; a gain takes V / 45 ns, its part of the assignment this.
_TWO_LEVEL_MOVES, _GAIN_NS = 200_000, 1.5
# No chain is shorter, so that the calls of kernels do not show; and beyond so many in a row, more
# time makes them longer.
_LEAST_SECONDS, _MOST = 0.025, 12


def chains_in(seconds: float, groups: int, rows: int) -> int:
    """How many chains, one after the other, are the best use of the time for plain N:M.

    Annealing small problems for longer soon brings less than beginning anew.

    Parameters
    ----------
    seconds : float
    groups, rows : int
        Of the matrix.
    """
    pairs = groups * groups
    needed = 1e-9 * _MOVES * pairs * pairs * (_ROW_NS * rows + _PAIR_NS)
    return _fitting(seconds, needed)


def two_level_chains_in(seconds: float, problem: Problem) -> int:
    """The same for patterns of two levels, whose tiles choose and group their own columns.

    Parameters
    ----------
    seconds : float
    problem : Problem

    Returns
    -------
    int
        Always 1 where tiles share a budget, or keep all of each group.
    """
    pattern = problem.pattern
    if pattern.allocation != "uniform" or pattern.n == pattern.m:
        return 1
    groups = problem.kept_columns // pattern.m
    pairs = groups * (groups + min(groups, problem.columns - problem.kept_columns))
    ns = problem.tile_size / 45 + _GAIN_NS
    needed = 1e-9 * _TWO_LEVEL_MOVES * problem.tiles * max(1, pairs) * ns
    return _fitting(seconds, needed)


def _fitting(seconds: float, needed: float) -> int:
    """How many chains fit one after the other if each needs so many seconds."""
    return int(min(_MOST, max(1.0, seconds / max(_LEAST_SECONDS, needed))))


def best_of_chains(
    search: Search, in_a_row: int, run: Callable[[Search], tuple[float, A]]
) -> tuple[float, A]:
    """The best of ``in_a_row`` chains on every thread.

    Parameters
    ----------
    search : Search
        Whose criterion tells its progress; what is left of it is divided up.
    in_a_row : int
        At least 1.
    run : callable
        ``run(chain) -> (value, result)``, on the chain's one thread.
    """

    def on_one_thread(thread: int) -> tuple[float, A]:
        found = []
        for left in range(in_a_row, 0, -1):
            begin = search.progress() or 0.0
            # By thread first, so that the chains of one thread are among those of more.
            index = thread * in_a_row + in_a_row - left
            found.append(run(search.chain(index, begin, begin + (1.0 - begin) / left)))
            if search.stopped():
                break
        return max(found, key=_value)

    return max(parallel_map(on_one_thread, range(search.threads), search.threads), key=_value)


def _value(found: tuple[float, A]) -> float:
    return found[0]
