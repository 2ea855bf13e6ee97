"""The best disjoint groups of a tile, and the best vectors of its windows, by enumeration."""

from __future__ import annotations

import numpy as np

from gyroperm.solvers.kernels.jit import kernel


@kernel
def kept_of_set(X, columns, n):  # type: ignore[no-untyped-def]
    """The n largest of some columns in each row, summed; X (C, V) float64, -1 is virtual."""
    total = 0.0
    top = np.empty(n)
    for v in range(X.shape[1]):
        for k in range(n):
            top[k] = 0.0
        for j in range(len(columns)):
            if columns[j] < 0:
                continue
            carried = X[columns[j], v]
            for k in range(n):
                held = top[k]
                top[k] = max(held, carried)
                carried = min(held, carried)
        for k in range(n):
            total += top[k]
    return total


@kernel
def value_groups(X, groups, n, group_kept):  # type: ignore[no-untyped-def]
    """What every group keeps in a tile, by its set of columns as bits.

    X (C, V) float64; groups (N, m) int32; their entries of group_kept (2^C,) are overwritten.
    """
    one = np.int64(1)
    for i in range(len(groups)):
        key = np.int64(0)
        for k in range(groups.shape[1]):
            key |= one << np.int64(groups[i, k])
        group_kept[key] = kept_of_set(X, groups[i], n)


@kernel
def pack_groups(group_kept, levels, starts, choices, choice_starts, kept, last, best):  # type: ignore[no-untyped-def]
    """The most that k disjoint groups of m columns keep, for every k.

    By dynamic programming over sets of columns, as bits: the lowest column of a set leads a
    group, which leaves a smaller set. ``levels[starts[k] : starts[k + 1]]`` are the sets of
    k * m columns, int64; ``choices[choice_starts[k] : choice_starts[k + 1]]`` (, m - 1) the ways
    to join the lowest of them. group_kept (2^C,) float64 is what each group keeps; kept (2^C,)
    float64 and last (2^C,) int64, by set, are overwritten: what it keeps in groups, and its
    leading group; best (G + 1,) float64 becomes the answer.
    """
    kept[0] = 0.0
    best[0] = 0.0
    bits = np.empty(64, dtype=np.int64)
    for k in range(1, len(best)):
        best[k] = -1.0
        for i in range(starts[k], starts[k + 1]):
            columns = levels[i]
            left = columns
            count = 0
            while left != 0:
                lowest = left & -left
                bits[count] = lowest
                count += 1
                left ^= lowest
            most = -1.0
            lead = np.int64(0)
            for j in range(choice_starts[k], choice_starts[k + 1]):
                group = bits[0]
                for slot in range(choices.shape[1]):
                    group |= bits[choices[j, slot] + 1]
                value = group_kept[group] + kept[columns ^ group]
                if value > most:
                    most = value
                    lead = group
            kept[columns] = most
            last[columns] = lead
            best[k] = max(best[k], most)


@kernel
def choose_in_windows(X, windows, choices, n, values, chosen):  # type: ignore[no-untyped-def]
    """The most that a tile keeps of every window, and which choice of its slots keeps it.

    X (C, V) float64; windows (W, M) int32, -1 is virtual; choices (N, kept) slots of a window;
    values (W,) float64 and chosen (W,) int64 are overwritten.
    """
    columns = np.empty(choices.shape[1], dtype=np.int64)
    for w in range(len(windows)):
        values[w] = -1.0
        for i in range(len(choices)):
            for k in range(choices.shape[1]):
                columns[k] = windows[w, choices[i, k]]
            value = kept_of_set(X, columns, n)
            if value > values[w]:
                values[w] = value
                chosen[w] = i
