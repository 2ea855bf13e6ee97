"""Orders of coupled axes: all weights that share one are searched as one tall matrix."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gyroperm import measures
from gyroperm.models.graph import CouplingGraph
from gyroperm.models.sites import Axis, Site
from gyroperm.models.solutions import Searches

_Columns = NDArray[np.int64]

# Rows that are gathered at once.
_ROWS = 256


class Weight(Protocol):
    """What is asked of a weight: its name, and how its saliency lies."""

    @property
    def name(self) -> str:
        """By which its saliency is asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As (out, in, ...), where in are the channels of one group."""

    @property
    def groups(self) -> int:
        """Of a grouped convolution."""

    @property
    def input_dim(self) -> int:
        """The dimension of the stored tensor that is its input channels."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its saliency."""


#: From the name of a weight to its saliency, shape (out, in, ...).
SaliencyOf = Callable[[str], NDArray[np.floating]]


@dataclass(frozen=True)
class SiteResult:
    """What the search of one coupled order found.

    Attributes
    ----------
    name : str
        Of the site.
    size : int
        Elements that were ordered.
    layers : tuple of str
        Weights that were searched together.
    weights : int
        Entries of all their columns that move.
    retained, identity, unstructured : float
        Sums over them: with the order found, without permutation, and unstructured by row.
    seconds : float
    method : str
    kept : bool
        Whether the order is applied; not where weights that could not be searched would lose more
        by it than those that were searched gain.
    """

    name: str
    size: int
    layers: tuple[str, ...]
    weights: int
    retained: float
    identity: float
    unstructured: float
    seconds: float
    method: str
    kept: bool = True

    @property
    def efficacy(self) -> float:
        """Pool and Yu's, in percent; NaN where there is no room."""
        return measures.efficacy(self.retained, self.identity, self.unstructured)


@dataclass
class Found:
    """What the searches of a model's sites found.

    Attributes
    ----------
    orders : dict of str to ndarray of int64
        By site.
    sites : list of SiteResult
        What was searched.
    unsearched : dict of str to str
        Sites with columns of pruned weights that were not searched, and why.
    seconds : dict of str to float
        Each layer's share of the searches' time.
    """

    orders: dict[str, _Columns] = field(default_factory=dict)
    sites: list[SiteResult] = field(default_factory=list)
    unsearched: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Part:
    """Input channels of a weight that follow a site.

    ``columns`` are their places in the weight's present order, shape (size,), if they are a run
    that whole groups of m make up, else None; ``groups`` are the convolution's, from and to.
    """

    layer: Weight
    axis: Axis
    groups: tuple[int, int]
    columns: _Columns | None


class Present:
    """Which of its first input channels is at each place of a layer, as sites are ordered.

    Attributes
    ----------
    lost : set of str
        Depthwise convolutions that were reordered: their input follows their rows, which are not
        kept track of.
    """

    def __init__(self, layers: Iterable[Weight]) -> None:
        self._order = {
            layer.name: np.tile(np.arange(layer.shape[1]), (layer.groups, 1)) for layer in layers
        }
        self.lost: set[str] = set()

    def columns(self, layer: Weight, group: int) -> _Columns:
        """The order of the input channels of one group, shape (C,)."""
        return self._order[layer.name][group]

    def move(self, part: _Part, order: _Columns) -> None:
        """Reorder the elements that a part holds."""
        own = self._order[part.layer.name]
        index = part.axis.index(order, own.shape[1])
        own[part.groups[0] : part.groups[1]] = own[part.groups[0] : part.groups[1], index]

    def orders(self) -> dict[str, _Columns]:
        """For each layer that was reordered, its input channels over all groups, (C * groups,)."""
        found = {}
        for name, order in self._order.items():
            first = np.arange(len(order))[:, None] * order.shape[1]
            total = (order + first).reshape(-1)
            if not np.array_equal(total, np.arange(len(total))):
                found[name] = total
        return found


