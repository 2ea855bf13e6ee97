"""Linear assignment inside kernels, for the many small ones of a tile."""

from __future__ import annotations

import numpy as np

from gyroperm.solvers.kernels.jit import fast_kernel, kernel

# Larger than any distance, and finite: the kernel is compiled to assume finite numbers.
_FAR = np.float32(1e30)

# Who bid last for an item, besides slots: nobody, or an item without a slot.
_NOBODY, _SPARE = -1, -2
# After so many passes an assignment is found faster from nothing.
_PASSES = 400


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


@kernel
def assign_each(gain, chosen):  # type: ignore[no-untyped-def]
    """:func:`assign_slots` for each matrix of gain (count, slots, items), float32."""
    for k in range(len(gain)):
        assign_slots(gain[k], chosen[k])


@fast_kernel
def _raise_prices(row, surplus, slot, slack, price, parent):  # type: ignore[no-untyped-def]
    """A slot bids for every item it would gain by; returns how many prices rose."""
    rose = 0
    for i in range(len(row)):
        offer = row[i] - surplus
        higher = offer > price[i] + slack
        price[i] = offer if higher else price[i]
        parent[i] = slot if higher else parent[i]
        rose += higher
    return rose


@fast_kernel
def _offer_spare(owner, slack, price, parent):  # type: ignore[no-untyped-def]
    """Offer the dearest item without a slot for every owned one; returns which it is, or -1.

    The second result is whether any price rose.
    """
    spare = -1
    for i in range(len(owner)):
        if owner[i] < 0 and (spare < 0 or price[i] > price[spare]):
            spare = i
    rose = False
    if spare >= 0:
        best = price[spare]
        for i in range(len(owner)):
            if owner[i] >= 0 and best > price[i] + slack:
                price[i] = best
                parent[i] = _SPARE
                rose = True
    return spare, rose


@kernel
def _rotate(gain, chosen, owner, parent, spare, mark):  # type: ignore[no-untyped-def]
    """Carry out every cycle of exchanges that the bids close; returns how many there were."""
    items = len(owner)
    for i in range(items):
        mark[i] = -1
    rotated = 0
    for begin in range(items):
        item = begin
        while mark[item] < 0 and parent[item] != _NOBODY:
            mark[item] = begin
            item = spare if parent[item] == _SPARE else chosen[parent[item]]
        if mark[item] != begin or parent[item] == _NOBODY:
            continue
        first = item
        change = 0.0
        while True:
            slot = parent[item]
            if slot == _SPARE:
                item = spare
            else:
                change += gain[slot, item] - gain[slot, chosen[slot]]
                item = chosen[slot]
            if item == first:
                break
        if change <= 0.0:
            continue
        rotated += 1
        while True:
            slot = parent[item]
            if slot == _SPARE:
                owner[item], item = -1, spare
            else:
                owner[item] = slot
                chosen[slot], item = item, chosen[slot]
            if item == first:
                break
    return rotated


@kernel
def improve_slots(gain, chosen):  # type: ignore[no-untyped-def]
    """As :func:`assign_slots`, from an assignment that is likely near the best, given in chosen.

    Cancels cycles: prices rise until no slot gains by paying another item's (Bellman and Ford's
    longest paths, a row of bids at a time), and wherever bids close a cycle its slots exchange
    items (Klein, A Primal Method for Minimal Cost Flows, Management Science 1967). Where little
    is left to improve this takes a few passes over ``gain``.
    """
    slots, items = gain.shape
    owner = np.empty(items, dtype=np.int32)
    price = np.empty(items, dtype=np.float32)
    parent = np.empty(items, dtype=np.int32)
    mark = np.empty(items, dtype=np.int32)
    for i in range(items):
        owner[i] = -1
        price[i] = np.float32(0)
        parent[i] = _NOBODY
    largest = np.float32(0)
    for g in range(slots):
        owner[chosen[g]] = g
        largest = max(largest, abs(gain[g, chosen[g]]))
    slack = np.float32(1e-6) * largest
    for _ in range(_PASSES):
        rose = 0
        for g in range(slots):
            surplus = gain[g, chosen[g]] - price[chosen[g]]
            rose += _raise_prices(gain[g], surplus, g, slack, price, parent)
        spare, spared = _offer_spare(owner, slack, price, parent)
        if rose == 0 and not spared:
            return
        if _rotate(gain, chosen, owner, parent, spare, mark):
            for i in range(items):
                parent[i] = _NOBODY
    assign_slots(gain, chosen)
