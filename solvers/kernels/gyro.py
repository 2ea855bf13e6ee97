"""What groups keep: of what they hold now, and what a vector that joins must exceed."""

from __future__ import annotations

import numpy as np

from gyroperm.solvers.kernels.jit import fast_kernel, kernel


@fast_kernel
def join_thresholds(vectors, slots, vacant, n, thresholds):  # type: ignore[no-untyped-def]
    """Find what a vector must exceed, row by row, to be kept in a group that it joins.

    vectors (K, V) float32, slots (G, m) rows of ``vectors``, vacant (G,) the slot of each group
    that is left out; thresholds (G, V) float32 becomes the n-th largest of the other m - 1, n < m.
    """
    rows = vectors.shape[1]
    largest = np.empty((n, rows), dtype=np.float32)
    carried = np.empty(rows, dtype=np.float32)
    for g in range(slots.shape[0]):
        largest[:] = 0.0
        for slot in range(slots.shape[1]):
            if slot == vacant[g]:
                continue
            carried[:] = vectors[slots[g, slot]]
            for level in range(n):
                held = largest[level]
                for r in range(rows):
                    old, new = held[r], carried[r]
                    held[r] = max(old, new)
                    carried[r] = min(old, new)
        thresholds[g] = largest[n - 1]


@kernel
def kept_by_tile(saliency, rows, groups, n):  # type: ignore[no-untyped-def]
    """Sum, in float64, the n largest of each group in each row; -1 stands for virtual ones.

    saliency (R, C) float32, rows (V,) int32, groups (G, m) int32.
    """
    largest = np.empty(n, dtype=np.float32)
    total = 0.0
    for v in range(rows.shape[0]):
        r = rows[v]
        if r < 0:
            continue
        for g in range(groups.shape[0]):
            largest[:] = 0.0
            for slot in range(groups.shape[1]):
                c = groups[g, slot]
                if c < 0:
                    continue
                carried = saliency[r, c]
                for level in range(n):
                    held = largest[level]
                    # Without a branch, which random data would mispredict.
                    largest[level] = max(held, carried)
                    carried = min(held, carried)
            for level in range(n):
                total += largest[level]
    return total