def search_sites(
    graph: CouplingGraph,
    layers: Mapping[str, Weight],
    pruned: Container[str],
    saliency: SaliencyOf,
    searches: Searches,
    *,
    onward: bool = False,
    progress: Any = None,
) -> tuple[Found, Present]:
    """Search the order of every free site whose elements are input channels of pruned weights.

    One site at a time: its weights' saliencies are one tall matrix.

    Parameters
    ----------
    graph : CouplingGraph
    layers : mapping of str to Weight
        By the name of the tensor in the graph, one that has several under each: those that are
        pruned, and what else has input channels to keep track of.
    pruned : container of str
        Names of the weights that are.
    saliency : callable
        Asked for the weights that are pruned, one after the other.
    searches : Searches
        Of a plain N:M pattern.
    onward : bool
        Start from the present order rather than anew.
    progress : tqdm, optional
        Told of each site.

    Returns
    -------
    Found, Present
    """
    found, present = Found(), Present(layers.values())
    cached = _OneSaliency(saliency)
    for number, site in enumerate(graph.sites):
        if progress is not None:
            progress.update(number - progress.n)
        every = list(_parts(site, layers, searches.pattern.m))
        parts = [part for part in every if part.layer.name in pruned]
        runs = [part for part in parts if part.columns is not None]
        reason = _why_not(site, parts, runs, searches.pattern.m)
        if reason is not None:
            if reason:
                found.unsearched[site.name] = reason
            continue
        if progress is not None:
            progress.set_description(site.name)
        order, result = _search(site, runs, cached, present, searches, onward)
        for part in runs:
            share = result.seconds * _entries(part) / result.weights
            found.seconds[part.layer.name] = found.seconds.get(part.layer.name, 0.0) + share
        others = [part for part in parts if part.columns is None]
        if others and not _gains(result, others, order, cached, present, searches):
            found.sites.append(SiteResult(**{**vars(result), "kept": False}))
            continue
        found.sites.append(result)
        found.orders[site.name] = order
        for part in every:
            present.move(part, order)
        present.lost |= _depthwise(site, layers)
    return found, present


def _why_not(site: Site, parts: list[_Part], runs: list[_Part], m: int) -> str | None:
    """Why a site is not searched, None if it is, empty where nothing is lost by that."""
    if not parts or site.size <= 1:
        return ""
    if site.fixed:
        return f"fixed: {site.reason}"
    if runs:
        return None if site.size > m else ""
    if all(_whole_groups(part.axis, m) for part in parts):
        # Heads and the like: groups stay as they are, wherever they go.
        return ""
    return f"its channels do not lie in runs of whole groups of {m}"


def _depthwise(site: Site, layers: Mapping[str, Weight]) -> set[str]:
    own = (layers[axis.tensor] for axis in site.axes if axis.tensor in layers)
    return {layer.name for layer in own if layer.groups > 1 and layer.shape[1] == 1}


def _parts(site: Site, layers: Mapping[str, Weight], m: int) -> Iterator[_Part]:
    done: set[tuple[str, bytes, Any]] = set()
    for axis in site.axes:
        layer = layers.get(axis.tensor)
        if layer is None or axis.dim != layer.input_dim:
            continue
        key = (layer.name, axis.members.tobytes(), axis.rows)
        groups = _groups(axis, layer)
        if key in done or groups is None:
            continue
        done.add(key)
        runs = [_run(copy, m) for copy in axis.members.T]
        if any(run is None for run in runs):
            yield _Part(layer, axis, groups, None)
            continue
        for i, copy in enumerate(axis.members.T):
            # The copies of an element move together: only the first part moves them.
            own = axis if i == 0 else Axis(axis.tensor, axis.dim, axis.members[:, :0], axis.rows)
            yield _Part(layer, own, groups, copy)


def _groups(axis: Axis, layer: Weight) -> tuple[int, int] | None:
    """The convolution groups that an axis means; None for rows that are no whole groups."""
    if axis.rows is None:
        return 0, layer.groups
    rows = layer.shape[0] // layer.groups
    if axis.rows[0] % rows or axis.rows[1] % rows:
        return None
    return axis.rows[0] // rows, axis.rows[1] // rows


def _run(columns: _Columns, m: int) -> _Columns | None:
    """The columns if they are a run that begins and ends with a group."""
    first, size = int(columns[0]), len(columns)
    if first % m or size % m or not np.array_equal(columns, np.arange(first, first + size)):
        return None
    return columns


