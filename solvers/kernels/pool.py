"""Groups of a pool: which are new, what they are worth beyond what they pay, which are taken."""

from __future__ import annotations

import numpy as np

from gyroperm.solvers.kernels.jit import kernel


@kernel
def hash_groups(groups, salt):  # type: ignore[no-untyped-def]
    """A number for each group (k, m) int32 that does not depend on the order of its columns.

    salt (C',) int64: a random number of each column. Two groups have the same number by a chance
    of 2**-64.
    """
    keys = np.zeros(len(groups), dtype=np.int64)
    for g in range(len(groups)):
        for k in range(groups.shape[1]):
            keys[g] += salt[groups[g, k]]
    return keys


@kernel
def reduced_costs(groups, values, u):  # type: ignore[no-untyped-def]
    """What groups (k, m) int32 of values (k,) are worth beyond what their columns pay, u (C',)."""
    costs = np.empty(len(groups))
    for g in range(len(groups)):
        costs[g] = values[g]
        for k in range(groups.shape[1]):
            costs[g] -= u[groups[g, k]]
    return costs


@kernel
def spread_groups(groups, columns, per_column):  # type: ignore[no-untyped-def]
    """The places of the groups (k, m) that have a column with fewer than so many before it."""
    counts = np.zeros(columns, dtype=np.int64)
    chosen = np.empty(len(groups), dtype=np.int64)
    taken = 0
    for g in range(len(groups)):
        least = counts[groups[g, 0]]
        for k in range(1, groups.shape[1]):
            least = min(least, counts[groups[g, k]])
        if least < per_column:
            for k in range(groups.shape[1]):
                counts[groups[g, k]] += 1
            chosen[taken] = g
            taken += 1
    return chosen[:taken]
