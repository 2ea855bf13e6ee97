"""Packed matrices on a device that is CuPy's arrays in the host's memory, and the emulation."""

import numpy as np
import pytest
import torch

import gyroperm
from gyroperm.gpu import (
    DenseProductWarning,
    DeviceMatrix,
    Ffn,
    GatedFfn,
    HinmLinear,
    HinmMatrix,
    RmsNorm,
)
from gyroperm.gpu import matrix as matrix_module
from gyroperm.gpu.candidates import DENSE, window_way
from gyroperm.gpu.device import cuda_errors, limits
from gyroperm.gpu.numbers import from_bits, to_bits
from gyroperm.gpu.tuned import TunedWays
from gyroperm.pattern import Pattern
from host_card import host_card

ROWS, INPUTS = 70, 200
PATTERNS = {
    "hinm": Pattern.hinm(vec_ratio=0.5, vec_size=32),
    "vector": Pattern.vector_nm(2, 4, 32),
    "tvw": Pattern.tvw(vec_ratio=0.5, vec_size=32, row_ratio=0.2),
}


@pytest.fixture
def card(monkeypatch, tmp_path):
    monkeypatch.setenv("GYROPERM_CACHE_DIR", str(tmp_path))
    with host_card(monkeypatch) as card:
        yield card


@pytest.fixture
def cupy(card):
    import cupy

    return cupy


def packed(pattern="hinm", dtype="float16", rows=ROWS, inputs=INPUTS):
    weights = np.random.default_rng(1).standard_normal((rows, inputs)) / np.sqrt(inputs)
    solution = gyroperm.solve(weights, pattern=PATTERNS[pattern], method="identity")
    return HinmMatrix.from_solution(solution, weights, dtype)


def numbers(n, dtype="float16", inputs=INPUTS):
    return to_bits(np.random.default_rng(n).standard_normal((inputs, n)), dtype)


def check(host, x, y, dtype="float16"):
    exact = from_bits(x, dtype).astype(np.float64)
    expected = host.matmul_reference(exact)
    sums = np.abs(host.to_dense()).astype(np.float64) @ np.abs(exact)
    half = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    bound = 1.01 * half * np.abs(expected) + 2.0**-20 * (sums + 1)
    assert (np.abs(from_bits(y, dtype) - expected) <= bound).all()


@pytest.mark.parametrize("n", [3, 33])
@pytest.mark.parametrize(("pattern", "dtype"), [("hinm", "float16"), ("vector", "bfloat16")])
def test_products_of_cupy_arrays(cupy, pattern, dtype, n):
    host = packed(pattern, dtype)
    matrix = DeviceMatrix.upload(host, allow_dense=False)
    x = numbers(n, dtype)
    check(host, x, matrix.multiply(cupy.asarray(x)).get(), dtype)
    tokens = matrix.multiply(cupy.asarray(np.ascontiguousarray(x.T)), layout="tokens")
    check(host, x, tokens.get().T, dtype)


def test_rows_that_lie_apart_are_read_and_written_where_they_are(cupy):
    host = packed()
    matrix = DeviceMatrix.upload(host, allow_dense=False)
    x = numbers(17)
    given = cupy.asarray(np.pad(x, ((0, 0), (0, 7)), constant_values=0xFFFF))[:, :17]
    whole = cupy.asarray(np.full((ROWS, 24), 7, np.uint16))
    out = whole[:, :17]
    assert matrix.multiply(given, out=out) is out
    check(host, x, out.get())
    assert (whole.get()[:, 17:] == 7).all()


