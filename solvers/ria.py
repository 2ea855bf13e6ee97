"""RIA's channel permutation as published: deal the columns out, then assign them by place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gyroperm.arguments import checked_integer
from gyroperm.arrangement import Arrangement
from gyroperm.problem import Problem
from gyroperm.solvers.columns import groups_value, tile_columns
from gyroperm.solvers.identity import identity_arrangement
from gyroperm.solvers.registry import register
from gyroperm.solvers.search import Search
from gyroperm.solvers.slots import reassign_place
from gyroperm.solvers.vectors import rows_as_they_lie, vector_scores


@dataclass(frozen=True)
class RiaOptions:
    """Options of :func:`solve`.

    Attributes
    ----------
    passes : int or None
        How often every place of the groups is assigned anew; 1 as published. 0 or None goes on
        until a pass brings nothing.
    blocks : int
        Blocks of consecutive groups within which columns are assigned; 1 as published. The
        authors' fast variant has 4 to 16.

    Raises
    ------
    ValueError
        If a number is no integer, ``passes`` is negative or ``blocks`` not positive.
    """

    passes: int | None = 1
    blocks: int = 1

    def __post_init__(self) -> None:
        passes = 0 if self.passes is None else checked_integer("passes", self.passes, 0)
        object.__setattr__(self, "passes", passes)
        object.__setattr__(self, "blocks", checked_integer("blocks", self.blocks, 1))


@register("ria", options=RiaOptions)
def solve(search: Search, options: RiaOptions) -> Arrangement:
    """RIA's channel permutation (Zhang et al., 2024): deal columns out, assign them by place.

    Heuristic channel allocation: columns sorted by their summed saliency are cut into m parts,
    and part k fills place k of every group, in turns forwards and backwards. Then, place by
    place, the columns there are released from all groups and put back by one linear assignment
    where N:M keeps the most.

    A round, in the sense of stopping criteria, is the assignment of one place.

    Parameters
    ----------
    search : Search
        With ``initial``, columns are not dealt out: its order is improved.
    options : RiaOptions

    Returns
    -------
    Arrangement

    Raises
    ------
    ValueError
        If the pattern is not plain N:M.

    Notes
    -----
    The allocation, the order of places and the objective are the published ones, for whatever
    saliency is given (the paper's own is relative importance times activations). Gains come
    from a matrix product of relu instead of a sort for every pair, which is the same number.
    Only a placement that keeps more is taken.

    References
    ----------
    Zhang, Bai, Lin, Zhao, Hou and Cannistraci, Plug-and-Play: An Efficient Post-training
    Pruning Method for Large Language Models, ICLR 2024.
    """
    problem = search.problem
    if not problem.pattern.is_plain:
        raise ValueError(
            f"method 'ria' orders the columns of plain N:M, not of {problem.pattern.name}; it "
            f"takes Pattern.nm(n, m)"
        )
    if search.stopped():
        return search.initial or identity_arrangement(problem)
    tile_rows = rows_as_they_lie(problem)
    if search.initial is not None:
        groups = [_numbered(problem, g) for g in search.initial.groups]
    else:
        groups = [_dealt(problem, sums) for sums in _column_sums(problem, tile_rows)]
    _assign(search, options, tile_rows, groups)
    return _arrangement(problem, tile_rows, groups)


def _column_sums(problem: Problem, tile_rows: NDArray[np.int32]) -> NDArray[np.float64]:
    """The importance of each column to each order, virtual ones last, (orders, C')."""
    sums = np.zeros((problem.tiles, problem.padded_columns))
    sums[:, : problem.columns] = vector_scores(problem.search_saliency, tile_rows)
    return sums


def _dealt(problem: Problem, sums: NDArray[np.float64]) -> NDArray[np.int64]:
    """Columns from the least to the most important, dealt out forwards and backwards, (G, m)."""
    parts = np.argsort(sums, kind="stable").reshape(problem.pattern.m, -1)
    parts[1::2] = parts[1::2, ::-1]
    return np.minimum(np.ascontiguousarray(parts.T), problem.columns)


def _numbered(problem: Problem, groups: NDArray[np.int32]) -> NDArray[np.int64]:
    """Groups whose virtual columns are the one beyond the last."""
    return np.where(groups < 0, problem.columns, groups).astype(np.int64)


def _arrangement(
    problem: Problem, tile_rows: NDArray[np.int32], groups: list[NDArray[np.int64]]
) -> Arrangement:
    columns = [np.where(g == problem.columns, -1, g).astype(np.int32) for g in groups]
    order = np.stack([c.reshape(-1) for c in columns])
    return Arrangement(tile_rows, tuple(columns), order if problem.orders > 1 else order[0])


def _assign(
    search: Search,
    options: RiaOptions,
    tile_rows: NDArray[np.int32],
    groups: list[NDArray[np.int64]],
) -> None:
    """Assign place after place of every order's groups, in place."""
    n, m = search.problem.pattern.n, search.problem.pattern.m
    X = [tile_columns(search.problem.search_saliency, rows) for rows in tile_rows]
    value = sum(groups_value(x, g.astype(np.int32), n) for x, g in zip(X, groups, strict=True))
    search.improve(value)
    passes = 0
    # Where all columns of a group are kept, no place is better than another.
    gained = float(n < m)
    while gained > 0.0 and (not options.passes or passes < options.passes):
        gained = 0.0
        for place in range(m):
            for part, mine in _blocks(groups, options.blocks):
                more = reassign_place(search, X[part], mine, place, n)
                if more is None:
                    return
                gained += more
                value += more
            search.record(value)
        passes += 1


def _blocks(
    groups: list[NDArray[np.int64]], blocks: int
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Consecutive groups of one order, as views that write through, with the order's number."""
    for order, mine in enumerate(groups):
        for block in np.array_split(mine, min(blocks, len(mine))):
            yield order, block
