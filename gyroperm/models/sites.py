"""Sites: where a model's channels may be reordered, and everything that must follow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: How much of a site may move: any of its elements, those of one block among themselves, blocks
#: as wholes, or none.
Constraint = Literal["free", "within block", "whole blocks", "fixed"]


@dataclass(frozen=True, eq=False)
class Axis:
    """Positions along one dimension of a tensor that follow a site's order.

    Attributes
    ----------
    tensor : str
        Name of the parameter or buffer.
    dim : int
        The dimension that is reordered.
    members : ndarray of int64, shape (size, copies)
        ``members[e]`` are the positions that belong to element e: one for a plain channel, several
        where a channel is repeated (the pixels of a flattened map, the query heads of one
        key-value head, both halves of a fused gate and up projection).
    rows : tuple of (int, int) or None
        Only these positions of dimension 0 are meant, from and to: a group of a grouped
        convolution.
    """

    tensor: str
    dim: int
    members: NDArray[np.int64]
    rows: tuple[int, int] | None = None

    @property
    def copies(self) -> int:
        """Positions that each element has."""
        return self.members.shape[1]

    def index(self, order: NDArray[np.integer], length: int) -> NDArray[np.int64]:
        """The positions to gather, shape (length,), so that element p becomes ``order[p]``."""
        index = np.arange(length)
        index[self.members] = self.members[order]
        return index

    def __str__(self) -> str:
        rows = "" if self.rows is None else f"[{self.rows[0]}:{self.rows[1]}]"
        return f"{self.tensor}{rows}[{self.dim}]"


@dataclass(frozen=True, eq=False)
class Site:
    """One order to be chosen, and the axes that it reorders together.

    Attributes
    ----------
    name : str
        Unique in its graph; a site within blocks ends in the block's number, ``name[3]``.
    size : int
        Elements to be ordered.
    axes : tuple of Axis
    constraint : Constraint
    reason : str
        Why a fixed site is fixed; empty otherwise.
    """

    name: str
    size: int
    axes: tuple[Axis, ...]
    constraint: Constraint = "free"
    reason: str = ""

    @property
    def fixed(self) -> bool:
        """Whether its order must stay as it is."""
        return self.constraint == "fixed"

    @property
    def family(self) -> str:
        """The name without a block's number."""
        return self.name.partition("[")[0]

    def checked(self, order: ArrayLike) -> NDArray[np.int64]:
        """An order of this site, shape (size,): position p takes element ``order[p]``.

        Raises
        ------
        ValueError
            If the site is fixed, or the order is no bijection of its elements.
        """
        if self.fixed:
            raise ValueError(f"the order of {self.name} is fixed: {self.reason}")
        given = np.asarray(order)
        if given.shape != (self.size,) or not np.issubdtype(given.dtype, np.integer):
            raise ValueError(
                f"the order of {self.name} must be {self.size} integers, each of 0 to "
                f"{self.size - 1} once, got {given.dtype} of shape {given.shape}"
            )
        if not np.array_equal(np.sort(given), np.arange(self.size)):
            raise ValueError(
                f"the order of {self.name} must hold each of 0 to {self.size - 1} once"
            )
        return given.astype(np.int64)


def tensors_of(sites: Iterable[Site]) -> list[str]:
    """The tensors that any of the sites reorders, each once, in the order of the sites."""
    return list(dict.fromkeys(axis.tensor for site in sites for axis in site.axes))
