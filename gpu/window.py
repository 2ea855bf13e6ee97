"""The product by tiles that share a window of X in shared memory: its plan and its launch."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from os import cpu_count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gyroperm.gpu.arrays import begins_on_16_bytes, row_stride
from gyroperm.gpu.format import HinmMatrix
from gyroperm.gpu.launch import Launch
from gyroperm.gpu.reorder import empty_slots, group_width
from gyroperm.gpu.source import Variant
from gyroperm.gpu.spmm import Packed, activation_code
from gyroperm.gpu.tiling import STEP

# Of a load's word in the kernel; all ones stand for no load.
_COLUMN_BITS = 20
MOST_INPUTS = 1 << _COLUMN_BITS
MOST_SLOTS = 4088
_NO_LOAD = 0xFFFFFFFF

# What the device keeps of shared memory for itself, for each block.
_RESERVED = 1024


@dataclass(frozen=True)
class WindowBlocking:
    """How a product by a shared window is cut up.

    Parameters
    ----------
    tile_size : int
        V, the rows of a tile.
    group : int
        Tiles that share a window, all of one block.
    warps_m : int
        Warps of a tile.
    block_n : int
        Columns of X that a block computes; a multiple of 16.
    slots : int
        Rows of X that the window holds: a multiple of 8 from 128 to 4088.
    phase_loads : int
        Rows that a phase brings in at most.
    ahead : int
        Phases from the beginning of a copy to its use.
    blocks : int
        Blocks that a multiprocessor is to hold.
    sparse : bool
        Two of four kept inside, else dense.

    Raises
    ------
    ValueError
        If the slots are not such.
    """

    tile_size: int
    group: int
    warps_m: int
    block_n: int
    slots: int
    phase_loads: int
    ahead: int
    blocks: int
    sparse: bool

    def __post_init__(self) -> None:
        if self.slots % 8 or not 2 * STEP <= self.slots <= MOST_SLOTS:
            raise ValueError(
                f"slots must be a multiple of 8 from {2 * STEP} to {MOST_SLOTS}, got {self.slots}"
            )

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.warps_m * self.group

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: its window, or what it writes out."""
        row_bytes = self.block_n * 2
        return max(self.slots * row_bytes, self.group * self.tile_size * (row_bytes + 16))

    def variant(self, *, bfloat16: bool, aligned: bool) -> Variant:
        """The kernel for this blocking."""
        return Variant.of(
            "window",
            {
                "TILE_ROWS": self.tile_size,
                "GROUP": self.group,
                "WARPS_M": self.warps_m,
                "BLOCK_N": self.block_n,
                "LOADS": self.phase_loads,
                "AHEAD": self.ahead,
                "BLOCKS": self.blocks,
                "SPARSE": self.sparse,
                "ALIGNED": aligned,
                "GYROPERM_BF16": bfloat16,
            },
        )


