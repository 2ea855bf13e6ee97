"""V:N:M's channel permutation along both axes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import naive
import strategies
from gyroperm import MaxRounds, Pattern, TimeLimit, solve
from gyroperm.problem import Problem
from gyroperm.solvers import Search
from gyroperm.solvers.kernels.joining import kept_if_joined
from gyroperm.solvers.two_axis import _move_columns, _move_rows
from strategies import answer, kept, same

PATTERNS = {
    "vnm": Pattern.vnm(4, 2, 8),
    "vnm of single rows": Pattern.vnm(1, 2, 6),
    "vector_nm": Pattern.vector_nm(2, 6, 4),
    "vector_nm, all kept": Pattern.vector_nm(4, 4, 4),
}
every_pattern = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS.keys())


def gamma(rows, columns, seed=0):
    return np.random.default_rng(seed).gamma(0.5, size=(rows, columns))


def planted(seed=0):
    """Tiles of 4 rows and windows of 8 columns, of which each tile needs 4; shuffled."""
    random = np.random.default_rng(seed)
    S = random.uniform(0.0, 0.1, (32, 48))
    for tile in range(8):
        for window in range(6):
            columns = 8 * window + random.permutation(8)[:4]
            S[np.ix_(range(4 * tile, 4 * tile + 4), columns)] += random.uniform(0.5, 1.0, (4, 4))
    return S[random.permutation(32)][:, random.permutation(48)], S


@given(
    tiles=st.integers(1, 4),
    rows=st.integers(1, 4),
    window=st.integers(1, 6),
    windows=st.integers(1, 3),
    seed=st.integers(0, 2**20),
)
def test_what_a_tile_keeps_with_a_row_is_exact(tiles, rows, window, windows, seed):
    random = np.random.default_rng(seed)
    rest = random.random((tiles, window, windows))
    joining = random.random((rows, window, windows)).astype(np.float32)
    n = int(random.integers(1, window + 1))
    values = np.empty((tiles, rows))
    kept_if_joined(rest, joining, n, values)
    for t in range(tiles):
        for j in range(rows):
            sums = rest[t] + joining[j].astype(np.float64)
            expected = sum(naive.window_value(sums[:, w], n) for w in range(windows))
            assert values[t, j] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_no_exchange_at_the_last_place_is_better_after_a_row_step(seed):
    S = np.random.default_rng(seed).random((11, 10)).astype(np.float32)
    problem = Problem(S, Pattern.vector_nm(2, 4, 3))
    order = np.array([3, 9, 0, 5, -1, 1, 8, 2, 7, 4, 6, -1], dtype=np.int32)
    tiles = np.array([[2, 9, 0], [4, -1, 7], [10, 3, 8], [1, 5, 6]], dtype=np.int32)
    windows = [[c for c in order[i : i + 4].tolist() if c >= 0] for i in (0, 4, 8)]

    def value(sets):
        return naive.tiles_value(problem.search_saliency, sets, windows, 2)

    before = value(tiles.tolist())
    gained = _move_rows(Search(problem), tiles, order)
    after = value(tiles.tolist())
    assert gained == pytest.approx(after - before, abs=1e-5)
    assert gained > 0.0
    assert value(naive.best_exchange(tiles.tolist(), 2, value)) == pytest.approx(after, rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_no_exchange_at_the_last_place_is_better_after_a_column_step(seed):
    S = np.random.default_rng(seed).random((6, 10)).astype(np.float32)
    problem = Problem(S, Pattern.vector_nm(1, 3, 2))
    order = np.array([3, 9, 0, 5, -1, 1, 8, 2, 7, 4, 6, -1], dtype=np.int32)
    tiles = np.array([[2, 5], [4, 1], [0, 3]], dtype=np.int32)

    def value(windows):
        real = [[c for c in window if c >= 0] for window in windows]
        return naive.tiles_value(problem.search_saliency, tiles.tolist(), real, 1)

    before = value(order.reshape(4, 3).tolist())
    gained = _move_columns(Search(problem), tiles, order)
    windows = order.reshape(4, 3).tolist()
    after = value(windows)
    assert gained == pytest.approx(after - before, abs=1e-5)
    assert gained > 0.0
    assert value(naive.best_exchange(windows, 2, value)) == pytest.approx(after, rel=1e-6)


@given(case=st.sampled_from(["vnm", "vector_nm"]).flatmap(strategies.cases))
def test_every_answer_is_of_its_pattern(case):
    solution = solve(case.saliency, pattern=case.pattern, method="two_axis")
    case.check(solution)
    assert solution.retained >= solution.identity


def test_both_axes_of_a_planted_matrix_are_put_in_order():
    shuffled, S = planted()
    pattern = Pattern.vnm(4, 4, 8)
    best = solve(S, pattern=pattern, method="identity").retained
    solution = solve(shuffled, pattern=pattern, method="two_axis", options={"rounds": 20})
    one = solve(shuffled, pattern=pattern, method="two_axis", options={"rounds": 1})
    assert solution.identity < one.retained <= solution.retained
    assert solution.retained - solution.identity > 0.5 * (best - solution.identity)


def test_a_real_layer_keeps_more_than_by_its_rows_alone(minilm):
    weights = minilm("layer.0.intermediate.dense")
    pattern = Pattern.vnm(32, 2, 8)
    solution = solve(weights, pattern=pattern, method="two_axis")
    rows = solve(weights, pattern=pattern, method="ovw")
    assert solution.ratio >= 0.805
    assert solution.retained > rows.retained > rows.identity


@every_pattern
def test_the_best_of_all_turns_is_what_was_recorded(pattern):
    problem = Problem(gamma(19, 44), pattern)
    arrangement, search = answer("two_axis", problem, {"rounds": 4})
    scale = problem.search_saliency.max() / problem.saliency.max()
    assert search.best == pytest.approx(scale * kept(problem, arrangement), rel=1e-5)


@every_pattern
def test_it_starts_where_it_is_told_to(pattern):
    problem = Problem(gamma(16, 48), pattern)
    first, _ = answer("random", problem, {"count": 3}, seed=1)
    assert same(answer("two_axis", problem, initial=first, stop=MaxRounds(0))[0], first)
    again, _ = answer("two_axis", problem, initial=first)
    assert kept(problem, again) >= kept(problem, first)
    one, _ = answer("two_axis", problem, initial=first, stop=MaxRounds(1))
    # The first step moves rows alone.
    assert np.array_equal(one.col_order, first.col_order)


@pytest.mark.parametrize("orders", [1, 2])
def test_blocks_and_orders_are_kept_apart(orders):
    problem = Problem(gamma(34, 30), Pattern.vnm(4, 2, 8), blocks=(15, 19), orders=orders)
    arrangement, _ = answer("two_axis", problem)
    first = arrangement.tile_rows[problem.tile_block == 0]
    assert set(first[first >= 0]) == set(range(15))
    as_it_lies, _ = answer("identity", problem)
    assert kept(problem, arrangement) > kept(problem, as_it_lies)
    if orders == 2:
        assert not np.array_equal(*arrangement.col_order)


@every_pattern
def test_threads_change_nothing(pattern, monkeypatch):
    monkeypatch.setattr("gyroperm.solvers.slots._TERMS_WORTH_THREADS", 0)
    monkeypatch.setattr("gyroperm.solvers.slots._GROUPS_PER_PIECE", 2)
    monkeypatch.setattr("gyroperm.solvers.two_axis._TERMS_WORTH_THREADS", 0)
    monkeypatch.setattr("gyroperm.solvers.two_axis._TERMS_PER_PIECE", 1000)
    problem = Problem(gamma(24, 48), pattern)
    one, two = (answer("two_axis", problem, threads=threads)[0] for threads in (1, 2))
    assert same(one, two)


def test_a_round_is_one_step():
    problem = Problem(gamma(24, 48), Pattern.vnm(4, 2, 8))
    seen = []

    def stop(state):
        seen.append(state.rounds)
        return state.rounds >= 3

    answer("two_axis", problem, stop=stop)
    assert max(seen) == 3


def test_no_assignment_begins_that_would_end_too_late(monkeypatch):
    monkeypatch.setattr("gyroperm.solvers.assignment._ASSIGNMENT_SECONDS", 10.0)
    problem = Problem(gamma(24, 48), Pattern.vnm(4, 2, 8))
    as_it_lies, _ = answer("identity", problem)
    assert same(answer("two_axis", problem, stop=TimeLimit(60))[0], as_it_lies)


@pytest.mark.parametrize("value", [0.0, 1.0])
@every_pattern
def test_ties_everywhere_are_solved(pattern, value):
    problem = Problem(np.full((12, 24), value), pattern)
    as_it_lies, _ = answer("identity", problem)
    assert kept(problem, answer("two_axis", problem)[0]) == kept(problem, as_it_lies)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"rounds": 0}, "rounds must be an integer of at least 1, got 0"),
        ({"rounds": None}, "rounds must be an integer"),
        ({"turns": 1}, "unknown option 'turns' of method 'two_axis'; it takes rounds"),
    ],
)
def test_bad_options_are_named(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        solve(np.ones((4, 8)), pattern=Pattern.vnm(4, 2, 8), method="two_axis", options=options)


@pytest.mark.parametrize(
    "pattern", [Pattern.nm(), Pattern.hinm(vec_size=4), Pattern.tvw()], ids=lambda p: p.name
)
def test_patterns_without_windows_are_refused(pattern):
    with pytest.raises(ValueError, match=f"'two_axis' .* windows, not for {pattern.name}; it take"):
        solve(np.ones((8, 16)), pattern=pattern, method="two_axis")
