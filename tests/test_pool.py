"""The relaxation over a pool of groups, against GLOP's."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gyroperm.solvers.kernels.simplex import invert, refine
from gyroperm.solvers.partition.instance import Instance
from gyroperm.solvers.partition.master import Master
from gyroperm.solvers.partition.pool import Pool


def never():
    return False


def drawn(seed, columns, m, k, rows=6, ties=False):
    """An instance, and groups of it at random."""
    random = np.random.default_rng(seed)
    S = (
        random.integers(0, 3, (columns, rows)).astype(float)
        if ties
        else random.random((columns, rows))
    )
    groups = [np.sort(random.choice(columns, m, replace=False)) for _ in range(k)]
    return Instance(S, 1, m), np.array(groups, dtype=np.int32).reshape(k, m)


def pool_of(instance, groups):
    start = instance.as_it_lies
    pool = Pool(start, instance.values(start), instance.shares(start))
    pool.add(groups, instance.values(groups))
    return pool


def by_glop(pool):
    master = Master(int(pool.groups.max()) + 1, pool.groups.shape[1])
    master.add(np.sort(pool.groups, axis=1), pool.values)
    master.allow(~pool.barred)
    return master.solve(60.0).value


def check(pool, relaxed, value):
    """The prices pay for every group, the shares cover every column, and both are worth as much."""
    assert math.fsum(relaxed.u) == pytest.approx(value, rel=1e-9)
    assert pool.costs(relaxed.u)[~pool.barred].max() <= 1e-8 * max(1.0, value)
    covered = np.zeros(len(relaxed.u))
    np.add.at(covered, pool.groups, relaxed.x[:, None])
    # More than once by what keeps pivots from going around.
    np.testing.assert_allclose(covered, 1.0, atol=2e-2)


@pytest.mark.parametrize("ties", [False, True])
@given(
    seed=st.integers(0, 10**6), size=st.integers(2, 8), m=st.integers(2, 4), k=st.integers(0, 60)
)
def test_it_is_solved_as_glop_solves_it(ties, seed, size, m, k):
    instance, groups = drawn(seed, size * m, m, k, ties=ties)
    pool = pool_of(instance, groups)
    relaxed = pool.solve(never)
    check(pool, relaxed, by_glop(pool))


@given(seed=st.integers(0, 10**6))
def test_groups_that_are_added_later_count(seed):
    instance, groups = drawn(seed, 24, 3, 80)
    pool = pool_of(instance, groups[:30])
    first = math.fsum(pool.solve(never).u)
    pool.add(groups[30:], instance.values(groups[30:]))
    relaxed = pool.solve(never)
    assert math.fsum(relaxed.u) >= first * (1.0 - 1e-9)
    check(pool, relaxed, by_glop(pool))


@given(seed=st.integers(0, 10**6))
def test_barred_groups_have_no_share(seed):
    instance, groups = drawn(seed, 24, 3, 80)
    pool = pool_of(instance, groups)
    x = pool.solve(never).x
    # All but one group of those that hold its columns, and a cover of the others.
    chosen = int(np.argmax(x))
    taken = np.zeros(24, dtype=bool)
    taken[pool.groups[chosen]] = True
    rest = np.flatnonzero(~taken).astype(np.int32).reshape(-1, 3)
    pool.add(rest, instance.values(rest))
    pool.bar(taken, np.array([chosen]))
    relaxed = pool.solve(never)
    assert not relaxed.x[pool.barred].any() or relaxed.x[pool.barred].max() < 1e-2
    assert relaxed.x[chosen] == pytest.approx(1.0, abs=1e-2)
    check(pool, relaxed, by_glop(pool))


def test_a_group_is_known_in_any_order_of_its_columns():
    instance, _ = drawn(0, 12, 4, 0)
    pool = pool_of(instance, np.zeros((0, 4), dtype=np.int32))
    same = np.array([[3, 2, 1, 0], [0, 1, 2, 4], [4, 2, 1, 0]], dtype=np.int32)
    assert pool.unknown(same).tolist() == [1]
    assert pool.add(same, instance.values(same)) == 1
    assert pool.add(same, instance.values(same)) == 0
    assert len(pool.groups) == 4


def test_the_best_are_added_until_every_column_has_some():
    instance, _ = drawn(0, 12, 3, 0)
    pool = pool_of(instance, np.zeros((0, 3), dtype=np.int32))
    every = np.array(list(combinations(range(12), 3)), dtype=np.int32)
    values = instance.values(every)
    new = pool.unknown(every)
    assert pool.add_best(every, values, values, 2) < len(new)
    counts = np.bincount(pool.groups[4:].reshape(-1), minlength=12)
    assert counts.min() == 2
    # The best of all is there, whichever columns it has.
    best = every[new[np.argmax(values[new])]]
    assert not len(pool.unknown(best[None]))


@pytest.mark.parametrize("spoilt", ["basis", "inverse"])
def test_a_basis_that_rounding_spoilt_is_given_up(spoilt):
    instance, groups = drawn(0, 48, 4, 400)
    pool = pool_of(instance, groups)
    expected = math.fsum(pool_of(instance, groups).solve(never).u)
    assert pool.solve(never, settled=False) is not None
    if spoilt == "basis":
        # The same group twice: nothing inverts that, whatever the inverse says.
        held = np.flatnonzero(pool._basis >= 0)
        pool._basis[held[1]] = pool._basis[held[0]]
    else:
        pool._inverse += 0.5
    pool.bar(np.zeros(48, dtype=bool), np.zeros(0, dtype=np.intp))
    assert math.fsum(pool.solve(never).u) == pytest.approx(expected, rel=1e-9)


def test_a_basis_that_is_spoilt_again_and_again_is_no_answer():
    instance, groups = drawn(0, 48, 4, 400)
    pool = pool_of(instance, groups)
    for _ in range(5):
        pool.solve(never, settled=False)
        held = np.flatnonzero(pool._basis >= 0)
        pool._basis[held[1]] = pool._basis[held[0]]
        pool.bar(np.zeros(48, dtype=bool), np.zeros(0, dtype=np.intp))
    assert pool.solve(never) is None


@given(seed=st.integers(0, 10**6))
def test_spares_may_be_in_use_until_it_is_settled(seed):
    instance, groups = drawn(seed, 24, 3, 80)
    pool = pool_of(instance, groups)
    first = pool.solve(never, settled=False)
    # Spares cover at a price that columns without them would not reach: never below the optimum.
    assert math.fsum(first.u) >= by_glop(pool) * (1.0 - 1e-9)
    while pool.settle():
        pool.solve(never, settled=False)
    check(pool, pool.solve(never), by_glop(pool))


def test_it_stops_when_it_is_told():
    instance, groups = drawn(0, 200, 4, 3000)
    assert pool_of(instance, groups).solve(lambda: True) is None


def test_no_saliency_is_solved():
    start = np.arange(8, dtype=np.int32).reshape(2, 4)
    pool = Pool(start, np.zeros(2), np.zeros(8))
    relaxed = pool.solve(never)
    assert relaxed.u.sum() == pytest.approx(0.0, abs=1e-200)


def test_a_basis_is_inverted():
    groups = np.array([[0, 1], [1, 2], [2, 3]], dtype=np.int32)
    basis = np.array([0, -4, 1, 2], dtype=np.int32)
    inverse = np.empty((4, 4))
    assert invert(groups, basis, inverse)
    B = np.zeros((4, 4))
    for position, group in ((0, 0), (2, 1), (3, 2)):
        B[groups[group], position] = 1.0
    B[3, 1] = 1.0
    np.testing.assert_allclose(inverse.T @ B, np.eye(4), atol=1e-12)
    x, u, b = np.empty(4), np.empty(4), np.array([1.0, 2.0, 3.0, 4.0])
    worth = np.array([1.0, -1.0, 2.0, 0.5])
    # A little off is mended by refinement.
    inverse += 1e-6 * np.random.default_rng(0).standard_normal((4, 4))
    assert refine(groups, worth, basis, inverse, b, x, u) < 1e-10
    np.testing.assert_allclose(B @ x, b, atol=1e-10)
    np.testing.assert_allclose(u @ B, worth, atol=1e-10)
    assert not invert(groups, np.array([0, 0, 1, 2], dtype=np.int32), inverse)
