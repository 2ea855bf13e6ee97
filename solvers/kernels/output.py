"""Masks within groups by the error of the output."""

from __future__ import annotations

import numpy as np

from gyroperm.solvers.kernels.jit import fast_kernel, kernel


@kernel
def choose_masks(W, G, H, pruned, groups, choices, sweeps):  # type: ignore[no-untyped-def]
    """Choose anew, group by group, what each row keeps, so that the row's error falls.

    Coordinate descent on ``d H d^T`` of each row, with d the weights that it prunes: every group
    takes the best of ``choices`` given all other groups, until a sweep changes nothing.

    W (R, C) the weights; G (R, C) the products ``d H``, H (C, C), pruned (R, C) bool, all float64
    but the last; G and pruned are changed in place. groups (g, m), -1 for virtual columns;
    choices (k, m) bool, True = keep. A group with virtual columns keeps what the best choice of
    as many real columns as it can keep does. Returns by how much the errors fell, R of them.
    """
    R, m = W.shape[0], groups.shape[1]
    fallen = np.zeros(R)
    linear = np.empty(m)
    change = np.empty(m)
    most = np.zeros(groups.shape[0], dtype=np.int64)
    for g in range(groups.shape[0]):
        for k in range(choices.shape[0]):
            real = 0
            for i in range(m):
                real += choices[k, i] and groups[g, i] >= 0
            most[g] = max(most[g], real)
    for r in range(R):
        for _ in range(sweeps):
            moved = False
            for g in range(groups.shape[0]):
                # What changing each place from how it is now would cost by itself.
                for i in range(m):
                    c = groups[g, i]
                    if c < 0:
                        continue
                    change[i] = -W[r, c] if pruned[r, c] else W[r, c]
                    linear[i] = change[i] * (2.0 * G[r, c] + change[i] * H[c, c])
                best, least = -1, 0.0
                for k in range(choices.shape[0]):
                    cost, real = 0.0, 0
                    for i in range(m):
                        c = groups[g, i]
                        if c < 0:
                            continue
                        real += choices[k, i]
                        if choices[k, i] != pruned[r, c]:
                            continue
                        cost += linear[i]
                        for j in range(i):
                            d = groups[g, j]
                            if d >= 0 and choices[k, j] == pruned[r, d]:
                                cost += 2.0 * change[i] * change[j] * H[c, d]
                    if real == most[g] and cost < least - 1e-12 * abs(least):
                        best, least = k, cost
                # Rounding must not send a row round in circles.
                scale = 0.0
                for i in range(m):
                    if groups[g, i] >= 0:
                        c = groups[g, i]
                        scale = max(scale, W[r, c] * W[r, c] * H[c, c])
                if best < 0 or least > -1e-10 * scale:
                    continue
                for i in range(m):
                    c = groups[g, i]
                    if c < 0 or choices[best, i] != pruned[r, c]:
                        continue
                    pruned[r, c] = not pruned[r, c]
                    _add_row(G, r, change[i], H, c)
                fallen[r] -= least
                moved = True
            if not moved:
                break
    return fallen


@fast_kernel
def _add_row(G, r, factor, H, c):  # type: ignore[no-untyped-def]
    for j in range(G.shape[1]):
        G[r, j] += factor * H[c, j]
