"""What ``auto`` chooses, and refusals of what would not fit."""

from __future__ import annotations

import numpy as np
import pytest

from gyroperm import Pattern, memory, solve
from gyroperm.problem import Problem
from gyroperm.solvers.auto import chosen_method
from gyroperm.stopping import MaxRounds, TimeLimit, seconds_allowed


def problem(rows, columns, pattern):
    return Problem(np.ones((rows, columns), dtype=np.float32), pattern)


@pytest.mark.parametrize(
    ("shape", "pattern", "stop", "method"),
    [
        ((384, 384), Pattern.nm(2, 4), TimeLimit(1), "assign"),
        ((384, 384), Pattern.nm(2, 4), TimeLimit(5), "dive"),
        ((1536, 384), Pattern.nm(2, 4), TimeLimit(5), "assign"),
        ((1536, 384), Pattern.nm(2, 4), TimeLimit(30), "dive"),
        ((384, 384), Pattern.nm(2, 4), TimeLimit(30) | MaxRounds(5), "dive"),
        ((384, 384), Pattern.nm(2, 4), MaxRounds(5), "assign"),
        ((384, 384), Pattern.nm(2, 4), None, "assign"),
        ((384, 384), Pattern.nm(1, 2), TimeLimit(30), "assign"),
        ((384, 384), Pattern.nm(4, 4), TimeLimit(30), "assign"),
        ((384, 384), Pattern.hinm(vec_size=32), TimeLimit(4), "assign"),
        ((384, 384), Pattern.hinm(vec_size=32), TimeLimit(5), "dive"),
        ((1536, 384), Pattern.hinm(vec_size=32), TimeLimit(5), "assign"),
        ((1536, 384), Pattern.hinm(vec_size=32), TimeLimit(60), "dive"),
        ((384, 384), Pattern.tvw(vec_size=32), TimeLimit(60), "assign"),
        ((384, 1536), Pattern.hinm(vec_size=32), TimeLimit(30), "assign"),
        ((384, 1536), Pattern.hinm(vec_size=32), TimeLimit(60), "dive"),
        ((4096, 4096), Pattern.hinm(vec_size=128), TimeLimit(60), "assign"),
        ((384, 1536), Pattern.nm(2, 4), TimeLimit(30), "assign"),
        ((128, 64), Pattern.nm(2, 4), TimeLimit(3), "assign"),
        ((128, 64), Pattern.nm(2, 4), TimeLimit(5), "dive"),
    ],
)
def test_the_method_follows_the_time_and_the_size(shape, pattern, stop, method):
    assert chosen_method(problem(*shape, pattern), stop, 2) == method


def test_auto_says_which_method_ran():
    weights = np.random.default_rng(0).random((16, 16))
    assert solve(weights).method == "assign"
    assert solve(weights, time_limit=4.5).method == "dive"
    # Options are those of assign.
    assert solve(weights, time_limit=4.5, options={"column_rounds": 1}).method == "assign"


def test_the_seconds_that_criteria_allow():
    one, two = TimeLimit(1), TimeLimit(2)
    assert seconds_allowed(one | two) == 1
    assert seconds_allowed(one & two) == 2
    assert seconds_allowed(one & MaxRounds(3)) == np.inf
    assert seconds_allowed(lambda state: False) == np.inf


def test_what_does_not_fit_is_refused_with_both_figures(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 2e9)
    memory.require(2e9, "a thing")
    with pytest.raises(MemoryError, match=r"a thing needs about 3.0 GB .* 2.0 GB are available"):
        memory.require(3e9, "a thing")
    # No memory of its own: 2^30 weights that are one number.
    huge = np.broadcast_to(np.float32(1), (1 << 15, 1 << 15))
    with pytest.raises(MemoryError, match=r"a search of 1073741824 weights needs about 15\.0 GB"):
        solve(huge, saliency=huge)


def test_available_memory_is_what_the_system_says(monkeypatch, tmp_path):
    assert memory.available() > 0
    limit, used = tmp_path / "max", tmp_path / "current"
    limit.write_text("1000000\n")
    used.write_text("400000\n")
    monkeypatch.setattr(memory, "_CONTROL_GROUPS", ((str(limit), str(used)),))
    assert memory.available() == 600000
    limit.write_text("max\n")
    assert memory.available() > 600000


@pytest.mark.parametrize(
    ("n", "m"), [(2, 4), (4, 8), (8, 16), (1, 2), (1, 4), (2, 8), (3, 5)], ids=str
)
def test_auto_keeps_no_less_than_the_published_methods(n, m):
    # 30 rounds of each, where a round of auto is a sweep of moves and one of theirs no less work;
    # a number that m does not divide, so that the last group is padded.
    weights = np.random.default_rng(3).standard_normal((24, 6 * m - 1))
    run = {"n": n, "m": m, "stop": MaxRounds(30), "threads": 1}
    kept = solve(weights, **run).retained
    for method in ("gyro", "ria", "swap", *(("stripe",) if m <= 8 else ())):
        assert kept >= solve(weights, method=method, **run).retained, method
