"""Masks within groups by the error of the output."""

from __future__ import annotations

import numpy as np

from gyroperm.solvers.kernels.jit import fast_kernel, kernel, wide_vectors
from gyroperm.solvers.kernels.random import random_below

# An error that falls by less than this part of the largest of a group's weights has not fallen:
# rounding must not send a row round in circles.
_ROUNDING = 1e-10


@kernel
def choose_masks(  # type: ignore[no-untyped-def]
    W, G, H, pruned, groups, blocks, lost, sweeps, heat, noise, state
):
    """Choose anew, group by group, what each row keeps, so that the row's error falls.

    Coordinate descent on ``d H d^T`` of each row, with d the weights that it prunes: every group
    takes the best of the sets ``lost`` given all other groups, or, where there are none, the best
    exchange of a weight that is kept for one that is not, until a sweep changes nothing, or after
    ``sweeps``. Where a row's ``heat`` is not 0 its groups draw instead from all that they may
    take, by the Boltzmann distribution at that temperature.

    W (R, C) the weights; G (R, C) the products ``d H``, H (C, C), pruned (R, C) bool, all float64
    but the last; G and pruned are changed in place. groups (g, m), -1 for virtual columns; blocks
    (g, m, m), H of each group's columns, 0 for virtual ones; lost (k, m - n), all sets of places
    that a group may prune. With virtual columns those count that keep the most real ones. heat
    (R,) in the unit of errors; noise as of :func:`gyroperm.solvers.cooling.gumbel_noise`; state
    (1,) uint64 of the random numbers.
    """
    R, m = W.shape[0], groups.shape[1]
    # Numbers of noise for each of the sets, or exchanges and staying, of a group.
    drawn = max(lost.shape[0], m * m + 1)
    w, own = np.empty(m), np.empty(m)
    now, new = np.empty(m, dtype=np.bool_), np.empty(m, dtype=np.bool_)
    for r in range(R):
        for _ in range(sweeps):
            moved = False
            for g in range(groups.shape[0]):
                members, block = groups[g], blocks[g]
                scale = 0.0
                for i in range(m):
                    c = members[i]
                    # Virtual columns are weights of 0 that are pruned already.
                    w[i] = W[r, c] if c >= 0 else 0.0
                    now[i] = new[i] = c < 0 or pruned[r, c]
                    scale = max(scale, w[i] * w[i] * block[i, i])
                _costs_alone(members, block, G[r], w, now, own)
                luck = noise[:drawn]
                if heat[r] > 0.0:
                    first = random_below(state, len(noise) - drawn)
                    luck = noise[first : first + drawn]
                if lost.shape[0]:
                    _best_set(members, block, w, own, lost, now, new, heat[r], luck, scale)
                else:
                    _best_exchange(members, block, w, own, now, new, heat[r], luck, scale)
                for i in range(m):
                    if new[i] != now[i]:
                        c = members[i]
                        pruned[r, c] = new[i]
                        _add_row(G[r], w[i] if new[i] else -w[i], H[c])
                        moved = True
            if not moved:
                break


@kernel
def _costs_alone(members, block, G, w, now, own):  # type: ignore[no-untyped-def]
    """What pruning each place costs, all other groups given and nothing of its own pruned."""
    m = len(members)
    for i in range(m):
        c = members[i]
        if c < 0:
            own[i] = 0.0
            continue
        rest = G[c]
        for j in range(m):
            if now[j]:
                rest -= w[j] * block[j, i]
        own[i] = w[i] * (2.0 * rest + w[i] * block[i, i])


@kernel
def _best_set(members, block, w, own, lost, now, new, heat, luck, scale):  # type: ignore[no-untyped-def]
    """The set of places whose pruning costs least, as ``new``; ``now`` unless another is better.

    ``luck``, at ``heat``, makes sets look better than they are; ``scale`` is what rounding is
    relative to.
    """
    m = len(members)
    virtual = 0
    for i in range(m):
        virtual += members[i] < 0
    best, least = -1, np.inf
    for k in range(lost.shape[0]):
        cost, same, unreal = 0.0, True, 0
        for a in range(lost.shape[1]):
            i = lost[k, a]
            unreal += members[i] < 0
            same &= now[i]
            cost += own[i]
            for b in range(a):
                j = lost[k, b]
                cost += 2.0 * w[i] * w[j] * block[i, j]
        if unreal < min(virtual, lost.shape[1]):
            continue
        if heat > 0.0:
            cost -= heat * luck[k]
        elif same:
            # Others have to be better beyond rounding.
            cost -= _ROUNDING * scale
        if cost < least:
            best, least = k, cost
    for i in range(m):
        new[i] = members[i] < 0
    for a in range(lost.shape[1]):
        new[lost[best, a]] = True


