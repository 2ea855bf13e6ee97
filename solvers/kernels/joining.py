"""What a tile of vectors keeps with one row exchanged."""

from __future__ import annotations

import numpy as np

from gyroperm.solvers.kernels.jit import fast_kernel


@fast_kernel
def kept_if_joined(rest, joining, kept, values):  # type: ignore[no-untyped-def]
    """``values[t, j]``: the summed vectors that tile t keeps if row j joins what is left of it.

    rest (T, M, W) float64: the column sums of each tile without one row, the columns of window w
    at ``[:, :, w]``; joining (J, M, W) float32; each window keeps its ``kept`` largest;
    values (T, J) float64 is overwritten.
    """
    M, W = rest.shape[1:]
    largest = np.empty((kept, W))
    carried = np.empty(W)
    for t in range(rest.shape[0]):
        for j in range(joining.shape[0]):
            largest[:, :] = 0.0
            for k in range(M):
                old, new = rest[t, k], joining[j, k]
                for w in range(W):
                    carried[w] = old[w] + new[w]
                for level in range(kept):
                    held = largest[level]
                    for w in range(W):
                        a, b = held[w], carried[w]
                        held[w] = max(a, b)
                        carried[w] = min(a, b)
            total = 0.0
            for level in range(kept):
                for w in range(W):
                    total += largest[level, w]
            values[t, j] = total
