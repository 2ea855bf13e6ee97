"""An arrangement: which rows share a tile, and which columns share a group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gyroperm.geometry import Geometry
from gyroperm.problem import Problem


@dataclass(frozen=True, eq=False)
class Arrangement:
    """What a solver returns: rows in tiles, kept columns in groups.

    Parameters
    ----------
    tile_rows : ndarray of int32, shape (T, V)
        Original row ids, -1 for virtual rows.
    groups : sequence of T ndarrays of int32, shape (G_t, m)
        Original column ids, -1 for virtual slots. In windowed patterns the groups of a tile
        come window by window.
    col_order : ndarray of int32, shape (C',) or (orders, C'), or None
        The shared column order, -1 for virtual columns; None where tiles order their own.
    """

    tile_rows: NDArray[np.int32]
    groups: tuple[NDArray[np.int32], ...]
    col_order: NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        def frozen(array: NDArray[np.integer]) -> NDArray[np.int32]:
            result: NDArray[np.int32] = np.array(array, dtype=np.int32, order="C")
            result.setflags(write=False)
            return result

        set_ = object.__setattr__
        set_(self, "tile_rows", frozen(self.tile_rows))
        set_(self, "groups", tuple(frozen(g) for g in self.groups))
        if self.col_order is not None:
            set_(self, "col_order", frozen(self.col_order))

    def row_order(self, rows: int) -> NDArray[np.int32]:
        """Packed rows in tile order; rows that were pruned as a whole come last, ascending."""
        packed = self.tile_rows[self.tile_rows >= 0]
        pruned = np.setdiff1d(np.arange(rows, dtype=np.int32), packed)
        return np.concatenate([packed, pruned]).astype(np.int32)

    def mask(self, saliency: NDArray[np.floating], n: int) -> NDArray[np.bool_]:
        """The best mask of this arrangement for a saliency matrix, shape (R, C)."""
        from gyroperm.solvers.kernels.masking import mask_tile

        mask = np.zeros(saliency.shape, dtype=np.bool_)
        for rows, groups in zip(self.tile_rows, self.groups, strict=True):
            mask_tile(saliency, rows, groups, n, mask)
        return mask

    def with_mask(self, mask: NDArray[np.bool_]) -> Arrangement:
        """The same rows and groups with a mask of its own, shape (R, C), whatever the saliency.

        For methods that judge masks by something else. Whoever makes a solution of it checks that
        it keeps n of every group.
        """
        return _Masked(self.tile_rows, self.groups, self.col_order, mask)

    @property
    def has_mask(self) -> bool:
        """Whether it has a mask of its own."""
        return isinstance(self, _Masked)

    def check(self, problem: Geometry) -> None:
        """Raise ValueError, saying what is wrong, unless this is a solution of the problem.

        A problem with saliencies says which rows are kept; of a bare geometry only their number
        is known.
        """
        _check_rows(problem, self.tile_rows)
        if len(self.groups) != problem.tiles:
            raise ValueError(f"groups must hold {problem.tiles} tiles, got {len(self.groups)}")
        for t, groups in enumerate(self.groups):
            if groups.ndim != 2 or groups.shape[1] != problem.pattern.m:
                raise ValueError(
                    f"groups[{t}] must have shape (G, {problem.pattern.m}), got {groups.shape}"
                )
        _check_budget(problem, [len(g) for g in self.groups])
        if problem.pattern.shared_order:
            _check_shared_order(problem, self)
        elif self.col_order is not None:
            raise ValueError("col_order must be None: the tiles of this pattern order their own")
        if problem.pattern.allocation != "window":
            for t, groups in enumerate(self.groups):
                _check_columns(f"groups[{t}]", groups, problem.columns, groups.size)


@dataclass(frozen=True, eq=False)
class _Masked(Arrangement):
    """See :meth:`Arrangement.with_mask`; made by it alone."""

    own: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.bool_))

    def mask(self, saliency: NDArray[np.floating], n: int) -> NDArray[np.bool_]:
        return self.own.copy()


def _check_columns(
    name: str, chosen: NDArray[np.int32], columns: int, slots: int, available: int | None = None
) -> None:
    _check_ids(name, chosen, "column", columns)
    real = chosen[chosen >= 0]
    available = columns if available is None else available
    if real.size != min(slots, available):
        raise ValueError(
            f"{name} keeps {real.size} columns, the pattern keeps {min(slots, available)}"
        )


def _check_ids(name: str, ids: NDArray[np.int32], kind: str, count: int) -> None:
    if ids.size and (ids.max() >= count or ids.min() < -1):
        wrong = ids.max() if ids.max() >= count else ids.min()
        raise ValueError(f"{name} names {kind} {wrong} of a matrix with {count} {kind}s")
    real = ids[ids >= 0]
    if len(np.unique(real)) != real.size:
        raise ValueError(f"{name} is no bijection: it names a {kind} twice")


def _check_rows(problem: Geometry, tile_rows: NDArray[np.int32]) -> None:
    if tile_rows.shape != (problem.tiles, problem.tile_size):
        raise ValueError(
            f"tile_rows must have shape {(problem.tiles, problem.tile_size)}, got {tile_rows.shape}"
        )
    _check_ids("tile_rows", tile_rows, "row", problem.rows)
    ends = np.cumsum(problem.blocks)
    for b, (end, count) in enumerate(zip(ends, problem.kept_rows, strict=True)):
        packed = np.sort(tile_rows[problem.tile_block == b], axis=None)
        packed = packed[packed >= 0]
        name = f"tile_rows is no bijection of the kept rows of block {b}"
        if len(packed) != count:
            raise ValueError(f"{name}: it holds {len(packed)} of {count}")
        if packed[0] < end - problem.blocks[b] or packed[-1] >= end:
            raise ValueError(f"{name}: it holds a row of another block")
        if isinstance(problem, Problem) and not np.array_equal(packed, problem.block_rows[b]):
            raise ValueError(f"{name}: it holds a row that is pruned as a whole")


def _check_budget(problem: Geometry, sizes: Sequence[int]) -> None:
    most = problem.padded_columns // problem.pattern.m
    if max(sizes) > most:
        raise ValueError(f"a tile keeps {max(sizes)} groups; its columns make at most {most}")
    if sum(sizes) != problem.total_groups:
        raise ValueError(f"groups must sum to {problem.total_groups}, got {sum(sizes)}")
    if problem.pattern.allocation != "global" and set(sizes) != {problem.groups_per_tile}:
        raise ValueError(f"every tile must keep {problem.groups_per_tile} groups, got {sizes}")


def _check_shared_order(problem: Geometry, arrangement: Arrangement) -> None:
    pattern = problem.pattern
    shape: tuple[int, ...] = (problem.padded_columns,)
    if problem.orders > 1:
        shape = (problem.orders, *shape)
    if arrangement.col_order is None or arrangement.col_order.shape != shape:
        raise ValueError(f"col_order must have shape {shape}")
    orders = np.atleast_2d(arrangement.col_order)
    for order in orders:
        _check_columns("col_order", order, problem.columns, problem.padded_columns)
    # Plain N:M is the windowed pattern whose windows are its groups, all kept.
    window = pattern.window or pattern.m
    kept = pattern.kept_per_window if pattern.window else pattern.m
    # How many real columns each window of each order has, and the window of each column.
    real = (orders >= 0).reshape(len(orders), -1, window).sum(axis=2)
    window_of = np.full((len(orders), problem.columns), -1)
    for o, order in enumerate(orders):
        window_of[o, order[order >= 0]] = np.flatnonzero(order >= 0) // window
    for t, groups in enumerate(arrangement.groups):
        o = problem.tile_order[t]
        _check_ids(f"groups[{t}]", groups, "column", problem.columns)
        chosen = groups.reshape(-1, kept)
        own = np.arange(len(chosen))[:, None]
        if (window_of[o, chosen] != own)[chosen >= 0].any():
            raise ValueError(f"a window of tile {t} keeps a column from outside the window")
        counts = (chosen >= 0).sum(axis=1)
        expected = np.minimum(kept, real[o])
        if (counts != expected).any():
            w = int(np.argmax(counts != expected))
            raise ValueError(
                f"window {w} of tile {t} keeps {counts[w]} columns, the pattern keeps {expected[w]}"
            )
