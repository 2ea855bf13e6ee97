"""Reduced costs of groups of columns: of all groups there are, or of those near given ones."""

from __future__ import annotations

import numpy as np

from gyroperm.solvers.kernels.gain import relu_gain, relu_gain_by_terms
from gyroperm.solvers.kernels.grouping import (
    group_value,
    insert_top,
    threshold_without,
)
from gyroperm.solvers.kernels.jit import fast_kernel, kernel

# Groups that share all but two columns are priced for so many of the last but one at a time.
_BLOCK = 16


@kernel
def next_combination(members, bound):  # type: ignore[no-untyped-def]
    """Advance to the next ascending combination below ``bound``, in lexicographic order.

    Returns the first position that changed, -1 after the last combination.
    """
    size = len(members)
    place = size - 1
    while place >= 0 and members[place] == bound - size + place:
        place -= 1
    if place >= 0:
        members[place] += 1
        for k in range(place + 1, size):
            members[k] = members[k - 1] + 1
    return place


@kernel
def _push_column(x, top, base, new_top, new_base, n):  # type: ignore[no-untyped-def]
    """The n largest of each row, and their sum over the rows, with one more column.

    top, new_top (n, R) float32, descending along the first axis; base, new_base (1,) float64.
    """
    total = base[0]
    for r in range(len(x)):
        value = x[r]
        if value > top[n - 1, r]:
            total += np.float64(value) - np.float64(top[n - 1, r])
        for k in range(n):
            here = top[k, r]
            new_top[k, r] = max(here, value)
            value = min(here, value)
    new_base[0] = total


@fast_kernel
def _last_thresholds(x, top, n, q):  # type: ignore[no-untyped-def]
    """The n-th largest of each row once column x has joined, into q (R,) float32."""
    low = top[n - 1]
    if n == 1:
        for r in range(len(x)):
            q[r] = max(low[r], x[r])
        return
    high = top[n - 2]
    for r in range(len(x)):
        q[r] = max(low[r], min(high[r], x[r]))


@fast_kernel
def _kept_more(x, low):  # type: ignore[no-untyped-def]
    """``sum_r max(0, x[r] - low[r])`` in float64."""
    total = 0.0
    for r in range(len(x)):
        total += max(0.0, np.float64(x[r]) - np.float64(low[r]))
    return total


@fast_kernel
def _sum(x):  # type: ignore[no-untyped-def]
    """The sum of a vector in float64."""
    total = 0.0
    for r in range(len(x)):
        total += np.float64(x[r])
    return total


