"""What groups of columns keep, and what they would keep with one column exchanged."""

from __future__ import annotations

import numpy as np

from gyroperm.solvers.kernels.assignment import improve_slots
from gyroperm.solvers.kernels.copying import copy_vector
from gyroperm.solvers.kernels.gain import relu_gain
from gyroperm.solvers.kernels.jit import fast_kernel, kernel
from gyroperm.solvers.kernels.random import random_below, random_bits

# Gains that take their noise from one place.
NOISE_STRIP = 64
# A move offers at most so many columns of the pool for every open place.
_DRAWN = 1


@kernel
def insert_top(top, value):  # type: ignore[no-untyped-def]
    """Insert a value among the largest so far, in descending order; the smallest drops out."""
    slot = len(top) - 1
    if value <= top[slot]:
        return
    while slot > 0 and top[slot - 1] < value:
        top[slot] = top[slot - 1]
        slot -= 1
    top[slot] = value


@fast_kernel
def _two_of_four(a, b, c, d):  # type: ignore[no-untyped-def]
    """The two largest of four without a sort: the larger of each pair, the largest of the rest.

    Their sum is exact in float64, and loops over it vectorise.
    """
    high1, low1 = max(a, b), min(a, b)
    high2, low2 = max(c, d), min(c, d)
    second = max(min(high1, high2), max(low1, low2))
    return np.float64(max(high1, high2)) + np.float64(second)


@fast_kernel
def _values_two_of_four(X, groups, values):  # type: ignore[no-untyped-def]
    for g in range(groups.shape[0]):
        a, b = X[groups[g, 0]], X[groups[g, 1]]
        c, d = X[groups[g, 2]], X[groups[g, 3]]
        total = np.float64(0)
        for r in range(X.shape[1]):
            total += _two_of_four(a[r], b[r], c[r], d[r])
        values[g] = total


@fast_kernel
def _value_two_of_four(X, members):  # type: ignore[no-untyped-def]
    a, b, c, d = X[members[0]], X[members[1]], X[members[2]], X[members[3]]
    total = np.float64(0)
    for r in range(X.shape[1]):
        total += _two_of_four(a[r], b[r], c[r], d[r])
    return total


@kernel
def group_value(X, members, n):  # type: ignore[no-untyped-def]
    """The saliency a group keeps, in float64: the n largest of its columns, row by row.

    X (C, R) float32 holds a column of the saliency a row; members (m,) are rows of X.
    """
    m = len(members)
    if m == 4 and n == 2:
        return _value_two_of_four(X, members)
    top = np.empty(n, dtype=np.float32)
    total = 0.0
    for r in range(X.shape[1]):
        top[:] = np.float32(0)
        for k in range(m):
            insert_top(top, X[members[k], r])
        for k in range(n):
            total += top[k]
    return total


@kernel
def group_values(X, groups, n, values):  # type: ignore[no-untyped-def]
    """:func:`group_value` of every group; values (G,) float64 is overwritten."""
    if groups.shape[1] == 4 and n == 2:
        _values_two_of_four(X, groups, values)
        return
    for g in range(groups.shape[0]):
        values[g] = group_value(X, groups[g], n)


@fast_kernel
def threshold_without(X, members, left_out, n, q):  # type: ignore[no-untyped-def]
    """The n-th largest of a group without one member, row by row, into ``q`` (R,) float32.

    0 where all of the remaining are kept (n = m), so that a newcomer counts in full.
    """
    m = len(members)
    if n == m:
        q[:] = np.float32(0)
        return
    if m == 4 and n == 2:
        x = X[members[(left_out + 1) % 4]]
        y = X[members[(left_out + 2) % 4]]
        z = X[members[(left_out + 3) % 4]]
        for r in range(X.shape[1]):
            q[r] = max(min(x[r], y[r]), min(max(x[r], y[r]), z[r]))
        return
    top = np.empty(n, dtype=np.float32)
    for r in range(X.shape[1]):
        top[:] = np.float32(0)
        for k in range(m):
            if k != left_out:
                insert_top(top, X[members[k], r])
        q[r] = top[n - 1]


