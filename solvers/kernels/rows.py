"""Rows into tiles: assignment moves for the vector level."""

from __future__ import annotations

import numpy as np

from gyroperm.solvers.kernels.assignment import improve_slots
from gyroperm.solvers.kernels.copying import copy_matrix, copy_vector
from gyroperm.solvers.kernels.gain import relu_gain
from gyroperm.solvers.kernels.grouping import add_noise, gain_spreads
from gyroperm.solvers.kernels.jit import fast_kernel, kernel
from gyroperm.solvers.kernels.random import random_below

# Up to so many values are selected from, one by one.
_FEW = 64
# The bits of a float64's mantissa: after so many halvings only equal values are left apart.
_HALVINGS = 52
# Relative differences of values up to this are none.
_ROUNDING = 1e-12
# The first step of a search for a level, in levels a share of the values: rather past it, for
# sums whose logarithms have a standard deviation of 1 or so.
_STEP = 4.0


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


@fast_kernel
def _count_above(values, level):  # type: ignore[no-untyped-def]
    count = 0
    for i in range(len(values)):
        count += values[i] > level
    return count


@fast_kernel
def _extremes(values):  # type: ignore[no-untyped-def]
    low = high = values[0]
    for i in range(len(values)):
        low = min(low, values[i])
        high = max(high, values[i])
    return low, high


@kernel
def dual_threshold(values, count, guess):  # type: ignore[no-untyped-def]
    """As :func:`top_threshold`, or any value down to the next; leaves the vector as it is.

    ``sum(max(0, values - level)) + count * level`` is the sum of the ``count`` largest for every
    such level. Counting the values above a level vectorises: for hundreds of values a search for
    the level is faster than selecting. It begins at ``guess``, steps past the level, and then
    interpolates; it halves the range now and then, for ranges that are not nearly linear.
    """
    size = len(values)
    if count >= size:
        return 0.0
    low, high = _extremes(values)
    most, fewest = size, 0
    level = guess if low < guess < high else low + 0.5 * (high - low)
    for step in range(3 * _HALVINGS):
        above = _count_above(values, level)
        if above == count:
            return level
        if above > count:
            low, most = level, above
        else:
            high, fewest = level, above
        if step == 0:
            level += _STEP * level * (above - count) / size
            if low < level < high:
                continue
        share = (most - count) / (most - fewest) if step % 3 else 0.5
        level = low + share * (high - low)
    return high


@fast_kernel
def _excess(values, level):  # type: ignore[no-untyped-def]
    """The sum of what values are above a level; float64 whose sums may be reordered."""
    total = 0.0
    for i in range(len(values)):
        total += max(0.0, values[i] - level)
    return total


@kernel
def tile_value(sums, windows, kept, window, thresholds):  # type: ignore[no-untyped-def]
    """What a tile keeps of its vectors' scores, (C,), and the threshold of each vector.

    windows (W, M) int32 holds the columns among which ``kept`` are kept, -1 for virtual ones;
    with no windows ``kept`` of all columns are. thresholds (C,) holds guesses, and is overwritten
    with the least kept score of each column's window; window (M,) float64 is work space. The
    value is the excess over the thresholds plus the thresholds.
    """
    if windows.shape[0] == 0:
        threshold = dual_threshold(sums, kept, thresholds[0])
        for c in range(len(sums)):
            thresholds[c] = threshold
        return threshold * kept + _excess(sums, threshold)
    total = 0.0
    for w in range(windows.shape[0]):
        real = 0
        guess = 0.0
        for k in range(windows.shape[1]):
            if windows[w, k] >= 0:
                window[real] = sums[windows[w, k]]
                guess = thresholds[windows[w, k]]
                real += 1
        if real > _FEW:
            threshold = dual_threshold(window[:real], kept, guess)
        else:
            threshold = top_threshold(window[:real], kept)
        if real:
            total += threshold * kept
        for k in range(windows.shape[1]):
            if windows[w, k] >= 0:
                thresholds[windows[w, k]] = threshold
                total += max(0.0, sums[windows[w, k]] - threshold)
    return total


@kernel
def shared_value(sums, kept, thresholds):  # type: ignore[no-untyped-def]
    """As :func:`tile_value`, of all tiles, (T, C), that share one budget of ``kept`` vectors."""
    values = sums.reshape(-1)
    threshold = dual_threshold(values, kept, thresholds[0, 0])
    for t in range(sums.shape[0]):
        for c in range(sums.shape[1]):
            thresholds[t, c] = threshold
    return threshold * kept + _excess(values, threshold)


