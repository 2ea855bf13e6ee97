"""What the published searches over a map of moves have in common."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import naive
import strategies
from gyroperm import MaxRounds, Pattern, TimeLimit, solve
from gyroperm.problem import Problem
from gyroperm.solvers import Search, registry
from gyroperm.solvers.greedy import _combinations

methods = pytest.mark.parametrize("method", ["stripe", "swap"])

# Every way to run them, with regressions and parts.
RUNS = {
    "stripe": ("stripe", {}),
    "stripe of 3": ("stripe", {"stripes": 3, "escape_attempts": 3}),
    "stripe in parts": ("stripe", {"stripes": 3, "most_columns": 16, "escape_attempts": 1}),
    "stripe with regressions": ("stripe", {"escape_attempts": 20}),
    "swap": ("swap", {}),
    "swap with regressions": ("swap", {"escape_attempts": 20}),
}
every_run = pytest.mark.parametrize(("method", "options"), RUNS.values(), ids=RUNS.keys())


@methods
@given(data=st.data())
def test_the_answer_is_plain_and_never_below_identity(method, data):
    case = data.draw(strategies.cases("nm"))
    options = {"escape_attempts": data.draw(st.integers(0, 5))}
    solution = solve(case.saliency, pattern=case.pattern, method=method, options=options)
    case.check(solution)
    kept = naive.masked_sum(case.saliency, solution.mask)
    assert solution.retained == pytest.approx(kept, rel=1e-12, abs=0.0)
    assert solution.identity <= solution.retained <= solution.bound
    scaled = solve(
        case.saliency * case.saliency.dtype.type(2.0**-9),
        pattern=case.pattern,
        method=method,
        options=options,
    )
    assert np.array_equal(scaled.mask, solution.mask)


@every_run
def test_threads_and_repetition_do_not_change_the_answer(method, options):
    S = np.random.default_rng(1).random((70, 42))
    run = {"method": method, "options": options, "seed": 4, "stop": MaxRounds(40)}
    answers = [solve(S, threads=threads, **run).col_order for threads in (1, 2, 3, 1)]
    assert all(np.array_equal(answer, answers[0]) for answer in answers)


@every_run
def test_what_is_recorded_is_what_is_returned(method, options):
    S = np.random.default_rng(2).gamma(0.5, size=(20, 30))
    problem = Problem(S, Pattern.nm())
    found = registry.get(method)
    search = Search(problem, stop=MaxRounds(60))
    arrangement = found.solve(search, found.make_options(options))
    arrangement.check(problem)
    kept = naive.masked_sum(S, arrangement.mask(S, 2))
    assert search.best * S.max() / problem.search_saliency.max() == pytest.approx(kept, rel=1e-6)
    values = [value for _, value in search.history]
    assert values == sorted(values) and len(values) > 2


@methods
def test_regressions_lead_to_better_and_never_to_worse(method):
    better = 0
    for seed in range(4):
        S = np.random.default_rng(seed).random((16, 32))
        plain = solve(S, method=method, seed=seed)
        more = solve(S, method=method, seed=seed, options={"escape_attempts": 100})
        assert more.retained >= plain.retained
        better += more.retained > plain.retained
    assert better >= 2


@methods
def test_seeds_lead_elsewhere_only_with_regressions(method):
    S = np.random.default_rng(3).random((16, 32))

    def answers(**options):
        return {
            solve(S, method=method, seed=seed, options=options).mask.tobytes() for seed in range(3)
        }

    assert len(answers()) == 1
    assert len(answers(escape_attempts=300)) > 1


@every_run
def test_an_initial_solution_is_where_the_search_begins(method, options):
    S = np.random.default_rng(4).random((24, 36))
    first = solve(S, method="assign", stop=MaxRounds(60))
    run = {"method": method, "options": options, "initial": first}
    assert np.array_equal(solve(S, stop=MaxRounds(0), **run).mask, first.mask)
    then = solve(S, stop=MaxRounds(30), **run)
    assert then.retained >= first.retained > first.identity
    # From no permutation the same rounds lead elsewhere.
    assert not np.array_equal(then.mask, solve(S, method=method, options=options).mask)


@methods
@pytest.mark.parametrize("stop", [MaxRounds(0), TimeLimit(0), lambda seen: True])
def test_a_stop_already_reached_returns_no_permutation(method, stop):
    solution = solve(np.random.default_rng(5).random((8, 24)), method=method, stop=stop)
    assert solution.retained == solution.identity


@methods
def test_a_stop_in_the_first_map_leaves_what_was_found_by_then(method):
    S = np.random.default_rng(6).random((256, 512), dtype=np.float32)
    looks = []

    def stop(now):
        looks.append(now.rounds)
        return len(looks) > 4

    solution = solve(S, method=method, stop=stop, threads=1)
    assert solution.retained > solution.identity
    assert set(looks) <= {0, 1}


@pytest.mark.alone
@methods
def test_a_time_limit_is_kept(method):
    S = np.random.default_rng(7).random((1024, 2048), dtype=np.float32)
    solve(S[:64, :64], method=method)
    solution = solve(S, method=method, time_limit=0.3, options={"escape_attempts": 10**6})
    assert solution.seconds <= 0.8
    assert solution.retained > solution.identity


@methods
def test_every_group_of_a_convolution_has_an_order_of_its_own(method):
    weights = np.random.default_rng(8).standard_normal((6, 10, 3, 3))
    solution = solve(weights, groups=3, method=method, options={"escape_attempts": 2})
    assert solution.col_order.shape == (3, 12)
    for g in range(3):
        part = slice(2 * g, 2 * g + 2)
        alone = solve(weights[part], method=method)
        mask = np.moveaxis(solution.mask[part], 1, -1).reshape(18, 10)
        S = np.abs(np.moveaxis(weights[part], 1, -1).reshape(18, 10))
        assert naive.masked_sum(S, mask) >= alone.retained * (1 - 1e-9)


@methods
def test_matrices_of_a_list_share_their_order(method):
    rng = np.random.default_rng(9)
    weights = [rng.random((8, 24)), rng.random((5, 24))]
    solution = solve(weights, method=method)
    stacked = solve(np.vstack(weights), method=method)
    assert np.array_equal(solution.col_order, stacked.col_order)
    assert solution.retained == pytest.approx(stacked.retained)


@methods
@pytest.mark.parametrize(
    "pattern",
    [Pattern.hinm(vec_size=4), Pattern.vnm(4, 2, 8), Pattern.vector_nm(2, 4, 4), Pattern.tvw()],
    ids=str,
)
def test_other_patterns_are_refused_by_name(method, pattern):
    with pytest.raises(ValueError, match=f"{method}.*plain N:M only, not .*'assign' or 'gyro'"):
        solve(np.ones((8, 16)), pattern=pattern, method=method)


@methods
@pytest.mark.parametrize(("n", "m", "columns"), [(4, 4, 16), (2, 4, 4), (1, 1, 5), (2, 4, 1)])
def test_where_no_order_is_better_nothing_moves(method, n, m, columns):
    S = np.random.default_rng(10).random((4, columns))
    solution = solve(S, n=n, m=m, method=method)
    order = solution.col_order
    assert order[order >= 0].tolist() == list(range(columns))


@methods
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_ties_everywhere_end_at_once(method, value):
    solution = solve(np.full((40, 48), value), method=method, stop=MaxRounds(50))
    assert solution.retained == solution.identity == value * 40 * 24


GOOD = np.random.default_rng(11).random((9, 22))
STRANGE = {
    "huge": GOOD * 1e300,
    "subnormal": GOOD * 1e-310,
    "huge and tiny": GOOD * np.logspace(-300, 300, 22),
    "one weight": (np.max(GOOD) == GOOD) * 1.0,
    "equal columns": np.tile(GOOD[:, :1], (1, 22)),
    "one row": GOOD[:1],
}


@methods
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", STRANGE)
def test_strange_matrices_are_solved(method, name):
    S = STRANGE[name]
    solution = solve(S, method=method, options={"escape_attempts": 3})
    strategies.check("nm", S, solution, {"n": 2, "m": 4})
    assert solution.identity <= solution.retained <= solution.bound


@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(1, 4))
def test_combinations_are_all_there_once(count, size):
    from itertools import combinations

    found = [tuple(row) for row in _combinations(count, size).tolist()]
    assert sorted(found) == list(combinations(range(count), size))
