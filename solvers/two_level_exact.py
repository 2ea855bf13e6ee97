"""Small two-level problems to proven optimality, by sets of rows and sets of columns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from itertools import combinations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ortools.sat.python import cp_model

from gyroperm.arrangement import Arrangement
from gyroperm.measures import ROUNDING, reference, retained
from gyroperm.problem import Problem
from gyroperm.solvers import registry
from gyroperm.solvers.identity import identity_arrangement
from gyroperm.solvers.kernels.packing import choose_in_windows, pack_groups, value_groups
from gyroperm.solvers.parallel import parallel_map
from gyroperm.solvers.search import Search
from gyroperm.stopping import SearchState

# What CP-SAT and a list of tilings hold, and what the kernels enumerate in a minute or two.
MOST_CANDIDATES = 200_000
MOST_STEPS = 50_000_000_000
MOST_PAIRS = 20_000_000
# Sets of columns are tables of 2^columns entries.
MOST_COLUMNS = 24
# CP-SAT's values are integers; all of them together stay below this.
_TOTAL_BITS = 46
_POLL_SECONDS = 0.05
# Steps between two looks at the clock: some tens of milliseconds.
_BATCH_STEPS = 10_000_000


def solve_two_level(search: Search) -> tuple[Arrangement, float]:
    """Solve a small problem of HiNM, V:N:M, vector N:M or TVW to proven optimality.

    What a tile keeps depends on its own rows alone (and on windows that all tiles share), so
    every set of rows that may be a tile is a candidate. Where tiles order their own columns, a
    candidate's best groups are found by dynamic programming over sets of columns, and which
    candidates partition the rows is a set partitioning, for CP-SAT. Where windows are shared,
    the tilings are taken in the order of what they keep if each tile had windows of its own,
    an upper bound; the best shared windows of each are found in the same way as groups, until
    no bound is above the best. Sets have no order, so no symmetry is left to break.

    Parameters
    ----------
    search : Search
        The answer of ``assign`` is where CP-SAT begins, unless ``initial`` is given.

    Returns
    -------
    Arrangement
        Optimal, unless the search was stopped.
    float
        A proven upper bound of what any arrangement keeps, in the scale of
        ``problem.search_saliency`` and of the saliency as it was given (not as rounded to
        float32); stopped before the end, the best bound until then.

    Raises
    ------
    ValueError
        If the pattern is plain N:M, or there is too much to enumerate: the message says how much
        there is and how much would be accepted.
    """
    problem = search.problem
    if problem.pattern.is_plain:
        raise ValueError(f"two-level problems alone are solved here, got plain {problem.pattern}")
    steps = _checked_steps(problem)
    exponent = int(np.frexp(float(problem.saliency.max()))[1])
    if search.stopped() or not problem.saliency.any():
        start = search.initial or identity_arrangement(problem)
        return start, _cheap_bound(problem, start, exponent)
    start = search.initial or _assigned(search)
    S = np.ldexp(problem.saliency.astype(np.float64), -exponent)
    model = (_WindowModel if problem.pattern.window is not None else _TileModel)(problem, S)
    if not model.value_candidates(search, max(1, _BATCH_STEPS // steps)):
        return start, _cheap_bound(problem, start, exponent)
    found, bound = model.solve(search, start)
    if found is None or retained(S, found.mask(S, problem.pattern.n)) < retained(
        S, start.mask(S, problem.pattern.n)
    ):
        found = start
    return found, min(bound, _cheap_bound(problem, start, exponent))


def _assigned(search: Search) -> Arrangement:
    method = registry.get("assign")

    def stop(_: SearchState) -> bool:
        return search.stopped()

    within = Search(search.problem, seed=search.seed, threads=search.threads, stop=stop)
    return method.solve(within, method.make_options(None))


def _cheap_bound(problem: Problem, start: Arrangement, exponent: int) -> float:
    """The unstructured bound, in the search's scale."""
    mask = start.mask(problem.saliency, problem.pattern.n)
    return math.ldexp(reference(problem, mask).bound, -exponent)


# --- How large it is -------------------------------------------------------------------------


