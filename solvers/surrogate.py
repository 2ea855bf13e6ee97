"""A Gram matrix under which bare masks lose what they lose after compensation, on average."""

from __future__ import annotations

from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from gyroperm.problem import Problem
from gyroperm.solvers.search import Search

# Rows whose masks are averaged over.
_SAMPLES = 12
# The part of H itself: masks that are unlike those sampled must not look better than they are.
_BARE = 0.2
# What is done with an inverse takes so many times as long as to invert, or less.
_AFTERWARDS = 6.0


def surrogate_gram(
    problem: Problem, mask: NDArray[np.bool_], search: Search
) -> NDArray[np.float64]:
    """M, (C, C), with ``w_P M_PP w_P`` about what the best compensation leaves of a row's error.

    Once the kept weights are updated, pruning P costs ``w_P ([H^-1]_PP)^-1 w_P``. M is made of the
    mean of that matrix over the P of rows spread over the layer, each element over those that
    prune both of its columns; of what is positive semidefinite in it, since other masks would find
    the directions in which it is not; and of a part of H. Where that would take longer than the
    search has, M is H.
    """
    output = problem.output
    assert output is not None
    H = output.damped_gram
    begin = perf_counter()
    inverse = np.linalg.inv(output.gram.regular(output.damp))
    if not search.affords(_AFTERWARDS * (perf_counter() - begin)):
        return H
    mean = _mean(inverse, mask)
    values, vectors = np.linalg.eigh(mean)
    surrogate: NDArray[np.float64] = _BARE * H
    surrogate += (1.0 - _BARE) * ((vectors * np.maximum(values, 0.0)) @ vectors.T)
    return surrogate


def _mean(inverse: NDArray[np.floating], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The mean over rows of ``([H^-1]_PP)^-1``, symmetric."""
    sums = np.zeros_like(inverse)
    counts = np.zeros_like(inverse)
    for r in np.unique(np.linspace(0, len(mask) - 1, _SAMPLES).astype(int)):
        P = np.flatnonzero(~mask[r])
        if len(P):
            at = np.ix_(P, P)
            sums[at] += np.linalg.inv(inverse[at])
            counts[at] += 1.0
    mean = sums / np.maximum(counts, 1.0)
    # Columns that no sampled row prunes: as if all others made up for them.
    bare = np.diagonal(counts) == 0
    mean[bare, bare] = 1.0 / np.diagonal(inverse)[bare]
    symmetric: NDArray[np.float64] = (mean + mean.T) / 2
    return symmetric
