"""Assignment moves: balanced clustering of rows and columns, solved by linear assignment."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gyroperm.arguments import checked_integer, is_number
from gyroperm.arrangement import Arrangement
from gyroperm.solvers.chains import best_of_chains, chains_in, two_level_chains_in
from gyroperm.solvers.columns import (
    Cell,
    arrange_columns,
    begins_in_one_block,
    make_cells,
    search_columns,
)
from gyroperm.solvers.cooling import Phase
from gyroperm.solvers.ragged import arrange_ragged, better, under_uniform_budget
from gyroperm.solvers.registry import register
from gyroperm.solvers.rows import arrange_rows
from gyroperm.solvers.scores import Scores
from gyroperm.solvers.search import Search
from gyroperm.solvers.vectors import (
    choose_vectors,
    columns_as_they_lie,
    rows_as_they_lie,
    tile_values,
)
from gyroperm.solvers.windows import arrange_windows

# The least value of each whole-numbered option: one group alone could exchange nothing.
_LEAST = {"row_rounds": 0, "column_rounds": 0, "patience": 1, "block_groups": 2}


@dataclass(frozen=True)
class AssignOptions:
    """Options of :func:`solve`.

    Attributes
    ----------
    anneal : bool
        Cool down from ``hot`` to ``cold`` before descending; False only descends. A start from
        ``initial`` only descends.
    hot, cold : float
        The share of released columns that go elsewhere when annealing begins and ends, in
        (0, 1); the temperature follows from it.
    row_hot, row_cold : float
        The same for the rows.
    row_rounds, column_rounds : int
        Rounds to anneal rows and columns for when the stopping criterion sets no pace; with a
        time limit or a number of rounds, annealing is stretched to fill it.
    row_share : float
        The share of the pace that goes to the rows, in (0, 1).
    patience : int
        Moves in a row without improvement after which the descent of a tile's columns ends;
        ten times as many end that of the rows.
    block_groups : int
        The groups among which a move assigns columns; larger layers are dealt into blocks.
    power : float
        Rows are clustered and vectors chosen by the saliency to this power (1 where n = m, and
        no matter in windowed patterns, which count what is kept from the start). More than 1
        counts large saliencies for more, as the second level does, which keeps only the largest
        n of m.
    """

    anneal: bool = True
    hot: float = 0.4
    cold: float = 0.002
    row_hot: float = 0.3
    row_cold: float = 0.02
    row_rounds: int = 50
    column_rounds: int = 60
    row_share: float = 0.2
    patience: int = 30
    block_groups: int = 512
    power: float = 2.0

    def __post_init__(self) -> None:
        if not isinstance(self.anneal, bool):
            raise ValueError(f"anneal must be true or false, got {self.anneal!r}")
        for name in ("hot", "cold", "row_hot", "row_cold", "row_share", "power"):
            value = getattr(self, name)
            if not is_number(value) or math.isinf(value):
                raise ValueError(f"{name} must be a finite number, got {value!r}")
        for name, least in _LEAST.items():
            object.__setattr__(self, name, checked_integer(name, getattr(self, name), least))
        for of in ("", "row_"):
            hot, cold = getattr(self, f"{of}hot"), getattr(self, f"{of}cold")
            if not 1 > hot >= cold > 0:
                raise ValueError(f"1 > {of}hot >= {of}cold > 0 is needed, got {hot} and {cold}")
        if not 0 < self.row_share < 1:
            raise ValueError(f"row_share must lie in (0, 1), got {self.row_share}")
        if not self.power > 0:
            raise ValueError(f"power must be positive, got {self.power}")

    @property
    def row_patience(self) -> int:
        """The patience of the rows: a move exchanges only one row of each tile's V."""
        return 10 * self.patience

    def row_phase(self, search: Search, share: float, *, anneal: bool) -> Phase:
        """A phase of the search in which rows move, annealed or descending only."""
        rounds = self.row_rounds if anneal else 0
        return Phase(search, rounds=rounds, hot=self.row_hot, cold=self.row_cold, share=share)

    def column_phase(self, search: Search, share: float, *, anneal: bool, fewer: int = 1) -> Phase:
        """The same for columns; ``fewer`` divides the rounds that are annealed."""
        return self._columns(search, share, -(-self.column_rounds // fewer) if anneal else 0)

    def joint_column_phase(self, search: Search, share: float, *, anneal: bool) -> Phase:
        """The same for columns that move in the same rounds as rows."""
        return self._columns(search, share, self.row_rounds if anneal else 0)

    def _columns(self, search: Search, share: float, rounds: int) -> Phase:
        return Phase(search, rounds=rounds, hot=self.hot, cold=self.cold, share=share)


# Random streams, so that no phase shifts the numbers of another.
_ROWS, _COLUMNS, _DEAL = 0, 2, 3


@register("assign", options=AssignOptions)
def solve(search: Search, options: AssignOptions) -> Arrangement:
    """Annealed assignment moves with joint selection of vectors; gyroperm's own.

    Rows are assigned to tiles by what their vectors keep, then each tile's columns to groups
    and to the discarded in one assignment. Putting column x into a group whose n-th largest of
    the others is q keeps ``sum_r max(0, x[r] - q[r])`` more, exactly, so one matrix product of
    relu gives the gain of every move. A round is a sweep over all tiles (20 moves of the rows).
    """
    problem = search.problem
    if search.stopped():
        return _start(search)
    if problem.pattern.window is not None:
        return arrange_windows(search, options)
    if problem.pattern.allocation == "global" and search.initial is None:
        uniform = under_uniform_budget(search, partial(_by_tiles, options=options))
        return better(problem, _by_tiles(search, options, uniform), uniform)
    return _by_tiles(search, options)


def _by_tiles(
    search: Search, options: AssignOptions, least: Arrangement | None = None
) -> Arrangement:
    """Patterns whose tiles order their own columns, and plain N:M; ``least`` is a second start."""
    problem = search.problem
    if search.initial is not None:
        # Copies: kernels are compiled for writable arrays, those of an arrangement are not.
        tile_rows = search.initial.tile_rows.copy()
        # The rows are left as they are: its groups were made for them.
        groups = [np.array(g) for g in search.initial.groups]
        return _with_columns(search, options, tile_rows, groups, anneal=False)
    if problem.pattern.is_plain:
        tile_rows = rows_as_they_lie(problem)
        # One tile, all columns kept: there is no vector level, and no scores are needed.
        columns = columns_as_they_lie(problem).reshape(-1, problem.padded_columns)[0]
        one_block = begins_in_one_block(len(columns) // problem.pattern.m, options.block_groups)
        if options.anneal and search.by_clock and problem.tiles == 1 and one_block:
            return _in_chains(search, options, tile_rows, columns)
        groups = _dealt_groups(search, [columns] * problem.tiles)
        return _with_columns(search, options, tile_rows, groups, anneal=options.anneal)
    if options.anneal and least is None and search.by_clock:
        in_a_row = two_level_chains_in(search.seconds_left, problem)
        if in_a_row > 1:
            return _in_two_level_chains(search, options, in_a_row)
    return _rows_then_columns(search, options, least)


def _rows_then_columns(
    search: Search, options: AssignOptions, least: Arrangement | None = None
) -> Arrangement:
    """Rows into tiles by what their vectors keep, then each tile's columns into groups."""
    problem = search.problem
    tile_rows = rows_as_they_lie(problem)
    power = options.power if problem.pattern.n < problem.pattern.m else 1.0
    scores = Scores.of(problem.search_saliency, power)
    tile_rows = arrange_rows(
        search,
        scores,
        tile_rows,
        None,
        phase=options.row_phase(search, options.row_share, anneal=options.anneal),
        patience=options.row_patience,
        stream=_ROWS,
    )
    chosen = choose_vectors(problem, scores.sums(tile_rows))
    # May be as large as the weights, and is no longer needed.
    del scores
    groups = _dealt_groups(search, chosen)
    return _with_columns(search, options, tile_rows, groups, anneal=options.anneal, least=least)


def _in_two_level_chains(search: Search, options: AssignOptions, in_a_row: int) -> Arrangement:
    """The best of whole searches: which rows share a tile is settled early, and for good."""

    def run(chain: Search) -> tuple[float, Arrangement]:
        found = _rows_then_columns(chain, options)
        return math.fsum(tile_values(chain.problem, found)), found

    return best_of_chains(search, in_a_row, run)[1]


def _in_chains(
    search: Search,
    options: AssignOptions,
    tile_rows: NDArray[np.int32],
    columns: NDArray[np.int32],
) -> Arrangement:
    """Plain N:M with one column order: the best of chains that are annealed apart.

    A sweep of few groups is a single block, which occupies one thread; chains occupy all.
    """
    problem = search.problem
    n, m = problem.pattern.n, problem.pattern.m
    X = search_columns(problem, tile_rows[0])
    pool = np.zeros(0, dtype=np.int32)

    def run(chain: Search) -> tuple[float, NDArray[np.int32]]:
        groups = chain.random(_DEAL, 0).permutation(columns).reshape(-1, m)
        cell = Cell(X, groups, pool.copy())
        arrange_columns(
            chain,
            [cell],
            n,
            phase=options.column_phase(chain, 1.0, anneal=True),
            patience=options.patience,
            block_groups=options.block_groups,
            stream=_COLUMNS,
        )
        return cell.value, cell.groups

    in_a_row = chains_in(search.seconds_left, len(columns) // m, X.shape[1])
    _, groups = best_of_chains(search, in_a_row, run)
    return Arrangement(tile_rows, (groups,), groups.reshape(-1))


def _start(search: Search) -> Arrangement:
    from gyroperm.solvers.identity import identity_arrangement

    return search.initial or identity_arrangement(search.problem)


def _dealt_groups(search: Search, chosen: list[NDArray[np.int32]]) -> list[NDArray[np.int32]]:
    """The columns that each tile keeps, dealt at random into groups."""
    m = search.problem.pattern.m
    return [
        search.random(_DEAL, t).permutation(columns).reshape(-1, m)
        for t, columns in enumerate(chosen)
    ]


def _with_columns(
    search: Search,
    options: AssignOptions,
    tile_rows: NDArray[np.int32],
    groups: list[NDArray[np.int32]],
    *,
    anneal: bool,
    least: Arrangement | None = None,
) -> Arrangement:
    """Arrange the columns of every tile, each in an order of its own."""
    problem = search.problem
    pattern = problem.pattern
    if pattern.allocation == "global" and pattern.n < pattern.m:
        return arrange_ragged(search, options, tile_rows, groups, anneal=anneal, least=least)
    if pattern.n < pattern.m:
        # As large as the weights, and so are the cells, which are made without it.
        problem.free_search_saliency()
        cells = make_cells(problem, tile_rows, groups, search.threads)
        arrange_columns(
            search,
            cells,
            pattern.n,
            phase=options.column_phase(search, 1.0, anneal=anneal),
            patience=options.patience,
            block_groups=options.block_groups,
            stream=_COLUMNS,
        )
        groups = [cell.groups for cell in cells]
    order = None
    if pattern.is_plain:
        order = np.stack([g.reshape(-1) for g in groups])
        order = order[0] if problem.orders == 1 else order
    return Arrangement(tile_rows, tuple(groups), order)
