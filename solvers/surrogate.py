"""A Gram matrix under which bare masks lose what they lose after compensation, on average."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gyroperm.problem import Problem

# Rows whose masks are averaged over.
_SAMPLES = 12


def surrogate_gram(problem: Problem, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """M, (C, C), with ``w_P M_PP w_P`` about what the best compensation leaves of a row's error.

    Once the kept weights are updated, pruning P costs ``w_P ([H^-1]_PP)^-1 w_P``. M is the mean
    of that matrix over the P of rows spread over the layer, each element over those that prune
    both of its columns. It need not be semidefinite: descents end all the same.
    """
    output = problem.output
    assert output is not None
    inverse = np.linalg.inv(output.gram.regular(output.damp))
    sums = np.zeros_like(inverse)
    counts = np.zeros_like(inverse)
    rows = np.unique(np.linspace(0, problem.rows - 1, _SAMPLES).astype(int))
    for r in rows:
        P = np.flatnonzero(~mask[r])
        if len(P):
            at = np.ix_(P, P)
            sums[at] += np.linalg.inv(inverse[at])
            counts[at] += 1.0
    mean = sums / np.maximum(counts, 1.0)
    # Columns that no sampled row prunes: as if all others made up for them.
    bare = np.diagonal(counts) == 0
    mean[bare, bare] = 1.0 / np.diagonal(inverse)[bare]
    surrogate: NDArray[np.float64] = (mean + mean.T) / 2
    return surrogate
