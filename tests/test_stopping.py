"""Stopping criteria, alone, combined, and obeyed by every method."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import strategies
from gyroperm import AllOf, AnyOf, MaxRounds, NoImprovement, Pattern, SearchState, TimeLimit, solve


def state(seconds=0.0, rounds=0, retained=0.0, stale_rounds=0):
    return SearchState(seconds, rounds, retained, stale_rounds)


@pytest.mark.parametrize(
    ("criterion", "before", "after"),
    [
        (TimeLimit(2.5), state(seconds=2.4), state(seconds=2.5)),
        (MaxRounds(3), state(rounds=2), state(rounds=3)),
        (NoImprovement(4), state(rounds=9, stale_rounds=3), state(rounds=9, stale_rounds=4)),
    ],
)
def test_each_criterion_stops_at_its_limit(criterion, before, after):
    assert criterion(before) is False
    assert criterion(after) is True


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TimeLimit(-1), "seconds must not be negative"),
        (lambda: TimeLimit(math.nan), "seconds must not be negative"),
        (lambda: MaxRounds(-1), "rounds must be an integer of at least 0"),
        (lambda: NoImprovement(0), "rounds must be an integer of at least 1"),
    ],
)
def test_limits_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_or_stops_at_either_and_and_at_both():
    early, late = state(seconds=1, rounds=0), state(seconds=1, rounds=5)
    either, both = TimeLimit(1) | MaxRounds(5), TimeLimit(1) & MaxRounds(5)
    assert isinstance(either, AnyOf) and isinstance(both, AllOf)
    assert either(early) and not both(early)
    assert either(late) and both(late)
    assert not either(state())


def test_any_callable_combines_from_either_side():
    def enough(seen):
        return seen.retained > 10

    for combined in (enough | MaxRounds(5), MaxRounds(5) | enough):
        assert combined(state(retained=11)) and combined(state(rounds=5)) and not combined(state())
    for combined in (enough & MaxRounds(5), MaxRounds(5) & enough):
        assert combined(state(retained=11, rounds=5)) and not combined(state(rounds=5))
    nested = (MaxRounds(1) | TimeLimit(9)) & NoImprovement(2)
    assert nested(state(rounds=1, stale_rounds=2)) and not nested(state(stale_rounds=2))


PATTERNS = {
    "nm": Pattern.nm(),
    "hinm": Pattern.hinm(vec_ratio=0.5, vec_size=16),
    "vnm": Pattern.vnm(16, 2, 8),
    "vector_nm": Pattern.vector_nm(2, 8, 16),
    "tvw": Pattern.tvw(vec_ratio=0.5, vec_size=16),
}
every_kind = pytest.mark.parametrize("kind", strategies.KINDS)
searching = pytest.mark.parametrize("method", ["identity", "gyro", "assign"])


def matrix(seed=0):
    return np.random.default_rng(seed).random((64, 48))


@every_kind
@searching
@pytest.mark.parametrize("stop", [MaxRounds(0), TimeLimit(0), lambda seen: True])
def test_a_stop_already_reached_returns_no_permutation(kind, method, stop):
    S = matrix()
    solution = solve(S, pattern=PATTERNS[kind], method=method, stop=stop)
    identity = solve(S, pattern=PATTERNS[kind], method="identity")
    assert solution.retained == identity.retained == solution.identity
    assert np.array_equal(solution.mask, identity.mask)


@every_kind
@searching
def test_a_stop_already_reached_returns_the_initial_solution(kind, method):
    S = matrix()
    first = solve(S, pattern=PATTERNS[kind], method="gyro", seed=8)
    assert first.retained > first.identity
    run = {"pattern": PATTERNS[kind], "method": method, "initial": first}
    solution = solve(S, stop=MaxRounds(0), **run)
    assert solution.retained == first.retained
    assert np.array_equal(solution.mask, first.mask)


@every_kind
@pytest.mark.parametrize("method", ["gyro", "assign"])
def test_a_criterion_sees_a_search_that_moves_forward(kind, method):
    seen = []

    def watch(now):
        seen.append(now)
        return False

    solution = solve(matrix(), pattern=PATTERNS[kind], method=method, stop=watch | MaxRounds(6))
    assert seen
    for a, b in itertools.pairwise(seen):
        assert 0.0 <= a.seconds <= b.seconds
        assert 0 <= a.rounds <= b.rounds
        assert a.retained <= b.retained
    assert max(s.rounds for s in seen) >= 1
    # In the search's own scale: a power of two near the largest saliency, here 1.
    assert seen[-1].retained <= solution.retained * (1 + 1e-5)


@every_kind
@pytest.mark.parametrize("method", ["gyro", "assign"])
def test_more_rounds_are_used_when_they_are_given(kind, method):
    rounds = []
    for limit in (1, 3):
        counts = [0]

        def watch(now, counts=counts):
            counts[0] = now.rounds
            return False

        solve(matrix(), pattern=PATTERNS[kind], method=method, stop=MaxRounds(limit) | watch)
        rounds.append(counts[0])
    assert rounds[0] <= 1 and rounds[0] <= rounds[1] <= 3


@searching
def test_every_method_ends_by_itself(method):
    for kind in strategies.KINDS:
        solution = solve(matrix()[:32, :24], pattern=PATTERNS[kind], method=method)
        assert solution.retained >= solution.identity


def test_an_error_in_a_criterion_is_not_swallowed():
    def broken(now):
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        solve(matrix(), stop=broken)


@pytest.mark.alone
@pytest.mark.parametrize("method", ["identity", "gyro", "assign", "auto"])
@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("layer.0.attention.self.query", Pattern.nm()),
        ("layer.0.intermediate.dense", Pattern.hinm(vec_ratio=0.5, vec_size=32)),
        ("layer.0.intermediate.dense", Pattern.tvw(vec_ratio=0.5, vec_size=32)),
    ],
    ids=["query-2:4", "intermediate-HiNM", "intermediate-TVW"],
)
def test_a_time_limit_is_kept_on_real_layers(minilm, name, pattern, method):
    limit = 0.5
    weights = minilm(name)
    solution = solve(weights, pattern=pattern, method=method, time_limit=limit)
    assert solution.seconds <= limit + 0.5
    both = solve(weights, pattern=pattern, method=method, time_limit=60.0, stop=TimeLimit(limit))
    assert both.seconds <= limit + 0.5
