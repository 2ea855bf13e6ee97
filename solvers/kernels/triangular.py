"""Solving with a Cholesky factor."""

from __future__ import annotations

from gyroperm.solvers.kernels.jit import fast_kernel


@fast_kernel
def substitute(L, X):  # type: ignore[no-untyped-def]
    """Replace X (k, rows) by ``(L L^T)^-1 X`` for a lower triangular L (k, k)."""
    k, rows = X.shape
    for i in range(k):
        for r in range(rows):
            total = X[i, r]
            for j in range(i):
                total -= L[i, j] * X[j, r]
            X[i, r] = total / L[i, i]
    # Row by row of L, which lies so in memory: what is solved is taken from all that is not.
    for i in range(k - 1, -1, -1):
        for r in range(rows):
            X[i, r] /= L[i, i]
            solved = X[i, r]
            for j in range(i):
                X[j, r] -= L[i, j] * solved
