"""Packed weights in another order of the slots inside their tiles: the same matrix."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gyroperm.gpu.format import HinmMatrix


def group_width(matrix: HinmMatrix) -> int:
    """Slots that move together: 4 where two of four are kept inside, 1 for dense inside."""
    return 4 if matrix.sparse else 1


def reordered(matrix: HinmMatrix, order: ArrayLike) -> HinmMatrix:
    """The same matrix with the slots of its tiles in another order.

    Parameters
    ----------
    matrix : HinmMatrix
    order : array_like of int, shape (slots / width,)
        Which of the old groups of :func:`group_width` slots each new one is; a permutation that
        keeps every group in its tile.

    Raises
    ------
    ValueError
        If the order is not such a permutation.
    """
    width = group_width(matrix)
    tile_of = np.repeat(np.arange(matrix.index.tiles), np.diff(matrix.index.tile_ptr) // width)
    order = np.asarray(order)
    if order.shape != tile_of.shape or (np.sort(order) != np.arange(len(order))).any():
        raise ValueError(
            f"order must be a permutation of {len(tile_of)} groups of {width} slots, got an array "
            f"of shape {order.shape}"
        )
    if (tile_of[order] != tile_of).any():
        raise ValueError("order must keep every group of slots in its tile")
    slots = matrix.index.columns.reshape(-1, width)[order].reshape(-1)
    values = _from_groups(_value_groups(matrix.values)[order], matrix.values.shape)
    metadata = matrix.metadata
    if width == 4:
        metadata = _from_places(_place_groups(matrix.metadata)[order], matrix.metadata.shape)
    return replace(
        matrix, values=values, metadata=metadata, index=replace(matrix.index, columns=slots)
    )


def empty_slots(matrix: HinmMatrix) -> NDArray[np.bool_]:
    """Which slots read row 0 and have weights of zero only: those that may read any row."""
    width = group_width(matrix)
    empty = matrix.index.columns.reshape(-1, width) == 0
    at = np.flatnonzero(empty.any(1))
    weights = _value_groups(matrix.values)[at] & 0x7FFF != 0
    if width == 1:
        empty[at, 0] &= ~weights.any(axis=(1, 2, 3))
    else:
        nibbles = _place_groups(matrix.metadata)[at]
        for place in range(4):
            held = (weights[..., 0] & (nibbles & 3 == place)) | (
                weights[..., 1] & (nibbles >> 2 == place)
            )
            empty[at, place] &= ~held.any(axis=(1, 2, 3))
    return empty.reshape(-1)


# Values: step, inner, 16-row fragment, lane (row % 8, k % 8 // 2), register (k // 8, row // 8),
# k % 2. Axes of a group's place come first, those of rows after them.
_SPARSE = (0, 1, 5, 4, 2, 3, 6, 7)
_DENSE = (0, 1, 5, 4, 7, 2, 3, 6)


def _value_groups(values: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Values by group; of two of four a group's last axis has its two, in order."""
    steps, inner, blocks = values.shape[:3]
    split = values.reshape(steps, inner, blocks, 8, 4, 2, 2, 2)
    if inner == 2:
        return split.transpose(_SPARSE).reshape(-1, blocks, 8, 2, 2)
    return split.transpose(_DENSE).reshape(-1, blocks, 8, 2)


def _from_groups(groups: NDArray[np.uint16], shape: tuple[int, ...]) -> NDArray[np.uint16]:
    steps, inner, blocks = shape[:3]
    axes = _SPARSE if inner == 2 else _DENSE
    extents = (steps, inner, blocks, 8, 4, 2, 2, 2)
    split = groups.reshape([extents[axis] for axis in axes]).transpose(np.argsort(axes))
    return np.ascontiguousarray(split).reshape(shape)


def _place_groups(metadata: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """The four bits of each group and row: the places of the first value and of the second."""
    steps, blocks, _ = metadata.shape
    # Lane: row % 8, then the step's half and its half; in a word row // 8, then a group of four.
    words = metadata.reshape(steps, blocks, 8, 4, 1, 1)
    shifts = 16 * np.arange(2).reshape(2, 1) + 4 * np.arange(4)
    nibbles = (words >> shifts.astype(np.uint32) & 15).astype(np.uint8)
    return nibbles.transpose(0, 3, 5, 1, 2, 4).reshape(-1, blocks, 8, 2)


def _from_places(groups: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint32]:
    steps, blocks, _ = shape
    nibbles = groups.reshape(steps, 4, 4, blocks, 8, 2).transpose(0, 3, 4, 1, 5, 2)
    shifts = 16 * np.arange(2).reshape(2, 1) + 4 * np.arange(4)
    words = np.bitwise_or.reduce(
        nibbles.astype(np.uint32) << shifts.astype(np.uint32), axis=(-2, -1)
    )
    return words.reshape(shape)
