"""The product of a packed matrix with few columns, N <= 16: how it is cut into blocks, its launch.

At these sizes the time is that of reading the weights once, so all of it must be under way from
the start on every multiprocessor. See kernels/decode.cu for what a block does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gyroperm.gpu.arrays import address, begins_on_16_bytes, row_stride
from gyroperm.gpu.index import IndexTables
from gyroperm.gpu.launch import Launch
from gyroperm.gpu.source import Variant
from gyroperm.gpu.spmm import STEP_COLUMNS, Packed, activation_code
from gyroperm.gpu.tiling import TILE_SIZES

MAX_COLUMNS = 16

# As in decode.cu.
_FRAGMENT_BYTES = 33 * 16
X_LAYOUTS = _FEATURE_MAJOR, _TOKEN_MAJOR, _FEATURE_MAJOR_VECTORS = 0, 1, 2
_ITEM_FIELDS = 6  # tile, first row, first step, steps, part, parts
_LOADS_AHEAD = 8 * 16  # bytes of weights that a lane has under way

# What a block may hold of X, so that with its partial sums it fits the 99 KiB of sm_86.
_X_BYTES = 64 << 10
_WARPS = 8

# Estimates by which cuts are compared, all in bytes that a multiprocessor reads of the weights in
# the same time, about 32 a nanosecond on an H200.
_IN_FLIGHT = 40 << 10  # what hides the latency of a loaded memory, for each multiprocessor
_RESIDENT = 2  # blocks of a multiprocessor at a time, at least
_BLOCK = 12 << 10  # from a block's start to its first product
_GATHERED_VALUE = 6  # one value of X, into shared memory
_SPLIT = 64 << 10  # parts leave sums, count, and are summed by the last of them
_ALONE = 2  # how much faster than its share a multiprocessor reads while others are idle


@dataclass(frozen=True, eq=False)
class DecodePlan:
    """How a packed matrix is cut into blocks for a device; made once by :meth:`of`.

    Parameters
    ----------
    tables : IndexTables
        Of the packed matrix.
    sparse : bool
        Whether its values are sparse inside.
    n : int
        The most columns of X that a launch may have.
    block_rows : int
        The rows of a block, a divisor of V.
    part_steps : int
        The most steps of a block.
    work_items : ndarray of int32, shape (B, 6), or None
        For tiles of different sizes what each block does: tile, first row within it, first step
        over all tiles, steps, part, parts. None where the grid says it.
    grid : tuple of int, shape (3,)
        Blocks in x, y and z.
    slots : int
        Sums of a block that the workspace holds; 0 where no tile is split.
    """

    tables: IndexTables
    sparse: bool
    n: int
    block_rows: int
    part_steps: int
    work_items: NDArray[np.int32] | None
    grid: tuple[int, int, int]
    slots: int

    @classmethod
    def of(
        cls,
        tables: IndexTables,
        *,
        sparse: bool,
        multiprocessors: int,
        n: int = MAX_COLUMNS,
        block_rows: int | None = None,
        part_steps: int | None = None,
    ) -> DecodePlan:
        """A plan by an estimate of what each way to cut the matrix costs.

        Parameters
        ----------
        tables : IndexTables
            With tiles of 64 k slots, V of 16, 32, 64, 128 or 256 rows.
        sparse : bool
            Whether the values are sparse inside (two of four kept), else dense inside.
        multiprocessors : int
            Of the device.
        n : int
            The most columns of X, 1 to 16. A plan for fewer splits tiles less.
        block_rows, part_steps : int, optional
            Rows and most steps of a block, where a measurement knows better than the estimate.

        Raises
        ------
        ValueError
            If an argument is out of range; the message says what would be accepted.
        """
        if not 1 <= n <= MAX_COLUMNS:
            raise ValueError(f"n must lie in 1..{MAX_COLUMNS}, got {n}")
        if multiprocessors < 1:
            raise ValueError(f"multiprocessors must be at least 1, got {multiprocessors}")
        V = tables.tile_size
        if V not in TILE_SIZES:
            sizes = ", ".join(map(str, TILE_SIZES))
            raise ValueError(f"tables must have tiles of {sizes} rows, got {V}")
        if (tables.tile_ptr % STEP_COLUMNS).any():
            raise ValueError(f"tables must have a multiple of {STEP_COLUMNS} slots in every tile")
        steps = _steps(tables)
        most = most_steps(n)
        if block_rows is not None and block_rows not in _block_rows(V):
            accepted = ", ".join(map(str, _block_rows(V)))
            raise ValueError(f"block_rows must be one of {accepted}, got {block_rows}")
        if part_steps is not None and not 1 <= part_steps <= most:
            raise ValueError(f"part_steps must lie in 1..{most} for n={n}, got {part_steps}")
        cuts = [
            cut
            for cut in _cuts(V, int(steps.max()), most)
            if block_rows in (None, cut[0]) and part_steps in (None, cut[1])
        ]
        if not cuts:  # part_steps that leave the parts of a tile uneven
            rows = [block_rows] if block_rows else _block_rows(V)
            cuts = [(r, part_steps or most) for r in rows]
        chosen = min(cuts, key=lambda cut: _cost(steps, V, cut, sparse, n, multiprocessors))
        return cls._cut(tables, steps, sparse, n, *chosen)

    @classmethod
    def _cut(
        cls,
        tables: IndexTables,
        steps: NDArray[np.integer],
        sparse: bool,
        n: int,
        block_rows: int,
        part_steps: int,
    ) -> DecodePlan:
        row_blocks = tables.tile_size // block_rows
        full = int((steps > 0).sum())
        parts = np.maximum(1, -(-steps // part_steps))
        items, grid = None, (tables.tiles, row_blocks, int(parts.max()))
        slots = full * row_blocks * grid[2]
        if not ((steps[:full] == steps[0]).all() and (steps[full:] == 0).all()):
            items = _items(steps, parts, block_rows, row_blocks)
            grid, slots = (len(items), 1, 1), len(items)
        if parts.max() == 1:
            slots = 0
        return cls(tables, sparse, n, block_rows, part_steps, items, grid, slots)

    @property
    def workspace_values(self) -> int:
        """The float32 values of the workspace; what they hold before a launch does not matter."""
        return self.slots * self.block_rows * 8 * _fragments(self.n)

    @property
    def counters(self) -> int:
        """The uint32 counters; zero before a launch, and again after it."""
        row_blocks = self.tables.tile_size // self.block_rows
        return self.tables.tiles * row_blocks if self.slots else 0

    @property
    def slices(self) -> int:
        """Warps of a block that share its rows."""
        return _slices(self.block_rows)

    @property
    def threads(self) -> int:
        """Of a block."""
        return block_threads(self.block_rows)

    @property
    def tile_steps(self) -> NDArray[np.int32]:
        """Steps of each tile."""
        return _steps(self.tables)

    def variant(self, n: int, *, bfloat16: bool, x_layout: int) -> Variant:
        """The kernel for n columns of an X that lies as decode.cu's X_LAYOUT says."""
        return decode_variant(
            self.block_rows,
            n,
            sparse=self.sparse,
            bfloat16=bfloat16,
            x_layout=x_layout,
        )

    def shared_bytes(self, n: int) -> int:
        """Shared memory of a block for n columns of X: what it gathers, and its partial sums."""
        steps = min(self.part_steps, int(self.tile_steps.max()))
        return steps * _step_bytes(n) + _partial_bytes(self.block_rows, n)


