"""Index tables: which rows of X a packed tile gathers, and where its output rows belong."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from gyroperm.solution import Solution


@dataclass(frozen=True, eq=False)
class IndexTables:
    """The tables that a gathering multiplication ``Y = W @ X`` reads beside the packed values.

    X is feature-major, ``(inputs, N)``: slot k of a tile multiplies the row ``columns[k]`` of X,
    and packed row p of the product is row ``row_map[p]`` of Y. The values are the tile's
    ``V x K_t`` block of the masked weights, in the same order of slots.

    Parameters
    ----------
    columns : ndarray of int, shape (sum of K_t,)
        The row of X that each slot reads: tile after tile, group after group. A virtual slot
        reads row 0, and its values must be zero. Stored as uint16 where ``inputs`` allows it,
        else as int32.
    tile_ptr : ndarray of int, shape (T + 1,)
        The slots of tile t are ``columns[tile_ptr[t] : tile_ptr[t + 1]]``; stored as int32.
    row_map : ndarray of int, shape (T * V,)
        The original output row at each packed row, -1 at virtual rows; stored as int32.
    inputs : int
        The rows of X.
    outputs : int
        The rows of Y, those included that the pattern pruned whole and no tile holds.

    Raises
    ------
    ValueError
        If the tables do not fit together; the message names the table.
    TypeError
        If a table does not hold integers.
    """

    columns: NDArray[np.integer]
    tile_ptr: NDArray[np.integer]
    row_map: NDArray[np.integer]
    inputs: int
    outputs: int

    def __post_init__(self) -> None:
        columns = _integers("columns", self.columns)
        tile_ptr = _integers("tile_ptr", self.tile_ptr)
        row_map = _integers("row_map", self.row_map)
        _check_columns(columns, self.inputs)
        _check_tile_ptr(tile_ptr, len(columns))
        _check_row_map(row_map, len(tile_ptr) - 1, self.outputs)
        set_ = object.__setattr__
        set_(self, "columns", _frozen(columns, _column_dtype(self.inputs)))
        set_(self, "tile_ptr", _frozen(tile_ptr, np.int32))
        set_(self, "row_map", _frozen(row_map, np.int32))

    @classmethod
    def from_solution(cls, solution: Solution) -> IndexTables:
        """The tables of a solution, for X with its rows in the original order.

        Parameters
        ----------
        solution : Solution
            Of a matrix, a list of matrices that multiply the same X (their outputs are
            stacked), or a convolution whose pattern takes the im2col view.

        Raises
        ------
        ValueError
            If no single product ``W @ X`` is behind the solution: a grouped convolution, whose
            groups read channels of their own, or a convolution solved by input channel.
        """
        view = solution.view
        if view.conv_groups > 1:
            raise ValueError(
                f"solution must be of one matrix product, got a convolution of "
                f"{view.conv_groups} groups; solve the groups one by one"
            )
        if not view.im2col and any(len(shape) > 2 for shape in view.shapes):
            raise ValueError(
                f"solution must be of one matrix product, got a convolution solved by input "
                f"channel ({solution.pattern}); only patterns that take the im2col view have one"
            )
        slots = [groups.reshape(-1) for groups in solution.groups]
        columns = np.concatenate(slots)
        return cls(
            columns=np.where(columns < 0, 0, columns),
            tile_ptr=np.cumsum([0, *map(len, slots)]),
            row_map=solution.tile_rows.reshape(-1),
            inputs=math.prod(view.shapes[0][1:]),
            outputs=sum(view.row_counts),
        )

    @property
    def tiles(self) -> int:
        """T, the number of tiles."""
        return len(self.tile_ptr) - 1

    @property
    def tile_size(self) -> int:
        """V, the rows of a tile."""
        return len(self.row_map) // self.tiles

    @property
    def output_order(self) -> NDArray[np.int32]:
        """The original row at each row of an output that is left as it was computed.

        ``row_map``, then the rows that no tile holds, ascending; -1 where a virtual row lies.
        A producer that skips its row map leaves T * V rows in this order, followed by the rows
        that were pruned whole, which hold what an empty product gives (zero, or the bias). Hand
        it to :func:`fuse` for every consumer.
        """
        pruned = np.setdiff1d(np.arange(self.outputs, dtype=np.int32), self.row_map)
        return np.concatenate([self.row_map, pruned])


def fuse(consumer: IndexTables, producer_row_order: ArrayLike) -> IndexTables:
    """The consumer's tables for an X that its producer left in its own row order.

    Each column id c becomes ``position_of[c]``, where ``position_of`` is the inverse of the
    producer's row order: the consumer then reads every row where the producer left it, and the
    permutation between the two layers costs nothing. Only elementwise work may lie between the
    layers, its per-row parameters (the bias) in the producer's order too. Several consumers of
    one producer are fused each for itself.

    Parameters
    ----------
    consumer : IndexTables
        For X in the original order.
    producer_row_order : array_like of int, shape (P,)
        The original row at each position of the producer's output: its
        :attr:`IndexTables.output_order`, or a solution's ``row_order`` where packed rows are
        written without gaps. -1 marks a position that holds no row.

    Returns
    -------
    IndexTables
        The same rows and slots, reading an X of P rows.

    Raises
    ------
    ValueError
        If the row order, without its -1, is not a permutation of the consumer's input rows.
    TypeError
        If it does not hold integers.
    """
    order = _integers("producer_row_order", producer_row_order)
    needed = f"the consumer reads an X of {consumer.inputs} rows"
    position_of = _inverse("producer_row_order", order, consumer.inputs, needed)
    return replace(consumer, columns=position_of[consumer.columns], inputs=len(order))


def align(tables: IndexTables, row_order: ArrayLike) -> IndexTables:
    """The tables of a product whose rows are to lie where another product left its own.

    Each entry r of the row map becomes ``position_of[r]``, as :func:`fuse` has it: what is written
    through it can be combined, element by element, with what lies there. Per-row parameters (the
    bias) are then read in that order too.

    Parameters
    ----------
    tables : IndexTables
        With a row map into the original order.
    row_order : array_like of int, shape (P,)
        The original row at each position of the other product, -1 for none: its
        :attr:`IndexTables.output_order`.

    Returns
    -------
    IndexTables
        The same slots and rows, writing to P rows.

    Raises
    ------
    ValueError
        If the row order, without its -1, is not a permutation of the rows of the product.
    TypeError
        If it does not hold integers.
    """
    order = _integers("row_order", row_order)
    needed = f"the product has {tables.outputs} rows"
    position_of = _inverse("row_order", order, tables.outputs, needed)
    rows = tables.row_map
    return replace(tables, row_map=np.where(rows < 0, -1, position_of[rows]), outputs=len(order))


def _inverse(name: str, order: NDArray[np.integer], rows: int, needed: str) -> NDArray[np.int64]:
    if order.size and order.min() < -1:
        raise ValueError(f"{name} must hold row ids or -1, got {order.min()}")
    positions = np.flatnonzero(order >= 0)
    real = order[positions]
    if len(real) != rows:
        raise ValueError(f"{name} names {len(real)} rows, {needed}")
    position_of = np.full(rows, -1, dtype=np.int64)
    within = real < rows
    position_of[real[within]] = positions[within]
    missing = np.flatnonzero(position_of < 0)
    if missing.size:
        raise ValueError(f"{name} is not a permutation of {rows} rows: row {missing[0]} is missing")
    return position_of


def _integers(name: str, array: ArrayLike) -> NDArray[np.integer]:
    result = np.asarray(array)
    if result.size and result.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, got an array of dtype {result.dtype}")
    if result.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got shape {result.shape}")
    return result.astype(np.int64)


def _frozen(array: NDArray[np.integer], dtype: type[np.integer]) -> NDArray[np.integer]:
    result = array.astype(dtype)
    result.setflags(write=False)
    return result


def _column_dtype(inputs: int) -> type[np.integer]:
    # Half the bytes wherever they suffice: a table is read once per tile and block of X.
    return np.uint16 if inputs - 1 <= np.iinfo(np.uint16).max else np.int32


def _check_columns(columns: NDArray[np.integer], inputs: int) -> None:
    if inputs < 1:
        raise ValueError(f"inputs must be at least 1, got {inputs}")
    if columns.size and not (columns.min() >= 0 and columns.max() < inputs):
        raise ValueError(
            f"columns must lie in [0, {inputs}), got values from {columns.min()} to {columns.max()}"
        )


def _check_tile_ptr(tile_ptr: NDArray[np.integer], slots: int) -> None:
    if len(tile_ptr) < 2:
        raise ValueError(f"tile_ptr must have T + 1 entries for T >= 1, got {len(tile_ptr)}")
    if (np.diff(tile_ptr) < 0).any():
        raise ValueError("tile_ptr must not fall")
    if tile_ptr[0] != 0 or tile_ptr[-1] != slots:
        raise ValueError(
            f"tile_ptr must run from 0 to the {slots} slots of columns, got {tile_ptr[0]} to "
            f"{tile_ptr[-1]}"
        )


def _check_row_map(row_map: NDArray[np.integer], tiles: int, outputs: int) -> None:
    if not row_map.size or row_map.size % tiles:
        raise ValueError(f"row_map must hold V rows for each of {tiles} tiles, got {row_map.size}")
    real = row_map[row_map >= 0]
    if row_map.min() < -1 or (real.size and real.max() >= outputs):
        raise ValueError(
            f"row_map must hold rows in [0, {outputs}) or -1, got values from {row_map.min()} to "
            f"{row_map.max()}"
        )
    if len(np.unique(real)) != real.size:
        raise ValueError("row_map names a row twice")
