"""Proven bounds: never below any arrangement, near what is found, in time."""

from __future__ import annotations

import json
import math
import time
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import naive
from gyroperm import MaxRounds, Pattern, Solution, solve
from gyroperm.bounds import tile_bounds
from gyroperm.cli import main
from gyroperm.interrupt import Interrupt, interrupted
from gyroperm.problem import Problem
from gyroperm.solution import SCHEMA
from gyroperm.solvers import Search
from gyroperm.solvers.partition.cuts import broken_cuts, pair_shares
from gyroperm.solvers.partition.instance import Instance
from gyroperm.solvers.partition.master import Master
from gyroperm.solvers.partition.pool import Pool
from gyroperm.solvers.partition.pricing import all_prices, local_prices
from gyroperm.solvers.partition.relaxation import Clock, certified, relax
from strategies import saliencies


def uniform(rows, columns, seed=1):
    return np.random.RandomState(seed).rand(rows, columns)


def instance_of(S, n, m):
    return Instance(np.ascontiguousarray(S.T.astype(np.float64)), n, m)


def never():
    return False


SMALL = ((1, 2, 7), (1, 3, 9), (2, 3, 8), (1, 4, 8), (2, 4, 12), (2, 4, 9), (3, 5, 10), (2, 8, 16))


@pytest.mark.parametrize(("n", "m", "columns"), SMALL)
@settings(max_examples=6)
@given(data=st.data())
def test_no_partition_keeps_more(n, m, columns, data):
    S = data.draw(saliencies(data.draw(st.integers(1, 6)), columns))
    solution = solve(
        np.zeros_like(S), saliency=S, n=n, m=m, bound=data.draw(st.sampled_from((True, 10)))
    )
    limit = naive.unstructured_by_row(S, [min(n * -(-columns // m), columns)] * len(S))
    assert solution.retained <= solution.bound <= limit * (1 + 1e-12)
    if columns <= 12:
        best = naive.optimum_nm(S.astype(np.float64), n, m)
        assert best <= solution.bound * (1 + 1e-13)
        if solution.status in ("optimal", "lossless"):
            assert solution.retained == pytest.approx(best, rel=1e-11)


@pytest.mark.parametrize(("n", "m", "columns"), SMALL)
def test_exhaustive_prices_are_those_of_all_groups(n, m, columns):
    instance = instance_of(uniform(5, columns, seed=3), n, m)
    u = uniform(1, columns, seed=4)[0]
    groups = list(combinations(range(columns), m))
    S = instance.columns.T
    costs = [naive.group_value(S, range(5), g, n) - math.fsum(u[list(g)]) for g in groups]
    threshold = float(np.quantile(costs, 0.7))
    prices = all_prices(instance, u, threshold=threshold, capacity=20_000, threads=2, stopped=never)
    for j in range(columns):
        best = max(cost for cost, g in zip(costs, groups, strict=True) if j in g)
        assert best <= prices.best[j] <= best + 1e-5
    assert prices.complete
    listed = set(map(tuple, prices.groups.tolist()))
    assert {g for g, cost in zip(groups, costs, strict=True) if cost > threshold} <= listed
    few = all_prices(instance, u, threshold=threshold, capacity=1, threads=1, stopped=never)
    assert not few.complete
    assert few.above == prices.above
    np.testing.assert_array_equal(few.best, prices.best)


@pytest.mark.parametrize(("n", "m", "columns", "rows"), [(1, 2, 130, 45), (2, 3, 90, 300)])
def test_prices_of_many_columns_are_never_too_low(n, m, columns, rows):
    instance = instance_of(uniform(rows, columns, seed=5), n, m)
    u = rows / m * uniform(1, columns, seed=6)[0]
    groups = np.array(list(combinations(range(columns), m)), dtype=np.int32)
    costs = instance.values(groups) - u[groups].sum(axis=1)
    prices = all_prices(instance, u, threshold=np.inf, capacity=0, threads=2, stopped=never)
    best = np.full(columns, -np.inf)
    for place in range(m):
        np.maximum.at(best, groups[:, place], costs)
    assert (best <= prices.best).all()
    # Within a few hundred roundings of float32 sums.
    assert (prices.best <= best + 1e-6 * rows * m + 1e-4 * abs(best)).all()


@given(seed=st.integers(0, 2**20), wide=st.booleans())
def test_any_prices_prove_a_bound(seed, wide):
    random = np.random.default_rng(seed)
    S = random.random((4, 8))
    u = random.normal(size=8) * (10.0 if wide else 0.5)
    groups = list(combinations(range(8), 4))
    costs = [naive.group_value(S, range(4), g, 2) - math.fsum(u[list(g)]) for g in groups]
    best = [max(c for c, g in zip(costs, groups, strict=True) if j in g) for j in range(8)]
    bound = certified(u, np.array(best), 4)
    assert naive.optimum_nm(S, 2, 4) <= bound * (1 + 1e-13)
    # Never worse than the same excess for every group.
    assert bound <= (math.fsum(u) + 2 * max(0.0, *costs)) * (1 + 1e-12) + 1e-12


def test_local_search_prices_as_float32_rounds():
    instance = instance_of(uniform(6, 16, seed=5), 2, 4)
    u = np.full(16, 0.5)
    starts = np.arange(16, dtype=np.int32).reshape(4, 4)
    groups, costs = local_prices(instance, u, starts, 0.1)
    assert len(groups)
    assert len(np.unique(groups, axis=0)) == len(groups)
    assert (np.diff(groups, axis=1) > 0).all()
    np.testing.assert_allclose(costs, instance.values(groups) - u[groups].sum(axis=1), atol=1e-5)
    assert (costs > 0.1).all()


def test_the_relaxation_is_that_over_all_groups():
    S = uniform(3, 12, seed=6)
    instance = instance_of(S, 1, 3)
    every = np.array(list(combinations(range(12), 3)), dtype=np.int32)
    whole = Master(12, 3)
    whole.add(every, instance.values(every))
    start = np.arange(12, dtype=np.int32).reshape(4, 3)
    few = Pool(start, instance.values(start), instance.shares(start))
    certificate = relax(instance, few, threads=1, clock=Clock(60.0, never))
    assert certificate.converged
    assert certificate.bound == pytest.approx(whole.solve(60.0).value, rel=1e-8)
    assert certificate.bound >= naive.optimum_nm(S, 1, 3)


def test_broken_cuts_are_those_of_the_definition():
    random = np.random.default_rng(7)
    groups = np.array(list(combinations(range(7), 3)), dtype=np.int32)
    shares = random.random(len(groups)) * (random.random(len(groups)) < 0.3)
    found = {tuple(cut) for cut in broken_cuts(groups, shares, 7).tolist()}
    for triple in combinations(range(7), 3):
        use = math.fsum(
            x for g, x in zip(groups, shares, strict=True) if len(set(g) & set(triple)) >= 2
        )
        assert (triple in found) == (use > 1.001)
    together = pair_shares(groups, shares, 7)
    assert together[1, 4] == pytest.approx(
        sum(x for g, x in zip(groups, shares, strict=True) if {1, 4} <= set(g))
    )


def test_128_columns_are_bounded_in_little_time():
    S = uniform(128, 128)
    plain = solve(S, stop=MaxRounds(60))
    solution = solve(S, stop=MaxRounds(60), bound=True)
    np.testing.assert_array_equal(solution.col_order, plain.col_order)
    assert plain.bound_kind == "unstructured"
    assert solution.bound_kind == "relaxation"
    assert solution.gap < plain.gap / 10
    assert solution.gap_points < 3.0
    # The relaxation allows 43.134 %.
    assert solution.efficacy + solution.gap_points == pytest.approx(43.134, abs=0.002)


@pytest.mark.alone
def test_a_number_of_seconds_is_kept_and_used_for_branching():
    S = uniform(128, 64)
    relaxed = solve(S, stop=MaxRounds(30), bound=True)
    begin = time.perf_counter()
    branched = solve(S, stop=MaxRounds(30), bound=2)
    assert time.perf_counter() - begin < 4.0
    assert branched.bound < relaxed.bound
    assert branched.bound_kind == "branching"


def test_where_the_time_does_not_suffice_the_cheap_bound_stays():
    S = uniform(8, 512).astype(np.float32)
    solution = solve(S, stop=MaxRounds(5), bound=0.05)
    assert solution.bound_kind == "unstructured"
    assert solution.bound == pytest.approx(solution.unstructured, rel=1e-12)


def test_a_power_of_two_changes_nothing():
    S = uniform(16, 24, seed=9)
    one = solve(S, stop=MaxRounds(20), bound=True)
    other = solve(2.0**40 * S, stop=MaxRounds(20), bound=True)
    assert other.bound == 2.0**40 * one.bound


def test_the_number_of_threads_changes_nothing():
    S = uniform(16, 40, seed=9)
    one, two = (solve(S, stop=MaxRounds(20), bound=True, threads=k) for k in (1, 2))
    assert one.bound == two.bound


def test_groups_of_a_convolution_are_bounded_each():
    S = uniform(8, 12, seed=2)
    solution = solve(S.reshape(8, 12, 1, 1), groups=2, bound=10)
    parts = [naive.optimum_nm(S[:4], 2, 4), naive.optimum_nm(S[4:], 2, 4)]
    assert math.fsum(parts) <= solution.bound * (1 + 1e-13)
    assert solution.bound == pytest.approx(math.fsum(parts), rel=1e-11)


def test_patterns_of_two_levels_keep_the_unstructured_bound():
    solution = solve(uniform(16, 16), vec_ratio=0.5, vec_size=8, bound=True)
    assert solution.bound_kind == "unstructured"


def test_zero_saliency_is_bounded_by_zero():
    solution = solve(np.zeros((4, 8)), bound=True)
    assert solution.bound == 0.0
    assert solution.gap == 0.0


@pytest.mark.parametrize("wrong", [-1, "long", math.nan, None])
def test_a_wrong_bound_is_named(wrong):
    with pytest.raises(ValueError, match="bound must be True, False or a number of seconds"):
        solve(uniform(4, 8), bound=wrong)


def test_points_of_efficacy():
    solution = solve(uniform(16, 16), bound=True)
    room = solution.unstructured - solution.identity
    expected = 100 * (solution.bound - solution.retained) / room
    assert solution.gap_points == pytest.approx(expected, abs=1e-9)
    assert math.isnan(solve(np.ones((4, 8))).gap_points)
    assert f"by {solution.bound_kind}, gap" in solution.summary()


def test_a_bound_below_what_is_kept_is_an_error():
    from gyroperm.views import WeightView

    S = uniform(4, 8)
    problem = Problem(S, Pattern.nm())
    view = WeightView.of([S.shape], problem.pattern, listed=False, groups=1)
    arrangement = solve(S).arrangement
    with pytest.raises(RuntimeError, match=r"the guessed bound 1\.0 is below"):
        Solution.measured(
            problem,
            arrangement,
            identity=1.0,
            view=view,
            proof=(1.0, "guessed"),
            method="identity",
            seed=0,
            seconds=0.0,
        )


def test_the_kind_of_proof_is_stored(tmp_path):
    solution = solve(uniform(16, 16), bound=True)
    solution.save(tmp_path / "solution.npz")
    loaded = Solution.load(tmp_path / "solution.npz")
    assert loaded.bound_kind == solution.bound_kind != "unstructured"
    assert loaded.gap_points == solution.gap_points


def test_files_without_a_kind_of_proof_are_read(tmp_path):
    path = tmp_path / "solution.npz"
    solve(uniform(8, 16)).save(path)
    with np.load(path) as file:
        stored = {name: file[name] for name in file.files}
    assert int(stored["schema"]) == SCHEMA
    scalars = json.loads(str(stored["scalars"]))
    del scalars["bound_kind"]
    stored.update(schema=np.array(1), scalars=np.array(json.dumps(scalars)))
    np.savez(path, **stored)
    assert Solution.load(path).bound_kind == "unstructured"


@settings(max_examples=5)
@given(seed=st.integers(0, 1000))
def test_tiles_are_bounded_each(seed):
    S = uniform(8, 16, seed)
    solution = solve(S, vec_ratio=0.5, vec_size=4)
    tiles = tile_bounds(solution, S, seconds=10)
    for t, (rows, groups) in enumerate(zip(solution.tile_rows, solution.groups, strict=True)):
        part = S[np.ix_(rows, groups.reshape(-1))]
        kept = math.fsum(naive.group_value(S, rows, g, 2) for g in groups)
        assert tiles.retained[t] == pytest.approx(kept, rel=1e-12)
        best = naive.optimum_nm(part, 2, 4)
        assert best <= tiles.bound[t] * (1 + 1e-13)
        assert tiles.gap[t] >= 0.0
    assert tiles.retained.sum() == pytest.approx(solution.retained, rel=1e-12)


def test_tiles_with_virtual_rows_and_columns_are_bounded():
    S = uniform(7, 11, seed=3)
    solution = solve(S, vec_ratio=0.0, vec_size=4)
    tiles = tile_bounds(solution, S, seconds=10)
    for t, rows in enumerate(solution.tile_rows):
        best = naive.optimum_nm(S[rows[rows >= 0]], 2, 4)
        assert tiles.bound[t] == pytest.approx(best, rel=1e-11)


def test_tiles_without_time_have_the_unstructured_bound():
    S = uniform(8, 16)
    tiles = tile_bounds(solve(S, vec_ratio=0.5, vec_size=4), S, seconds=0)
    assert set(tiles.kind) == {"unstructured"}
    assert (tiles.bound >= tiles.retained).all()


def test_tiles_of_a_shared_order_are_refused():
    S = uniform(8, 16)
    solution = solve(S, pattern=Pattern.vnm(4, 2, 8))
    with pytest.raises(ValueError, match="share one column order"):
        tile_bounds(solution, S)


def test_a_saliency_of_another_shape_is_refused():
    solution = solve(uniform(8, 16), vec_ratio=0.5, vec_size=4)
    with pytest.raises(ValueError, match=r"saliency must have shapes \(\(8, 16\),\)"):
        tile_bounds(solution, uniform(8, 12))


def test_an_interrupt_ends_the_bound_too():
    interrupt = Interrupt()
    combined = MaxRounds(3) | interrupt
    assert not interrupted(combined)
    interrupt.requested = True
    assert interrupted(combined)
    assert not interrupted(None)
    solution = solve(uniform(64, 64), stop=interrupt, bound=30)
    assert solution.bound_kind == "unstructured"


def test_a_part_of_a_search_has_a_share_of_its_stop():
    problem = Problem(uniform(8, 8), Pattern.nm())
    part = Search(problem, stop=MaxRounds(10)).part(0.5)
    for done in range(5):
        assert part.progress() == pytest.approx(done / 5)
        assert not part.stopped()
        part.record()
    assert part.stopped()
    assert Search(problem, stop=lambda state: True).part(0.5).stopped()


def test_the_command_proves_bounds(tmp_path, capsys):
    save_file({"a.weight": uniform(16, 16).astype(np.float32)}, tmp_path / "in.safetensors")
    files = [str(tmp_path / "in.safetensors"), "-o", str(tmp_path / "out.safetensors")]
    report = tmp_path / "report.json"
    for bound, kinds in (([], {"unstructured"}), (["--bound", "5"], {"relaxation", "branching"})):
        command = ["solve", *files, "--json", str(report), "--solutions", str(tmp_path / "s")]
        assert main([*command, *bound]) == 0
        (layer,) = json.loads(report.read_text())["layers"]
        assert layer["bound_kind"] in kinds
        assert layer["gap_points"] >= 0.0
    capsys.readouterr()
    assert main(["show", str(tmp_path / "s" / "a.weight.npz")]) == 0
    assert "points of efficacy" in capsys.readouterr().out
    for wrong in (["--bound", "-1"], ["--bound", "--lossless"]):
        assert main(["solve", *files, *wrong]) == 2
        assert "bound" in capsys.readouterr().err
