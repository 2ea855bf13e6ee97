"""Proven upper bounds of what a pattern can keep."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gyroperm import measures
from gyroperm.arguments import checked_duration, checked_threads
from gyroperm.arrangement import Arrangement
from gyroperm.arrays import check_finite, check_non_negative, to_numpy
from gyroperm.problem import Problem
from gyroperm.solution import UNSTRUCTURED, Solution

#: Seconds that ``solve(..., bound=True)`` spends at most.
DEFAULT_SECONDS = 60.0

# A list of this many groups, and what is derived from it, takes some 100 MB.
_MAX_GROUPS = 1_000_000
# No machine prices more terms than this in a second on one thread.
_TERMS_PER_SECOND = 1e11


@dataclass(frozen=True, eq=False)
class TileBounds:
    """How good the column orders of a solution's tiles are, each for itself.

    Attributes
    ----------
    retained : ndarray of float64, shape (T,)
        The saliency that each tile keeps.
    bound : ndarray of float64, shape (T,)
        What no other grouping of the same columns keeps in the same rows; proven.
    kind : tuple of str
        How each bound was proven; see :class:`~gyroperm.solution.Solution`.
    """

    retained: NDArray[np.float64]
    bound: NDArray[np.float64]
    kind: tuple[str, ...]

    @property
    def gap(self) -> NDArray[np.float64]:
        """``(bound - retained) / bound`` of each tile, at least 0; 0 where the bound is 0."""
        bound = np.where(self.bound > 0.0, self.bound, 1.0)
        return np.maximum(0.0, (self.bound - self.retained) / bound)


def tile_bounds(
    solution: Solution, saliency: Any, *, seconds: float = 60.0, threads: int | None = None
) -> TileBounds:
    """Bound what each tile of a solution could keep under any grouping of its columns.

    The rows of the tile and the columns it keeps are taken as they are: what is proven is how
    good the *order* of those columns is, not how well rows and columns were chosen. For plain
    N:M, whose one tile has all rows and columns, it is a bound of the whole problem.

    Parameters
    ----------
    solution : Solution
        Of plain N:M, HiNM or TVW.
    saliency : array_like, or a list of them
        What the solution was found for, in the weights' shape.
    seconds : float
        For all tiles together, each with an equal share of what is left. A tile that the time
        does not suffice for has the bound of unstructured pruning of its rows.
    threads : int, optional
        Every processor this process may use by default.

    Returns
    -------
    TileBounds

    Raises
    ------
    ValueError
        If the solution is of a windowed pattern, whose tiles share an order; if the saliency
        does not have the shape of the weights.
    """
    from gyroperm.solvers.partition.instance import scaled

    pattern = solution.pattern
    if pattern.window is not None:
        raise ValueError(
            f"the tiles of {pattern} share one column order and have no bound each: a solution "
            f"of plain N:M, HiNM or TVW is needed"
        )
    seconds = checked_duration("seconds", seconds)
    given = list(saliency) if solution.view.listed else [saliency]
    arrays = [to_numpy(s, "saliency") for s in given]
    shapes = tuple(a.shape for a in arrays)
    if shapes != solution.view.shapes:
        raise ValueError(f"saliency must have shapes {solution.view.shapes}, got {shapes}")
    for array in arrays:
        check_finite(array, "saliency")
        check_non_negative(array, "saliency")
    warm_up()
    matrix, exponent = scaled(solution.view.matrix(arrays))
    tiles = _prove_tiles(
        matrix,
        solution.arrangement,
        pattern.n,
        seconds=seconds,
        branch=True,
        threads=checked_threads(threads),
        stopped=lambda: False,
    )
    return TileBounds(
        np.ldexp([tile.value for tile in tiles], exponent),
        np.ldexp([tile.bound for tile in tiles], exponent),
        tuple(tile.kind for tile in tiles),
    )


def prove(
    problem: Problem,
    arrangement: Arrangement,
    *,
    seconds: float,
    branch: bool,
    threads: int,
    stopped: Callable[[], bool],
) -> tuple[float, str] | None:
    """A bound of what any arrangement retains, and how it was proven.

    Parameters
    ----------
    problem : Problem
    arrangement : Arrangement
        A good one, to start from.
    seconds : float
        The most time that this may take, compilation excluded.
    branch : bool
        Whether to use the time that is left after the relaxation for branching.
    threads : int
    stopped : callable
        Whether someone wants it to end.

    Returns
    -------
    (float, str) or None
        None for patterns other than plain N:M, of which no better bound is known than that of
        unstructured pruning, and where the time does not suffice.
    """
    from gyroperm.solvers.partition.instance import scaled
    from gyroperm.solvers.partition.proof import BRANCHING, RELAXATION

    pattern = problem.pattern
    if not pattern.is_plain or pattern.n == pattern.m:
        return None
    matrix, exponent = scaled(problem.saliency)
    tiles = _prove_tiles(
        matrix,
        arrangement,
        pattern.n,
        seconds=seconds,
        branch=branch,
        threads=threads,
        stopped=stopped,
    )
    kinds = {tile.kind for tile in tiles} - {UNSTRUCTURED}
    if not kinds:
        return None
    with np.errstate(over="ignore"):
        bound = float(np.ldexp(math.fsum(tile.bound for tile in tiles), exponent))
    return bound, BRANCHING if BRANCHING in kinds else RELAXATION


@dataclass(frozen=True)
class _Tile:
    """What is known of a tile, in the scale of the search."""

    value: float
    bound: float
    kind: str


def _prove_tiles(
    saliency: NDArray[np.floating],
    arrangement: Arrangement,
    n: int,
    *,
    seconds: float,
    branch: bool,
    threads: int,
    stopped: Callable[[], bool],
) -> list[_Tile]:
    from gyroperm.solvers.partition.relaxation import Clock

    clock = Clock(seconds, stopped)
    tiles = []
    for t, (rows, groups) in enumerate(zip(arrangement.tile_rows, arrangement.groups, strict=True)):
        share = Clock(clock.left / (len(arrangement.groups) - t), stopped)
        tile = _prove_tile(saliency, rows, groups, n, share, branch, threads)
        tiles.append(tile)
    return tiles


def _prove_tile(
    saliency: NDArray[np.floating],
    rows: NDArray[np.int32],
    groups: NDArray[np.int32],
    n: int,
    clock: Any,
    branch: bool,
    threads: int,
) -> _Tile:
    from gyroperm.solvers.partition.instance import Instance
    from gyroperm.solvers.partition.proof import prove as prove_partition

    m = groups.shape[1]
    instance = Instance.of_tile(saliency, rows, groups.reshape(-1), n, m)
    start = instance.as_it_lies
    value = math.fsum(instance.values(start))
    # As many as the groups keep of each row, wherever they are.
    limit = measures.unstructured_by_row(instance.columns.T, min(n * len(groups), groups.size))
    plain = _Tile(value, max(value, limit * (1.0 + measures.ROUNDING)), UNSTRUCTURED)
    terms = float(instance.group_count) * instance.columns.shape[1]
    if n == m or terms > _TERMS_PER_SECOND * threads * clock.left:
        return plain
    proof = prove_partition(
        instance,
        [start],
        branch=branch,
        max_groups=_MAX_GROUPS,
        threads=threads,
        clock=clock,
        random=np.random.default_rng(0),
    )
    bound = proof.bound * (1.0 + measures.ROUNDING)
    return _Tile(value, bound, proof.kind) if bound < plain.bound else plain


_warm = False


def warm_up() -> None:
    """Compile what bounds need, on a small problem, so that no clock sees it."""
    global _warm
    if not _warm:
        saliency = np.random.default_rng(0).random((6, 12))
        groups = np.arange(12, dtype=np.int32).reshape(-1, 4)
        arrangement = Arrangement(np.arange(6, dtype=np.int32)[None], (groups,))
        _prove_tiles(
            saliency,
            arrangement,
            2,
            seconds=60.0,
            branch=True,
            threads=1,
            stopped=lambda: False,
        )
        _warm = True