def window_blocking(
    tile_size: int, inputs: int, *, sparse: bool, shared_limit: int, blocks: int = 2
) -> WindowBlocking:
    """The blocking for a tile size, with as large a window as fits.

    Parameters
    ----------
    tile_size : int
        V, a multiple of 16 from 16 to 256.
    inputs : int
        C, the rows of X.
    sparse : bool
        Two of four kept inside, else dense.
    shared_limit : int
        Bytes of shared memory that a block may use on the device.
    blocks : {1, 2}
        Blocks that a multiprocessor is to hold: two hide each other's waiting, one has a window
        of twice the size.

    Raises
    ------
    ValueError
        If V is not such, or a window of 128 slots does not fit.
    """
    if tile_size % 16 or not 16 <= tile_size <= 256:
        raise ValueError(f"tile_size must be a multiple of 16 from 16 to 256, got {tile_size}")
    if blocks not in (1, 2):
        raise ValueError(f"blocks must be 1 or 2, got {blocks}")
    block_n = 64
    warps_m = tile_size // 32 if tile_size % 32 == 0 else tile_size // 16
    group = max(1, 8 // warps_m)
    available = (shared_limit + _RESERVED) // blocks - _RESERVED
    if tile_size * group * (block_n * 2 + 16) > available:
        raise ValueError(
            f"{blocks} blocks of {group} tiles of {tile_size} rows do not fit into {shared_limit} "
            f"bytes of shared memory"
        )
    slots = min(available // (block_n * 2) // 8 * 8, max(-(-inputs // 8) * 8, 2 * STEP), MOST_SLOTS)
    # Registers: a load's word is kept for a phase, and two blocks leave 128 to a thread.
    phase_loads = 128 if blocks == 2 else 256
    return WindowBlocking(tile_size, group, warps_m, block_n, slots, phase_loads, 1, blocks, sparse)


@dataclass(frozen=True, eq=False)
class WindowTables:
    """What the kernel reads of a plan, on the host or on a device.

    Parameters
    ----------
    slots : array of uint16, shape (slots of the matrix,)
        The slot of the window that each slot of the reordered matrix is read from.
    tiles : array of int32, shape (groups, group)
        The tiles of each block, -1 for none.
    tile_steps : array of int32, shape (groups, group, 2)
        Of each: its first step, and how many are worked off.
    phase_ptr : array of int32, shape (groups + 1,)
        The phases of each group.
    done : array of int32, shape (phases, group)
        The steps that each tile has worked off after a phase.
    loads : array of uint32, shape (phases, phase_loads)
        What a phase brings in: a row of X, and in the upper 12 bits its slot.
    """

    slots: Any
    tiles: Any
    tile_steps: Any
    phase_ptr: Any
    done: Any
    loads: Any

    def moved(self, move: Callable[[NDArray[Any]], Any]) -> WindowTables:
        """The tables with each array moved, to a device for instance (``cupy.asarray``)."""
        return WindowTables(
            **{field.name: move(getattr(self, field.name)) for field in fields(self)}
        )


@dataclass(frozen=True, eq=False)
class WindowPlan:
    """Which rows of X lie in the window when, and the order of the weights that goes with it.

    Parameters
    ----------
    blocking : WindowBlocking
        What it was made for.
    order : ndarray of int, shape (slots / width,)
        For :func:`~gyroperm.gpu.reorder.reordered`: the launch takes the matrix in this order. It
        is the same matrix, and goes with every other kernel as well.
    tables : WindowTables
        Of the host.
    loaded : int
        Rows of X that are brought in for each block of columns, over all groups.
    gathered : int
        Rows that tiles without a window would bring in.
    conflicts : float
        Wavefronts beyond the first for each 8 x 8 matrix that is read from shared memory.
    """

    blocking: WindowBlocking
    order: NDArray[np.int64]
    tables: WindowTables
    loaded: int
    gathered: int
    conflicts: float

    def fused(self, columns: NDArray[np.integer], fused: NDArray[np.integer]) -> WindowPlan | None:
        """The plan for an X whose rows lie elsewhere; None if one lies beyond 2^20.

        Slots of the window, and so order and conflicts, stay as they are.

        Parameters
        ----------
        columns, fused : ndarray of int, shape (slots,)
            The row of X that each slot of the matrix read, and the one that it is to read.
        """
        if fused.size and int(fused.max()) >= MOST_INPUTS:
            return None
        position_of = np.zeros(MOST_INPUTS, np.uint32)
        position_of[columns] = fused
        loads = self.tables.loads
        row = np.uint32(MOST_INPUTS - 1)
        moved = np.where(loads == _NO_LOAD, loads, loads & ~row | position_of[loads & row])
        return replace(self, tables=replace(self.tables, loads=moved))


def window_plan(matrix: HinmMatrix, blocking: WindowBlocking) -> WindowPlan:
    """Plan the window of each group of tiles.

    Tiles are grouped with their like in length. Where two of four are kept inside, a group takes
    next what brings in fewest rows, and drops the row that is wanted last; dense inside, columns
    are taken in ascending order.

    Parameters
    ----------
    matrix : HinmMatrix
    blocking : WindowBlocking
        For its tile size and inside.

    Returns
    -------
    WindowPlan

    Raises
    ------
    ValueError
        If the blocking is for other tiles, or X has more than 2^20 rows.
    """
    index, width = matrix.index, group_width(matrix)
    if (index.tile_size, width == 4) != (blocking.tile_size, blocking.sparse):
        raise ValueError(
            f"blocking is for tiles of {blocking.tile_size} rows, sparse={blocking.sparse}; the "
            f"matrix has tiles of {index.tile_size} rows, sparse={width == 4}"
        )
    if index.inputs > MOST_INPUTS:
        raise ValueError(f"X must have at most {MOST_INPUTS} rows, got {index.inputs}")
    units = np.where(empty_slots(matrix), -1, index.columns.astype(np.int64)).reshape(-1, width)
    bounds = index.tile_ptr.astype(np.int64) // width
    by_length = np.argsort(-np.diff(bounds), kind="stable")
    tiles = np.full((-(-index.tiles // blocking.group), blocking.group), -1, np.int32)
    tiles.reshape(-1)[: index.tiles] = by_length
    with ThreadPoolExecutor(cpu_count()) as pool:
        groups = list(pool.map(lambda group: _plan_group(units, bounds, group, blocking), tiles))
    return _joined(matrix, blocking, bounds, tiles, groups)


@dataclass(frozen=True, eq=False)
class _Group:
    """The plan of one group; steps tile after tile."""

    taken: NDArray[np.int64]  # (steps, units of a step): of the matrix, -1 for none
    slots: NDArray[np.int64]  # (steps, units of a step, width)
    steps: NDArray[np.int64]  # (group,): of each tile
    done: NDArray[np.int64]
    loads: NDArray[np.int64]
    conflicts: int


def _plan_group(
    units: NDArray[np.int64],
    bounds: NDArray[np.int64],
    tiles: NDArray[np.int32],
    blocking: WindowBlocking,
) -> _Group:
    from gyroperm.gpu.residency import arrange

    width = units.shape[1]
    real = []
    for tile in tiles:
        ids = np.arange(bounds[tile], bounds[tile + 1]) if tile >= 0 else np.arange(0)
        ids = ids[(units[ids] >= 0).any(1)]
        # Dense inside, an ascending order is one that all tiles share.
        real.append(ids if blocking.sparse else ids[np.argsort(units[ids, 0], kind="stable")])
    counts = np.array([len(ids) for ids in real])
    tile_ptr = np.concatenate([[0], np.cumsum(counts)])
    ids = np.concatenate(real)
    named, rows = _renamed(units[ids], np.repeat(np.arange(len(tiles)), counts))
    key, lead = np.empty(0), 0.0
    if not blocking.sparse and len(ids):
        key = units[ids, 0].astype(np.float64)
        # Two steps of the longest tile.
        lead = 2 * STEP * (key.max() - key.min() + 1) / counts.max()
    per_step = STEP // width
    taken, slots, done, loads, conflicts = arrange(
        named,
        tile_ptr,
        len(rows),
        key,
        lead,
        blocking.slots,
        blocking.phase_loads,
        blocking.ahead,
        per_step,
    )
    return _Group(
        taken=np.where(taken >= 0, np.append(ids, -1)[taken], -1),
        slots=slots,
        steps=-(-counts // per_step),
        done=done,
        loads=np.stack([np.append(rows, -1)[loads[..., 0]], loads[..., 1]], -1),
        conflicts=int(conflicts),
    )


def _renamed(
    units: NDArray[np.int64], tile_of: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Columns by numbers without gaps, and the row of X of each number.

    A row that a tile reads twice gets a number for each time.
    """
    at = np.argwhere(units >= 0)
    columns = units[at[:, 0], at[:, 1]]
    tiles = tile_of[at[:, 0]]
    order = np.lexsort((columns, tiles))
    same = np.zeros(len(order), bool)
    same[1:] = (np.diff(columns[order]) == 0) & (np.diff(tiles[order]) == 0)
    # How often the tile has had the column before: since the last place that is not a repetition.
    places = np.arange(len(order))
    before = np.empty(len(order), np.int64)
    before[order] = places - np.maximum.accumulate(np.where(same, 0, places))
    pairs, numbers = np.unique(np.stack([columns, before], 1), axis=0, return_inverse=True)
    named = np.full(units.shape, -1)
    named[at[:, 0], at[:, 1]] = numbers.reshape(-1)
    return named, pairs[:, 0]


def _joined(
    matrix: HinmMatrix,
    blocking: WindowBlocking,
    bounds: NDArray[np.int64],
    tiles: NDArray[np.int32],
    groups: list[_Group],
) -> WindowPlan:
    width = group_width(matrix)
    per_step = STEP // width
    total = len(matrix.index.columns) // width
    order = np.full(total, -1)
    slots = np.zeros((total, width), np.uint16)
    tile_steps = np.zeros((*tiles.shape, 2), np.int32)
    for g, group in enumerate(groups):
        ends = np.cumsum(group.steps)
        for place, tile in enumerate(tiles[g]):
            if tile < 0:
                continue
            first, steps = bounds[tile], group.steps[place]
            tile_steps[g, place] = first // per_step, steps
            worked = slice(ends[place] - steps, ends[place])
            to = slice(first, first + steps * per_step)
            order[to] = group.taken[worked].reshape(-1)
            slots[to] = group.slots[worked].reshape(-1, width)
    # Groups of empty slots fill what is left of their tile.
    unused = np.ones(total, bool)
    unused[order[order >= 0]] = False
    order[order < 0] = np.flatnonzero(unused)
    phases = [len(group.done) for group in groups]
    loads = np.concatenate([group.loads for group in groups])
    is_load = loads[..., 0] >= 0
    words = np.where(is_load, loads[..., 1] << _COLUMN_BITS | loads[..., 0], _NO_LOAD)
    reads = 8 * sum(int(group.steps.sum()) for group in groups)
    return WindowPlan(
        blocking=blocking,
        order=order,
        tables=WindowTables(
            slots=slots.reshape(-1),
            tiles=tiles,
            tile_steps=tile_steps,
            phase_ptr=np.concatenate([[0], np.cumsum(phases)]).astype(np.int32),
            done=np.concatenate([group.done for group in groups]).astype(np.int32),
            loads=words.astype(np.uint32),
        ),
        loaded=int(is_load.sum()),
        gathered=len(matrix.index.columns),
        conflicts=sum(group.conflicts for group in groups) / max(reads, 1),
    )


def window_launch(
    matrix: Packed,
    x: Any,
    y: Any,
    *,
    blocking: WindowBlocking,
    tables: WindowTables,
    bfloat16: bool,
    bias: Any = None,
    activation: str | None = None,
    factor: Any = None,
    addend: Any = None,
    keep_order: bool = False,
) -> Launch:
    """The launch of ``Y = activation(W X + bias) * factor + addend`` by a shared window.

    Parameters
    ----------
    matrix : Packed
        The packed matrix in the plan's order, where the launch will run.
    x : array, shape (C, N)
        Feature-major activations as 16-bit words, rows contiguous.
    y : array, shape (R, N)
        What is written; with ``keep_order`` (T * V, N).
    blocking : WindowBlocking
        Of the plan.
    tables : WindowTables
        Of the plan, where the launch will run.
    bfloat16 : bool
        Whether the words are bfloat16, else float16.
    bias : array, shape (R,), optional
        By output channel.
    activation : {None, "relu", "gelu", "silu"}
        Of the sum with the bias; gelu in its exact form.
    factor, addend : array, optional
        Of y's shape and row stride.
    keep_order : bool
        Leave packed rows where they are, for a consumer whose index is fused.

    Raises
    ------
    ValueError
        If the activation is unknown, or shapes or strides do not fit together.
    """
    n = int(x.shape[1])
    if int(y.shape[1]) != n:
        raise ValueError(f"y must have x's {n} columns, got shape {tuple(y.shape)}")
    y_stride = row_stride(y)
    for name, array in (("factor", factor), ("addend", addend)):
        if array is not None and (
            tuple(array.shape) != tuple(y.shape) or row_stride(array) != y_stride
        ):
            raise ValueError(
                f"{name} must have y's shape {tuple(y.shape)} and row stride {y_stride}, got "
                f"{tuple(array.shape)} and {row_stride(array)}"
            )
    groups = int(tables.tiles.shape[0])
    return Launch(
        blocking.variant(bfloat16=bfloat16, aligned=begins_on_16_bytes(x, y)),
        grid=(groups * -(-n // blocking.block_n), 1, 1),
        threads=blocking.threads,
        shared_bytes=blocking.shared_bytes,
        arguments={
            "values": matrix.values,
            "metadata": matrix.metadata if blocking.sparse else None,
            "slots": tables.slots,
            "tiles": tables.tiles,
            "tile_steps": tables.tile_steps,
            "phase_ptr": tables.phase_ptr,
            "done": tables.done,
            "loads": tables.loads,
            "groups": groups,
            "row_map": matrix.row_map,
            "keep_order": keep_order,
            "x": x,
            "x_stride": row_stride(x),
            "bias": bias,
            "activation": activation_code(activation),
            "factor": factor,
            "addend": addend,
            "y": y,
            "y_stride": y_stride,
            "n": n,
        },
    )
