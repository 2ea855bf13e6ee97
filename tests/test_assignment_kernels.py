"""The pieces of an assignment move, each against what it must equal."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gyroperm.solvers.columns import _CALL_NS, _FIRST_BLOCK, _FIRST_CALL_NS, _SweepSize
from gyroperm.solvers.kernels.assignment import assign_slots, improve_slots
from gyroperm.solvers.kernels.grouping import known_gains, product_gains
from gyroperm.solvers.kernels.rows import dual_threshold, top_threshold


def gains(draw, slots, items):
    """Gains of any sign: whole numbers, with many ties, or generic."""
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    if draw(st.booleans()):
        return rng.integers(-3, 4, (slots, items)).astype(np.float32)
    return rng.normal(size=(slots, items)).astype(np.float32)


def total(gain, chosen):
    assert len(set(chosen.tolist())) == len(chosen)
    return float(gain.astype(np.float64)[np.arange(len(chosen)), chosen].sum())


@given(data=st.data())
def test_improved_slots_are_the_best_there_are(data):
    slots = data.draw(st.integers(1, 5), label="slots")
    pool = data.draw(st.integers(0, 2), label="pool")
    gain = gains(data.draw, slots, slots + pool)
    begin = data.draw(st.permutations(range(slots + pool)))[:slots]
    chosen = np.array(begin, dtype=np.int32)
    improve_slots(gain, chosen)
    best = max(total(gain, np.array(items)) for items in permutations(range(slots + pool), slots))
    assert total(gain, chosen) == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("pool", [0, 25])
@given(data=st.data())
def test_improving_from_anywhere_is_as_good_as_assigning_anew(pool, data):
    gain = gains(data.draw, 40, 40 + pool)
    begin = np.random.default_rng(data.draw(st.integers(0, 99))).permutation(40 + pool)[:40]
    improved, anew = begin.astype(np.int32), np.empty(40, dtype=np.int32)
    improve_slots(gain, improved)
    assign_slots(gain, anew)
    assert total(gain, improved) == pytest.approx(total(gain, anew), abs=1e-3)


@given(data=st.data())
def test_an_assignment_that_is_the_best_is_left_as_it_is(data):
    slots = data.draw(st.integers(1, 20))
    gain = gains(data.draw, slots, slots + 3)
    gain[np.arange(slots), np.arange(slots)] = 9
    chosen = np.arange(slots, dtype=np.int32)
    improve_slots(gain, chosen)
    assert chosen.tolist() == list(range(slots))


@given(data=st.data())
def test_known_gains_are_those_of_the_product(data):
    m = data.draw(st.integers(2, 5), label="m")
    n = data.draw(st.integers(1, m - 1), label="n")
    G, D, R = (data.draw(st.integers(1, most)) for most in (5, 4, 9))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**20)))
    C = G * m + D
    X = np.zeros((C + 1, R), dtype=np.float32)
    X[:C] = rng.random((C, R))
    columns = rng.permutation(C).astype(np.int32)
    groups, pool = columns[: G * m].reshape(G, m).copy(), columns[G * m :]
    # These groups are some of a cell's, in another order.
    ids = rng.permutation(G + 2)[:G]
    known = np.full((G + 2, m, C + 1), np.nan, dtype=np.float32)
    fresh = np.zeros((G + 2, m), dtype=np.bool_)
    Q, released = np.empty((G, R), dtype=np.float32), np.empty((G + D, R), dtype=np.float32)
    rows, stale = np.empty((G, C + 1), dtype=np.float32), np.empty(G, dtype=np.int64)
    for _ in range(4):
        place = rng.integers(m, size=G)
        candidates = np.concatenate([groups[np.arange(G), place], pool])
        new, old = (np.empty((G, G + D), dtype=np.float32) for _ in range(2))
        product_gains(X, groups, n, place, candidates, released, Q, new)
        known_gains(X, groups, n, ids, place, candidates, known, fresh, stale, Q, rows, old)
        np.testing.assert_allclose(old, new, rtol=1e-5, atol=1e-5)
        # What a column adds beyond the n-th largest of the others.
        for g in range(G):
            others = np.delete(X[groups[g]].astype(np.float64), place[g], axis=0)
            nth = np.sort(others, axis=0)[-n]
            expected = np.maximum(X[candidates] - nth, 0).sum(axis=1)
            np.testing.assert_allclose(old[g], expected, rtol=1e-5, atol=1e-5)
        # A group that changes is no longer known at any place; the others stay.
        changed = int(rng.integers(G))
        other = int(rng.integers(D))
        groups[changed, 0], pool[other] = pool[other], groups[changed, 0]
        fresh[ids[changed]] = False


@given(
    values=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0, 1e6]) | st.floats(0, 1), min_size=1),
    data=st.data(),
)
def test_a_dual_threshold_lies_between_the_last_kept_and_the_next(values, data):
    count = data.draw(st.integers(1, len(values) + 2))
    vector = np.array(values)
    level = dual_threshold(vector, count, data.draw(st.floats(-1.0, 2e6), label="guess"))
    assert vector.tolist() == values, "the vector is left as it was"
    ordered = sorted(values, reverse=True)
    assert top_threshold(vector, count) == (ordered[count - 1] if count < len(values) else 0.0)
    if count >= len(values):
        assert level == 0.0
        return
    assert ordered[count] - 1e-9 <= level <= ordered[count - 1] + 1e-9
    kept = np.maximum(np.array(values) - level, 0.0).sum() + count * level
    assert kept == pytest.approx(sum(ordered[:count]), rel=1e-9, abs=1e-12)


def test_a_sweep_without_a_clock_has_one_size():
    size = _SweepSize(384, timed=False, groups=384)
    for pace in (1.0, 0.0, float("nan")):
        size.follow(pace)
        assert (size.block, size.call_ns) == (384, _CALL_NS)


def test_a_sweep_against_a_clock_grows_and_shrinks_in_its_bounds():
    size = _SweepSize(384, timed=True, groups=400)
    assert (size.block, size.call_ns) == (_FIRST_BLOCK, _FIRST_CALL_NS)
    size.follow(float("nan"))
    size.follow(0.05)
    assert (size.block, size.call_ns) == (_FIRST_BLOCK, _FIRST_CALL_NS), "a pace that is right"
    grown = []
    for _ in range(10):
        size.follow(0.001)
        grown.append((size.block, size.call_ns))
    # Calls grow to their length first, then blocks to the largest allowed.
    assert grown == sorted(grown) and grown[-1] == (384, _CALL_NS)
    assert all(block == _FIRST_BLOCK for block, call_ns in grown if call_ns < _CALL_NS)
    shrunk = []
    for _ in range(10):
        size.follow(0.5)
        shrunk.append((size.block, size.call_ns))
    assert shrunk == sorted(shrunk, reverse=True)
    assert shrunk[-1] == (_FIRST_BLOCK, _FIRST_CALL_NS)
    assert _SweepSize(16, timed=True, groups=400).block == 16


def test_blocks_of_many_groups_begin_larger():
    size = _SweepSize(512, timed=True, groups=1200)
    assert size.block == 200
    size.follow(0.5)
    assert size.block == 200
    assert _SweepSize(128, timed=True, groups=1200).block == 128
