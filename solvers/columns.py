"""Input-channel permutation: columns into groups, with a pool of discarded ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from gyroperm.problem import Problem
from gyroperm.solvers.cooling import Phase, Thermostat, gumbel_noise
from gyroperm.solvers.kernels.grouping import assignment_moves, group_values
from gyroperm.solvers.parallel import parallel_map
from gyroperm.solvers.search import Search
from gyroperm.solvers.vectors import rows_of

# A kernel call takes so many moves as fit in about 3 ms: long enough to hide the call, short
# enough to look at the clock. A gain costs V / 30 ns, its part of the assignment about 2 ns.
_CALL_NS = 3_000_000
_MIN_MOVES, _MAX_MOVES = 2, 256
# Rows that are transposed together.
_STRIP = 64
# Jobs between two looks at the clock, for each thread.
_BATCH = 16
# Gains are kept from move to move where computing them takes longer than looking them up, and
# only if all fit in 64 MiB.
_ROWS_TO_KEEP = 96
_KNOWN_GAINS = 1 << 24
# Columns of a pool whose square sum is below this part of the least that would be kept by it are
# offered in one sweep of so many only: after long searches no tile kept a column below 0.88.
_UNLIKELY, _WHOLE_POOL = 0.8, 10
# With time for fewer moves of every group, descending alone keeps more than annealing.
_WORTH_ANNEALING = 1000
# Against a clock, sweeps begin with calls and blocks of this size, or with blocks of this part of
# all groups, and grow where a sweep takes little of a phase, or shrink where it takes much.
_FIRST_CALL_NS, _FIRST_BLOCK, _FIRST_PART = 300_000, 96, 6
_FAST_ENOUGH, _TOO_SLOW = 0.025, 0.08


@dataclass(eq=False)
class Cell:
    """The columns of one tile: what is grouped, and what is left over.

    Attributes
    ----------
    X : ndarray of float32, shape (C + 1, V)
        The tile's saliency, a column a row; the last row, of zeros, stands for virtual columns.
    groups : ndarray of int32, shape (G, m)
    pool : ndarray of int32, shape (D,)
        The discarded columns.
    """

    X: NDArray[np.float32]
    groups: NDArray[np.int32]
    pool: NDArray[np.int32]
    stale: int = 0
    value: float = 0.0
    thermostat: Thermostat = field(default_factory=Thermostat)
    known: NDArray[np.float32] = field(init=False)
    fresh: NDArray[np.bool_] = field(init=False)
    _best: tuple[float, NDArray[np.int32], NDArray[np.int32]] | None = None
    # How many columns were kept when it was settled which others are likely, and which.
    _likely: tuple[int, NDArray[np.bool_]] | None = None

    def __post_init__(self) -> None:
        self._keep(0)

    def _keep(self, groups: int) -> None:
        m, columns = self.groups.shape[1], len(self.X)
        self.known = np.empty((groups, m, columns), dtype=np.float32)
        self.fresh = np.zeros((groups, m), dtype=np.bool_)

    def keep_gains(self) -> None:
        """Make room for the gains of all columns at all places."""
        self._keep(len(self.groups))

    def offered(self, sweep: int) -> NDArray[np.intp]:
        """The places of the pool whose columns a sweep offers: most of the time the likely ones.

        Which columns are worth keeping is nearly settled by the squares of their saliencies, which
        count the large ones, those that survive n of m, for more.
        """
        if sweep % _WHOLE_POOL == _WHOLE_POOL - 1 or not len(self.pool):
            return np.arange(len(self.pool))
        if self._likely is None or self._likely[0] != self.groups.size:
            self._likely = self.groups.size, self._likely_columns()
        return np.flatnonzero(self._likely[1][self.pool])

    def _likely_columns(self) -> NDArray[np.bool_]:
        squares = np.einsum("cr,cr->c", self.X, self.X)
        least = np.partition(squares, -self.groups.size)[-self.groups.size]
        likely: NDArray[np.bool_] = squares >= _UNLIKELY * least
        return likely

    def gains_to_keep(
        self, chosen: NDArray[np.intp], spare: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Where the next moves of the chosen groups keep the gains they compute, if that pays.

        Each change of a group makes the gains of its m places stale, for all columns; computing
        anew takes only the candidates of one place of every group.
        """
        G, m = len(chosen), self.groups.shape[1]
        changes = self.thermostat.share * G
        if len(self.known) == 0:
            return self.known, self.fresh
        if changes * m * len(self.X) < G * (G + spare):
            return self.known, self.fresh
        self.fresh[chosen] = False
        return self.known[:0], self.fresh[:0]

    def remember(self) -> None:
        """Keep a copy of the columns if they have never kept more; annealing may leave them."""
        if self._best is None or self.value > self._best[0]:
            self._best = self.value, self.groups.copy(), self.pool.copy()

    def recall(self) -> None:
        """Go back to the best columns remembered."""
        if self._best is not None and self._best[0] > self.value:
            self.value, self.groups, self.pool = self._best
            self.fresh[:] = False
        self._best = None


