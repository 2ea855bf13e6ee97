"""Windows shared by all tiles: moves of columns between windows, and what tiles choose of them.

Tiles keep one group of m of the M columns of each window. ``X`` (T, C + 1, V) float32 holds the
saliency tile by tile, a column a row, the last of zeros for virtual columns; ``windows`` (B, M)
int32 holds rows of ``X[t]``; ``choice`` (T, B, m) int32 the positions that each tile keeps.
"""

from __future__ import annotations

import numpy as np

from gyroperm.solvers.kernels.assignment import improve_slots
from gyroperm.solvers.kernels.copying import copy_matrix, copy_vector
from gyroperm.solvers.kernels.gain import relu_gain
from gyroperm.solvers.kernels.grouping import (
    add_noise,
    gain_spreads,
    group_value,
    group_values,
    threshold_without,
)
from gyroperm.solvers.kernels.jit import fast_kernel, kernel
from gyroperm.solvers.kernels.random import random_below

# Less than any exchange can cost, and finite: fast kernels assume finite numbers.
_NEVER = np.float32(-1e30)


@fast_kernel
def relu_sum(x, q):  # type: ignore[no-untyped-def]
    """``sum_r max(0, x[r] - q[r])``: what a vector adds to a group whose n-th largest is q."""
    total = np.float32(0)
    for r in range(len(x)):
        total += max(x[r] - q[r], np.float32(0))
    return total


@kernel
def is_among(position, chosen):  # type: ignore[no-untyped-def]
    """Whether a position is among those chosen."""
    for s in range(len(chosen)):  # noqa: SIM110
        if chosen[s] == position:
            return True
    return False


@kernel
def choice_value(X, windows, choice, n):  # type: ignore[no-untyped-def]
    """What all tiles keep of these windows, in float64."""
    T, B, m = choice.shape
    groups = np.empty((B, m), dtype=np.int32)
    values = np.empty(B)
    total = 0.0
    for t in range(T):
        for b in range(B):
            for s in range(m):
                groups[b, s] = windows[b, choice[t, b, s]]
        group_values(X[t], groups, n, values)
        for b in range(B):
            total += values[b]
    return total


@kernel
def leave_open(X, window, place, n, chosen, members, q):  # type: ignore[no-untyped-def]
    """The best choice of a tile without one position of a window; returns whether it has a gap.

    chosen (m,) int32, changed in place: if it holds ``place``, the best discarded position takes
    its slot. Where none is discarded the slot stays open. members (m,) int32 becomes the rows of
    X (C + 1, V), that of zeros for an open slot; q (V,) float32 is overwritten.
    """
    zeros = X.shape[0] - 1
    gap = -1
    for s in range(len(chosen)):
        members[s] = window[chosen[s]]
        if chosen[s] == place:
            gap = s
            members[s] = zeros
    if gap < 0 or len(chosen) == len(window):
        return gap >= 0
    threshold_without(X, members, gap, n, q)
    best = np.float32(-1)
    refill = place
    for k in range(len(window)):
        if is_among(k, chosen):
            continue
        gain = relu_sum(X[window[k]], q)
        if gain > best:
            best = gain
            members[gap] = window[k]
            refill = k
    chosen[gap] = refill
    return False


@fast_kernel
def exchange_gains(H, losses, gain, slots):  # type: ignore[no-untyped-def]
    """Add the best that a tile can do with each column in each window; the slot it takes.

    H (B * m, A) float32 is what column a adds to window b's group less one slot, losses (B * m,)
    what that slot kept; gain (B, A) float32; slots (B, A) int8 becomes -1 where the column is
    better left.
    """
    B, A = gain.shape
    m = len(losses) // B
    for b in range(B):
        for a in range(A):
            best = np.float32(0)
            slot = -1
            for s in range(m):
                worth = H[b * m + s, a] - losses[b * m + s]
                if worth > best:
                    best = worth
                    slot = s
            gain[b, a] += best
            slots[b, a] = slot


