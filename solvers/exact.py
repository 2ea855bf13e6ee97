"""Plain N:M solved to proven optimality: column generation, fixing by reduced cost, branching."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import ClassVar

from gyroperm.arguments import checked_integer
from gyroperm.arrangement import Arrangement
from gyroperm.solvers.identity import identity_arrangement
from gyroperm.solvers.matching import solve_by_matching
from gyroperm.solvers.partition.proof import BRANCHING, Proof, prove
from gyroperm.solvers.partition.tiles import StartOptions, Tiles
from gyroperm.solvers.registry import register
from gyroperm.solvers.search import Search
from gyroperm.solvers.two_level_exact import solve_two_level

#: How optima other than by column generation are proven, as ``Solution.bound_kind`` says it.
MATCHING, ENUMERATION = "matching", "enumeration"

_START_SHARE = 0.1


@dataclass(frozen=True)
class ExactOptions(StartOptions):
    """Options of :func:`solve`.

    Attributes
    ----------
    start, start_share
        See :class:`~gyroperm.solvers.partition.tiles.StartOptions`; by default a tenth.
    max_groups : int
        The most groups that are listed when it is known which of them could be in a better
        solution. Each takes some 100 bytes. Where there are more, nothing is proven optimal,
        and a warning says how many there are.
    """

    barred: ClassVar[tuple[str, ...]] = ("exact",)

    max_groups: int = 1_000_000

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "max_groups", checked_integer("max_groups", self.max_groups, 1))


@register("exact", options=ExactOptions)
def solve(search: Search, options: ExactOptions) -> Arrangement:
    """Proven optimum: plain N:M to some 80 columns, 1:2 to 400, small two-level problems.

    The columns are partitioned into groups, whose values are known. The linear relaxation over
    all groups is solved by column generation; only groups whose reduced cost is within the gap
    between its value and the best solution can be in a better one; over those the optimum is
    proven by branching, with subset-row cuts. Without a time limit it runs until that is done. A
    round is a relaxation that was solved, or an exhaustive pricing.

    Plain 1:2 is a matching, see :func:`~gyroperm.solvers.matching.solve_by_matching`; two-level
    problems small enough to enumerate go to
    :func:`~gyroperm.solvers.two_level_exact.solve_two_level`. The options are for the rest.

    References
    ----------
    Ryan and Foster, An Integer Programming Approach to Scheduling, 1981. Jepsen, Petersen,
    Spoorendonk and Pisinger, Subset-Row Inequalities Applied to the Vehicle-Routing Problem with
    Time Windows, Operations Research 2008.
    """
    problem = search.problem
    pattern = problem.pattern
    if not pattern.is_plain:
        return _proven(search, solve_two_level(search), ENUMERATION)
    if pattern.m == 2 and pattern.n == 1:
        return _proven(search, solve_by_matching(search), MATCHING)
    if search.stopped():
        return search.initial or identity_arrangement(problem)
    if pattern.n == pattern.m:
        # Everything is kept.
        return search.initial or identity_arrangement(problem)
    return _solve_tiles(search, options)


def _proven(search: Search, found: tuple[Arrangement, float], kind: str) -> Arrangement:
    arrangement, bound = found
    search.prove(bound, kind)
    return arrangement


def _solve_tiles(search: Search, options: ExactOptions) -> Arrangement:
    """Every tile, which has all columns in an order of its own, on its own."""
    tiles = Tiles(search, options, options.start_share or _START_SHARE)
    proofs: list[Proof] = []
    for t, instance in enumerate(tiles.instances):
        proof = prove(
            instance,
            [instance.as_it_lies],
            branch=True,
            max_groups=options.max_groups,
            threads=search.threads,
            clock=tiles.clock(t, len(tiles.instances)),
            random=search.random(t),
            record=tiles.recorder(t),
        )
        if proof.left > options.max_groups and proof.bound > proof.value * (1.0 + 1e-12):
            warnings.warn(
                f"{proof.left} groups of columns could be in a better solution, which is more "
                f"than max_groups={options.max_groups}: the optimum is not proven",
                RuntimeWarning,
                stacklevel=2,
            )
        tiles.replace(t, slice(None), proof.best)
        proofs.append(proof)
    # The best is recorded even if nothing else was.
    search.improve(tiles.value)
    kinds = {proof.kind for proof in proofs}
    search.prove(
        math.fsum(proof.bound for proof in proofs),
        BRANCHING if BRANCHING in kinds else proofs[0].kind,
    )
    return tiles.arrangement()
