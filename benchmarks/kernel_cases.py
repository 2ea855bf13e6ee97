"""The kernels that searches spend their time in, on inputs of several sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.ceiling import RELU_OPERATIONS
from benchmarks.instances import INSTANCES
from gyroperm.solvers.columns import Cell, make_cell, tile_columns
from gyroperm.solvers.cooling import gumbel_noise
from gyroperm.solvers.kernels.assignment import assign_slots, improve_slots
from gyroperm.solvers.kernels.gain import relu_gain
from gyroperm.solvers.kernels.grouping import assignment_moves, group_values
from gyroperm.solvers.kernels.rows import row_moves, row_sums

# Instances of a language model's statistics: gains of such columns are the real ones here.
_INSTANCE = "lm1024x2752"

# Least operations of the 2:4 value of four columns in a row: the larger and the smaller of each
# pair, the largest, the second from three comparisons, and two sums in float64, which vectorise
# half as well.
_TWO_OF_FOUR = 8 + 2 * 2

# A pass over all gains subtracts a price and compares.
_PASS = 2


@dataclass(frozen=True)
class Case:
    """A kernel on one input.

    Attributes
    ----------
    kernel, size : str
    call : callable
        The same work at every call.
    operations : float
        Float32 operations that the work cannot do without.
    traffic : float
        Bytes that it must move between memory and caches; 0 where its operands stay in a cache.
    unit : str
        What the throughput counts.
    count : float
        How many of the units a call does.
    """

    kernel: str
    size: str
    call: Callable[[], object]
    operations: float
    traffic: float
    unit: str
    count: float


def all_cases(*, quick: bool) -> list[Case]:
    """The cases of a full measurement, or the smaller ones of a quick one."""
    rng = np.random.default_rng(0)
    saliency = np.abs(INSTANCES[_INSTANCE].load())
    sizes = (16, 64) if quick else (16, 64, 192, 512)
    cases = [_gain(rng, 32, 384), _gain(rng, 96, 384)]
    cases += [] if quick else [_gain(rng, 192, 384), _gain(rng, 192, 4096)]
    cases += [_random_assignment(rng, size) for size in sizes]
    cases += [_real_assignment(saliency, size) for size in sizes]
    cases += [_improvement(saliency, size) for size in sizes]
    cases += [_selection(saliency, 48, 192), _group_values(rng, 384, 32, 2, 4)]
    cases += [_group_values(rng, 384, 32, 4, 8), _group_values(rng, 1024, 256, 2, 4)]
    cases += [_row_moves(rng, 256, 384, 32)] if quick else [_row_moves(rng, 1536, 384, 32)]
    cases += [_column_moves(rng, 96, 0, 384), _column_moves(rng, 48, 192, 32)]
    if not quick:
        # More than the caches of most machines hold.
        cases += [_group_values(rng, 4096, 8192, 2, 4, memory=True), _tile_columns(rng, 4096, 8192)]
    return cases


def _uniform(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return rng.random(shape, dtype=np.float32)


def _gain(rng: np.random.Generator, groups: int, rows: int) -> Case:
    X, Q = _uniform(rng, groups, rows), _uniform(rng, groups, rows)
    gain = np.empty((groups, groups), dtype=np.float32)
    terms = float(groups * groups * rows)
    return Case(
        "gain product",
        f"{groups} x {groups} x {rows}",
        lambda: relu_gain(X, Q, gain),
        RELU_OPERATIONS * terms,
        0.0,
        "terms",
        terms,
    )


def _assignment(kernel: str, gain: NDArray[np.float32]) -> Case:
    chosen = np.empty(len(gain), dtype=np.int32)
    return Case(
        kernel,
        " x ".join(map(str, gain.shape)),
        lambda: assign_slots(gain, chosen),
        float(_PASS * gain.size),
        0.0,
        "gains",
        float(gain.size),
    )


def _improvement(saliency: NDArray[np.float32], groups: int) -> Case:
    """The assignment of real gains that starts from where the columns are."""
    gain = _released_gain(saliency, groups)
    before = np.arange(groups, dtype=np.int32)
    chosen = before.copy()

    def call() -> None:
        chosen[:] = before
        improve_slots(gain, chosen)

    return replace(_assignment("assignment improved, real gains", gain), call=call)


def _random_assignment(rng: np.random.Generator, size: int) -> Case:
    return _assignment("assignment, random gains", _uniform(rng, size, size))


def _real_assignment(saliency: NDArray[np.float32], groups: int) -> Case:
    return _assignment("assignment, real gains", _released_gain(saliency, groups))


def _released_gain(saliency: NDArray[np.float32], groups: int) -> NDArray[np.float32]:
    """The gains of one column released from each group of four."""
    members = saliency[:, : 4 * groups].reshape(len(saliency), groups, 4).transpose(2, 1, 0)
    return _real_gain(members, members[0])


def _selection(saliency: NDArray[np.float32], groups: int, pool: int) -> Case:
    """The same in a tile of 32 rows, with discarded columns among the items."""
    tile = saliency[:32, : 4 * groups + pool]
    members = tile[:, : 4 * groups].reshape(32, groups, 4).transpose(2, 1, 0)
    items = np.concatenate([members[0], tile[:, 4 * groups :].T])
    return _assignment("assignment with selection", _real_gain(members, items))


def _real_gain(members: NDArray[np.float32], items: NDArray[np.float32]) -> NDArray[np.float32]:
    """What items add to groups of four, (4, G, R), that lost their first; 2:4."""
    thresholds = np.ascontiguousarray(np.sort(members[1:], axis=0)[1])
    gain = np.empty((members.shape[1], len(items)), dtype=np.float32)
    relu_gain(np.ascontiguousarray(items), thresholds, gain)
    return gain


def _group_values(
    rng: np.random.Generator, columns: int, rows: int, n: int, m: int, *, memory: bool = False
) -> Case:
    X = _uniform(rng, columns + 1, rows)
    groups = rng.permutation(columns).astype(np.int32).reshape(-1, m)
    values = np.empty(len(groups))
    weights = float(columns * rows)
    # Otherwise each weight is compared once at least.
    each = _TWO_OF_FOUR / 4 if (n, m) == (2, 4) else 1.0
    return Case(
        f"group values {n}:{m}" + ", from memory" * memory,
        f"{rows} x {columns}",
        lambda: group_values(X, groups, n, values),
        each * weights,
        4.0 * weights if memory else 0.0,
        "weights",
        weights,
    )


def _row_moves(rng: np.random.Generator, rows: int, columns: int, tile: int) -> Case:
    S = _uniform(rng, rows, columns)
    tiles = rng.permutation(rows).astype(np.int32).reshape(-1, tile)
    sums = row_sums(S, True, tiles)
    windows = np.empty((0, 0), dtype=np.int32)
    noise, state = gumbel_noise(), np.array([1], dtype=np.uint64)
    moves, T = 20, len(tiles)
    kept = columns // 2
    return Case(
        "row moves, annealed",
        f"{rows} x {columns}, V={tile}",
        lambda: row_moves(S, True, tiles, sums, windows, kept, False, moves, 0.1, noise, state),
        float(moves * RELU_OPERATIONS * T * T * columns),
        0.0,
        "moves",
        float(moves),
    )


def _column_moves(rng: np.random.Generator, groups: int, pool: int, rows: int) -> Case:
    saliency = _uniform(rng, rows, 4 * groups + pool)
    every = rng.permutation(saliency.shape[1]).astype(np.int32)
    order = every[: 4 * groups].reshape(-1, 4)
    cell = make_cell(saliency, np.arange(rows, dtype=np.int32), order)
    moves = 10
    return Case(
        "assignment moves, annealed",
        f"{groups} groups + {pool}, {rows} rows",
        lambda: annealed_moves(cell, cell.groups, moves),
        float(moves * RELU_OPERATIONS * groups * (groups + pool) * rows),
        0.0,
        "moves",
        float(moves),
    )


_NOISE = gumbel_noise()


def annealed_moves(cell: Cell, groups: NDArray[np.int32], moves: int) -> None:
    """Annealed 2:4 assignment moves of a block of a cell's groups and its pool, in place.

    Every move computes all the gains that it needs.
    """
    G, m = groups.shape
    no_gains = np.empty((0, m, len(cell.X)), dtype=np.float32)
    none_fresh = np.zeros((0, m), dtype=np.bool_)
    state = np.array([1], dtype=np.uint64)
    ids = np.arange(G)
    assignment_moves(
        cell.X, groups, cell.pool, 2, moves, 0.1, _NOISE, ids, no_gains, none_fresh, state
    )


def _tile_columns(rng: np.random.Generator, rows: int, columns: int) -> Case:
    saliency = _uniform(rng, rows, columns)
    tiles = rng.permutation(rows).astype(np.int32).reshape(-1, 128)
    return Case(
        "gather tiles, from memory",
        f"{rows} x {columns}, V=128",
        lambda: [tile_columns(saliency, tile) for tile in tiles],
        0.0,
        2.0 * saliency.nbytes,
        "weights",
        float(saliency.size),
    )
