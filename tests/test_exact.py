"""Plain N:M to proven optimality."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import naive
from gyroperm import MaxRounds, Pattern, TimeLimit, solve
from gyroperm.problem import Problem
from gyroperm.solvers import Search, registry
from gyroperm.solvers.exact import ExactOptions
from gyroperm.solvers.partition.closing import Closing
from gyroperm.solvers.partition.instance import Instance
from gyroperm.solvers.partition.master import cut_uses
from gyroperm.solvers.partition.relaxation import Clock
from strategies import saliencies

# Every n:m with 12 columns or fewer that can be enumerated in no time.
SMALL = ((1, 3, 9), (2, 3, 8), (1, 4, 8), (2, 4, 12), (2, 4, 11), (3, 4, 7), (3, 5, 10), (2, 6, 12))


def uniform(rows, columns, seed=1):
    return np.random.RandomState(seed).rand(rows, columns)


@pytest.mark.parametrize(("n", "m", "columns"), SMALL)
@settings(max_examples=6)
@given(data=st.data())
def test_it_is_the_enumerated_optimum(n, m, columns, data):
    S = data.draw(saliencies(data.draw(st.integers(1, 6)), columns))
    solution = solve(np.zeros_like(S), saliency=S, n=n, m=m, method="exact")
    best = naive.optimum_nm(S.astype(np.float64), n, m)
    assert solution.retained == pytest.approx(best, rel=1e-11)
    assert solution.status in ("optimal", "lossless")
    naive.check_nm(solution.mask, solution.tile_rows, solution.groups, solution.col_order, n=n, m=m)


def test_it_improves_on_a_poor_start():
    S = uniform(8, 12, seed=3)
    solution = solve(S, method="exact", options={"start": "identity"})
    assert solution.retained == pytest.approx(naive.optimum_nm(S, 2, 4), rel=1e-12)
    assert solution.status == "optimal"
    assert solution.bound_kind in ("relaxation", "branching")


def test_64_columns_are_proven_within_half_a_minute():
    solution = solve(uniform(128, 64), method="exact", time_limit=30)
    assert solution.status == "optimal"
    # The linear relaxation allows 39.72 %; the optimum lies below it.
    assert solution.efficacy == pytest.approx(39.25936, abs=1e-4)


def test_each_group_of_a_grouped_convolution_is_solved():
    S = uniform(8, 8, seed=2)
    solution = solve(S.reshape(8, 8, 1, 1), groups=2, method="exact")
    parts = [naive.optimum_nm(S[:4], 2, 4), naive.optimum_nm(S[4:], 2, 4)]
    assert solution.retained == pytest.approx(math.fsum(parts), rel=1e-12)
    assert solution.status == "optimal"


def test_matrices_that_share_an_order_are_solved_together():
    S = uniform(9, 12, seed=4)
    solution = solve([S[:4], S[4:]], method="exact")
    assert solution.retained == pytest.approx(naive.optimum_nm(S, 2, 4), rel=1e-12)
    assert solution.status == "optimal"


def test_a_power_of_two_changes_nothing():
    S = uniform(16, 20, seed=5)
    one = solve(S, method="exact", stop=MaxRounds(60))
    other = solve(2.0**-30 * S, method="exact", stop=MaxRounds(60))
    np.testing.assert_array_equal(one.col_order, other.col_order)
    assert other.bound == 2.0**-30 * one.bound


def test_the_number_of_threads_changes_nothing():
    S = uniform(24, 24, seed=6)
    one, two = (solve(S, method="exact", stop=MaxRounds(60), threads=k) for k in (1, 2))
    np.testing.assert_array_equal(one.col_order, two.col_order)
    assert one.bound == two.bound


@pytest.mark.alone
def test_a_time_limit_holds_and_the_bound_stands():
    S = uniform(128, 128)
    solve(S[:, :16], method="exact", time_limit=1)  # compiled
    begin = time.perf_counter()
    solution = solve(S, method="exact", time_limit=3)
    assert time.perf_counter() - begin < 4.0
    assert solution.status == "feasible"
    assert solution.retained < solution.bound < solution.unstructured


def test_a_stop_already_reached_returns_the_start():
    problem = Problem(uniform(8, 16), Pattern.nm())
    search = Search(problem, stop=TimeLimit(0))
    method = registry.get("exact")
    arrangement = method.solve(search, method.make_options(None))
    assert arrangement.col_order.tolist() == list(range(16))
    assert search.proof is None


def test_too_many_groups_are_told():
    options = {"start": "identity", "max_groups": 2}
    with pytest.warns(RuntimeWarning, match="more than max_groups=2: the optimum is not proven"):
        solution = solve(uniform(12, 48, seed=8), n=1, m=3, method="exact", options=options)
    assert solution.status == "feasible"


def test_everything_is_kept_where_n_is_m():
    solution = solve(uniform(4, 8), n=3, m=3, method="exact")
    assert solution.gap < 1e-12


@pytest.mark.parametrize(
    "pattern", [Pattern.hinm(), Pattern.vnm(4, 2, 8), Pattern.tvw(vec_size=4)], ids=str
)
def test_two_levels_too_large_to_enumerate_are_refused(pattern):
    with pytest.raises(ValueError, match="an exact solution of"):
        solve(uniform(64, 32), pattern=pattern, method="exact")


@pytest.mark.parametrize(
    ("pattern", "kind"),
    [
        (Pattern.nm(1, 2), "matching"),
        (Pattern.hinm(vec_size=4), "enumeration"),
        (Pattern.vnm(4, 2, 8), "enumeration"),
    ],
    ids=str,
)
def test_other_ways_of_proof(pattern, kind):
    solution = solve(uniform(8, 8), pattern=pattern, method="exact")
    assert solution.status == "optimal"
    assert solution.bound_kind == kind
    assert solution.retained >= solve(uniform(8, 8), pattern=pattern).retained


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "exact"}, "start must name another method"),
        ({"start": "nothing"}, "unknown method 'nothing'"),
        ({"start_share": 1.0}, r"start_share must be a number in \(0, 1\)"),
        ({"start_share": "half"}, r"start_share must be a number in \(0, 1\)"),
        ({"max_groups": 0}, "max_groups must be an integer of at least 1"),
        ({"most": 1}, "unknown option 'most' of method 'exact'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        registry.get("exact").make_options(options)


def test_options_have_defaults():
    assert registry.get("exact").make_options(None) == ExactOptions()


def every_group(columns, m):
    from itertools import combinations

    return np.array(list(combinations(range(columns), m)), dtype=np.int32)


@pytest.mark.parametrize("seed", range(4))
def test_branching_closes_what_cannot_be_rounded(seed):
    # 1:3 on few rows has a wide gap between the relaxation and the optimum.
    S = uniform(3, 12, seed)
    instance = Instance(np.ascontiguousarray(S.T), 1, 3)
    start = np.arange(12, dtype=np.int32).reshape(-1, 3)
    closing = Closing(instance, every_group(12, 3), start, math.inf, np.zeros(12))
    closing.run(Clock(60.0, lambda: False), lambda value: None)
    assert closing.value == pytest.approx(naive.optimum_nm(S, 1, 3), rel=1e-12)
    assert closing.value <= closing.bound <= closing.value * (1 + 1e-12)


def test_no_partition_breaks_a_subset_row_cut():
    groups = every_group(8, 4)
    cuts = every_group(8, 3)
    uses = cut_uses(groups, cuts)
    for i, group in enumerate(groups):
        rest = np.setdiff1d(np.arange(8), group)
        other = int(np.flatnonzero((groups == rest).all(axis=1))[0])
        assert (uses[i].astype(int) + uses[other] <= 1).all()
    assert uses.sum(axis=1).min() == uses.sum(axis=1).max() == math.comb(4, 3) + 6 * 4


def test_branching_begins_at_once_where_few_groups_are_left(monkeypatch):
    from gyroperm.solvers.partition import proof

    followed = []
    follow = proof.follow
    monkeypatch.setattr(proof, "follow", lambda *a, **k: followed.append(1) or follow(*a, **k))
    weights = np.random.default_rng(3).random((32, 24))
    at_once = solve(weights, method="exact", seed=0)
    assert not followed
    monkeypatch.setattr(proof, "_FEW", 1)
    by_diving = solve(weights, method="exact", seed=0)
    assert followed
    assert at_once.status == by_diving.status == "optimal"
    assert at_once.retained == pytest.approx(by_diving.retained)