def decode_variant(
    block_rows: int, n: int, *, sparse: bool, bfloat16: bool, x_layout: int
) -> Variant:
    """The kernel for blocks of so many rows; x_layout is one of :data:`X_LAYOUTS`."""
    return Variant.of(
        "decode",
        {
            "BLOCK_ROWS": block_rows,
            "K_SLICES": _slices(block_rows),
            "COLUMN_FRAGMENTS": _fragments(n),
            "SPARSE": sparse,
            "X_LAYOUT": x_layout,
            "GYROPERM_BF16": bfloat16,
        },
    )


def block_threads(block_rows: int) -> int:
    """Threads of a block of so many rows."""
    return 32 * _slices(block_rows) * (block_rows // 16)


def most_shared_bytes(block_rows: int, n: int) -> int:
    """What a block of so many rows takes of shared memory at most."""
    return most_steps(n) * _step_bytes(n) + _partial_bytes(block_rows, n)


def decode_launch(
    matrix: Packed,
    x: Any,
    y: Any,
    *,
    plan: DecodePlan,
    bfloat16: bool,
    work_items: Any,
    workspace: Any,
    counters: Any,
    token_major_x: bool = False,
    token_major_y: bool = False,
    bias: Any = None,
    activation: str | None = None,
    factor: Any = None,
    addend: Any = None,
    keep_order: bool = False,
) -> Launch:
    """The launch of ``Y = activation(W X + bias) * factor + addend`` for N <= 16.

    Parameters
    ----------
    matrix : Packed
        The packed matrix where the launch will run.
    x : array, shape (C, N), or (N, C) where token-major
        Activations as 16-bit words, rows contiguous; N is at most ``plan.n``.
    y : array, shape (R, N), or (N, R) where token-major
        What is written; with ``keep_order`` R is T * V.
    plan : DecodePlan
        Of this matrix.
    bfloat16 : bool
        Whether the words are bfloat16, else float16.
    work_items : array of int32, shape (B, 6), or None
        The plan's, where the launch will run.
    workspace : array of float32, shape (plan.workspace_values,)
        Holds the parts of split tiles; None where none is split.
    counters : array of uint32, shape (plan.counters,)
        Zeros; zeros again after the launch. None where no tile is split.
    token_major_x, token_major_y : bool
        Whether x and y lie as in a model, a row for each token.
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
    tables = plan.tables
    n = int(x.shape[0 if token_major_x else 1])
    if not 1 <= n <= plan.n:
        raise ValueError(f"x must have 1 to {plan.n} columns, as planned, got {n}")
    outputs = len(tables.row_map) if keep_order else tables.outputs
    _check_shape("x", x, (tables.inputs, n), token_major_x)
    _check_shape("y", y, (outputs, n), token_major_y)
    x_stride, y_stride = row_stride(x), row_stride(y)
    for name, array in (("factor", factor), ("addend", addend)):
        if array is not None and (
            tuple(array.shape) != tuple(y.shape) or row_stride(array) != y_stride
        ):
            raise ValueError(
                f"{name} must have y's shape {tuple(y.shape)} and row stride {y_stride}, got "
                f"{tuple(array.shape)} and {row_stride(array)}"
            )
    size = 2 * matrix.columns.dtype.itemsize
    if address(matrix.columns) % size:
        raise ValueError(f"columns must begin on {size} bytes, two of them are read at a time")
    steps = plan.tile_steps
    return Launch(
        plan.variant(n, bfloat16=bfloat16, x_layout=_x_layout(x, n, token_major_x)),
        grid=plan.grid,
        threads=plan.threads,
        shared_bytes=plan.shared_bytes(n),
        arguments={
            "tile_rows": tables.tile_size,
            "values": matrix.values,
            "metadata": matrix.metadata if plan.sparse else None,
            "columns": matrix.columns,
            "wide_columns": matrix.columns.dtype.itemsize == 4,
            "row_map": matrix.row_map,
            "keep_order": keep_order,
            "work_items": work_items,
            "full_tiles": int(np.count_nonzero(steps)),
            "tile_steps": int(steps[0]),
            "part_steps": plan.part_steps,
            "tile_parts": plan.grid[2],
            "workspace": workspace,
            "counters": counters,
            "x": x,
            "x_stride": x_stride,
            "bias": bias,
            "activation": activation_code(activation),
            "factor": factor,
            "addend": addend,
            "y": y,
            "y_row": 1 if token_major_y else y_stride,
            "y_column": y_stride if token_major_y else 1,
            "n": n,
        },
    )


def _steps(tables: IndexTables) -> NDArray[np.int32]:
    steps: NDArray[np.int32] = np.diff(tables.tile_ptr) // STEP_COLUMNS
    return steps


def _slices(block_rows: int) -> int:
    return max(1, _WARPS // (block_rows // 16))


def _fragments(n: int) -> int:
    return 1 if n <= 8 else 2


def _partial_bytes(block_rows: int, n: int) -> int:
    return _slices(block_rows) * 8 * _fragments(n) * (block_rows + 4) * 4


def _step_bytes(n: int) -> int:
    return 2 * _fragments(n) * _FRAGMENT_BYTES


def most_steps(n: int) -> int:
    """The most steps of a block for n columns of X."""
    return _X_BYTES // _step_bytes(n)


def _block_rows(V: int) -> list[int]:
    return [rows for rows in TILE_SIZES if rows <= V]


def _cuts(V: int, longest: int, most: int) -> Iterator[tuple[int, int]]:
    """Rows and steps of a block, such that the parts of the longest tile are as even as can be."""
    even = {-(-longest // parts) for parts in range(1, longest + 1)} or {1}
    for rows in _block_rows(V):
        yield from ((rows, steps) for steps in sorted(even) if steps <= most)


def _cost(
    steps: NDArray[np.integer],
    V: int,
    cut: tuple[int, int],
    sparse: bool,
    n: int,
    multiprocessors: int,
) -> float:
    block_rows, part_steps = cut
    row_blocks = V // block_rows
    step_bytes = block_rows * (72 if sparse else 128)
    parts = -(-steps // part_steps)
    blocks = max(1, int(parts.sum()) * row_blocks)
    longest = min(part_steps, int(steps.max()))
    each = -(-blocks // multiprocessors)  # of the busiest multiprocessor
    total = int(steps.sum()) * row_blocks * step_bytes
    stream = max(total / multiprocessors, each * longest * step_bytes / _ALONE)
    lanes = 32 * max(block_rows // 16, _WARPS)
    block_ahead = min(longest * step_bytes, lanes * _LOADS_AHEAD)
    ahead = min(blocks, multiprocessors * _RESIDENT) * block_ahead
    stream *= max(1.0, _IN_FLIGHT * multiprocessors / max(ahead, 1))
    gather = each * longest * STEP_COLUMNS * n * _GATHERED_VALUE
    split = 0.0
    if parts.max() > 1:
        split = _SPLIT + int(parts.max()) * block_rows * 4 * n
    return float(stream + gather + split + -(-each // _RESIDENT) * _BLOCK)


def _items(
    steps: NDArray[np.integer], parts: NDArray[np.integer], block_rows: int, row_blocks: int
) -> NDArray[np.int32]:
    """What each block does, the longest first, so that none of them begins late."""
    first_steps = np.cumsum([0, *steps])
    per_part = -(-steps // parts)
    rows = []
    for tile in np.argsort(-per_part, kind="stable"):
        for block in range(row_blocks):
            for part in range(parts[tile]):
                done = part * steps[tile] // parts[tile]
                count = (part + 1) * steps[tile] // parts[tile] - done
                rows.append(
                    (tile, block * block_rows, first_steps[tile] + done, count, part, parts[tile])
                )
    return np.array(rows, dtype=np.int32).reshape(-1, _ITEM_FIELDS)


def _check_shape(name: str, array: Any, shape: tuple[int, int], token_major: bool) -> None:
    expected = shape[::-1] if token_major else shape
    if tuple(array.shape) != expected:
        raise ValueError(f"{name} must have shape {expected}, got {tuple(array.shape)}")


def _x_layout(x: Any, n: int, token_major: bool) -> int:
    if token_major:
        return _TOKEN_MAJOR
    return _FEATURE_MAJOR_VECTORS if n % 8 == 0 and begins_on_16_bytes(x) else _FEATURE_MAJOR
