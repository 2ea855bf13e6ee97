"""The product of a packed matrix with a wide X: constants, sizes and arguments of its launch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from gyroperm.gpu.arrays import begins_on_16_bytes, row_stride
from gyroperm.gpu.launch import Launch
from gyroperm.gpu.schedule import Schedule
from gyroperm.gpu.source import Variant
from gyroperm.gpu.tiling import TILE_SIZES

STEP_COLUMNS = 64
# Of a thread.
MOST_REGISTERS = 255
# Of X, that a block computes at a time.
BLOCK_COLUMNS = (32, 64, 128)
ACTIVATIONS = {None: 0, "relu": 1, "gelu": 2, "silu": 3}


class Packed(Protocol):
    """What a launch reads of a packed matrix, on the host or on a device."""

    @property
    def values(self) -> Any:
        """Fragments of weights."""

    @property
    def metadata(self) -> Any:
        """Which of four are stored."""

    @property
    def columns(self) -> Any:
        """The row of X that each slot reads."""

    @property
    def row_map(self) -> Any:
        """The row of Y at each packed row."""


@dataclass(frozen=True)
class Blocking:
    """How a product is cut up.

    Parameters
    ----------
    tile_size : int
        V, the rows of a tile, which one block computes.
    block_n : int
        Columns of X that a block computes at a time.
    warps_m, warps_n : int
        Warps along rows and along columns.
    stages : int
        Steps that are under way or in use at a time.
    sparse : bool
        Two of four kept inside, else dense.
    """

    tile_size: int
    block_n: int
    warps_m: int
    warps_n: int
    stages: int
    sparse: bool

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.warps_m * self.warps_n

    @property
    def stage_bytes(self) -> int:
        """Shared memory of a stage: rows of X, values, metadata."""
        gathered = STEP_COLUMNS * self.block_n * 2
        values = STEP_COLUMNS * self.tile_size * (1 if self.sparse else 2)
        metadata = self.tile_size * 8 if self.sparse else 0
        return gathered + values + metadata

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: its stages, or what it writes out."""
        return max(self.stages * self.stage_bytes, self.tile_size * (self.block_n * 2 + 16))

    @property
    def registers(self) -> int:
        """About how many registers a thread asks for: its sums, and what was seen beside them."""
        return self.slot_values // self.threads + 104

    @property
    def slot_values(self) -> int:
        """float32 values of a workspace slot."""
        return self.tile_size * self.block_n

    def variant(self, *, bfloat16: bool, aligned: bool) -> Variant:
        """The kernel for this blocking."""
        return Variant.of(
            "spmm",
            {
                "TILE_ROWS": self.tile_size,
                "BLOCK_N": self.block_n,
                "WARPS_M": self.warps_m,
                "WARPS_N": self.warps_n,
                "STAGES": self.stages,
                "SPARSE": self.sparse,
                "ALIGNED": aligned,
                "GYROPERM_BF16": bfloat16,
            },
        )


def blocking(tile_size: int, n: int, *, sparse: bool, shared_limit: int) -> Blocking:
    """The blocking for a tile size and a number of columns.

    Warps take up to 64 rows, so that a fragment of X is read from shared memory once for four
    products, and 32 columns where threads allow it.

    Parameters
    ----------
    tile_size : int
        V: 16, 32, 64, 128 or 256.
    n : int
        Columns of X.
    sparse : bool
        Two of four kept inside, else dense.
    shared_limit : int
        Bytes of shared memory that a block may use on the device.

    Raises
    ------
    ValueError
        If V is not such, or not even two stages fit.
    """
    if tile_size not in TILE_SIZES:
        sizes = ", ".join(map(str, TILE_SIZES))
        raise ValueError(f"tile_size must be one of {sizes}, got {tile_size}")
    return _of_columns(64 if n <= 64 else 128, tile_size, sparse, shared_limit)


