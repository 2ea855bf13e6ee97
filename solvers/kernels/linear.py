"""Small linear systems, on one thread."""

from __future__ import annotations

from gyroperm.solvers.kernels.jit import kernel


@kernel
def solve_linear(A, b):  # type: ignore[no-untyped-def]
    """Solve ``A x = b`` in place by elimination with partial pivoting; False if A is singular.

    A (n, n) and b (n,) float64 are overwritten, b with x. Rows with a zero in the pivot's column
    are passed over, which makes sparse systems cheap.
    """
    n = len(b)
    for k in range(n):
        pivot = k
        for i in range(k + 1, n):
            if abs(A[i, k]) > abs(A[pivot, k]):
                pivot = i
        if abs(A[pivot, k]) < 1e-9:
            return False
        if pivot != k:
            for j in range(k, n):
                A[k, j], A[pivot, j] = A[pivot, j], A[k, j]
            b[k], b[pivot] = b[pivot], b[k]
        for i in range(k + 1, n):
            if A[i, k] != 0.0:
                factor = A[i, k] / A[k, k]
                for j in range(k + 1, n):
                    A[i, j] -= factor * A[k, j]
                b[i] -= factor * b[k]
    for k in range(n - 1, -1, -1):
        total = b[k]
        for j in range(k + 1, n):
            total -= A[k, j] * b[j]
        b[k] = total / A[k, k]
    return True
