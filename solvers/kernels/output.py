"""Masks within groups by the error of the output."""

from __future__ import annotations

import numpy as np

from gyroperm.solvers.kernels.jit import fast_kernel, kernel

# An error that falls by less than this part of the largest of a group's weights has not fallen:
# rounding must not send a row round in circles.
_ROUNDING = 1e-10


@kernel
def choose_masks(W, G, H, pruned, groups, choices, sweeps):  # type: ignore[no-untyped-def]
    """Choose anew, group by group, what each row keeps, so that the row's error falls.

    Coordinate descent on ``d H d^T`` of each row, with d the weights that it prunes: every group
    takes the best of ``choices`` given all other groups, or, where there are none, the best
    exchange of a weight that is kept for one that is not, until a sweep changes nothing.

    W (R, C) the weights; G (R, C) the products ``d H``, H (C, C), pruned (R, C) bool, all float64
    but the last; G and pruned are changed in place. groups (g, m), -1 for virtual columns;
    choices (k, m) bool, True = keep: all ways to keep n. With virtual columns those count that
    keep the most real ones. Returns by how much the error of each row fell, (R,).
    """
    R, m = W.shape[0], groups.shape[1]
    fallen = np.zeros(R)
    alone, change = np.empty(m), np.empty(m)
    flips = np.zeros(m, dtype=np.bool_)
    for r in range(R):
        for _ in range(sweeps):
            moved = False
            for g in range(groups.shape[0]):
                members = groups[g]
                scale = 0.0
                # What changing each place from how it is now would cost by itself.
                for i in range(m):
                    c = members[i]
                    if c >= 0:
                        change[i] = -W[r, c] if pruned[r, c] else W[r, c]
                        alone[i] = change[i] * (2.0 * G[r, c] + change[i] * H[c, c])
                        scale = max(scale, change[i] * change[i] * H[c, c])
                if choices.shape[0]:
                    least = _best_choice(members, pruned[r], alone, change, H, choices, flips)
                else:
                    least = _best_exchange(members, pruned[r], alone, change, H, flips)
                if least >= -_ROUNDING * scale:
                    continue
                for i in range(m):
                    if flips[i]:
                        c = members[i]
                        pruned[r, c] = not pruned[r, c]
                        _add_row(G[r], change[i], H[c])
                fallen[r] -= least
                moved = True
            if not moved:
                break
    return fallen


@kernel
def _best_choice(members, pruned, alone, change, H, choices, flips):  # type: ignore[no-untyped-def]
    """The least cost of a choice, and in ``flips`` the places that it changes."""
    m = len(members)
    most = 0
    for i in range(m):
        most += members[i] >= 0
    kept = 0
    for i in range(m):
        kept += choices[0, i]
    most = min(most, kept)
    best, least = -1, 0.0
    for k in range(choices.shape[0]):
        cost, real = 0.0, 0
        for i in range(m):
            c = members[i]
            if c < 0:
                continue
            real += choices[k, i]
            if choices[k, i] != pruned[c]:
                continue
            cost += alone[i]
            for j in range(i):
                d = members[j]
                if d >= 0 and choices[k, j] == pruned[d]:
                    cost += 2.0 * change[i] * change[j] * H[c, d]
        if real == most and cost < least:
            best, least = k, cost
    for i in range(m):
        flips[i] = best >= 0 and members[i] >= 0 and choices[best, i] == pruned[members[i]]
    return least


@kernel
def _best_exchange(members, pruned, alone, change, H, flips):  # type: ignore[no-untyped-def]
    """As :func:`_best_choice`, among exchanges of one kept weight for one that is pruned."""
    m = len(members)
    first, second, least = -1, -1, 0.0
    for i in range(m):
        c = members[i]
        if c < 0 or pruned[c]:
            continue
        for j in range(m):
            d = members[j]
            if d < 0 or not pruned[d]:
                continue
            cost = alone[i] + alone[j] + 2.0 * change[i] * change[j] * H[c, d]
            if cost < least:
                first, second, least = i, j, cost
    for i in range(m):
        flips[i] = i in (first, second)
    return least


@fast_kernel
def _add_row(row, factor, added):  # type: ignore[no-untyped-def]
    for j in range(len(row)):
        row[j] += factor * added[j]
