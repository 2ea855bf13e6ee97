"""The benchmark of products on a card: all of it that needs no card, the rest by an emulation."""

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]

if not (ROOT / "benchmarks" / "spmm.py").is_file():
    pytest.skip("tests/ lies apart from the source tree", allow_module_level=True)

if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

import emulated  # noqa: E402
from benchmarks import (  # noqa: E402
    spmm,
    spmm_card,
    spmm_ceilings,
    spmm_contenders,
    spmm_layers,
    spmm_sanitize,
    spmm_sections,
    spmm_small,
    spmm_tensors,
    spmm_timing,
)
from benchmarks.run_log import RunLog  # noqa: E402
from benchmarks.spmm_cases import (  # noqa: E402
    Sample,
    Structure,
    dense_weights,
    even,
    make_matrix,
    product_cases,
    steps_of_tiles,
    tvw_cases,
)
from benchmarks.spmm_goals import GOALS, judge, ratio  # noqa: E402
from benchmarks.spmm_report import of_ceiling, tables  # noqa: E402
from benchmarks.spmm_timing import Contender, Sampled, WrongResultError, measure  # noqa: E402
from gyroperm.gpu import source  # noqa: E402
from gyroperm.gpu.dispatch import choose  # noqa: E402
from gyroperm.gpu.launch import Launch  # noqa: E402
from gyroperm.gpu.matrix import DeviceMatrix  # noqa: E402
from gyroperm.gpu.model import Card  # noqa: E402
from gyroperm.gpu.numbers import from_bits, to_bits  # noqa: E402
from gyroperm.gpu.plans import Target, make_plan, planned_columns  # noqa: E402
from gyroperm.gpu.reorder import reordered  # noqa: E402
from gyroperm.gpu.source import Variant  # noqa: E402
from gyroperm.gpu.window import window_blocking, window_plan  # noqa: E402

TARGET = Target(4, 99 * 1024, lambda variant, threads, shared_bytes: 5, np.copy)
CARD = {
    "name": "a card",
    "architecture": "90",
    "multiprocessors": 132,
    "clock": 1.98e9,
    "memory_bytes": 4.8e12,
    "l2_size": 1 << 16,
    "shared_limit": 227 << 10,
    "shared_total": 228 << 10,
    "cuda_driver": 13000,
    "cuda_runtime": 12090,
    "torch_cuda": "12.9",
    "cusparselt": None,
}


# --- matrices


@pytest.mark.parametrize(
    "structure",
    [
        Structure("hinm", 200, 256, 64, 0.5),
        Structure("tvw", 300, 512, 32, 0.5, "float16"),
        Structure("vector", 96, 256, 32, 0.75, "float16"),
        Structure("hinm", 128, 128, 128, 0.0, is_sorted=True),
    ],
)
def test_a_matrix_made_at_random_is_packed_as_any_other(structure):
    matrix = make_matrix(structure)
    dense = matrix.to_dense()
    np.testing.assert_array_equal(dense_weights(matrix), dense)
    assert matrix.shape == (structure.outputs, structure.inputs)
    assert (matrix.sparse, matrix.dtype) == (structure.sparse, structure.dtype)
    if structure.pattern != "tvw":
        assert (dense != 0).mean() == pytest.approx(1 - structure.sparsity, abs=1e-3)
    rows = matrix.row_map[matrix.row_map >= 0]
    columns = [
        matrix.columns[a:b].astype(int)
        for a, b in zip(matrix.index.tile_ptr[:-1], matrix.index.tile_ptr[1:], strict=True)
    ]
    assert all(len(np.unique(one)) == len(one) for one in columns)
    assert (np.diff(rows) == 1).all() == structure.is_sorted
    assert all((np.diff(one) > 0).all() for one in columns) == structure.is_sorted


def test_a_row_order_can_be_given():
    order = np.random.default_rng(5).permutation(100)
    matrix = make_matrix(Structure("hinm", 100, 64, 32, 0.0), row_order=order)
    assert np.array_equal(matrix.row_map[:100], order) and (matrix.row_map[100:] == -1).all()


def test_columns_that_are_no_steps_are_refused():
    with pytest.raises(ValueError, match="multiple of 64, got 100"):
        make_matrix(Structure("hinm", 64, 100, 64, 0.5))


@pytest.mark.parametrize("tiles", [1, 32, 33])
@pytest.mark.parametrize("vec_ratio", [0.0, 0.3, 0.5, 0.75])
def test_tiles_of_different_lengths_keep_as_much_as_equal_ones(tiles, vec_ratio):
    ragged = Structure("tvw", 64 * tiles, 4096, 64, vec_ratio)
    rng = np.random.default_rng(0)
    steps = steps_of_tiles(ragged, tiles, rng)
    equal = steps_of_tiles(even(ragged), tiles, rng)
    assert steps.sum() == equal.sum() and len(set(equal)) == 1
    assert steps.min() >= 1 and steps.max() <= 64
    if tiles > 1 and vec_ratio >= 0.3:
        assert steps.max() > 1.2 * steps.min()


