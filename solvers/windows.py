"""Windows of a column order that all tiles share: V:N:M and vector N:M."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gyroperm.arrangement import Arrangement
from gyroperm.problem import Problem
from gyroperm.solvers.columns import Cell, arrange_columns, make_cell, tile_columns
from gyroperm.solvers.cooling import Thermostat, gumbel_noise
from gyroperm.solvers.exact_rows import exchange_rows
from gyroperm.solvers.identity import identity_arrangement
from gyroperm.solvers.kernels.windows import choose_again, window_moves
from gyroperm.solvers.parallel import parallel_map
from gyroperm.solvers.rows import arrange_rows
from gyroperm.solvers.scores import Scores
from gyroperm.solvers.search import Search
from gyroperm.solvers.vectors import (
    choose_vectors,
    columns_as_they_lie,
    rows_as_they_lie,
    vector_scores,
)

if TYPE_CHECKING:
    from gyroperm.solvers.assign import AssignOptions

# Rows and windows of a shared order depend on each other: they are arranged in turns.
_TURNS = 2
# A kernel call takes so many moves as fit in about 10 ms: long enough to hide the call and what
# else a round does, short enough to look at the clock.
_CALL_NS = 10_000_000
_MAX_MOVES = 128
# Jobs between two looks at the clock, for each thread.
_BATCH = 4

# Random streams, so that no phase shifts the numbers of another.
_ROWS, _WINDOWS, _EXACT = range(3)


def arrange_windows(search: Search, options: AssignOptions) -> Arrangement:
    """Arrange rows in tiles and columns in windows, and choose the vectors of each.

    Where n < m by what is kept, counted exactly. Where n = m whole vectors are kept: with the
    rows fixed, choosing the best ``kept`` of each window of M columns for every tile is plain
    kept:M on the tiles' scores, (T, C).

    Parameters
    ----------
    search : Search
    options : AssignOptions
    """
    if search.problem.pattern.n == search.problem.pattern.m:
        return _by_scores(search, options)
    start = search.initial or identity_arrangement(search.problem)
    return _count_kept(search, options, start)


def _by_scores(search: Search, options: AssignOptions) -> Arrangement:
    """Arrange rows and the shared order in turns; the best turn's vectors of the largest sums."""
    problem = search.problem
    scores = Scores.of(problem.search_saliency, 1.0)
    anneal = options.anneal and search.initial is None
    tile_rows, order = rows_as_they_lie(problem), columns_as_they_lie(problem)
    if search.initial is not None:
        # Copies: kernels are compiled for writable arrays, those of an arrangement are not.
        assert search.initial.col_order is not None
        tile_rows, order = search.initial.tile_rows.copy(), search.initial.col_order.copy()
    best: tuple[float, Arrangement] | None = None
    turns = _TURNS if anneal else 1
    for turn in range(turns):
        # The phases that are left share what is left.
        left = 2 * (turns - turn)
        tile_rows = arrange_rows(
            search,
            scores,
            tile_rows,
            order,
            phase=options.row_phase(search, 1.0 / left, anneal=anneal),
            patience=options.row_patience,
            stream=4 * turn + _ROWS,
        )
        cells = _window_cells(problem, scores.sums(tile_rows), order)
        arrange_columns(
            search,
            cells,
            problem.pattern.kept_per_window,
            phase=options.column_phase(search, 1.0 / (left - 1), anneal=anneal),
            patience=options.patience,
            block_groups=options.block_groups,
            stream=4 * turn + _WINDOWS,
            records=False,
        )
        order = np.stack([cell.groups.reshape(-1) for cell in cells]).reshape(order.shape)
        found = _chosen(problem, tile_rows, order)
        if best is None or found[0] > best[0]:
            best = found
        search.improve(best[0])
    assert best is not None
    return best[1]


def _chosen(
    problem: Problem, tile_rows: NDArray[np.int32], order: NDArray[np.int32]
) -> tuple[float, Arrangement]:
    """The vectors of the largest sums in every window, and what they keep."""
    summed = vector_scores(problem.search_saliency, tile_rows)
    chosen = choose_vectors(problem, summed, order)
    value = sum(float(row[c[c >= 0]].sum()) for row, c in zip(summed, chosen, strict=True))
    groups = tuple(columns.reshape(-1, problem.pattern.m) for columns in chosen)
    return value, Arrangement(tile_rows, groups, order)


