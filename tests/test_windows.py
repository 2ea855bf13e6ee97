"""Windows shared by all tiles, rows for fixed groups, and the ragged budget."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import naive
from gyroperm import MaxRounds, Pattern, TimeLimit, solve
from gyroperm.solvers.cooling import gumbel_noise
from gyroperm.solvers.kernels.exact_rows import exact_row_moves, rows_worth
from gyroperm.solvers.kernels.windows import (
    choice_value,
    choose_again,
    window_gains,
    window_moves,
)

NOISE = gumbel_noise()


class Windows:
    """Tiles, windows and choices as the kernels take them, and the matrix they stand for."""

    def __init__(self, seed, T, V, B, M, m):
        random = np.random.default_rng(seed)
        C = B * M
        # Multiples of 2^-12: all sums are exact, also in float32.
        self.S = (random.integers(0, 2**12, (T * V, C)) / 2.0**12).astype(np.float32)
        self.rows = [list(range(t * V, t * V + V)) for t in range(T)]
        self.X = np.zeros((T, C + 1, V), dtype=np.float32)
        self.X[:, :C] = self.S.reshape(T, V, C).transpose(0, 2, 1)
        self.windows = random.permutation(C).astype(np.int32).reshape(B, M)
        if C > 1:
            # One column is virtual: the last row of X, of zeros.
            self.windows[self.windows == 0] = C
        self.choice = np.stack(
            [[random.permutation(M)[:m] for _ in range(B)] for _ in range(T)]
        ).astype(np.int32)

    def column(self, x):
        return -1 if x == self.S.shape[1] else int(x)

    def value(self, n):
        return sum(
            naive.group_value(self.S, rows, [self.column(self.windows[b, k]) for k in kept], n)
            for rows, tile in zip(self.rows, self.choice, strict=True)
            for b, kept in enumerate(tile)
        )


@st.composite
def windowed(draw):
    m = draw(st.integers(2, 4))
    n = draw(st.integers(1, m - 1))
    sizes = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(2, 5))
    state = Windows(draw(st.integers(0, 999)), *sizes, draw(st.integers(m, m + 3)), m)
    return state, n, np.array([draw(st.integers(0, 2**63))], dtype=np.uint64)


@given(windowed(), st.data())
def test_window_gains_are_those_of_every_exchange(given_windows, data):
    w, n, _ = given_windows
    T, B, m = w.choice.shape
    M = w.windows.shape[1]
    place = np.array([data.draw(st.integers(0, M - 1)) for _ in range(B)])
    trial = w.choice.copy()
    gain = np.empty((B, B), dtype=np.float32)
    slots = np.empty((T, B, B), dtype=np.int8)
    released = np.empty((B, w.X.shape[2]), dtype=np.float32)
    window_gains(w.X, w.windows, place, n, trial, released, gain, slots)
    for b in range(B):
        window = [w.column(c) for c in w.windows[b]]
        for a in range(B):
            column = w.column(w.windows[a, place[a]])
            expected = 0.0
            for t, rows in enumerate(w.rows):
                kept = naive.choice_without(w.S, rows, window, list(w.choice[t, b]), place[b], n)
                kept = [window[k] for k in kept]
                gained = naive.window_gain(w.S, rows, kept, column, n, m)
                expected += gained
            assert gain[b, a] == pytest.approx(expected, abs=1e-5)


@given(windowed(), st.sampled_from([0.0, 0.5]))
def test_window_moves_keep_windows_whole_and_descend(given_windows, temperature):
    w, n, state = given_windows
    before, columns = w.value(n), sorted(w.windows.reshape(-1))
    assert choice_value(w.X, w.windows, w.choice, n) == pytest.approx(before, rel=1e-12)
    window_moves(w.X, w.windows, w.choice, n, 5, temperature, NOISE, state)
    assert sorted(w.windows.reshape(-1)) == columns
    for kept in w.choice.reshape(-1, w.choice.shape[2]):
        assert len(set(kept)) == len(kept)
    assert w.choice.min() >= 0 and w.choice.max() < w.windows.shape[1]
    if temperature == 0.0:
        assert w.value(n) >= before - 1e-9


def test_window_moves_find_the_best_windows():
    """Columns that serve disjoint rows belong in different windows."""
    w = Windows(3, 2, 3, 4, 4, 2)
    start = w.value(1)
    state = np.array([5], dtype=np.uint64)
    stale, _ = window_moves(w.X, w.windows, w.choice, 1, 200, 0.0, NOISE, state)
    assert w.value(1) > 1.05 * start
    assert stale > 20


@given(windowed())
def test_choose_again_leaves_no_exchange_that_keeps_more(given_windows):
    w, n, _ = given_windows
    M, m = w.windows.shape[1], w.choice.shape[2]
    before = w.value(n)
    total = sum(choose_again(w.X[t], w.windows, w.choice[t], n) for t in range(len(w.X)))
    assert total == pytest.approx(w.value(n), rel=1e-12)
    assert total >= before - 1e-9
    for t, rows in enumerate(w.rows):
        for b in range(len(w.windows)):
            window = [w.column(c) for c in w.windows[b]]
            kept = list(w.choice[t, b])
            value = naive.group_value(w.S, rows, [window[k] for k in kept], n)
            for s in range(m):
                for k in set(range(M)) - set(kept):
                    other = [window[k] if i == s else window[x] for i, x in enumerate(kept)]
                    assert naive.group_value(w.S, rows, other, n) <= value + 1e-9


@given(st.integers(0, 999), st.integers(1, 5), st.integers(1, 5), st.data())
def test_rows_worth_is_the_value_of_each_row(seed, m, G, data):
    n = data.draw(st.integers(1, m))
    random = np.random.default_rng(seed)
    S = random.random((6, 12)).astype(np.float32)
    columns = np.vstack([S.T, np.zeros((1, 6), dtype=np.float32)])
    groups = random.integers(0, 13, (G, m)).astype(np.int32)
    worth = np.empty(6)
    rows_worth(columns, groups, n, worth)
    for r in range(6):
        real = [[c if c < 12 else -1 for c in group] for group in groups]
        expected = sum(naive.group_value(S, [r], group, n) for group in real)
        assert worth[r] == pytest.approx(expected, rel=1e-6)


@settings(max_examples=30)
@given(st.integers(0, 999), st.sampled_from([(1, 2), (2, 4), (3, 3)]))
def test_tiles_of_one_row_are_assigned_the_best_rows(seed, nm):
    n, m = nm
    random = np.random.default_rng(seed)
    S = random.random((4, 12)).astype(np.float32)
    groups = np.stack([random.permutation(12).reshape(-1, m)[:2] for _ in range(4)])
    groups = groups.astype(np.int32)
    tiles = random.permutation(4).astype(np.int32)[:, None]
    tiles[tiles == 3] = -1
    best = max(
        sum(
            naive.group_value(S, [r], g, n)
            for r, tile in zip(order, groups, strict=True)
            for g in tile
        )
        for order in permutations([0, 1, 2, -1])
    )
    exact_row_moves(S, tiles, groups, n, 1, 0.0, NOISE, np.array([seed], dtype=np.uint64))
    assert sorted(tiles[:, 0]) == [-1, 0, 1, 2]
    found = sum(
        naive.group_value(S, [r], g, n)
        for r, tile in zip(tiles[:, 0], groups, strict=True)
        for g in tile
    )
    assert found == pytest.approx(best, rel=1e-6)


def test_windows_that_keep_all_are_plain_groups():
    """With kept = window there is nothing to choose: the optimum is that of plain N:M."""
    pattern = Pattern(1, 2, 2, 0.0, "window", 2)
    for seed in range(5):
        S = np.random.default_rng(seed).random((4, 8))
        solution = solve(S, pattern=pattern, seed=seed)
        assert solution.retained == pytest.approx(naive.optimum_nm(S, 1, 2), rel=1e-9)


def test_windows_of_several_orders():
    """Convolution groups have an order each; a single window has only rows to move."""
    S = np.random.default_rng(0).random((24, 16)) ** 3
    grouped = solve(S, pattern=Pattern.vnm(4, 2, 8), groups=2, stop=MaxRounds(30))
    assert grouped.col_order.shape == (2, 16)
    assert grouped.retained > grouped.identity
    one = solve(S[:, :8], pattern=Pattern.vnm(4, 2, 8), stop=MaxRounds(30))
    assert one.retained > one.identity


def test_a_windowed_start_is_kept_or_improved_without_its_scores():
    pattern = Pattern.vnm(8, 2, 8)
    S = np.random.default_rng(1).random((64, 64)) ** 2
    first = solve(S, pattern=pattern, stop=MaxRounds(60), seed=1)
    then = solve(S, pattern=pattern, initial=first, stop=MaxRounds(20), seed=2)
    assert then.retained >= first.retained
    # A descent from a good start stays near it: most of what it kept it still keeps.
    assert (then.mask & first.mask).sum() > 0.8 * first.mask.sum()


def test_counting_what_is_kept_finds_more_than_scores(minilm):
    """Scores alone, however long they were searched by, led to 17 % of efficacy at most."""
    weights = minilm("layer.0.intermediate.dense")
    solution = solve(weights, pattern=Pattern.vnm(32, 2, 8), stop=MaxRounds(40), threads=1)
    assert solution.efficacy > 17.0


@pytest.mark.parametrize("shape", [(128, 96), (64, 64), (96, 40)])
@pytest.mark.parametrize("rounds", [2, 15, None])
def test_a_ragged_budget_keeps_no_less_than_a_uniform_one(shape, rounds):
    V = 16
    parts = {"vec_ratio": 0.5, "vec_size": V}
    run = {"stop": None if rounds is None else MaxRounds(rounds), "seed": 4}
    S = np.random.default_rng(shape).random(shape)
    uniform = solve(S, pattern=Pattern.hinm(**parts), **run)
    ragged = solve(S, pattern=Pattern.tvw(**parts), **run)
    assert sum(map(len, ragged.groups)) == sum(map(len, uniform.groups))
    assert ragged.retained >= uniform.retained * (1 - 1e-12)


@pytest.mark.parametrize("name", ["layer.0.attention.self.query", "layer.0.output.dense"])
def test_a_ragged_budget_keeps_more_of_real_layers(minilm, name):
    weights = minilm(name)
    parts = {"vec_ratio": 0.5, "vec_size": 32}
    uniform = solve(weights, pattern=Pattern.hinm(**parts), stop=MaxRounds(6))
    ragged = solve(weights, pattern=Pattern.tvw(**parts), stop=MaxRounds(6))
    assert ragged.retained > 1.001 * uniform.retained


def test_the_uniform_budget_is_of_the_rows_that_survive():
    """Rows pruned as a whole are in no tile, and the start's rows are named as in the matrix."""
    S = np.random.default_rng(7).random((40, 32))
    S[::5] *= 0.01
    pattern = Pattern.tvw(vec_ratio=0.5, vec_size=8, row_ratio=0.2)
    solution = solve(S, pattern=pattern, stop=MaxRounds(10))
    naive.check_tvw(
        solution.mask,
        solution.tile_rows,
        solution.groups,
        naive.surviving_rows(S, 0.2),
        n=2,
        m=4,
        V=8,
        vec_ratio=0.5,
    )
    alone = solve(
        np.delete(S, np.arange(0, 40, 5), axis=0),
        pattern=Pattern.hinm(vec_ratio=0.5, vec_size=8),
        stop=MaxRounds(10),
    )
    assert solution.retained >= alone.retained * (1 - 1e-12)


@pytest.mark.parametrize(
    "pattern",
    [Pattern.vnm(16, 2, 8), Pattern.vnm(8, 1, 16), Pattern.tvw(vec_ratio=0.5, vec_size=16)],
    ids=str,
)
def test_rounds_and_not_threads_decide(pattern):
    S = np.random.default_rng(9).random((96, 80), dtype=np.float32)
    answers = [
        solve(S, pattern=pattern, seed=2, stop=MaxRounds(60), threads=threads)
        for threads in (1, 2, 3)
    ]
    for other in answers[1:]:
        assert np.array_equal(answers[0].mask, other.mask)
        assert np.array_equal(answers[0].tile_rows, other.tile_rows)


@pytest.mark.alone
@pytest.mark.parametrize(
    "pattern", [Pattern.vnm(64, 2, 8), Pattern.tvw(vec_ratio=0.5, vec_size=64)], ids=str
)
def test_a_time_limit_holds(pattern):
    S = np.random.default_rng(3).random((1024, 1024), dtype=np.float32)
    solution = solve(S, pattern=pattern, stop=TimeLimit(0.5))
    assert solution.seconds < 2.0
    assert solution.retained >= solution.identity