@kernel
def score_row(S, row, squared, scores):  # type: ignore[no-untyped-def]
    """What the weights of a row count at the vector level, (C,); 0 for a virtual row."""
    for c in range(len(scores)):
        value = S[row, c] if row >= 0 else np.float32(0)
        scores[c] = value * value if squared else value


@kernel
def row_sums(S, squared, tiles):  # type: ignore[no-untyped-def]
    """The summed scores of every vector, (T, C) float64, by :func:`score_row`."""
    sums = np.zeros((tiles.shape[0], S.shape[1]))
    scores = np.empty(S.shape[1], dtype=np.float32)
    for t in range(tiles.shape[0]):
        for v in range(tiles.shape[1]):
            score_row(S, tiles[t, v], squared, scores)
            for c in range(S.shape[1]):
                sums[t, c] += scores[c]
    return sums


@kernel
def row_moves(S, squared, tiles, sums, windows, kept, shared, moves, temperature, noise, state):  # type: ignore[no-untyped-def]
    """Assignment moves of rows between tiles, in place, for the sum of the kept vectors.

    A move releases a random row of every tile and assigns them anew. With a tile's thresholds
    fixed, ``sum_c max(0, sums[c] + z[c] - threshold[c])`` bounds what the tile keeps with row z
    (the dual of choosing the largest sums), so the gains are the same relu product as for
    columns. Temperature and noise as in ``assignment_moves``; at temperature 0 a move is kept
    only if the exact value does not fall.

    S (R, C) float32, squared if so; tiles (T, V) int32, -1 for virtual rows, and sums (T, C)
    float64, their :func:`row_sums`, both changed in place; windows (W, M) and kept as in
    :func:`tile_value`, or, if shared, ``kept`` for all tiles together. Returns the last moves in
    a row that brought nothing, and how many rows went elsewhere.
    """
    T, V = tiles.shape
    C = S.shape[1]
    new_sums = sums.copy()
    thresholds = np.zeros((T, C))
    new_thresholds = np.zeros((T, C))
    values = np.zeros(T)
    new_values = np.zeros(T)
    window = np.empty(windows.shape[1])
    value = 0.0
    if shared:
        value = shared_value(sums, kept, thresholds)
    else:
        for t in range(T):
            values[t] = tile_value(sums[t], windows, kept, window, thresholds[t])
    # Less is rounding: the value depends in its last digits on where a threshold was looked for.
    least = _ROUNDING * (value if shared else values.sum())
    released = np.empty((T, C), dtype=np.float32)
    Q = np.empty((T, C), dtype=np.float32)
    gain = np.empty((T, T), dtype=np.float32)
    chosen = np.empty(T, dtype=np.int32)
    place = np.empty(T, dtype=np.int64)
    rows = np.empty(T, dtype=np.int32)
    spread = np.empty(T, dtype=np.float32)
    stale = 0
    moved = 0
    for _ in range(moves):
        for t in range(T):
            place[t] = random_below(state, V)
            rows[t] = tiles[t, place[t]]
            chosen[t] = t
            score_row(S, rows[t], squared, released[t])
            for c in range(C):
                Q[t, c] = thresholds[t, c] - (sums[t, c] - released[t, c])
        relu_gain(released, Q, gain)
        if temperature > 0.0:
            gain_spreads(gain, spread)
            add_noise(gain, spread, temperature, noise, state)
        improve_slots(gain, chosen)
        change = 0.0
        for t in range(T):
            if chosen[t] == t:
                continue
            for c in range(C):
                new_sums[t, c] = sums[t, c] - released[t, c] + released[chosen[t], c]
            if not shared:
                new_values[t] = tile_value(new_sums[t], windows, kept, window, new_thresholds[t])
                change += new_values[t] - values[t]
        if shared:
            change = shared_value(new_sums, kept, new_thresholds) - value
        stale += 1
        accepted = temperature > 0.0 or change >= 0.0
        if accepted and change > least:
            stale = 0
        for t in range(T):
            if chosen[t] == t:
                continue
            if accepted:
                moved += 1
                tiles[t, place[t]] = rows[chosen[t]]
                values[t] = new_values[t]
                copy_vector(new_sums[t], sums[t])
                copy_vector(new_thresholds[t], thresholds[t])
            else:
                copy_vector(sums[t], new_sums[t])
        if shared and accepted:
            value += change
            copy_matrix(new_thresholds, thresholds)
    return stale, moved