@kernel
def _best_exchange(members, block, w, own, now, new, heat, luck, scale):  # type: ignore[no-untyped-def]
    """As :func:`_best_set`, among exchanges of one kept weight for one that is pruned."""
    m = len(members)
    # What is pruned already makes pruning more, and taking back, cost something else.
    first, second = -1, -1
    least = -heat * luck[m * m] if heat > 0.0 else -_ROUNDING * scale
    for i in range(m):
        if now[i]:
            continue
        for j in range(m):
            if members[j] < 0 or not now[j]:
                continue
            cost = own[i] - own[j]
            for k in range(m):
                if now[k] and k != j:
                    cost += 2.0 * w[k] * (w[i] * block[i, k] - w[j] * block[j, k])
            if heat > 0.0:
                cost -= heat * luck[i * m + j]
            if cost < least:
                first, second, least = i, j, cost
    if first >= 0:
        new[first], new[second] = True, False


@fast_kernel
def include(W, H, before, pruned, share, average, settled, products):  # type: ignore[no-untyped-def]
    """Let averages of masks, and their products with H, move a share of the way to other masks.

    W (R, C) the weights and share, float32; H (tiles, C, width) float32, some columns of H in each
    tile, contiguous; before and pruned (R, C) bool, the masks of the last call and of this one.
    Changed in place, all (R, C) float32: ``settled``, which is ``(W before) H`` and becomes
    ``(W pruned) H``; ``average``, of the masks; ``products``, which are ``(W average) H`` before
    and after.
    """
    R, C = W.shape
    flips = np.empty((R, C), dtype=np.int64)
    counts = np.zeros(R, dtype=np.int64)
    for r in range(R):
        for c in range(C):
            if before[r, c] != pruned[r, c]:
                flips[r, counts[r]] = c
                counts[r] += 1
    # One tile of H stays in the second-level cache.
    for tile in range(H.shape[0]):
        first = tile * H.shape[2]
        last = min(C, first + H.shape[2])
        for r in range(R):
            _add_flips(W[r], H[tile], pruned[r], flips[r], counts[r], settled[r, first:last])
    for r in range(R):
        own, seen, sums, new = average[r], pruned[r], products[r], settled[r]
        for c in range(C):
            own[c] += (np.float32(seen[c]) - own[c]) * share
            sums[c] += (new[c] - sums[c]) * share


@fast_kernel
def _add_flips(w, H, pruned, flips, count, row):  # type: ignore[no-untyped-def]
    """Add to ``d H`` what has flipped of d, eight weights at a time."""
    wide_vectors()
    width = len(row)
    whole = count - count % 8
    for k in range(0, whole, 8):
        c0, c1, c2, c3 = flips[k], flips[k + 1], flips[k + 2], flips[k + 3]
        c4, c5, c6, c7 = flips[k + 4], flips[k + 5], flips[k + 6], flips[k + 7]
        f0 = w[c0] if pruned[c0] else -w[c0]
        f1 = w[c1] if pruned[c1] else -w[c1]
        f2 = w[c2] if pruned[c2] else -w[c2]
        f3 = w[c3] if pruned[c3] else -w[c3]
        f4 = w[c4] if pruned[c4] else -w[c4]
        f5 = w[c5] if pruned[c5] else -w[c5]
        f6 = w[c6] if pruned[c6] else -w[c6]
        f7 = w[c7] if pruned[c7] else -w[c7]
        h0, h1, h2, h3, h4, h5, h6, h7 = H[c0], H[c1], H[c2], H[c3], H[c4], H[c5], H[c6], H[c7]
        for j in range(width):
            low = (f0 * h0[j] + f1 * h1[j]) + (f2 * h2[j] + f3 * h3[j])
            high = (f4 * h4[j] + f5 * h5[j]) + (f6 * h6[j] + f7 * h7[j])
            row[j] += low + high
    for k in range(whole, count):
        c = flips[k]
        f = w[c] if pruned[c] else -w[c]
        for j in range(width):
            row[j] += f * H[c, j]


@fast_kernel
def pruning_costs(W, own, average, products, costs):  # type: ignore[no-untyped-def]
    """What pruning each weight costs where the others are pruned as often as ``average`` says.

    ``2 w_j g_j + own_j w_j^2 (1 - 2 p_j)`` up to a constant of each row, with p the averages and
    g = (w p) H the products. As every row keeps the same number of weights a constant changes no
    choice; the least becomes 0. W, average, products and costs (R, C), own (C,), all float32.
    """
    two, one = np.float32(2), np.float32(1)
    for r in range(W.shape[0]):
        w, p, g, cost = W[r], average[r], products[r], costs[r]
        for c in range(len(own)):
            cost[c] = w[c] * (two * g[c] + own[c] * w[c] * (one - two * p[c]))
        least = cost[0]
        for c in range(len(own)):
            least = cost[c] if cost[c] < least else least
        for c in range(len(own)):
            cost[c] -= least


@fast_kernel
def _add_row(row, factor, added):  # type: ignore[no-untyped-def]
    for j in range(len(row)):
        row[j] += factor * added[j]
