"""Packed matrices, activations and references for the tests of kernels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

import gyroperm
from gyroperm.gpu.format import HinmMatrix
from gyroperm.gpu.numbers import from_bits, to_bits

# Half an ulp of an output, and what fp32 sums in another order may differ by.
_HALF_ULP = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
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
        half = _HALF_ULP[self.matrix.dtype]
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
    x = np.full((shape[1], n + pad), np.nan, np.float32)
    x[:, :n] = rng.standard_normal((shape[1], n))
    bits = to_bits(x, dtype)
    return Case(
        matrix=matrix,
        dense=matrix.to_dense().astype(np.float64),
        x_values=from_bits(bits, dtype).astype(np.float64)[:, :n],
        x=bits[:, :n],
        bias=to_bits(rng.standard_normal(shape[0]).astype(np.float32), dtype),
    )
