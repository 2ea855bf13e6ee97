"""Ragged tiles under one global budget of groups: TVW."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gyroperm.arrangement import Arrangement
from gyroperm.problem import Problem
from gyroperm.solvers.columns import Cell, arrange_columns, groups_value, make_cell, make_cells
from gyroperm.solvers.cooling import Phase
from gyroperm.solvers.search import Search

if TYPE_CHECKING:
    from gyroperm.solvers.assign import AssignOptions

# Rows, columns and budget depend on each other. On large layers the first arrangement of the
# columns is what matters most, and gets most of the search; small ones are kicked out of it.
_TURNS = 10
_FIRST = 0.9
# The tiles that a kick disturbs, and for how many times fewer rounds they are annealed again.
_KICKED = 4
_FEWER = 10
# Exchanges of groups between tiles before columns or rows move again.
_EXCHANGES = 4
# How much faster the clock runs for the search under a uniform budget.
_HASTE = 4

# Random streams, so that no phase shifts the numbers of another.
_TURN_ROWS, _TURN_COLUMNS, _BUDGET = range(10, 13)


def under_uniform_budget(
    search: Search, solve: Callable[[Search], Arrangement]
) -> Arrangement | None:
    """What a method finds when every tile keeps as many groups; None where these do not add up.

    One spread of the budget of many, so that a ragged one need never keep less: after the same
    rounds as HiNM it is at least as good. It gets a quarter of a time limit.
    """
    problem = search.problem
    if problem.groups_per_tile * problem.tiles != problem.total_groups:
        return None
    if any(kept % problem.tile_size for kept in problem.kept_rows):
        return None
    alive = np.concatenate(problem.block_rows)
    pattern = replace(problem.pattern, allocation="uniform", row_ratio=0.0)
    saliency = np.ascontiguousarray(problem.saliency[alive])
    uniform = Problem(saliency, pattern, problem.kept_rows)
    found = solve(search.apart(uniform, _HASTE))
    rows = np.where(found.tile_rows >= 0, alive[found.tile_rows], -1)
    return Arrangement(rows, found.groups)


def better(problem: Problem, one: Arrangement, other: Arrangement | None) -> Arrangement:
    """Which of two arrangements keeps more; the first where they are equal."""
    if other is None or _kept(problem, one) >= _kept(problem, other):
        return one
    return other


def _kept(problem: Problem, arrangement: Arrangement) -> float:
    S = problem.search_saliency
    return float(S[arrangement.mask(S, problem.pattern.n)].sum(dtype=np.float64))


def arrange_ragged(
    search: Search,
    options: AssignOptions,
    tile_rows: NDArray[np.int32],
    groups: list[NDArray[np.int32]],
    *,
    anneal: bool,
    least: Arrangement | None = None,
) -> Arrangement:
    """Arrange columns and rows and spread the budget of groups by what is kept; n < m.

    The columns of every tile first, then groups from tiles that lose little by one less to those
    that gain much by one more; then, if annealing, in turns: a few rows change tiles, whose
    columns and budget are arranged anew. A turn that kept less in the end is taken back.

    Parameters
    ----------
    search : Search
    options : AssignOptions
    tile_rows : ndarray of int32, shape (T, V)
    groups : list of T ndarrays of int32, shape (G_t, m)
    anneal : bool
        Whether to anneal before descending.
    least : Arrangement, optional
        What the turns begin from where the first arrangement of the columns keeps less.
    """
    layer = _layer(search, tile_rows, groups)
    tiles = list(range(search.problem.tiles))
    phase = options.column_phase(search, _FIRST, anneal=anneal)
    _move_columns(search, options, layer, tiles, phase, 0)
    if least is not None:
        other = _layer(search, least.tile_rows, least.groups)
        layer = other if other.value > layer.value else layer
    _spread_budget(search, options, layer, tiles, 0)
    for turn in range(1, _TURNS + 1 if anneal else 1):
        if search.stopped():
            break
        trial = _Layer(layer.tile_rows.copy(), list(layer.cells))
        tiles = _kick(search, trial, turn)
        share = 1.0 / (_TURNS + 1 - turn)
        phase = options.column_phase(search, share, anneal=anneal, fewer=_FEWER)
        _move_columns(search, options, trial, tiles, phase, turn)
        _spread_budget(search, options, trial, tiles, turn)
        if trial.value > layer.value:
            layer = trial
            search.improve(layer.value)
    return Arrangement(layer.tile_rows, tuple(cell.groups for cell in layer.cells))


@dataclass
class _Layer:
    """Rows in tiles and a cell for each tile's columns."""

    tile_rows: NDArray[np.int32]
    cells: list[Cell]

    @property
    def value(self) -> float:
        return sum(cell.value for cell in self.cells)


def _layer(
    search: Search, tile_rows: NDArray[np.int32], groups: Sequence[NDArray[np.int32]]
) -> _Layer:
    problem = search.problem
    cells = make_cells(problem, tile_rows, groups, search.threads)
    for cell in cells:
        cell.value = groups_value(cell.X, cell.groups, problem.pattern.n)
    return _Layer(tile_rows.copy(), cells)


def _move_columns(
    search: Search,
    options: AssignOptions,
    layer: _Layer,
    tiles: list[int],
    phase: Phase,
    turn: int,
) -> None:
    cells = [layer.cells[t] for t in tiles]
    arrange_columns(
        search,
        cells,
        search.problem.pattern.n,
        phase=phase,
        patience=options.patience,
        block_groups=options.block_groups,
        stream=4 * turn + _TURN_COLUMNS,
        records=len(cells) == len(layer.cells),
    )


