import numpy as np
import pytest

from emulated import EmulationError, run
from gpu_cases import WIDTHS, activated, make_case
from gyroperm import Pattern
from gyroperm.gpu.numbers import from_bits, to_bits
from gyroperm.gpu.schedule import balanced, equal_shares
from gyroperm.gpu.spmm import blocking
from spmm_cases import SHARED, launch_of, poisoned, product, tile_steps

HINM = Pattern.hinm(2, 4, vec_ratio=0.5, vec_size=32)
TVW = Pattern.tvw(2, 4, vec_ratio=0.6, vec_size=16, row_ratio=0.2)
DENSE = Pattern.hinm(3, 5, vec_ratio=0.3, vec_size=32)
VECTOR = Pattern.vector_nm(N=8, M=32, L=32)
WIDE = Pattern.hinm(1, 2, vec_ratio=0.25, vec_size=128)


@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("pattern", [HINM, TVW, DENSE, VECTOR], ids=str)
def test_any_number_of_columns(pattern, n):
    case = make_case(pattern, (130, 200), n, pad=-n % 8)
    case.check(product(case, seed=n), case.reference())


@pytest.mark.parametrize("n", [1, 7, 65])
@pytest.mark.parametrize("pattern", [HINM, DENSE], ids=str)
def test_rows_that_begin_anywhere(pattern, n):
    case = make_case(pattern, (70, 150), n, pad=-n % 8 + 3)
    case.check(product(case), case.reference())


@pytest.mark.parametrize(
    ("tile_size", "dtype", "n"),
    [
        (16, "bfloat16", 136),
        (32, "float16", 40),
        (64, "float16", 136),
        (128, "bfloat16", 40),
        (256, "float16", 136),
    ],
)
def test_tile_sizes(tile_size, dtype, n):
    pattern = Pattern.hinm(2, 4, vec_ratio=0.5, vec_size=tile_size)
    case = make_case(pattern, (300, 260), n, dtype=dtype)
    case.check(product(case), case.reference())


def test_dense_inside_in_bfloat16():
    case = make_case(Pattern.vector_nm(2, 4, 32), (150, 200), 56, dtype="bfloat16")
    case.check(product(case), case.reference())


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_bias_and_activation(activation, dtype):
    case = make_case(TVW, (90, 120), 40, dtype=dtype)
    y = product(case, bias=case.bias, activation=activation)
    case.check(y, case.reference(activation, bias=True))


def test_rows_that_no_tile_holds_get_the_activated_bias():
    case = make_case(Pattern.tvw(2, 4, vec_ratio=0.6, vec_size=16, row_ratio=0.5), (90, 120), 9)
    pruned = ~case.dense.any(axis=1)
    assert pruned.sum() >= 40
    y = product(case, bias=case.bias, activation="silu")
    expected = activated(from_bits(case.bias, "float16").astype(np.float64), "silu")
    got = from_bits(y, "float16")[pruned]
    assert np.allclose(got, expected[pruned, None], rtol=2**-10)


def test_a_factor_and_an_addend():
    case = make_case(HINM, (70, 120), 24)
    rng = np.random.default_rng(1)
    factor, addend = rng.standard_normal((2, 70, 24)).astype(np.float16)
    y = product(case, factor=factor.view(np.uint16), addend=addend.view(np.uint16))
    plain = from_bits(product(case), "float16").astype(np.float64)
    expected = plain * factor + addend
    assert np.abs(from_bits(y, "float16") - expected).max() <= 2**-11 * np.abs(expected).max() * 1.1


def test_packed_order_is_kept_on_request():
    case = make_case(HINM, (70, 120), 24)
    row_map = case.matrix.row_map
    y = poisoned(len(row_map), case.n)
    launch, _ = launch_of(case, y, keep_order=True, bias=case.bias)
    run(launch)
    held = row_map >= 0
    case.check(y[held], case.reference(bias=True), rows=row_map[held])
    assert (y[~held] == 0xFFFF).all()


