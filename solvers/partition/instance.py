"""Columns that are partitioned into groups of m, of which each row keeps n."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import comb

import numpy as np
from numpy.typing import NDArray

from gyroperm.solvers.kernels.pricing import exact_values


@dataclass(frozen=True, eq=False)
class Instance:
    """A partition problem: plain N:M on the rows and columns of one tile.

    Attributes
    ----------
    columns : ndarray of float64, shape (C', R)
        A column of the saliency a row; columns of zeros fill up to whole groups.
    n, m : int
        1 <= n < m, of at most C' columns.
    """

    columns: NDArray[np.float64]
    n: int
    m: int

    @classmethod
    def of_tile(
        cls,
        saliency: NDArray[np.floating],
        rows: NDArray[np.int32],
        columns: NDArray[np.int32],
        n: int,
        m: int,
    ) -> Instance:
        """The instance of a tile's rows and columns, -1 standing for virtual ones.

        The saliency, (R, C), should have its maximum near 1: see :func:`scaled`.
        """
        X = np.zeros((len(columns), int((rows >= 0).sum())))
        real = columns >= 0
        X[real] = saliency[np.ix_(rows[rows >= 0], columns[real])].T
        return cls(X, n, m)

    def part(self, columns: NDArray[np.integer]) -> Instance:
        """The same problem for some of the columns, in the order given."""
        return Instance(np.ascontiguousarray(self.columns[columns]), self.n, self.m)

    @property
    def groups(self) -> int:
        """G, the groups of a partition."""
        return len(self.columns) // self.m

    @property
    def group_count(self) -> int:
        """How many different groups there are."""
        return comb(len(self.columns), self.m)

    @property
    def as_it_lies(self) -> NDArray[np.int32]:
        """The partition of the columns in their order, (G, m)."""
        return np.arange(len(self.columns), dtype=np.int32).reshape(-1, self.m)

    @cached_property
    def rounded_up(self) -> NDArray[np.float32]:
        """The columns in float32, nowhere below what they are."""
        X = self.columns.astype(np.float32)
        low = self.columns > X
        X[low] = np.nextafter(X[low], np.float32(np.inf))
        return X

    def values(self, groups: NDArray[np.int32]) -> NDArray[np.float64]:
        """What groups (k, m) keep, (k,), in float64."""
        values = np.empty(len(groups))
        exact_values(self.columns, groups, self.n, values)
        return values

    def shares(self, groups: NDArray[np.int32]) -> NDArray[np.float64]:
        """What each column keeps in the groups of a partition (G, m), (C',), in float64."""
        held = self.columns[groups]
        least = np.partition(held, self.m - self.n, axis=1)[:, self.m - self.n, None]
        shares = np.empty(len(self.columns))
        shares[groups] = np.where(held >= least, held, 0.0).sum(axis=2)
        return shares


def scaled(saliency: NDArray[np.floating]) -> tuple[NDArray[np.floating], int]:
    """The saliency over a power of two, so that its maximum is in [0.5, 1), and the exponent."""
    exponent = int(np.frexp(float(saliency.max()))[1])
    return np.ldexp(saliency, -exponent), exponent