def _kick(search: Search, layer: _Layer, turn: int) -> list[int]:
    """Pass a row around a few tiles of a block; returns the tiles."""
    problem = search.problem
    random = search.random(4 * turn + _TURN_ROWS, 1)
    block = int(random.integers(len(problem.block_tiles)))
    mine = np.flatnonzero(problem.tile_block == block)
    tiles = random.permutation(mine)[:_KICKED]
    places = random.integers(problem.tile_size, size=len(tiles))
    tile_rows = layer.tile_rows.copy()
    tile_rows[tiles, places] = np.roll(tile_rows[tiles, places], 1)
    return _take_rows(search, layer, tile_rows)


def _take_rows(search: Search, layer: _Layer, tile_rows: NDArray[np.int32]) -> list[int]:
    """Give new cells to all tiles, with their new rows; returns the tiles that changed."""
    changed = (tile_rows != layer.tile_rows).any(axis=1)
    for t, cell in enumerate(layer.cells):
        layer.cells[t] = _copied(search, cell, tile_rows[t] if changed[t] else None)
    layer.tile_rows = tile_rows
    return [int(t) for t in np.flatnonzero(changed)]


def _copied(search: Search, cell: Cell, rows: NDArray[np.int32] | None) -> Cell:
    """A cell with the same columns, for other rows if they are given."""
    if rows is None:
        copy = Cell(cell.X, cell.groups.copy(), cell.pool.copy())
    else:
        copy = make_cell(search.problem.search_saliency, rows, cell.groups)
    copy.thermostat.temperature = cell.thermostat.temperature
    copy.value = cell.value
    return copy


def _spread_budget(
    search: Search, options: AssignOptions, layer: _Layer, tiles: list[int], turn: int
) -> None:
    """Give groups of some of these tiles to others while that keeps more, in place.

    What a tile gains by one group more, and loses by one less, is found by arranging its columns
    anew: both are what would be kept, so no exchange keeps less.
    """
    more: dict[int, Cell | None] = {}
    less: dict[int, Cell | None] = {}
    for exchange in range(_EXCHANGES):
        tried = [(t, more, _with_one_more) for t in tiles if t not in more]
        tried += [(t, less, _with_one_less) for t in tiles if t not in less]
        for t, kind, change in tried:
            kind[t] = change(layer.cells[t])
        trials = [cell for t, kind, _ in tried if (cell := kind[t]) is not None]
        if search.stopped():
            return
        arrange_columns(
            search,
            trials,
            search.problem.pattern.n,
            phase=options.column_phase(search, 0.01, anneal=False),
            patience=1,
            block_groups=options.block_groups,
            stream=4 * (_EXCHANGES * turn + exchange) + _BUDGET,
            records=False,
        )
        pairs = _exchanges(layer.cells, more, less)
        for giver, taker in pairs:
            for t, found in ((giver, less[giver]), (taker, more[taker])):
                assert found is not None
                layer.cells[t] = _copied(search, found, None)
                del more[t], less[t]
        if not pairs:
            return
    search.improve(layer.value)


def _exchanges(
    cells: list[Cell], more: dict[int, Cell | None], less: dict[int, Cell | None]
) -> list[tuple[int, int]]:
    """Pairs of a tile that gives a group and one that takes it, each in one pair at most."""
    gains = {t: cell.value - cells[t].value for t, cell in more.items() if cell is not None}
    losses = {t: cells[t].value - cell.value for t, cell in less.items() if cell is not None}
    givers = sorted(losses, key=lambda t: (losses[t], t))
    pairs: list[tuple[int, int]] = []
    used: set[int] = set()
    for taker in sorted(gains, key=lambda t: (-gains[t], t)):
        giver = next((t for t in givers if t not in used and t != taker), None)
        if taker in used or giver is None:
            continue
        if gains[taker] <= losses[giver]:
            break
        pairs.append((giver, taker))
        used |= {giver, taker}
    return pairs


def _with_one_more(cell: Cell) -> Cell | None:
    """A cell with the best vectors of its pool as one more group, None if all are kept."""
    m = cell.groups.shape[1]
    if not len(cell.pool):
        return None
    ranked = cell.pool[np.argsort(-cell.X[cell.pool].sum(axis=1), kind="stable")]
    group = np.full((1, m), -1, dtype=np.int32)
    group[0, : len(ranked[:m])] = ranked[:m]
    return _trial(cell, np.concatenate([cell.groups, group]), ranked[m:])


def _with_one_less(cell: Cell) -> Cell | None:
    """A cell without its group of the smallest vectors, None if it has none."""
    if not len(cell.groups):
        return None
    least = int(np.argmin(cell.X[cell.groups].sum(axis=(1, 2))))
    given = cell.groups[least]
    pool = np.concatenate([cell.pool, given[given >= 0]])
    groups = np.delete(cell.groups, least, axis=0)
    # Virtual columns have a place only where all real ones are kept.
    open_slots = np.flatnonzero(groups.reshape(-1) < 0)[: len(pool)]
    groups.reshape(-1)[open_slots] = pool[: len(open_slots)]
    return _trial(cell, groups, pool[len(open_slots) :])


def _trial(cell: Cell, groups: NDArray[np.int32], pool: NDArray[np.int32]) -> Cell:
    trial = Cell(cell.X, groups, pool)
    trial.thermostat.temperature = cell.thermostat.temperature
    return trial
