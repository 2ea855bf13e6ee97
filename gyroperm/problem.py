"""What a solver is given: a saliency matrix, a pattern, and which rows may share a tile."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gyroperm.pattern import Pattern


@dataclass(frozen=True, eq=False)
class Problem:
    """A permutation problem in matrix form.

    Parameters
    ----------
    saliency : ndarray of float32 or float64, shape (R, C)
        Non-negative and finite; C-contiguous.
    pattern : Pattern
        The pattern to satisfy.
    blocks : tuple of int, optional
        Row counts that sum to R. Rows of different blocks never share a tile (the matrices of a
        list, the groups of a grouped convolution). By default one block of all rows.
    orders : int, optional
        How many column orders the layer has, 1 or ``len(blocks)``; matters to patterns with a
        shared order only. Plain N:M makes one tile of each order's rows.

    Raises
    ------
    ValueError
        If shapes or counts do not fit together, or the pattern leaves fewer than m columns.
    """

    saliency: NDArray[np.floating]
    pattern: Pattern
    blocks: tuple[int, ...] = field(default=())
    orders: int = 1

    def __post_init__(self) -> None:
        if self.saliency.ndim != 2 or not self.saliency.size:
            raise ValueError(f"saliency must be a non-empty matrix, got {self.saliency.shape}")
        if not self.blocks:
            object.__setattr__(self, "blocks", (self.rows,))
        if sum(self.blocks) != self.rows or min(self.blocks) < 1:
            raise ValueError(f"blocks={self.blocks} must be positive and sum to {self.rows} rows")
        if self.orders not in (1, len(self.blocks)):
            raise ValueError(f"orders must be 1 or {len(self.blocks)}, got {self.orders}")
        if self.pattern.is_plain and self.orders != len(self.blocks):
            # One tile of all rows: blocks that share the order share the tile.
            object.__setattr__(self, "blocks", (self.rows,))
        self.pattern.kept_columns(self.columns)

    @property
    def rows(self) -> int:
        """R, the rows of the matrix (output channels)."""
        return self.saliency.shape[0]

    @property
    def columns(self) -> int:
        """C, the columns of the matrix (input channels)."""
        return self.saliency.shape[1]

    @cached_property
    def padded_columns(self) -> int:
        """C rounded up to whole groups or windows; the columns beyond C are virtual."""
        return self.pattern.padded_columns(self.columns)

    @cached_property
    def tile_size(self) -> int:
        """V, the rows of a tile (the largest block, where a tile is all rows)."""
        return self.pattern.vec_size or max(len(rows) for rows in self.block_rows)

    @cached_property
    def block_rows(self) -> tuple[NDArray[np.int32], ...]:
        """For each block the rows that are kept, ascending (all of them unless row_ratio > 0)."""
        result = []
        start = 0
        for count in self.blocks:
            keep = self.pattern.kept_rows(count)
            # Only the order of the sums matters, and ties keep the earlier row.
            sums = self.saliency[start : start + count].sum(axis=1, dtype=np.float64)
            chosen = np.sort(np.argsort(-sums, kind="stable")[:keep]) + start
            result.append(chosen.astype(np.int32))
            start += count
        return tuple(result)

    @cached_property
    def block_tiles(self) -> tuple[int, ...]:
        """The number of tiles of each block."""
        return tuple(math.ceil(len(rows) / self.tile_size) for rows in self.block_rows)

    @cached_property
    def tile_block(self) -> NDArray[np.int32]:
        """The block of each tile, shape (T,)."""
        counts = np.asarray(self.block_tiles)
        return np.repeat(np.arange(len(counts), dtype=np.int32), counts)

    @cached_property
    def tile_order(self) -> NDArray[np.int32]:
        """The column order that each tile follows, shape (T,); all 0 if there is one order."""
        return self.tile_block if self.orders > 1 else np.zeros_like(self.tile_block)

    @property
    def tiles(self) -> int:
        """T, the number of tiles."""
        return len(self.tile_block)

    @cached_property
    def kept_columns(self) -> int:
        """K, the kept vectors of a tile (of an average tile, where K is ragged)."""
        return self.pattern.kept_columns(self.columns)

    @property
    def groups_per_tile(self) -> int:
        """G = K / m (of an average tile, where K is ragged)."""
        return self.kept_columns // self.pattern.m

    @property
    def total_groups(self) -> int:
        """The groups of all tiles together, which every allocation keeps fixed."""
        return self.groups_per_tile * self.tiles

    @cached_property
    def search_saliency(self) -> NDArray[np.float32]:
        """The saliency in float32, divided by a power of two so that its maximum is in [0.5, 1).

        Searches run on this: no sum overflows, and a saliency scaled by a power of two gives
        bit for bit the same search.
        """
        exponent = math.frexp(float(self.saliency.max()))[1]
        return np.ascontiguousarray(np.ldexp(self.saliency, -exponent), dtype=np.float32)
