"""Lossless conversion: every nonzero of a sparse matrix is kept, or a proof that it cannot be."""

from __future__ import annotations

import importlib
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gyroperm
import naive
import strategies
from gyroperm import MaxRounds, Pattern, Solution, TimeLimit, solve
from gyroperm.problem import Problem
from gyroperm.solvers import Search, registry

# The name of the module in the package is the function's.
module = importlib.import_module("gyroperm.lossless")
lossless = gyroperm.lossless

PATTERNS = {
    "nm": Pattern.nm(),
    "hinm": Pattern.hinm(vec_ratio=0.5, vec_size=4),
    "vnm": Pattern.vnm(4, 2, 8),
    "vector_nm": Pattern.vector_nm(2, 4, 4),
    "tvw": Pattern.tvw(vec_ratio=0.5, vec_size=4),
}


def sparse(rows, columns, density, seed=0):
    """Standard normal weights, as many nonzeros in every row."""
    rng = np.random.default_rng(seed)
    rank = np.argsort(np.argsort(rng.random((rows, columns)), axis=1), axis=1)
    return rng.standard_normal((rows, columns)) * (rank < round(density * columns))


def planted(pattern, rows, columns, seed=0):
    """Weights that fit the pattern in some order of rows and columns."""
    rng = np.random.default_rng(seed)
    weights = solve(rng.standard_normal((rows, columns)), pattern=pattern, method="identity")
    kept = weights.apply(rng.standard_normal((rows, columns)))
    return kept[rng.permutation(rows)][:, rng.permutation(columns)]


def of_counts(weights, pattern):
    return Problem((weights != 0).astype(np.float32), pattern)


@pytest.mark.parametrize("seed", range(3))
def test_sparse_matrices_are_converted(seed):
    weights = sparse(64, 64, 0.28, seed)
    solution = lossless(weights, n=2, m=4, time_limit=20.0, seed=seed)
    assert solution.status == "lossless" and solution.lost == 0
    assert np.array_equal(solution.apply(weights), weights)
    naive.check_nm(solution.mask, solution.tile_rows, solution.groups, solution.col_order, n=2, m=4)
    assert solution.retained == np.count_nonzero(weights)
    assert solution.gap < 1e-12
    # It ends as soon as it has what it wants.
    assert solution.seconds < 15.0
    assert solve(weights, method="identity").status != "lossless"


@pytest.mark.parametrize("kind", ["hinm", "vnm", "vector_nm", "tvw"])
def test_what_was_of_the_pattern_before_it_was_shuffled_is_again(kind):
    weights = planted(PATTERNS[kind], 8, 16)
    solution = lossless(weights, pattern=PATTERNS[kind], time_limit=20.0)
    assert solution.status == "lossless"
    assert np.array_equal(solution.apply(weights), weights)


def test_the_size_of_weights_does_not_matter():
    weights = sparse(32, 32, 0.25)
    other = np.where(weights != 0, 1e-30 * weights**3, 0.0)
    run = {"n": 2, "m": 4, "stop": MaxRounds(3)}
    assert np.array_equal(lossless(weights, **run).col_order, lossless(other, **run).col_order)


@pytest.mark.parametrize("kind", strategies.KINDS)
@settings(max_examples=25)
@given(data=st.data())
def test_no_proof_is_wrong(kind, data):
    case = data.draw(strategies.cases(kind, tiny=True))
    S = (case.saliency > np.quantile(case.saliency, data.draw(st.floats(0.0, 0.9)))) * 1.0
    case = replace(case, saliency=S)
    optimum = case.optimum()
    solution = lossless(S, pattern=case.pattern, stop=MaxRounds(3), threads=1)
    case.check(solution)
    assert solution.retained <= optimum
    if solution.status == "infeasible":
        assert solution.infeasible and optimum < S.sum()
    if solution.status == "lossless":
        assert optimum == S.sum() == solution.retained
    assert (solution.status == "lossless") == (solution.lost == 0)


PROVEN = {
    "a row": (np.eye(8) + (np.arange(8) == 3)[:, None], Pattern.nm(), "row 3 has 8 nonzeros"),
    "vectors": (
        np.eye(8)[:, [0, 0, 1, 1, 2, 2, 3, 4]],
        Pattern.hinm(1, 2, vec_ratio=0.75, vec_size=2),
        "row 0 has 2 nonzeros, of which the pattern keeps 1",
    ),
    "columns": (
        np.tile(np.eye(4), (2, 2)),
        Pattern.hinm(2, 2, vec_ratio=0.75, vec_size=8),
        "the columns' nonzeros need 8 vectors of 8 rows at least, of which the pattern keeps 2",
    ),
    "a budget": (
        np.ones((8, 8)),
        Pattern.tvw(1, 1, vec_ratio=0.5, vec_size=4),
        "there are 64 nonzeros, of which the pattern keeps 32",
    ),
    "whole rows": (
        np.eye(8),
        Pattern.tvw(vec_ratio=0.0, vec_size=4, row_ratio=0.25),
        "2 rows are pruned whole, but only 0 of them can be rows without nonzeros",
    ),
    # Every two columns share a row, but 1:2 keeps no two of a group.
    "pairs": (
        np.array(
            [[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1], [0, 0, 1, 1]]
        ),
        Pattern.nm(1, 2),
        "groups of 2 columns hold 2 pairs of nonzeros of a row at least, and 0 at most",
    ),
}


