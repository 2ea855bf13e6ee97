"""Plain N:M by column generation: partitions that follow the linear relaxation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np

from gyroperm.arguments import checked_integer, is_number
from gyroperm.arrangement import Arrangement
from gyroperm.solvers import registry
from gyroperm.solvers.identity import identity_arrangement
from gyroperm.solvers.partition.instance import Instance, scaled
from gyroperm.solvers.partition.master import Master
from gyroperm.solvers.partition.relaxation import Clock, generate
from gyroperm.solvers.partition.repair import follow
from gyroperm.solvers.registry import register
from gyroperm.solvers.search import Search


@dataclass(frozen=True)
class DiveOptions:
    """Options of :func:`solve`.

    Attributes
    ----------
    start : str
        The method that finds the solution to begin with.
    start_share : float
        Its share of a time limit or a number of rounds, in (0, 1).
    patience : int
        Parts in a row that are solved anew without improvement, after which it ends.
    """

    start: str = "assign"
    start_share: float = 0.1
    patience: int = 60

    def __post_init__(self) -> None:
        if not isinstance(self.start, str) or registry.get(self.start).name in ("dive", "exact"):
            raise ValueError(f"start must name another method, got {self.start!r}")
        share = self.start_share
        if not is_number(share) or not 0 < share < 1:
            raise ValueError(f"start_share must be a number in (0, 1), got {share!r}")
        object.__setattr__(self, "patience", checked_integer("patience", self.patience, 1))


@register("dive", options=DiveOptions)
def solve(search: Search, options: DiveOptions) -> Arrangement:
    """Column generation and diving for plain N:M, m above 2; best for up to some 500 columns.

    The linear relaxation of the set partition is solved over groups that local search finds;
    groups of the largest share are fixed and the rest solved again; then parts of the partition,
    those whose columns pay the most beyond what their groups are worth, are solved to optimality
    by turns. A round is a relaxation or a part that was solved.
    """
    problem = search.problem
    pattern = problem.pattern
    if not pattern.is_plain or pattern.m < 3:
        raise ValueError(
            f"method 'dive' does not solve {pattern}; it takes plain n:m with m above 2"
        )
    if search.stopped() or pattern.n == pattern.m:
        return search.initial or identity_arrangement(problem)
    method = registry.get(options.start)
    first = search.part(options.start_share)
    start = method.solve(first, method.make_options(None))
    search.record(first.best)
    saliency, _ = scaled(problem.saliency)
    instances = [
        Instance.of_tile(saliency, rows, groups.reshape(-1), pattern.n, pattern.m)
        for rows, groups in zip(start.tile_rows, start.groups, strict=True)
    ]
    lying = [
        np.arange(len(instance.columns), dtype=np.int32).reshape(-1, pattern.m)
        for instance in instances
    ]
    values = [
        math.fsum(instance.values(groups))
        for instance, groups in zip(instances, lying, strict=True)
    ]

    def record(value: float, others: float) -> None:
        search.record(others + value)

    groups = []
    for t, instance in enumerate(instances):
        clock = Clock(search.seconds_left / (len(instances) - t), search.stopped)
        report = partial(record, others=math.fsum(values[:t]) + math.fsum(values[t + 1 :]))
        best = lying[t]
        master = Master(len(instance.columns), pattern.m)
        master.add(best, instance.values(best))
        u = generate(instance, master, clock, 0.0, partial(report, values[t]))
        if u is not None:
            best = follow(
                instance,
                master,
                best,
                u,
                patience=options.patience,
                clock=clock,
                random=search.random(t),
                record=report,
            )
        values[t] = math.fsum(instance.values(best))
        groups.append(start.groups[t].reshape(-1)[best])
    order = np.stack([g.reshape(-1) for g in groups])
    return Arrangement(start.tile_rows, tuple(groups), order[0] if problem.orders == 1 else order)