def test_a_sample_is_of_the_product_and_tells_what_is_off():
    rng = np.random.default_rng(0)
    matrix = make_matrix(Structure("tvw", 300, 256, 64, 0.5))
    x = to_bits(rng.standard_normal((256, 40)), "bfloat16")
    expected = matrix.matmul_reference(from_bits(x, "bfloat16"))
    sample = Sample.of(matrix, x)
    at = np.ix_(sample.rows, sample.columns)
    np.testing.assert_allclose(sample.expected, expected[at], rtol=1e-12)
    assert {0, 39} <= set(sample.columns) and len(sample.rows) > 2 * 64 - 20
    y = to_bits(expected[at], "bfloat16")
    assert sample.excess(y, "bfloat16") <= 0
    for wrong in (y[0, 0] + 2, 0x7FFF):
        changed = y.copy()
        changed[0, 0] = wrong
        assert not sample.excess(changed, "bfloat16") <= 0


def test_cases_are_all_different_and_ready_for_json():
    for quick in (False, True):
        keys = [
            json.dumps(item.key)
            for section in spmm_sections.SECTIONS.values()
            for item in section(quick=quick)
        ]
        assert len(set(keys)) == len(keys)
    cases = product_cases(quick=False)
    wanted = {
        (shape, V, ratio, n)
        for shape in ((4096, 4096), (11008, 4096), (4096, 14336))
        for V in (64, 128)
        for ratio in (0.0, 0.5, 0.75)
        for n in (1, 8, 16, 64, 256, 4096)
    }
    found = {
        ((s.outputs, s.inputs), s.tile_size, s.vec_ratio, n)
        for s, n in ((case.structure, case.n) for case in cases)
        if s.pattern == "hinm"
    }
    assert wanted <= found and any(c.structure.tile_size == 32 for c in cases)
    vectors = {c.structure for c in cases if c.structure.pattern == "vector"}
    assert {(s.tile_size, s.sparsity, s.dtype) for s in vectors} == {
        (V, sparsity, "float16") for V in (32, 128) for sparsity in (0.75, 0.875)
    }
    assert {c.structure.pattern for c in tvw_cases(quick=False)} == {"tvw"}


def test_copies_are_more_than_l2_holds():
    assert spmm_contenders.copies(50 << 20, 10 << 20, 0) == 15
    assert spmm_contenders.copies(50 << 20, 10 << 20, 65 << 20) == 2
    assert spmm_contenders.copies(50 << 20, 1 << 30, 0) == 2


# --- timing


def sampled(times):
    """A sampler whose samples are given by label; notes who was sampled when."""
    order = []

    def sampler(contender):
        given = iter(times[contender.label])

        def sample():
            order.append(contender.label)
            return next(given)

        return Sampled(sample, 7, "graph")

    return sampler, order


def test_contenders_are_timed_in_turns():
    sampler, order = sampled({"a": [1, 2, 3], "b": [4, 5, 6]})
    contenders = [Contender("a", [int, int]), Contender("b", [int], amounts={"operations": 5})]
    found = measure(contenders, 3, sampler)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert found["a"] == {"seconds": [1, 2, 3], "calls": 7, "copies": 2, "timed_by": "graph"}
    assert found["b"]["seconds"] == [4, 5, 6] and found["b"]["operations"] == 5


def test_what_fails_or_is_wrong_leaves_the_others_to_be_measured():
    def refuse():
        raise WrongResultError("off by 3")

    def sampler(contender):
        contender.calls[0]()
        return Sampled(lambda: 1.0, 1, "calls")

    found = measure(
        [
            spmm_contenders.failed("gone", MemoryError("too little")),
            Contender("wrong", [int], refuse),
            Contender("good", [int]),
        ],
        2,
        sampler,
    )
    assert found["gone"] == {"absent": "MemoryError: too little"}
    assert found["wrong"] == {"wrong": "off by 3"}
    assert found["good"]["seconds"] == [1.0, 1.0]


def test_a_sample_takes_long_enough_and_not_too_many_calls():
    assert spmm_timing.repetitions(1e-3, 2) == 2
    assert spmm_timing.repetitions(1.0, 2) == 1
    assert spmm_timing.repetitions(0.0, 100) == 20


@pytest.fixture
def fake_cuda(monkeypatch):
    """torch's streams, graphs and events; calls take a microsecond of a clock of their own."""
    import torch

    clock = SimpleNamespace(now=0.0, captures=True, recording=None)

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = clock.now

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return end.at - self.at

    class Graph:
        def __init__(self):
            self.calls = 0

        def replay(self):
            clock.now += 1e-3 * self.calls

    @contextmanager
    def captured(graph, stream):
        if not clock.captures:
            raise RuntimeError("not permitted when stream is capturing")
        clock.recording = graph
        yield
        clock.recording = None

    @contextmanager
    def streamed(stream):
        yield

    stream = SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: None)
    fakes = {"Event": Event, "CUDAGraph": Graph, "graph": captured, "stream": streamed}
    fakes |= {"Stream": lambda: stream, "current_stream": lambda: stream}
    for name, fake in {**fakes, "synchronize": lambda: None}.items():
        monkeypatch.setattr(torch.cuda, name, fake)

    def call():
        if clock.recording is not None:
            clock.recording.calls += 1
        else:
            clock.now += 2e-3

    return clock, call