@pytest.mark.parametrize(("weights", "pattern", "reason"), PROVEN.values(), ids=PROVEN.keys())
def test_what_is_infeasible_is_said_at_once(weights, pattern, reason):
    solution = lossless(weights, pattern=pattern)
    assert solution.status == "infeasible"
    assert reason in solution.infeasible
    assert reason in solution.summary()
    assert solution.lost > 0


def test_pairs_prove_what_rows_cannot():
    weights = sparse(1024, 32, 0.45)
    assert not module._by_row(of_counts(weights, Pattern.nm()))
    assert "pairs of nonzeros" in lossless(weights).infeasible


def test_proofs_can_be_added(monkeypatch):
    def never(problem):
        return "a bound says so" if problem.pattern == Pattern.nm() else ""

    monkeypatch.setattr(module, "PROOFS", [*module.PROOFS, never])
    weights = sparse(8, 8, 0.25)
    assert lossless(weights).infeasible == "a bound says so"
    assert lossless(weights, n=1, m=2, stop=MaxRounds(1)).infeasible == ""


def test_groups_of_a_convolution_have_orders_of_their_own():
    weights = np.stack([planted(Pattern.nm(), 12, 16, seed) for seed in range(2)]).reshape(24, 16)
    solution = lossless(weights.reshape(24, 16, 1, 1), groups=2, time_limit=20.0)
    assert solution.status == "lossless" and solution.col_order.shape == (2, 16)


def test_nothing_is_lost_of_nothing():
    solution = lossless(np.zeros((4, 8)))
    assert solution.status == "lossless" and solution.retained == 0.0
    assert solve(np.zeros((4, 8)), stop=MaxRounds(0)).status == "lossless"


def test_any_solve_says_when_it_is_lossless(tmp_path):
    weights = planted(Pattern.nm(), 16, 8)
    found = [solve(weights, seed=seed) for seed in range(3)]
    for solution in found:
        changed = bool((solution.apply(weights) != weights).any())
        assert (solution.status == "lossless") == (not changed) == (solution.lost == 0)
    assert any(solution.status == "lossless" for solution in found)
    stuck = lossless(np.ones((4, 8)))
    stuck.save(tmp_path / "s.npz")
    loaded = Solution.load(tmp_path / "s.npz")
    assert (loaded.status, loaded.lost, loaded.infeasible) == ("infeasible", 16, stuck.infeasible)


@pytest.mark.parametrize("name", ["assign", "gyro"])
def test_enough_ends_the_search_of_a_method(name):
    problem = of_counts(sparse(48, 64, 0.2), Pattern.nm())
    method = registry.get(name)
    free = Search(problem, stop=MaxRounds(60))
    method.solve(free, method.make_options(None))
    within = Search(problem, stop=MaxRounds(60), enough=0.9 * free.best)
    assert not within.stopped()
    method.solve(within, method.make_options(None)).check(problem)
    assert within.stopped() and within.best >= 0.9 * free.best
    assert within._rounds < free._rounds


def test_weighing_rows_finds_what_fresh_starts_do_not():
    weights = sparse(128, 96, 0.25, seed=1)
    counts = (weights != 0) * 1.0
    once = [solve(counts, seed=seed).status for seed in range(4)]
    assert "lossless" not in once
    assert lossless(weights, time_limit=30.0).status == "lossless"


@pytest.mark.alone
def test_it_stops_when_it_is_told_and_by_itself():
    weights = sparse(64, 64, 0.36)
    solve(weights, stop=MaxRounds(1))
    for seconds in (0.0, 0.5):
        begin = time.perf_counter()
        solution = lossless(weights, stop=TimeLimit(seconds))
        assert time.perf_counter() - begin < seconds + 1.0
        assert solution.status == "feasible" and solution.retained >= solution.identity
    solution = lossless(sparse(12, 16, 0.4), method="gyro")
    values = [value for _, value in solution.history]
    assert values == sorted(values) and values[-1] == solution.retained
    same = lossless(sparse(12, 16, 0.4), method="identity")
    assert same.retained == same.identity


def test_only_the_seed_makes_a_difference():
    weights = sparse(32, 32, 0.36)
    run = {"stop": MaxRounds(4)}
    first = lossless(weights, threads=1, **run)
    assert np.array_equal(first.mask, lossless(weights, threads=2, **run).mask)
    others = [lossless(weights, seed=seed, **run).mask for seed in (1, 2)]
    assert any(not np.array_equal(first.mask, mask) for mask in others)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"method": "magic"}, "unknown method 'magic'"),
        ({"time_limit": -1}, "time_limit must not be negative"),
        ({"n": 5}, "n must be at most m"),
        ({"threads": 0}, "threads must be"),
        ({"seed": -1}, "seed must be"),
        ({"options": {"nonsense": 1}}, "unknown option 'nonsense'"),
        ({"pattern": Pattern.nm(), "n": 1}, "give either pattern or n, not both"),
    ],
)
def test_bad_arguments_are_refused(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        lossless(np.eye(8), **arguments)


def test_other_values_are_refused():
    with pytest.raises(ValueError, match="weights"):
        lossless(np.array([[1.0, np.nan, 0.0, 0.0]]))
