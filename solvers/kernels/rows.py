"""Rows into tiles: assignment moves for the vector level."""

from __future__ import annotations

import numpy as np

from gyroperm.solvers.kernels.assignment import assign_slots
from gyroperm.solvers.kernels.copying import copy_matrix
from gyroperm.solvers.kernels.gain import relu_gain
from gyroperm.solvers.kernels.grouping import add_noise, gain_spreads
from gyroperm.solvers.kernels.jit import kernel
from gyroperm.solvers.kernels.random import random_below


@kernel
def top_threshold(values, count):  # type: ignore[no-untyped-def]
    """The ``count``-th largest of a vector, 0 if it has no more than that; reorders the vector.

    Hoare's quickselect, around the middle element.
    """
    low, high = 0, len(values) - 1
    if count > high:
        return 0.0
    place = count - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if place <= j:
            high = j
        elif place >= i:
            low = i
        else:
            break
    return values[place]


@kernel
def all_thresholds(sums, windows, kept, shared, thresholds):  # type: ignore[no-untyped-def]
    """The threshold of every vector, (T, C): its tile's, its window's, or the layer's.

    windows (W, M) int32 holds the columns among which ``kept`` are kept by each tile, -1 for
    virtual ones; with ``shared`` one budget of ``kept`` is taken from all tiles together.
    """
    T = sums.shape[0]
    if shared:
        threshold = top_threshold(sums.copy().reshape(-1), kept)
        for t in range(T):
            for c in range(sums.shape[1]):
                thresholds[t, c] = threshold
        return
    W, M = windows.shape
    window = np.empty(M)
    for t in range(T):
        for w in range(W):
            real = 0
            for k in range(M):
                if windows[w, k] >= 0:
                    window[real] = sums[t, windows[w, k]]
                    real += 1
            threshold = top_threshold(window[:real], kept)
            for k in range(M):
                if windows[w, k] >= 0:
                    thresholds[t, windows[w, k]] = threshold


@kernel
def vector_value(sums, thresholds, windows, kept, shared):  # type: ignore[no-untyped-def]
    """The summed scores of all kept vectors: excess over the thresholds plus the thresholds."""
    total = 0.0
    for t in range(sums.shape[0]):
        for c in range(sums.shape[1]):
            total += max(0.0, sums[t, c] - thresholds[t, c])
    if shared:
        return total + thresholds[0, 0] * kept
    for t in range(sums.shape[0]):
        for w in range(windows.shape[0]):
            for k in range(windows.shape[1]):
                if windows[w, k] >= 0:
                    total += thresholds[t, windows[w, k]] * kept
                    break
    return total


@kernel
def row_sums(Z, tiles):  # type: ignore[no-untyped-def]
    """The summed scores of every vector, (T, C) float64; the last row of Z stands for virtual."""
    sums = np.zeros((tiles.shape[0], Z.shape[1]))
    for t in range(tiles.shape[0]):
        for v in range(tiles.shape[1]):
            for c in range(Z.shape[1]):
                sums[t, c] += Z[tiles[t, v], c]
    return sums


@kernel
def row_moves(Z, tiles, windows, kept, shared, moves, temperature, noise, state):  # type: ignore[no-untyped-def]
    """Assignment moves of rows between tiles, in place, for the sum of the kept vectors.

    A move releases a random row of every tile and assigns them anew. With a tile's thresholds
    fixed, ``sum_c max(0, sums[c] + z[c] - threshold[c])`` bounds what the tile keeps with row z
    (the dual of choosing the largest sums), so the gains are the same relu product as for
    columns. Temperature and noise as in ``assignment_moves``; at temperature 0 a move is kept
    only if the exact value does not fall.

    Z (R + 1, C) float32, its last row zero; tiles (T, V) int32. Returns the value after the
    moves, the last moves in a row that brought nothing, and how many rows went elsewhere.
    """
    T, V = tiles.shape
    C = Z.shape[1]
    sums = row_sums(Z, tiles)
    thresholds = np.empty((T, C))
    all_thresholds(sums, windows, kept, shared, thresholds)
    value = vector_value(sums, thresholds, windows, kept, shared)
    released = np.empty((T, C), dtype=np.float32)
    Q = np.empty((T, C), dtype=np.float32)
    gain = np.empty((T, T), dtype=np.float32)
    chosen = np.empty(T, dtype=np.int32)
    place = np.empty(T, dtype=np.int64)
    rows = np.empty(T, dtype=np.int32)
    old_sums = np.empty_like(sums)
    spread = np.empty(T, dtype=np.float32)
    stale = 0
    moved = 0
    for _ in range(moves):
        copy_matrix(sums, old_sums)
        for t in range(T):
            place[t] = random_below(state, V)
            rows[t] = tiles[t, place[t]]
            for c in range(C):
                z = Z[rows[t], c]
                released[t, c] = z
                sums[t, c] -= z
                Q[t, c] = thresholds[t, c] - sums[t, c]
        relu_gain(released, Q, gain)
        if temperature > 0.0:
            gain_spreads(gain, spread)
            add_noise(gain, spread, temperature, noise, state)
        assign_slots(gain, chosen)
        for t in range(T):
            for c in range(C):
                sums[t, c] += released[chosen[t], c]
        all_thresholds(sums, windows, kept, shared, thresholds)
        new_value = vector_value(sums, thresholds, windows, kept, shared)
        stale += 1
        if temperature <= 0.0 and new_value < value:
            copy_matrix(old_sums, sums)
            all_thresholds(sums, windows, kept, shared, thresholds)
            continue
        if new_value > value:
            stale = 0
        value = new_value
        for t in range(T):
            tiles[t, place[t]] = rows[chosen[t]]
            moved += chosen[t] != t
    return value, stale, moved
