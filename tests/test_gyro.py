"""Gyro-permutation as published."""

from __future__ import annotations

import time

import numpy as np
import pytest

import naive
from gyroperm import MaxRounds, Pattern, solve
from gyroperm.problem import Problem
from gyroperm.solvers import Search, registry
from gyroperm.solvers.assignment import max_transport
from gyroperm.solvers.clustering import balanced_clusters
from gyroperm.solvers.gyro import GyroOptions
from gyroperm.solvers.kernels.gyro import join_thresholds, kept_by_tile

PATTERNS = {
    "2:4": Pattern.nm(),
    "1:3": Pattern.nm(1, 3),
    "hinm": Pattern.hinm(vec_ratio=0.5, vec_size=4),
    "hinm of uneven n:m": Pattern.hinm(2, 5, vec_ratio=0.25, vec_size=6),
    "hinm of every vector": Pattern.hinm(vec_ratio=0.0, vec_size=4),
    "vectors alone": Pattern.hinm(2, 2, vec_ratio=0.5, vec_size=4),
    "hinm of single rows": Pattern.hinm(vec_ratio=0.5, vec_size=1),
    "vnm": Pattern.vnm(4, 2, 8),
    "vector_nm": Pattern.vector_nm(2, 6, 4),
    "tvw": Pattern.tvw(vec_ratio=0.5, vec_size=4),
    "tvw with rows": Pattern.tvw(1, 2, vec_ratio=0.75, vec_size=4, row_ratio=0.25),
}
every_pattern = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS.keys())


def gyro(problem, options=None, **run):
    """What the method itself answers, and its search; nothing guards it against being worse."""
    method = registry.get("gyro")
    search = Search(problem, **run)
    arrangement = method.solve(search, method.make_options(options))
    arrangement.check(problem)
    return arrangement, search


def kept(problem, arrangement):
    S = problem.saliency.astype(np.float64)
    return naive.masked_sum(S, arrangement.mask(S, problem.pattern.n))


def as_it_lies(problem):
    arrangement, _ = gyro(problem, stop=MaxRounds(0))
    return kept(problem, arrangement)


