"""Plain N:M solved to proven optimality: column generation, fixing by reduced cost, branching."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gyroperm.arguments import checked_integer, is_number
from gyroperm.arrangement import Arrangement
from gyroperm.problem import Problem
from gyroperm.solvers import registry
from gyroperm.solvers.identity import identity_arrangement
from gyroperm.solvers.matching import solve_by_matching
from gyroperm.solvers.partition.instance import Instance, scaled
from gyroperm.solvers.partition.proof import BRANCHING, Proof, prove
from gyroperm.solvers.partition.relaxation import Clock
from gyroperm.solvers.registry import register
from gyroperm.solvers.search import Search
from gyroperm.solvers.two_level_exact import solve_two_level

#: How optima other than by column generation are proven, as ``Solution.bound_kind`` says it.
MATCHING, ENUMERATION = "matching", "enumeration"


@dataclass(frozen=True)
class ExactOptions:
    """Options of :func:`solve`.

    Attributes
    ----------
    start : str
        The method that finds the solution to begin with.
    start_share : float
        Its share of a time limit or a number of rounds, in (0, 1).
    max_groups : int
        The most groups that are listed when it is known which of them could be in a better
        solution. Each takes some 100 bytes. Where there are more, nothing is proven optimal,
        and a warning says how many there are.
    """

    start: str = "auto"
    start_share: float = 0.3
    max_groups: int = 1_000_000

    def __post_init__(self) -> None:
        if not isinstance(self.start, str) or registry.get(self.start).name == "exact":
            raise ValueError(f"start must name another method, got {self.start!r}")
        share = self.start_share
        if not is_number(share) or not 0 < share < 1:
            raise ValueError(f"start_share must be a number in (0, 1), got {share!r}")
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
    method = registry.get(options.start)
    first = search.part(options.start_share)
    arrangement = method.solve(first, method.make_options(None))
    search.record(first.best)
    return _solve_tiles(search, options, arrangement)


def _proven(search: Search, found: tuple[Arrangement, float], kind: str) -> Arrangement:
    arrangement, bound = found
    search.prove(bound, kind)
    return arrangement


def _solve_tiles(search: Search, options: ExactOptions, start: Arrangement) -> Arrangement:
    """Every tile, which has all columns in an order of its own, on its own."""
    problem = search.problem
    saliency, _ = scaled(problem.saliency)
    instances = [
        Instance.of_tile(saliency, rows, groups.reshape(-1), problem.pattern.n, problem.pattern.m)
        for rows, groups in zip(start.tile_rows, start.groups, strict=True)
    ]
    values = [math.fsum(instance.values(_as_they_lie(instance))) for instance in instances]

    def record(value: float, others: float) -> None:
        search.record(others + value)

    proofs: list[Proof] = []
    groups = []
    for t, instance in enumerate(instances):
        others = math.fsum(values[:t]) + math.fsum(values[t + 1 :])
        proof = prove(
            instance,
            [_as_they_lie(instance)],
            branch=True,
            max_groups=options.max_groups,
            threads=search.threads,
            clock=Clock(search.seconds_left / (len(instances) - t), search.stopped),
            random=search.random(t),
            record=partial(record, others=others),
        )
        if proof.left > options.max_groups and proof.bound > proof.value * (1.0 + 1e-12):
            warnings.warn(
                f"{proof.left} groups of columns could be in a better solution, which is more "
                f"than max_groups={options.max_groups}: the optimum is not proven",
                RuntimeWarning,
                stacklevel=2,
            )
        values[t] = proof.value
        proofs.append(proof)
        groups.append(start.groups[t].reshape(-1)[proof.best])
    # The best is recorded even if nothing else was.
    search.improve(math.fsum(values))
    kinds = {proof.kind for proof in proofs}
    search.prove(
        math.fsum(proof.bound for proof in proofs),
        BRANCHING if BRANCHING in kinds else proofs[0].kind,
    )
    return _arranged(problem, start, groups)


def _as_they_lie(instance: Instance) -> NDArray[np.int32]:
    """The partition whose columns the instance was made of, in their order."""
    return np.arange(len(instance.columns), dtype=np.int32).reshape(-1, instance.m)


def _arranged(problem: Problem, start: Arrangement, groups: list[NDArray[np.int32]]) -> Arrangement:
    order = np.stack([g.reshape(-1) for g in groups])
    return Arrangement(start.tile_rows, tuple(groups), order[0] if problem.orders == 1 else order)
