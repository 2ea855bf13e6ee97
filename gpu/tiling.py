"""Tiles as the kernels take them: rows by sixteens, slots by steps, every output row in one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gyroperm.gpu.index import IndexTables
from gyroperm.pattern import Pattern
from gyroperm.solution import Solution

#: Slots are padded to multiples of a step, in which the kernels load them.
STEP = 64
FRAGMENT_ROWS = 16
#: The rows that packed tiles may have: few sizes, as there are several kernels for each.
TILE_SIZES = (16, 32, 64, 128, 256)

# What a tile of too many rows is cut into: X is gathered once for so many.
_CUT = 128


@dataclass(frozen=True, eq=False)
class Tiling:
    """Which rows and columns the packed tiles hold.

    Parameters
    ----------
    rows : ndarray of int32, shape (T, V)
        Original rows, -1 for virtual ones.
    columns : tuple of T ndarrays of int32, shapes (64 * steps,)
        The original column of each slot, -1 for virtual ones and pads.
    inputs, outputs : int
        C and R.
    """

    rows: NDArray[np.int32]
    columns: tuple[NDArray[np.int32], ...]
    inputs: int
    outputs: int

    @classmethod
    def of(cls, solution: Solution) -> Tiling:
        """The tiles of a solution.

        Tiles of another size than :data:`TILE_SIZES` are cut into tiles that repeat the columns:
        of the largest such size that divides theirs, or, where they have all rows or more than
        256, of at most 128. Rows that the pattern pruned whole are in tiles without columns.

        Raises
        ------
        ValueError
            If the tiles' rows are no multiple of 16, or no single product is behind the
            solution.
        """
        tables = IndexTables.from_solution(solution)
        size, is_cut = _tile_rows(solution)
        rows, columns = [], []
        for own, groups in zip(solution.tile_rows, solution.groups, strict=True):
            parts = _cut(own[own >= 0], size) if is_cut else own[None]
            rows.append(parts)
            columns += [_padded(groups.reshape(-1), STEP)] * len(parts)
        pruned = np.setdiff1d(np.arange(tables.outputs, dtype=np.int32), solution.tile_rows)
        rows.append(_cut(pruned, size))
        columns += [np.empty(0, np.int32)] * len(rows[-1])
        return cls(np.concatenate(rows), tuple(columns), tables.inputs, tables.outputs)

    @property
    def tile_ptr(self) -> NDArray[np.int64]:
        """The slots of tile t are ``tile_ptr[t]`` to ``tile_ptr[t + 1]``, shape (T + 1,)."""
        return np.cumsum([0, *map(len, self.columns)])

    @property
    def index(self) -> IndexTables:
        """The tables that a kernel reads; virtual slots and pads read row 0 of X."""
        return IndexTables(
            columns=np.maximum(np.concatenate(self.columns), 0),
            tile_ptr=self.tile_ptr,
            row_map=self.rows.reshape(-1),
            inputs=self.inputs,
            outputs=self.outputs,
        )


def is_sparse_inside(pattern: Pattern) -> bool:
    """Whether at most two of every four slots are kept, in groups as the hardware has them."""
    return (pattern.n, pattern.m) in ((1, 2), (1, 4), (2, 4))


def _tile_rows(solution: Solution) -> tuple[int, bool]:
    """The rows of a packed tile, and whether it takes cutting to get them."""
    V = solution.pattern.vec_size
    if V is not None and V % FRAGMENT_ROWS:
        raise ValueError(
            f"vec_size must be a multiple of {FRAGMENT_ROWS}, or None for one tile of all rows, "
            f"to be packed for tensor cores; the solution has vec_size={V}"
        )
    if V is None or TILE_SIZES[-1] < V:
        rows = solution.tile_rows.shape[1]
        return next(size for size in TILE_SIZES if size >= min(rows, _CUT)), True
    size = max(size for size in TILE_SIZES if V % size == 0)
    return size, size != V


def _cut(rows: NDArray[np.int32], size: int) -> NDArray[np.int32]:
    return _padded(rows, size).reshape(-1, size)


def _padded(ids: NDArray[np.int32], unit: int) -> NDArray[np.int32]:
    return np.pad(ids, (0, -len(ids) % unit), constant_values=-1).astype(np.int32, copy=False)
