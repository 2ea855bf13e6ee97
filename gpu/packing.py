"""A tile between the matrix and the fragments that tensor cores take, by Numba kernels.

A step is 64 slots. Fragments of the sparse product cover 32 slots, eight groups of four, of
which two are kept each; those of the dense product cover 16. Either way a fragment holds 16
values k of each of 16 rows: lane ``4 * (row % 8) + k % 8 // 2`` holds k and k + 1 (k even) of a
row in register ``row // 8 + 2 * (k // 8)``.
"""

from __future__ import annotations

import numpy as np

from gyroperm.solvers.kernels.jit import kernel


@kernel
def pack_sparse(matrix, mask, rows, columns, values, metadata):  # type: ignore[no-untyped-def]
    """Pack what the mask keeps of a tile, at most two of every four slots of a row.

    matrix (R, C), mask (R, C) bool, rows (V,) and columns (64 * steps,), -1 is virtual; values
    (steps, 2, V / 16, 32, 8), of the matrix's type, and metadata (steps, V / 16, 32) uint32 hold
    zeros. A group that keeps fewer than two names its last places too, whose values stay zero.
    """
    for v in range(rows.shape[0]):
        r = rows[v]
        block = v // 16
        upper = v % 16 // 8
        for group in range(columns.shape[0] // 4):
            first = -1
            second = -1
            if r >= 0:
                for place in range(4):
                    c = columns[4 * group + place]
                    if c >= 0 and mask[r, c]:
                        if first < 0:
                            first = place
                        else:
                            second = place
            step = group // 16
            inner = group // 8 % 2
            lane = 4 * (v % 8) + group % 4
            half = 2 * (upper + 2 * (group % 8 // 4))
            # The hardware wants two different places, ascending: the last fill up.
            if first < 0:
                first = 2
                second = 3
            elif second >= 0:
                values[step, inner, block, lane, half] = matrix[r, columns[4 * group + first]]
                values[step, inner, block, lane, half + 1] = matrix[r, columns[4 * group + second]]
            elif first < 3:
                values[step, inner, block, lane, half] = matrix[r, columns[4 * group + first]]
                second = 3
            else:
                values[step, inner, block, lane, half + 1] = matrix[r, columns[4 * group + first]]
                first = 2
                second = 3
            nibble = (first | second << 2) << (16 * upper + 4 * (group % 4))
            holder = 4 * (v % 8) + 2 * inner + group % 8 // 4
            metadata[step, block, holder] |= np.uint32(nibble)


@kernel
def unpack_sparse(values, metadata, block):  # type: ignore[no-untyped-def]
    """The inverse of :func:`pack_sparse`, slot by slot: block (V, 64 * steps) holds zeros."""
    for v in range(block.shape[0]):
        upper = v % 16 // 8
        for group in range(block.shape[1] // 4):
            step = group // 16
            inner = group // 8 % 2
            lane = 4 * (v % 8) + group % 4
            half = 2 * (upper + 2 * (group % 8 // 4))
            holder = 4 * (v % 8) + 2 * inner + group % 8 // 4
            places = metadata[step, v // 16, holder] >> np.uint32(16 * upper + 4 * (group % 4))
            first = np.int64(places & np.uint32(3))
            second = np.int64(places >> np.uint32(2) & np.uint32(3))
            block[v, 4 * group + first] = values[step, inner, v // 16, lane, half]
            block[v, 4 * group + second] = values[step, inner, v // 16, lane, half + 1]


@kernel
def pack_dense(matrix, mask, rows, columns, values):  # type: ignore[no-untyped-def]
    """Pack what the mask keeps of a tile, with zeros for the rest of its slots.

    As :func:`pack_sparse`, but for values (steps, 4, V / 16, 32, 8), which hold zeros.
    """
    for v in range(rows.shape[0]):
        r = rows[v]
        if r < 0:
            continue
        for slot in range(columns.shape[0]):
            c = columns[slot]
            if c >= 0 and mask[r, c]:
                lane = 4 * (v % 8) + slot % 8 // 2
                half = 2 * (v % 16 // 8 + 2 * (slot % 16 // 8)) + slot % 2
                values[slot // 64, slot // 16 % 4, v // 16, lane, half] = matrix[r, c]


@kernel
def unpack_dense(values, block):  # type: ignore[no-untyped-def]
    """The inverse of :func:`pack_dense`, slot by slot: block (V, 64 * steps)."""
    for v in range(block.shape[0]):
        for slot in range(block.shape[1]):
            lane = 4 * (v % 8) + slot % 8 // 2
            half = 2 * (v % 16 // 8 + 2 * (slot % 16 // 8)) + slot % 2
            block[v, slot] = values[slot // 64, slot // 16 % 4, v // 16, lane, half]
