"""The primal simplex method for set partitioning, with an explicit inverse of the basis."""

from __future__ import annotations

import numpy as np

from gyroperm.solvers.kernels.jit import kernel

# An element of a column that is smaller is no pivot, and a value that is less below zero is zero.
_PIVOT, _FEASIBLE = 1e-6, 1e-9

# Entries of a vector for each that is not zero, above which only those are gone through.
_SPARSE = 8

# What :func:`pivots` ends with.
OPTIMAL, UNFINISHED, STUCK = 0, 1, 2


@kernel
def pivots(  # type: ignore[no-untyped-def]
    groups, values, candidates, weights, basis, place, inverse, x, u, tolerance, most
):
    """Pivot until no candidate has a reduced cost above ``tolerance``, ``most`` times at the most.

    Maximizes the value of groups that cover every column of the partition, a row here, as much as
    ``x`` does at first. Entering groups are chosen by Devex weights (Harris, Mathematical
    Programming 1973).

    groups (K, m) int32; values (K,) float64; candidates (k,) int32, the groups that may enter the
    basis. The rest is overwritten: weights (k,) float64, ones at first; basis (C,) int32, the group
    of every position, -1 - i for the spare of row i; place (K,) int32, the position of every group
    or -1; inverse (C, C) float64, that of the basis transposed, [row, position]; x (C,) float64 by
    position; u (C,) float64, the prices of the rows.

    Returns how it ended, and the pivots.
    """
    k, m = len(candidates), groups.shape[1]
    C = len(basis)
    mine = np.empty((k, m), dtype=np.int32)
    costs = np.empty(k)
    # The candidate of each position, and whether each candidate has one.
    slot = np.full(C, -1, dtype=np.int32)
    held = np.zeros(k, dtype=np.bool_)
    direction = np.empty(C)
    rho = np.empty(C)
    best = 0.0
    entering = -1
    for c in range(k):
        costs[c] = values[candidates[c]]
        for i in range(m):
            mine[c, i] = groups[candidates[c], i]
            costs[c] -= u[mine[c, i]]
        if place[candidates[c]] >= 0:
            held[c] = True
            slot[place[candidates[c]]] = c
        elif costs[c] > tolerance and costs[c] * costs[c] / weights[c] > best:
            best = costs[c] * costs[c] / weights[c]
            entering = c
    for done in range(most):
        if entering < 0:
            return OPTIMAL, done
        direction[:] = 0.0
        for i in range(m):
            direction += inverse[mine[entering, i]]
        leaving = _leaving(x, direction)
        if leaving < 0:
            return STUCK, done
        pivot = direction[leaving]
        for j in range(C):
            rho[j] = inverse[j, leaving]
        step = costs[entering] / pivot
        theta = max(0.0, x[leaving]) / pivot
        for i in range(C):
            x[i] -= theta * direction[i]
        x[leaving] = theta
        for j in range(C):
            u[j] += step * rho[j]
        # The inverse: each of its rows loses its share of the direction.
        direction[leaving] -= 1.0
        _lose(inverse, rho, direction, 1.0 / pivot)
        scale = weights[entering] / (pivot * pivot)
        if basis[leaving] >= 0:
            place[basis[leaving]] = -1
        left = slot[leaving]
        if left >= 0:
            held[left] = False
            costs[left] = 0.0
        basis[leaving] = candidates[entering]
        place[candidates[entering]] = leaving
        held[entering] = True
        slot[leaving] = entering
        # Reduced costs, weights and the next to enter in one pass.
        best = 0.0
        entering = -1
        for c in range(k):
            if held[c]:
                continue
            share = 0.0
            for i in range(m):
                share += rho[mine[c, i]]
            if share != 0.0:
                costs[c] -= step * share
                weights[c] = max(weights[c], share * share * scale)
            if costs[c] > tolerance and costs[c] * costs[c] > best * weights[c]:
                best = costs[c] * costs[c] / weights[c]
                entering = c
        if left >= 0:
            weights[left] = max(1.0, scale)
    return UNFINISHED, most


