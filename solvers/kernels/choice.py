"""Which vectors of a window a tile keeps, judged by what their group keeps."""

from __future__ import annotations

import numpy as np

from gyroperm.solvers.kernels.grouping import group_value
from gyroperm.solvers.kernels.jit import kernel


@kernel
def improve_choice(saliency, rows, windows, groups, n):  # type: ignore[no-untyped-def]
    """Exchange a kept for a discarded vector of its window while that keeps more, in place.

    saliency (R, C) float32; rows (V,), windows (W, M) and groups (W, m) int32, -1 for virtual.
    A window keeps one group. The value of every exchange is exact.
    """
    V, M = len(rows), windows.shape[1]
    m = groups.shape[1]
    # The window's columns as rows of X; the last, of zeros, stands for a virtual column.
    X = np.zeros((M + 1, V), dtype=np.float32)
    members = np.empty(m, dtype=np.int32)
    for w in range(windows.shape[0]):
        for k in range(M):
            for v in range(V):
                real = windows[w, k] >= 0 and rows[v] >= 0
                X[k, v] = saliency[rows[v], windows[w, k]] if real else np.float32(0)
        for slot in range(m):
            members[slot] = M
            for k in range(M):
                if groups[w, slot] >= 0 and windows[w, k] == groups[w, slot]:
                    members[slot] = k
        value = group_value(X, members, n)
        improved = True
        while improved:
            improved = False
            for slot in range(m):
                for k in range(M):
                    if members[slot] == M or windows[w, k] < 0 or (members == k).any():
                        continue
                    before = members[slot]
                    members[slot] = k
                    new_value = group_value(X, members, n)
                    if new_value > value:
                        value = new_value
                        improved = True
                    else:
                        members[slot] = before
        for slot in range(m):
            groups[w, slot] = windows[w, members[slot]] if members[slot] < M else -1
