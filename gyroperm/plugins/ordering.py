"""Orders of a model's channels that make its N:M masks good, for toolkits that prune afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

import gyroperm
from gyroperm.models.graph import CouplingGraph
from gyroperm.models.sites import Axis
from gyroperm.pattern import Pattern


def searched_orders(
    graph: CouplingGraph,
    saliencies: Mapping[str, NDArray[np.floating]],
    pattern: Pattern,
    **search: Any,
) -> dict[str, NDArray[np.int64]]:
    """For each site that may move, the order under which plain N:M masks keep the most.

    The columns of all weights that share the site are stacked and searched together. Sites do not
    depend on each other: what one reorders in another's weights is rows, or other groups of m.

    Parameters
    ----------
    graph : CouplingGraph
    saliencies : mapping of str to ndarray, shape (R, C) or (R, C, kh, kw)
        By the weight's name; the weights that will be pruned, none other.
    pattern : Pattern
        Plain N:M.
    search
        Further arguments of :func:`gyroperm.solve`, such as ``normalize=True`` to make layers of
        different scale count alike.

    Returns
    -------
    dict of str to ndarray of int64, shape (size,)
        Orders for :func:`gyroperm.models.permute`. A site is missing if no weight's groups of m
        lie within it.

    Raises
    ------
    ValueError
        If the pattern is another than plain N:M.
    """
    if not pattern.is_plain:
        raise ValueError(f"kernels that read reordered channels need plain N:M, got {pattern}")
    orders = {}
    for site in graph.free:
        stacked = [
            _columns(saliencies[axis.tensor], axis)
            for axis in site.axes
            if axis.dim == 1 and axis.tensor in saliencies and _holds_groups(axis, pattern.m)
        ]
        if stacked:
            solution = gyroperm.solve(stacked, saliency=stacked, pattern=pattern, **search)
            orders[site.name] = np.asarray(solution.col_order, dtype=np.int64)
    return orders


def _holds_groups(axis: Axis, m: int) -> bool:
    """Whether the axis is made of whole groups of m consecutive positions."""
    size, first = len(axis.members), axis.members[0]
    consecutive = np.array_equal(axis.members, first + np.arange(size)[:, None])
    return consecutive and size % m == 0 and not (first % m).any()


def _columns(saliency: NDArray[np.floating], axis: Axis) -> NDArray[np.floating]:
    """A site's columns of a weight, (rows, size); copies and kernel positions become rows."""
    rows = saliency if axis.rows is None else saliency[slice(*axis.rows)]
    columns = np.moveaxis(rows[:, axis.members], 1, -1)
    return np.ascontiguousarray(columns.reshape(-1, len(axis.members)))
