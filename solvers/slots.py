"""Columns between groups, one place of every group at a time, by linear assignment."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gyroperm.solvers.assignment import assignment_seconds, max_assignment
from gyroperm.solvers.kernels.gain import relu_gain
from gyroperm.solvers.kernels.gyro import join_thresholds
from gyroperm.solvers.parallel import parallel_map
from gyroperm.solvers.search import Search

# Gains of this many terms together are worth several threads.
_TERMS_WORTH_THREADS = 1 << 20
# How the gains are cut, whatever the number of threads.
_GROUPS_PER_PIECE = 32

# An improvement below this fraction of the terms it is summed from is rounding.
_ROUNDING = 1e-12


def reassign_place(
    search: Search,
    X: NDArray[np.float32],
    groups: NDArray[np.int64],
    place: int,
    n: int,
) -> float | None:
    """Assign the columns at one place of all groups anew, in place, if that keeps more.

    Putting column x into a group of which the n-th largest of the others is q keeps
    ``sum_r max(0, x[r] - q[r])`` more, so one matrix product of relu gives every gain, and the
    assignment is the best of the G! ways to put the columns back.

    Parameters
    ----------
    search : Search
        Asked whether there is time; gives the threads.
    X : ndarray of float32, shape (C + 1, R)
        A column of the saliency a row; the last row, of zeros, stands for virtual columns.
    groups : ndarray of int64, shape (G, m)
        Rows of X, changed in place.
    place : int
    n : int
        How many of a group each row keeps, less than m.

    Returns
    -------
    float or None
        What is kept more, at least 0; None if there was no time.
    """
    size = len(groups)
    vacant = np.full(size, place, dtype=np.int64)
    released = X[groups[:, place]]
    thresholds = np.empty_like(released)
    gain = np.empty((size, size), dtype=np.float32)

    def score(begin: int) -> None:
        part = slice(begin, begin + _GROUPS_PER_PIECE)
        join_thresholds(X, groups[part], vacant[part], n, thresholds[part])
        relu_gain(released, thresholds[part], gain[part])

    pieces = range(0, size, _GROUPS_PER_PIECE)
    threads = search.threads if gain.size * X.shape[1] >= _TERMS_WORTH_THREADS else 1
    for first in range(0, len(pieces), 2 * threads):
        if search.stopped():
            return None
        parallel_map(score, pieces[first : first + 2 * threads], threads)
    if not search.affords(assignment_seconds(size)):
        return None
    to = max_assignment(gain.T)
    moved = np.flatnonzero(to != np.arange(size))
    before = _gained(released[moved], thresholds[moved])
    after = _gained(released[moved], thresholds[to[moved]])
    if not after - before > _ROUNDING * after:
        return 0.0
    groups[to, place] = groups[:, place].copy()
    return after - before


def _gained(joining: NDArray[np.float32], thresholds: NDArray[np.float32]) -> float:
    """What columns add to the groups they join, in float64."""
    total = 0.0
    for x, q in zip(joining, thresholds, strict=True):
        over = x.astype(np.float64)
        over -= q
        total += float(np.maximum(over, 0.0, out=over).sum())
    return total