@pytest.mark.parametrize("n", [3, 8, 33, 40])
def test_a_capture_of_what_was_prepared_loads_and_allocates_nothing(card, cupy, n):
    host = packed("tvw")
    matrix = DeviceMatrix.upload(host, allow_dense=False)
    given = {"features": numbers(n), "tokens": np.ascontiguousarray(numbers(n).T)}
    xs = {layout: cupy.asarray(x) for layout, x in given.items()}
    outs = {"features": cupy.empty((ROWS, n), "uint16"), "tokens": cupy.empty((n, ROWS), "uint16")}
    # Neither its rows nor what is written begin on 16 bytes.
    aside = cupy.empty(INPUTS * n + 1, "uint16")[1:].reshape(INPUTS, n)
    matrix.prepare(n)
    card.capturing = True
    for layout, x in xs.items():
        matrix.multiply(x, out=outs[layout], layout=layout)
    matrix.multiply(aside, out=outs["features"])
    card.capturing = False
    check(host, given["features"], outs["tokens"].get().T)


def test_a_capture_of_what_was_not_prepared_is_refused(card, cupy):
    matrix = DeviceMatrix.upload(packed(), allow_dense=False)
    x, out = cupy.asarray(numbers(40)), cupy.empty((ROWS, 40), "uint16")
    card.capturing = True
    with pytest.raises(RuntimeError, match=r"call prepare\(40\)"):
        matrix.multiply(x, out=out)
    assert not card.launched


@pytest.mark.parametrize("n", [3, 33])
def test_a_capture_of_a_chain_that_was_prepared(card, cupy, n):
    layers = packed(rows=64), packed("vector", rows=64), packed(rows=INPUTS, inputs=64)
    chain = GatedFfn.of(*layers)
    x, out = cupy.asarray(numbers(n)), cupy.empty((INPUTS, n), "uint16")
    tokens = cupy.asarray(np.ascontiguousarray(numbers(n).T))
    chain.prepare(n)
    card.capturing = True
    chain.forward(x, out=out)
    chain.forward(tokens, out=tokens, layout="tokens")
    card.capturing = False
    np.testing.assert_allclose(
        from_bits(out.get(), "float16"), from_bits(tokens.get().T, "float16"), atol=2.0**-8
    )


def test_products_run_on_the_stream_that_is_current(card, cupy):
    matrix = DeviceMatrix.upload(packed(), allow_dense=False)
    x, own = cupy.asarray(numbers(3)), cupy.cuda.Stream(non_blocking=True)
    with own:
        matrix.multiply(x)
    matrix.multiply(x)
    assert card.streams[0] is own and card.streams[1] is not own


@pytest.mark.parametrize("n", [4, 40])
@pytest.mark.parametrize("layout", ["features", "tokens"])
def test_what_was_measured_is_chosen_from_then_on(cupy, monkeypatch, tmp_path, layout, n):
    host, ways = packed(), []

    def seconds_of(launch, *, device, stream, l2_size, repeats):
        ways.append(repeats)
        return 1e-6 / len(ways)  # the last is the fastest

    monkeypatch.setattr(matrix_module, "seconds_of", seconds_of)
    matrix = DeviceMatrix.upload(host, allow_dense=False, window=True)
    chosen = matrix.tune(n, layout, repeats=5, progress=False)
    assert set(ways) == {5} and chosen.measured and chosen.seconds == 1e-6 / len(ways)
    assert len(list(tmp_path.glob("tuned-*.json"))) == 1
    again = DeviceMatrix.upload(host, allow_dense=False, window=True)
    assert again.choice(n, layout) == matrix.choice(n, layout) == chosen
    assert again.explain(n, layout).endswith(chosen.why)
    x = numbers(n)
    given = cupy.asarray(x if layout == "features" else np.ascontiguousarray(x.T))
    y = again.multiply(given, layout=layout).get()
    check(host, x, y if layout == "features" else y.T)


def keep_dense(matrix, n):
    """Let it have been measured that cuBLAS is the fastest."""
    kept = TunedWays("a card", 13000)
    kept.keep(matrix, n, "features", [(DENSE, 1e-6)], aligned=n % 8 == 0)


