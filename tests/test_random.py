"""The best of so many random permutations."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import naive
import strategies
from gyroperm import MaxRounds, Pattern, solve
from gyroperm.problem import Problem
from gyroperm.solvers.kernels.shuffling import best_shuffle
from strategies import answer, kept, same

PATTERNS = {
    "nm": Pattern.nm(),
    "hinm": Pattern.hinm(vec_ratio=0.5, vec_size=4),
    "vnm": Pattern.vnm(4, 2, 8),
    "vector_nm": Pattern.vector_nm(2, 6, 4),
    "tvw": Pattern.tvw(1, 2, vec_ratio=0.75, vec_size=4, row_ratio=0.25),
}
every_pattern = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS.keys())


def gamma(rows, columns, seed=0):
    return np.random.default_rng(seed).gamma(0.5, size=(rows, columns))


@given(case=st.sampled_from(strategies.KINDS).flatmap(strategies.cases), seed=st.integers(0, 3))
def test_every_answer_is_of_its_pattern(case, seed):
    run = {"pattern": case.pattern, "method": "random", "seed": seed}
    solution = solve(case.saliency, options={"count": 5}, **run)
    case.check(solution)
    assert solution.retained >= solution.identity


@pytest.mark.parametrize("kind", strategies.KINDS)
@settings(max_examples=3)
@given(data=st.data())
def test_many_permutations_of_a_tiny_matrix_find_the_optimum(kind, data):
    case = data.draw(strategies.cases(kind, tiny=True, ties=False))
    count = 3000 if kind == "nm" else 1000
    problem = Problem(case.saliency, case.pattern)
    best, _ = answer("random", problem, {"count": count})
    optimum = case.optimum()
    assert kept(problem, best) <= optimum * (1 + 1e-6)
    # Vectors are chosen by their sums, which need not be what n:m keeps most of.
    share = 1.0 if kind in ("nm", "vector_nm") else 0.9
    assert kept(problem, best) >= share * optimum * (1 - 1e-6)


def test_a_call_returns_the_best_of_its_shuffles():
    S = gamma(5, 12).astype(np.float32)
    X = np.vstack([S.T, np.zeros((1, 5), dtype=np.float32)])
    state = np.array([7], dtype=np.uint64)
    order, best = np.arange(12, dtype=np.int32), np.empty(12, dtype=np.int32)
    values, orders = [], []
    for _ in range(20):
        value = best_shuffle(X, order, 4, 2, 1, state, best)
        groups = order.reshape(3, 4).tolist()
        assert np.array_equal(best, order)
        assert value == pytest.approx(sum(naive.group_value(S, range(5), g, 2) for g in groups))
        values.append(value)
        orders.append(order.tolist())
    state[0] = 7
    most = best_shuffle(X, np.arange(12, dtype=np.int32), 4, 2, 20, state, best)
    assert most == max(values)
    assert best.tolist() == orders[int(np.argmax(values))]


def test_every_order_is_as_likely():
    X = np.zeros((5, 1), dtype=np.float32)
    state = np.array([1], dtype=np.uint64)
    order, best = np.arange(4, dtype=np.int32), np.empty(4, dtype=np.int32)
    seen = Counter()
    for _ in range(4800):
        best_shuffle(X, order, 4, 2, 1, state, best)
        seen[tuple(order.tolist())] += 1
    assert set(seen) == set(permutations(range(4)))
    # 200 of each are expected; chi-square with 23 degrees of freedom exceeds 50 once in 1000.
    assert sum((count - 200) ** 2 / 200 for count in seen.values()) < 50


def test_the_published_matrix_gives_about_the_published_efficacy():
    S = np.random.RandomState(1).rand(128, 64)
    many = solve(S, method="random", options={"count": 100_000})
    # Published is 14.1 %; eight seeds gave 12.3 to 14.7.
    assert 12.0 <= many.efficacy <= 15.0
    few = solve(S, method="random", options={"count": 1000})
    assert 8.5 <= few.efficacy < many.efficacy


@every_pattern
def test_more_permutations_never_keep_less(pattern):
    problem = Problem(gamma(16, 24), pattern)
    values = [kept(problem, answer("random", problem, {"count": c})[0]) for c in (1, 20, 60)]
    assert values == sorted(values)
    assert values[0] < values[2]


@every_pattern
def test_the_best_is_what_was_recorded(pattern):
    problem = Problem(gamma(13, 21), pattern)
    arrangement, search = answer("random", problem, {"count": 40})
    scale = problem.search_saliency.max() / problem.saliency.max()
    assert search.best == pytest.approx(scale * kept(problem, arrangement), rel=1e-5)


@every_pattern
def test_threads_change_nothing(pattern):
    problem = Problem(gamma(24, 40), pattern)
    # So few rounds that not all of the permutations are drawn.
    run = {"options": {"count": 10**7}, "stop": MaxRounds(1), "seed": 8}
    one, two = (answer("random", problem, threads=threads, **run)[0] for threads in (1, 2))
    assert same(one, two)


def test_only_the_seed_makes_a_difference():
    for pattern in PATTERNS.values():
        problem = Problem(gamma(24, 40), pattern)
        first, other, again = (
            answer("random", problem, {"count": 9}, seed=seed)[0] for seed in (0, 1, 0)
        )
        assert same(first, again)
        assert not same(first, other)


@every_pattern
def test_the_start_competes(pattern):
    problem = Problem(gamma(16, 24), pattern)
    good, _ = answer("random", problem, {"count": 300}, seed=1)
    # The first of the same permutations again.
    assert same(answer("random", problem, {"count": 1}, initial=good, seed=1)[0], good)
    assert same(answer("random", problem, initial=good, stop=MaxRounds(0))[0], good)


def test_every_order_has_its_own_best():
    S = gamma(37, 30)
    problem = Problem(S, Pattern.nm(), blocks=(16, 21), orders=2)
    arrangement, _ = answer("random", problem, {"count": 50})
    assert arrangement.col_order.shape == (2, 32)
    first, _ = answer("random", Problem(S[:16], Pattern.nm()), {"count": 50})
    assert np.array_equal(first.groups[0], arrangement.groups[0])


@pytest.mark.parametrize("orders", [1, 2])
def test_rows_stay_in_their_block(orders):
    problem = Problem(gamma(16, 32), Pattern.vnm(4, 2, 8), blocks=(7, 9), orders=orders)
    arrangement, _ = answer("random", problem, {"count": 20})
    first = arrangement.tile_rows[problem.tile_block == 0]
    assert set(first[first >= 0]) == set(range(7))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"count": 0}, "count must be an integer of at least 1, got 0"),
        ({"count": 2.5}, "count must be an integer"),
        ({"count": "many"}, "count must be an integer"),
        ({"counts": 1}, "unknown option 'counts' of method 'random'; it takes count"),
    ],
)
def test_bad_options_are_named(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        solve(np.ones((4, 8)), method="random", options=options)