@pytest.mark.parametrize("blocks", [1, 2, 5, 40])
def test_shared_tiles(blocks):
    case = make_case(TVW, (100, 700), 70)
    chosen = blocking(16, case.n, sparse=True, shared_limit=SHARED)
    schedule = equal_shares(tile_steps(case), case.n, chosen.block_n, blocks)
    first = product(case, schedule=schedule, seed=1)
    case.check(first, case.reference())
    for seed in (2, 3):
        assert (product(case, schedule=schedule, seed=seed) == first).all()


def test_wide_indices():
    pattern = Pattern.hinm(2, 4, vec_ratio=0.99, vec_size=32)
    case = make_case(pattern, (32, 66000), 8)
    assert case.matrix.columns.dtype == np.int32
    case.check(product(case), case.reference())


def test_rows_are_read_and_written_without_bank_conflicts():
    for pattern, n in ((HINM, 64), (DENSE, 128), (WIDE, 128)):
        case = make_case(pattern, (128, 256), n)
        y = poisoned(128, n)
        counts = run(launch_of(case, y)[0])
        assert counts.matrix_loads > 0
        assert counts.matrix_conflicts == 0
        assert counts.copy_conflicts == 0
        assert counts.access_conflicts <= 0.02 * counts.accesses


MUTATIONS = {
    "a missing wait": ("copy_wait<STAGES - 2>();", ""),
    "a wait for too little": ("copy_wait<STAGES - 2>();", "copy_wait<STAGES - 1>();"),
    "a missing barrier": (
        "            barrier();\n            copy_step(",
        "            copy_step(",
    ),
    "a wrong selector": ("multiply_sparse<1>", "multiply_sparse<0>"),
    "no check of X's end": ("most(0, least(8, columns - first))", "8"),
    "no check of Y's end": ("int there = least(8, columns - first);", "int there = 8;"),
    "no row map": ("int channel = load(row_map + packed_row);", "int channel = packed_row;"),
    "no barrier before writing out": ("copy_wait<0>();\n        barrier();", "copy_wait<0>();"),
    "a stage too few": ("step % STAGES * stage_bytes;", "step % (STAGES - 1) * stage_bytes;"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutations_are_caught(name):
    before, after = MUTATIONS[name]
    # Every column is kept, the last one too; and the last of five steps lies in the first stage.
    case = make_case(Pattern.hinm(2, 4, vec_ratio=0.0, vec_size=32), (70, 320), 65, pad=7)
    y = poisoned(70, 65, 72)
    launch, _ = launch_of(case, y, schedule=balanced([5, 5, 5], 65, 128, blocks=3))
    run(launch)
    case.check(y, case.reference())
    y[:] = 0xFFFF
    with pytest.raises((EmulationError, AssertionError)):
        run(launch, edit=lambda source: source.replace(before, after))
        case.check(y, case.reference())


def test_without_the_swizzle_banks_conflict():
    case = make_case(HINM, (64, 256), 64)
    launch, _ = launch_of(case, poisoned(64, 64))
    plain = run(launch, edit=lambda source: source.replace("(chunk ^ turn)", "chunk"))
    assert plain.matrix_conflicts >= 7 * plain.matrix_loads


def test_what_does_not_fit_is_refused():
    case = make_case(HINM, (64, 128), 8)
    y = poisoned(64, 8)
    with pytest.raises(ValueError, match=r"activation must be one of .*'gelu'.*got 'tanh'"):
        launch_of(case, y, activation="tanh")
    with pytest.raises(ValueError, match=r"addend must have y's shape \(64, 8\)"):
        launch_of(case, y, addend=poisoned(64, 9))
    with pytest.raises(ValueError, match=r"tile_size must be one of 16, 32, 64, 128, 256, got 24"):
        blocking(24, 8, sparse=True, shared_limit=SHARED)
    with pytest.raises(ValueError, match=r"needs .* bytes of shared memory, the device has 1000"):
        blocking(32, 8, sparse=True, shared_limit=1000)


def test_bits_survive_conversion():
    values = np.array([0.0, -0.0, 1.5, -2.25], np.float32)
    for dtype in ("float16", "bfloat16"):
        assert (from_bits(to_bits(values, dtype), dtype) == values).all()
