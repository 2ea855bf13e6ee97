"""The relu product: what every released column adds to every group."""

from __future__ import annotations

import numpy as np

from gyroperm.solvers.kernels.jit import fast_kernel, kernel, wide_vectors

# Slices of X and Q of this many elements stay in the first-level cache while they are combined.
_SLICE = 512
# So many columns are turned at a time, eight rows of each: they stay in the first-level cache too.
_TURNED = 256
# With fewer columns or groups, turning them costs more than it saves.
_MIN_COLUMNS, _MIN_GROUPS = 64, 8


@kernel
def _larger(x, q):  # type: ignore[no-untyped-def]
    """One instruction, where ``max`` also orders NaN."""
    return x if x > q else q


@kernel
def relu_gain(X, Q, gain):  # type: ignore[no-untyped-def]
    """``gain[g, a] = sum_r max(0, X[a, r] - Q[g, r])``; a matrix product whose multiply is relu.

    X (A, R) and Q (G, R) float32, C-contiguous; gain (G, A) float32, overwritten. A group whose
    n-th largest in row r is ``Q[g, r]`` gains just that when column a joins it, for any n.

    Large products are made of ``max(x, q) - q``, columns side by side: a term takes two operations
    instead of three, and no sum across a vector. Their rounding grows with the sums of X and Q, not
    with the gain, but what exceeds no threshold gains exactly 0: both sums are then made of the
    same terms in the same order. :func:`relu_gain_by_terms` is the one with a relative error.
    """
    wide_vectors()
    if X.shape[0] < _MIN_COLUMNS or Q.shape[0] < _MIN_GROUPS:
        relu_gain_by_terms(X, Q, gain)
        return
    A, R = X.shape
    G = Q.shape[0]
    zero = np.float32(0)
    gain[:, :] = zero
    turned = np.empty((8, _TURNED), dtype=np.float32)
    x0, x1, x2, x3 = turned[0], turned[1], turned[2], turned[3]
    x4, x5, x6, x7 = turned[4], turned[5], turned[6], turned[7]
    whole = R - R % 8
    for first in range(0, A, _TURNED):
        width = min(_TURNED, A - first)
        for r in range(0, whole, 8):
            for a in range(width):
                column = X[first + a]
                for k in range(8):
                    turned[k, a] = column[r + k]
            for g in range(G):
                q0, q1, q2, q3 = Q[g, r], Q[g, r + 1], Q[g, r + 2], Q[g, r + 3]
                q4, q5, q6, q7 = Q[g, r + 4], Q[g, r + 5], Q[g, r + 6], Q[g, r + 7]
                q = ((q0 + q1) + (q2 + q3)) + ((q4 + q5) + (q6 + q7))
                own = gain[g, first : first + width]
                for a in range(width):
                    low = (_larger(x0[a], q0) + _larger(x1[a], q1)) + (
                        _larger(x2[a], q2) + _larger(x3[a], q3)
                    )
                    high = (_larger(x4[a], q4) + _larger(x5[a], q5)) + (
                        _larger(x6[a], q6) + _larger(x7[a], q7)
                    )
                    own[a] += (low + high) - q
        for r in range(whole, R):
            for a in range(width):
                x0[a] = X[first + a, r]
            for g in range(G):
                own = gain[g, first : first + width]
                for a in range(width):
                    own[a] += max(x0[a] - Q[g, r], zero)


@fast_kernel
def relu_gain_by_terms(X, Q, gain):  # type: ignore[no-untyped-def]
    """As :func:`relu_gain`, every term rounded by itself: the relative error is bounded.

    No term is negative, so the error is at most half a unit in the last place for each addition on
    the way, of which there are ``min(R, 512) + R // 512`` or fewer.
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