@pytest.mark.parametrize("n", [8, 33])
def test_what_is_added_may_lie_where_the_result_does(card, cupy, n):
    host, x = packed(), numbers(n)
    results = {}
    for card.dense in (False, True):
        matrix = DeviceMatrix.upload(host)
        keep_dense(matrix, n)
        out = cupy.asarray(np.full((ROWS, n), to_bits(np.array([2.0]), "float16")))
        if card.dense:
            with pytest.warns(DenseProductWarning):
                matrix.multiply(cupy.asarray(x), out=out, addend=out)
        else:
            matrix.multiply(cupy.asarray(x), out=out, addend=out)
        results[card.dense] = from_bits(out.get(), "float16")
    expected = host.matmul_reference(from_bits(x, "float16")) + 2
    for found in results.values():
        assert np.abs(found - expected).max() < 2.0**-8


@pytest.mark.parametrize("layout", ["features", "tokens"])
@pytest.mark.parametrize("gated", [True, False])
def test_a_chain_whose_layers_are_all_faster_densely_is_dense_and_says_so(
    card, cupy, layout, gated
):
    n, card.dense = 33, True
    up, gate = packed(rows=64), packed("vector", rows=64)
    down = packed(rows=INPUTS, inputs=64)
    bias = cupy.asarray(numbers(1, inputs=64)[:, 0])

    def block(allow_dense):
        layers = [DeviceMatrix.upload(host, allow_dense=allow_dense) for host in (gate, up, down)]
        if not gated:
            return Ffn.of(*layers[1:], up_bias=bias)
        return GatedFfn.of(*layers, gate_bias=bias, up_bias=bias)

    given = numbers(n) if layout == "features" else np.ascontiguousarray(numbers(n).T)
    expected = block(False).forward(cupy.asarray(given), layout=layout)
    assert card.launched
    for host in (gate, up, down):
        keep_dense(DeviceMatrix.upload(host), n)
    densely = block(True)
    card.launched.clear()
    # In place: x is added to what is written over it.
    x = cupy.asarray(given)
    with pytest.warns(DenseProductWarning, match="allow_dense=False forbids it"):
        densely.prepare(n)
    assert densely.forward(x, out=x, layout=layout) is x
    assert not card.launched
    np.testing.assert_allclose(
        from_bits(x.get(), "float16"), from_bits(expected.get(), "float16"), atol=2.0**-7
    )
    # What cuBLAS computes is in no graph of CuPy's: the kernels compute it there.
    x = cupy.asarray(given)
    card.capturing = True
    densely.forward(x, out=x, layout=layout)
    card.capturing = False
    assert card.launched
    assert np.array_equal(x.get(), expected.get())


def test_a_dense_chain_is_normalised_first(card, cupy):
    n, card.dense = 33, True
    hosts = packed(rows=64), packed(rows=INPUTS, inputs=64)
    weight = cupy.asarray(to_bits(np.linspace(1, 2, INPUTS), "float16"))
    found = []
    for allow_dense in (False, True):
        layers = [DeviceMatrix.upload(host, allow_dense=allow_dense) for host in hosts]
        if allow_dense:
            for layer in layers:
                keep_dense(layer, n)
        block = Ffn.of(*layers, norm=RmsNorm(weight, 1e-5))
        x = cupy.asarray(np.ascontiguousarray(numbers(n).T))
        card.launched.clear()
        if allow_dense:
            with pytest.warns(DenseProductWarning):
                found.append(block.forward(x, layout="tokens").get())
            assert [variant.kernel for variant in card.launched] == ["permute"]
        else:
            found.append(block.forward(x, layout="tokens").get())
    first, second = (from_bits(bits, "float16") for bits in found)
    np.testing.assert_allclose(first, second, atol=2.0**-7)


def test_a_window_is_kept_where_columns_are_fused(card, cupy):
    up, down = packed(rows=64), packed(rows=INPUTS, inputs=64)
    plain = Ffn.of(*(DeviceMatrix.upload(host, allow_dense=False) for host in (up, down)))
    first = DeviceMatrix.upload(up, allow_dense=False)
    block = Ffn.of(first, DeviceMatrix.upload(down, allow_dense=False, window=True))
    n = 40
    way = window_way(block.down.window)
    TunedWays("a card", 13000).keep(block.down, n, "features", [(way, 1e-6)])
    x = cupy.asarray(numbers(n))
    card.launched.clear()
    found = block.forward(x).get()
    assert [variant.kernel for variant in card.launched] == ["spmm", "window"]
    expected = plain.forward(x).get()
    np.testing.assert_allclose(
        from_bits(found, "float16"), from_bits(expected, "float16"), atol=2.0**-8
    )


