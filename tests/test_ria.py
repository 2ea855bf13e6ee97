"""RIA's channel permutation as published."""

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
from gyroperm.solvers.slots import reassign_place
from strategies import answer, kept, same


def gamma(rows, columns, seed=0):
    return np.random.default_rng(seed).gamma(0.5, size=(rows, columns))


def dealt(problem):
    """The allocation alone: with a block for every group, nothing moves on."""
    return answer("ria", problem, {"blocks": 10**6})[0]


def test_columns_are_dealt_out_forwards_and_backwards():
    importance = np.array([5.0, 1.0, 8.0, 3.0, 7.0, 2.0, 6.0, 4.0])
    arrangement = dealt(Problem(np.tile(importance, (3, 1)), Pattern.nm(1, 4)))
    # Sorted: columns 1 5 | 3 7 | 0 6 | 4 2, every second part backwards.
    assert arrangement.groups[0].tolist() == [[1, 7, 0, 2], [5, 3, 6, 4]]
    assert arrangement.col_order.tolist() == [1, 7, 0, 2, 5, 3, 6, 4]


def test_virtual_columns_are_the_least_important():
    importance = np.array([5.0, 1.0, 3.0, 7.0, 2.0, 6.0])
    arrangement = dealt(Problem(np.tile(importance, (3, 1)), Pattern.nm(1, 4)))
    assert arrangement.groups[0].tolist() == [[-1, 4, 2, 3], [-1, 1, 0, 5]]


@given(
    shape=st.sampled_from([(1, 2), (2, 3), (2, 4), (3, 4), (1, 5)]),
    groups=st.integers(1, 5),
    rows=st.integers(1, 9),
    seed=st.integers(0, 2**20),
)
def test_a_place_is_assigned_as_well_as_any_exchange_there(shape, groups, rows, seed):
    n, m = shape
    random = np.random.default_rng(seed)
    S = random.random((rows, groups * m)).astype(np.float32)
    X = np.vstack([S.T, np.zeros((1, rows), dtype=np.float32)])
    slots = random.permutation(groups * m).reshape(groups, m)
    place = int(random.integers(m))

    def value(sets):
        return sum(naive.group_value(S, range(rows), g, n) for g in sets)

    best = naive.best_exchange(slots.tolist(), place, value)
    before = value(slots.tolist())
    search = Search(Problem(S, Pattern.nm(n, m)))
    gained = reassign_place(search, X, slots, place, n)
    assert value(slots.tolist()) == pytest.approx(value(best), rel=1e-6)
    assert gained == pytest.approx(value(best) - before, abs=1e-5)


@given(case=strategies.cases("nm"), seed=st.integers(0, 3))
def test_every_answer_is_of_the_pattern_and_above_no_permutation(case, seed):
    solution = solve(case.saliency, pattern=case.pattern, method="ria", seed=seed)
    case.check(solution)
    assert solution.retained >= solution.identity


@given(case=strategies.cases("nm"))
def test_assignment_never_loses_what_the_allocation_had(case):
    problem = Problem(case.saliency, case.pattern)
    arrangement, search = answer("ria", problem)
    assert kept(problem, arrangement) >= kept(problem, dealt(problem)) * (1 - 1e-6)
    values = [value for _, value in search.history]
    assert values == sorted(values)
    scale = problem.search_saliency.max() / (case.saliency.max() or 1)
    assert search.best == pytest.approx(scale * kept(problem, arrangement), rel=1e-5)


@pytest.mark.parametrize(
    ("layer", "one_pass", "converged"),
    [("layer.0.attention.self.query", 22.2, 24.7), ("layer.3.attention.self.query", 21.5, 25.0)],
)
def test_a_real_layer_keeps_what_the_published_code_keeps(minilm, layer, one_pass, converged):
    weights = minilm(layer)
    assert solve(weights, method="ria").efficacy == pytest.approx(one_pass, abs=0.1)
    repeated = solve(weights, method="ria", options={"passes": 0})
    assert repeated.efficacy == pytest.approx(converged, abs=0.1)


def test_a_converged_order_stays():
    problem = Problem(gamma(24, 40), Pattern.nm())
    first, _ = answer("ria", problem, {"passes": None})
    again, search = answer("ria", problem, {"passes": 0}, initial=first)
    assert same(first, again)
    assert len(search.history) == 1


def test_more_passes_keep_more_until_nothing_moves():
    problem = Problem(gamma(48, 96), Pattern.nm())
    values = [kept(problem, answer("ria", problem, {"passes": p})[0]) for p in (1, 2, 50, 0)]
    assert values == sorted(values)
    assert values[0] < values[2] == values[3]


