"""Packed matrices, activations and references for the tests of kernels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

import gyroperm
from gyroperm.gpu.format import HinmMatrix
from gyroperm.gpu.index import IndexTables
from gyroperm.gpu.numbers import from_bits, to_bits

# Columns of X at which tiles of columns, vectors of 16 bytes and blocks end differently.
WIDTHS = (1, 7, 8, 9, 17, 63, 64, 65, 200)
# Half an ulp of an output, and what fp32 sums in another order may differ by.
HALF_ULP = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
_SUM = 2.0**-20


@dataclass
class Case:
    """One packed matrix and what it is multiplied with."""

    matrix: HinmMatrix
    dense: np.ndarray
    x_values: np.ndarray
    x: np.ndarray
    bias: np.ndarray
    outputs: dict[str, Any] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return self.x_values.shape[1]

    def reference(self, activation: str | None = None, bias: bool = False) -> np.ndarray:
        y = self.dense @ self.x_values
        if bias:
            y = y + from_bits(self.bias, self.matrix.dtype).astype(np.float64)[:, None]
        return activated(y, activation)

    def tolerance(self, reference: np.ndarray) -> np.ndarray:
        terms = np.abs(self.dense) @ np.abs(self.x_values)
        half = HALF_ULP[self.matrix.dtype]
        least = 2.0**-25 if self.matrix.dtype == "float16" else 0.0
        return 1.01 * half * np.abs(reference) + _SUM * (terms + 16) + least

    def check(self, y: np.ndarray, reference: np.ndarray, rows: Any = slice(None)) -> None:
        got = from_bits(y[:, : self.n], self.matrix.dtype).astype(np.float64)
        error = np.abs(got - reference[rows]) - self.tolerance(reference)[rows]
        assert not np.isnan(got).any()
        assert (error <= 0).all(), f"off by {error.max():.3g} more than rounding"


def activated(y: np.ndarray, activation: str | None) -> np.ndarray:
    if activation == "relu":
        return np.maximum(y, 0)
    if activation == "silu":
        return y / (1 + np.exp(-y))
    if activation == "gelu":
        from math import erf

        return 0.5 * y * (1 + np.vectorize(erf)(y / np.sqrt(2)))
    return y


def make_case(
    pattern: gyroperm.Pattern,
    shape: tuple[int, int],
    n: int,
    *,
    dtype: str = "float16",
    pad: int = 0,
    seed: int = 0,
) -> Case:
    """A matrix under a random order, and X with rows of ``n + pad`` words, NaN in the padding."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal(shape).astype(np.float32) / np.sqrt(shape[1])
    # Groups with fewer nonzeros than a pattern keeps, and zeros of both signs.
    weights[rng.random(shape) < 0.1] = 0.0
    weights[rng.random(shape) < 0.02] = -0.0
    # One random order: the best of many would take longer than all that is done with it.
    solution = gyroperm.solve(
        weights, pattern=pattern, method="random", options={"count": 1}, seed=seed
    )
    matrix = HinmMatrix.from_solution(solution, weights, dtype=dtype)
    return case_of(matrix, n, rng, pad=pad)


def case_of(matrix: HinmMatrix, n: int, rng: np.random.Generator, *, pad: int = 0) -> Case:
    """What a packed matrix is multiplied with; NaN in the padding of X."""
    outputs, inputs = matrix.shape
    x = padded(rng, inputs, n, matrix.dtype, pad)
    return Case(
        matrix=matrix,
        dense=matrix.to_dense().astype(np.float64),
        x_values=from_bits(x, matrix.dtype).astype(np.float64),
        x=x,
        bias=to_bits(rng.standard_normal(outputs).astype(np.float32), matrix.dtype),
    )


def padded(rng, rows, columns, dtype, pad):
    """Random rows that lie apart, a view of an array that has NaN between them."""
    whole = to_bits(np.full((rows, columns + pad), np.nan, np.float32), dtype)
    whole[:, :columns] = to_bits(rng.standard_normal((rows, columns)), dtype)
    return whole[:, :columns]


def pack(rng, columns, tile_size, inputs, *, sparse, dtype="float16", outputs=None):
    """Random weights on the given columns of each tile, in the format's layout, element by element.

    -1 among the columns is a slot without one.
    """
    tiles, inner = len(columns), 2 if sparse else 4
    padded = [np.append(c, np.full(-len(c) % 64, -1)).astype(int) for c in columns]
    steps = sum(map(len, padded)) // 64
    values = np.zeros((steps, inner, tile_size // 16, 32, 8), np.uint16)
    metadata = np.zeros((steps if sparse else 0, tile_size // 16, 32), np.uint32)
    ids = np.concatenate(padded)
    group = np.repeat(np.arange(tiles), list(map(len, padded)))
    assert (group[::64] == group[63::64]).all()
    weights = rng.standard_normal((steps, tile_size, 64)) * (rng.random((1, tile_size, 64)) < 0.9)
    weights = to_bits(weights, dtype) * (ids.reshape(steps, 1, 64) >= 0)
    row = np.arange(tile_size)
    for h in range(inner):
        for k in range(16):  # of a fragment's compressed columns
            if sparse:
                g = k // 2
                at = h * 32 + g * 4
                # Two of the four, in order; which two depends on row, half and group.
                turn = row + 5 * h + 7 * g
                first, second = turn % 3, turn % 3 + 1 + (turn // 3) % (3 - turn % 3)
                place = second if k % 2 else first
                stored = np.take_along_axis(weights, (at + place)[None, :, None], 2)[..., 0]
                lane = row % 8 * 4 + 2 * h + g // 4
                shift = row % 16 // 8 * 16 + g % 4 * 4 + k % 2 * 2
                np.bitwise_or.at(
                    metadata, (slice(None), row // 16, lane), (place << shift).astype(np.uint32)
                )
            else:
                stored = weights[:, :, h * 16 + k]
            lane, register = row % 8 * 4 + k % 8 // 2, row % 16 // 8 + 2 * (k // 8)
            values[:, h, row // 16, lane, register * 2 + k % 2] = stored
    outputs = outputs or tiles * tile_size
    row_map = np.full(tiles * tile_size, -1)
    real = rng.permutation(tiles * tile_size)[:outputs]
    row_map[real] = rng.permutation(outputs)[: len(real)]
    tile_ptr = np.cumsum([0, *map(len, padded)])
    index = IndexTables(np.where(ids < 0, 0, ids), tile_ptr, row_map, inputs, outputs)
    return HinmMatrix(values, metadata, index, dtype)


def packed(rng, V, kept, *, inputs=300, sparse=True, dtype="float16", virtual=5):
    """Tiles of `kept[t]` columns each, with virtual rows among the others."""
    tiles = random_tiles(rng, kept, inputs)
    outputs = len(kept) * V - virtual
    return pack(rng, tiles, V, inputs, sparse=sparse, dtype=dtype, outputs=outputs)


def random_tiles(rng, lengths, inputs):
    """So many random columns for each tile."""
    return [rng.permutation(inputs)[:length] for length in lengths]