@kernel
def price_groups(  # type: ignore[no-untyped-def]
    X, u, n, m, start, count, inflation, rounding, margins, threshold, best, champions, found
):
    """Price every group whose first m - 2 columns are among ``count`` consecutive combinations.

    The reduced cost of a group g is ``value(g) - sum_{j in g} u[j]``. What is computed is never
    below it: all but the gain of the last column is summed in float64, and that gain, in float32,
    is multiplied by ``inflation``, which covers the rounding of its terms and their sum, and raised
    by the column's ``margins`` (C,) float64, ``rounding`` times its sum, and by ``rounding`` times
    twice that of the thresholds, which covers what ``relu_gain`` subtracts.

    X (C, R) float32; u (C,) float64; start (m - 2,) int64, the first combination, ascending.
    best (C,) float64 is raised to the largest reduced cost of a group that holds the column;
    champions (C, m) int32 are overwritten with the best group whose last column it is, where
    that is better than before in this call. Groups whose reduced cost is above ``threshold`` are
    written to found (capacity, m) int32. Returns how many are above it, written or not.
    """
    C, R = X.shape
    size = m - 2
    members = start.copy()
    top = np.zeros((size + 1, n, R), dtype=np.float32)
    base = np.zeros((size + 1, 1))
    Q = np.empty((_BLOCK, R), dtype=np.float32)
    gain = np.empty(_BLOCK * C, dtype=np.float32)
    fixed = np.empty(_BLOCK)
    own = np.full(C, -np.inf)
    above = 0
    changed = 0
    for _ in range(count):
        for d in range(changed, size):
            _push_column(X[members[d]], top[d], base[d], top[d + 1], base[d + 1], n)
        first = members[size - 1] + 1 if size else 0
        paid = 0.0
        for d in range(size):
            paid += u[members[d]]
        prefix_best = -np.inf
        for begin in range(first, C - 1, _BLOCK):
            block = min(_BLOCK, C - 1 - begin)
            for b in range(block):
                x = X[begin + b]
                _last_thresholds(x, top[size], n, Q[b])
                kept = base[size, 0] + _kept_more(x, top[size, n - 1])
                fixed[b] = kept - paid - u[begin + b] + 2.0 * rounding * _sum(Q[b])
            width = C - begin - 1
            block_gain = gain[: block * width].reshape(block, width)
            relu_gain(X[begin + 1 :], Q[:block], block_gain)
            for b in range(block):
                k = begin + b
                k_best = -np.inf
                for l in range(k + 1, C):  # noqa: E741
                    cost = fixed[b] + inflation * np.float64(block_gain[b, l - begin - 1])
                    cost += margins[l] - u[l]
                    k_best = max(k_best, cost)
                    if cost > own[l]:
                        own[l] = cost
                        for d in range(size):
                            champions[l, d] = members[d]
                        champions[l, size] = k
                        champions[l, size + 1] = l
                    if cost > threshold:
                        if above < len(found):
                            for d in range(size):
                                found[above, d] = members[d]
                            found[above, size] = k
                            found[above, size + 1] = l
                        above += 1
                best[k] = max(best[k], k_best)
                prefix_best = max(prefix_best, k_best)
        for d in range(size):
            best[members[d]] = max(best[members[d]], prefix_best)
        changed = next_combination(members, C)
        if changed < 0:
            break
    for l in range(C):  # noqa: E741
        best[l] = max(best[l], own[l])
    return above


@kernel
def price_exchanges(X, u, groups, n, costs, best):  # type: ignore[no-untyped-def]
    """For every group and place, the group with that column exchanged whose reduced cost is best.

    X (C, R) float32; u (C,) float64; groups (G, m) int32; costs (G, m) float64 and best
    (G, m, m) int32 are overwritten. The costs are rounded as float32 is.
    """
    C, R = X.shape
    G, m = groups.shape
    Q = np.empty((m, R), dtype=np.float32)
    gain = np.empty((m, C), dtype=np.float32)
    for g in range(G):
        members = groups[g]
        value = group_value(X, members, n)
        for p in range(m):
            threshold_without(X, members, p, n, Q[p])
            value -= u[members[p]]
        relu_gain_by_terms(X, Q, gain)
        for k in range(m):
            for p in range(m):
                gain[p, members[k]] -= np.float32(1e30) if k != p else np.float32(0)
        for p in range(m):
            out = members[p]
            without = value + u[out] - np.float64(gain[p, out])
            gain[p, out] = -np.float32(1e30)
            costs[g, p] = -np.inf
            chosen = out
            for l in range(C):  # noqa: E741
                cost = without + np.float64(gain[p, l]) - u[l]
                if cost > costs[g, p]:
                    costs[g, p] = cost
                    chosen = l
            for k in range(m):
                best[g, p, k] = members[k]
            best[g, p, p] = chosen


@kernel
def exact_values(X, groups, n, values):  # type: ignore[no-untyped-def]
    """What groups keep, in float64: the n largest of their columns, row by row.

    X (C, R) float64; groups (G, m) int32; values (G,) float64 is overwritten.
    """
    top = np.empty(n)
    for g in range(groups.shape[0]):
        if n == 2 and groups.shape[1] == 4:
            # No array of the largest, which may be of another precision, is in between.
            values[g] = group_value(X, groups[g], n)
            continue
        total = 0.0
        for r in range(X.shape[1]):
            top[:] = 0.0
            for k in range(groups.shape[1]):
                insert_top(top, X[groups[g, k], r])
            for k in range(n):
                total += top[k]
        values[g] = total