def test_a_layer_with_a_window_holds_the_same_weights_in_its_order(card):
    host = packed("hinm", "bfloat16")
    layer = HinmLinear.from_matrix(host)
    before, x = layer.columns.clone(), torch.randn(5, INPUTS, dtype=torch.float64)
    expected = layer(x)
    matrix = layer._with_window()
    assert matrix.window is not None and not torch.equal(layer.columns, before)
    assert layer.values.data_ptr() == matrix.values.data.ptr
    assert np.array_equal(layer.matrix().to_dense(), host.to_dense())
    torch.testing.assert_close(layer(x), expected)


def test_a_device_that_there_is_not(card):
    with pytest.raises(ValueError, match=r"device must be in \[0, 1\).* got 3"):
        DeviceMatrix.upload(packed(), device=3)


def test_a_device_that_is_too_old(monkeypatch):
    with (
        host_card(monkeypatch, architecture="75"),
        pytest.raises(RuntimeError, match=r"device 0 is sm_75; the kernels need sm_80"),
    ):
        DeviceMatrix.upload(packed())


def test_memory_that_is_not_there(card, cupy):
    host = packed()
    card.memory = 1000
    with pytest.raises(MemoryError, match=rf"packed matrix of {host.nbytes} bytes.*free_all_bl"):
        DeviceMatrix.upload(host)
    card.memory = 1 << 20
    matrix, x = DeviceMatrix.upload(host, allow_dense=False), cupy.asarray(numbers(40))
    card.memory = 1000
    with pytest.raises(MemoryError, match=r"shape \(70, 40\) .*out of device memory.* Free arrays"):
        matrix.multiply(x)
    assert not card.launched


def test_memory_that_torch_does_not_have():
    pytest.importorskip("cupy")
    with (
        pytest.raises(MemoryError, match=r"a copy: out of device memory: CUDA.*empty_cache"),
        cuda_errors("a copy"),
    ):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")


def test_arrays_that_do_not_fit_are_refused_before_anything_is_launched(card, cupy):
    matrix = DeviceMatrix.upload(packed())
    x = cupy.asarray(numbers(8))
    for given, error, message in (
        (numbers(8), ValueError, "x must lie on CUDA device 0"),
        (torch.zeros(INPUTS, 8).half(), ValueError, "x must lie on CUDA device 0"),
        (x.view("int16"), TypeError, "weights' dtype float16 .* got int16"),
        (x[:8], ValueError, r"shape \(200, N\)"),
        (cupy.asarray(np.ascontiguousarray(numbers(8).T)).T, ValueError, 'layout="tokens"'),
    ):
        with pytest.raises(error, match=message):
            matrix.multiply(given)
    for options, message in (
        ({"activation": "tanh"}, "activation must be one of"),
        ({"layout": "rows"}, "layout must be one of"),
        ({"bias": x[0]}, r"bias must have shape \(70,\)"),
        ({"out": x}, r"out must have shape \(70, 8\)"),
    ):
        with pytest.raises(ValueError, match=message):
            matrix.multiply(x, **options)
    assert not card.launched and limits(0).architecture == "86"


def test_numbers_that_products_are_timed_with_are_those_of_the_dtype(cupy, monkeypatch):
    seen = []

    def seconds_of(launch, **_):
        return 1e-6

    monkeypatch.setattr(matrix_module, "seconds_of", seconds_of)
    matrix = DeviceMatrix.upload(packed(dtype="bfloat16"), allow_dense=False)
    monkeypatch.setattr(cupy, "asarray", lambda array: seen.append(array) or array)
    matrix._timed(DENSE, 3, "features", 1)
    (drawn,) = seen
    assert drawn.shape == (INPUTS, 3)
    assert 0.9 < from_bits(drawn, "bfloat16").std() < 1.1
