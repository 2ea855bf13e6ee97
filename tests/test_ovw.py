"""OVW's channel permutation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import naive
import strategies
from gyroperm import MaxRounds, Pattern, TimeLimit, solve
from gyroperm.problem import Problem
from gyroperm.solvers.clustering import balanced_clusters
from strategies import answer, kept, same

PATTERNS = {
    "hinm": Pattern.hinm(vec_ratio=0.5, vec_size=4),
    "vectors alone": Pattern.hinm(2, 2, vec_ratio=0.5, vec_size=4),
    "hinm of every vector": Pattern.hinm(vec_ratio=0.0, vec_size=4),
    "hinm of single rows": Pattern.hinm(vec_ratio=0.5, vec_size=1),
    "vnm": Pattern.vnm(4, 2, 8),
    "vector_nm": Pattern.vector_nm(2, 6, 4),
    "tvw": Pattern.tvw(1, 2, vec_ratio=0.75, vec_size=4, row_ratio=0.25),
}
every_pattern = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS.keys())
every_feature = pytest.mark.parametrize("features", ["saliency", "mask"])


def gamma(rows, columns, seed=0):
    return np.random.default_rng(seed).gamma(0.5, size=(rows, columns))


def planted(seed=0):
    """Rows of 4 hidden clusters of 6, each with its own important half of the columns."""
    random = np.random.default_rng(seed)
    cluster = random.permutation(np.repeat(np.arange(4), 6))
    important = np.array([random.permutation(32) < 16 for _ in range(4)])
    return random.uniform(0.0, 0.1, (24, 32)) + 0.9 * important[cluster], cluster


@every_feature
@pytest.mark.parametrize("constructor", [Pattern.hinm, Pattern.tvw])
def test_planted_clusters_are_found(features, constructor):
    S, cluster = planted()
    problem = Problem(S, constructor(2, 2, vec_ratio=0.5, vec_size=6))
    # k-means ends where it begins to repeat, not always at the best clusters.
    arrangement, _ = answer("ovw", problem, {"features": features, "restarts": 10})
    assert all(len(set(cluster[rows])) == 1 for rows in arrangement.tile_rows)


@pytest.mark.parametrize("seed", range(3))
def test_one_iteration_puts_rows_to_the_nearest_centroids_in_all(seed):
    vectors = np.random.default_rng(seed).random((6, 4)).astype(np.float32)
    drawn = np.random.default_rng(seed).choice(6, 3, replace=False)
    members = balanced_clusters(vectors, 3, np.random.default_rng(seed), 1, lambda: False)

    def distance(clusters):
        return sum(
            float(np.square(vectors[r] - vectors[c]).sum())
            for rows, c in zip(clusters, drawn, strict=True)
            for r in rows
        )

    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    best = min(
        distance([pairs[i] for i in order])
        for pairs in naive.partitions(range(6), 2)
        for order in orders
    )
    assert distance(members.reshape(3, 2).tolist()) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (2, 2)])
def test_vectors_are_the_best_sums_of_each_tile_in_groups_as_they_lie(n, m):
    S, _ = planted(1)
    problem = Problem(S, Pattern.hinm(n, m, vec_ratio=0.5, vec_size=6))
    arrangement, _ = answer("ovw", problem)
    tiles = arrangement.tile_rows.tolist()
    assert tiles != naive.tiles_as_they_lie(range(24), 6)
    for rows, groups in zip(tiles, arrangement.groups, strict=True):
        best = naive.best_columns(problem.search_saliency, rows, range(32), 16)
        assert groups.tolist() == naive.chunks(best, m, 16)


@given(
    case=st.sampled_from(["hinm", "vnm", "vector_nm", "tvw"]).flatmap(strategies.cases),
    features=st.sampled_from(["saliency", "mask"]),
    seed=st.integers(0, 3),
)
def test_every_answer_is_of_its_pattern(case, features, seed):
    run = {"pattern": case.pattern, "method": "ovw", "seed": seed}
    solution = solve(case.saliency, options={"features": features}, **run)
    case.check(solution)
    assert solution.retained >= solution.identity


@pytest.mark.parametrize("name", ["hinm", "vectors alone", "vnm", "vector_nm", "tvw"])
@every_feature
def test_it_keeps_more_than_no_permutation_where_there_is_room(name, features):
    S, _ = planted(2)
    solution = solve(S, pattern=PATTERNS[name], method="ovw", options={"features": features})
    assert solution.retained > solution.identity


@every_pattern
def test_the_best_is_what_was_recorded(pattern):
    problem = Problem(gamma(13, 26), pattern)
    arrangement, search = answer("ovw", problem, {"restarts": 3})
    scale = problem.search_saliency.max() / problem.saliency.max()
    assert search.best == pytest.approx(scale * kept(problem, arrangement), rel=1e-5)
    once, _ = answer("ovw", problem)
    assert kept(problem, arrangement) >= kept(problem, once)


@pytest.mark.parametrize("orders", [1, 2])
def test_windowed_patterns_keep_the_order_that_they_are_given(orders):
    problem = Problem(gamma(24, 30), Pattern.vnm(4, 2, 8), blocks=(11, 13), orders=orders)
    first, _ = answer("random", problem, {"count": 2}, seed=1)
    arrangement, _ = answer("ovw", problem, {"restarts": 5}, initial=first)
    assert np.array_equal(arrangement.col_order, first.col_order)
    rows = arrangement.tile_rows[problem.tile_block == 0]
    assert set(rows[rows >= 0]) == set(range(11))


@every_pattern
def test_the_start_competes(pattern):
    problem = Problem(gamma(16, 24), pattern)
    good, _ = answer("random", problem, {"count": 300}, seed=1)
    assert kept(problem, answer("ovw", problem, initial=good)[0]) >= kept(problem, good)
    assert same(answer("ovw", problem, initial=good, stop=MaxRounds(0))[0], good)


@every_pattern
def test_threads_change_nothing(pattern, monkeypatch):
    monkeypatch.setattr("gyroperm.solvers.vectors._ENTRIES_WORTH_THREADS", 0)
    problem = Problem(gamma(24, 40), pattern)
    one, two = (answer("ovw", problem, seed=8, threads=threads)[0] for threads in (1, 2))
    assert same(one, two)


def test_only_the_seed_makes_a_difference():
    problem = Problem(planted(3)[0], PATTERNS["hinm"])
    first, other, again = (answer("ovw", problem, seed=seed)[0] for seed in (0, 1, 0))
    assert same(first, again)
    assert not same(first, other)


def test_a_round_is_one_clustering():
    problem = Problem(gamma(24, 40), PATTERNS["hinm"])
    seen = []

    def stop(state):
        seen.append(state.rounds)
        return state.rounds >= 2

    answer("ovw", problem, {"restarts": 5}, stop=stop)
    assert max(seen) == 2


def test_no_assignment_begins_that_would_end_too_late(monkeypatch):
    monkeypatch.setattr("gyroperm.solvers.assignment._TRANSPORT_SECONDS", 1.0)
    problem = Problem(planted()[0], PATTERNS["hinm"])
    as_it_lies, _ = answer("identity", problem)
    assert same(answer("ovw", problem, stop=TimeLimit(60))[0], as_it_lies)


@pytest.mark.parametrize("value", [0.0, 1.0])
@every_pattern
def test_ties_everywhere_are_solved(pattern, value):
    problem = Problem(np.full((12, 24), value), pattern)
    as_it_lies, _ = answer("identity", problem)
    arrangement, _ = answer("ovw", problem, {"features": "mask"})
    assert kept(problem, arrangement) == kept(problem, as_it_lies)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"features": "rows"}, "features must be one of saliency, mask, got 'rows'"),
        ({"features": ["mask"]}, "features must be one of saliency, mask"),
        ({"iterations": 0}, "iterations must be an integer of at least 1, got 0"),
        ({"restarts": 1.5}, "restarts must be an integer"),
        ({"restart": 1}, "unknown option 'restart' of method 'ovw'; it takes features"),
    ],
)
def test_bad_options_are_named(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        solve(np.ones((4, 8)), vec_ratio=0.5, vec_size=2, method="ovw", options=options)


def test_plain_nm_is_refused():
    with pytest.raises(ValueError, match="'ovw' puts rows into tiles, of which N:M has none; it"):
        solve(np.ones((8, 16)), method="ovw")
