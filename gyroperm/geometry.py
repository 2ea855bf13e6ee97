"""The geometry of a problem: tiles, groups and orders, from a pattern and a matrix's shape."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gyroperm.pattern import Pattern


class Geometry:
    """Sizes that follow from a pattern, a shape, and which rows may share tiles and orders.

    Whoever inherits provides the attributes.

    Attributes
    ----------
    pattern : Pattern
    rows, columns : int
        R and C, the shape of the matrix.
    blocks : tuple of int
        Row counts that sum to R; rows of different blocks never share a tile.
    orders : int
        How many column orders the layer has, 1 or ``len(blocks)``.
    """

    pattern: Pattern
    rows: int
    columns: int
    blocks: tuple[int, ...]
    orders: int

    @cached_property
    def padded_columns(self) -> int:
        """C rounded up to whole groups or windows; the columns beyond C are virtual."""
        return self.pattern.padded_columns(self.columns)

    @cached_property
    def kept_rows(self) -> tuple[int, ...]:
        """The rows of each block that are kept (all of them unless row_ratio > 0)."""
        return tuple(self.pattern.kept_rows(count) for count in self.blocks)

    @cached_property
    def tile_size(self) -> int:
        """V, the rows of a tile (the largest block, where a tile is all rows)."""
        return self.pattern.vec_size or max(self.kept_rows)

    @cached_property
    def block_tiles(self) -> tuple[int, ...]:
        """The number of tiles of each block."""
        return tuple(math.ceil(count / self.tile_size) for count in self.kept_rows)

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
        """The groups of all tiles together, which every allocation keeps fixed.

        A global budget counts a tile that is filled up with virtual rows by its real ones:
        otherwise its groups, spent on full tiles, would keep more than the pattern's sparsity.
        """
        if self.pattern.allocation != "global":
            return self.groups_per_tile * self.tiles
        full = min(self.tile_size, max(self.kept_rows))
        return self.groups_per_tile * sum(self.kept_rows) // full


@dataclass(frozen=True)
class Layout(Geometry):
    """A geometry without saliencies: what a finished solution is checked against."""

    pattern: Pattern
    rows: int
    columns: int
    blocks: tuple[int, ...]
    orders: int = 1


def checked_blocks(
    pattern: Pattern, rows: int, blocks: tuple[int, ...], orders: int
) -> tuple[int, ...]:
    """The blocks of a problem; ValueError unless they fit the rows and the orders."""
    blocks = blocks or (rows,)
    if sum(blocks) != rows or min(blocks) < 1:
        raise ValueError(f"blocks={blocks} must be positive and sum to {rows} rows")
    if orders not in (1, len(blocks)):
        raise ValueError(f"orders must be 1 or {len(blocks)}, got {orders}")
    if pattern.is_plain and orders != len(blocks):
        # One tile of all rows: blocks that share the order share the tile.
        return (rows,)
    return blocks
