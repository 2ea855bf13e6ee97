"""Orders of a model's channels that make its N:M masks good, for toolkits that prune afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gyroperm.arrays import to_numpy
from gyroperm.models.graph import CouplingGraph
from gyroperm.models.solutions import Searches
from gyroperm.models.stacks import search_sites
from gyroperm.pattern import Pattern


def searched_orders(
    graph: CouplingGraph,
    saliencies: Mapping[str, Any],
    pattern: Pattern,
    **search: Any,
) -> dict[str, NDArray[np.int64]]:
    """For each site that may move, the order under which plain N:M masks keep the most.

    As :func:`gyroperm.models.sparsify` with surgery does it: the columns of all weights that share
    a site are stacked and searched together, and weights that move along with them, but not in
    whole groups of m, are counted before an order is taken.

    Parameters
    ----------
    graph : CouplingGraph
    saliencies : mapping of str to array_like, shape (R, C) or (R, C, kh, kw)
        By the name of the weight in the graph; the weights that will be pruned, none other.
    pattern : Pattern
        Plain N:M.
    search
        How each search is made: ``method``, ``options``, ``stop``, ``time_limit``, ``seed``,
        ``threads`` of :func:`gyroperm.solve`.

    Returns
    -------
    dict of str to ndarray of int64, shape (size,)
        Orders for :func:`gyroperm.models.permute`. A site is missing if no weight's groups of m
        lie within it, or if its order would cost more than it brings.

    Raises
    ------
    ValueError
        If the pattern is another than plain N:M.
    """
    if not pattern.is_plain:
        raise ValueError(f"kernels that read reordered channels need plain N:M, got {pattern}")
    arrays = {name: to_numpy(one, f"the saliency of {name}") for name, one in saliencies.items()}
    weights = {
        name: _Scored(name, array, _groups(graph, name, len(array)))
        for name, array in arrays.items()
    }
    found, _ = search_sites(
        graph, weights, set(weights), arrays.__getitem__, Searches(pattern, **search)
    )
    return found.orders


@dataclass(frozen=True, eq=False)
class _Scored:
    """A weight of which no more is known than its saliency."""

    name: str
    saliency: NDArray[np.floating]
    groups: int
    input_dim: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        return self.saliency.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.saliency.dtype


def _groups(graph: CouplingGraph, name: str, rows: int) -> int:
    """The groups of a grouped convolution: each has rows, and inputs in an order, of its own."""
    axes = [axis for site in graph.sites for axis in site.axes if axis.tensor == name]
    blocks = [axis.rows[1] - axis.rows[0] for axis in axes if axis.dim == 1 and axis.rows]
    return rows // min(blocks, default=rows)
