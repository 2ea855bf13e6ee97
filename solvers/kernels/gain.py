"""The relu product: what every released column adds to every group."""

from __future__ import annotations

import numpy as np

from gyroperm.solvers.kernels.jit import fast_kernel

# Slices of X and Q of this many elements stay in the first-level cache while they are combined.
_SLICE = 512


@fast_kernel
def relu_gain(X, Q, gain):  # type: ignore[no-untyped-def]
    """``gain[g, a] = sum_r max(0, X[a, r] - Q[g, r])``; a matrix product whose multiply is relu.

    X (A, R) and Q (G, R) float32, C-contiguous; gain (G, A) float32, overwritten. A group whose
    n-th largest in row r is ``Q[g, r]`` gains just that when column a joins it, for any n.
    """
    A, R = X.shape
    G = Q.shape[0]
    zero = np.float32(0)
    gain[:, :] = zero
    for begin in range(0, R, _SLICE):
        end = min(R, begin + _SLICE)
        # Four columns by two groups at a time: eight running sums, six operands.
        for a in range(0, A - A % 4, 4):
            x0, x1 = X[a, begin:end], X[a + 1, begin:end]
            x2, x3 = X[a + 2, begin:end], X[a + 3, begin:end]
            for g in range(0, G - G % 2, 2):
                q0, q1 = Q[g, begin:end], Q[g + 1, begin:end]
                s00 = s01 = s10 = s11 = s20 = s21 = s30 = s31 = zero
                for r in range(end - begin):
                    u, v = q0[r], q1[r]
                    s00 += max(x0[r] - u, zero)
                    s01 += max(x0[r] - v, zero)
                    s10 += max(x1[r] - u, zero)
                    s11 += max(x1[r] - v, zero)
                    s20 += max(x2[r] - u, zero)
                    s21 += max(x2[r] - v, zero)
                    s30 += max(x3[r] - u, zero)
                    s31 += max(x3[r] - v, zero)
                gain[g, a] += s00
                gain[g + 1, a] += s01
                gain[g, a + 1] += s10
                gain[g + 1, a + 1] += s11
                gain[g, a + 2] += s20
                gain[g + 1, a + 2] += s21
                gain[g, a + 3] += s30
                gain[g + 1, a + 3] += s31
        for a in range(A):
            first = 0 if a >= A - A % 4 else G - G % 2
            x0 = X[a, begin:end]
            for g in range(first, G):
                q0 = Q[g, begin:end]
                s00 = zero
                for r in range(end - begin):
                    s00 += max(x0[r] - q0[r], zero)
                gain[g, a] += s00
