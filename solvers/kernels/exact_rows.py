"""Rows into tiles whose groups are fixed: assignment moves for what is kept."""

from __future__ import annotations

import numpy as np

from gyroperm.solvers.kernels.assignment import improve_slots
from gyroperm.solvers.kernels.copying import copy_vector
from gyroperm.solvers.kernels.grouping import add_noise, gain_spreads
from gyroperm.solvers.kernels.jit import fast_kernel, kernel
from gyroperm.solvers.kernels.random import random_below


@fast_kernel
def rows_worth(columns, groups, n, worth):  # type: ignore[no-untyped-def]
    """What each of some rows keeps of a tile's groups, into worth (A,) float64.

    columns (C + 1, A) float32, the last of zeros for virtual columns; groups (G, m) int32. Rows
    lie next to each other so that the sums vectorise; each is taken in float64, in order.
    """
    A = len(worth)
    m = groups.shape[1]
    worth[:] = 0.0
    top = np.empty((n, A), dtype=np.float32)
    carried = np.empty(A, dtype=np.float32)
    for g in range(groups.shape[0]):
        if m == 4 and n == 2:
            x, y = columns[groups[g, 0]], columns[groups[g, 1]]
            z, u = columns[groups[g, 2]], columns[groups[g, 3]]
            for a in range(A):
                high1, low1 = max(x[a], y[a]), min(x[a], y[a])
                high2, low2 = max(z[a], u[a]), min(z[a], u[a])
                first = max(high1, high2)
                second = max(min(high1, high2), max(low1, low2))
                worth[a] += np.float64(first) + np.float64(second)
            continue
        top[:, :] = np.float32(0)
        for s in range(m):
            copy_vector(columns[groups[g, s]], carried)
            for level in range(n):
                held = top[level]
                for a in range(A):
                    old, new = held[a], carried[a]
                    held[a] = max(old, new)
                    carried[a] = min(old, new)
        for level in range(n):
            for a in range(A):
                worth[a] += top[level, a]


@kernel
def exact_row_moves(S, tiles, groups, n, moves, temperature, noise, state):  # type: ignore[no-untyped-def]
    """Assignment moves of rows between tiles whose groups are fixed, in place.

    What a row keeps in a tile then does not depend on the tile's other rows: the gains are exact,
    and the assignment of one released row of every tile is optimal. Temperature and noise as in
    ``assignment_moves``; at temperature 0 the float64 value does not fall.

    S (R, C) float32; tiles (T, V) int32, -1 for virtual rows; groups (T, G, m) int32, C for
    virtual columns. Returns the last moves in a row that brought nothing, and how many rows went
    elsewhere.
    """
    T, V = tiles.shape
    C = S.shape[1]
    released = np.zeros((C + 1, T), dtype=np.float32)
    rows = np.empty(T, dtype=np.int32)
    place = np.empty(T, dtype=np.int64)
    worth = np.empty((T, T))
    gain = np.empty((T, T), dtype=np.float32)
    spread = np.empty(T, dtype=np.float32)
    chosen = np.empty(T, dtype=np.int32)
    stale = 0
    moved = 0
    for _ in range(moves):
        for t in range(T):
            place[t] = random_below(state, V)
            chosen[t] = t
            rows[t] = tiles[t, place[t]]
            for c in range(C):
                released[c, t] = S[rows[t], c] if rows[t] >= 0 else np.float32(0)
        for t in range(T):
            rows_worth(released, groups[t], n, worth[t])
            for a in range(T):
                gain[t, a] = worth[t, a]
        if temperature > 0.0:
            gain_spreads(gain, spread)
            add_noise(gain, spread, temperature, noise, state)
        improve_slots(gain, chosen)
        change = 0.0
        for t in range(T):
            change += worth[t, chosen[t]] - worth[t, t]
        stale = 0 if change > 0.0 else stale + 1
        if temperature <= 0.0 and change < 0.0:
            continue
        for t in range(T):
            tiles[t, place[t]] = rows[chosen[t]]
            moved += chosen[t] != t
    return stale, moved
