"""Plain 1:2 by perfect matching."""

from __future__ import annotations

import time

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import naive
import strategies
from gyroperm import Pattern, TimeLimit
from gyroperm.problem import Problem
from gyroperm.solvers import Search
from gyroperm.solvers.matching import solve_by_matching

PATTERN = Pattern.nm(1, 2)


def matched(problem, **run):
    """The arrangement, what it keeps and the bound, both in the saliency's own scale."""
    arrangement, bound = solve_by_matching(Search(problem, **run))
    arrangement.check(problem)
    S = problem.saliency.astype(np.float64)
    scale = 2.0 ** np.frexp(S.max())[1]
    return arrangement, naive.masked_sum(S, arrangement.mask(S, 1)), bound * scale


@given(data=st.data())
def test_it_is_the_enumerated_optimum_and_proves_it(data):
    columns = data.draw(st.integers(1, 9))
    S = data.draw(strategies.saliencies(data.draw(st.integers(1, 5)), columns))
    _, kept, bound = matched(Problem(S, PATTERN))
    optimum = naive.optimum_nm(S, 1, 2)
    assert kept == pytest.approx(optimum, rel=1e-12, abs=0.0)
    assert optimum <= bound <= optimum * (1 + 1e-12)


@pytest.mark.parametrize("columns", [50, 51])
@pytest.mark.parametrize("kind", ["normal", "counts", "heavy"])
def test_it_is_the_matching_of_the_complete_graph(columns, kind):
    random = np.random.default_rng(columns)
    S = {
        "normal": np.abs(random.standard_normal((20, columns))),
        "counts": (random.random((20, columns)) < 0.3).astype(np.float64),
        "heavy": random.standard_normal((20, columns)) ** 8,
    }[kind]
    X = np.zeros((columns + columns % 2, 20))
    X[:columns] = S.T
    graph = nx.Graph()
    for i in range(len(X)):
        for j in range(i):
            graph.add_edge(i, j, weight=float(np.maximum(X[i], X[j]).sum()))
    pairs = nx.max_weight_matching(graph, maxcardinality=True)
    optimum = sum(graph[i][j]["weight"] for i, j in pairs)
    _, kept, bound = matched(Problem(S, PATTERN))
    assert kept == pytest.approx(optimum, rel=1e-12)
    assert optimum * (1 - 1e-14) <= bound <= optimum * (1 + 1e-12)


def test_two_hundred_columns_are_proven_quickly():
    S = np.abs(np.random.default_rng(1).standard_normal((64, 200)))
    begin = time.process_time()
    _, kept, bound = matched(Problem(S, PATTERN))
    assert time.process_time() - begin < 10.0
    assert kept <= bound <= kept * (1 + 1e-12)


def test_every_order_of_a_grouped_convolution_is_matched_by_itself():
    S = np.random.default_rng(2).gamma(0.5, size=(12, 7))
    arrangement, kept, bound = matched(Problem(S, PATTERN, blocks=(5, 7), orders=2))
    assert arrangement.col_order.shape == (2, 8)
    optimum = naive.optimum_nm(S[:5], 1, 2) + naive.optimum_nm(S[5:], 1, 2)
    assert kept == pytest.approx(optimum, rel=1e-12)
    assert optimum <= bound <= optimum * (1 + 1e-12)


def test_the_bound_is_of_the_saliency_as_it_was_given():
    # In float32 these are all the same.
    S = 1.0 + 1e-9 * np.random.default_rng(3).random((6, 8))
    _, kept, bound = matched(Problem(S, PATTERN))
    optimum = naive.optimum_nm(S, 1, 2)
    assert kept == pytest.approx(optimum, rel=1e-14)
    assert optimum <= bound <= optimum * (1 + 1e-12)


@pytest.mark.alone
def test_what_is_left_when_it_is_stopped_is_sound():
    problem = Problem(np.random.default_rng(4).random((40, 300)), PATTERN)
    _, best, _ = matched(problem)
    calls = 0
    for most in (0, 1, 5, 40, 400):
        calls = 0

        def stop(state, most=most):
            nonlocal calls
            calls += 1
            return calls > most

        arrangement, kept, bound = matched(problem, stop=stop)
        assert kept <= best <= bound
        assert calls > most, "it would have ended by itself"
    assert arrangement.col_order.tolist() == list(range(300))
    begin = time.perf_counter()
    matched(problem, stop=TimeLimit(0.2))
    assert time.perf_counter() - begin < 1.0


def test_an_assignment_that_would_outlast_the_limit_is_not_begun(monkeypatch):
    S = np.random.default_rng(0).random((8, 40))
    problem = Problem(S, PATTERN)
    assert np.isfinite(matched(problem, stop=TimeLimit(60.0))[2])
    # As if forty columns took an hour.
    monkeypatch.setattr("gyroperm.solvers.matching._PAIR_SECONDS", 3600.0 / 40**2)
    assert matched(problem, stop=TimeLimit(60.0))[2] == np.inf


def test_threads_change_nothing():
    problem = Problem(np.random.default_rng(5).random((30, 41)), PATTERN)
    one, two = (matched(problem, threads=threads)[0] for threads in (1, 2))
    assert np.array_equal(one.col_order, two.col_order)


@pytest.mark.parametrize("pattern", [Pattern.nm(), Pattern.nm(2, 2), Pattern.hinm(1, 2)], ids=str)
def test_other_patterns_are_refused(pattern):
    with pytest.raises(ValueError, match="matching solves plain 1:2 alone, got"):
        solve_by_matching(Search(Problem(np.ones((64, 8)), pattern)))
