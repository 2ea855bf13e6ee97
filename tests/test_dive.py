"""Partitions that follow the linear relaxation."""

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
from gyroperm.solvers.partition.blocks import dive_in_blocks
from gyroperm.solvers.partition.diving import dive
from gyroperm.solvers.partition.instance import Instance
from gyroperm.solvers.partition.pool import Pool
from gyroperm.solvers.partition.relaxation import Clock
from gyroperm.solvers.partition.repair import repair
from gyroperm.solvers.partition.tiles import Tiles
from strategies import saliencies


def uniform(rows, columns, seed=1):
    return np.random.RandomState(seed).rand(rows, columns)


@pytest.mark.parametrize(("n", "m", "columns"), [(1, 3, 8), (2, 4, 12), (3, 5, 10), (2, 8, 16)])
@settings(max_examples=6)
@given(data=st.data())
def test_it_is_of_the_pattern_and_near_the_optimum(n, m, columns, data):
    S = data.draw(saliencies(data.draw(st.integers(1, 6)), columns))
    solution = solve(np.zeros_like(S), saliency=S, n=n, m=m, method="dive")
    naive.check_nm(solution.mask, solution.tile_rows, solution.groups, solution.col_order, n=n, m=m)
    # All columns fit into one part, which is solved to optimality.
    if columns <= 12:
        best = naive.optimum_nm(S.astype(np.float64), n, m)
        assert solution.retained == pytest.approx(best, rel=1e-11)


def test_it_beats_annealed_assignment_on_a_hundred_columns():
    S = uniform(96, 96)
    assigned = solve(S, method="assign")
    dived = solve(S, method="dive", stop=MaxRounds(80))
    # Half a point of efficacy and more.
    assert dived.efficacy > assigned.efficacy + 0.5


def test_a_dive_is_a_partition():
    instance = Instance(np.ascontiguousarray(uniform(12, 24).T), 2, 4)
    groups = np.arange(24, dtype=np.int32).reshape(-1, 4)
    values, shares = instance.values(groups), instance.shares(groups)
    found = dive(instance, Pool(groups, values, shares), Clock(60.0, lambda: False))
    assert sorted(found.reshape(-1).tolist()) == list(range(24))
    assert math.fsum(instance.values(found)) > math.fsum(values)
    assert dive(instance, Pool(groups, values, shares), Clock(0.0, lambda: False)) is None


@pytest.mark.parametrize("stop", [MaxRounds(300), TimeLimit(3)], ids=["rounds", "clock"])
def test_many_groups_are_improved_in_blocks(stop, monkeypatch):
    monkeypatch.setattr("gyroperm.solvers.partition.blocks._GROUPS", 20)
    monkeypatch.setattr("gyroperm.solvers.partition.blocks._UNDIVIDED", 30)
    S = uniform(8, 160)
    search = Search(Problem(S, Pattern.nm()), stop=stop, threads=2)
    method = registry.get("dive")
    tiles = Tiles(search, method.make_options({"start": "identity"}), 0.1)
    before = tiles.value
    assert dive_in_blocks(search, tiles, 2) == {}
    assert tiles.value > before
    assert math.fsum(tiles.instances[0].values(tiles.groups(0))) == tiles.value
    assert sorted(tiles.groups(0).reshape(-1).tolist()) == list(range(160))
    assert sorted(tiles.arrangement().col_order.tolist()) == list(range(160))


def test_repairs_never_lose():
    instance = Instance(np.ascontiguousarray(uniform(12, 44).T), 2, 4)
    groups = np.arange(44, dtype=np.int32).reshape(-1, 4)
    values = [math.fsum(instance.values(groups))]
    found = repair(
        instance,
        groups,
        np.full(44, 8.0),
        patience=3,
        clock=Clock(math.inf, lambda: False),
        random=np.random.default_rng(0),
        record=values.append,
    )
    assert sorted(found.reshape(-1).tolist()) == list(range(44))
    assert values == sorted(values)
    assert math.fsum(instance.values(found)) == pytest.approx(values[-1])
    assert values[-1] > values[0]


def test_each_group_of_a_grouped_convolution_is_solved():
    S = uniform(8, 8, seed=2)
    solution = solve(S.reshape(8, 8, 1, 1), groups=2, method="dive")
    parts = [naive.optimum_nm(S[:4], 2, 4), naive.optimum_nm(S[4:], 2, 4)]
    assert solution.retained == pytest.approx(math.fsum(parts), rel=1e-12)


def test_a_power_of_two_and_the_number_of_threads_change_nothing():
    S = uniform(24, 32, seed=5)
    one = solve(S, method="dive", stop=MaxRounds(40), threads=1)
    other = solve(2.0**20 * S, method="dive", stop=MaxRounds(40), threads=2)
    np.testing.assert_array_equal(one.col_order, other.col_order)


@pytest.mark.alone
def test_a_time_limit_holds():
    S = uniform(256, 256).astype(np.float32)
    solve(S[:, :16], method="dive", time_limit=1)  # compiled
    begin = time.perf_counter()
    solution = solve(S, method="dive", time_limit=2)
    assert time.perf_counter() - begin < 3.0
    assert solution.retained > solution.identity


def test_a_stop_already_reached_returns_the_start():
    search = Search(Problem(uniform(8, 16), Pattern.nm()), stop=TimeLimit(0))
    method = registry.get("dive")
    arrangement = method.solve(search, method.make_options(None))
    assert arrangement.col_order.tolist() == list(range(16))


@pytest.mark.parametrize(
    "pattern",
    [Pattern.hinm(2, 4, vec_ratio=0.5, vec_size=8), Pattern.tvw(2, 4, vec_ratio=0.5, vec_size=8)],
    ids=str,
)
def test_tiles_that_choose_their_columns_keep_no_less(pattern):
    W = np.random.default_rng(3).standard_normal((22, 90))
    assigned = solve(W, pattern=pattern, method="assign", stop=MaxRounds(10))
    # The same rounds for the start, and then some.
    dived = [
        solve(W, pattern=pattern, method="dive", stop=MaxRounds(20), threads=threads)
        for threads in (1, 2)
    ]
    assert dived[0].retained > assigned.retained
    np.testing.assert_array_equal(dived[0].tile_rows, assigned.tile_rows)
    np.testing.assert_array_equal(dived[0].mask, dived[1].mask)
    against_a_clock = solve(W, pattern=pattern, method="dive", time_limit=4, threads=2)
    assert against_a_clock.retained >= 0.999 * dived[0].retained
    for found in (*dived, against_a_clock):
        check = naive.check_hinm if pattern.allocation == "uniform" else naive.check_tvw
        alive = () if pattern.allocation == "uniform" else (range(22),)
        check(found.mask, found.tile_rows, found.groups, *alive, n=2, m=4, V=8, vec_ratio=0.5)


@pytest.mark.parametrize("pattern", [Pattern.vnm(V=16, N=2, M=8), Pattern.nm(1, 2)], ids=str)
def test_other_patterns_are_refused(pattern):
    with pytest.raises(ValueError, match="method 'dive' does not solve"):
        solve(uniform(64, 32), pattern=pattern, method="dive")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "exact"}, "start must name another method"),
        ({"start_share": 0}, r"start_share must be a number in \(0, 1\)"),
        ({"patience": 0}, "patience must be an integer of at least 1"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        registry.get("dive").make_options(options)
