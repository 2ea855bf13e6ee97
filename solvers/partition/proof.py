"""How good a partition can be at most, and better ones found on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gyroperm.solvers.partition.closing import Closing
from gyroperm.solvers.partition.instance import Instance
from gyroperm.solvers.partition.pool import Pool
from gyroperm.solvers.partition.pricing import Prices, all_prices
from gyroperm.solvers.partition.relaxation import Certificate, Clock, relax
from gyroperm.solvers.partition.repair import follow

#: How a bound was proven: by prices of the columns, which pay for every group there is;
RELAXATION = "relaxation"
#: or by branching over the few groups that such prices leave.
BRANCHING = "branching"

# How often the gap is halved when it leaves too many groups to list.
_HALVINGS = 8
# Of the time after the relaxation, what goes into a better partition first; and after how many
# parts in a row without improvement that ends.
_SHARE, _PATIENCE = 0.3, 20
# That is left out where no more than so many groups can be in a better one, which is looked at
# where there are few enough groups to price them all in hundredths of a second.
_FEW, _SOON_PRICED = 5000, 2_000_000


@dataclass(frozen=True, eq=False)
class Proof:
    """What is known of a partition problem, in the scale of its instance.

    Attributes
    ----------
    bound : float
        No partition is worth more; infinite where nothing was proven.
    kind : str
        How it was proven: ``"relaxation"`` or ``"branching"``.
    best : ndarray of int32, shape (G, m)
        The best partition known,
    value : float
        and what it is worth.
    left : int
        The groups that could be in a better partition; 0 if they were not counted.
    """

    bound: float
    kind: str
    best: NDArray[np.int32]
    value: float
    left: int = 0


def prove(
    instance: Instance,
    starts: list[NDArray[np.int32]],
    *,
    branch: bool,
    max_groups: int,
    threads: int,
    clock: Clock,
    random: np.random.Generator,
    record: Callable[[float], None] = lambda value: None,
) -> Proof:
    """Bound a partition problem from above, and look for better partitions.

    Parameters
    ----------
    instance : Instance
    starts : list of ndarray of int32, shape (G, m)
        Partitions, one at least.
    branch : bool
        Whether to branch after the relaxation, as long as the clock allows.
    max_groups : int
        The most groups that are listed for it. Where more could be in a better partition, the
        bound is improved only as far as fewer suffice.
    threads : int
    clock : Clock
    random : Generator
    record : callable
        Called every round with the best value.
    """
    starts = [np.sort(groups, axis=1).astype(np.int32) for groups in starts]
    worth = [math.fsum(instance.values(groups)) for groups in starts]
    best, value = starts[int(np.argmax(worth))], max(worth)
    pool = Pool(best, instance.values(best), instance.shares(best))
    for groups in starts:
        pool.add(groups, instance.values(groups))
    certificate = relax(instance, pool, threads=threads, clock=clock, record=lambda: record(value))
    if certificate is None:
        return Proof(math.inf, RELAXATION, best, value)
    relaxed = Proof(max(certificate.bound, value), RELAXATION, best, value)
    if not branch or clock.stopped() or certificate.bound <= value:
        return relaxed
    if not _is_nearly_closed(instance, certificate, value, clock):
        best = follow(
            instance,
            pool,
            best,
            certificate.u,
            patience=_PATIENCE,
            clock=Clock(_SHARE * clock.left, clock.stopped),
            random=random,
            record=record,
        )
    value = math.fsum(instance.values(best))
    relaxed = replace(relaxed, best=best, value=value)
    prices, depth, left = _listed(instance, certificate, value, max_groups, threads, clock)
    if prices is None:
        return replace(relaxed, left=left)
    closing = Closing(
        instance,
        np.sort(np.concatenate([prices.groups, best[_missing(prices.groups, best)]]), axis=1),
        best,
        certificate.bound,
        certificate.u,
        cutoff=certificate.bound - depth,
    )
    closing.run(clock, record)
    kind = BRANCHING if closing.bound < certificate.bound else RELAXATION
    return Proof(max(closing.bound, closing.value), kind, closing.best, closing.value, left)


def _is_nearly_closed(
    instance: Instance, certificate: Certificate, value: float, clock: Clock
) -> bool:
    """Whether so few groups could be in a better partition that branching finds it as fast."""
    if instance.group_count > _SOON_PRICED:
        return False
    gap = certificate.bound - value
    prices = all_prices(
        instance,
        certificate.u,
        threshold=-gap,
        capacity=_FEW,
        threads=1,
        stopped=clock.stopped,
    )
    return prices is not None and prices.complete


def _listed(
    instance: Instance,
    certificate: Certificate,
    value: float,
    max_groups: int,
    threads: int,
    clock: Clock,
) -> tuple[Prices | None, float, int]:
    """The groups of partitions worth more than the bound less some depth: the gap, or less.

    Also the depth, and how many groups the whole gap leaves (0 if they were not counted). None
    if the time does not suffice.
    """
    gap = depth = certificate.bound - value
    left = 0
    for _ in range(_HALVINGS):
        begin = time.perf_counter()
        prices = all_prices(
            instance,
            certificate.u,
            # A little lower, for the rounding of the bound itself.
            threshold=-depth - 1e-12 * certificate.bound,
            capacity=max_groups,
            threads=threads,
            stopped=clock.stopped,
        )
        if prices is None:
            return None, depth, left
        left = left or prices.above
        if prices.complete:
            return prices, min(gap, depth), left
        depth /= 2.0
        if clock.left < 2.0 * (time.perf_counter() - begin):
            break
    return None, depth, left


def _missing(groups: NDArray[np.int32], wanted: NDArray[np.int32]) -> NDArray[np.intp]:
    """The places of the wanted groups that are not among the others."""
    known = {group.tobytes() for group in np.ascontiguousarray(groups)}
    places = [i for i, g in enumerate(np.ascontiguousarray(wanted)) if g.tobytes() not in known]
    return np.array(places, dtype=np.intp)