def planted_rows(tiles=6, V=8, columns=48, seed=0):
    """Rows of hidden clusters, each with its own important half of the columns, shuffled."""
    rng = np.random.default_rng(seed)
    S = rng.uniform(0.0, 0.1, (tiles * V, columns))
    cluster = rng.permutation(np.repeat(np.arange(tiles), V))
    for k in range(tiles):
        important = rng.permutation(columns)[: columns // 2]
        S[np.ix_(np.flatnonzero(cluster == k), important)] += rng.uniform(
            0.5, 1.0, (V, columns // 2)
        )
    return S, cluster


def planted_columns(groups=4, rows=64, seed=0):
    """Columns of hidden groups of 4, in each of which every row has two large, shuffled."""
    rng = np.random.default_rng(seed)
    S = rng.uniform(0.0, 0.1, (rows, 4 * groups))
    for g in range(groups):
        for r in range(rows):
            S[r, 4 * g + rng.permutation(4)[:2]] += rng.uniform(0.5, 1.0, 2)
    return S[:, rng.permutation(4 * groups)]


@every_pattern
@pytest.mark.parametrize("shape", [(16, 24), (13, 21), (3, 9), (1, 12)])
def test_every_pattern_is_solved_and_values_are_of_what_is_returned(pattern, shape):
    S = np.random.default_rng(1).gamma(0.5, size=shape)
    problem = Problem(S, pattern)
    arrangement, search = gyro(problem, seed=2)
    scale = problem.search_saliency.max() / S.max()
    assert search.best == pytest.approx(scale * kept(problem, arrangement), rel=1e-5)
    # Rows are judged by whole vectors, so what is kept after n:m may fall; not by much.
    assert kept(problem, arrangement) >= 0.9 * as_it_lies(problem)


@pytest.mark.parametrize("name", ["2:4", "hinm", "hinm of every vector", "vnm", "vector_nm", "tvw"])
def test_it_keeps_more_than_no_permutation_where_there_is_room(name):
    S = np.random.default_rng(3).gamma(0.5, size=(32, 48))
    problem = Problem(S, PATTERNS[name])
    arrangement, _ = gyro(problem)
    assert kept(problem, arrangement) > 1.01 * as_it_lies(problem)


@pytest.mark.parametrize("value", [0.0, 1.0])
@every_pattern
def test_ties_everywhere_are_solved(pattern, value):
    problem = Problem(np.full((12, 24), value), pattern)
    arrangement, _ = gyro(problem)
    assert kept(problem, arrangement) == as_it_lies(problem)


def test_planted_row_clusters_are_found():
    S, cluster = planted_rows()
    problem = Problem(S, Pattern.hinm(2, 2, vec_ratio=0.5, vec_size=8))
    arrangement, _ = gyro(problem)
    best = np.sort(S, axis=1)[:, 24:].sum()
    assert kept(problem, arrangement) >= best - 1e-6
    assert all(len(set(cluster[rows])) == 1 for rows in arrangement.tile_rows)


def test_planted_row_clusters_are_found_under_one_budget():
    S, cluster = planted_rows(tiles=4, seed=5)
    problem = Problem(S, Pattern.tvw(2, 2, vec_ratio=0.5, vec_size=8))
    arrangement, _ = gyro(problem)
    assert all(len(set(cluster[rows])) == 1 for rows in arrangement.tile_rows)


def test_planted_column_groups_are_found():
    problem = Problem(planted_columns(), Pattern.nm())
    best = np.sort(problem.saliency, axis=1)[:, 8:].sum()
    # A local search may end elsewhere; not from every start.
    answers = [gyro(problem, {"icp_patience": 50}, seed=seed)[0] for seed in range(3)]
    assert max(kept(problem, answer) for answer in answers) == pytest.approx(best, rel=1e-6)


def test_rows_stay_in_their_block():
    S, _ = planted_rows(tiles=4, V=4, columns=32)
    problem = Problem(S, Pattern.vnm(4, 2, 8), blocks=(7, 9))
    arrangement, _ = gyro(problem)
    first = arrangement.tile_rows[problem.tile_block == 0]
    assert set(first[first >= 0]) == set(range(7))
    assert kept(problem, arrangement) > as_it_lies(problem)


@pytest.mark.parametrize("pattern", [Pattern.nm(), Pattern.vnm(4, 2, 8)], ids=str)
def test_every_order_is_searched_by_itself(pattern):
    S = np.random.default_rng(4).gamma(0.5, size=(32, 30))
    problem = Problem(S, pattern, blocks=(16, 16), orders=2)
    arrangement, _ = gyro(problem)
    assert arrangement.col_order.shape == (2, 32)
    assert kept(problem, arrangement) > as_it_lies(problem)


def test_windowed_patterns_keep_the_order_that_they_are_given():
    S = np.random.default_rng(5).gamma(0.5, size=(16, 24))
    pattern = Pattern.vnm(4, 2, 8)
    problem = Problem(S, pattern)
    given, _ = gyro(problem, stop=MaxRounds(0))
    assert given.col_order.tolist() == list(range(24))
    S = S[:, ::-1].copy()
    order = np.arange(24)[::-1]
    start = type(given)(given.tile_rows, tuple(23 - g for g in given.groups), order)
    arrangement, _ = gyro(Problem(S, pattern), initial=start)
    assert arrangement.col_order.tolist() == order.tolist()


def test_it_starts_where_it_is_told_to():
    problem = Problem(np.random.default_rng(6).gamma(0.5, size=(16, 32)), PATTERNS["hinm"])
    first, _ = gyro(problem, seed=1)
    again, _ = gyro(problem, initial=first, stop=MaxRounds(0))
    assert np.array_equal(again.tile_rows, first.tile_rows)
    assert all(np.array_equal(a, b) for a, b in zip(again.groups, first.groups, strict=True))


@every_pattern
def test_threads_change_nothing(pattern, monkeypatch):
    # Small scores would not be spread over threads otherwise.
    monkeypatch.setattr("gyroperm.solvers.gyro._TERMS_WORTH_THREADS", 0)
    monkeypatch.setattr("gyroperm.solvers.gyro._GROUPS_PER_PIECE", 3)
    problem = Problem(np.random.default_rng(7).gamma(0.5, size=(24, 40)), pattern)
    one, two = (gyro(problem, seed=8, threads=threads)[0] for threads in (1, 2))
    assert np.array_equal(one.tile_rows, two.tile_rows)
    assert all(np.array_equal(a, b) for a, b in zip(one.groups, two.groups, strict=True))


def test_only_the_seed_makes_a_difference():
    problem = Problem(np.random.default_rng(9).gamma(0.5, size=(24, 40)), PATTERNS["hinm"])
    rows = []
    for seed in (0, 1, 0):
        np.random.seed(len(rows))  # noqa: NPY002 - the global state must not matter
        rows.append(gyro(problem, seed=seed)[0].tile_rows.tolist())
    assert rows[0] == rows[2] != rows[1]


@every_pattern
def test_a_stop_that_is_reached_already_answers_at_once(pattern):
    problem = Problem(np.random.default_rng(10).random((64, 96)), pattern)
    gyro(problem, stop=MaxRounds(0))
    begin = time.perf_counter()
    gyro(problem, stop=lambda state: True)
    assert time.perf_counter() - begin < 1.0


@pytest.mark.parametrize("rounds", [1, 2, 5])
@pytest.mark.parametrize("name", ["2:4", "hinm", "tvw"])
def test_it_stops_after_as_many_rounds_as_it_is_told(name, rounds):
    problem = Problem(np.random.default_rng(11).random((24, 40)), PATTERNS[name])
    seen = []

    def stop(state):
        seen.append(state.rounds)
        return state.rounds >= rounds

    gyro(problem, stop=stop)
    assert max(seen) == rounds


def test_the_schedule_halves_by_default_and_is_capped_by_the_tile():
    assert GyroOptions().sample_sizes(32) == (16, 8, 4, 2, 1)
    assert GyroOptions().sample_sizes(6) == (3, 1)
    assert GyroOptions().sample_sizes(1) == (1,)
    assert GyroOptions(schedule=[8, 1, 4]).sample_sizes(6) == (6, 1, 4)
    S, cluster = planted_rows(tiles=4, V=4, columns=32)
    problem = Problem(S, Pattern.hinm(2, 2, vec_ratio=0.5, vec_size=4))
    # All rows sampled: balanced k-means of the whole matrix, again and again.
    arrangement, _ = gyro(problem, {"schedule": (99,), "ocp_patience": 20})
    assert all(len(set(cluster[rows])) == 1 for rows in arrangement.tile_rows)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"schedule": ()}, "schedule must hold at least one"),
        ({"schedule": 8}, "schedule must be a sequence"),
        ({"schedule": "841"}, "schedule must be a sequence"),
        ({"schedule": (8, 0)}, r"schedule\[1\] must be an integer of at least 1, got 0"),
        ({"schedule": (2.5,)}, r"schedule\[0\] must be an integer"),
        ({"schedule": (True,)}, r"schedule\[0\] must be an integer"),
        ({"ocp_patience": 0}, "ocp_patience must be"),
        ({"icp_patience": -1}, "icp_patience must be"),
        ({"cluster_iterations": 0}, "cluster_iterations must be"),
        ({"patients": 3}, "unknown option 'patients'.*schedule, ocp_patience"),
    ],
)
def test_bad_options_are_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        solve(np.ones((4, 8)), method="gyro", options=options)


