"""Linear assignment inside kernels, for the many small ones of a tile."""

from __future__ import annotations

import numpy as np

from gyroperm.solvers.kernels.jit import fast_kernel

# Larger than any distance, and finite: the kernel is compiled to assume finite numbers.
_FAR = np.float32(1e30)


@fast_kernel
def _two_best(gain, price):  # type: ignore[no-untyped-def]
    """The largest and second largest of ``gain - price``, and where they are."""
    best = second = -_FAR
    where = other = 0
    for i in range(len(gain)):
        surplus = gain[i] - price[i]
        if surplus > second:
            if surplus > best:
                second, other = best, where
                best, where = surplus, i
            else:
                second, other = surplus, i
    return best, second, where, other


@fast_kernel
def _bid(gain, chosen, owner, price, free):  # type: ignore[no-untyped-def]
    """Let slots bid for their best items; returns how many stay free, listed in ``free``.

    A slot takes its best item and raises the item's price to where its second best is as good,
    so that prices stay those of an optimal partial assignment. Whoever loses an item bids next.
    """
    slots = gain.shape[0]
    left = slots
    budget = 4 * slots
    for _ in range(2):
        waiting = left
        left = 0
        k = 0
        while k < waiting:
            slot = free[k]
            k += 1
            best, second, item, other = _two_best(gain[slot], price)
            raises = best > second
            if raises:
                price[item] += best - second
            elif owner[item] >= 0:
                item = other
            loser = owner[item]
            owner[item] = slot
            chosen[slot] = item
            if loser >= 0:
                budget -= 1
                if raises and budget > 0:
                    k -= 1
                    free[k] = loser
                else:
                    free[left] = loser
                    left += 1
    return left


@fast_kernel
def _augment(gain, start, chosen, owner, price, distance, barred, parent, scanned):  # type: ignore[no-untyped-def]
    """Give a free slot an item along the cheapest chain of exchanges; updates the prices."""
    items = gain.shape[1]
    row = gain[start]
    for i in range(items):
        distance[i] = price[i] - row[i]
        parent[i] = start
        barred[i] = np.float32(0)
    count = 0
    while True:
        nearest = _FAR
        for i in range(items):
            nearest = min(nearest, distance[i] + barred[i])
        item = 0
        while item < items - 1 and distance[item] + barred[item] > nearest:
            item += 1
        if owner[item] < 0:
            break
        scanned[count] = item
        count += 1
        barred[item] = _FAR
        slot = owner[item]
        row = gain[slot]
        # The slot holds its best item: leaving it for item i costs the difference.
        offset = nearest - (price[item] - row[item])
        for i in range(items):
            length = offset + price[i] - row[i]
            closer = (length < distance[i]) & (barred[i] == np.float32(0))
            distance[i] = length if closer else distance[i]
            parent[i] = slot if closer else parent[i]
    for k in range(count):
        price[scanned[k]] += nearest - distance[scanned[k]]
    while True:
        slot = parent[item]
        owner[item] = slot
        chosen[slot], item = item, chosen[slot]
        if slot == start:
            return


@fast_kernel
def assign_slots(gain, chosen):  # type: ignore[no-untyped-def]
    """Give each slot an item of its own so that the total gain is the largest possible.

    gain (slots, items) float32, C-contiguous, with at least as many items as slots, all well
    below 1e30; chosen (slots,) int32 is overwritten with the item of each slot. Bidding, then
    shortest augmenting paths (Jonker and Volgenant, A Shortest Augmenting Path Algorithm for
    Dense and Sparse Linear Assignment Problems, Computing 1987), in float32: optimal up to its
    rounding. Whoever needs to know judges the outcome in float64.
    """
    slots, items = gain.shape
    if items == 1:
        chosen[0] = 0
        return
    price = np.zeros(items, dtype=np.float32)
    owner = np.full(items, -1, dtype=np.int32)
    free = np.arange(slots)
    left = _bid(gain, chosen, owner, price, free)
    distance = np.empty(items, dtype=np.float32)
    barred = np.empty(items, dtype=np.float32)
    parent = np.empty(items, dtype=np.int32)
    scanned = np.empty(items, dtype=np.int32)
    for k in range(left):
        _augment(gain, free[k], chosen, owner, price, distance, barred, parent, scanned)