@pytest.mark.parametrize(
    ("captures", "eager", "timed_by", "seconds"),
    [(True, False, "graph", 1e-6), (True, True, "calls", 2e-6), (False, False, "calls", 2e-6)],
)
def test_a_sample_on_a_card_is_of_a_graph_where_one_can_be_captured(
    fake_cuda, captures, eager, timed_by, seconds
):
    clock, call = fake_cuda
    clock.captures = captures
    found = spmm_timing.on_card(Contender("a", [call] * 5, eager=eager))
    assert (found.timed_by, found.calls % 5) == (timed_by, 0)
    assert found.calls * seconds >= 0.9 * spmm_timing.SAMPLE_SECONDS
    assert found.sample() == pytest.approx(seconds)


# --- kernels and contenders, emulated


@pytest.fixture
def on_host(monkeypatch):
    """torch's tensors and launches on the host, packed matrices emulated."""
    from gyroperm.gpu import device

    monkeypatch.setattr(spmm_tensors, "DEVICE", "cpu")
    monkeypatch.setattr(spmm_contenders, "device_target", lambda: TARGET)
    monkeypatch.setattr(spmm_contenders, "_uploaded", OnHost.uploaded)
    monkeypatch.setattr(device, "as_cupy", as_numpy)
    monkeypatch.setattr(device, "current_stream", lambda *arrays: None)
    monkeypatch.setattr(device, "run", run_on_host)


def as_numpy(tensor):
    import torch

    return tensor.view(torch.int16).numpy().view(np.uint16)


def run_on_host(launch, stream=None):
    arguments = {
        name: as_numpy(value) if hasattr(value, "data_ptr") else value
        for name, value in launch.arguments.items()
    }
    emulated.run(
        Launch(launch.variant, launch.grid, launch.threads, launch.shared_bytes, arguments),
        once=(),
    )


class OnHost:
    """A DeviceMatrix as the contenders use it."""

    @classmethod
    def uploaded(cls, host, count, *, window):
        plan = None
        if window:
            limit = TARGET.shared_bytes
            chosen = window_blocking(
                host.tile_size, host.shape[1], sparse=host.sparse, shared_limit=limit
            )
            plan = window_plan(host, chosen)
            host = reordered(host, plan.order)
        return [cls(host, plan)] * count

    def __init__(self, host, window=None):
        index = host.index
        arrays = host.values, host.metadata, index.columns, index.row_map
        self.of = DeviceMatrix(*arrays, index, host.dtype, False, window)
        self.index, self.sparse, self.dtype = index, host.sparse, host.dtype
        self.values, self.metadata, self.columns, self.row_map = arrays
        self.window = window

    def choice(self, n, layout="features"):
        card = spmm_card.of_model(CARD)
        return choose(self.of, n, layout, card, window=self.window, allow_dense=False)

    def multiply(self, x, *, out, layout="features", keep_order=False, **options):
        n = x.shape[1]
        plan = make_plan(self.choice(n, layout).way, planned_columns(n), self.of, TARGET)
        arrays = {
            name: as_numpy(value) if hasattr(value, "data_ptr") else value
            for name, value in options.items()
        }
        launches = plan.launches(
            self.of,
            as_numpy(x),
            as_numpy(out),
            lambda name, shape, dtype: np.zeros(shape, dtype),
            layout=layout,
            keep_order=keep_order,
            **arrays,
        )
        for launch in launches:
            emulated.run(launch, once=())
        return out


@pytest.mark.parametrize(
    ("n", "kinds"), [(8, {"decode", "spmm", "window"}), (72, {"spmm", "window"})]
)
def test_every_kernel_is_launched_and_checked(on_host, n, kinds):
    structure = Structure("tvw", 130, 256, 64, 0.5)
    rotation = spmm_contenders.Rotation.of(make_matrix(structure), 2)
    card = spmm_card.of_model(CARD)
    assert isinstance(card, Card)
    chosen, *others = spmm_contenders.product_contenders(rotation, n, card, 2)
    assert chosen.label == "gyroperm"
    found = [one.label.split("(")[0] for one in others]
    assert set(found) == kinds and max(map(found.count, kinds)) == 2
    assert chosen.amounts["way"] in {one.label for one in others} and chosen.amounts["dispatched"]
    for one in others:
        assert 1e-6 < one.amounts["predicted"] < 1e-3
        assert one.amounts["memory_bytes"] == rotation.host.nbytes + 2 * n * (130 + 256)
    # One of each kernel.
    for one in {one.label.split("(")[0]: one for one in [*others, chosen]}.values():
        one.check()
    rotation.copies[0].values = np.zeros_like(rotation.copies[0].values)
    with pytest.raises(WrongResultError, match="more than rounding"):
        spmm_contenders.product_contenders(rotation, n, card, 2)[1].check()


def test_dense_products_stand_beside_them(on_host):
    contenders = spmm_contenders.dense_contenders(64, 128, 8, "float16", spmm_card.of_model(CARD))
    cublas, features, cusparselt = contenders
    assert (cublas.calls[0]().shape, features.calls[0]().shape) == ((8, 64), (64, 8))
    assert len(cublas.calls) >= 2 and 0 < cublas.amounts["predicted"] < 1e-3
    with pytest.raises(spmm_timing.FAILURES):
        cusparselt.calls[0]()