def _whole_groups(axis: Axis, m: int) -> bool:
    """Whether each element is made up of whole groups."""
    if axis.copies % m:
        return False
    groups = np.sort(axis.members, axis=1).reshape(-1, m)
    first = groups[:, :1]
    return not (first % m).any() and np.array_equal(groups, first + np.arange(m))


class _OneSaliency:
    """The saliency of the layer that was asked for last: heads ask for the same one by one."""

    def __init__(self, saliency: SaliencyOf) -> None:
        self._saliency = saliency
        self._name = ""
        self._array: NDArray[np.floating] | None = None

    def of(self, layer: Weight) -> NDArray[np.floating]:
        if self._array is None or self._name != layer.name:
            # Gone before the next one comes.
            self._array = None
            self._array, self._name = self._saliency(layer.name), layer.name
        return self._array

    def forget(self) -> None:
        """Hold nothing, where memory is needed."""
        self._array = None


def _entries(part: _Part) -> int:
    assert part.columns is not None
    return _rows(part) * len(part.columns)


def _rows(part: _Part) -> int:
    """Rows of the matrix that a part adds: kernel positions ride along."""
    shape = part.layer.shape
    positions = int(np.prod(shape[2:]))
    return shape[0] // part.layer.groups * (part.groups[1] - part.groups[0]) * positions


def _stacked(parts: list[_Part], saliency: _OneSaliency, present: Present) -> NDArray[np.floating]:
    """The saliencies of all parts, one below the other, shape (rows, size)."""
    columns = parts[0].columns
    assert columns is not None
    dtype = np.result_type(*(part.layer.dtype for part in parts))
    matrix = np.empty((sum(map(_rows, parts)), len(columns)), dtype)
    row = 0
    for part in parts:
        whole = saliency.of(part.layer)
        for group in range(*part.groups):
            order = present.columns(part.layer, group)
            one = _group_matrix(whole, part.layer, group)
            columns = order[part.columns]
            # By blocks, beside which the gathered columns are not held a second time.
            for begin in range(0, len(one), _ROWS):
                block = one[begin : begin + _ROWS]
                matrix[row : row + len(block)] = block[:, columns]
                row += len(block)
    return matrix


def _group_matrix(
    saliency: NDArray[np.floating], layer: Weight, group: int
) -> NDArray[np.floating]:
    """One convolution group as a matrix whose columns are its input channels."""
    rows = layer.shape[0] // layer.groups
    own = saliency[group * rows : (group + 1) * rows]
    return np.moveaxis(own, 1, -1).reshape(-1, layer.shape[1])


def _search(
    site: Site,
    parts: list[_Part],
    saliency: _OneSaliency,
    present: Present,
    searches: Searches,
    onward: bool,
) -> tuple[_Columns, SiteResult]:
    matrix = _stacked(parts, saliency, present)
    if parts[0].layer.shape[1] == site.size or parts[-1].layer is not parts[0].layer:
        # No other site asks for the same weight next.
        saliency.forget()
    initial = searches.unpermuted(matrix) if onward else None
    solution = searches.solve(site.name, matrix, initial=initial)
    assert solution.col_order is not None
    result = SiteResult(
        site.name,
        site.size,
        tuple(dict.fromkeys(part.layer.name for part in parts)),
        matrix.size,
        solution.retained,
        solution.identity,
        solution.unstructured,
        solution.seconds,
        solution.method,
    )
    return solution.col_order.astype(np.int64), result


def _gains(
    result: SiteResult,
    others: list[_Part],
    order: _Columns,
    saliency: _OneSaliency,
    present: Present,
    searches: Searches,
) -> bool:
    """Whether the order keeps more, counting the weights that move along but were not searched."""
    change = result.retained - result.identity
    for part in others:
        whole = saliency.of(part.layer)
        for group in range(*part.groups):
            before = present.columns(part.layer, group)
            after = before[part.axis.index(order, len(before))]
            matrix = _group_matrix(whole, part.layer, group)
            change += searches.unpermuted(matrix[:, after]).retained
            change -= searches.unpermuted(matrix[:, before]).retained
    return change >= 0
