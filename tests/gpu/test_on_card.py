"""Products on a CUDA device: run with ``pytest -m gpu``; without a device they fail."""

import numpy as np
import pytest
import torch

import gyroperm
from gpu_cases import activated
from gyroperm.gpu import DenseProductWarning, DeviceMatrix, HinmLinear, HinmMatrix, fuse
from gyroperm.gpu.candidates import DENSE, candidates
from gyroperm.gpu.device import as_cupy, card, driver_version, limits, resident_blocks, run
from gyroperm.gpu.fusion import fusion
from gyroperm.gpu.numbers import from_bits, to_bits
from gyroperm.gpu.permute import permute, rms_norm, rms_norm_to_features
from gyroperm.gpu.plans import Target, make_plan, planned_columns
from gyroperm.gpu.transpose import to_features, to_tokens
from gyroperm.gpu.tuned import TunedWays
from gyroperm.pattern import Pattern

pytestmark = pytest.mark.gpu

# cuBLAS may otherwise add parts of a product in 16 bits.
torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False

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


def full(shape, value, dtype="uint16"):
    """Made on the host: CuPy's own kernels need headers that CuPy does not bring."""
    import cupy

    return cupy.asarray(np.full(shape, value, dtype))


def packed(pattern, dtype, rows=ROWS, inputs=INPUTS):
    weights = np.random.default_rng(1).standard_normal((rows, inputs))
    solution = gyroperm.solve(weights, pattern=PATTERNS[pattern], method="identity")
    return HinmMatrix.from_solution(solution, weights, dtype)


class Numbers:
    """Operands as bits, and what must come of them in float64."""

    def __init__(self, matrix, n):
        rng = np.random.default_rng(n)
        self.matrix, self.dtype = matrix, matrix.dtype
        rows, inputs = matrix.shape
        self.x, self.bias, self.factor, self.addend = (
            to_bits(rng.standard_normal(shape), self.dtype)
            for shape in ((inputs, n), (rows,), (rows, n), (rows, n))
        )

    def exact(self, bits):
        return from_bits(bits, self.dtype).astype(np.float64)

    def check(self, y, *, bias=False, activation=None, combined=False):
        x = self.exact(self.x)
        expected = self.matrix.matmul_reference(x)
        sums = np.abs(self.matrix.to_dense()).astype(np.float64) @ np.abs(x)
        if bias:
            expected += self.exact(self.bias)[:, None]
            sums += np.abs(self.exact(self.bias))[:, None]
        expected = activated(expected, activation)
        half = HALF_ULP[self.dtype]
        bound = half * np.abs(expected) + 2.0**-20 * sums
        if activation in ("gelu", "silu"):
            # Their slope is at most 1.13, their exponentials and error functions approximate.
            bound += 2.0**-19 * (sums + 1)
        if combined:
            # The sum is rounded once before it is multiplied, and once after.
            factor = self.exact(self.factor)
            expected = expected * factor + self.exact(self.addend)
            bound = bound * np.abs(factor) + half * np.abs(expected) + 2.0**-20
        error = np.abs(self.exact(y) - expected) - bound * 1.01
        assert (error <= 0).all(), f"off by {error.max():.3g} more than rounding"


def tensor(bits, dtype):
    return torch.from_numpy(bits.view(np.int16)).cuda().view(getattr(torch, dtype))


def bits_of(tensor):
    return tensor.detach().view(torch.int16).cpu().numpy().view(np.uint16)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_products_of_cupy_arrays(cupy, pattern, dtype):
    host = packed(pattern, dtype)
    # Dense products round more often.
    matrix = DeviceMatrix.upload(host, allow_dense=False)
    for n in COLUMNS:
        numbers = Numbers(host, n)
        x, bias, factor, addend = map(
            cupy.asarray, (numbers.x, numbers.bias, numbers.factor, numbers.addend)
        )
        out = full((ROWS, n), 0xFFFF)
        assert matrix.multiply(x, out=out) is out
        numbers.check(out.get())
        y = matrix.multiply(x, bias=bias, activation="relu", factor=factor, addend=addend)
        numbers.check(y.get(), bias=True, activation="relu", combined=True)
        tokens = cupy.asarray(np.ascontiguousarray(numbers.x.T))
        y = matrix.multiply(tokens, bias=bias, layout="tokens")
        numbers.check(y.get().T, bias=True)