def test_a_chain_computes_the_same_in_every_form(on_host):
    contenders = spmm_layers.chain_contenders(spmm_layers.Ffn(128, 192, 64, 0.5), 9, 1 << 10)
    assert [one.label for one in contenders] == ["fused", "sorted, identity", "index_select"]
    for one in contenders:
        one.check()
    # Without its fused table the second layer reads other rows.
    permuted = spmm_layers.matrices(spmm_layers.Ffn(128, 192, 64, 0.5), False)
    x = spmm_tensors.normal(128, 9)
    forward = spmm_layers._Forward(x, 192, None)
    call = forward.call(*map(OnHost, permuted))
    expected = spmm_layers._reference(permuted, x)
    with pytest.raises(WrongResultError):
        spmm_layers._close(call, forward.out, expected)()


def test_a_layer_stands_beside_a_dense_one(on_host):
    host = make_matrix(Structure("hinm", 96, 128, 32, 0.5))
    contenders = spmm_layers.linear_contenders(host, 3, 1 << 10)
    labels = ["nn.Linear", "HinmLinear", "nn.Linear, eager", "HinmLinear, eager"]
    assert [one.label for one in contenders] == labels
    assert [one.eager for one in contenders] == [False, False, True, True]
    contenders[1].check()
    assert all(one.calls[0]().shape == (3, 96) for one in contenders)


def test_transposes_move_what_they_should(on_host):
    into, back, of_torch = spmm_sections._transposes(72, 65)
    of_torch.calls[0]()
    into.calls[0]()
    back.calls[0]()
    assert into.amounts["memory_bytes"] == 4 * 65 * 72


@pytest.mark.parametrize("kernel", spmm_small.KERNELS)
def test_a_small_launch_of_every_kernel(kernel):
    place = spmm_small.Place(lambda array: np.array(array), np.asarray)
    launched = []
    for small in spmm_small.launches(kernel, place):
        before = small.wrong()
        assert before is not None, "what was not computed passes for right"
        emulated.run(small.launch, once=())
        assert small.wrong() is None, small.name
        launched.append(small.name)
    assert len(set(launched)) == len(launched) >= 2


def test_small_launches_cover_every_kernel_that_there_is():
    place = spmm_small.Place(lambda array: np.array(array), np.asarray)
    launched = {
        small.launch.variant.kernel
        for kernel in spmm_small.KERNELS
        for small in spmm_small.launches(kernel, place)
    }
    assert launched == {path.stem for path in (ROOT / "gpu" / "kernels").glob("*.cu")}


@pytest.fixture
def ceilings_source(monkeypatch):
    """The ceilings' kernels where the emulation looks for kernels."""
    whole = spmm_ceilings.SOURCE.read_text(encoding="utf-8")
    original = source.text

    def text(name):
        return whole if name in ("read_all.cu", "multiply_all.cu") else original(name)

    source.headers.cache_clear()
    source.parameters.cache_clear()
    monkeypatch.setattr(source, "text", text)
    monkeypatch.setattr(emulated, "text", text)
    yield
    source.headers.cache_clear()
    source.parameters.cache_clear()


def test_the_loop_of_loads_reads_everything(ceilings_source):
    blocks, threads = 2, spmm_ceilings.READ_THREADS
    shares, visits = 4, 2
    count = shares * spmm_ceilings.LOADS * threads
    words = np.random.default_rng(0).integers(0, 1 << 32, 4 * count).astype(np.uint32)
    out = np.zeros(blocks * threads, np.uint32)
    variant = Variant.of("read_all", {"SPARSE": 0, "GYROPERM_BF16": 1})
    arguments = {"from": words, "out": out, "shares": shares, "visits": visits}
    found = emulated.run(Launch(variant, (blocks, 1, 1), threads, 0, arguments), once=("out",))
    # Every word once, whoever read it.
    assert np.bitwise_xor.reduce(out) == np.bitwise_xor.reduce(words)
    assert found.bytes_loaded == 16 * count


@pytest.mark.parametrize("sparse", [False, True])
def test_the_loop_of_products_makes_as_many_as_are_counted(ceilings_source, sparse):
    threads, passes = spmm_ceilings.PRODUCT_THREADS, 3
    rng = np.random.default_rng(0)
    operands = to_bits(rng.standard_normal(2 * threads * 8), "bfloat16").view(np.uint32)
    places = np.full(threads, 0x4E9D8C49, np.uint32)
    out = np.zeros(threads, np.float32)
    variant = Variant.of("multiply_all", {"SPARSE": sparse, "GYROPERM_BF16": 1})
    arguments = {"operands": operands, "metadata": places, "out": out, "passes": passes}
    found = emulated.run(Launch(variant, (1, 1, 1), threads, 0, arguments), once=("out",))
    assert found.products == threads // 32 * passes * spmm_ceilings.SUMS
    assert np.isfinite(out).all() and len(np.unique(out)) > threads // 2


