"""A good partition from the relaxation: fix groups, solve what is left, fix more."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gyroperm.solvers.partition.instance import Instance
from gyroperm.solvers.partition.pool import Pool, Relaxed
from gyroperm.solvers.partition.pricing import local_prices
from gyroperm.solvers.partition.relaxation import PER_COLUMN, STARTS, Clock

# Rounds of column generation after each fixing.
_ROUNDS = 3
# A group of at least this share is fixed together with others.
_SURE = 0.7
# A dive fixes groups in so many steps, or a few more.
_STEPS = 32
# The part of the time that a dive may take. Solving what is left gets quicker as it shrinks: on
# average it takes this part of what it takes now.
_PART, _AVERAGE = 0.85, 0.5


def dive(
    instance: Instance, pool: Pool, clock: Clock, threads: int = 1
) -> NDArray[np.int32] | None:
    """A partition that follows the relaxation; None if time is up before it is one.

    Some groups of the largest shares are fixed, with all that are nearly whole; the relaxation
    over the other columns is solved again, with new groups by local search; and so on. Where that
    would take too long, more are fixed at a time.

    Parameters
    ----------
    instance : Instance
    pool : Pool
        The relaxation, solved at least nearly. Of no use afterwards: what was not followed is
        barred.
    clock : Clock
    """
    left = np.arange(len(instance.columns), dtype=np.int32)
    fixed: list[NDArray[np.int32]] = []
    end = (1.0 - _PART) * clock.left
    least = at_once = -(-instance.groups // _STEPS)
    while len(left):
        begin = clock.left
        relaxed = _solve(instance, pool, left, clock, threads)
        if relaxed is None:
            return None
        chosen = _largest(pool, relaxed.x, left, at_once)
        fixed.append(pool.groups[chosen])
        taken = np.zeros(len(instance.columns), dtype=np.bool_)
        taken[pool.groups[chosen]] = True
        left = left[~taken[left]]
        # So that there is a cover of what is left.
        rest = left.reshape(-1, instance.m)
        pool.add(rest, instance.values(rest))
        pool.bar(taken, chosen)
        if math.isfinite(begin):
            needed = _AVERAGE * (begin - clock.left) * len(left) / instance.m
            at_once = max(least, math.ceil(needed / max(clock.left - end, 1e-3)))
    return np.concatenate(fixed)


def _solve(
    instance: Instance, pool: Pool, left: NDArray[np.int32], clock: Clock, threads: int
) -> Relaxed | None:
    """The relaxation over the columns that are left, with new groups of them."""
    rest = instance.part(left)
    place = np.full(len(instance.columns), -1, dtype=np.int32)
    place[left] = np.arange(len(left), dtype=np.int32)
    relaxed = None
    for _ in range(_ROUNDS):
        relaxed = pool.solve(clock.stopped)
        if relaxed is None:
            return None
        u = relaxed.u
        free = np.flatnonzero(place[pool.groups[:, 0]] >= 0)
        free = free[~pool.barred[free]]
        costs = pool.costs(u)[free]
        starts = place[pool.groups[free[np.argsort(-costs, kind="stable")[:STARTS]]]]
        found, gains = local_prices(rest, u[left], starts, pool.floor, clock.stopped, threads)
        if not pool.add_best(left[found], rest.values(found), gains, PER_COLUMN):
            break
    return relaxed


def _largest(
    pool: Pool, x: NDArray[np.float64], left: NDArray[np.int32], at_once: int
) -> NDArray[np.intp]:
    """The places of the groups of the largest shares: so many, and all that are nearly whole."""
    free = np.zeros(int(pool.groups.max()) + 1, dtype=np.bool_)
    free[left] = True
    chosen: list[int] = []
    for i in np.argsort(-x, kind="stable").tolist():
        if len(chosen) >= at_once and x[i] < _SURE:
            break
        group = pool.groups[i]
        if free[group].all():
            free[group] = False
            chosen.append(i)
    return np.array(chosen, dtype=np.intp)
