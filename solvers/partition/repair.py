"""Better partitions by solving parts of one anew: those groups whose columns pay too much."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gyroperm.solvers.partition.closing import Closing
from gyroperm.solvers.partition.diving import dive
from gyroperm.solvers.partition.instance import Instance
from gyroperm.solvers.partition.pool import Pool
from gyroperm.solvers.partition.pricing import all_prices
from gyroperm.solvers.partition.relaxation import Clock, relax

# Columns of a part, at first and after patience ran out: solving it takes tenths of a second.
# Where a group has more than a few columns there are too many groups to price, and parts are
# smaller.
_COLUMNS, _PRICED = (40, 56, 80), 2_000_000
# Groups of a part that are listed for branching, and the nodes that it may take.
_LISTED, _NODES = 5000, 40


def repair(
    instance: Instance,
    best: NDArray[np.int32],
    u: NDArray[np.float64],
    *,
    patience: int,
    clock: Clock,
    random: np.random.Generator,
    record: Callable[[float], None],
) -> NDArray[np.int32]:
    """Improve a partition by solving parts of it to optimality.

    With prices u that are (nearly) those of the relaxation, what the columns of a group pay
    beyond its value is its part in the gap: groups of a part are drawn by that.

    Parameters
    ----------
    instance : Instance
    best : ndarray of int32, shape (G, m)
    u : ndarray of float64, shape (C',)
    patience : int
        Parts in a row without improvement after which parts are made larger, and it ends in the
        end; with a time limit it goes on to that.
    clock : Clock
    random : Generator
    record : callable
        Called with the value after every part.

    Returns
    -------
    ndarray of int32, shape (G, m)
        Not worth less than ``best``.
    """
    best = best.copy()
    values = instance.values(best)
    sizes = _part_sizes(instance)
    stale = 0
    while sizes and not clock.stopped():
        if stale >= patience:
            stale = 0
            # Larger parts take longer, and find what smaller ones do not.
            if len(sizes) > 1 or math.isinf(clock.left):
                sizes.pop(0)
                continue
        size = sizes[0]
        excess = np.maximum(u[best].sum(axis=1) - values, 0.0)
        weights = excess + 0.1 * excess.mean() + 1e-300
        chosen = random.choice(len(best), size=size, replace=False, p=weights / weights.sum())
        columns = np.ascontiguousarray(best[chosen].reshape(-1))
        part = instance.part(columns)
        groups = columns[_solve(part, clock)]
        new = instance.values(groups)
        stale += 1
        if math.fsum(new) > math.fsum(values[chosen]) * (1.0 + 1e-12):
            best[chosen], values[chosen] = groups, new
            stale = 0
        record(math.fsum(values))
        if size == len(best):
            break
    return best


def _part_sizes(instance: Instance) -> list[int]:
    """The groups of a part: few, then more."""
    sizes = []
    for columns in _COLUMNS:
        size = min(instance.groups, max(2, columns // instance.m))
        while size > 1 and math.comb(size * instance.m, instance.m) > _PRICED:
            size -= 1
        if size > 1 and size not in sizes:
            sizes.append(size)
    return sizes


def _solve(part: Instance, clock: Clock) -> NDArray[np.int32]:
    """The best partition of a small instance, or one that is not worse than as it lies."""
    start = part.as_it_lies
    pool = Pool(start, part.values(start), part.shares(start))
    certificate = relax(part, pool, threads=1, clock=clock)
    if certificate is None:
        return start
    gap = certificate.bound - math.fsum(part.values(start))
    if gap <= 1e-12 * certificate.bound:
        return start
    prices = all_prices(
        part, certificate.u, threshold=-gap, capacity=_LISTED, threads=1, stopped=clock.stopped
    )
    if prices is None:
        return start
    # Where there are too many, those of the relaxation's pool are enough to find a better one.
    groups = prices.groups if prices.complete else pool.groups
    closing = Closing(part, groups, start, certificate.bound, certificate.u)
    closing.run(clock, lambda value: None, _NODES)
    return closing.best


def follow(
    instance: Instance,
    pool: Pool,
    best: NDArray[np.int32],
    u: NDArray[np.float64],
    *,
    patience: int,
    clock: Clock,
    random: np.random.Generator,
    record: Callable[[float], None],
) -> NDArray[np.int32]:
    """The best partition that the relaxation leads to: a dive, repaired.

    Parameters
    ----------
    instance : Instance
    pool : Pool
        The relaxation, solved at least nearly; of no use afterwards.
    best : ndarray of int32, shape (G, m)
        The best so far; what is returned is not worth less.
    u : ndarray of float64, shape (C',)
        Its prices.
    patience, clock, random, record
        See :func:`repair`.
    """
    found = dive(instance, pool, clock)
    if found is not None:
        value, known = (math.fsum(instance.values(groups)) for groups in (found, best))
        record(max(value, known))
        best = found if value > known else best
    best = np.ascontiguousarray(best)
    best = repair(instance, best, u, patience=patience, clock=clock, random=random, record=record)
    return np.sort(best, axis=1)