@pytest.mark.parametrize("architecture", ["80", "90"])
def test_the_ceilings_compile(architecture):
    pytest.importorskip("cupy_backends.cuda.libs.nvrtc")
    codes = [spmm_ceilings.compiled(architecture, sparse=sparse) for sparse in (False, True)]
    assert all(code.startswith(b"\x7fELF") for code in codes) and codes[0] != codes[1]


def test_ceilings_are_set_up_for_any_card(on_host, monkeypatch):
    made = []

    def kernel(name, architecture, sparse=False):
        return lambda grid, block, arguments: made.append((name, grid, block, arguments))

    monkeypatch.setattr(spmm_ceilings, "_kernel", kernel)
    monkeypatch.setattr(spmm_ceilings, "COPIED", 1 << 26)
    monkeypatch.setattr(spmm_ceilings, "DENSE", (64,))
    monkeypatch.setattr(spmm_ceilings, "_launched", lambda kernel, *rest: lambda: kernel(*rest))
    contenders = spmm_ceilings.ceilings(CARD, quick=False)
    for one in contenders:
        one.calls[0]()
    assert {one.amounts["ceiling"] for one in contenders} == {
        "memory",
        "memory read",
        "l2",
        "mma.sync",
        "mma.sp",
        "cublas",
    }
    assert [name for name, *_ in made] == ["read_all"] * 4 + ["multiply_all"] * 2
    for _, blocks, _, arguments in made[:4]:
        source, _, shares, visits = arguments
        share = 16 * spmm_ceilings.LOADS * spmm_ceilings.READ_THREADS
        assert shares * share == 4 * len(source) and visits * blocks * share <= 1 << 26
    products = [one.amounts["amount"] for one in contenders if "mma" in one.label]
    assert products[1] == 2 * products[0]


# --- goals and tables


def timed(*seconds, **amounts):
    of_all = {"memory_bytes": 4e6, "l2_bytes": 8e6, "operations": 1e9, "instruction": "mma.sp"}
    return {"seconds": list(seconds), "calls": 10, "copies": 2, **of_all, **amounts}


def product(n, dense, ours, *, vec_ratio=0.5, V=128, shape=(4096, 4096), pattern="hinm"):
    structure = Structure(pattern, *shape, V, vec_ratio)
    contenders = {
        "cublas": timed(*dense),
        "cublas features": timed(*(2 * one for one in dense)),
        "cusparselt": {"absent": "RuntimeError: not built"},
        "gyroperm": timed(*ours, way="spmm(block_n=64, stages=4)"),
        "spmm(block_n=64, stages=4)": timed(*(1.5 * one for one in ours), predicted=8e-6),
        "spmm(block_n=128, stages=4)": timed(*ours, predicted=9e-6),
    }
    key = {"section": "products", "structure": structure.as_dict(), "n": n}
    return {**key, "contenders": contenders}


def recorded():
    """A results file as a run writes it, with a case of each section."""
    rate = {"amount": 4e9, "unit": "bytes"}
    ceilings = {
        "copy": {"seconds": [1e-3, 1e-3], "ceiling": "memory", **rate},
        "read": {"seconds": [8e-4, 1e-3], "ceiling": "memory read", **rate},
        "L2, 8 MiB": {"seconds": [5e-4, 5e-4], "ceiling": "l2", **rate},
        "L2, 16 MiB": {"seconds": [4e-4, 4e-4], "ceiling": "l2", **rate},
        "mma.sp": {
            "seconds": [1e-3, 1e-3],
            "ceiling": "mma.sp",
            "amount": 1e12,
            "unit": "operations",
        },
    }
    tvw = Structure("tvw", 4096, 4096, 128, 0.5).as_dict()
    linear = Structure("hinm", 4096, 4096, 128, 0.5).as_dict()
    cases = [
        {"section": "ceilings", "contenders": ceilings},
        product(1, [20e-6, 21e-6], [10e-6, 10e-6]),
        product(16, [20e-6, 20e-6], [10e-6, 12e-6], V=64),
        product(64, [20e-6, 20e-6], [20e-6, 20e-6]),
        product(4096, [20e-6, 20e-6], [10e-6, 10e-6], pattern="vector", vec_ratio=0.75),
        {
            "section": "transposes",
            "channels": 4096,
            "n": 256,
            "contenders": {
                "to features": timed(2e-6, 2e-6),
                "to tokens": timed(3e-6, 3e-6),
                "torch": timed(5e-6, 5e-6),
            },
        },
        {
            "section": "tvw",
            "structure": tvw,
            "n": 64,
            "contenders": {
                "even gyroperm": timed(1e-5, 1e-5),
                "ragged gyroperm": timed(1.05e-5, 1.05e-5),
            },
        },
        {
            "section": "linear",
            "structure": linear,
            "n": 16,
            "contenders": {
                "nn.Linear": timed(3e-5, 3e-5),
                "HinmLinear": timed(2e-5, 2e-5),
                "nn.Linear, eager": timed(6e-5, 6e-5),
                "HinmLinear, eager": {"wrong": "off by 1"},
            },
        },
        {
            "section": "chain",
            "channels": 4096,
            "hidden": 11008,
            "tile_size": 128,
            "vec_ratio": 0.5,
            "n": 64,
            "contenders": {
                "fused": timed(1e-5, 1e-5),
                "sorted, identity": timed(0.97e-5, 0.97e-5),
                "index_select": timed(1.2e-5, 1.2e-5),
            },
        },
    ]
    machine = {"commit": "0123456789abcdef", "modified": False, "gyroperm": "0.1.0"}
    return {
        "schema": spmm.SCHEMA,
        "date": "2026-01-02T03:04:05+00:00",
        "quick": False,
        "rounds": 2,
        "card": CARD,
        "machine": {**machine, "packages": {"torch": "2.13"}},
        "cases": cases,
        "goals": judge(cases),
        "problems": [],
    }


