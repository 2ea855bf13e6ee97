"""Feed-forward blocks that keep the order of their tiles, emulated launch by launch."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

import gyroperm
from emulated import Counts, run
from gpu_cases import activated
from gyroperm.gpu import HinmMatrix
from gyroperm.gpu.candidates import candidates
from gyroperm.gpu.chain import Ffn, Follower, GatedFfn, RmsNorm, composition
from gyroperm.gpu.index import IndexTables, align
from gyroperm.gpu.matrix import DeviceMatrix
from gyroperm.gpu.model import Card
from gyroperm.gpu.numbers import from_bits, to_bits
from gyroperm.gpu.plans import Target, make_plan, planned_columns
from gyroperm.pattern import Pattern

HALF_ULP = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
# Half of what is between two subnormal numbers.
LEAST = {"float16": 2.0**-25, "bfloat16": 2.0**-134}
# The most that an activation stretches a difference by.
SLOPE = {None: 1.0, "relu": 1.0, "gelu": 1.13, "silu": 1.1}
CARD = Card("a card", "86", 4, 1.7e9, 9e11, 6 << 20, 99 * 1024, 100 * 1024)
TARGET = Target(4, 99 * 1024, lambda variant, threads, shared_bytes: 5, np.copy)

HINM = Pattern.hinm(vec_ratio=0.5, vec_size=16)
WIDE_HINM = Pattern.hinm(vec_ratio=0.25, vec_size=32)
# Tiles of different lengths, rows pruned whole.
TVW = Pattern.tvw(vec_ratio=0.5, vec_size=16, row_ratio=0.2)
WIDE_TVW = Pattern.tvw(vec_ratio=0.5, vec_size=32, row_ratio=0.1)
INPUTS, HIDDEN = 72, 150  # neither of which V divides


@cache
def packed(pattern, shape, dtype, seed):
    weights = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[1])
    solution = gyroperm.solve(
        weights, pattern=pattern, method="random", options={"count": 1}, seed=seed
    )
    return HinmMatrix.from_solution(solution, weights, dtype)


def on_host(matrix):
    index = matrix.index
    return DeviceMatrix(
        matrix.values, matrix.metadata, index.columns, index.row_map, index, matrix.dtype
    )


def poisoned(shape, dtype):
    array = np.empty(shape, dtype)
    array.view(np.uint8)[...] = 0xFF  # a NaN in every dtype
    return array


def plan_of(matrix, n, decode):
    kind = "decode" if decode else "spmm"
    ways = [one.way for one in candidates(matrix, n, "features", CARD) if one.way.kind == kind]
    return make_plan(ways[0], planned_columns(n), matrix, TARGET)


def plans_of(block, n, decode=False):
    return [plan_of(matrix, n, decode) for matrix in block.matrices]


def poisonous(name, shape, dtype):
    return poisoned(shape, dtype)


def counted(launches, seed=1):
    """Run launches; what they did, all together."""
    total = dict.fromkeys((name for name, _ in Counts._fields_), 0)
    for launch in launches:
        counts = run(launch, seed=seed)
        total = {name: before + getattr(counts, name) for name, before in total.items()}
    return total


def emulated(block, x, out, plans, layout="features", seed=1):
    """Run a block in memory that holds NaN; what was done, and by which kernels."""
    launches = block.launches(x, out, plans=plans, scratch=poisonous, layout=layout)
    return counted(launches, seed), [launch.variant.kernel for launch in launches]


class Value:
    """A matrix of float64, and how far half precision may be from it."""

    def __init__(self, dtype, exact, error=0.0):
        self.dtype, self.exact, self.error = dtype, exact, error

    def rounded(self):
        half = HALF_ULP[self.dtype] * (np.abs(self.exact) + self.error) + LEAST[self.dtype]
        return Value(self.dtype, self.exact, self.error + half)

    def product(self, matrix, bias=None, activation=None):
        dense = matrix.to_dense().astype(np.float64)
        offset = 0.0 if bias is None else from_bits(bias, self.dtype).astype(np.float64)[:, None]
        terms = np.abs(dense) @ (np.abs(self.exact) + self.error) + np.abs(offset)
        error = np.abs(dense) @ np.broadcast_to(self.error, self.exact.shape) + 2.0**-20 * terms
        exact = activated(dense @ self.exact + offset, activation)
        # The activations themselves are computed to a few ulp of float32.
        error = SLOPE[activation] * error + 2.0**-20 * np.abs(exact)
        return Value(self.dtype, exact, error).rounded()

    def __mul__(self, other):
        error = (
            np.abs(self.exact) * other.error
            + np.abs(other.exact) * self.error
            + self.error * other.error
        )
        return Value(self.dtype, self.exact * other.exact, error).rounded()

    def __add__(self, other):
        return Value(self.dtype, self.exact + other.exact, self.error + other.error).rounded()

    def check(self, bits):
        got = from_bits(bits, self.dtype).astype(np.float64)
        assert not np.isnan(got).any()
        error = np.abs(got - self.exact) - 1.01 * self.error
        assert (error <= 0).all(), f"off by {error.max():.3g} more than rounding"
        # The bound says something: it is far below what a wrong row would be off by.
        assert np.median(self.error) < 0.05 * np.std(self.exact)


class Numbers:
    """Layers, biases and an x, and what is to come of them."""

    def __init__(self, patterns, n, dtype, *, gated, outputs=INPUTS, biases=True, seed=0):
        rng = np.random.default_rng(seed + n)
        self.dtype, self.gated = dtype, gated
        shapes = [(HIDDEN, INPUTS)] * (1 + gated) + [(outputs, HIDDEN)]
        self.layers = [
            packed(pattern, shape, dtype, i)
            for i, (pattern, shape) in enumerate(zip(patterns, shapes, strict=True))
        ]
        self.biases = [
            to_bits(rng.standard_normal(rows), dtype) if biases else None for rows, _ in shapes
        ]
        self.x = to_bits(rng.standard_normal((INPUTS, n)), dtype)

    def block(self, **options):
        kind, names = (
            (GatedFfn, ("gate_bias", "up_bias", "down_bias"))
            if self.gated
            else (Ffn, ("up_bias", "down_bias"))
        )
        biases = dict(zip(names, self.biases, strict=True))
        return kind.of(*map(on_host, self.layers), **biases, **options)

    def expected(self, activation, residual=True, normalised=None):
        x = Value(self.dtype, from_bits(self.x, self.dtype).astype(np.float64))
        h = x if normalised is None else normalised
        *first, down = zip(self.layers, self.biases, strict=True)
        hidden = h.product(*first[0], activation)
        if self.gated:
            hidden = hidden * h.product(*first[1])
        y = hidden.product(*down)
        return y + x if residual else y


GATED = [
    # N, dtype, activation, decode, patterns of gate, up and down
    (1, "float16", "silu", True, (TVW, HINM, WIDE_TVW)),
    (9, "bfloat16", "silu", True, (WIDE_TVW, HINM, TVW)),
    (9, "float16", "gelu", False, (HINM, WIDE_TVW, TVW)),
    (65, "float16", "silu", False, (TVW, WIDE_HINM, HINM)),
    (65, "bfloat16", "relu", False, (WIDE_TVW, WIDE_HINM, WIDE_TVW)),
]


@pytest.mark.parametrize(("n", "dtype", "activation", "decode", "patterns"), GATED)
def test_a_gated_block(n, dtype, activation, decode, patterns):
    numbers = Numbers(patterns, n, dtype, gated=True)
    block = numbers.block(activation=activation)
    plans = plans_of(block, n, decode)
    # Twice: counters are left as they were found.
    for seed in (1, 2):
        out = poisoned((INPUTS, n), np.uint16)
        _, kernels = emulated(block, numbers.x, out, plans, seed=seed)
        assert kernels == ["decode" if decode else "spmm"] * 3
        numbers.expected(activation).check(out)


@pytest.mark.parametrize(
    ("n", "dtype", "activation", "decode", "patterns"),
    [
        (1, "bfloat16", "gelu", True, (WIDE_TVW, HINM)),
        (65, "float16", "relu", False, (TVW, HINM)),
    ],
)
@pytest.mark.parametrize("residual", [True, False])
def test_a_block_without_a_gate(n, dtype, activation, decode, patterns, residual):
    outputs = INPUTS if residual else 40
    numbers = Numbers(patterns, n, dtype, gated=False, outputs=outputs)
    block = numbers.block(activation=activation, residual=residual)
    out = poisoned((outputs, n), np.uint16)
    _, kernels = emulated(block, numbers.x, out, plans_of(block, n, decode))
    assert len(kernels) == 2
    numbers.expected(activation, residual).check(out)


@pytest.mark.parametrize(("n", "decode"), [(1, True), (9, True), (9, False), (65, False)])
def test_tokens_in_and_out(n, decode):
    numbers = Numbers((TVW, HINM, TVW), n, "float16", gated=True, biases=False)
    block = numbers.block()
    tokens, out = np.ascontiguousarray(numbers.x.T), poisoned((n, INPUTS), np.uint16)
    _, kernels = emulated(block, tokens, out, plans_of(block, n, decode), layout="tokens")
    transposed = ["transpose", "spmm", "spmm", "spmm", "transpose"]
    assert kernels == (["decode"] * 3 if decode else transposed)
    numbers.expected("silu").check(np.ascontiguousarray(out.T))


def test_few_tokens_that_lie_apart():
    numbers = Numbers((TVW, HINM, TVW), 9, "float16", gated=True, biases=False)
    block = numbers.block()
    tokens, out = poisoned((9, 80), np.uint16)[:, :INPUTS], poisoned((9, INPUTS), np.uint16)
    tokens[:] = numbers.x.T
    _, kernels = emulated(block, tokens, out, plans_of(block, 9, True), layout="tokens")
    assert kernels == ["transpose", *["decode"] * 3, "transpose"]
    numbers.expected("silu").check(np.ascontiguousarray(out.T))


@pytest.mark.parametrize(("n", "residual"), [(9, True), (65, True), (65, False)])
def test_tokens_are_normalised_on_their_way_in(n, residual):
    numbers = Numbers((TVW, HINM, TVW), n, "float16", gated=True, biases=False)
    weight = to_bits(np.random.default_rng(5).standard_normal(INPUTS) + 2, "float16")
    block = numbers.block(residual=residual, norm=RmsNorm(weight, 1e-5))
    tokens, out = np.ascontiguousarray(numbers.x.T), poisoned((n, INPUTS), np.uint16)
    _, kernels = emulated(block, tokens, out, plans_of(block, n, n == 9), layout="tokens")
    assert kernels[0] == "permute" and kernels.count("transpose") == (n > 9) * (1 + residual)
    x = from_bits(numbers.x, "float16").astype(np.float64)
    scaled = Value("float16", x / np.sqrt((x**2).mean(0) + 1e-5), 2.0**-20).rounded()
    weights = from_bits(weight, "float16").astype(np.float64)[:, None]
    normalised = scaled * Value("float16", weights, 0.0)
    numbers.expected("silu", residual, normalised).check(np.ascontiguousarray(out.T))


def test_the_result_may_lie_where_x_does():
    numbers = Numbers((TVW, WIDE_HINM, HINM), 65, "float16", gated=True)
    block = numbers.block()
    x = numbers.x.copy()
    emulated(block, x, x, plans_of(block, 65))
    numbers.expected("silu").check(x)


def in_order(matrix):
    """The matrix with the columns of each tile ascending, and rows where the tiles have them."""
    index = matrix.index
    columns = index.columns.copy()
    for start, end in zip(index.tile_ptr, index.tile_ptr[1:], strict=False):
        columns[start:end].sort()
    rows = np.where(index.row_map < 0, -1, np.cumsum(index.row_map >= 0) - 1)
    tables = IndexTables(columns, index.tile_ptr, rows, index.inputs, index.outputs)
    return replace(matrix, index=tables)


@pytest.mark.parametrize(
    ("n", "decode", "patterns"),
    [(1, True, (TVW, HINM, WIDE_TVW)), (65, False, (TVW, WIDE_HINM, HINM))],
)
def test_the_permutation_moves_no_byte(n, decode, patterns):
    numbers = Numbers(patterns, n, "float16", gated=True)
    block = numbers.block()
    out = poisoned((INPUTS, n), np.uint16)
    counts, _ = emulated(block, numbers.x, out, plans_of(block, n, decode))
    # The same layers without any permutation, each result in its original order.
    plain = [on_host(in_order(layer)) for layer in numbers.layers]
    expected = counted(plain_launches(plain, numbers, n, decode))
    for name in ("bytes_loaded", "bytes_copied", "bytes_stored", "products"):
        assert counts[name] == expected[name]
    assert counts["bytes_stored"] == (2 * HIDDEN + INPUTS) * n * 2


def plain_launches(layers, numbers, n, decode):
    hidden = poisoned((HIDDEN, n if n <= 16 else 128), np.uint16)[:, :n]
    gate_bias, up_bias, down_bias = numbers.biases
    combined = (
        {"bias": gate_bias, "activation": "silu"},
        {"bias": up_bias, "factor": hidden},
        {"bias": down_bias, "addend": numbers.x},
    )
    sources = (numbers.x, numbers.x, hidden)
    targets = (hidden, hidden, poisoned((INPUTS, n), np.uint16))
    for layer, x, y, rest in zip(layers, sources, targets, combined, strict=True):
        plan = plan_of(layer, n, decode)
        yield from plan.launches(layer, x, y, poisonous, layout="features", **rest)


@pytest.mark.parametrize("patterns", [(TVW, HINM, WIDE_TVW), (WIDE_TVW, TVW, HINM)])
def test_tables_composed_by_launches_are_those_of_the_host(patterns):
    numbers = Numbers(patterns, 1, "float16", gated=True)
    gate, up, down = map(on_host, numbers.layers)
    block = numbers.block()
    rows, columns = np.zeros_like(up.row_map), np.zeros_like(block.down.columns)
    position_of = np.full(HIDDEN, -1, np.int32)
    followers = [(Follower(up, reads=False), rows), (Follower(down, reads=True), columns)]
    first, *rest = composition(gate, position_of, followers)
    run(first, once=("position_of",))
    for launch in rest:
        run(launch, once=("fused",))
    np.testing.assert_array_equal(rows, block.up.row_map)
    np.testing.assert_array_equal(columns, block.down.columns)
    # What up writes is what gate wrote, and what down reads.
    assert set(rows[rows >= 0]) == set(np.flatnonzero(gate.row_map >= 0)) >= set(columns)


def test_rows_are_aligned_to_those_of_another_product():
    tables = IndexTables(np.zeros(4, int), [0, 4], [2, -1, 0, 1], 5, 3)
    aligned = align(tables, [-1, 1, 2, -1, 0])
    assert aligned.row_map.tolist() == [2, -1, 4, 1]
    assert (aligned.outputs, aligned.inputs) == (5, 5)
    for order, message in (
        ([0, 1], "row_order names 2 rows, the product has 3 rows"),
        ([0, 1, 3], "row_order is not a permutation of 3 rows: row 2 is missing"),
        ([0, 1, -2, 2], "row_order must hold row ids or -1, got -2"),
    ):
        with pytest.raises(ValueError, match=message):
            align(tables, order)


def test_layers_that_do_not_fit_are_refused():
    numbers = Numbers((HINM, HINM, HINM), 1, "float16", gated=True)
    gate, up, down = map(on_host, numbers.layers)
    other = on_host(packed(HINM, (HIDDEN, INPUTS), "bfloat16", 1))
    bias = numbers.biases[0]
    for layers, options, error, message in (
        ((gate, down, down), {}, ValueError, r"up must have the shape of gate, \(150, 72\)"),
        ((gate, other, down), {}, ValueError, "up must have the dtype of gate, float16"),
        ((gate, up, up), {}, ValueError, "down must have 150 columns, the rows of up"),
        ((gate, up, down), {"activation": "tanh"}, ValueError, "activation must be one of"),
        ((gate, up, down), {"down_bias": bias}, ValueError, r"down_bias must have shape \(72,\)"),
        (
            (gate, up, down),
            {"gate_bias": bias.astype(np.float32)},
            TypeError,
            "gate_bias must have the weights' dtype float16",
        ),
        (
            (gate, up, down),
            {"norm": RmsNorm(bias, 1e-6)},
            ValueError,
            r"the weight of norm must have shape \(72,\), got \(150,\)",
        ),
    ):
        with pytest.raises(error, match=message):
            GatedFfn.of(*layers, **options)
    short = on_host(packed(HINM, (40, HIDDEN), "float16", 1))
    with pytest.raises(ValueError, match="down must have 72 rows, the columns of up, for x to be"):
        Ffn.of(up, short)


def test_layouts_that_do_not_fit_are_refused():
    numbers = Numbers((HINM, HINM), 9, "float16", gated=False)
    normed = numbers.block(norm=RmsNorm(to_bits(np.ones(INPUTS), "float16"), 1e-6))
    plans = plans_of(normed, 9, False)
    with pytest.raises(ValueError, match='a norm needs layout="tokens"'):
        emulated(normed, numbers.x, numbers.x, plans)
    with pytest.raises(ValueError, match="layout must be one of"):
        emulated(normed, numbers.x, numbers.x, plans, layout="rows")
    wide = poisoned((INPUTS, 16), np.uint16)[:, :9]
    with pytest.raises(ValueError, match=r"out must have the row stride of x, 9, .* got 16"):
        emulated(numbers.block(), numbers.x, wide, plans)