def test_blocks_keep_their_columns():
    problem = Problem(gamma(16, 48), Pattern.nm())
    start = dealt(problem).groups[0]
    halves, _ = answer("ria", problem, {"blocks": 2})
    whole, _ = answer("ria", problem)
    for half in (slice(0, 6), slice(6, 12)):
        assert set(start[half].flat) == set(halves.groups[0][half].flat)
        assert set(start[half].flat) != set(whole.groups[0][half].flat)


def test_it_starts_where_it_is_told_to():
    problem = Problem(gamma(16, 32), Pattern.nm())
    first, _ = answer("random", problem, {"count": 1}, seed=3)
    at_once, _ = answer("ria", problem, initial=first, stop=MaxRounds(0))
    assert same(at_once, first)
    one, _ = answer("ria", problem, initial=first, stop=MaxRounds(1))
    # Only the first place of each group has been assigned.
    assert np.array_equal(one.groups[0][:, 1:], first.groups[0][:, 1:])
    assert kept(problem, one) > kept(problem, first)


def test_every_order_is_searched_by_itself():
    S = gamma(37, 30)
    problem = Problem(S, Pattern.nm(), blocks=(16, 21), orders=2)
    arrangement, _ = answer("ria", problem)
    assert arrangement.col_order.shape == (2, 32)
    for rows, groups in ((slice(0, 16), 0), (slice(16, 37), 1)):
        alone, _ = answer("ria", Problem(S[rows], Pattern.nm()))
        assert np.array_equal(alone.groups[0], arrangement.groups[groups])


def test_threads_change_nothing(monkeypatch):
    monkeypatch.setattr("gyroperm.solvers.slots._TERMS_WORTH_THREADS", 0)
    monkeypatch.setattr("gyroperm.solvers.slots._GROUPS_PER_PIECE", 3)
    problem = Problem(gamma(24, 60), Pattern.nm(2, 5))
    one, two = (answer("ria", problem, {"passes": 0}, threads=t)[0] for t in (1, 2))
    assert same(one, two)


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_round_is_one_place(rounds):
    problem = Problem(gamma(12, 40), Pattern.nm(2, 5))
    seen = []

    def stop(state):
        seen.append(state.rounds)
        return state.rounds >= rounds

    answer("ria", problem, stop=stop)
    assert max(seen) == rounds


def test_no_assignment_begins_that_would_end_too_late(monkeypatch):
    problem = Problem(gamma(12, 40), Pattern.nm())
    monkeypatch.setattr("gyroperm.solvers.assignment._ASSIGNMENT_SECONDS", 1.0)
    arrangement, _ = answer("ria", problem, stop=TimeLimit(60))
    assert same(arrangement, dealt(problem))


def test_what_a_search_affords_is_told_by_criteria_that_know_time():
    problem = Problem(np.ones((4, 4)), Pattern.nm())
    limited = TimeLimit(100) | (lambda state: False)
    assert Search(problem, stop=limited).affords(50.0)
    assert not Search(problem, stop=limited).affords(150.0)
    for endless in (None, MaxRounds(1), lambda state: False, TimeLimit(float("inf"))):
        assert Search(problem, stop=endless).affords(1e9)
    assert not Search(problem, stop=MaxRounds(0)).affords(0.0)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_ties_everywhere_are_solved(value):
    problem = Problem(np.full((5, 14), value), Pattern.nm())
    arrangement, _ = answer("ria", problem, {"passes": 0})
    # The virtual columns of 14 in groups of 4 may fall together or apart.
    assert kept(problem, arrangement) >= 5 * 7 * value


def test_a_dense_pattern_keeps_all():
    problem = Problem(gamma(5, 9), Pattern.nm(3, 3))
    arrangement, _ = answer("ria", problem, {"passes": 0})
    assert kept(problem, arrangement) == pytest.approx(problem.saliency.sum())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"passes": -1}, "passes must be an integer of at least 0, got -1"),
        ({"passes": 1.5}, "passes must be an integer"),
        ({"passes": True}, "passes must be an integer"),
        ({"blocks": 0}, "blocks must be an integer of at least 1, got 0"),
        ({"blocks": None}, "blocks must be an integer"),
        ({"pass": 1}, "unknown option 'pass' of method 'ria'; it takes passes, blocks"),
    ],
)
def test_bad_options_are_named(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        solve(np.ones((4, 8)), method="ria", options=options)


@pytest.mark.parametrize(
    "pattern",
    [Pattern.hinm(vec_size=4), Pattern.vnm(4, 2, 8), Pattern.vector_nm(2, 4, 4), Pattern.tvw()],
    ids=lambda pattern: pattern.name,
)
def test_other_patterns_are_refused(pattern):
    with pytest.raises(ValueError, match=rf"'ria' .* plain N:M, not of {pattern.name}; it takes"):
        solve(np.ones((8, 16)), pattern=pattern, method="ria")
