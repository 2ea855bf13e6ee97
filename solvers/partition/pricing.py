"""Groups that are worth more than they pay: found near good ones, or among all there are."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import comb

import numpy as np
from numpy.typing import NDArray

from gyroperm.solvers.kernels.pricing import price_exchanges, price_groups
from gyroperm.solvers.parallel import parallel_map
from gyroperm.solvers.partition.instance import Instance

# Local search among groups: how many are exchanged at a time, and for how many rounds.
_WIDTH, _ROUNDS = 1000, 4
# The terms of one call of the exhaustive kernel, and of the exchanges, which take longer for
# each: a tenth of a second.
_CALL_TERMS, _EXCHANGE_TERMS = 2e9, 2e8
# Half a unit in the last place of float32, a little more than that, and the kernel's slices.
_HALF_ULP, _SLICE = 1.001 * 2.0**-24, 512


def local_prices(
    instance: Instance,
    u: NDArray[np.float64],
    starts: NDArray[np.int32],
    floor: float,
    stopped: Callable[[], bool] = lambda: False,
    threads: int = 1,
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Groups of reduced cost above ``floor`` that local search finds from given groups.

    When ``stopped``, those found so far.

    Returns
    -------
    ndarray of int32, shape (k, m), ndarray of float64, shape (k,)
        Different groups, ascending each, and their reduced costs as float32 rounds them.
    """
    seen: set[bytes] = set()
    groups, costs = [], []
    current = np.ascontiguousarray(starts[:_WIDTH])
    for _ in range(_ROUNDS):
        if stopped():
            break
        cost, best = _exchanges(instance, u, current, stopped, threads)
        worth = cost > floor
        found, gains = np.sort(best[worth], axis=1), cost[worth]
        order = np.argsort(-gains, kind="stable")
        fresh = []
        for i in order.tolist():
            key = found[i].tobytes()
            if key not in seen:
                seen.add(key)
                fresh.append(i)
        if not fresh:
            break
        groups.append(found[fresh])
        costs.append(gains[fresh])
        current = np.ascontiguousarray(found[fresh[:_WIDTH]])
    if not groups:
        return np.zeros((0, instance.m), dtype=np.int32), np.zeros(0)
    return np.concatenate(groups), np.concatenate(costs)


