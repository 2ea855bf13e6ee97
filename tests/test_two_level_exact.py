"""Small two-level problems to proven optimality."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import naive
import strategies
from gyroperm import Pattern, TimeLimit
from gyroperm.problem import Problem
from gyroperm.solvers import Search, registry
from gyroperm.solvers.two_level_exact import _subset_sizes, _tiling_count, solve_two_level


def solved(problem, **run):
    """The arrangement, what it keeps and the bound, both in the saliency's own scale."""
    arrangement, bound = solve_two_level(Search(problem, **run))
    arrangement.check(problem)
    S = problem.saliency.astype(np.float64)
    kept = naive.masked_sum(S, arrangement.mask(S, problem.pattern.n))
    return arrangement, kept, bound * 2.0 ** np.frexp(S.max())[1]


def proven(problem, **run):
    """What is kept, after a check that the bound proves it optimal."""
    _, kept, bound = solved(problem, **run)
    assert kept * (1 - 1e-14) <= bound <= kept * (1 + 1e-12)
    return kept


@pytest.mark.parametrize("kind", ["hinm", "vnm", "vector_nm", "tvw"])
@settings(max_examples=15)
@given(data=st.data())
def test_it_is_the_enumerated_optimum_and_proves_it(kind, data):
    case = data.draw(strategies.cases(kind, tiny=True))
    kept = proven(Problem(case.saliency, case.pattern))
    assert kept == pytest.approx(case.optimum(), rel=1e-12, abs=0.0)


# Far beyond what naive.py enumerates: seconds each.
LARGER = {
    "hinm 12x12": (Pattern.hinm(vec_ratio=0.5, vec_size=4), (12, 12)),
    "tvw 9x12": (Pattern.tvw(vec_ratio=0.5, vec_size=3), (9, 12)),
    "vnm 8x12": (Pattern.vnm(4, 2, 6), (8, 12)),
    "vector_nm 8x12": (Pattern.vector_nm(2, 4, 4), (8, 12)),
}


@pytest.mark.parametrize(("pattern", "shape"), LARGER.values(), ids=LARGER.keys())
def test_no_search_finds_more_than_what_is_proven(pattern, shape):
    problem = Problem(np.abs(np.random.default_rng(1).standard_normal(shape)), pattern)
    kept = proven(problem)
    method = registry.get("assign")
    found = []
    for seed in range(10):
        arrangement = method.solve(Search(problem, seed=seed), method.make_options(None))
        S = problem.saliency
        found.append(float(S[arrangement.mask(S, pattern.n)].sum()))
    assert 0.9 * kept <= max(found) <= kept * (1 + 1e-12)


def test_a_planted_arrangement_is_found():
    rng = np.random.default_rng(2)
    S = np.zeros((8, 8))
    for rows in rng.permutation(8).reshape(2, 4):
        columns = rng.permutation(8)[:4]
        for r in rows:
            S[r, rng.permutation(columns)[:2]] = 1.0
    assert proven(Problem(S, Pattern.hinm(vec_ratio=0.5, vec_size=4))) == 16.0


def test_blocks_share_windows_but_no_tiles():
    S = np.random.default_rng(3).gamma(0.5, size=(8, 8))
    pattern = Pattern(1, 2, 2, 0.5, "window", 4)
    together = proven(Problem(S, pattern, blocks=(4, 4)))
    best = 0.0
    for windows in naive.partitions(range(8), 4):
        value = 0.0
        for block in (range(4), range(4, 8)):
            value += max(
                sum(
                    max(naive.group_value(S, rows, g, 1) for g in naive.combinations(w, 2))
                    for rows in tiling
                    for w in windows
                )
                for tiling in naive.partitions(block, 2)
            )
        best = max(best, value)
    assert together == pytest.approx(best, rel=1e-12)
    apart = proven(Problem(S, pattern, blocks=(4, 4), orders=2))
    each = [naive.optimum_vnm(S[rows], 1, 2, 4, 2) for rows in (slice(4), slice(4, 8))]
    assert apart == pytest.approx(sum(each), rel=1e-12)
    assert apart >= together


