"""Linear assignment and balanced transport by OR-Tools."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from ortools.graph.python import linear_sum_assignment, min_cost_flow

from gyroperm.memory import require

# OR-Tools takes integer costs, and refuses costs whose range times (k + 1) overflows 64 bits.
# Gains are scaled so that their range is 2^30: ten times finer than float32 gains are exact.
_RANGE_BITS = 30

# Nothing interrupts OR-Tools. In seconds a pair, about twice what it took for thousands of items.
_ASSIGNMENT_SECONDS = 3e-7
_TRANSPORT_SECONDS = 1e-6

# Costs, ends and copies of them, in OR-Tools and on the way there.
_BYTES_A_PAIR = 64


def assignment_seconds(size: int) -> float:
    """What :func:`max_assignment` of so many items takes, about, when it is slow."""
    return _ASSIGNMENT_SECONDS * size * size


def transport_seconds(items: int, bins: int) -> float:
    """What :func:`max_transport` takes, about, when it is slow."""
    return _TRANSPORT_SECONDS * items * bins


@lru_cache(maxsize=8)
def _all_pairs(size: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    nodes = np.arange(size, dtype=np.int32)
    return np.repeat(nodes, size), np.tile(nodes, size)


def _integer_costs(gain: NDArray[np.floating]) -> NDArray[np.int64]:
    low, high = float(gain.min()), float(gain.max())
    if not np.isfinite(high - low):
        raise ValueError(f"gain must be finite, got values from {low} to {high}")
    # A power of two, so that scaled gains give the same assignment.
    scale = 2.0 ** (_RANGE_BITS - np.frexp(high - low)[1])
    return np.rint((high - gain.astype(np.float64)) * scale).astype(np.int64)


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
    MemoryError
        If it would not fit.
    """
    size = len(gain)
    if gain.shape != (size, size):
        raise ValueError(f"gain must be square, got shape {gain.shape}")
    cost = _integer_costs(gain)
    if not cost.any():
        return np.arange(size, dtype=np.int32)
    require(_BYTES_A_PAIR * size * size, f"an assignment of {size} columns or rows")
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


def max_transport(
    gain: NDArray[np.floating], capacity: int, *, choices: NDArray[np.integer] | None = None
) -> NDArray[np.int32]:
    """Put each item into a bin, ``capacity`` items in each, for the largest total gain.

    A minimum-cost flow from items to bins; an assignment to ``capacity`` copies of every bin has
    the same optimum but so many times the arcs, and took 15 times as long for 768 items in 48
    bins.

    Parameters
    ----------
    gain : ndarray of float, shape (items, bins)
        Finite; ``items`` must be ``bins * capacity``. Optimal to within
        ``items * range * 2**-30``, as :func:`max_assignment`.
    capacity : int
    choices : ndarray of int, shape (items, k), optional
        The only bins each item may go to; all by default. Some solution must exist.

    Returns
    -------
    ndarray of int32, shape (items,)
        The bin of each item.

    Raises
    ------
    ValueError
        If gains are not finite, or items do not fill the bins.
    RuntimeError
        If OR-Tools refuses the problem; names the range of the scaled costs.
    """
    items, bins = gain.shape
    if items != bins * capacity:
        raise ValueError(f"{items} items do not fill {bins} bins of {capacity}")
    cost = _integer_costs(gain)
    if choices is None:
        choices = np.broadcast_to(np.arange(bins), (items, bins))
    heads = choices.reshape(-1).astype(np.int64)
    tails = np.repeat(np.arange(items), choices.shape[1])
    flow = min_cost_flow.SimpleMinCostFlow()
    arcs = flow.add_arcs_with_capacity_and_unit_cost(
        tails, items + heads, np.ones(len(heads), dtype=np.int64), cost[tails, heads]
    )
    supplies = np.concatenate([np.ones(items), np.full(bins, -capacity)]).astype(np.int64)
    flow.set_nodes_supplies(np.arange(items + bins), supplies)
    status = flow.solve()
    if status != flow.OPTIMAL:
        raise RuntimeError(
            f"OR-Tools answered {status} to a flow of {items} items into {bins} bins with costs "
            f"from 0 to {cost.max()}"
        )
    used = flow.flows(arcs) > 0
    result = np.empty(items, dtype=np.int32)
    result[tails[used]] = heads[used]
    return result