def test_balanced_clusters_have_the_same_size_and_find_what_is_apart():
    rng = np.random.default_rng(12)
    label = rng.permutation(np.repeat(np.arange(5), 6))
    vectors = (10.0 * np.eye(5)[label] + rng.random((30, 5))).astype(np.float32)
    members = balanced_clusters(vectors, 5, rng, 50, lambda: False)
    assert sorted(members.tolist()) == list(range(30))
    spread = sum(vectors[c].var(axis=0).sum() for c in members.reshape(5, 6))
    shuffled = sum(vectors[c].var(axis=0).sum() for c in rng.permutation(30).reshape(5, 6))
    assert spread < 0.5 * shuffled


def test_the_transport_is_optimal():
    rng = np.random.default_rng(13)
    for _ in range(5):
        gain = rng.standard_normal((6, 3)).astype(np.float32)
        labels = max_transport(gain, 2)
        assert np.bincount(labels).tolist() == [2, 2, 2]
        best = max(
            sum(float(gain[i, k]) for k, pair in enumerate(order) for i in pair)
            for split in naive.partitions(range(6), 2)
            for order in _orders(split)
        )
        assert float(gain[np.arange(6), labels].sum()) == pytest.approx(best, abs=1e-5)


def _orders(pairs):
    a, b, c = pairs
    return [(a, b, c), (a, c, b), (b, a, c), (b, c, a), (c, a, b), (c, b, a)]


@pytest.mark.parametrize(("n", "m"), [(1, 2), (1, 4), (2, 4), (3, 4), (3, 7)])
def test_thresholds_give_the_value_of_every_group_that_a_vector_may_join(n, m):
    rng = np.random.default_rng(14)
    S = rng.random((6, 4 * m)).astype(np.float32)
    slots = rng.permutation(4 * m).reshape(4, m)
    vacant = rng.integers(m, size=4)
    thresholds = np.empty((4, 6), dtype=np.float32)
    join_thresholds(np.ascontiguousarray(S.T), slots, vacant, n, thresholds)
    for g in range(4):
        rest = np.delete(slots[g], vacant[g])
        without = naive.group_value(S, range(6), rest, n)
        for joining in slots[np.arange(4), vacant]:
            joined = naive.group_value(S, range(6), [*rest, joining], n)
            over = np.maximum(0.0, S[:, joining] - thresholds[g]).sum()
            assert joined - without == pytest.approx(over, abs=1e-5)


def test_the_value_of_a_tile_is_the_sum_of_its_largest():
    rng = np.random.default_rng(15)
    S = rng.random((5, 9)).astype(np.float32)
    rows = np.array([4, -1, 0, 2], dtype=np.int32)
    groups = np.array([[8, 0, 3], [-1, 5, 1], [7, -1, -1]], dtype=np.int32)
    expected = sum(naive.group_value(S, rows.tolist(), g, 2) for g in groups.tolist())
    assert kept_by_tile(S, rows, groups, 2) == pytest.approx(expected, rel=1e-12)


def test_a_real_layer_keeps_what_was_published(minilm):
    weights = minilm("layer.0.intermediate.dense")
    solution = solve(weights, vec_ratio=0.5, vec_size=32, method="gyro")
    assert solution.ratio >= 0.85
    assert solution.history[0][1] < solution.history[-1][1] == solution.retained
