"""The linear relaxation over all groups, by column generation, and the bound it proves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gyroperm.solvers.partition.instance import Instance
from gyroperm.solvers.partition.pool import Pool
from gyroperm.solvers.partition.pricing import (
    Prices,
    all_prices,
    local_prices,
    pricing_seconds,
)

# New groups of a round: until every column has so many, the best first.
PER_COLUMN = 4
# Groups that local search starts from: those of the largest reduced cost, mostly the basis.
STARTS = 1500
# Groups that an exhaustive pricing may list before it gives only the best of each column.
_LISTED = 20_000
# More groups than this nobody prices, whatever the time.
_REACH = 10**13
# How much is set aside for an exhaustive pricing, by its estimate and by the last one's time.
_BY_ESTIMATE, _BY_LAST = 1.6, 1.2


@dataclass(frozen=True, eq=False)
class Certificate:
    """A bound that duals prove, in the scale of the instance.

    Attributes
    ----------
    bound : float
        No partition is worth more.
    u : ndarray of float64, shape (C',)
        Prices of the columns, not all high enough for every group.
    converged : bool
        Whether no group is left that is worth more than its columns pay.
    """

    bound: float
    u: NDArray[np.float64]
    converged: bool


class Clock:
    """How much time is left, and whether someone wants to stop.

    Parameters
    ----------
    seconds : float
        From now; may be infinite.
    stopped : callable
        The other reason to stop.
    """

    def __init__(self, seconds: float, stopped: Callable[[], bool]) -> None:
        self._end = time.perf_counter() + seconds
        self._stopped = stopped

    @property
    def left(self) -> float:
        """Seconds; 0 once stopped."""
        return 0.0 if self._stopped() else max(0.0, self._end - time.perf_counter())

    def stopped(self) -> bool:
        """Whether nothing is left."""
        return self.left <= 0.0


def certified(u: NDArray[np.float64], best: NDArray[np.float64], m: int) -> float:
    """The bound that prices prove, rounded outward.

    With ``best[j]`` at least the largest reduced cost of a group that holds column j, prices
    ``u[j] + max(0, best[j]) / m`` pay for every group: the columns of group g gain at least
    ``m * cost(g) / m``. What all columns pay then bounds every partition. It is never above the
    better known ``sum u + (C' / m) * max(0, max best)``.
    """
    paid = math.fsum(u) + math.fsum(np.maximum(best, 0.0)) / m
    return paid + 1e-14 * math.fsum(np.abs(u))


def relax(
    instance: Instance,
    pool: Pool,
    *,
    threads: int,
    clock: Clock,
    record: Callable[[], None] = lambda: None,
) -> Certificate | None:
    """The bound of the linear relaxation over all groups, or as much as the time allows.

    Column generation: groups that are worth more than their columns pay are found by local
    search around those in use, and by pricing all groups there are when that finds none. Only
    the latter proves anything; time for it is set aside.

    Parameters
    ----------
    instance : Instance
    pool : Pool
        Grows.
    threads : int
    clock : Clock
    record : callable
        Called every round.

    Returns
    -------
    Certificate or None
        None if the time does not suffice for one exhaustive pricing.
    """
    if clock.stopped() or instance.group_count > _REACH:
        return None
    reserve = _BY_ESTIMATE * pricing_seconds(instance, threads)
    if reserve > clock.left:
        return None
    certificate: Certificate | None = None
    while clock.left > reserve:
        u = generate(instance, pool, clock, reserve, record, threads)
        if u is None:
            break
        begin = time.perf_counter()
        prices = all_prices(
            instance,
            u,
            threshold=pool.floor,
            capacity=_LISTED,
            threads=threads,
            stopped=clock.stopped,
        )
        reserve = _BY_LAST * (time.perf_counter() - begin)
        record()
        if prices is None:
            break
        groups = np.ascontiguousarray(prices.groups)
        values = instance.values(groups)
        costs = values - u[groups].sum(axis=1)
        best = _best_costs(prices, groups, costs, pool.floor)
        bound = certified(u, best, instance.m)
        worth = costs > pool.floor
        added = pool.add_best(groups[worth], values[worth], costs[worth], PER_COLUMN)
        if certificate is None or bound < certificate.bound:
            certificate = Certificate(bound, u, added == 0)
        if added == 0:
            break
    return certificate


def generate(
    instance: Instance,
    pool: Pool,
    clock: Clock,
    reserve: float,
    record: Callable[[], None],
    threads: int = 1,
) -> NDArray[np.float64] | None:
    """Add groups until local search finds none, or so little time is left; the prices then.

    None if the time did not suffice for any.
    """

    def over() -> bool:
        return clock.left <= reserve

    u = None
    while not over():
        relaxed = pool.solve(over, settled=False)
        record()
        if relaxed is None:
            break
        u = relaxed.u
        if not extend(instance, pool, u, over, threads) and not pool.settle():
            break
    return u


def extend(
    instance: Instance,
    pool: Pool,
    u: NDArray[np.float64],
    stopped: Callable[[], bool],
    threads: int,
) -> int:
    """Add groups that are worth more than they pay, by local search; returns how many."""
    starts = pool.groups[np.argsort(-pool.costs(u), kind="stable")[:STARTS]]
    groups, costs = local_prices(instance, u, starts, pool.floor, stopped, threads)
    return pool.add_best(groups, instance.values(groups), costs, PER_COLUMN)


def _best_costs(
    prices: Prices, groups: NDArray[np.int32], costs: NDArray[np.float64], floor: float
) -> NDArray[np.float64]:
    """The largest reduced cost of each column's groups, in float64 where they are all listed."""
    if not prices.complete:
        return prices.best
    best = np.full(len(prices.best), floor)
    np.maximum.at(best, groups, costs[:, None])
    return np.minimum(best, prices.best)