@kernel
def window_gains(X, windows, place, n, trial, released, gain, slots):  # type: ignore[no-untyped-def]
    """What all tiles together gain from each released column in each window.

    A tile may leave the column, or keep it for one of its group: with the n-th largest of the
    others ``q`` and the slot's column y that is ``sum_r relu(x - q) - relu(y - q)``, exactly.

    place (B,) int64; trial (T, B, m) int32, changed in place to choices without the released;
    released (B, V) float32 is overwritten, gain (B, B) float32 and slots (T, B, B) int8 too.
    """
    T, B, m = trial.shape
    V = X.shape[2]
    Q = np.empty((B * m, V), dtype=np.float32)
    losses = np.empty(B * m, dtype=np.float32)
    H = np.empty((B * m, B), dtype=np.float32)
    members = np.empty(m, dtype=np.int32)
    q = np.empty(V, dtype=np.float32)
    gain[:, :] = np.float32(0)
    for t in range(T):
        for b in range(B):
            copy_vector(X[t, windows[b, place[b]]], released[b])
            gap = leave_open(X[t], windows[b], place[b], n, trial[t, b], members, q)
            for s in range(m):
                threshold_without(X[t], members, s, n, Q[b * m + s])
                losses[b * m + s] = relu_sum(X[t, members[s]], Q[b * m + s])
                if gap and trial[t, b, s] != place[b]:
                    losses[b * m + s] = -_NEVER
        relu_gain(released, Q, H)
        exchange_gains(H, losses, gain, slots[t])


@kernel
def window_moves(X, windows, choice, n, moves, temperature, noise, state):  # type: ignore[no-untyped-def]
    """Assignment moves of columns between windows, in place, for what all tiles keep.

    A move releases a random column of every window, of which every tile makes its best choice,
    and assigns the released anew by what the tiles gain. Temperature and noise as in
    ``assignment_moves``; at temperature 0 a move is kept only if the float64 value does not fall.

    Returns the last moves in a row that brought nothing, and how many columns went elsewhere.
    """
    T, B, _ = choice.shape
    M = windows.shape[1]
    place = np.empty(B, dtype=np.int64)
    released = np.empty((B, X.shape[2]), dtype=np.float32)
    gain = np.empty((B, B), dtype=np.float32)
    slots = np.empty((T, B, B), dtype=np.int8)
    spread = np.empty(B, dtype=np.float32)
    chosen = np.empty(B, dtype=np.int32)
    new_windows = np.empty_like(windows)
    trial = np.empty_like(choice)
    judged = temperature <= 0.0
    value = choice_value(X, windows, choice, n) if judged else 0.0
    stale = 0
    moved = 0
    for _ in range(moves):
        for b in range(B):
            place[b] = random_below(state, M)
            chosen[b] = b
        for t in range(T):
            copy_matrix(choice[t], trial[t])
        window_gains(X, windows, place, n, trial, released, gain, slots)
        if not judged:
            gain_spreads(gain, spread)
            add_noise(gain, spread, temperature, noise, state)
        improve_slots(gain, chosen)
        copy_matrix(windows, new_windows)
        for b in range(B):
            new_windows[b, place[b]] = windows[chosen[b], place[chosen[b]]]
            for t in range(T):
                slot = slots[t, b, chosen[b]]
                if slot >= 0:
                    trial[t, b, slot] = place[b]
        if judged:
            new_value = choice_value(X, new_windows, trial, n)
            stale += 1
            if new_value < value:
                continue
            if new_value > value:
                stale = 0
            value = new_value
        for b in range(B):
            moved += chosen[b] != b
        copy_matrix(new_windows, windows)
        for t in range(T):
            copy_matrix(trial[t], choice[t])
    return stale, moved


@kernel
def choose_again(X, windows, choice, n):  # type: ignore[no-untyped-def]
    """Exchange kept for discarded columns of a tile's windows while that keeps more, in place.

    X (C + 1, V) and choice (B, m) are those of one tile. The best exchange is found by the relu
    sums in float32 and made only if the float64 value rises. Returns the value of the tile.
    """
    B, M = windows.shape
    m = choice.shape[1]
    members = np.empty(m, dtype=np.int32)
    q = np.empty(X.shape[1], dtype=np.float32)
    groups = np.empty((B, m), dtype=np.int32)
    values = np.empty(B)
    for b in range(B):
        for s in range(m):
            groups[b, s] = windows[b, choice[b, s]]
    group_values(X, groups, n, values)
    total = 0.0
    for b in range(B):
        value = values[b]
        copy_vector(groups[b], members)
        while m < M:
            best = np.float32(0)
            slot = position = -1
            for s in range(m):
                threshold_without(X, members, s, n, q)
                loss = relu_sum(X[members[s]], q)
                for k in range(M):
                    if is_among(k, choice[b]):
                        continue
                    worth = relu_sum(X[windows[b, k]], q) - loss
                    if worth > best:
                        best = worth
                        slot = s
                        position = k
            if slot < 0:
                break
            members[slot] = windows[b, position]
            new_value = group_value(X, members, n)
            if new_value <= value:
                break
            value = new_value
            choice[b, slot] = position
        total += value
    return total