def tile_columns(saliency: NDArray[np.float32], rows: NDArray[np.int32]) -> NDArray[np.float32]:
    """The saliency of a tile as the kernels take it: (C + 1, V), virtual rows and columns zero."""
    return _transposed(partial(rows_of, saliency), saliency.shape[1], rows)


def search_columns(
    problem: Problem, rows: NDArray[np.int32], threads: int = 1
) -> NDArray[np.float32]:
    """The same of a problem, whose saliency in the search's scale need not be in memory."""
    return _transposed(problem.search_rows, problem.columns, rows, threads)


def _transposed(
    rows_named: Callable[[NDArray[np.int32]], NDArray[np.float32]],
    columns: int,
    rows: NDArray[np.int32],
    threads: int = 1,
) -> NDArray[np.float32]:
    X = np.zeros((columns + 1, len(rows)), dtype=np.float32)

    # In strips: a transposition of the whole misses the cache at every entry.
    def transpose(first: int) -> None:
        strip = rows[first : first + _STRIP]
        X[:-1, first : first + _STRIP] = rows_named(strip).T

    parallel_map(transpose, range(0, len(rows), _STRIP), threads)
    return X


def make_cell(
    saliency: NDArray[np.float32], rows: NDArray[np.int32], groups: NDArray[np.int32]
) -> Cell:
    """The cell of a tile that starts from given groups; all other columns are its pool."""
    return _cell(tile_columns(saliency, rows), groups)


def make_cells(
    problem: Problem,
    tile_rows: NDArray[np.int32],
    groups: Sequence[NDArray[np.int32]],
    threads: int,
) -> list[Cell]:
    """The cells of all tiles of a problem; together they are as large as its saliency."""
    # A single tile is large where there is no other.
    inner = threads if len(tile_rows) == 1 else 1
    return parallel_map(
        lambda tile: _cell(search_columns(problem, tile[0], inner), tile[1]),
        zip(tile_rows, groups, strict=True),
        threads,
    )


def _cell(X: NDArray[np.float32], groups: NDArray[np.int32]) -> Cell:
    pool = np.setdiff1d(np.arange(len(X) - 1, dtype=np.int32), groups.reshape(-1))
    return Cell(X, np.array(groups, order="C"), pool)


def arrange_columns(
    search: Search,
    cells: list[Cell],
    n: int,
    *,
    phase: Phase,
    patience: int,
    block_groups: int,
    stream: int,
    records: bool = True,
) -> None:
    """Regroup, and choose anew, the columns of every cell in place, so that more is kept.

    Annealed assignment moves, then descent until a cell has brought nothing for ``patience``
    moves. In a sweep the groups and the pool of each cell are dealt at random into blocks of
    at most ``block_groups`` groups, which are independent: they run on all threads, and a sweep
    costs ``V * C * block_groups / m`` operations a cell and move.

    Parameters
    ----------
    search : Search
    cells : list of Cell
        Changed in place.
    n : int
        How many of each group of m each row keeps.
    phase : Phase
        Its share of the search, and how much moves when.
    patience, block_groups : int
    stream : int
        Names the random stream.
    records : bool
        Whether the cells' values add up to the retained saliency, in the search's scale.
    """
    noise = gumbel_noise()
    index = {id(cell): c for c, cell in enumerate(cells)}
    active = [cell for cell in cells if len(cell.groups) and _can_move(cell, n)]
    for cell in cells:
        cell.value = groups_value(cell.X, cell.groups, n)
        cell.stale = 0
        cell.remember()
    if sum(cell.groups.size * len(cell.X) for cell in active) <= _KNOWN_GAINS:
        for cell in active:
            if cell.X.shape[1] >= _ROWS_TO_KEEP:
                cell.keep_gains()
    sweep = 0
    most = max((len(cell.groups) for cell in active), default=0)
    size = _SweepSize(block_groups, phase.timed, most)
    moves, total = 0, sum(len(cell.groups) for cell in active)
    while active and (target := phase.next_target()) is not None:
        ends = target == 0.0
        if phase.timed and moves < _WORTH_ANNEALING * phase.used * total:
            target = 0.0 if any(cell.stale < patience for cell in active) else target
        size.follow(phase.pace if target > 0.0 else 0.0)
        jobs = [
            job
            for cell in active
            for job in _deal(cell, size, sweep, search.random(stream, 1, index[id(cell)], sweep))
        ]
        done = _run(search, jobs, n, target > 0.0, noise)
        _collect(done)
        moves += sum(job.released for job in done)
        for cell in active:
            cell.thermostat.steer(target)
        sweep += 1
        for cell in active:
            cell.remember()
        search.record(sum(cell.value for cell in cells) if records else None)
        if ends:
            active = [cell for cell in active if cell.stale < patience]
    for cell in cells:
        cell.recall()


