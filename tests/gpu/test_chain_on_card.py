"""Chains and convolutions on a CUDA device: run with ``pytest -m gpu``; without one they fail."""

import numpy as np
import pytest
import torch

import gyroperm
from gyroperm.gpu import (
    DenseProductWarning,
    DeviceMatrix,
    GatedFfn,
    HinmConv2d,
    HinmFfn,
    HinmLinear,
    HinmMatrix,
    RmsNorm,
)
from gyroperm.gpu.candidates import DENSE, window_way
from gyroperm.gpu.device import card, driver_version, limits
from gyroperm.gpu.numbers import from_bits, to_bits
from gyroperm.gpu.tuned import TunedWays
from gyroperm.pattern import Pattern

pytestmark = pytest.mark.gpu

HALF_ULP = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
PATTERNS = {
    "hinm": Pattern.hinm(vec_ratio=0.5, vec_size=64),
    "nm": Pattern.nm(),
    "vector": Pattern.vector_nm(2, 4, 32),
    "tvw": Pattern.tvw(vec_ratio=0.5, vec_size=32, row_ratio=0.2),
}
ROWS, INPUTS = 330, 520
# Both sides of where kernels and blocks change, and rows that do not begin on 16 bytes.
COLUMNS = (1, 7, 8, 9, 16, 17, 63, 64, 65, 200)


@pytest.fixture(scope="module", autouse=True)
def cupy():
    limits(0)  # raises, and says why, where there is no device that will do
    import cupy

    return cupy


def packed(pattern, dtype, rows=ROWS, inputs=INPUTS):
    weights = np.random.default_rng(1).standard_normal((rows, inputs))
    solution = gyroperm.solve(
        weights, pattern=PATTERNS[pattern], method="random", options={"count": 1}
    )
    return HinmMatrix.from_solution(solution, weights, dtype)


def layers_of_a_block(dtype, biases, allow_dense=False):
    shapes = {"up": (INPUTS, ROWS), "down": (ROWS, INPUTS), "gate": (INPUTS, ROWS)}
    layers = {}
    for (name, (inputs, outputs)), pattern in zip(
        shapes.items(), ("hinm", "tvw", "vector"), strict=True
    ):
        linear = torch.nn.Linear(inputs, outputs, bias=biases).to(dtype)
        weight = linear.weight.detach().float().numpy()
        solution = gyroperm.solve(
            weight, pattern=PATTERNS[pattern], method="random", options={"count": 1}
        )
        layers[name] = HinmLinear.from_linear(linear, solution)
        layers[name].allow_dense = allow_dense
    return layers


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("gated", "normed"), [(True, True), (True, False), (False, False)])
def test_a_chain_on_the_device_is_its_layers_on_the_host(dtype, gated, normed):
    torch.manual_seed(1)
    layers = layers_of_a_block(dtype, biases=not normed)
    norm = torch.nn.RMSNorm(INPUTS, eps=1e-5).to(dtype) if normed else None
    block = HinmFfn(
        layers["up"],
        layers["down"],
        layers["gate"] if gated else None,
        residual=True,
        norm=norm,
    ).requires_grad_(False)
    for n in COLUMNS:
        x = torch.randn(n, INPUTS).to(dtype)
        expected = block.cpu()(x.double())
        y = block.cuda()(x.cuda())
        assert y.dtype == dtype
        # Four roundings on the way.
        torch.testing.assert_close(
            y.double().cpu(),
            expected,
            rtol=8 * HALF_ULP[_name(dtype)],
            atol=0.02 * (1 if dtype == torch.float16 else 8),
        )
        again = block(x.cuda())
        assert torch.equal(y, again)
    assert block(torch.zeros(0, INPUTS, dtype=dtype, device="cuda")).shape == (0, INPUTS)


def _name(dtype):
    return str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("n", [1, 8, 72])
def test_a_chain_in_a_graph_follows_what_its_biases_become(n):
    torch.manual_seed(2)
    layers = layers_of_a_block(torch.float16, biases=True)
    block = HinmFfn(**layers, residual=True).cuda().requires_grad_(False)
    x = torch.randn(n, INPUTS, device="cuda").half()
    first = block(x)
    block.up.bias.add_(1)
    second = block(x)
    assert not torch.equal(first, second)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = block(x)
    for _ in range(3):
        y.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(y, second)


