"""The best exchange of two columns of different stripes."""

from __future__ import annotations

import numpy as np

from gyroperm.solvers.kernels.copying import copy_vector
from gyroperm.solvers.kernels.gain import relu_gain
from gyroperm.solvers.kernels.grouping import threshold_without
from gyroperm.solvers.kernels.jit import fast_kernel

# Gains below this part of what the columns add cannot be told from rounding in float32.
_MARGIN = 2.0**-20


@fast_kernel
def _take_stripe(X, members, n, columns, thresholds):  # type: ignore[no-untyped-def]
    """A stripe's columns, and of each the n-th largest of the others, both (m, R) float32."""
    for t in range(len(members)):
        copy_vector(X[members[t]], columns[t])
        threshold_without(X, members, t, n, thresholds[t])


@fast_kernel
def best_swaps(X, groups, windows, n, gains, choices):  # type: ignore[no-untyped-def]
    """The best exchange of a column of one stripe with one of another, for pairs of stripes.

    What column x adds to the others of a stripe is ``sum_r max(0, x[r] - q[r])``, q the n-th
    largest of those others: exactly, both for the column that is there and for one that comes.

    X (C + 1, R) float32, a column a row, the last of zeros; groups (G, m) int32, the stripes, n
    below m; windows (P, 2) int32. gains (P,) float32 and choices (P,) int32 are overwritten: what
    the best adds, and its columns i and j as ``i * m + j``.
    """
    m = groups.shape[1]
    R = X.shape[1]
    columns = np.empty((2, m, R), dtype=np.float32)
    thresholds = np.empty((2, m, R), dtype=np.float32)
    to_first = np.empty((m, m), dtype=np.float32)
    to_second = np.empty((m, m), dtype=np.float32)
    staying = np.empty((2, m))
    zero = np.float32(0)
    for p in range(windows.shape[0]):
        for s in range(2):
            _take_stripe(X, groups[windows[p, s]], n, columns[s], thresholds[s])
            for t in range(m):
                x, q = columns[s, t], thresholds[s, t]
                total = zero
                for r in range(R):
                    total += max(x[r] - q[r], zero)
                staying[s, t] = total
        relu_gain(columns[1], thresholds[0], to_first)
        relu_gain(columns[0], thresholds[1], to_second)
        gains[p] = 0.0
        choices[p] = 0
        for i in range(m):
            for j in range(m):
                stay = staying[0, i] + staying[1, j]
                gain = to_first[i, j] + to_second[j, i] - stay
                if gain > gains[p] and gain > _MARGIN * stay:
                    gains[p] = gain
                    choices[p] = i * m + j
