"""The product of a packed matrix with few columns, N <= 16: how it is cut into blocks, its launch.

At these sizes the time is that of reading the weights once, so all of it must be under way from
the start on every multiprocessor. See kernels/decode.cu for what a block does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gyroperm.gpu.index import IndexTables
from gyroperm.gpu.launch import Launch
from gyroperm.gpu.source import Variant

MAX_COLUMNS = 16
STEP = 64  # kept columns of a step
ACTIVATIONS = ("identity", "relu", "gelu", "silu")

Layout = Literal["feature-major", "token-major"]

# As in decode.cu.
_FRAGMENT_BYTES = 33 * 16
_FEATURE_MAJOR, _TOKEN_MAJOR, _FEATURE_MAJOR_VECTORS = 0, 1, 2
_ITEM_FIELDS = 6  # tile, first row, first step, steps, part, parts
_LOADS_AHEAD = 8 * 16  # bytes of weights that a lane has under way

# What a block may hold of X, so that with its partial sums it fits the 99 KiB of sm_86.
_X_BYTES = 64 << 10
_WARPS = 8

# Estimates by which cuts are compared, all in bytes that a multiprocessor reads of the weights in
# the same time, about 32 a nanosecond on an H200.
_IN_FLIGHT = 24 << 10  # what hides the latency of memory
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
            With tiles of 64 k slots, V a multiple of 16 up to 256.
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
        if V % 16 or not 16 <= V <= 256:
            raise ValueError(f"tables must have tiles of 16, 32, ... 256 rows, got {V}")
        if (tables.tile_ptr % STEP).any():
            raise ValueError(f"tables must have a multiple of {STEP} slots in every tile")
        steps = np.diff(tables.tile_ptr) // STEP
        most = _most_steps(n)
        if block_rows is not None and (block_rows < 16 or block_rows % 16 or V % block_rows):
            raise ValueError(f"block_rows must be a multiple of 16 that divides {V}, got {block_rows}")
        if part_steps is not None and not 1 <= part_steps <= most:
            raise ValueError(f"part_steps must lie in 1..{most} for n={n}, got {part_steps}")
        cuts = [
            cut
            for cut in _cuts(V, int(steps.max()), most)
            if block_rows in (None, cut[0]) and part_steps in (None, cut[1])
        ]
        if not cuts:  # part_steps that leave the parts of a tile uneven
            rows = [block_rows] if block_rows else _divisors(V)
            cuts = [(r, part_steps or most) for r in rows]
        chosen = min(cuts, key=lambda cut: _cost(steps, V, *cut, sparse, n, multiprocessors))
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
    def workspace_floats(self) -> int:
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
        return max(1, _WARPS // (self.block_rows // 16))

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.slices * (self.block_rows // 16)

    def shared_bytes(self, n: int) -> int:
        """Of a block, for n columns of X."""
        steps = min(self.part_steps, int(np.diff(self.tables.tile_ptr).max()) // STEP)
        partials = self.slices * 8 * _fragments(n) * (self.block_rows + 4) * 4
        return steps * _step_bytes(n) + partials


def decode_launch(
    plan: DecodePlan,
    arrays: Mapping[str, Any],
    x: Any,
    y: Any,
    *,
    n: int,
    dtype: Literal["float16", "bfloat16"],
    x_layout: Layout = "feature-major",
    y_layout: Layout = "feature-major",
    keep_order: bool = False,
    bias: Any = None,
    activation: str = "identity",
    factor: Any = None,
    addend: Any = None,
) -> Launch:
    """The launch that computes ``Y = activation(W @ X + bias) * factor + addend``.

    Parameters
    ----------
    plan : DecodePlan
        Of the packed matrix.
    arrays : mapping
        ``values``, ``metadata`` (None where dense inside), ``columns`` and ``row_map`` of the
        packed matrix, and of the plan ``work_items``, ``workspace`` (float32) and ``counters``
        (uint32, zero), None where it needs none. Two launches that may run at the same time
        need workspaces and counters of their own.
    x : array of 16 bits, shape (C, >= N) or token-major (>= N, >= C)
        Rows may lie apart; within a row elements may not.
    y : array of 16 bits, shape (R, >= N) or token-major (>= N, >= R)
        Written in its first N columns (rows). With `keep_order` R is T * V.
    n : int
        N, 1 to ``plan.n``.
    dtype : {"float16", "bfloat16"}
        What the 16 bits mean.
    x_layout, y_layout : {"feature-major", "token-major"}
        How x and y lie.
    keep_order : bool
        Leave the rows of Y in packed order; rows that hold no output channel are not written.
    bias : array of 16 bits, shape (outputs,), optional
        By output channel, in either order of rows.
    activation : {"identity", "relu", "gelu", "silu"}
        The exact form of gelu.
    factor, addend : array of 16 bits, optional
        As y, and with its strides.

    Returns
    -------
    Launch

    Raises
    ------
    ValueError
        If an argument does not fit; the message names it and what would be accepted.
    """
    if not 1 <= n <= plan.n:
        raise ValueError(f"n must lie in 1..{plan.n}, as the plan was made, got {n}")
    if dtype not in ("float16", "bfloat16"):
        raise ValueError(f"dtype must be float16 or bfloat16, got {dtype!r}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    tables = plan.tables
    outputs = len(tables.row_map) if keep_order else tables.outputs
    x_stride = _row_stride("x", x, x_layout, tables.inputs, n)
    y_stride = _row_stride("y", y, y_layout, outputs, n)
    for name, other in (("factor", factor), ("addend", addend)):
        if other is not None and _row_stride(name, other, y_layout, outputs, n) != y_stride:
            raise ValueError(f"{name} must have the strides of y, {y.strides}, got {other.strides}")
    if bias is not None and (tuple(bias.shape) != (tables.outputs,) or bias.dtype.itemsize != 2):
        raise ValueError(
            f"bias must have {tables.outputs} values of 16 bits, got shape {tuple(bias.shape)} "
            f"of {bias.dtype}"
        )
    steps = np.diff(tables.tile_ptr) // STEP
    variant = Variant.of(
        "decode",
        {
            "TILE_ROWS": tables.tile_size,
            "BLOCK_ROWS": plan.block_rows,
            "K_SLICES": plan.slices,
            "COLUMN_FRAGMENTS": _fragments(n),
            "SPARSE": plan.sparse,
            "X_LAYOUT": _kernel_layout(x, x_layout, x_stride, n),
            "WIDE_COLUMNS": tables.columns.dtype.itemsize == 4,
            "GYROPERM_BF16": dtype == "bfloat16",
        },
    )
    by_row = y_layout == "feature-major"
    arguments = {
        **{name: arrays[name] for name in ("values", "metadata", "columns", "row_map")},
        "keep_order": keep_order,
        **{name: arrays[name] for name in ("work_items", "workspace", "counters")},
        "full_tiles": int((steps > 0).sum()),
        "tile_steps": int(steps[0]),
        "part_steps": plan.part_steps,
        "tile_parts": plan.grid[2],
        "x": x,
        "x_stride": x_stride,
        "bias": bias,
        "activation": ACTIVATIONS.index(activation),
        "factor": factor,
        "addend": addend,
        "y": y,
        "y_row": y_stride if by_row else 1,
        "y_column": 1 if by_row else y_stride,
        "n": n,
    }
    return Launch(variant, plan.grid, plan.threads, plan.shared_bytes(n), arguments)


def _fragments(n: int) -> int:
    return 1 if n <= 8 else 2


def _step_bytes(n: int) -> int:
    return 2 * _fragments(n) * _FRAGMENT_BYTES


def _most_steps(n: int) -> int:
    return _X_BYTES // _step_bytes(n)


def _divisors(V: int) -> list[int]:
    return [rows for rows in range(16, V + 1, 16) if V % rows == 0]


def _cuts(V: int, longest: int, most: int) -> Iterator[tuple[int, int]]:
    """Rows and steps of a block, such that the parts of the longest tile are as even as can be."""
    even = {-(-longest // parts) for parts in range(1, longest + 1)} or {1}
    for rows in _divisors(V):
        yield from ((rows, steps) for steps in sorted(even) if steps <= most)


def _cost(
    steps: NDArray[np.integer],
    V: int,
    block_rows: int,
    part_steps: int,
    sparse: bool,
    n: int,
    multiprocessors: int,
) -> float:
    row_blocks = V // block_rows
    step_bytes = block_rows * (72 if sparse else 128)
    parts = -(-steps // part_steps)
    blocks = max(1, int(parts.sum()) * row_blocks)
    longest = min(part_steps, int(steps.max()))
    each = -(-blocks // multiprocessors)  # of the busiest multiprocessor
    total = int(steps.sum()) * row_blocks * step_bytes
    stream = max(total / multiprocessors, each * longest * step_bytes / _ALONE)
    lanes = 32 * (block_rows // 16) * max(1, _WARPS // (block_rows // 16))
    ahead = min(each, _RESIDENT) * min(longest * step_bytes, lanes * _LOADS_AHEAD)
    stream *= max(1.0, _IN_FLIGHT / max(ahead, 1))
    gather = each * longest * STEP * n * _GATHERED_VALUE
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


def _row_stride(name: str, array: Any, layout: str, features: int, n: int) -> int:
    if layout not in ("feature-major", "token-major"):
        raise ValueError(f"{name}_layout must be feature-major or token-major, got {layout!r}")
    rows, columns = (features, n) if layout == "feature-major" else (n, features)
    shape = tuple(array.shape)
    if array.dtype.itemsize != 2:
        raise ValueError(f"{name} must hold values of 16 bits, got {array.dtype}")
    if len(shape) != 2 or shape[0] < rows or shape[1] < columns:
        raise ValueError(f"{name} must have at least {rows} rows of {columns} values ({layout}), got {shape}")
    if layout == "feature-major" and shape[0] != features:
        raise ValueError(f"{name} must have {features} rows ({layout}), got {shape}")
    row, element = array.strides
    if element != 2 or row < 2 * columns or row % 2:
        raise ValueError(f"{name} must have rows of consecutive values, got strides {array.strides}")
    return int(row) // 2


def _kernel_layout(x: Any, layout: Layout, x_stride: int, n: int) -> int:
    if layout == "token-major":
        return _TOKEN_MAJOR
    interface = getattr(x, "__cuda_array_interface__", None) or x.__array_interface__
    whole = n % 8 == 0 and x_stride % 8 == 0 and interface["data"][0] % 16 == 0
    return _FEATURE_MAJOR_VECTORS if whole else _FEATURE_MAJOR