def test_the_same_inputs_give_the_same_bits(cupy):
    host = packed("tvw", "float16", 2048, 2048)
    matrix = DeviceMatrix.upload(host)
    for n in (4, 48):
        x = cupy.asarray(Numbers(host, n).x)
        first = matrix.multiply(x).get()
        assert all(np.array_equal(matrix.multiply(x).get(), first) for _ in range(20))


@pytest.mark.parametrize("n", [8, 72])
def test_rows_left_in_the_order_of_the_tiles(cupy, n):
    host = packed("hinm", "float16")
    matrix = DeviceMatrix.upload(host, allow_dense=False)
    x = cupy.asarray(Numbers(host, n).x)
    order = host.index.output_order
    left = matrix.multiply(x, keep_order=True).get()
    assert np.array_equal(left[order >= 0], matrix.multiply(x).get()[order[order >= 0]])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_products_of_tensors_on_a_stream_of_their_own(dtype):
    host = packed("hinm", dtype)
    matrix = DeviceMatrix.upload(host)
    side = torch.cuda.Stream()
    for n in COLUMNS:
        numbers = Numbers(host, n)
        x, bias = tensor(numbers.x, dtype), tensor(numbers.bias, dtype)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            busy = torch.randn(4096, 4096, device="cuda")
            for _ in range(20):
                busy = busy @ busy * 1e-3
            # Written behind the work above: read too early, the products are NaN.
            late = torch.full_like(x, float("nan"))
            late.copy_(x + 0 * busy.view(-1)[: x.numel()].nan_to_num().view_as(x).to(x.dtype))
            y = matrix.multiply(late, bias=bias)
            tokens = matrix.multiply(late.T.contiguous(), bias=bias, layout="tokens")
        side.synchronize()
        assert y.dtype == x.dtype
        numbers.check(bits_of(y), bias=True)
        numbers.check(bits_of(tokens.T.contiguous()), bias=True)


@pytest.mark.parametrize("n", [8, 72])
@pytest.mark.parametrize("layout", ["features", "tokens"])
def test_a_graph_of_torchs(n, layout):
    host = packed("tvw", "float16")
    matrix = DeviceMatrix.upload(host)
    numbers = Numbers(host, n)
    given = numbers.x if layout == "features" else np.ascontiguousarray(numbers.x.T)
    x = torch.zeros(given.shape, dtype=torch.float16, device="cuda")
    matrix.multiply(x, layout=layout)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = matrix.multiply(x, layout=layout)
    for _ in range(3):
        x.copy_(tensor(given, "float16"))
        y.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        numbers.check(bits_of(y if layout == "features" else y.T.contiguous()))


@pytest.mark.parametrize("n", [8, 9, 72, 73])
def test_a_graph_of_cupys(cupy, n):
    host = packed("tvw", "float16")
    matrix = DeviceMatrix.upload(host, allow_dense=False)
    numbers = Numbers(host, n)
    x = cupy.zeros((INPUTS, n), cupy.uint16)
    out = cupy.empty((ROWS, n), cupy.uint16)
    # Nothing of these columns has run before the capture.
    matrix.prepare(n)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device(0).synchronize()
    with stream:
        stream.begin_capture()
        matrix.multiply(x, out=out)
        graph = stream.end_capture()
        for _ in range(3):
            x.set(numbers.x)
            out.set(np.full((ROWS, n), 0xFFFF, np.uint16))
            graph.launch(stream)
            stream.synchronize()
            numbers.check(out.get())


def test_a_capture_of_what_has_not_been_prepared_is_refused(cupy):
    matrix = DeviceMatrix.upload(packed("hinm", "float16"))
    x = cupy.zeros((INPUTS, 72), cupy.uint16)
    out = cupy.empty((ROWS, 72), cupy.uint16)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        with pytest.raises(RuntimeError, match=r"call prepare\(72\)"):
            matrix.multiply(x, out=out)
        stream.end_capture()
    matrix.prepare(72)