@pytest.mark.parametrize("normed", [True, False])
def test_a_chain_whose_layers_are_faster_densely(monkeypatch, tmp_path, normed):
    monkeypatch.setenv("GYROPERM_CACHE_DIR", str(tmp_path))
    torch.manual_seed(4)
    layers, n = layers_of_a_block(torch.float16, biases=True, allow_dense=True), 72
    norm = torch.nn.RMSNorm(INPUTS, eps=1e-5).half() if normed else None
    block = HinmFfn(**layers, residual=True, norm=norm).requires_grad_(False)
    x = torch.randn(n, INPUTS).half()
    expected = block.cpu()(x.double())
    block.cuda()
    tuned = TunedWays(card(0).name, driver_version())
    for layer in layers.values():
        tuned.keep(layer.device_matrix(), n, "features", [(DENSE, 1e-6)])
    given = x.cuda()
    with pytest.warns(DenseProductWarning):
        y = block(given)
    torch.testing.assert_close(y.double().cpu(), expected, rtol=2.0**-7, atol=0.03)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        again = block(given)
    again.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(again, y, rtol=2.0**-9, atol=1e-2)


def test_a_layer_with_a_window(monkeypatch, tmp_path):
    monkeypatch.setenv("GYROPERM_CACHE_DIR", str(tmp_path))
    host, n = packed("hinm", "bfloat16"), 200
    plain, layer = (HinmLinear.from_matrix(host, device=torch.device("cuda")) for _ in range(2))
    plain.allow_dense, layer.window = False, True
    matrix = layer.device_matrix()
    way = window_way(matrix.window)
    TunedWays(card(0).name, driver_version()).keep(matrix, n, "tokens", [(way, 1e-6)])
    x = torch.randn(n, INPUTS, device="cuda").bfloat16()
    assert matrix.choice(n, "tokens").way == way
    # Summed in another order.
    torch.testing.assert_close(layer(x), plain(x), rtol=2.0**-7, atol=2.0**-6)
    assert torch.equal(layer.weight, plain.weight)


def test_a_chain_of_cupy_arrays(cupy):
    gate, up = packed("hinm", "float16"), packed("tvw", "float16")
    down = packed("nm", "float16", INPUTS, ROWS)
    gate, up, down = (DeviceMatrix.upload(host, allow_dense=False) for host in (gate, up, down))
    block = GatedFfn.of(gate, up, down)
    for n in COLUMNS:
        x = cupy.asarray(to_bits(np.random.default_rng(n).standard_normal((INPUTS, n)), "float16"))
        hidden = up.multiply(x, factor=gate.multiply(x, activation="silu"))
        expected = down.multiply(hidden, addend=x)
        # The same products and roundings, whatever the order of the rows between.
        got = from_bits(block.forward(x).get(), "float16")
        np.testing.assert_allclose(
            got, from_bits(expected.get(), "float16"), rtol=2.0**-9, atol=2.0**-9
        )
        inplace = cupy.asarray(x.get())
        assert block.forward(inplace, out=inplace) is inplace
        np.testing.assert_array_equal(from_bits(inplace.get(), "float16"), got)


def test_a_norm_needs_tokens(cupy):
    up, down = packed("hinm", "float16"), packed("nm", "float16", INPUTS, ROWS)
    norm = RmsNorm(cupy.asarray(np.ones(INPUTS, "float16")), 1e-5)
    block = GatedFfn.of(up, up, down, norm=norm)
    with pytest.raises(ValueError, match='a norm needs layout="tokens"'):
        block.forward(cupy.zeros((INPUTS, 8), "float16"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_convolution_on_the_device_is_the_one_on_the_host(dtype):
    torch.manual_seed(3)
    dense = torch.nn.Conv2d(20, 70, 3, stride=2, padding=1).to(dtype)
    weight = dense.weight.detach().float().numpy()
    solution = gyroperm.solve(
        weight, pattern=PATTERNS["hinm"], method="random", options={"count": 1}
    )
    packed_ = HinmConv2d.from_solution(solution, dense)
    packed_.requires_grad_(False)
    half = HALF_ULP[_name(dtype)]
    for shape in ((1, 20, 9, 9), (5, 20, 13, 10), (20, 8, 8)):
        x = torch.randn(shape).to(dtype)
        expected = packed_.cpu()(x.double())
        y = packed_.cuda()(x.cuda())
        assert y.dtype == dtype and y.shape == expected.shape
        torch.testing.assert_close(y.double().cpu(), expected, rtol=1.01 * half, atol=1e-4)