def test_a_ratio_is_of_times_of_the_same_round_and_the_faster_library():
    contenders = {"slow": timed(2, 8), "slower": timed(6, 6), "fast": timed(1, 2), "gone": {}}
    spread = ratio(contenders, ["slow", "slower"], ["fast"])
    assert (spread.median, spread.least, spread.greatest) == (3, 2, 4)
    assert ratio(contenders, ["slow"], ["gone"]) is None
    assert ratio(contenders, ["gone", "unknown"], ["fast"]) is None


def test_goals_are_held_against_the_worst_of_their_cases():
    judged = {one["goal"]: one for one in judge(recorded()["cases"])}
    assert len(judged) == len(GOALS)
    few = judged["N <= 16, 75 %, 4096 x 4096, against cuBLAS"]
    assert few["measured"] == pytest.approx((20 / 10 + 20 / 12) / 2)
    assert (few["cases"], few["case"]) == (2, "4096 x 4096, V = 64, N = 16")
    assert not few["reached"]
    wide = judged["N = 64, 75 %, V = 128, against cuBLAS"]
    assert wide["measured"] == pytest.approx(1.0) and not wide["reached"]
    vector = judged["N = 4096, vector N:M fp16, 75 %, V = 128, against cuBLAS"]
    assert vector["measured"] == pytest.approx(2.0) and vector["reached"]
    tvw = judged["TVW, tiles of different lengths within 10 % of equal ones"]
    assert tvw["measured"] == pytest.approx(1 / 1.05) and tvw["reached"]
    assert not judged["chain within 2 % of sorted, identity"]["reached"]
    assert judged["chain against index_select"]["reached"]
    nothing = judged["N = 4096, 87.5 %, V = 128, against cuBLAS"]
    assert (nothing["measured"], nothing["reached"], nothing["cases"]) == (None, None, 0)


def test_the_goals_are_those_for_an_h200():
    found = {goal.text.removesuffix(", against cuBLAS"): round(goal.least, 3) for goal in GOALS}
    assert found == {
        "N <= 16, 75 %, 4096 x 4096": 1.9,
        "N <= 16, 75 %, 11008 x 4096 and 4096 x 14336": 2.4,
        "N = 64, 75 %, V = 128": 1.6,
        "N = 4096, 75 %, V = 128": 1.5,
        "N = 4096, 87.5 %, V = 128": 2.9,
        "N = 4096, vector N:M fp16, 75 %, V = 32": 1.2,
        "N = 4096, vector N:M fp16, 87.5 %, V = 32": 1.9,
        "N = 4096, vector N:M fp16, 75 %, V = 128": 1.8,
        "N = 4096, vector N:M fp16, 87.5 %, V = 128": 3.0,
        "TVW, tiles of different lengths within 10 % of equal ones": 0.909,
        "chain within 2 % of sorted, identity": 0.98,
        "chain against index_select": 1.1,
    }
    # Every goal of a product has cases in a full run.
    cases = [
        {"section": "products", "structure": case.structure.as_dict(), "n": case.n}
        for case in product_cases(quick=False)
    ]
    for goal in GOALS:
        if "cuBLAS" in goal.text:
            assert any(map(goal.of, cases)), goal.text


def test_the_ceiling_that_is_nearest():
    limits = {"memory read": 4e12, "l2": 8e12, "mma.sp": 1e15}
    assert of_ceiling(timed(2e-6), limits) == ("memory", pytest.approx(0.5))
    assert of_ceiling(timed(2e-6, l2_bytes=1.2e7), limits) == ("L2", pytest.approx(0.75))
    assert of_ceiling(timed(2e-6, operations=1.6e9), limits) == ("tensor", pytest.approx(0.8))
    assert of_ceiling(timed(2e-6), {}) is None
    assert of_ceiling({"absent": "no"}, limits) is None


