"""Windows of a few stripes: their best rearrangement, and applying what is best of many."""

from __future__ import annotations

import numpy as np

from gyroperm.solvers.kernels.grouping import group_values
from gyroperm.solvers.kernels.jit import fast_kernel, kernel

# Rows of a window whose columns and running maxima stay in the first-level cache.
_BLOCK = 512

# Gains below this part of what the window keeps cannot be told from rounding in float32.
_MARGIN = 2.0**-22

# And below this part they are rounding in float64.
_ROUNDING = 1e-12


@kernel
def _scratch(count):  # type: ignore[no-untyped-def]
    """A float32 vector that begins where a cache line does.

    What has just been stored is loaded again at once; across cache lines that is 3 times slower.
    """
    line = 16
    vector = np.empty(count + line, dtype=np.float32)
    skipped = (-vector.ctypes.data // 4) % line
    return vector[skipped : skipped + count]


@fast_kernel
def add_subset_values(columns, rows, m, tops, kept, chosen, values):  # type: ignore[no-untyped-def]
    """Add to ``values`` what every subset of m columns keeps in some rows.

    columns (w, B) float32, of which the first ``rows`` of B count; values (w choose m,) float64
    in lexicographic order of the subsets; tops (m - 1, n, B) float32, kept (m - 1,) float64 and
    chosen (m,) int64 are scratch. ``tops[d]`` holds the n largest of the first d + 1 columns
    chosen and ``kept[d]`` their sum; one column more adds ``sum_r max(0, x[r] - q[r])`` to it, q
    the n-th largest so far.
    """
    w = columns.shape[0]
    n = tops.shape[1]
    zero = np.float32(0)
    rank = 0
    depth = 0
    chosen[0] = 0
    while True:
        if chosen[depth] > w - m + depth:
            if depth == 0:
                return
            depth -= 1
            chosen[depth] += 1
        elif depth == m - 1:
            q = tops[m - 2, n - 1]
            for c in range(chosen[depth], w):
                x = columns[c]
                gain = zero
                for r in range(rows):
                    gain += max(x[r] - q[r], zero)
                values[rank] += kept[m - 2] + gain
                rank += 1
            chosen[depth] = w
        else:
            if depth == 0:
                kept[0] = _begin_tops(columns[chosen[0]], rows, tops)
            elif n == 2:
                gain = _insert_into_two(columns[chosen[depth]], rows, tops, depth)
                kept[depth] = kept[depth - 1] + gain
            else:
                gain = _insert(columns[chosen[depth]], rows, tops, depth)
                kept[depth] = kept[depth - 1] + gain
            depth += 1
            chosen[depth] = chosen[depth - 1] + 1


@fast_kernel
def _begin_tops(column, rows, tops):  # type: ignore[no-untyped-def]
    """The n largest of one column, row by row, into ``tops[0]``; returns their sum."""
    zero = np.float32(0)
    tops[0] = zero
    top = tops[0, 0]
    total = zero
    for r in range(rows):
        top[r] = column[r]
        total += column[r]
    return total


@fast_kernel
def _insert(column, rows, tops, depth):  # type: ignore[no-untyped-def]
    """The n largest of ``tops[depth - 1]`` and a column, row by row, into ``tops[depth]``.

    Returns by how much their sum grows.
    """
    n = tops.shape[1]
    zero = np.float32(0)
    gain = zero
    # The last level carries what is to be inserted into the next.
    q, carried = tops[depth - 1, n - 1], tops[depth, n - 1]
    for r in range(rows):
        gain += max(column[r] - q[r], zero)
        carried[r] = column[r]
    for level in range(n - 1):
        old, new = tops[depth - 1, level], tops[depth, level]
        for r in range(rows):
            x = carried[r]
            new[r] = max(old[r], x)
            carried[r] = min(old[r], x)
    for r in range(rows):
        carried[r] = max(q[r], carried[r])
    return gain


@fast_kernel
def _insert_into_two(column, rows, tops, depth):  # type: ignore[no-untyped-def]
    """:func:`_insert` for n = 2, in one pass."""
    zero = np.float32(0)
    gain = zero
    high, low = tops[depth - 1, 0], tops[depth - 1, 1]
    new_high, new_low = tops[depth, 0], tops[depth, 1]
    for r in range(rows):
        x = column[r]
        gain += max(x - low[r], zero)
        new_low[r] = max(low[r], min(high[r], x))
        new_high[r] = max(high[r], x)
    return gain


@fast_kernel
def best_rearrangements(X, groups, windows, n, splits, subsets, gains, choices):  # type: ignore[no-untyped-def]
    """The best rearrangement of the columns of every window of stripes, by trying them all.

    X (C + 1, R) float32, a column a row, the last of zeros; groups (G, m) int32, the stripes;
    windows (P, k) int32, stripes; splits (S, k) int32, of every rearrangement the subset of the
    k * m columns in each stripe, by rank, no change first; subsets, the number of ranks. gains
    (P,) float32 and choices (P,) int32 are overwritten: what the best adds, and which it is.
    """
    k = windows.shape[1]
    m = groups.shape[1]
    R = X.shape[1]
    values = np.empty(subsets)
    columns = _scratch(k * m * _BLOCK).reshape(k * m, _BLOCK)
    tops = _scratch((m - 1) * n * _BLOCK).reshape(m - 1, n, _BLOCK)
    kept = np.empty(m - 1)
    chosen = np.empty(m, dtype=np.int64)
    for p in range(windows.shape[0]):
        values[:] = 0.0
        for begin in range(0, R, _BLOCK):
            rows = min(_BLOCK, R - begin)
            for s in range(k):
                for t in range(m):
                    source = X[groups[windows[p, s], t]]
                    target = columns[s * m + t]
                    for r in range(rows):
                        target[r] = source[begin + r]
            add_subset_values(columns, rows, m, tops, kept, chosen, values)
        now = 0.0
        for s in range(k):
            now += values[splits[0, s]]
        best = now
        choice = 0
        for i in range(1, splits.shape[0]):
            total = 0.0
            for s in range(k):
                total += values[splits[i, s]]
            if total > best:
                best = total
                choice = i
        gains[p] = best - now if best - now > _MARGIN * now else 0.0
        choices[p] = choice


@kernel
def apply_moves(  # type: ignore[no-untyped-def]
    X, groups, values, n, windows, layouts, order, choices, gains, changed, begin, most
):
    """Apply moves in the given order, in place, each unless a stripe of its has changed before.

    A move puts the columns of a window, numbered stripe by stripe, in the order of its layout. It
    is judged in float64; one that brings nothing has its gain set to 0 and is not applied.

    groups (G, m) int32 and values (G,) float64, what each stripe keeps; windows (P, k) int32;
    layouts (S, k * m) int32; order int64, moves; choices (P,) int32, their layouts; gains (P,)
    float32; changed (G,) bool. At most ``most`` moves are judged, from ``order[begin]`` on;
    returns where to go on.
    """
    k = windows.shape[1]
    m = groups.shape[1]
    trial = np.empty((k, m), dtype=np.int32)
    new_values = np.empty(k)
    judged = 0
    i = begin
    while i < len(order) and judged < most:
        move = order[i]
        i += 1
        free = True
        for s in range(k):
            free &= not changed[windows[move, s]]
        if not free:
            continue
        judged += 1
        now = 0.0
        for s in range(k):
            now += values[windows[move, s]]
            for t in range(m):
                place = layouts[choices[move], s * m + t]
                trial[s, t] = groups[windows[move, place // m], place % m]
        group_values(X, trial, n, new_values)
        if new_values.sum() - now <= _ROUNDING * now:
            gains[move] = 0.0
            continue
        for s in range(k):
            stripe = windows[move, s]
            for t in range(m):
                changed[stripe] |= layouts[choices[move], s * m + t] // m != s
                groups[stripe, t] = trial[s, t]
            values[stripe] = new_values[s]
    return i
