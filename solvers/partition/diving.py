"""A good partition from the relaxation: fix groups, solve what is left, fix more."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gyroperm.solvers.partition.instance import Instance
from gyroperm.solvers.partition.master import Master
from gyroperm.solvers.partition.pricing import local_prices
from gyroperm.solvers.partition.relaxation import STARTS, Clock, floor_cost, spread

# Groups that a dive begins with, those of the largest reduced costs, and its rounds of column
# generation after each fixing.
_POOL, _ROUNDS = 3000, 6
# A group of at least this share is fixed together with others.
_SURE = 0.95
# The part of the time that a dive may take. Solving what is left gets quicker as it shrinks: on
# average it takes this part of what it takes now.
_PART, _AVERAGE = 0.85, 0.5


def dive(
    instance: Instance, groups: NDArray[np.int32], u: NDArray[np.float64], clock: Clock
) -> NDArray[np.int32] | None:
    """A partition that follows the relaxation; None if time is up before it is one.

    The group of the largest share is fixed, with all that are nearly whole; the relaxation over
    the other columns is solved again, with new groups by local search; and so on. Where that
    would take too long, several are fixed at a time.

    Parameters
    ----------
    instance : Instance
    groups : ndarray of int32, shape (k, m)
        Some to begin with, ascending each.
    u : ndarray of float64, shape (C',)
        Prices of the columns.
    clock : Clock
    """
    costs = instance.values(groups) - u[groups].sum(axis=1)
    pool = np.ascontiguousarray(groups[np.argsort(-costs, kind="stable")[:_POOL]])
    left = np.arange(len(instance.columns))
    fixed: list[NDArray[np.int32]] = []
    end = (1.0 - _PART) * clock.left
    at_once = 1
    while len(left):
        begin = clock.left
        rest = Instance(np.ascontiguousarray(instance.columns[left]), instance.n, instance.m)
        place = np.full(len(instance.columns), -1, dtype=np.int32)
        place[left] = np.arange(len(left), dtype=np.int32)
        mine = place[pool]
        mine = np.ascontiguousarray(mine[(mine >= 0).all(axis=1)])
        chosen, known = _fix(rest, mine, at_once, clock)
        if chosen is None:
            return None
        ids = left.astype(np.int32)
        fixed.append(ids[chosen])
        pool = ids[known]
        left = np.delete(left, chosen.reshape(-1))
        if math.isfinite(begin):
            needed = _AVERAGE * (begin - clock.left) * len(left) / instance.m
            at_once = math.ceil(needed / max(clock.left - end, 1e-3))
    return np.concatenate(fixed)


def _fix(
    rest: Instance, groups: NDArray[np.int32], at_once: int, clock: Clock
) -> tuple[NDArray[np.int32] | None, NDArray[np.int32]]:
    """Groups to fix, and all that are known, in the numbering of the columns that are left.

    So many are fixed at least, and all that are nearly whole.
    """
    C = len(rest.columns)
    master = Master(C, rest.m)
    groups = np.concatenate([groups, rest.as_it_lies])
    master.add(groups, rest.values(groups))
    relaxed = None
    for _ in range(_ROUNDS):
        relaxed = master.solve(clock.left)
        if relaxed is None:
            return None, groups
        u = relaxed.duals.u
        costs = master.values - u[master.groups].sum(axis=1)
        starts = master.groups[np.argsort(-costs, kind="stable")[:STARTS]]
        floor = floor_cost(master)
        found, gains = local_prices(rest, u, starts, floor, clock.stopped)
        if not master.add(*spread(master, found, rest.values(found), gains)):
            break
    assert relaxed is not None
    x = relaxed.x
    taken = np.zeros(C, dtype=np.bool_)
    chosen: list[NDArray[np.int32]] = []
    for i in np.argsort(-x, kind="stable").tolist():
        if len(chosen) >= at_once and x[i] < _SURE:
            break
        group = master.groups[i]
        if not taken[group].any():
            taken[group] = True
            chosen.append(group)
    return np.stack(chosen), master.groups
