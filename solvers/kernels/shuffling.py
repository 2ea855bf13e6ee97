"""Random column orders, judged as they are drawn."""

from __future__ import annotations

import numpy as np

from gyroperm.solvers.kernels.copying import copy_vector
from gyroperm.solvers.kernels.grouping import group_values
from gyroperm.solvers.kernels.jit import kernel
from gyroperm.solvers.kernels.random import random_below


@kernel
def best_shuffle(X, order, m, n, count, state, best):  # type: ignore[no-untyped-def]
    """Shuffle an order ``count`` times; returns what the groups of the best of them keep.

    X (C + 1, R) float32; order (C',) int32, rows of X, left as the last shuffle; best (C',)
    int32 becomes the best order. Fisher and Yates' shuffle: every order is equally likely.
    """
    groups = order.reshape(-1, m)
    values = np.empty(len(groups))
    most = -1.0
    for _ in range(count):
        for i in range(len(order) - 1, 0, -1):
            j = random_below(state, i + 1)
            order[i], order[j] = order[j], order[i]
        group_values(X, groups, n, values)
        total = 0.0
        for g in range(len(groups)):
            total += values[g]
        if total > most:
            most = total
            copy_vector(order, best)
    return most
