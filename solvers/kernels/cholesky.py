"""Normal equations of many rows, each with columns of its own, by Cholesky."""

from __future__ import annotations

import numpy as np

from gyroperm.solvers.kernels.jit import fast_kernel


@fast_kernel
def _factor(A):  # type: ignore[no-untyped-def]
    """Replace the lower triangle of A by L with ``A = L L^T``; False if A is not definite.

    Four rows at a time, so that the rows above are read a fourth as often.
    """
    n = len(A)
    for first in range(0, n, 4):
        last = min(first + 4, n)
        if last - first == 4:
            a, b, c, d = A[first], A[first + 1], A[first + 2], A[first + 3]
            for j in range(first):
                above = A[j]
                s, t, u, v = 0.0, 0.0, 0.0, 0.0
                for k in range(j):
                    x = above[k]
                    s += a[k] * x
                    t += b[k] * x
                    u += c[k] * x
                    v += d[k] * x
                scale = 1.0 / above[j]
                a[j] = (a[j] - s) * scale
                b[j] = (b[j] - t) * scale
                c[j] = (c[j] - u) * scale
                d[j] = (d[j] - v) * scale
        for i in range(first, last):
            for j in range(first if last - first == 4 else 0, i + 1):
                s = A[i, j]
                for k in range(j):
                    s -= A[i, k] * A[j, k]
                if j < i:
                    A[i, j] = s / A[j, j]
                elif s > 0.0:
                    A[i, i] = np.sqrt(s)
                else:
                    return False
    return True


@fast_kernel
def solve_rows(H, targets, kept, rows, found):  # type: ignore[no-untyped-def]
    """For rows with one set of columns K: ``found[r, K] = H_KK^-1 targets[r, K]``.

    H (C, C), targets and found (R, C) float64; kept (k,) the columns, rows (q,). Where rounding
    leaves ``H_KK`` indefinite, found stays as it is.
    """
    n = len(kept)
    A = np.empty((n, n))
    for i in range(n):
        for j in range(i + 1):
            A[i, j] = H[kept[i], kept[j]]
    if not _factor(A):
        return
    x = np.empty(n)
    for r in rows:
        for i in range(n):
            total = targets[r, kept[i]]
            for j in range(i):
                total -= A[i, j] * x[j]
            x[i] = total / A[i, i]
        # Row by row of L, which lies so in memory: what is solved is taken from all before it.
        for i in range(n - 1, -1, -1):
            x[i] /= A[i, i]
            for j in range(i):
                x[j] -= A[i, j] * x[i]
        for i in range(n):
            found[r, kept[i]] = x[i]