def _exchanges(
    instance: Instance,
    u: NDArray[np.float64],
    groups: NDArray[np.int32],
    stopped: Callable[[], bool],
    threads: int,
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """The best exchange of each group and place, of no worth where it was stopped before."""
    costs = np.full(groups.shape, -np.inf)
    best = np.zeros((*groups.shape, instance.m), dtype=np.int32)
    step = max(1, int(_EXCHANGE_TERMS / (instance.m * instance.columns.size)))
    step = min(step, -(-len(groups) // threads))

    def run(first: int) -> None:
        if first and stopped():
            return
        part = slice(first, first + step)
        price_exchanges(instance.rounded_up, u, groups[part], instance.n, costs[part], best[part])

    parallel_map(run, range(0, len(groups), step), threads)
    return costs, best


@dataclass(frozen=True, eq=False)
class Prices:
    """What an exhaustive pricing found.

    Attributes
    ----------
    best : ndarray of float64, shape (C',)
        No group that holds the column has a larger reduced cost; proven.
    groups : ndarray of int32, shape (k, m)
        If ``complete``, every group whose reduced cost is above the threshold (and perhaps a few
        just below); else the best found of every column.
    above : int
        How many groups seemed to be above the threshold.
    complete : bool
        Whether ``groups`` holds them all.
    """

    best: NDArray[np.float64]
    groups: NDArray[np.int32]
    above: int
    complete: bool


def terms(instance: Instance) -> float:
    """The terms of an exhaustive pricing: its cost."""
    # What a group costs beyond its rows was measured to be that of some 100 of them.
    return float(instance.group_count) * (instance.columns.shape[1] + 100)


def all_prices(
    instance: Instance,
    u: NDArray[np.float64],
    *,
    threshold: float,
    capacity: int,
    threads: int,
    stopped: Callable[[], bool],
) -> Prices | None:
    """Price all groups there are; None if stopped before all were.

    Parameters
    ----------
    instance : Instance
    u : ndarray of float64, shape (C',)
        What the columns cost.
    threshold : float
        Groups of a larger reduced cost are listed,
    capacity : int
        as long as they are not more than these.
    threads : int
    stopped : callable
        Asked every tenth of a second or so, by any thread.
    """
    C, m = len(instance.columns), instance.m
    R = instance.columns.shape[1]
    # A term by itself and its way into the sum; or, of eight together, the sums of the larger of
    # each and of the thresholds, three additions deep, their difference, and its way into the sum.
    inflation = 1.0 + _HALF_ULP * (max(min(R, _SLICE) + R // _SLICE, R // 8 + 8) + 4)
    rounding = 4.0 * _HALF_ULP
    margins = rounding * instance.rounded_up.sum(axis=1, dtype=np.float64)
    # Sums in float64, of the prices among them, may be a little low.
    slack = 1e-13 * (float(np.abs(u).sum()) + float(instance.columns.sum()))
    counts: list[int] = []

    def run(call: tuple[NDArray[np.int64], int]) -> _Priced | None:
        if stopped():
            return None
        mine = np.full(C, -np.inf)
        champions = np.full((C, m), -1, dtype=np.int32)
        room = capacity if sum(counts) <= capacity else 0
        listed = np.empty((room, m), dtype=np.int32)
        count = price_groups(
            instance.rounded_up,
            u,
            instance.n,
            m,
            call[0],
            call[1],
            inflation,
            rounding,
            margins,
            threshold - slack,
            mine,
            champions,
            listed,
        )
        counts.append(count)
        return _Priced(mine, champions[champions[:, 0] >= 0], listed[:count].copy())

    calls = list(_calls(C, m, terms(instance)))
    done = [part for part in parallel_map(run, calls, threads) if part is not None]
    if len(done) < len(calls):
        return None
    best = np.max([part.best for part in done], axis=0) + slack
    above = sum(counts)
    if above <= capacity:
        return Prices(best, np.concatenate([part.listed for part in done]), above, True)
    return Prices(best, np.concatenate([part.champions for part in done]), above, False)


@dataclass(frozen=True, eq=False)
class _Priced:
    """A part of an exhaustive pricing; see :func:`price_groups`."""

    best: NDArray[np.float64]
    champions: NDArray[np.int32]
    listed: NDArray[np.int32]


def _calls(C: int, m: int, total: float) -> Iterator[tuple[NDArray[np.int64], int]]:
    """The beginnings of all groups, cut into runs of about equal work."""
    prefixes = comb(C, m - 2)
    runs = min(prefixes, max(1, int(total / _CALL_TERMS)))
    bounds = [prefixes * i // runs for i in range(runs + 1)]
    for begin, end in pairwise(bounds):
        yield _combination(begin, C, m - 2), end - begin


def _combination(rank: int, C: int, size: int) -> NDArray[np.int64]:
    """The combination of a rank in lexicographic order."""
    members = []
    least = 0
    for left in range(size, 0, -1):
        while (block := comb(C - least - 1, left - 1)) <= rank:
            rank -= block
            least += 1
        members.append(least)
        least += 1
    return np.array(members, dtype=np.int64)


def pricing_seconds(instance: Instance, threads: int) -> float:
    """How long an exhaustive pricing is going to take, from a small part of it."""
    if terms(instance) < _LITTLE:
        return terms(instance) / _SLOWEST
    C, m = len(instance.columns), instance.m
    u = np.zeros(C)
    size = m - 2
    work, spent = 0.0, 0.0
    begin = math.inf
    while spent < _PROBE_SECONDS:
        # Beginnings in the middle of the columns, with the columns behind to pair.
        start = np.arange(size, dtype=np.int64) + max(0, (C - size) // 4 - size)
        last = int(start[-1]) + 1 if size else 0
        price_groups(
            instance.rounded_up,
            u,
            instance.n,
            m,
            start,
            1,
            1.0,
            0.0,
            u,
            np.inf,
            np.full(C, -np.inf),
            np.empty((C, m), dtype=np.int32),
            np.empty((0, m), dtype=np.int32),
        )
        # The first call is not counted: the kernel may have to be loaded.
        if math.isinf(begin):
            begin = time.perf_counter()
        else:
            work += comb(C - last, 2)
            spent = time.perf_counter() - begin
    return spent * instance.group_count / work / threads


_PROBE_SECONDS = 0.02
# Less is not worth a probe: it takes a fifth of a second where so many terms a second are priced.
_LITTLE, _SLOWEST = 1e9, 5e9
