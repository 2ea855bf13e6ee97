"""Products as they are put together for a device, emulated launch by launch."""

from dataclasses import replace

import numpy as np
import pytest

import gyroperm
from emulated import run
from gyroperm.gpu import HinmMatrix
from gyroperm.gpu.candidates import DENSE, Way, candidates
from gyroperm.gpu.compiler import compile_variant
from gyroperm.gpu.matrix import DeviceMatrix
from gyroperm.gpu.model import Card
from gyroperm.gpu.numbers import from_bits, to_bits
from gyroperm.gpu.plans import Target, make_plan, planned_columns
from gyroperm.gpu.reorder import reordered
from gyroperm.gpu.spmm import blockings
from gyroperm.gpu.window import window_blocking, window_plan
from gyroperm.pattern import Pattern

HALF_ULP = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
CARD = Card("a card", "86", 4, 1.7e9, 9e11, 6 << 20, 99 * 1024, 100 * 1024)
TARGET = Target(4, 99 * 1024, lambda variant, threads, shared_bytes: 5, np.copy)


def packed(pattern, dtype, rows=70, columns=200):
    weights = np.random.default_rng(1).standard_normal((rows, columns))
    solution = gyroperm.solve(weights, pattern=pattern, method="identity")
    return HinmMatrix.from_solution(solution, weights, dtype)


def on_host(matrix):
    index = matrix.index
    return DeviceMatrix(
        matrix.values, matrix.metadata, index.columns, index.row_map, index, matrix.dtype
    )


def plan_of(matrix, n, layout="features", kind=None):
    """The plan of the likeliest way of a kind, or of any that is not dense."""
    found = candidates(matrix, n, layout, CARD)
    ways = [one.way for one in found if one.way != DENSE and kind in (None, one.way.kind)]
    return make_plan(ways[0], planned_columns(n), on_host(matrix), TARGET)


def poisoned(shape, dtype):
    array = np.empty(shape, dtype)
    array.view(np.uint8)[...] = 0xFF  # a NaN in every dtype
    return array


def multiplied(matrix, plan, x, out, **options):
    """Emulate the launches, in memory that holds anything."""
    launches = plan.launches(
        matrix, x, out, lambda name, shape, dtype: poisoned(shape, dtype), **options
    )
    for launch in launches:
        run(launch, once=())
    return [launch.variant.kernel for launch in launches]


@pytest.mark.parametrize(
    ("n", "dtype"),
    [(1, "float16"), (5, "bfloat16"), (16, "float16"), (17, "bfloat16"), (65, "float16")],
)
@pytest.mark.parametrize("layout", ["features", "tokens"])
def test_a_product_in_either_layout(n, layout, dtype):
    rng = np.random.default_rng(n)
    matrix = packed(Pattern.tvw(vec_ratio=0.5, vec_size=32, row_ratio=0.2), dtype)
    x = to_bits(rng.standard_normal((200, n)), dtype)
    bias = to_bits(rng.standard_normal(70), dtype)
    numbers = from_bits(x, dtype).astype(np.float64)
    offset = from_bits(bias, dtype).astype(np.float64)[:, None]
    expected = np.maximum(matrix.matmul_reference(numbers) + offset, 0)
    sums = np.abs(matrix.to_dense()).astype(np.float64) @ np.abs(numbers) + np.abs(offset)
    plan = plan_of(matrix, n, layout)
    # Twice: counters are left as they were found.
    for _ in range(2):
        given = np.ascontiguousarray(x.T) if layout == "tokens" else x
        out = poisoned((n, 70) if layout == "tokens" else (70, n), np.uint16)
        kernels = multiplied(
            on_host(matrix), plan, given, out, layout=layout, bias=bias, activation="relu"
        )
        y = from_bits(out.T if layout == "tokens" else out, dtype)
        assert (np.abs(y - expected) <= HALF_ULP[dtype] * expected + 2.0**-20 * sums).all()
    if n <= 16:
        assert kernels == ["decode"]
    else:
        assert kernels == (["transpose", "spmm", "transpose"] if layout == "tokens" else ["spmm"])


def windowed(matrix):
    """The matrix in the order of a plan of windows, as it is uploaded."""
    blocking = window_blocking(
        matrix.tile_size, matrix.shape[1], sparse=matrix.sparse, shared_limit=CARD.shared_limit
    )
    plan = window_plan(matrix, blocking)
    return replace(on_host(reordered(matrix, plan.order)), window=plan)


