"""Linear assignment by OR-Tools."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from ortools.graph.python import linear_sum_assignment

# OR-Tools takes integer costs, and refuses costs whose range times (k + 1) overflows 64 bits.
# Gains are scaled so that their range is 2^30: ten times finer than float32 gains are exact.
_RANGE_BITS = 30


@lru_cache(maxsize=8)
def _all_pairs(size: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    nodes = np.arange(size, dtype=np.int32)
    return np.repeat(nodes, size), np.tile(nodes, size)


def max_assignment(gain: NDArray[np.floating]) -> NDArray[np.int32]:
    """Assign each item to a slot of its own so that the total gain is the largest possible.

    Parameters
    ----------
    gain : ndarray of float, shape (k, k)
        ``gain[item, slot]``, finite. Optimal to within ``k * range * 2**-30``, where range is
        the difference of the largest and the smallest gain.

    Returns
    -------
    ndarray of int32, shape (k,)
        The slot of each item.

    Raises
    ------
    ValueError
        If the gains are not square or not finite.
    RuntimeError
        If OR-Tools refuses the problem; names the range of the scaled costs.
    """
    size = len(gain)
    if gain.shape != (size, size):
        raise ValueError(f"gain must be square, got shape {gain.shape}")
    low, high = float(gain.min()), float(gain.max())
    if not np.isfinite(high - low):
        raise ValueError(f"gain must be finite, got values from {low} to {high}")
    if high == low:
        return np.arange(size, dtype=np.int32)
    # A power of two, so that scaled gains give the same assignment.
    scale = 2.0 ** (_RANGE_BITS - np.frexp(high - low)[1])
    cost = np.rint((high - gain.astype(np.float64)) * scale).astype(np.int64)
    left, right = _all_pairs(size)
    solver = linear_sum_assignment.SimpleLinearSumAssignment()
    solver.add_arcs_with_cost(left, right, cost.reshape(-1))
    status = solver.solve()
    if status != solver.OPTIMAL:
        raise RuntimeError(
            f"OR-Tools answered {status} to an assignment of {size} items with costs from 0 to "
            f"{cost.max()}"
        )
    mates = [solver.right_mate(item) for item in range(size)]
    return np.array(mates, dtype=np.int32)