@kernel
def _lose(inverse, rho, direction, scale):  # type: ignore[no-untyped-def]
    """Take ``scale * rho[j] * direction`` from every row of the inverse; much of both is zero."""
    C = len(rho)
    places = np.empty(C, dtype=np.int32)
    count = 0
    for i in range(C):
        if direction[i] != 0.0:
            places[count] = i
            count += 1
    few = count * _SPARSE < C
    for j in range(C):
        share = scale * rho[j]
        if share == 0.0:
            continue
        row = inverse[j]
        if few:
            for p in range(count):
                row[places[p]] -= share * direction[places[p]]
        else:
            for i in range(C):
                row[i] -= share * direction[i]


@kernel
def _leaving(x, direction):  # type: ignore[no-untyped-def]
    """The position that reaches zero first; of those that do nearly so, the largest pivot."""
    least = np.inf
    for i in range(len(x)):
        if direction[i] > _PIVOT:
            least = min(least, (max(0.0, x[i]) + _FEASIBLE) / direction[i])
    leaving = -1
    largest = 0.0
    for i in range(len(x)):
        if direction[i] > max(largest, _PIVOT) and max(0.0, x[i]) / direction[i] <= least:
            largest = direction[i]
            leaving = i
    return leaving


@kernel
def refine(groups, worth, basis, inverse, b, x, u):  # type: ignore[no-untyped-def]
    """Solve for x and u anew, from the inverse and one step of refinement; returns what is off.

    worth (C,) float64 is what the basis is worth by position, b (C,) float64 what is to be covered
    of every row. The rest is as in :func:`pivots`; x and u are overwritten. Returns the larger of
    what they are off by after that, u as a share of the largest worth.
    """
    m = groups.shape[1]
    C = len(basis)
    off_x = b.copy()
    x[:] = 0.0
    u[:] = 0.0
    off_u = np.empty(C)
    off = 0.0
    largest = np.abs(worth).max()
    for turn in range(3):
        off = 0.0
        for i in range(C):
            off_u[i] = worth[i]
        off_x[:] = b
        for i in range(C):
            if basis[i] < 0:
                row = -1 - basis[i]
                off_u[i] -= u[row]
                off_x[row] -= x[i]
                continue
            for k in range(m):
                row = groups[basis[i], k]
                off_u[i] -= u[row]
                off_x[row] -= x[i]
        for i in range(C):
            off = max(off, abs(off_u[i]) / largest, abs(off_x[i]))
        if turn == 2:
            break
        for j in range(C):
            row_inverse = inverse[j]
            total = 0.0
            amount = off_x[j]
            for i in range(C):
                total += row_inverse[i] * off_u[i]
                x[i] += row_inverse[i] * amount
            u[j] += total
    return off


@kernel
def invert(groups, basis, inverse):  # type: ignore[no-untyped-def]
    """Compute ``inverse`` anew by elimination with partial pivoting; False if there is none."""
    C = len(basis)
    m = groups.shape[1]
    # Rows of B, and of what becomes of the identity.
    B = np.zeros((C, C))
    work = np.zeros((C, C))
    for i in range(C):
        if basis[i] < 0:
            B[-1 - basis[i], i] = 1.0
        else:
            for k in range(m):
                B[groups[basis[i], k], i] = 1.0
    for j in range(C):
        work[j, j] = 1.0
    for p in range(C):
        best = p
        for j in range(p + 1, C):
            if abs(B[j, p]) > abs(B[best, p]):
                best = j
        if abs(B[best, p]) < 1e-10:
            return False
        if best != p:
            for i in range(C):
                B[p, i], B[best, i] = B[best, i], B[p, i]
                work[p, i], work[best, i] = work[best, i], work[p, i]
        over = 1.0 / B[p, p]
        for i in range(C):
            B[p, i] *= over
            work[p, i] *= over
        for j in range(C):
            factor = B[j, p]
            if j != p and factor != 0.0:
                for i in range(C):
                    B[j, i] -= factor * B[p, i]
                    work[j, i] -= factor * work[p, i]
    for j in range(C):
        for p in range(C):
            inverse[j, p] = work[p, j]
    return True
