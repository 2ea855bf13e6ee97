"""What a solver is given: a saliency matrix, a pattern, and which rows may share a tile."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gyroperm.geometry import Geometry, checked_blocks
from gyroperm.gram import Gram
from gyroperm.output import LayerOutput
from gyroperm.pattern import Pattern


@dataclass(frozen=True, eq=False)
class Problem(Geometry):
    """A permutation problem in matrix form.

    Parameters
    ----------
    saliency : ndarray of float32 or float64, shape (R, C)
        Non-negative and finite; C-contiguous.
    pattern : Pattern
        The pattern to satisfy.
    blocks : tuple of int, optional
        Row counts that sum to R. Rows of different blocks never share a tile (the matrices of a
        list, the groups of a grouped convolution). By default one block of all rows.
    orders : int, optional
        How many column orders the layer has, 1 or ``len(blocks)``; matters to patterns with a
        shared order only. Plain N:M makes one tile of each order's rows.
    output : LayerOutput, optional
        The weights and what they are fed, for methods that judge by the layer's output.

    Raises
    ------
    ValueError
        If shapes or counts do not fit together, or the pattern leaves fewer than m columns.
    """

    saliency: NDArray[np.floating]
    pattern: Pattern
    blocks: tuple[int, ...] = ()
    orders: int = 1
    output: LayerOutput | None = None

    def __post_init__(self) -> None:
        if self.saliency.ndim != 2 or not self.saliency.size:
            raise ValueError(f"saliency must be a non-empty matrix, got {self.saliency.shape}")
        blocks = checked_blocks(self.pattern, self.rows, self.blocks, self.orders)
        object.__setattr__(self, "blocks", blocks)
        self.pattern.kept_columns(self.columns)
        if self.output is not None and self.output.weights.shape != self.saliency.shape:
            raise ValueError(
                f"the weights of output must have the shape {self.saliency.shape} of saliency, "
                f"got {self.output.weights.shape}"
            )

    @property
    def judged_by_output(self) -> bool:
        """Whether the least output error is searched for, not the most saliency."""
        return self.output is not None and self.output.objective != "saliency"

    @property
    def gram(self) -> Gram | None:
        """The Gram matrix of the layer's inputs, where it is known."""
        return None if self.output is None else self.output.gram

    @property
    def activations(self) -> NDArray[np.floating] | None:
        """The layer's inputs, (tokens, C), where they were given."""
        return None if self.output is None else self.output.activations

    @property
    def rows(self) -> int:  # type: ignore[override]
        """R, the rows of the matrix (output channels)."""
        return self.saliency.shape[0]

    @property
    def columns(self) -> int:  # type: ignore[override]
        """C, the columns of the matrix (input channels)."""
        return self.saliency.shape[1]

    @cached_property
    def block_rows(self) -> tuple[NDArray[np.int32], ...]:
        """For each block the rows that are kept, ascending (all of them unless row_ratio > 0)."""
        result = []
        start = 0
        for count, keep in zip(self.blocks, self.kept_rows, strict=True):
            # Only the order of the sums matters, and ties keep the earlier row.
            sums = self.saliency[start : start + count].sum(axis=1, dtype=np.float64)
            chosen = np.sort(np.argsort(-sums, kind="stable")[:keep]) + start
            result.append(chosen.astype(np.int32))
            start += count
        return tuple(result)

    @cached_property
    def search_saliency(self) -> NDArray[np.float32]:
        """The saliency in float32, divided by a power of two so that its maximum is in [0.5, 1).

        Searches run on this: no sum overflows, and a saliency scaled by a power of two gives
        bit for bit the same search. A saliency that is so already is not copied.
        """
        if self._exponent == 0 and self.saliency.dtype == np.float32:
            return self.saliency
        return np.ascontiguousarray(self._scaled(self.saliency), dtype=np.float32)

    def search_rows(self, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        """These rows of :attr:`search_saliency`, which need not be there; zeros where -1."""
        if "search_saliency" in self.__dict__:
            result = self.search_saliency[rows]
        else:
            result = self._scaled(self.saliency[rows]).astype(np.float32, copy=False)
        result[rows < 0] = 0.0
        return result

    @cached_property
    def _exponent(self) -> int:
        return math.frexp(float(self.saliency.max()))[1]

    def _scaled(self, saliency: NDArray[np.floating]) -> NDArray[np.floating]:
        scaled: NDArray[np.floating] = np.ldexp(saliency, -self._exponent)
        return scaled

    def free_search_saliency(self) -> None:
        """Give back the memory of :attr:`search_saliency`; who asks for it again computes it."""
        self.__dict__.pop("search_saliency", None)