def blockings(
    tile_size: int, n: int, *, sparse: bool, shared_limit: int, thorough: bool = False
) -> list[Blocking]:
    """The blockings that may be the fastest for a tile size and a number of columns.

    That of :func:`blocking` first, then others of more or fewer columns. These few are compiled
    for every architecture before a release.

    Parameters
    ----------
    tile_size, n, sparse, shared_limit
        As :func:`blocking` takes them.
    thorough : bool
        Also those of yet other columns, of warps that take half as many rows, and of fewer
        stages, of which more blocks fit beside each other: to be timed.

    Raises
    ------
    ValueError
        As :func:`blocking`.
    """
    first = blocking(tile_size, n, sparse=sparse, shared_limit=shared_limit)
    found = [first]
    for block_n in _up_to(n, BLOCK_COLUMNS):
        found.append(_of_columns(block_n, tile_size, sparse, shared_limit))
    for block_n in _up_to(n, (32, 64, 128, 256)) if thorough else ():
        for warps_m in [m for m in (first.warps_m, 2 * first.warps_m) if 16 * m <= tile_size]:
            warps_n = max(1, min(block_n // 32, 8 // warps_m))
            for stages in (4, 3, 2):
                other = Blocking(tile_size, block_n, warps_m, warps_n, stages, sparse)
                if other.shared_bytes <= shared_limit and other.registers <= MOST_REGISTERS:
                    found.append(other)
    return list(dict.fromkeys(found))


def _up_to(n: int, columns: tuple[int, ...]) -> list[int]:
    """Those of which a block would not be half empty."""
    return [block_n for block_n in columns if block_n == columns[0] or block_n // 2 < n]


def _of_columns(block_n: int, tile_size: int, sparse: bool, shared_limit: int) -> Blocking:
    """The blocking of so many columns, with as many stages as fit."""
    warps_m = max(1, tile_size // 64)
    warps_n = block_n // 32 if warps_m <= 2 else min(block_n // 32, 2)
    for stages in (4, 3, 2):
        chosen = Blocking(tile_size, block_n, warps_m, warps_n, stages, sparse)
        if chosen.shared_bytes <= shared_limit:
            return chosen
    raise ValueError(
        f"a tile of {tile_size} rows needs {chosen.shared_bytes} bytes of shared memory, the "
        f"device has {shared_limit}"
    )


def spmm_launch(
    matrix: Packed,
    x: Any,
    y: Any,
    *,
    blocking: Blocking,
    bfloat16: bool,
    schedule: Schedule,
    work_ptr: Any,
    work_items: Any,
    workspace: Any,
    counters: Any,
    bias: Any = None,
    activation: str | None = None,
    factor: Any = None,
    addend: Any = None,
    keep_order: bool = False,
) -> Launch:
    """The launch of ``Y = activation(W X + bias) * factor + addend``.

    Parameters
    ----------
    matrix : Packed
        The packed matrix where the launch will run.
    x : array, shape (C, N)
        Feature-major activations as 16-bit words, rows contiguous.
    y : array, shape (R, N)
        What is written; with ``keep_order`` (T * V, N).
    blocking : Blocking
        How the product is cut up.
    bfloat16 : bool
        Whether the words are bfloat16, else float16.
    schedule : Schedule
        For this matrix, N and ``blocking.block_n``; ``work_ptr`` and ``work_items`` are its
        arrays where the launch will run.
    workspace : array of float32, shape (schedule.slots * blocking.slot_values,)
        Holds the parts of shared tiles; None where none is shared.
    counters : array of uint32, shape (schedule.counters,)
        Zeros; zeros again after the launch. None where no tile is shared.
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
    y_stride = row_stride(y)
    for name, array in (("factor", factor), ("addend", addend)):
        if array is not None and (
            tuple(array.shape) != tuple(y.shape) or row_stride(array) != y_stride
        ):
            raise ValueError(
                f"{name} must have y's shape {tuple(y.shape)} and row stride {y_stride}, got "
                f"{tuple(array.shape)} and {row_stride(array)}"
            )
    return Launch(
        blocking.variant(bfloat16=bfloat16, aligned=begins_on_16_bytes(x, y)),
        grid=(schedule.blocks, 1, 1),
        threads=blocking.threads,
        shared_bytes=blocking.shared_bytes,
        arguments={
            "values": matrix.values,
            "metadata": matrix.metadata if blocking.sparse else None,
            "columns": matrix.columns,
            "wide_columns": matrix.columns.dtype.itemsize == 4,
            "row_map": matrix.row_map,
            "keep_order": keep_order,
            "work_ptr": work_ptr,
            "work_items": work_items,
            "workspace": workspace,
            "counters": counters,
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


def activation_code(activation: str | None) -> int:
    """The kernels' number of an activation.

    Raises
    ------
    ValueError
        If it is none of them.
    """
    if activation not in ACTIVATIONS:
        names = ", ".join(repr(name) for name in ACTIVATIONS)
        raise ValueError(f"activation must be one of {names}, got {activation!r}")
    return ACTIVATIONS[activation]