def test_arrays_that_do_not_fit_are_refused_before_anything_is_launched(cupy):
    matrix = DeviceMatrix.upload(packed("hinm", "float16"))
    with pytest.raises(ValueError, match="x must lie on CUDA device 0"):
        matrix.multiply(np.zeros((INPUTS, 8), np.float16))
    with pytest.raises(ValueError, match="x must lie on CUDA device 0"):
        matrix.multiply(torch.zeros(INPUTS, 8).half())
    with pytest.raises(TypeError, match="got bfloat16"):
        matrix.multiply(torch.zeros(INPUTS, 8).bfloat16().cuda())
    with pytest.raises(ValueError, match='layout="tokens"'):
        matrix.multiply(cupy.zeros((8, INPUTS), cupy.float16).T)
    with pytest.raises(ValueError, match="activation must be one of"):
        matrix.multiply(cupy.zeros((INPUTS, 8), cupy.float16), activation="tanh")
    with pytest.raises(ValueError, match=r"device must be in \[0, .* got 99"):
        DeviceMatrix.upload(packed("hinm", "float16"), device=99)
    assert matrix.multiply(cupy.zeros((INPUTS, 0), cupy.float16)).shape == (ROWS, 0)


def test_memory_that_is_not_there(cupy):
    matrix = DeviceMatrix.upload(packed("hinm", "float16", 4096, 64))
    # So large a result fits into nothing that the pool holds back.
    x = cupy.zeros((64, 1 << 16), cupy.float16)
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    pool.set_limit(size=pool.total_bytes() + 1)
    try:
        with pytest.raises(MemoryError, match=r"shape \(4096, 65536\).*out of device memory"):
            matrix.multiply(x)
    finally:
        pool.set_limit(size=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_layer_on_the_device_is_the_layer_on_the_host(dtype):
    torch.manual_seed(0)
    linear = torch.nn.Linear(INPUTS, ROWS).to(dtype)
    solution = gyroperm.solve(
        linear.weight.detach().float().numpy(), pattern=PATTERNS["hinm"], method="identity"
    )
    layer = HinmLinear.from_linear(linear, solution)
    half = HALF_ULP[str(dtype).removeprefix("torch.")]
    for shape in ((INPUTS,), (0, INPUTS), (3, 5, INPUTS), (2, 40, INPUTS)):
        x = torch.randn(shape).to(dtype)
        layer.cpu()
        expected = layer(x.double())
        layer.cuda()
        given = x.cuda().requires_grad_()
        y = layer(given)
        assert y.dtype == dtype and y.shape == expected.shape
        bound = half * expected.abs() + 2.0**-20 * (x.double().norm(dim=-1, keepdim=True) + 1)
        assert ((y.double().cpu() - expected).abs() <= 1.01 * bound + 2.0**-14 * half).all()
        y.sum().backward()
        exact = layer.weight.double().sum(0).cpu().expand(shape)
        assert ((given.grad.double().cpu() - exact).abs() <= half * exact.abs() + 1e-2).all()
    with torch.autocast("cuda", dtype=dtype):
        assert layer(torch.randn(4, INPUTS, device="cuda")).dtype == dtype
    with pytest.raises(TypeError, match=r"or run inside torch\.autocast"):
        layer(torch.randn(4, INPUTS, device="cuda"))
    with pytest.raises(ValueError, match="x must lie on cuda:0"):
        layer(torch.randn(4, INPUTS).to(dtype))


def test_a_layer_that_loads_other_weights_multiplies_with_them():
    layers = [
        HinmLinear.from_matrix(packed(pattern, "float16"), device=torch.device("cuda"))
        for pattern in ("hinm", "tvw")
    ]
    x = torch.randn(8, INPUTS, device="cuda").half()
    assert not torch.equal(layers[0](x), layers[1](x))
    layers[0].load_state_dict(layers[1].state_dict())
    assert torch.equal(layers[0](x), layers[1](x))


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("GYROPERM_CACHE_DIR", str(tmp_path))
    return tmp_path


def test_the_card_as_the_model_sees_it():
    found = card(0)
    assert found.architecture == limits(0).architecture
    assert found.multiprocessors >= 1 and found.l2_size >= 1 << 20
    assert 5e8 < found.clock < 5e9 and 1e10 < found.memory_bytes < 1e14
    assert 48 << 10 <= found.shared_limit < found.shared_total


@pytest.mark.parametrize("n", [4, 72])
@pytest.mark.parametrize("layout", ["features", "tokens"])
def test_what_was_measured_is_chosen_from_then_on(cupy, cache, n, layout):
    host = packed("hinm", "bfloat16")
    matrix = DeviceMatrix.upload(host, window=True)
    chosen = matrix.tune(n, layout, repeats=5)
    assert chosen.measured and 0 < chosen.seconds < 1e-2
    assert len(list(cache.glob("tuned-*.json"))) == 1
    again = DeviceMatrix.upload(host, window=True)
    assert again.choice(n, layout) == matrix.choice(n, layout) == chosen
    assert chosen.why in again.explain(n, layout)
    numbers = Numbers(host, n)
    x = cupy.asarray(numbers.x if layout == "features" else np.ascontiguousarray(numbers.x.T))
    y = again.multiply(x, layout=layout).get()
    numbers.check(y if layout == "features" else y.T)


@pytest.mark.parametrize("n", [5, 40, 200])
@pytest.mark.parametrize("layout", ["features", "tokens"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_way_to_compute_a_product_gives_it(cupy, cache, dtype, layout, n):
    host = packed("hinm", dtype)
    numbers = Numbers(host, n)
    x = cupy.asarray(numbers.x if layout == "features" else np.ascontiguousarray(numbers.x.T))
    found = DeviceMatrix.upload(host, window=True)
    ways = candidates(found, n, layout, card(0), window=found.window, thorough=True)
    assert {one.way.kind for one in ways} >= {"spmm", "window", "dense"}
    for way in (one.way for one in ways):
        matrix = DeviceMatrix.upload(host, window=True)
        TunedWays(card(0).name, driver_version()).keep(
            matrix, n, layout, [(way, 1e-6)], aligned=n % 8 == 0
        )
        assert matrix.choice(n, layout).way == way
        y = matrix.multiply(x, layout=layout).get()
        numbers.check(y if layout == "features" else y.T)


@pytest.mark.parametrize("layout", ["features", "tokens"])
def test_a_dense_product_says_so_once_and_may_be_forbidden_or_captured(cache, layout):
    host = packed("hinm", "float16")
    numbers = Numbers(host, 200)
    given = numbers.x if layout == "features" else np.ascontiguousarray(numbers.x.T)
    x = tensor(given, "float16")
    matrix = DeviceMatrix.upload(host)
    spmm = next(
        one.way for one in candidates(matrix, 200, layout, card(0)) if one.way.kind == "spmm"
    )
    tuned = TunedWays(card(0).name, driver_version())
    tuned.keep(matrix, 200, layout, [(DENSE, 1e-6), (spmm, 1e-3)])
    with pytest.warns(DenseProductWarning, match="allow_dense=False forbids it") as said:
        for _ in range(3):
            y = matrix.multiply(x, layout=layout)
    assert len(said) == 1
    numbers.check(bits_of(y if layout == "features" else y.T.contiguous()))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = matrix.multiply(x, layout=layout)
    y.fill_(float("nan"))
    graph.replay()
    numbers.check(bits_of(y if layout == "features" else y.T.contiguous()))
    left = matrix.multiply(x, layout=layout, keep_order=True)
    left = left if layout == "features" else left.T
    order = host.index.output_order
    assert left.shape == (len(order), 200)
    forbidden = DeviceMatrix.upload(host, allow_dense=False)
    assert forbidden.choice(200, layout).way == spmm
    numbers.check(
        bits_of(
            forbidden.multiply(x, layout=layout)
            if layout == "features"
            else forbidden.multiply(x, layout=layout).T.contiguous()
        )
    )


def test_a_graph_of_cupys_does_not_hold_dense_products(cupy, cache):
    matrix = DeviceMatrix.upload(packed("hinm", "float16"))
    TunedWays(card(0).name, driver_version()).keep(matrix, 72, "features", [(DENSE, 1e-6)])
    x = cupy.zeros((INPUTS, 72), cupy.uint16)
    out = cupy.empty((ROWS, 72), cupy.uint16)
    stream = cupy.cuda.Stream(non_blocking=True)
    with pytest.warns(DenseProductWarning):
        matrix.multiply(x, out=out)
    with stream:
        stream.begin_capture()
        with pytest.raises(RuntimeError, match="allow_dense=False"):
            matrix.multiply(x, out=out)
        stream.end_capture()


TILE_SIZES = (16, 32, 64, 128, 256)


def of_tiles(tile_size, dense_inside, dtype):
    """Tiles of different lengths and pruned rows, or dense inside; none fills the last tile."""
    rows, inputs = 2 * tile_size + 5, 456
    pattern = (
        Pattern.vector_nm(2, 4, tile_size)
        if dense_inside
        else Pattern.tvw(vec_ratio=0.5, vec_size=tile_size, row_ratio=0.2)
    )
    weights = np.random.default_rng(tile_size).standard_normal((rows, inputs))
    solution = gyroperm.solve(weights, pattern=pattern, method="random", seed=1)
    return HinmMatrix.from_solution(solution, weights, dtype)


@pytest.fixture(scope="module")
def target(cupy):
    of_device = limits(0)
    return Target(
        of_device.multiprocessors,
        of_device.shared_bytes,
        lambda variant, threads, shared: resident_blocks(variant, threads, shared, 0),
        cupy.asarray,
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("dense_inside", [False, True], ids=["two of four", "dense inside"])
@pytest.mark.parametrize("tile_size", TILE_SIZES)
@pytest.mark.parametrize("kind", ["spmm", "decode", "window"])
def test_tiles_of_any_size_by_every_kernel(cupy, target, kind, tile_size, dense_inside, dtype):
    host = of_tiles(tile_size, dense_inside, dtype)
    matrix = DeviceMatrix.upload(host, window=kind == "window")
    for n in COLUMNS:
        numbers = Numbers(host, n)
        ways = [
            one.way
            for one in candidates(matrix, n, "features", card(0), window=matrix.window)
            if one.way.kind == kind
        ]
        assert ways or (kind == "decode" and n > 16)
        for layout in ("features", "tokens") if ways else ():
            given = numbers.x if layout == "features" else np.ascontiguousarray(numbers.x.T)
            shape = (host.shape[0], n) if layout == "features" else (n, host.shape[0])
            plan = make_plan(ways[0], planned_columns(n), matrix, target)
            # Twice: counters are left as they were found.
            for _ in range(2):
                out = full(shape, 0xFFFF)
                launches = plan.launches(
                    matrix,
                    cupy.asarray(given),
                    out,
                    lambda name, shape, dtype: full(shape, -1, dtype),
                    layout=layout,
                    bias=cupy.asarray(numbers.bias),
                )
                for launch in launches:
                    run(launch)
                y = out.get()
                numbers.check(y if layout == "features" else y.T, bias=True)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu"])
@pytest.mark.parametrize("n", [1, 8, 9, 17, 64, 200])
def test_what_a_product_is_combined_with(cupy, n, activation, dtype):
    host = packed("tvw", dtype)
    matrix = DeviceMatrix.upload(host, allow_dense=False)
    numbers = Numbers(host, n)
    x, bias, factor, addend = map(
        cupy.asarray, (numbers.x, numbers.bias, numbers.factor, numbers.addend)
    )
    y = matrix.multiply(x, activation=activation)
    numbers.check(y.get(), activation=activation)
    y = matrix.multiply(x, bias=bias, activation=activation, factor=factor, addend=addend)
    numbers.check(y.get(), bias=True, activation=activation, combined=True)
    tokens = cupy.asarray(np.ascontiguousarray(numbers.x.T))
    tokens = matrix.multiply(tokens, bias=bias, activation=activation, layout="tokens")
    numbers.check(tokens.get().T, bias=True, activation=activation)


@pytest.mark.parametrize("n", [8, 72])
def test_tensors_are_read_and_written_where_they_are(n):
    host = packed("hinm", "bfloat16")
    matrix = DeviceMatrix.upload(host, allow_dense=False)
    numbers = Numbers(host, n)
    # Columns of a wider tensor, whose other columns nothing may touch.
    wide = torch.full((INPUTS, n + 8), float("nan"), dtype=torch.bfloat16, device="cuda")
    x = wide[:, :n]
    x.copy_(tensor(numbers.x, "bfloat16"))
    rest = torch.full((ROWS, n + 8), 7.0, dtype=torch.bfloat16, device="cuda")
    out = rest[:, :n]
    assert as_cupy(x).data.ptr == x.data_ptr() and as_cupy(out).data.ptr == out.data_ptr()
    assert matrix.multiply(x, out=out).data_ptr() == rest.data_ptr()
    numbers.check(bits_of(out.contiguous()))
    assert (rest[:, n:] == 7).all() and wide[:, n:].isnan().all()


@pytest.mark.parametrize("wide", [np.uint16, np.int32])
@pytest.mark.parametrize("n", COLUMNS)
def test_transposes_through_a_table(cupy, n, wide):
    rng = np.random.default_rng(n)
    for channels in (8, 65, 330):
        tokens = rng.integers(0, 1 << 16, (n, channels)).astype(np.uint16)
        order = rng.permutation(channels).astype(wide)
        positions = cupy.asarray(order)
        # Rows that begin on 16 bytes, and rows that do not.
        for stride in (n, -(-n // 8) * 8):
            features = full((channels, stride), 0xABCD)
            run(to_features(cupy.asarray(tokens), features, positions))
            assert np.array_equal(features.get()[order, :n], tokens.T)
            assert (features.get()[:, n:] == 0xABCD).all()
            back = cupy.zeros((n, channels), cupy.uint16)
            run(to_tokens(features, back, positions))
            assert np.array_equal(back.get(), tokens)
            run(to_tokens(features, back))
            assert np.array_equal(back.get().T, features.get()[:, :n])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("channels", [8, 330, 4096, 8200])
def test_channels_in_another_order_alone_and_normalised(cupy, channels, dtype):
    rng = np.random.default_rng(channels)
    weight = to_bits(rng.standard_normal(channels), dtype)
    order = rng.permutation(channels).astype(np.int32)
    for count in (1, 9, 65, 1100):
        tokens = to_bits(rng.standard_normal((count, channels)), dtype)
        given, scale, table = map(cupy.asarray, (tokens, weight, order))
        out = cupy.zeros((count, channels), cupy.uint16)
        run(permute(given, table, out))
        assert np.array_equal(out.get(), tokens[:, order])
        x = from_bits(tokens, dtype).astype(np.float64)
        expected = x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-5)
        expected = (expected * from_bits(weight, dtype))[:, order]
        # Rounded before and after the multiplication; least, that of the smallest numbers.
        bound = 2.05 * HALF_ULP[dtype] * np.abs(expected) + 2.0**-22
        normal = {"epsilon": 1e-5, "dtype": dtype, "order": table}
        run(rms_norm(given, scale, out, **normal))
        assert (np.abs(from_bits(out.get(), dtype) - expected) <= bound).all()
        features = full((channels, count), 0xFFFF)
        run(rms_norm_to_features(given, scale, features, **normal))
        assert np.array_equal(features.get().T, out.get())


@pytest.mark.parametrize("n", [8, 72])
def test_a_consumer_fused_to_its_producer(cupy, n):
    first = packed("tvw", "float16", 300, INPUTS)
    second = packed("hinm", "float16", 200, 300)
    numbers = Numbers(first, n)
    order = first.index.output_order
    assert (order < 0).any() and (np.diff(order) != 1).any()
    producer, plain, fused = (
        DeviceMatrix.upload(host, allow_dense=False)
        for host in (first, second, second.fused(order))
    )
    x = cupy.asarray(numbers.x)
    expected = plain.multiply(producer.multiply(x, activation="relu"))
    left = full((len(order), n), 0xFFFF)
    producer.multiply(x, activation="relu", keep_order=True, out=left)
    assert np.array_equal(fused.multiply(left).get(), expected.get())
    # The same tables, composed on the device.
    position_of = cupy.zeros(300, cupy.uint16)
    tables = cupy.zeros(len(second.columns), cupy.uint16)
    columns = cupy.asarray(second.columns)
    for launch in fusion(cupy.asarray(order), position_of, [(columns, tables)]):
        run(launch)
    assert np.array_equal(tables.get(), fuse(second.index, order).columns)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 16, 72])
def test_a_layer_in_a_graph(tokens, dtype):
    host = packed("hinm", str(dtype).removeprefix("torch."))
    layer = HinmLinear.from_matrix(host, device=torch.device("cuda"))
    layer.allow_dense = False
    x = torch.randn(tokens, INPUTS, device="cuda").to(dtype)
    with torch.inference_mode():
        expected = layer(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(x)
        for _ in range(3):
            y.fill_(float("nan"))
            graph.replay()
            torch.cuda.synchronize()
            assert torch.equal(y, expected)