@fast_kernel
def gain_spreads(gain, spread):  # type: ignore[no-untyped-def]
    """How far apart each item's gains are, beyond what every assignment shares.

    gain (G, A) float32; ``spread[a]`` (A,) float32 becomes the root mean square of item a's gains
    less the mean of the item and of each slot. It is the item's unit of temperature: a few
    columns of large saliency do not set it for all.
    """
    G, A = gain.shape
    mean = np.zeros(A, dtype=np.float32)
    for g in range(G):
        for a in range(A):
            mean[a] += gain[g, a]
    overall = np.float32(0)
    for a in range(A):
        mean[a] /= np.float32(G)
        overall += mean[a]
        spread[a] = np.float32(0)
    overall /= np.float32(A)
    if G == 1:
        # An item's only gain is its mean; what is left to choose by is its distance from others.
        for a in range(A):
            mean[a] = overall
    for g in range(G):
        slot = np.float32(0)
        for a in range(A):
            slot += gain[g, a]
        slot = slot / np.float32(A) - overall
        for a in range(A):
            rest = gain[g, a] - mean[a] - slot
            spread[a] += rest * rest
    for a in range(A):
        spread[a] = np.sqrt(spread[a] / np.float32(G))


@fast_kernel
def add_noise(gain, spread, temperature, noise, state):  # type: ignore[no-untyped-def]
    """Add ``temperature * spread[a] * noise`` to every gain; noise is that of ``gumbel_noise``.

    Each strip of a slot's gains takes as many values in a row, from a random place of the shuffled
    noise: a draw for each gain would take longer than the gains themselves.
    """
    G, A = gain.shape
    places = np.uint64(len(noise) - NOISE_STRIP)
    scale = np.float32(temperature)
    for g in range(G):
        for first in range(0, A, NOISE_STRIP):
            last = min(A, first + NOISE_STRIP)
            begin = np.int64(random_bits(state) % places)
            own = gain[g, first:last]
            drawn = noise[begin : begin + last - first]
            spreads = spread[first:last]
            for a in range(last - first):
                own[a] += scale * spreads[a] * drawn[a]


@kernel
def open_places(groups, pool, state, place, candidates):  # type: ignore[no-untyped-def]
    """Release a column of every group, at random, beside the pool; see assignment_moves.

    If there is no room for the whole pool, a random part of it is brought to its front.
    """
    G, m = groups.shape
    for g in range(G):
        place[g] = random_below(state, m)
        candidates[g] = groups[g, place[g]]
    D = len(pool)
    drawn = len(candidates) - G
    for d in range(drawn):
        if drawn < D:
            other = d + random_below(state, D - d)
            pool[d], pool[other] = pool[other], pool[d]
        candidates[G + d] = pool[d]


@kernel
def product_gains(X, groups, n, place, candidates, released, Q, gain):  # type: ignore[no-untyped-def]
    """What every candidate adds to every open place, by one relu product."""
    for a in range(len(candidates)):
        copy_vector(X[candidates[a]], released[a])
    for g in range(len(groups)):
        threshold_without(X, groups[g], place[g], n, Q[g])
    relu_gain(released, Q, gain)


@kernel
def known_gains(X, groups, n, ids, place, candidates, known, fresh, stale, Q, rows, gain):  # type: ignore[no-untyped-def]
    """As :func:`product_gains`, from the gains that are ``known`` since a group last changed.

    known (G', m, C + 1) float32 holds what each column adds to each place of all groups of a
    cell, where ``fresh`` (G', m) says so; ids (G,) tells which of them these groups are. What is
    not fresh is computed first. stale (G,), Q (G, R) and rows (G, C + 1) are work space.
    """
    count = 0
    for g in range(len(groups)):
        if not fresh[ids[g], place[g]]:
            stale[count] = g
            threshold_without(X, groups[g], place[g], n, Q[count])
            count += 1
    relu_gain(X, Q[:count], rows[:count])
    for k in range(count):
        g = stale[k]
        copy_vector(rows[k], known[ids[g], place[g]])
        fresh[ids[g], place[g]] = True
    for g in range(len(groups)):
        row = known[ids[g], place[g]]
        for a in range(len(candidates)):
            gain[g, a] = row[candidates[a]]


