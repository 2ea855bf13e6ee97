"""Weights of any shape as one matrix, and masks of that matrix in the weights' own shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gyroperm.geometry import Layout, checked_blocks
from gyroperm.pattern import Pattern


@dataclass(frozen=True)
class WeightView:
    """How a weight, or a list of weights, is seen as one ``(R, C)`` matrix.

    Parameters
    ----------
    shapes : tuple of tuple of int
        The shape of each weight: ``(R, C)`` or a convolution's ``(R, C, *kernel)``.
    listed : bool
        Whether the user gave a list, and so gets lists back.
    im2col : bool
        Convolutions only: True flattens ``(R, C * positions)``, the matrix a two-level kernel
        multiplies with; False lets kernel positions ride along as rows,
        ``(R * positions, C)``, so that a column stays an input channel.
    conv_groups : int
        The groups of a grouped convolution; each has rows and input channels of its own.
    """

    shapes: tuple[tuple[int, ...], ...]
    listed: bool = False
    im2col: bool = False
    conv_groups: int = 1

    @classmethod
    def of(
        cls, shapes: Sequence[tuple[int, ...]], pattern: Pattern, *, listed: bool, groups: int = 1
    ) -> WeightView:
        """The view that a pattern takes of weights; raises ValueError for shapes it cannot."""
        for i, shape in enumerate(shapes):
            name = f"weights[{i}]" if listed else "weights"
            if len(shape) < 2 or not math.prod(shape):
                raise ValueError(
                    f"{name} must be a non-empty (R, C) matrix or (R, C, kh, kw) convolution "
                    f"weight, got shape {tuple(shape)}"
                )
            if shape[0] % groups:
                raise ValueError(f"groups={groups} does not divide the {shape[0]} rows of {name}")
        view = cls(tuple(map(tuple, shapes)), listed, not pattern.is_plain, groups)
        columns = {view._matrix_shape(shape)[1] for shape in view.shapes}
        if len(columns) > 1:
            raise ValueError(
                f"weights that share a column order must have equally many columns, got "
                f"{sorted(columns)}"
            )
        return view

    def _matrix_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        positions = math.prod(shape[2:])
        if self.im2col:
            return shape[0], shape[1] * positions
        return shape[0] * positions, shape[1]

    @property
    def row_counts(self) -> tuple[int, ...]:
        """The matrix rows of each weight."""
        return tuple(self._matrix_shape(shape)[0] for shape in self.shapes)

    @property
    def columns(self) -> int:
        """The matrix's columns, C."""
        return self._matrix_shape(self.shapes[0])[1]

    @property
    def blocks(self) -> tuple[int, ...]:
        """Matrix rows that may share a tile: each weight's, or each convolution group's."""
        return tuple(
            count // self.conv_groups for count in self.row_counts for _ in range(self.conv_groups)
        )

    @property
    def orders(self) -> int:
        """How many column orders there are, where the pattern has a shared one."""
        return self.conv_groups

    def layout(self, pattern: Pattern) -> Layout:
        """The geometry of a pattern on this matrix."""
        rows = sum(self.row_counts)
        blocks = checked_blocks(pattern, rows, self.blocks, self.orders)
        return Layout(pattern, rows, self.columns, blocks, self.orders)

    def matrix(self, arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Stack weights (or saliencies, or masks) of these shapes into the matrix."""
        parts = [self.rows_of(array) for array in arrays]
        return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))

    def rows_of(self, array: NDArray[Any]) -> NDArray[Any]:
        """The rows that one weight of these shapes makes of the matrix."""
        shape = self._matrix_shape(array.shape)
        if array.ndim > 2 and not self.im2col:
            array = np.moveaxis(array, 1, -1)
        return array.reshape(shape)

    def split(self, matrix: NDArray[Any]) -> list[NDArray[Any]]:
        """The inverse of :meth:`matrix`."""
        result = []
        ends = np.cumsum(self.row_counts)
        for shape, end, count in zip(self.shapes, ends, self.row_counts, strict=True):
            part = matrix[end - count : end]
            if len(shape) > 2 and not self.im2col:
                part = np.moveaxis(part.reshape(shape[0], *shape[2:], shape[1]), -1, 1)
            result.append(np.ascontiguousarray(part.reshape(shape)))
        return result
