"""Plain 1:2, exactly: which columns are paired is a perfect matching of the largest weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from ortools.graph.python import linear_sum_assignment

from gyroperm.arrangement import Arrangement
from gyroperm.measures import ROUNDING
from gyroperm.problem import Problem
from gyroperm.solvers.identity import identity_arrangement
from gyroperm.solvers.parallel import parallel_map
from gyroperm.solvers.search import Search

# The weight of a pair in integers: as fine as sums of a thousand of them in 64 bits allow.
_WEIGHT_BITS = 48
# OR-Tools' assignment overflows with such weights; its dual needs only so many of the bits.
_COARSER_BITS = 18
# Seconds for each pair that the assignment takes, which nothing interrupts.
_PAIR_SECONDS = 3e-7
# So many of each column's pairs of the least slack are matched first.
_FIRST_PAIRS = 6
# Elements of a block of columns that are compared at once.
_BLOCK = 1 << 22
# Elements that are compared by a thread between two looks at the clock.
_LOOK = 1 << 23


def solve_by_matching(search: Search) -> tuple[Arrangement, float]:
    """Pair the columns of plain 1:2 so that no pairing keeps more.

    A pair keeps ``sum_r max(x_i[r], x_j[r])`` whatever the other pairs are, so the best order is
    a perfect matching of the complete graph of the columns (Edmonds, Maximum matching and a
    polyhedron with 0,1-vertices, 1965; by networkx after Galil, ACM Computing Surveys 1986). An
    odd number of columns is matched with a virtual one. The linear assignment of columns to
    columns is a relaxation whose dual leaves a slack for every pair: pairs of more slack than a
    known matching is below it are in no better one, which leaves few.

    Parameters
    ----------
    search : Search
        Of plain 1:2; each order of a grouped convolution is matched on its own.

    Returns
    -------
    Arrangement
        Stopped before, the columns not yet matched stay where they began.
    float
        A proven upper bound of what any order keeps, in the scale of ``problem.search_saliency``
        and of the saliency as it was given (not as rounded to float32); infinite where the
        search was stopped before anything was proven.

    Raises
    ------
    ValueError
        If the pattern is another.
    """
    problem = search.problem
    pattern = problem.pattern
    if not pattern.is_plain or (pattern.n, pattern.m) != (1, 2):
        raise ValueError(f"matching solves plain 1:2 alone, got {pattern}")
    start = search.initial or identity_arrangement(problem)
    groups = [np.array(g) for g in start.groups]
    bound = value = 0.0
    for t, rows in enumerate(start.tile_rows):
        X = _columns(problem, rows)
        paired, most = _match(search, X)
        if paired is not None:
            groups[t] = np.where(paired < problem.columns, paired, -1).astype(np.int32)
        value += _kept(X, groups[t])
        bound += most
        search.record(value if t + 1 == problem.tiles else None)
    order = np.concatenate([g.reshape(-1) for g in groups])
    order = order if problem.orders == 1 else order.reshape(problem.orders, -1)
    return Arrangement(start.tile_rows, tuple(groups), order), bound


def _columns(problem: Problem, rows: NDArray[np.int32]) -> NDArray[np.float64]:
    """The columns of some rows in float64, (C', R), in the search's scale, virtual ones zero."""
    exponent = int(np.frexp(float(problem.saliency.max()))[1])
    X = np.zeros((problem.padded_columns, int((rows >= 0).sum())))
    X[: problem.columns] = problem.saliency[rows[rows >= 0]].T
    return np.ldexp(X, -exponent, out=X)


def _kept(X: NDArray[np.float64], groups: NDArray[np.int32]) -> float:
    X = np.vstack([X, np.zeros(X.shape[1])])
    return float(np.maximum(X[groups[:, 0]], X[groups[:, 1]]).sum())


def _match(search: Search, X: NDArray[np.float64]) -> tuple[NDArray[np.int64] | None, float]:
    """The best pairs of the rows of X, (C' / 2, 2), and a bound; None if stopped before."""
    columns = len(X)
    if not X.any():
        return np.arange(columns).reshape(-1, 2), 0.0
    values = None if search.stopped() else _pair_values(search, X)
    if values is None or not search.affords(_PAIR_SECONDS * columns * columns):
        return None, math.inf
    scale = 2.0 ** (_WEIGHT_BITS - int(np.frexp(values.max())[1]))
    weights = np.rint(values * scale).astype(np.int64)
    slack, doubled = _reduced(weights)

    def outward(total: int) -> float:
        # A weight is off by half at most by its rounding to integers.
        return (total + 0.5 * (columns // 2)) / scale * (1.0 + ROUNDING)

    nearest = _FIRST_PAIRS
    try:
        while True:
            limit = slack.max()
            if nearest < columns - 1:
                # The diagonal, of no slack, is the nearest of all.
                limit = np.partition(slack, nearest, axis=1)[:, nearest].max()
            pairs = _perfect(search, slack, limit)
            if len(pairs) == columns // 2:
                break
            nearest *= 2
        missed = _missed(slack, pairs)
        if missed > limit:
            # Pairs that were left out may still be in a better matching, if they miss less.
            pairs = _perfect(search, slack, missed)
            missed = _missed(slack, pairs)
    except _StoppedError:
        return None, outward(-(-doubled // 2))
    return pairs, outward((doubled - missed) // 2)


def _pair_values(search: Search, X: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """What every pair of columns keeps, (C', C'), its diagonal zero; None if stopped."""
    columns = len(X)
    values = np.zeros((columns, columns))
    step = max(1, _BLOCK // X.shape[1])

    def fill(i: int) -> None:
        for first in range(i + 1, columns, step):
            block = slice(first, first + step)
            values[i, block] = np.maximum(X[i], X[block]).sum(axis=1)

    batch = search.threads * max(1, min(16, _LOOK // X.size))
    for first in range(0, columns, batch):
        if search.stopped():
            return None
        parallel_map(fill, range(first, min(first + batch, columns)), search.threads)
    return values + values.T


def _reduced(weights: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """The slack of every pair and their level: a matching weighs half the level less its slacks.

    From the dual of the assignment of every column to another, halved between its two sides.
    """
    columns = len(weights)
    coarse = weights >> _COARSER_BITS
    left, right = np.nonzero(~np.eye(columns, dtype=bool))
    solver = linear_sum_assignment.SimpleLinearSumAssignment()
    solver.add_arcs_with_cost(left, right, coarse.max() - coarse[left, right])
    status = solver.solve()
    if status != solver.OPTIMAL:
        raise RuntimeError(f"OR-Tools answered {status} to an assignment of {columns} columns")
    mates = np.array([solver.right_mate(column) for column in range(columns)])
    assigned = coarse[np.arange(columns), mates]
    # What column j must be worth at least, given the worth of the column that i is assigned to.
    steps = coarse - assigned[:, None]
    np.fill_diagonal(steps, -(1 << 60))
    worth = np.zeros(columns, dtype=np.int64)
    while True:
        raised = np.maximum(worth, (steps + worth[mates][:, None]).max(axis=0))
        if np.array_equal(raised, worth):
            break
        worth = raised
    # One more than the coarse level covers what the shift has cut off.
    level = (worth + assigned - worth[mates] + 1) << _COARSER_BITS
    slack = level[:, None] + level[None, :] - 2 * weights
    np.fill_diagonal(slack, 0)
    return slack, int(level.sum())


def _missed(slack: NDArray[np.int64], pairs: NDArray[np.int64]) -> int:
    return int(slack[pairs[:, 0], pairs[:, 1]].sum())


class _StoppedError(Exception):
    """A matching was given up."""


class _WatchedGraph(nx.Graph):
    """A graph whose algorithms end when the search is stopped, which networkx knows nothing of."""

    def __init__(self, stopped: Callable[[], bool]) -> None:
        super().__init__()
        self._stopped = stopped

    def neighbors(self, n: int) -> Iterator[int]:
        if self._stopped():
            raise _StoppedError
        return iter(self.adj[n])


def _perfect(search: Search, slack: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """The largest matching, of the least slack, by pairs of at most ``limit``, (pairs, 2)."""
    left, right = np.nonzero(np.triu(slack <= limit, 1))
    graph = _WatchedGraph(search.stopped)
    # Python's integers do not overflow when networkx adds them up.
    weights = (-slack[left, right]).tolist()
    graph.add_weighted_edges_from(zip(left.tolist(), right.tolist(), weights, strict=True))
    matched = nx.max_weight_matching(graph, maxcardinality=True)
    return np.array(sorted(sorted(pair) for pair in matched), dtype=np.int64)