def test_tables_have_a_row_for_every_case():
    text = tables(recorded())
    assert "a card (sm_90, 132 multiprocessors)" in text and "at 0123456789ab, 2026-01-02" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(line.endswith(" |") for line in rows)
    assert any("L2, 16 MiB | 10.00 TB/s" in line and "| yes |" in line for line in rows)
    assert any("L2, 8 MiB" in line and "yes" not in line for line in rows)
    (row,) = [line for line in rows if line.startswith("| 4096 x 4096 | 75 % | 128 | 1 |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[4:8] == ["20.5", "10.0", "2.05 (2.00..2.10)", "-"]
    assert cells[8:] == ["spmm 64", "spmm 128, 10.0", "9.0", "10 % of tensor"]
    assert "Products, HiNM 2:4" in text and "Products, vector N:M" in text
    assert "Products, TVW" not in text
    assert any("| 1.05 |" in line for line in rows)  # TVW, different by equal
    assert any("not measured" in line for line in rows)
    assert "cusparselt: RuntimeError: not built (4 cases)" in text
    assert "**wrong**: HinmLinear, eager, linear, 4096 x 4096, V = 128, N = 16: off by 1" in text


# --- going on where it stopped


def fake_sections(monkeypatch, measured):
    def section(name):
        def items(*, quick):
            for n in (1, 2):
                key = {"section": name, "channels": 8, "hidden": 8, "n": n}
                yield spmm_sections.Item(key, lambda bench, key=key: measured(key))

        return items

    sections = {name: section(name) for name in ("first", "second")}
    monkeypatch.setattr(spmm, "SECTIONS", sections)


def test_a_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    made, broken = [], {("first", 2)}

    def measured(key):
        made.append((key["section"], key["n"]))
        if made[-1] in broken:
            raise RuntimeError("broken")
        return {"fused": timed(1.0), "bad": {"wrong": "off by 2"}}

    fake_sections(monkeypatch, measured)

    def again(sections, **options):
        log = RunLog(tmp_path / "log.jsonl", {"code": 1})
        given = {"quick": True, "retry": False, "is_lost": lambda: False, **options}
        found = spmm.Measured(None, log, **given)
        found.measure(sections)
        return found

    first = again(["first"])
    assert made == [("first", 1), ("first", 2)]
    assert [case["n"] for case in first.cases()] == [1]
    failed, wrong = first.problems()
    assert failed["error"] == "RuntimeError: broken" and wrong["wrong"] == "off by 2"
    both = again(["first", "second"])
    assert made[2:] == [("second", 1), ("second", 2)]
    assert [(case["section"], case["n"]) for case in both.cases()] == [
        ("first", 1),
        ("second", 1),
        ("second", 2),
    ]
    broken.clear()
    assert len(again(["first"], retry=True).cases()) == 4 and made[4:] == [("first", 2)]
    # Other code, or another card: nothing of it holds.
    log = RunLog(tmp_path / "log.jsonl", {"code": 2})
    other = spmm.Measured(None, log, quick=True, retry=False, is_lost=lambda: False)
    assert other.cases() == []


def test_a_card_that_is_lost_ends_the_run_but_not_the_next_one(tmp_path, monkeypatch):
    made = []

    def measured(key):
        made.append(key["n"])
        return {"fused": {"absent": "RuntimeError: an illegal memory access"}}

    fake_sections(monkeypatch, measured)

    def begin(is_lost):
        log = RunLog(tmp_path / "log.jsonl", {})
        return spmm.Measured(None, log, quick=True, retry=False, is_lost=is_lost)

    lost = begin(lambda: True)
    with pytest.raises(spmm.LostCardError, match="an illegal memory access"):
        lost.measure(["first"])
    assert "the card was lost" in lost.problems()[0]["error"]
    begin(lambda: False).measure(["first"])
    assert made == [1, 2]


def test_what_a_measurement_depends_on(monkeypatch, tmp_path):
    found = spmm.conditions(CARD, 5, 4)
    assert found["name"] == "a card" and found["rounds"] == 5
    assert json.loads(json.dumps(found)) == found
    assert spmm.conditions({**CARD, "cuda_driver": 1}, 5, 4) != found
    changed = tmp_path / "gpu" / "kernels"
    changed.mkdir(parents=True)
    (changed / "spmm.cu").write_text("other")
    monkeypatch.setattr(spmm.machine, "ROOT", tmp_path)
    assert spmm.conditions(CARD, 5, 4)["code"] != found["code"]


# --- the command


@pytest.fixture
def a_card(monkeypatch):
    monkeypatch.setattr(spmm_card, "require_card", lambda: None)
    monkeypatch.setattr(spmm_card, "describe", lambda: dict(CARD))
    monkeypatch.setattr(spmm, "is_lost", lambda: False)


def test_without_a_card_nothing_is_done(tmp_path, monkeypatch, capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a card")
    monkeypatch.chdir(tmp_path)
    for options in (["--quick", "--out", "new.json"], ["--sanitize"], ["--only", "chain"]):
        assert spmm.main(options) == 2
        assert "no card to measure on" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rounds", "0"], "at least 1"),
        (["--only", "nothing"], "invalid choice"),
        (["--out", "no/such/folder/spmm.json"], "does not exist"),
        (["--table", "no_such_file.json"], "no_such_file.json"),
        (["--table", "a.json", "--sanitize"], "not allowed with"),
    ],
)
def test_bad_usage_is_refused_before_any_work(options, said, capsys, a_card):
    with pytest.raises(SystemExit) as refused:
        spmm.main(options)
    assert refused.value.code == 2
    assert said in capsys.readouterr().err


def test_a_run_writes_what_its_tables_are_made_of(tmp_path, monkeypatch, capsys, a_card):
    of = {case["section"]: case for case in recorded()["cases"]}

    def section(name):
        def items(*, quick):
            assert quick
            key = {k: v for k, v in of[name].items() if k != "contenders"}
            yield spmm_sections.Item(key, lambda bench: of[name]["contenders"])

        return items

    monkeypatch.setattr(spmm, "SECTIONS", {name: section(name) for name in of})
    out = tmp_path / "found.json"
    only = [name for name in of if name not in ("linear", "tvw")]
    assert spmm.main(["--quick", "--out", str(out), "--only", *only]) == 0
    assert {case["section"] for case in json.loads(out.read_text())["cases"]} == set(only)
    # A wrong result is a failure, and the sections of before are kept.
    assert spmm.main(["--quick", "--out", str(out), "--only", "linear"]) == 1
    assert "HinmLinear, eager is wrong: off by 1" in capsys.readouterr().err
    found = spmm.read(out)
    assert [case["section"] for case in found["cases"]] == [*(n for n in of if n != "tvw")]
    assert found["schema"] == spmm.SCHEMA and found["rounds"] == spmm.QUICK_ROUNDS
    assert {"date", "card", "machine", "goals", "problems", "quick"} <= found.keys()
    assert len(found["goals"]) == len(GOALS)
    assert spmm.main(["--table", str(out)]) == 0
    assert "Products, vector N:M" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["no JSON", "{}", '{"schema": 0}', '{"schema": 1}', "[]"])