def _window_cells(
    problem: Problem, scores: NDArray[np.float64], order: NDArray[np.int32]
) -> list[Cell]:
    """One cell for each shared order: its windows are groups, its tiles' scores are rows."""
    assert problem.pattern.window is not None
    cells = []
    for o, columns in enumerate(np.atleast_2d(order)):
        mine = scores[problem.tile_order == o]
        groups = columns.reshape(-1, problem.pattern.window)
        scaled = np.ldexp(mine, -int(np.frexp(mine.max())[1]))
        cells.append(
            make_cell(scaled.astype(np.float32), np.arange(len(mine), dtype=np.int32), groups)
        )
    return cells


def _count_kept(search: Search, options: AssignOptions, start: Arrangement) -> Arrangement:
    """Move rows and columns by what is kept, counted exactly, from a start; never ends below."""
    anneal = options.anneal and search.initial is None
    layer = _Layer(search, start, options.block_groups)
    if not layer.choose():
        return start
    row_phase = options.row_phase(search, 1.0, anneal=anneal)
    column_phase = options.joint_column_phase(search, 1.0, anneal=anneal)
    stale = 0
    while layer.can_move and stale < options.row_patience:
        row_target, target = row_phase.next_target(), column_phase.next_target()
        if row_target is None or target is None:
            break
        before = layer.value
        layer.move_rows(row_target)
        moves = layer.move_columns(target)
        if not layer.choose():
            break
        search.record(layer.value)
        stale = stale + moves if target == 0.0 and layer.value <= before else 0
    return layer.best()


@dataclass(eq=False)
class _ColumnJob:
    """Windows of one order between which columns move, and what the order's tiles choose."""

    order: int
    of_tiles: NDArray[np.intp]
    chosen: NDArray[np.intp]
    X: NDArray[np.float32]
    windows: NDArray[np.int32]
    choice: NDArray[np.int32]
    state: NDArray[np.uint64]
    moved: int = 0
    released: int = 0

    def run(self, n: int, temperature: float, noise: NDArray[np.float32]) -> None:
        T, B, m = self.choice.shape
        V = self.X.shape[2]
        # A gain costs V / 15 ns and a little, and what remains of the choices is looked at first.
        moves = _moves(T * B * m * (B * (V / 15 + 2) + V / 4))
        _, self.moved = window_moves(
            self.X, self.windows, self.choice, n, moves, temperature, noise, self.state
        )
        self.released = moves * B


def _moves(cost: float) -> int:
    """The moves of a call whose moves cost so many nanoseconds, the same on any machine."""
    return min(_MAX_MOVES, max(1, int(_CALL_NS / cost)))