def _subset_sizes(count: int, size: int) -> range:
    """The sizes of one of ``ceil(count / size)`` sets: some may be short of what is missing."""
    return range(max(1, size - -count % size), size + 1)


def _tiling_count(rows: int, size: int) -> int:
    """The number of ways to split rows into tiles, virtual rows alike."""

    @cache
    def ways(rows: int, tiles: int) -> int:
        if tiles == 0:
            return int(rows == 0)
        sizes = (s for s in lengths if s <= rows)
        return sum(math.comb(rows - 1, s - 1) * ways(rows - s, tiles - 1) for s in sizes)

    lengths = _subset_sizes(rows, size)
    return ways(rows, -(-rows // size))


def _checked_steps(problem: Problem) -> int:
    """The steps to value one tile; ValueError if all that is enumerated is too much."""
    pattern = problem.pattern
    columns, V = problem.padded_columns, problem.tile_size
    if columns > MOST_COLUMNS:
        raise ValueError(
            f"an exact solution of {pattern} is limited to {MOST_COLUMNS} columns, this matrix "
            f"has {columns}"
        )
    tiles = sum(math.comb(r, s) for r in problem.kept_rows for s in _subset_sizes(r, V))
    unit, most = pattern.window or pattern.m, _most_groups(problem)
    packing = sum(
        math.comb(columns, k * unit) * math.comb(k * unit - 1, unit - 1) * unit
        for k in range(1, most + 1)
    )
    valuing = math.comb(columns, unit) * unit * V
    candidates, kind = tiles, "sets of rows"
    if pattern.window is not None:
        kept = pattern.kept_per_window
        valuing *= math.comb(unit, kept)
        kind = "ways to split the rows into tiles"
        counts = [_tiling_count(rows, V) for rows in problem.kept_rows]
        candidates = sum(counts) if problem.orders > 1 else math.prod(counts)
    elif pattern.allocation == "global":
        candidates, kind = tiles * (most + 1), "sets of rows with a number of groups each"
    steps = tiles * (valuing + packing)
    pairs = 0
    if pattern.window is not None:
        pairs = tiles * math.comb(columns, unit)
        steps += candidates * (packing + math.comb(columns, unit))
    for number, limit, what in (
        (candidates, MOST_CANDIDATES, kind),
        (pairs, MOST_PAIRS, "pairs of a tile and a window"),
        (steps, MOST_STEPS, "steps"),
    ):
        if number > limit:
            raise ValueError(
                f"the problem is too large for an exact solution of {pattern}: it has {number:.3g} "
                f"{what}, at most {limit:.3g} are accepted"
            )
    return valuing + packing


def _most_groups(problem: Problem) -> int:
    """The most groups that a tile keeps; of a windowed pattern, the windows."""
    if problem.pattern.window is not None:
        return problem.padded_columns // problem.pattern.window
    if problem.pattern.allocation == "global":
        return min(problem.total_groups, problem.padded_columns // problem.pattern.m)
    return problem.groups_per_tile


# --- Candidates ------------------------------------------------------------------------------


class _Packing:
    """Disjoint sets of ``unit`` columns that keep the most; see ``pack_groups``."""

    def __init__(self, columns: int, unit: int, most: int) -> None:
        self.columns = columns
        self.unit = unit
        self.most = most
        self.sets = np.array(list(combinations(range(columns), unit)), dtype=np.int32)
        self.keys = (np.int64(1) << self.sets.astype(np.int64)).sum(axis=1)
        ways = [[0]]
        choices: list[list[tuple[int, ...]]] = [[]]
        for k in range(1, most + 1):
            ways.append([sum(1 << c for c in s) for s in combinations(range(columns), k * unit)])
            choices.append(list(combinations(range(k * unit - 1), unit - 1)))
        self._levels = np.array([s for level in ways for s in level], dtype=np.int64)
        self._starts = np.cumsum([0, *map(len, ways)])
        every = [c for level in choices for c in level]
        self._choices = np.array(every, dtype=np.int64).reshape(len(every), unit - 1)
        self._choice_starts = np.cumsum([0, *map(len, choices)])

    def pack(
        self, set_kept: NDArray[np.float64], count: int | None = None
    ) -> tuple[NDArray[np.float64], list[list[int]]]:
        """What 0, 1, ... sets keep at most, and the best ``count`` sets, given each set's value.

        ``set_kept``, shape (2^C,), is by the columns of the set as bits.
        """
        kept = np.empty(1 << self.columns)
        last = np.empty(1 << self.columns, dtype=np.int64)
        best = np.empty(self.most + 1)
        pack_groups(
            set_kept,
            self._levels,
            self._starts,
            self._choices,
            self._choice_starts,
            kept,
            last,
            best,
        )
        if not count:
            return best, []
        level = self._levels[self._starts[count] : self._starts[count + 1]]
        left = int(level[np.argmax(kept[level])])
        found = []
        for _ in range(count):
            lead = int(last[left])
            found.append([c for c in range(self.columns) if lead >> c & 1])
            left ^= lead
        return best, found


class _Model:
    """Candidate tiles: the sets of rows of each block that may be one.

    Parameters
    ----------
    problem : Problem
    S : ndarray of float64, shape (R, C)
        The saliency in the search's scale.
    """

    def __init__(self, problem: Problem, S: NDArray[np.float64]) -> None:
        self.problem = problem
        self.S = S
        self.tiles: list[NDArray[np.int32]] = []
        self.block: list[int] = []
        for b, rows in enumerate(problem.block_rows):
            for size in _subset_sizes(len(rows), problem.tile_size):
                for chosen in combinations(rows.tolist(), size):
                    self.tiles.append(np.array(chosen, dtype=np.int32))
                    self.block.append(b)
        self.index = {tuple(rows.tolist()): i for i, rows in enumerate(self.tiles)}
        unit = problem.pattern.window or problem.pattern.m
        self.packing = _Packing(problem.padded_columns, unit, _most_groups(problem))

    def value_candidates(self, search: Search, batch: int) -> bool:
        """Value every candidate; whether that was done before the search was stopped."""
        for first in range(0, len(self.tiles), batch):
            if search.stopped():
                return False
            some = range(first, min(first + batch, len(self.tiles)))
            parallel_map(self.value_tile, some, search.threads)
        return True

    def value_tile(self, i: int) -> None:
        """Value candidate tile ``i``."""
        raise NotImplementedError

    def solve(self, search: Search, start: Arrangement) -> tuple[Arrangement | None, float]:
        """The best arrangement found, if any, and a bound of all."""
        raise NotImplementedError

    def columns_of(self, i: int) -> NDArray[np.float64]:
        """The columns of a tile as rows, padded with zeros, (C', V)."""
        X = np.zeros((self.problem.padded_columns, len(self.tiles[i])))
        X[: self.problem.columns] = self.S[self.tiles[i]].T
        return X

    def tile_rows(self, chosen: Sequence[int]) -> NDArray[np.int32]:
        """The rows of chosen candidates, filled up with virtual ones."""
        result = np.full((self.problem.tiles, self.problem.tile_size), -1, dtype=np.int32)
        for t, i in enumerate(chosen):
            result[t, : len(self.tiles[i])] = self.tiles[i]
        return result


def _fill(chosen: NDArray[np.int32], available: NDArray[np.int32]) -> NDArray[np.int32]:
    """Put columns not yet chosen into virtual slots: the pattern keeps as many as there are."""
    result = chosen.reshape(-1).copy()
    free = np.flatnonzero(result < 0)
    left = np.setdiff1d(available[available >= 0], result)[: len(free)]
    result[free[: len(left)]] = left
    return result.reshape(chosen.shape)


# --- Tiles that order their own columns: HiNM and TVW ----------------------------------------


class _TileModel(_Model):
    """A set partitioning: nothing is shared but the rows and a budget."""

    def __init__(self, problem: Problem, S: NDArray[np.float64]) -> None:
        super().__init__(problem, S)
        most = self.packing.most
        ragged = problem.pattern.allocation == "global"
        # How many groups a tile may keep.
        self.counts = range(most + 1) if ragged else range(most, most + 1)
        self.kept = np.zeros((len(self.tiles), most + 1))

    def _group_kept(self, i: int) -> NDArray[np.float64]:
        group_kept = np.empty(1 << self.problem.padded_columns)
        value_groups(self.columns_of(i), self.packing.sets, self.problem.pattern.n, group_kept)
        return group_kept

    def value_tile(self, i: int) -> None:
        self.kept[i] = self.packing.pack(self._group_kept(i))[0]

    def solve(self, search: Search, start: Arrangement) -> tuple[Arrangement | None, float]:
        model, variables = self._built(start)
        values = self.kept[:, self.counts.start :].reshape(-1)
        tiles = self.problem.tiles
        scale = 2.0 ** (_TOTAL_BITS - math.frexp(tiles * float(values.max()))[1])
        terms = [x for mine in variables for x in mine]
        integers = np.rint(values * scale).astype(np.int64).tolist()
        model.maximize(cp_model.LinearExpr.weighted_sum(terms, integers))
        solver = cp_model.CpSolver()
        # One worker: the same answer for any number of threads.
        solver.parameters.num_workers = 1
        # The relaxation of a set partitioning is nearly integral: all of it, from the start.
        solver.parameters.linearization_level = 2
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(solver.solve, model)
            while not wait([running], timeout=_POLL_SECONDS).done:
                if search.stopped():
                    solver.stop_search()
        if running.result() not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return None, math.inf
        # A value is off by half at most by its rounding to integers.
        bound = (solver.best_objective_bound + 0.5 * tiles) / scale * (1.0 + ROUNDING)
        search.record(solver.objective_value / scale)
        chosen = [
            (i, k)
            for i, mine in enumerate(variables)
            for k, x in zip(self.counts, mine, strict=True)
            if solver.value(x)
        ]
        groups = tuple(self._groups(i, k) for i, k in chosen)
        return Arrangement(self.tile_rows([i for i, _ in chosen]), groups), bound

    def _built(self, start: Arrangement) -> tuple[Any, list[list[Any]]]:
        """The model, hinting at ``start``, and a variable for each candidate and count."""
        model = cp_model.CpModel()
        variables = [[model.new_bool_var("") for _ in self.counts] for _ in self.tiles]
        of_row: dict[int, list[Any]] = {}
        of_block: list[list[Any]] = [[] for _ in self.problem.blocks]
        for rows, block, mine in zip(self.tiles, self.block, variables, strict=True):
            of_block[block] += mine
            for row in rows.tolist():
                of_row.setdefault(row, []).extend(mine)
        for members in of_row.values():
            model.add_exactly_one(members)
        for count, members in zip(self.problem.block_tiles, of_block, strict=True):
            model.add(sum(members) == count)
        if len(self.counts) > 1:
            spent = [k * x for mine in variables for k, x in zip(self.counts, mine, strict=True)]
            model.add(sum(spent) == self.problem.total_groups)
        hinted = {
            (self.index[tuple(sorted(rows[rows >= 0].tolist()))], len(groups))
            for rows, groups in zip(start.tile_rows, start.groups, strict=True)
        }
        for i, mine in enumerate(variables):
            for k, x in zip(self.counts, mine, strict=True):
                model.add_hint(x, (i, k) in hinted)
        return model, variables

    def _groups(self, i: int, count: int) -> NDArray[np.int32]:
        found = self.packing.pack(self._group_kept(i), count)[1]
        groups = np.array(found, dtype=np.int32).reshape(count, self.problem.pattern.m)
        groups[groups >= self.problem.columns] = -1
        return _fill(groups, np.arange(self.problem.columns, dtype=np.int32))


# --- Tiles that share windows: V:N:M and vector N:M ------------------------------------------


class _WindowModel(_Model):
    """Tilings by their bound, each with the windows that are best for all its tiles."""

    def __init__(self, problem: Problem, S: NDArray[np.float64]) -> None:
        super().__init__(problem, S)
        pattern = problem.pattern
        self.windows = np.where(self.packing.sets < problem.columns, self.packing.sets, -1)
        kept = pattern.kept_per_window
        # Where n = m the vectors are kept whole.
        self.n = pattern.n if pattern.n < pattern.m else kept
        slots = list(combinations(range(self.windows.shape[1]), kept))
        self.slots = np.array(slots, dtype=np.int64)
        self.kept = np.zeros((len(self.tiles), len(self.windows)))
        self.chosen = np.zeros((len(self.tiles), len(self.windows)), dtype=np.int64)
        self.alone = np.zeros(len(self.tiles))

    def value_tile(self, i: int) -> None:
        X = self.columns_of(i)
        choose_in_windows(X, self.windows, self.slots, self.n, self.kept[i], self.chosen[i])
        self.alone[i] = self._best_windows(self.kept[i])[0]

    def _best_windows(
        self, kept: NDArray[np.float64], *, which: bool = False
    ) -> tuple[float, list[list[int]]]:
        by_set = np.empty(1 << self.problem.padded_columns)
        by_set[self.packing.keys] = kept
        best, found = self.packing.pack(by_set, self.packing.most if which else None)
        return float(best[-1]), found

    def solve(self, search: Search, start: Arrangement) -> tuple[Arrangement | None, float]:
        blocks = range(len(self.problem.blocks))
        sharing = [[b] for b in blocks] if self.problem.orders > 1 else [list(blocks)]
        chosen: list[int] = []
        groups: list[NDArray[np.int32]] = []
        orders = []
        bound = value = 0.0
        for together in sharing:
            tiling, kept, most = self._best_tiling(search, together)
            windows = self._best_windows(self.kept[tiling].sum(axis=0), which=True)[1]
            numbers = np.flatnonzero(np.isin(self.packing.keys, [_key(w) for w in windows]))
            chosen += tiling
            groups += [self._groups(i, numbers) for i in tiling]
            orders.append(self.windows[numbers].reshape(-1))
            value += kept
            bound += most
        search.record(value)
        order = orders[0] if self.problem.orders == 1 else np.stack(orders)
        return Arrangement(self.tile_rows(chosen), tuple(groups), order), bound * (1.0 + ROUNDING)

    def _best_tiling(self, search: Search, blocks: list[int]) -> tuple[list[int], float, float]:
        """The best tiling of the rows of some blocks, what it keeps, and a bound of all."""
        tilings = [
            [i for tiling in parts for i in tiling]
            for parts in product(*(self._tilings(b) for b in blocks))
        ]
        limits = self.alone[np.array(tilings)].sum(axis=1)
        found: list[int] = []
        best = -1.0
        for t in np.argsort(-limits, kind="stable"):
            if limits[t] <= best or (found and search.stopped()):
                return found, best, max(best, float(limits[t]))
            kept, _ = self._best_windows(self.kept[tilings[t]].sum(axis=0))
            if kept > best:
                found, best = tilings[t], kept
        return found, best, best

    def _tilings(self, block: int) -> list[list[int]]:
        """Every way to split the rows of a block into tiles, as candidates."""
        rows = self.problem.block_rows[block].tolist()
        sizes = _subset_sizes(len(rows), self.problem.tile_size)

        def split(left: list[int], tiles: int) -> Iterator[list[int]]:
            if tiles == 0:
                if not left:
                    yield []
                return
            for size in (s for s in sizes if s <= len(left)):
                for others in combinations(left[1:], size - 1):
                    rest = [row for row in left[1:] if row not in others]
                    for tail in split(rest, tiles - 1):
                        yield [self.index[(left[0], *others)], *tail]

        return list(split(rows, self.problem.block_tiles[block]))

    def _groups(self, i: int, windows: NDArray[np.intp]) -> NDArray[np.int32]:
        kept = [
            _fill(self.windows[w, self.slots[self.chosen[i, w]]], self.windows[w]) for w in windows
        ]
        return np.concatenate(kept).reshape(-1, self.problem.pattern.m)


def _key(columns: Sequence[int]) -> int:
    return sum(1 << c for c in columns)
