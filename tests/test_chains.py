"""Chains of a search: how many, their time, their random streams, and that the best is kept."""

from __future__ import annotations

import numpy as np
import pytest

from gyroperm import Pattern, solve
from gyroperm.problem import Problem
from gyroperm.solvers import assign
from gyroperm.solvers.chains import best_of_chains, chains_in, two_level_chains_in
from gyroperm.solvers.search import Search
from gyroperm.solvers.vectors import tile_values
from gyroperm.stopping import Criterion, MaxRounds, NoImprovement, TimeLimit


class Steps(Criterion):
    """A clock that advances by one each time that someone looks whether to stop."""

    timed = True

    def __init__(self, steps):
        self.steps, self.taken = steps, 0

    def __call__(self, state):
        self.taken += 1
        return self.taken >= self.steps

    def progress(self, state):
        return min(1.0, self.taken / self.steps)


def searching(stop, threads=1):
    problem = Problem(np.ones((4, 8), dtype=np.float32), Pattern.nm(2, 4))
    return Search(problem, stop=stop, threads=threads)


def test_small_problems_have_more_chains_and_large_ones_a_single_one():
    counts = [chains_in(1.0, groups, 128) for groups in (4, 8, 16, 32, 96)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[2] > counts[3] == counts[4] == 1
    by_time = [chains_in(seconds, 16, 128) for seconds in (0.0, 0.1, 1.0, 3.0, np.inf)]
    assert by_time == sorted(by_time)
    assert by_time[0] == 1
    assert by_time[-1] == by_time[-2]


def test_chains_divide_the_time_and_the_best_is_kept():
    search = searching(Steps(90))
    looks, draws = [], []

    def run(chain):
        assert chain.by_clock
        draws.append(chain.random(5).random())
        count = 0
        while not chain.stopped():
            count += 1
        looks.append(count)
        chain.record(float(10 - len(looks)))
        return -abs(len(looks) - 2), len(looks)

    assert best_of_chains(search, 3, run) == (0, 2)
    assert len(looks) == 3
    assert max(looks) - min(looks) <= 3
    assert sum(looks) >= 80
    assert len({*draws, search.random(5).random()}) == 4
    # What chains record is recorded of the whole.
    assert search.best == 9.0


def test_chains_run_on_every_thread_and_end_with_the_search():
    search = searching(Steps(1), threads=3)
    indices = []

    def run(chain):
        indices.append(chain.random(0).random())
        return 0.0, None

    best_of_chains(search, 5, run)
    assert len(set(indices)) == 3


@pytest.mark.parametrize(
    ("stop", "by_clock"),
    [
        (TimeLimit(1), True),
        (TimeLimit(1) | (lambda state: False), True),
        (TimeLimit(1) | MaxRounds(5), False),
        (TimeLimit(1) & NoImprovement(5), False),
        (TimeLimit(np.inf), False),
        (MaxRounds(5), False),
        (None, False),
    ],
)
def test_rounds_are_never_divided_up(stop, by_clock):
    search = searching(stop)
    assert search.by_clock == by_clock
    if stop is not None:
        assert search.part(0.5).by_clock == by_clock


def test_a_part_has_its_share_of_the_seconds():
    assert 4.9 < searching(TimeLimit(10)).part(0.5).seconds_left <= 5.0
    assert searching(MaxRounds(10)).part(0.5).seconds_left == np.inf


def test_assign_begins_anew_on_small_problems_against_a_clock(monkeypatch):
    asked = []

    def counted(search, in_a_row, run):
        asked.append((in_a_row, search.threads))
        return best_of_chains(search, in_a_row, run)

    monkeypatch.setattr(assign, "best_of_chains", counted)
    weights = np.random.default_rng(0).random((32, 18))
    solution = solve(weights, method="assign", time_limit=0.2, threads=2)
    assert len(asked) == 1
    assert asked[0][0] > 2
    assert asked[0][1] == 2
    assert solution.retained > solution.identity
    # The history is of all chains, and ends with what is returned.
    values = [value for _, value in solution.history]
    assert values == sorted(values)
    # Sweeps of several blocks occupy all threads by themselves.
    solve(np.ones((2, 388)), method="assign", time_limit=0.05, threads=2)
    solve(weights, method="assign", options={"block_groups": 4}, time_limit=0.05, threads=2)
    solve(weights, method="assign", stop=MaxRounds(20))
    solve(weights, method="assign", stop=MaxRounds(20) | TimeLimit(30))
    solve(weights, method="assign", initial=solution, time_limit=0.05)
    assert len(asked) == 1


def two_level(rows, columns, **parts):
    pattern = Pattern.hinm(2, 4, vec_ratio=0.5, vec_size=8) if not parts else Pattern.tvw(**parts)
    return Problem(np.ones((rows, columns), dtype=np.float32), pattern)


def test_layers_of_many_tiles_or_columns_are_searched_once():
    by_tiles = [two_level_chains_in(1.0, two_level(rows, 32)) for rows in (16, 64, 1024, 8192)]
    assert by_tiles == sorted(by_tiles, reverse=True)
    assert by_tiles[0] > 2
    assert by_tiles[-1] == 1
    by_columns = [two_level_chains_in(1.0, two_level(16, columns)) for columns in (32, 256, 1024)]
    assert by_columns == sorted(by_columns, reverse=True)
    assert by_columns[-1] == 1
    ragged = two_level(16, 32, n=2, m=4, vec_ratio=0.5, vec_size=8)
    assert two_level_chains_in(1.0, ragged) == 1


def test_the_best_of_whole_two_level_searches_is_returned(monkeypatch):
    found = []

    def listed(search, in_a_row, run):
        def one(chain):
            found.append(run(chain))
            return found[-1]

        assert in_a_row == 3
        return best_of_chains(search, in_a_row, one)

    monkeypatch.setattr(assign, "two_level_chains_in", lambda seconds, problem: 3)
    monkeypatch.setattr(assign, "best_of_chains", listed)
    weights = np.random.default_rng(0).random((32, 48)).astype(np.float32)
    pattern = Pattern.hinm(2, 4, vec_ratio=0.5, vec_size=8)
    solution = solve(weights, pattern=pattern, method="assign", time_limit=0.6, threads=2)
    assert 2 <= len(found) <= 6  # two threads; a busy machine may end before the last
    best = max(value for value, _ in found)
    assert sum(tile_values(Problem(weights, pattern), solution.arrangement)) == pytest.approx(
        max(sum(tile_values(Problem(weights, pattern), one)) for _, one in found), rel=1e-6
    )
    assert len({value for value, _ in found}) > 1 and best > 0
