"""The best mask of a fixed arrangement: the n largest of each group, in each row."""

from __future__ import annotations

import numpy as np

from gyroperm.solvers.kernels.jit import kernel


@kernel
def mask_tile(saliency, rows, groups, n, mask):  # type: ignore[no-untyped-def]
    """Mark in ``mask`` what a tile keeps; -1 stands for virtual rows and columns.

    saliency (R, C), rows (V,), groups (G, m), mask (R, C) bool, changed in place. Among equal
    saliencies the earlier slot of the group is kept; a group with fewer than n real columns
    keeps them all.
    """
    m = groups.shape[1]
    taken = np.zeros(m, dtype=np.bool_)
    for v in range(rows.shape[0]):
        r = rows[v]
        if r < 0:
            continue
        for g in range(groups.shape[0]):
            taken[:] = False
            for _ in range(n):
                best = -1
                for slot in range(m):
                    c = groups[g, slot]
                    if c < 0 or taken[slot]:
                        continue
                    if best < 0 or saliency[r, c] > saliency[r, groups[g, best]]:
                        best = slot
                if best < 0:
                    break
                taken[best] = True
                mask[r, groups[g, best]] = True