class _Layer:
    """The tiles, windows and choices of a layer, and the best they have been."""

    def __init__(self, search: Search, start: Arrangement, block_windows: int) -> None:
        problem = search.problem
        window = problem.pattern.window
        assert window is not None and start.col_order is not None
        self._search = search
        self._problem = problem
        self._block_windows = block_windows
        self._tile_rows = start.tile_rows.copy()
        order = start.col_order.reshape(problem.orders, -1, window)
        # Rows of X: its last stands for the virtual columns.
        self._windows = np.where(order >= 0, order, problem.columns).astype(np.int32)
        self._choice = _positions(order[problem.tile_order], np.stack(start.groups))
        self._X = np.stack([tile_columns(problem.search_saliency, r) for r in self._tile_rows])
        self._noise = gumbel_noise()
        self._row_thermostat, self._column_thermostat = Thermostat(), Thermostat()
        self._round = 0
        self._best: tuple[float, Arrangement] | None = None
        self.value = 0.0

    @property
    def can_move(self) -> bool:
        """Whether any exchange can change what is kept."""
        _, W, M = self._windows.shape
        return W > 1 or self._problem.pattern.m < M

    def move_rows(self, target: float) -> None:
        """Move rows between tiles until that share of them goes elsewhere; 0 only descends."""
        S = self._problem.search_saliency
        groups = _taken(self._windows[self._problem.tile_order], self._choice)
        before = self._tile_rows.copy()
        stream = _EXACT, 0, self._round
        thermostat = self._row_thermostat
        exchange_rows(self._search, self._tile_rows, groups, thermostat, target, stream)
        for t, v in zip(*np.nonzero(before != self._tile_rows), strict=True):
            row = self._tile_rows[t, v]
            self._X[t, :-1, v] = S[row] if row >= 0 else 0.0

    def move_columns(self, target: float) -> int:
        """Move columns between windows until that share of them goes elsewhere; counts moves."""
        random = self._search.random(_EXACT, 1, self._round)
        self._round += 1
        jobs = []
        for o, windows in enumerate(self._windows):
            tiles = np.flatnonzero(self._problem.tile_order == o)
            X = self._X[tiles[0] : tiles[-1] + 1]
            count = -(-len(windows) // self._block_windows)
            for chosen in np.array_split(random.permutation(len(windows)), count):
                state = random.integers(0, 2**64, size=1, dtype=np.uint64)
                choice = self._choice[np.ix_(tiles, chosen)]
                jobs.append(_ColumnJob(o, tiles, chosen, X, windows[chosen], choice, state))
        thermostat = self._column_thermostat
        warm = thermostat.temperature if target > 0.0 else 0.0
        n = self._problem.pattern.n
        self._run([partial(job.run, n, warm, self._noise) for job in jobs])
        for job in jobs:
            thermostat.count(job.moved, job.released)
            self._windows[job.order, job.chosen] = job.windows
            self._choice[np.ix_(job.of_tiles, job.chosen)] = job.choice
        thermostat.steer(target)
        return min(job.released // len(job.chosen) for job in jobs)

    def choose(self) -> bool:
        """Let every tile choose anew; counts what is kept unless stopped meanwhile."""
        values = np.zeros(self._problem.tiles)

        def choose(t: int) -> None:
            windows = self._windows[self._problem.tile_order[t]]
            n = self._problem.pattern.n
            values[t] = choose_again(self._X[t], windows, self._choice[t], n)

        if not self._run([partial(choose, t) for t in range(self._problem.tiles)]):
            return False
        self.value = float(values.sum())
        if self._best is None or self.value > self._best[0]:
            self._best = self.value, self._arrangement()
        return True

    def best(self) -> Arrangement:
        """The arrangement that has kept the most; annealing may have left it."""
        assert self._best is not None
        return self._best[1]

    def _run(self, jobs: list[Callable[[], None]]) -> bool:
        """Run jobs on all threads; returns whether all were run before the search was stopped."""
        batch = _BATCH * self._search.threads
        for first in range(0, len(jobs), batch):
            if first and self._search.stopped():
                return False
            parallel_map(lambda job: job(), jobs[first : first + batch], self._search.threads)
        return True

    def _arrangement(self) -> Arrangement:
        problem = self._problem
        order = np.where(self._windows < problem.columns, self._windows, -1)
        windows = order[problem.tile_order]
        groups = _taken(windows, _real_first(windows, self._choice))
        shape = (problem.orders, -1) if problem.orders > 1 else -1
        return Arrangement(self._tile_rows, tuple(groups), order.reshape(shape))


def _taken(windows: NDArray[np.int32], choice: NDArray[np.int32]) -> NDArray[np.int32]:
    """The columns at the positions that each tile keeps, (T, W, m)."""
    return np.take_along_axis(windows, choice, axis=2)


def _positions(windows: NDArray[np.int32], groups: NDArray[np.int32]) -> NDArray[np.int32]:
    """Where in its window each kept column is, (T, W, m); virtual ones at virtual positions."""
    places = (windows[:, :, None, :] == groups[..., None]).argmax(axis=3).astype(np.int32)
    for t, w in zip(*np.nonzero((groups < 0).any(axis=2)), strict=True):
        slots = np.flatnonzero(groups[t, w] < 0)
        places[t, w, slots] = np.flatnonzero(windows[t, w] < 0)[: len(slots)]
    return places


def _real_first(windows: NDArray[np.int32], choice: NDArray[np.int32]) -> NDArray[np.int32]:
    """Choices in which no virtual column, worth as much as one of zeros, has a real one's place."""
    choice = choice.copy()
    for t, w in zip(*np.nonzero((windows < 0).any(axis=2)), strict=True):
        real = windows[t, w] >= 0
        slots = np.flatnonzero(~real[choice[t, w]])
        spare = np.setdiff1d(np.flatnonzero(real), choice[t, w])
        count = min(len(slots), len(spare))
        choice[t, w, slots[:count]] = spare[:count]
    return choice