def test_blocks_of_tiles_with_their_own_columns_are_independent():
    S = np.random.default_rng(4).gamma(0.5, size=(8, 6))
    pattern = Pattern.hinm(1, 2, vec_ratio=1 / 3, vec_size=2)
    kept = proven(Problem(S, pattern, blocks=(3, 5)))
    each = [naive.optimum_hinm(S[rows], 1, 2, 2, 1 / 3) for rows in (slice(3), slice(3, 8))]
    assert kept == pytest.approx(sum(each), rel=1e-12)


@pytest.mark.alone
@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.3, 1.0])
@pytest.mark.parametrize(
    ("pattern", "shape"),
    [(Pattern.hinm(vec_ratio=0.5, vec_size=4), (16, 16)), (Pattern.vnm(4, 2, 8), (12, 16))],
    ids=str,
)
def test_stopped_before_the_end_the_bound_is_one(pattern, shape, seconds):
    S = np.abs(np.random.default_rng(1).standard_normal(shape))
    problem = Problem(S, pattern)
    solved(Problem(S[:8, :8], pattern))
    begin = time.perf_counter()
    _, kept, bound = solved(problem, stop=TimeLimit(seconds))
    assert time.perf_counter() - begin < seconds + 1.0
    assert 0.8 * bound < kept <= bound


def test_what_it_starts_from_is_never_lost():
    problem = Problem(np.random.default_rng(5).random((8, 8)), Pattern.hinm(vec_size=4))
    first, kept, _ = solved(problem)
    calls = 0

    def stop(state):
        nonlocal calls
        calls += 1
        return calls > 2

    _, again, _ = solved(problem, initial=first, stop=stop)
    assert again == kept


def test_threads_change_nothing():
    S = np.random.default_rng(6).random((9, 8))
    for pattern in (Pattern.hinm(vec_size=3), Pattern.vnm(3, 2, 8), Pattern.tvw(vec_size=3)):
        one, two = (solved(Problem(S, pattern), threads=threads)[0] for threads in (1, 2))
        assert np.array_equal(one.tile_rows, two.tile_rows)
        assert all(np.array_equal(a, b) for a, b in zip(one.groups, two.groups, strict=True))


@pytest.mark.parametrize("rows", range(1, 8))
@pytest.mark.parametrize("size", range(1, 5))
def test_tilings_are_counted_as_they_are_enumerated(rows, size):
    real = {
        frozenset(frozenset(r for r in tile if r >= 0) for tile in tiling)
        for tiling in naive.partitions(naive.numbered(rows, size), size)
    }
    assert _tiling_count(rows, size) == len(real)
    assert {len(tile) for tiling in real for tile in tiling} <= set(_subset_sizes(rows, size))


@pytest.mark.parametrize(
    ("pattern", "shape", "complaint"),
    [
        (Pattern.nm(), (8, 8), "two-level problems alone are solved here, got plain 2:4"),
        (Pattern.hinm(), (64, 32), "limited to 24 columns, this matrix has 32"),
        (
            Pattern.hinm(vec_size=8),
            (32, 8),
            r"it has 1\.05e\+07 sets of rows, at most 2e\+05 are accepted",
        ),
        (Pattern.vnm(4, 2, 8), (20, 8), r"it has 2\.55e\+09 ways to split the rows into tiles"),
        (Pattern.hinm(vec_size=4, vec_ratio=0.25), (24, 24), r"it has .* steps, at most 5e\+10"),
        (Pattern.vnm(5, 2, 10), (15, 20), "pairs of a tile and a window, at most"),
    ],
    ids=str,
)
def test_what_is_too_large_is_refused_with_a_figure(pattern, shape, complaint):
    begin = time.perf_counter()
    with pytest.raises(ValueError, match=complaint):
        solve_two_level(Search(Problem(np.ones(shape), pattern)))
    assert time.perf_counter() - begin < 1.0