def test_a_file_of_something_else_is_refused(tmp_path, content, capsys):
    path = tmp_path / "found.json"
    path.write_text(content)
    with pytest.raises(SystemExit):
        spmm.main(["--table", str(path)])
    assert "is no results file of benchmarks.spmm" in capsys.readouterr().err


def test_it_needs_neither_solvers_nor_cuda_before_there_is_a_card(tmp_path):
    path = tmp_path / "found.json"
    path.write_text(json.dumps(recorded()))
    code = (
        "import sys\n"
        "for name in ('ortools', 'networkx', 'cupy', 'torch', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        "from benchmarks import spmm\n"
        f"assert spmm.main(['--table', {str(path)!r}]) == 0\n"
        "assert spmm.main(['--quick']) == 2\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "pip install 'gyroperm[torch]'" in done.stderr


# --- under a sanitizer


def sanitizer(folder, code):
    folder.mkdir(parents=True)
    path = folder / "compute-sanitizer"
    path.write_text(f'#!/bin/sh\necho "$@"\nexit {code}\n')
    path.chmod(0o755)
    return path


def test_the_sanitizer_is_found_on_path_or_in_the_toolkit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(FileNotFoundError, match="comes with the CUDA toolkit"):
        spmm_sanitize.find_sanitizer()
    in_toolkit = sanitizer(tmp_path / "cuda" / "compute-sanitizer", 0)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    assert spmm_sanitize.find_sanitizer() == str(in_toolkit)
    on_path = sanitizer(tmp_path / "bin", 0)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert spmm_sanitize.find_sanitizer() == str(on_path)


def test_without_a_sanitizer_that_is_said(tmp_path, monkeypatch, capsys, a_card):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    with pytest.raises(SystemExit):
        spmm.main(["--sanitize"])
    assert "compute-sanitizer is neither on PATH" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "said", "status"),
    [(0, "clean", 0), (86, "errors", 1), (1, "wrong result", 1), (9, "exit status 9", 1)],
)
def test_every_kernel_runs_under_every_tool(tmp_path, capsys, code, said, status):
    path = sanitizer(tmp_path / "bin", code)
    assert spmm_sanitize.sanitize(str(path)) == status
    text = capsys.readouterr().out
    assert all(kernel in text for kernel in spmm_small.KERNELS)
    assert text.count(said) >= len(spmm_small.KERNELS) * len(spmm_sanitize.TOOLS)
    if code:
        assert "--tool racecheck --error-exitcode 86" in text
        assert "-m benchmarks.spmm_small decode" in text


def test_kernels_that_are_unknown_are_refused(capsys):
    for names in ([], ["spmm", "unknown"]):
        assert spmm_small.main(names) == 2
        assert ", ".join(spmm_small.KERNELS) in capsys.readouterr().err


def test_wrong_results_under_a_sanitizer_are_told(monkeypatch, capsys):
    cupy = SimpleNamespace(
        cuda=SimpleNamespace(
            set_allocator=lambda allocator: None,
            runtime=SimpleNamespace(deviceSynchronize=lambda: None),
        ),
        asarray=np.array,
        asnumpy=np.asarray,
    )
    from gyroperm.gpu import device

    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(device, "run", lambda launch: None)
    assert spmm_small.main(["fusion"]) == 1
    assert "entries differ" in capsys.readouterr().out
    monkeypatch.setattr(device, "run", lambda launch: emulated.run(launch, once=()))
    assert spmm_small.main(["fusion"]) == 0
    assert "invert: as it should be" in capsys.readouterr().out


def test_the_help_names_every_section():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.spmm", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for word in ("--only", "--sanitize", *spmm_sections.SECTIONS):
        assert word in done.stdout
