"""Plain N:M by column generation: partitions that follow the linear relaxation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from gyroperm.arguments import checked_integer
from gyroperm.arrangement import Arrangement
from gyroperm.solvers.identity import identity_arrangement
from gyroperm.solvers.partition.master import Master
from gyroperm.solvers.partition.relaxation import generate
from gyroperm.solvers.partition.repair import follow
from gyroperm.solvers.partition.tiles import StartOptions, Tiles
from gyroperm.solvers.registry import register
from gyroperm.solvers.search import Search

# The part of the time that is left for what follows the relaxation.
_RESERVED = 0.5


@dataclass(frozen=True)
class DiveOptions(StartOptions):
    """Options of :func:`solve`.

    Attributes
    ----------
    start, start_share
        See :class:`~gyroperm.solvers.partition.tiles.StartOptions`.
    patience : int
        Parts in a row that are solved anew without improvement, after which it ends.
    """

    barred: ClassVar[tuple[str, ...]] = ("dive", "exact")

    start_share: float = 0.1
    patience: int = 60

    def __post_init__(self) -> None:
        super().__post_init__()
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
    tiles = Tiles(search, options)
    for t, instance in enumerate(tiles.instances):
        clock, record, best = tiles.clock(t), tiles.recorder(t), instance.as_it_lies
        values = instance.values(best)
        master = Master(len(instance.columns), pattern.m)
        master.add(best, values)
        # Diving along prices that are not yet those of the relaxation beats not diving.
        reserve = _RESERVED * clock.left if math.isfinite(clock.left) else 0.0
        u = generate(instance, master, clock, reserve, partial(record, math.fsum(values)))
        if u is not None:
            best = follow(
                instance,
                master,
                best,
                u,
                patience=options.patience,
                clock=clock,
                random=search.random(t),
                record=record,
            )
            tiles.replace(t, best)
    return tiles.arrangement()