def _run(
    search: Search, jobs: list[_Job], n: int, annealed: bool, noise: NDArray[np.float32]
) -> list[_Job]:
    """Run jobs on all threads; returns those that were run before the search was stopped."""
    batch = _BATCH * search.threads
    for first in range(0, len(jobs), batch):
        if first and search.stopped():
            return jobs[:first]
        part = jobs[first : first + batch]
        parallel_map(lambda job: job.run(n, annealed, noise), part, search.threads)
    return jobs


def begins_in_one_block(groups: int, block_groups: int) -> bool:
    """Whether a sweep against a clock begins with all groups in one block, on one thread."""
    return groups <= min(block_groups, _FIRST_BLOCK)


class _SweepSize:
    """How much a sweep does: the groups of a block and the length of a kernel call.

    The larger the blocks the better the outcome of long searches, but against a clock there must
    be time for enough sweeps.

    Attributes
    ----------
    block : int
    call_ns : float
    """

    def __init__(self, largest: int, timed: bool, groups: int) -> None:
        self._largest, self._timed = largest, timed
        self._first = min(largest, max(_FIRST_BLOCK, groups // _FIRST_PART))
        self.block = self._first if timed else largest
        self.call_ns = _FIRST_CALL_NS if timed else _CALL_NS

    def follow(self, pace: float) -> None:
        """Grow or shrink by the part of the phase that the last sweep took, nan if unknown.

        A descent needs no number of sweeps: for it that part is 0.
        """
        if not self._timed:
            return
        if pace > _TOO_SLOW:
            if self.block > self._first:
                self.block = max(self._first, self.block // 2)
            else:
                self.call_ns = max(_FIRST_CALL_NS, self.call_ns // 2)
        elif pace < _FAST_ENOUGH:
            if self.call_ns < _CALL_NS:
                self.call_ns = min(_CALL_NS, 2 * self.call_ns)
            else:
                self.block = min(self._largest, 2 * self.block)


def _can_move(cell: Cell, n: int) -> bool:
    """Whether any exchange can change what is kept."""
    G, m = cell.groups.shape
    return len(cell.pool) > 0 or (G > 1 and n < m)


def groups_value(X: NDArray[np.float32], groups: NDArray[np.int32], n: int) -> float:
    """The saliency that groups of the columns of :func:`tile_columns` keep, in float64."""
    values = np.empty(len(groups))
    group_values(X, groups, n, values)
    return float(values.sum())


@dataclass(eq=False)
class _Job:
    """A block of a cell's groups and its part of the pool, moved on its own."""

    cell: Cell
    chosen: NDArray[np.intp]
    groups: NDArray[np.int32]
    pool_places: NDArray[np.intp]
    pool: NDArray[np.int32]
    state: NDArray[np.uint64]
    call_ns: int
    moved: int = 0
    released: int = 0
    stale_moves: int = 0
    gained: float = 0.0

    def run(self, n: int, annealed: bool, noise: NDArray[np.float32]) -> None:
        G = len(self.groups)
        before = groups_value(self.cell.X, self.groups, n) if annealed else 0.0
        cost = G * (G + min(G, len(self.pool))) * (self.cell.X.shape[1] / 30 + 2)
        moves = min(_MAX_MOVES, max(_MIN_MOVES, int(self.call_ns / cost)))
        known, fresh = self.cell.gains_to_keep(self.chosen, len(self.pool))
        self.gained, stale, self.moved = assignment_moves(
            self.cell.X,
            self.groups,
            self.pool,
            n,
            moves,
            self.cell.thermostat.temperature if annealed else 0.0,
            noise,
            self.chosen,
            known,
            fresh,
            self.state,
        )
        self.released = moves * G
        # Whether the whole call brought nothing, and how long that call was.
        self.stale_moves = moves if stale >= moves else 0
        if annealed:
            self.gained = groups_value(self.cell.X, self.groups, n) - before


def _deal(cell: Cell, size: _SweepSize, sweep: int, random: np.random.Generator) -> list[_Job]:
    G = len(cell.groups)
    count = -(-G // size.block)
    # In pairs: of three blocks one would be left to one thread alone.
    count += count > 1 and count % 2
    groups = np.array_split(random.permutation(G), count)
    pools = np.array_split(random.permutation(cell.offered(sweep)), count)
    states = random.integers(0, 2**64, size=(count, 1), dtype=np.uint64)
    return [
        _Job(cell, chosen, cell.groups[chosen], places, cell.pool[places], state, size.call_ns)
        for chosen, places, state in zip(groups, pools, states, strict=True)
    ]


def _collect(jobs: list[_Job]) -> None:
    """Take over what the jobs of a sweep did."""
    for cell, mine in groupby(jobs, key=lambda job: job.cell):
        done = list(mine)
        for job in done:
            cell.groups[job.chosen] = job.groups
            cell.pool[job.pool_places] = job.pool
            cell.value += job.gained
            cell.thermostat.count(job.moved, job.released)
        fewest = min(job.stale_moves for job in done)
        cell.stale = cell.stale + fewest if fewest else 0