@pytest.mark.parametrize("layout", ["features", "tokens"])
@pytest.mark.parametrize("kind", ["spmm 32", "spmm 256", "window"])
def test_the_narrowest_and_the_widest_blocks_and_windows(kind, layout):
    # V = 64, the most that the registers of warps with 256 columns allow in one row of them.
    n = 280 if kind == "spmm 256" else 40
    matrix = packed(Pattern.hinm(vec_ratio=0.5, vec_size=64), "bfloat16", rows=128)
    rng = np.random.default_rng(n)
    x, bias = (to_bits(rng.standard_normal(shape), "bfloat16") for shape in ((200, n), 128))
    numbers, offset = (from_bits(bits, "bfloat16").astype(np.float64) for bits in (x, bias))
    placed = windowed(matrix) if kind == "window" else on_host(matrix)
    name, *width = kind.split()
    ways = [
        one.way
        for one in candidates(matrix, n, layout, CARD, window=placed.window, thorough=True)
        if one.way.kind == name and (not width or ("block_n", int(width[0])) in one.way.parameters)
    ]
    plan = make_plan(ways[0], planned_columns(n), placed, TARGET)
    tokens = layout == "tokens"
    given = np.ascontiguousarray(x.T) if tokens else x
    out = poisoned((n, 128) if tokens else (128, n), np.uint16)
    kernels = multiplied(placed, plan, given, out, layout=layout, bias=bias)
    assert kernels == (["transpose", name, "transpose"] if tokens else [name])
    y = from_bits(out.T if tokens else out, "bfloat16")
    expected = matrix.matmul_reference(numbers) + offset[:, None]
    sums = np.abs(matrix.to_dense()).astype(np.float64) @ np.abs(numbers) + np.abs(offset)[:, None]
    bound = HALF_ULP["bfloat16"] * np.abs(expected) + 2.0**-20 * sums
    assert (np.abs(y - expected) <= bound).all()


@pytest.mark.parametrize("architecture", ["80", "120"])
@pytest.mark.parametrize("V", [64, 128])
def test_the_widest_blocks_fit_into_registers(V, architecture):
    found = blockings(V, 4096, sparse=True, shared_limit=CARD.shared_limit, thorough=True)
    widest = next(one for one in found if one.block_n == 256)
    compiled = compile_variant(widest.variant(bfloat16=True, aligned=True), architecture)
    assert compiled.spilled_bytes == 0


def test_a_way_that_has_no_plan_for_the_matrix():
    matrix = on_host(packed(Pattern.hinm(vec_ratio=0.5, vec_size=32), "float16"))
    for way in (DENSE, Way.of("window", slots=128)):
        with pytest.raises(ValueError, match="there is no plan for"):
            make_plan(way, 64, matrix, TARGET)


@pytest.mark.parametrize("n", [4, 20])
def test_rows_left_in_the_order_of_the_tiles(n):
    rng = np.random.default_rng(n)
    matrix = packed(Pattern.hinm(vec_ratio=0.5, vec_size=32), "float16")
    x = to_bits(rng.standard_normal((200, n)), "float16")
    plan = plan_of(matrix, n)
    order = matrix.index.output_order
    by_rows, left = poisoned((70, n), np.uint16), poisoned((len(order), n), np.uint16)
    multiplied(on_host(matrix), plan, x, by_rows, layout="features")
    multiplied(on_host(matrix), plan, x, left, layout="features", keep_order=True)
    assert np.array_equal(left[order >= 0], by_rows[order[order >= 0]])


@pytest.mark.parametrize("n", [4, 20])
def test_factor_and_addend(n):
    rng = np.random.default_rng(n)
    matrix = packed(Pattern.hinm(vec_ratio=0.5, vec_size=32), "float16")
    x, factor, addend = (
        rng.standard_normal((rows, n)).astype(np.float16) for rows in (200, 70, 70)
    )
    plan = plan_of(matrix, n)
    alone, out = poisoned((70, n), np.uint16), poisoned((70, n), np.uint16)
    multiplied(on_host(matrix), plan, x.view(np.uint16), alone, layout="features")
    multiplied(
        on_host(matrix),
        plan,
        x.view(np.uint16),
        out,
        layout="features",
        factor=factor.view(np.uint16),
        addend=addend.view(np.uint16),
    )
    y = alone.view(np.float16).astype(np.float32)
    expected = (y * factor + addend).astype(np.float32)
    assert np.allclose(out.view(np.float16), expected, rtol=2.0**-10, atol=2.0**-20)


def test_plans_are_shared_by_numbers_of_columns_that_are_cut_alike():
    assert [planned_columns(n) for n in (1, 3, 9, 17, 64, 65, 128, 129, 4096)] == [
        1, 4, 16, 32, 64, 128, 128, 256, 4096,
    ]  # fmt: skip