@kernel
def assignment_moves(X, groups, pool, n, moves, temperature, noise, ids, known, fresh, state):  # type: ignore[no-untyped-def]
    """Assignment moves on a block of groups and a pool of discarded columns, both in place.

    A move releases one column of every group, at a random position; the released and the pool
    are assigned anew to the open places, and what is left over is the pool. It searches
    ``(G + D)! / D!`` rearrangements and is exact for the places it opened.

    At a temperature above 0 every gain is perturbed by noise of that many spreads before it is
    assigned, and the outcome is kept whatever it is worth, as in simulated annealing; noise of
    Gumbel distribution makes each move a draw rather than a maximum. At temperature 0 a move is
    kept only if the float64 value of the block does not fall.

    Gains change only where a group does. While most stay, it pays to keep them: see
    :func:`known_gains`; with ``known`` of no groups every move computes all it needs.

    X (C + 1, R) float32; groups (G, m) int32; pool (D,) int32; noise (4160,) float32; ids (G,)
    int64, known and fresh as in :func:`known_gains`. Returns the value gained (only known at
    temperature 0), the last moves in a row that brought nothing, and how many columns went
    elsewhere than they came from.
    """
    G, m = groups.shape
    A = G + min(len(pool), _DRAWN * G)
    C, R = X.shape
    keeps = known.shape[0] > 0
    candidates = np.empty(A, dtype=np.int32)
    released = np.empty((A, R), dtype=np.float32)
    Q = np.empty((G, R), dtype=np.float32)
    rows = np.empty((G if keeps else 0, C), dtype=np.float32)
    gain = np.empty((G, A), dtype=np.float32)
    chosen = np.empty(G, dtype=np.int32)
    place = np.empty(G, dtype=np.int64)
    stale_places = np.empty(G, dtype=np.int64)
    taken = np.empty(A, dtype=np.bool_)
    values = np.empty(G)
    trial = np.empty(m, dtype=np.int32)
    new_values = np.empty(G)
    spread = np.empty(A, dtype=np.float32)
    judged = temperature <= 0.0
    if judged:
        group_values(X, groups, n, values)
    gained = 0.0
    stale = 0
    moved = 0
    for _ in range(moves):
        open_places(groups, pool, state, place, candidates)
        if keeps:
            known_gains(
                X, groups, n, ids, place, candidates, known, fresh, stale_places, Q, rows, gain
            )
        else:
            product_gains(X, groups, n, place, candidates, released, Q, gain)
        if not judged:
            gain_spreads(gain, spread)
            add_noise(gain, spread, temperature, noise, state)
        for g in range(G):
            chosen[g] = g
        improve_slots(gain, chosen)
        if judged:
            change = 0.0
            for g in range(G):
                if chosen[g] != g:
                    copy_vector(groups[g], trial)
                    trial[place[g]] = candidates[chosen[g]]
                    new_values[g] = group_value(X, trial, n)
                    change += new_values[g] - values[g]
            stale += 1
            # A sideways move costs nothing and leads elsewhere; only a rise is progress.
            if change < 0.0:
                continue
            if change > 0.0:
                stale = 0
            gained += change
        taken[:] = False
        for g in range(G):
            taken[chosen[g]] = True
            if chosen[g] != g:
                moved += 1
                groups[g, place[g]] = candidates[chosen[g]]
                values[g] = new_values[g]
                if keeps:
                    fresh[ids[g]] = False
        d = 0
        for a in range(A):
            if not taken[a]:
                pool[d] = candidates[a]
                d += 1
    return gained, stale, moved
