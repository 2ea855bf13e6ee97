"""What tracing writes down: positions of parameters, and every operation that ties or tells them.

Each position along a dimension of a parameter is an *id*. An operation that combines positions
enters one row for each combination: the ids that meet there, and a tag where the operation tells
rows apart (the group of a group norm, the place in a tensor whose elements cannot move). Ids that
ever meet form a class, which moves as one. Two classes may change places exactly if every entry
reads the same with them exchanged, and that is what :meth:`Ledger.classes` decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class TracedAxis:
    """A dimension of a tensor whose positions have ids.

    Attributes
    ----------
    tensor : str
        Name of the parameter or buffer; empty for positions that exist only between operations.
    dim : int
    rows : tuple of (int, int) or None
        Only these positions of dimension 0 are meant.
    start, length : int
        Its ids are ``start`` to ``start + length - 1``.
    """

    tensor: str
    dim: int
    rows: tuple[int, int] | None
    start: int
    length: int

    @property
    def ids(self) -> Ids:
        """The ids of its positions."""
        return np.arange(self.start, self.start + self.length)


@dataclass(frozen=True, eq=False)
class _Entry:
    ids: Ids
    tags: Ids
    reason: str


@dataclass(frozen=True, eq=False)
class Classes:
    """Which ids move as one, and which classes may change places.

    Attributes
    ----------
    of : ndarray of int64, shape (ids,)
        The class of each id.
    signature : ndarray of uint64, shape (classes,)
        Equal for classes that may change places.
    build : ndarray of uint64, shape (classes,)
        Equal for classes with as many positions along the same axes.
    """

    of: Ids
    signature: NDArray[np.uint64]
    build: NDArray[np.uint64]


class Ledger:
    """The ids of a traced model and the entries of its operations."""

    def __init__(self) -> None:
        self.axes: list[TracedAxis] = []
        self.entries: list[_Entry] = []
        self._count = 0
        self._origin: list[Ids] = []
        self._known: dict[tuple[str, int, tuple[int, int] | None], TracedAxis] = {}

    def axis(self, tensor: str, dim: int, length: int, rows: tuple[int, int] | None = None) -> Ids:
        """The ids of a dimension of a tensor, made when first asked for."""
        key = (tensor, dim, rows)
        if key not in self._known:
            self._known[key] = self._new(tensor, dim, length, rows)
        return self._known[key].ids

    def between(self, length: int, source: Ids | None = None) -> Ids:
        """Fresh ids of positions that no parameter has, such as the pixels of a flattened map.

        Parameters
        ----------
        length : int
        source : ndarray of int64, shape (length,), optional
            The ids that they were made from.
        """
        ids = self._new("", 0, length, None).ids
        if source is not None:
            self._origin[-1] = self.origin(source)
        return ids

    def origin(self, ids: Ids) -> Ids:
        """What ids were made from, in the end; themselves where from nothing."""
        return np.concatenate(self._origin)[ids]

    def _new(self, tensor: str, dim: int, length: int, rows: tuple[int, int] | None) -> TracedAxis:
        axis = TracedAxis(tensor, dim, rows, self._count, length)
        self._count += length
        self.axes.append(axis)
        self._origin.append(axis.ids)
        return axis

    def enter(self, columns: list[Ids], tags: Ids | None = None, reason: str = "") -> None:
        """Write down one operation.

        Parameters
        ----------
        columns : list of ndarray of int64, each of shape (rows,)
            The ids that meet in each row.
        tags : ndarray of int64, shape (rows,), optional
            What tells the rows apart; rows with one tag may change places.
        reason : str
            Why rows with different tags may not.
        """
        ids = np.stack([np.ravel(column) for column in columns], axis=1)
        own = np.zeros(len(ids), np.int64) if tags is None else np.ravel(tags)
        self.entries.append(_Entry(ids, own, reason))

    def pin(self, ids: Ids, reason: str) -> None:
        """Say that each of these ids must stay where it is."""
        flat = np.unique(ids)
        self.enter([flat], flat, reason)

    @cached_property
    def axis_of(self) -> Ids:
        """The number of the axis of each id."""
        return np.repeat(np.arange(len(self.axes)), [axis.length for axis in self.axes])

    @property
    def touched(self) -> NDArray[np.bool_]:
        """The ids that stand in any entry."""
        touched = np.zeros(self._count, bool)
        for entry in self.entries:
            touched[entry.ids] = True
        return touched

    def classes(self) -> Classes:
        """Join ids that meet, and sign every class with all that is written about it.

        A position is known in its class by its axis and its rank along it, so exchanging two
        classes takes the first position of one to the first of the other. The signature sums a
        hash of every row in which the class stands, written in those terms: equal signatures mean
        that the exchange turns the rows of every entry into one another.
        """
        of = self._joined()
        code = self._codes(of)
        signature = np.zeros(int(of.max(initial=-1)) + 1, np.uint64)
        np.add.at(signature, of, _mixed(code))
        build = signature.copy()
        for number, entry in enumerate(self.entries):
            row = _mixed(entry.tags.astype(np.uint64) + np.uint64(number << 32))
            for k in range(entry.ids.shape[1]):
                row = _mixed(row ^ code[entry.ids[:, k]])
            np.add.at(signature, of[entry.ids[:, 0]], row)
        return Classes(of, signature, build)

    def _joined(self) -> Ids:
        """Connected components, numbered from 0 in the order of their first ids."""
        label = np.arange(self._count)
        pairs = [
            entry.ids[:, [k, k + 1]]
            for entry in self.entries
            for k in range(entry.ids.shape[1] - 1)
        ]
        edges = np.unique(np.concatenate(pairs), axis=0) if pairs else np.empty((0, 2), np.int64)
        while len(edges):
            # The larger label of an edge hangs below the smaller one; then paths are halved.
            low = np.minimum(label[edges[:, 0]], label[edges[:, 1]])
            high = np.maximum(label[edges[:, 0]], label[edges[:, 1]])
            open_edges = low < high
            if not open_edges.any():
                break
            edges = edges[open_edges]
            np.minimum.at(label, high[open_edges], low[open_edges])
            while not np.array_equal(label, label[label]):
                label = label[label]
        return np.unique(label, return_inverse=True)[1].astype(np.int64)

    def _codes(self, of: Ids) -> NDArray[np.uint64]:
        """For each id its axis and its rank among the positions of its class there."""
        axis = self.axis_of
        order = np.lexsort((np.arange(self._count), axis, of))
        fresh = np.ones(self._count, bool)
        fresh[1:] = (np.diff(of[order]) != 0) | (np.diff(axis[order]) != 0)
        places = np.arange(self._count)
        rank = np.empty(self._count, np.int64)
        rank[order] = places - np.maximum.accumulate(np.where(fresh, places, 0))
        code: NDArray[np.uint64] = (axis.astype(np.uint64) << np.uint64(32)) + rank.astype(
            np.uint64
        )
        return _mixed(code + np.uint64(1 << 63))


def _mixed(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer: nearby numbers become unrelated ones."""
    with np.errstate(over="ignore"):
        value = value + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))
