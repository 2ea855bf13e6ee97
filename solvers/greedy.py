"""Greedy search over a map of moves between stripes, with bounded regressions.

A stripe is a group of m columns, a window a few stripes. The map holds the best move of every
window; the best moves that share no stripe are applied, what they touched is evaluated anew, and
so on until nothing improves. What Pool and Yu's two searches have in common.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gyroperm.arrangement import Arrangement
from gyroperm.memory import require
from gyroperm.problem import Problem
from gyroperm.solvers.columns import tile_columns
from gyroperm.solvers.identity import identity_arrangement
from gyroperm.solvers.kernels.grouping import group_values
from gyroperm.solvers.kernels.stripe import apply_moves
from gyroperm.solvers.parallel import parallel_map
from gyroperm.solvers.search import Search

# A job evaluates so many windows as take about 3 ms: long enough to hide the call, short enough
# to look at the clock, which is done once so many jobs of each thread.
_JOB_NS = 3_000_000
_JOBS_PER_THREAD = 4
# Moves applied between two looks at the clock.
_APPLIED = 64
# What a map holds of a window, with its heap and what is evaluated at a time.
_BYTES_A_WINDOW = 64

# Random streams: the order of evaluation, and the regressions of each map.
_ORDER, _REGRESSIONS = range(2)


@dataclass(frozen=True, eq=False)
class Moves:
    """What may be done to the stripes of a window.

    Attributes
    ----------
    stripes : int
        The stripes of a window.
    layouts : ndarray of int32, shape (S, stripes * m)
        For every move the order that it puts the columns of a window in.
    evaluate : callable
        ``evaluate(X, groups, windows, gains, choices)`` finds the best move of each window, with
        a gain of 0 where none improves; called by several threads at once.
    cost : float
        About how many nanoseconds that takes for a window.
    """

    stripes: int
    layouts: NDArray[np.int32]
    evaluate: Callable[..., None]
    cost: float


@dataclass(eq=False)
class Layer:
    """The stripes of one column order.

    Attributes
    ----------
    X : ndarray of float32, shape (C + 1, R)
        The saliency, a column a row; the last row, of zeros, stands for virtual columns.
    groups : ndarray of int32, shape (G, m)
    values : ndarray of float64, shape (G,)
        What each stripe keeps.
    """

    X: NDArray[np.float32]
    groups: NDArray[np.int32]
    values: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Part:
    """Consecutive stripes of every layer that are searched among themselves.

    Attributes
    ----------
    first, last : int
        The stripes from ``first`` up to before ``last``.
    moves : Moves
    escape_attempts : int
        Regressions to try.
    """

    first: int
    last: int
    moves: Moves
    escape_attempts: int


def start_of(search: Search, method: str) -> Arrangement:
    """Where a search of plain N:M begins; ValueError for any other pattern."""
    if not search.problem.pattern.is_plain:
        raise ValueError(
            f"method {method!r} orders the columns of plain N:M only, not of "
            f"{search.problem.pattern}; use 'assign' or 'gyro'"
        )
    return search.initial or identity_arrangement(search.problem)


def has_moves(problem: Problem) -> bool:
    """Whether any order of the columns can keep more than another."""
    return problem.pattern.n < problem.pattern.m and problem.groups_per_tile > 1


def check_map_size(parts: Iterable[Part], orders: int) -> None:
    """MemoryError, with the figure, if the maps of parts of the search are too large to hold."""
    windows = orders * sum(math.comb(p.last - p.first, p.moves.stripes) for p in parts)
    require(
        _BYTES_A_WINDOW * windows,
        f"a map of {windows} windows (fewer stripes to a window, or fewer columns to a part, make "
        f"it smaller)",
    )


def greedy_search(
    search: Search, start: Arrangement, phases: Iterable[Iterable[Part]]
) -> Arrangement:
    """Search part by part until nothing improves, then from where a regression leads.

    A regression exchanges two random columns of different stripes; the search goes on from
    there, whatever comes of it, and the best that was ever seen is returned.

    Parameters
    ----------
    search : Search
    start : Arrangement
        Of plain N:M.
    phases : iterable of iterables of Part
        One after the other; the parts of a phase share no stripe and take turns.
    """
    if search.stopped():
        return start
    problem = search.problem
    n = problem.pattern.n
    layers = []
    for rows, groups in zip(start.tile_rows, start.groups, strict=True):
        X = tile_columns(problem.search_saliency, rows)
        values = np.empty(len(groups))
        writable = groups.copy()
        group_values(X, writable, n, values)
        layers.append(Layer(X, writable, values))
    search.improve(_retained(layers))
    for number, parts in enumerate(phases):
        if search.stopped():
            break
        maps = [
            _Map(layer, part, n, search.random(_REGRESSIONS, number, o, p))
            for o, layer in enumerate(layers)
            for p, part in enumerate(parts)
        ]
        _run(search, layers, maps, number)
    order = np.stack([layer.groups.reshape(-1) for layer in layers])
    return Arrangement(
        start.tile_rows,
        tuple(layer.groups for layer in layers),
        order[0] if problem.orders == 1 else order,
    )


def _retained(layers: list[Layer]) -> float:
    return math.fsum(float(layer.values.sum()) for layer in layers)


def _run(search: Search, layers: list[Layer], maps: list[_Map], phase: int) -> None:
    """Rounds of evaluation and application until every map has converged, or a stop."""
    active = [one for one in maps if len(one.windows)]
    turn = 0
    while active and not search.stopped():
        random = search.random(_ORDER, phase, turn)
        turn += 1
        counts = [one.prepare(random) for one in active]
        # At random, so that what a stop leaves unknown is spread over all stripes.
        jobs = random.permutation(sum(counts))
        owners = np.repeat(np.arange(len(active)), counts)
        firsts = np.cumsum(counts) - counts
        batch = _JOBS_PER_THREAD * search.threads
        for first in range(0, len(jobs), batch):
            if first and search.stopped():
                break
            part = [(active[owners[j]], j - firsts[owners[j]]) for j in jobs[first : first + batch]]
            parallel_map(lambda job: job[0].evaluate(job[1]), part, search.threads)
        for one in active:
            one.apply(search)
        search.record(_retained(layers))
        active = [one for one in active if one.improved or one.regress()]
    for one in maps:
        one.recall()


class _Map:
    """The best move of every window of a part of a layer."""

    def __init__(self, layer: Layer, part: Part, n: int, random: np.random.Generator) -> None:
        count = part.last - part.first
        self.windows = _combinations(count, part.moves.stripes)
        # Views: what is done to them is done to the layer.
        self._groups = layer.groups[part.first : part.last]
        self._values = layer.values[part.first : part.last]
        self._X = layer.X
        self._n = n
        self._moves = part.moves
        self._job_size = max(1, int(_JOB_NS / part.moves.cost))
        self._pending = np.empty(0, dtype=np.intp)
        self._attempts = part.escape_attempts
        self._random = random
        self._gains = np.zeros(len(self.windows), dtype=np.float32)
        self._choices = np.zeros(len(self.windows), dtype=np.int32)
        self._changed = np.ones(count, dtype=np.bool_)
        self._best = -math.inf
        self._best_groups = self._groups.copy()

    @property
    def improved(self) -> bool:
        """Whether the last round changed anything."""
        return bool(self._changed.any())

    def prepare(self, random: np.random.Generator) -> int:
        """Forget the windows that hold a changed stripe; returns the jobs to evaluate them in."""
        touched = self._changed[self.windows[:, 0]]
        for s in range(1, self.windows.shape[1]):
            touched |= self._changed[self.windows[:, s]]
        self._pending = random.permutation(np.flatnonzero(touched))
        self._gains[self._pending] = 0.0
        self._changed[:] = False
        return math.ceil(len(self._pending) / self._job_size)

    def evaluate(self, job: int) -> None:
        """Find the best moves of the windows of a job."""
        windows = self._pending[job * self._job_size : (job + 1) * self._job_size]
        gains = np.empty(len(windows), dtype=np.float32)
        choices = np.empty(len(windows), dtype=np.int32)
        self._moves.evaluate(self._X, self._groups, self.windows[windows], gains, choices)
        self._gains[windows] = gains
        self._choices[windows] = choices

    def apply(self, search: Search) -> None:
        """Apply the best moves that share no stripe, best first; a stop ends it early."""
        improving = np.flatnonzero(self._gains > 0.0)
        order = improving[np.argsort(-self._gains[improving], kind="stable")]
        done = 0
        while done < len(order):
            if done and search.stopped():
                return
            done = apply_moves(
                self._X,
                self._groups,
                self._values,
                self._n,
                self.windows,
                self._moves.layouts,
                order,
                self._choices,
                self._gains,
                self._changed,
                done,
                _APPLIED,
            )

    def regress(self) -> bool:
        """Exchange two random columns of different stripes; False if no attempt is left."""
        self._remember()
        if not self._attempts:
            return False
        self._attempts -= 1
        m = self._groups.shape[1]
        first, second = self._random.choice(len(self._groups), 2, replace=False)
        i, j = self._random.integers(m, size=2)
        column = self._groups[first, i]
        self._groups[first, i] = self._groups[second, j]
        self._groups[second, j] = column
        self._changed[[first, second]] = True
        self._revalue()
        return True

    def recall(self) -> None:
        """Go back to the best that was ever seen."""
        self._remember()
        self._groups[:] = self._best_groups
        self._revalue()

    def _remember(self) -> None:
        value = float(self._values.sum())
        if value > self._best:
            self._best = value
            self._best_groups = self._groups.copy()

    def _revalue(self) -> None:
        group_values(self._X, self._groups, self._n, self._values)


def _combinations(count: int, size: int) -> NDArray[np.int32]:
    """Every choice of ``size`` out of ``count``, each ascending, (count choose size, size)."""
    result = np.arange(count, dtype=np.int32).reshape(-1, 1)
    for _ in range(size - 1):
        # Before each choice, every number below its first.
        firsts = result[:, 0]
        before = np.repeat(np.cumsum(firsts) - firsts, firsts)
        added = np.arange(len(before)) - before
        result = np.column_stack([added.astype(np.int32), np.repeat(result, firsts, axis=0)])
    return np.ascontiguousarray(result)
