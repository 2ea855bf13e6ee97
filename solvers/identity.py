"""No permutation: what the pattern keeps of the matrix as it lies."""

from __future__ import annotations

from gyroperm.arrangement import Arrangement
from gyroperm.problem import Problem
from gyroperm.solvers.registry import NoOptions, register
from gyroperm.solvers.search import Search
from gyroperm.solvers.vectors import (
    choose_vectors,
    columns_as_they_lie,
    rows_as_they_lie,
    vector_scores,
)


def identity_arrangement(problem: Problem) -> Arrangement:
    """Rows in tiles as they lie, vectors by their sums, kept columns ascending in groups of m.

    Equal sums keep the earlier column. Every measure of a permutation is relative to this.
    """
    tile_rows = rows_as_they_lie(problem)
    order = columns_as_they_lie(problem) if problem.pattern.shared_order else None
    if problem.pattern.is_plain:
        # All columns of a tile are kept as they lie; no score is needed.
        chosen = [columns_as_they_lie(problem).reshape(-1, problem.padded_columns)[0]]
        chosen *= problem.tiles
    else:
        chosen = choose_vectors(problem, vector_scores(problem.saliency, tile_rows), order)
    m = problem.pattern.m
    return Arrangement(tile_rows, tuple(c.reshape(-1, m) for c in chosen), order)


@register("identity", options=NoOptions)
def solve(search: Search, options: NoOptions) -> Arrangement:
    """No permutation: rows and columns as they lie."""
    return identity_arrangement(search.problem)
