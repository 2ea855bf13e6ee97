"""Dense products in the place of sparse ones, by torch on the host."""

import numpy as np
import pytest
import torch

import gyroperm
from gyroperm.gpu import HinmMatrix
from gyroperm.gpu.dense import DenseProducts
from gyroperm.gpu.matrix import DeviceMatrix
from gyroperm.gpu.numbers import from_bits, to_bits
from gyroperm.pattern import Pattern

# What is rounded once more than by the kernels.
HALF_ULP = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
PATTERNS = [Pattern.tvw(vec_ratio=0.5, vec_size=32, row_ratio=0.2), Pattern.vector_nm(2, 4, 32)]


def on_host(pattern, dtype):
    weights = np.random.default_rng(1).standard_normal((70, 200))
    solution = gyroperm.solve(weights, pattern=pattern, method="identity")
    host = HinmMatrix.from_solution(solution, weights, dtype)
    index = host.index
    arrays = host.values, host.metadata, index.columns, index.row_map
    return host, DeviceMatrix(*arrays, index, dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_copy_holds_the_weights(pattern, dtype):
    host, matrix = on_host(pattern, dtype)
    weights = DenseProducts.of(matrix).weights
    assert weights.dtype == getattr(torch, dtype)
    assert np.array_equal(weights.float().numpy(), host.to_dense())


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu"])
@pytest.mark.parametrize("layout", ["features", "tokens"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_product_with_all_that_follows_it(dtype, layout, activation):
    host, matrix = on_host(PATTERNS[0], dtype)
    rng = np.random.default_rng(0)
    n = 24
    bits = {
        name: to_bits(rng.standard_normal(shape), dtype)
        for name, shape in {"x": (200, n), "bias": 70, "factor": (70, n), "addend": (70, n)}.items()
    }
    exact = {name: from_bits(array, dtype).astype(np.float64) for name, array in bits.items()}
    sums = np.abs(host.to_dense()).astype(np.float64) @ np.abs(exact["x"])
    expected = host.matmul_reference(exact["x"]) + exact["bias"][:, None]
    half = HALF_ULP[dtype]
    error = half * np.abs(expected) + 2.0**-20 * (sums + 1)
    if activation:
        function = getattr(torch.nn.functional, activation)
        expected = function(torch.from_numpy(expected)).numpy()
        error = 1.2 * error + half * np.abs(expected)  # their slopes are at most 1.13
    given = dict(bits)
    if layout == "tokens":
        given = {"x": np.ascontiguousarray(bits["x"].T), "bias": bits["bias"]}
    else:
        product = expected * exact["factor"]
        error = error * np.abs(exact["factor"]) + half * np.abs(product)
        expected = product + exact["addend"]
        error += half * np.abs(expected)
    out = np.full((n, 70) if layout == "tokens" else (70, n), 0xFFFF, np.uint16)
    tensors = {name: torch.from_numpy(array.view(np.int16)) for name, array in given.items()}
    DenseProducts.of(matrix).multiply(
        out=torch.from_numpy(out.view(np.int16)),
        stream=None,
        layout=layout,
        activation=activation,
        **tensors,
    )
    y = from_bits(out.T if layout == "tokens" else out, dtype)
    assert (np.abs(y - expected) <= 1.05 * error).all()


def test_an_out_with_gaps_between_its_rows_is_written_where_it_lies():
    host, matrix = on_host(PATTERNS[0], "float16")
    x = torch.randn(200, 8).half()
    wide = torch.zeros(70, 16).half()
    DenseProducts.of(matrix).multiply(x, wide[:, :8], None, layout="features")
    expected = host.matmul_reference(x.numpy())
    assert np.abs(wide[:, :8].numpy() - expected).max() < 0.1
    assert not wide[:, 8:].any()
