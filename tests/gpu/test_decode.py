"""The decode kernel under the emulation, against float64 products of the rounded inputs."""

from types import SimpleNamespace

import numpy as np
import pytest

from decode_cases import check, plan_of, work_arrays
from emulated import EmulationError
from gpu_cases import packed
from gyroperm.gpu.decode import DecodePlan, decode_launch
from gyroperm.gpu.index import IndexTables

NS = (1, 2, 3, 4, 5, 7, 8)


def test_feature_major_of_any_n():
    rng = np.random.default_rng(1)
    matrix = packed(rng, 32, [64, 300, 0, 150, 1])
    for n in NS:
        check(
            rng, matrix, plan_of(matrix, block_rows=32, part_steps=2), n, x_pad=n % 3, y_pad=n % 2
        )
    plan = plan_of(matrix, block_rows=32, part_steps=1)
    check(rng, matrix, plan, 8, x_pad=3, bias=True, activation="silu", factor=True)


def test_two_fragments_of_columns_in_bfloat16():
    rng = np.random.default_rng(2)
    matrix = packed(rng, 64, [190, 64, 0, 300], dtype="bfloat16")
    plan = plan_of(matrix, block_rows=64, part_steps=3)
    for n in (9, 11, 15):
        check(rng, matrix, plan, n, bias=True, activation="gelu")
    check(rng, matrix, plan, 16, x_pad=1, y_pad=3, addend=True, token_major_y=True)


@pytest.mark.parametrize("n", [8, 16])
def test_rows_of_x_that_are_vectors(n):
    rng = np.random.default_rng(n)
    matrix = packed(rng, 64, [256, 256, 0], sparse=n == 8)
    plan = plan_of(matrix, block_rows=64, part_steps=2)
    for pad in (0, 8):
        _, counts = check(rng, matrix, plan, n, x_pad=pad, bias=True, activation="relu")
        assert counts.access_conflicts == 0


@pytest.mark.parametrize("sparse", [True, False])
def test_tokens_as_they_lie_in_a_model(sparse):
    rng = np.random.default_rng(3)
    matrix = packed(rng, 32, [300, 128, 65], sparse=sparse, dtype="bfloat16")
    plan = plan_of(matrix, block_rows=32, part_steps=3)
    options = {"token_major_x": True, "token_major_y": True, "bias": True}
    for n in (1, 3, 8):
        check(rng, matrix, plan, n, x_pad=n, y_pad=2, **options)
    _, counts = check(rng, matrix, plan, 8, factor=True, addend=True, activation="silu", **options)
    assert counts.access_conflicts == 0


def test_wide_column_ids():
    rng = np.random.default_rng(4)
    matrix = packed(rng, 16, [70, 200], inputs=66000)
    assert matrix.columns.dtype == np.int32
    check(rng, matrix, plan_of(matrix), 2)


def test_several_blocks_of_rows_a_tile():
    rng = np.random.default_rng(11)
    for kept in ([200, 200, 0], [200, 70]):
        matrix = packed(rng, 64, kept)
        for steps in (2, 4):
            check(rng, matrix, plan_of(matrix, block_rows=16, part_steps=steps), 6)


def test_dense_inside_and_rows_in_packed_order():
    rng = np.random.default_rng(5)
    matrix = packed(rng, 32, [64, 300, 0, 150], sparse=False)
    for steps in (1, 5):
        plan = plan_of(matrix, block_rows=32, part_steps=steps)
        for n in (1, 7):
            check(rng, matrix, plan, n, keep_order=True, bias=True, addend=True)


def test_the_largest_tile_in_one_block():
    rng = np.random.default_rng(6)
    matrix = packed(rng, 256, [128, 70])
    check(rng, matrix, plan_of(matrix, block_rows=256), 13)


@pytest.mark.parametrize("sparse", [True, False])
def test_more_steps_than_a_warp_has_under_way(sparse):
    rng = np.random.default_rng(12)
    matrix = packed(rng, 128, [700, 330], inputs=720, sparse=sparse)
    plan = plan_of(matrix, n=8, block_rows=128, part_steps=10)
    check(rng, matrix, plan, 8, x_pad=1)
    check(rng, matrix, plan, 1, bias=True)


def test_a_matrix_without_a_step():
    rng = np.random.default_rng(7)
    matrix = packed(rng, 32, [0, 0])
    check(rng, matrix, plan_of(matrix, block_rows=32), 5, bias=True, activation="relu")


def test_bits_do_not_depend_on_the_order_of_blocks():
    matrix = packed(np.random.default_rng(8), 32, [300, 300, 128])
    plan = plan_of(matrix, block_rows=32, part_steps=1)
    arrays = work_arrays(plan)
    first, *others = (
        check(np.random.default_rng(0), matrix, plan, 4, seed=seed, arrays=arrays)[0]
        for seed in (0, 1, 2, 3)
    )
    assert plan.slots and all(np.array_equal(first, other) for other in others)


MUTANTS = {
    "X is read early": ("keep_order);\n    barrier();\n", "keep_order);\n"),
    "partial sums are read early": ("fragment, sums);\n    barrier();\n", "fragment, sums);\n"),
    "counters stay": ("if (before == last) store(counter, 0u);", ""),
    "one selector for both halves": ("multiply_sparse<1>", "multiply_sparse<0>"),
    "weights of one step": ("stream.at(d * K_SLICES)", "stream.at(0)"),
}


@pytest.mark.parametrize(("old", "new"), MUTANTS.values(), ids=MUTANTS.keys())
def test_mutants_are_caught(old, new):
    rng = np.random.default_rng(9)
    matrix = packed(rng, 128, [300, 150])
    plan = plan_of(matrix, block_rows=128, part_steps=3)
    with pytest.raises((EmulationError, AssertionError)):
        check(rng, matrix, plan, 8, x_pad=1, edit=lambda source: source.replace(old, new))


TAIL_MUTANTS = {
    "columns beyond N are written": ("        if (column >= n) continue;\n", ""),
    "columns beyond N are multiplied": ("if (j * 8 + column < n)", ""),
    "columns beyond N are gathered": (
        "int of_n = least(item(first + i * threads + thread_index()).n, n - 1);",
        "int of_n = item(first + i * threads + thread_index()).n;",
    ),
}


@pytest.mark.parametrize(("old", "new"), TAIL_MUTANTS.values(), ids=TAIL_MUTANTS.keys())
def test_mutants_that_forget_where_the_columns_end_are_caught(old, new):
    rng = np.random.default_rng(13)
    # The last row of X is read, too: beyond it lies nothing.
    matrix = packed(rng, 32, [100, 100], inputs=100)
    plan = plan_of(matrix, block_rows=32)
    check(rng, matrix, plan, 5)
    with pytest.raises((EmulationError, AssertionError)):
        check(rng, matrix, plan, 5, edit=lambda source: source.replace(old, new))


def test_without_the_turn_of_the_chunks_banks_conflict():
    rng = np.random.default_rng(14)
    matrix = packed(rng, 64, [256])
    plan = plan_of(matrix, block_rows=64)
    _, counts = check(
        rng, matrix, plan, 8, edit=lambda source: source.replace("((n + 2 * q) & 7)", "n")
    )
    assert counts.access_conflicts > 0.2 * counts.accesses / 32


def covered_steps(plan):
    """The steps of each block of rows, part after part, as the kernel takes them from the plan."""
    steps = plan.tile_steps
    first = np.concatenate([[0], np.cumsum(steps)])
    found = {}
    if plan.work_items is None:
        tiles, row_blocks, parts = plan.grid
        for tile in range(tiles):
            for block in range(row_blocks):
                for part in range(parts if steps[tile] else 1):
                    start = part * plan.part_steps
                    found.setdefault((tile, block * plan.block_rows), []).extend(
                        range(start, start + min(plan.part_steps, steps[tile] - start))
                    )
                    assert start < steps[tile] or not steps[tile], "a part has nothing to do"
        return found
    for tile, row, start, count, part, parts in plan.work_items:
        key = (tile, row)
        done = found.setdefault(key, [])
        assert start - first[tile] == len(done) and part < parts and count <= plan.part_steps
        done.extend(range(len(done), len(done) + count))
    return found


@pytest.mark.parametrize("kept", [[5, 5, 5, 0], [0], [3, 200, 1, 0, 7], [40] * 6, [1] * 3])
@pytest.mark.parametrize("V", [16, 64, 256])
@pytest.mark.parametrize("multiprocessors", [1, 132])
def test_every_step_of_every_row_is_planned_once(kept, V, multiprocessors):
    slots = np.array(kept) * 64
    tables = IndexTables(
        np.zeros(slots.sum(), int), np.cumsum([0, *slots]), np.arange(len(kept) * V), 64, 10**4
    )
    for n in (1, 16):
        for sparse in (False, True):
            plan = DecodePlan.of(tables, sparse=sparse, multiprocessors=multiprocessors, n=n)
            assert covered_steps(plan) == {
                (tile, row): list(range(steps))
                for tile, steps in enumerate(kept)
                for row in range(0, V, plan.block_rows)
            }
            assert plan.shared_bytes(n) <= 99 << 10 and plan.threads <= 512


def test_what_does_not_fit_is_named():
    rng = np.random.default_rng(10)
    matrix = packed(rng, 32, [64])
    plan, outputs = plan_of(matrix, n=4), matrix.index.outputs
    x, y = np.zeros((300, 4), np.uint16), np.zeros((outputs, 4), np.uint16)

    def launch(x=x, y=y, **options):
        return decode_launch(
            matrix, x, y, plan=plan, bfloat16=False, **work_arrays(plan), **options
        )

    for message, options in {
        "x must have 1 to 4 columns": {"x": np.zeros((300, 5), np.uint16)},
        r"x must have shape \(300, 4\)": {"x": x[:299]},
        r"y must have shape \(4, ": {"token_major_y": True},
        r"y must have shape \(32, 4\)": {"keep_order": True},
        "rows must be contiguous": {"x": np.zeros((4, 300), np.uint16).T},
        "factor must have y's shape": {"factor": y[:1]},
        "activation must be": {"activation": "tanh"},
    }.items():
        with pytest.raises(ValueError, match=message):
            launch(**options)
    columns = np.zeros(65, np.uint16)[1:]
    assert columns.ctypes.data % 4 == 2
    odd = SimpleNamespace(
        values=matrix.values, metadata=matrix.metadata, columns=columns, row_map=matrix.row_map
    )
    with pytest.raises(ValueError, match="columns must begin on 4 bytes"):
        decode_launch(odd, x, y, plan=plan, bfloat16=False, **work_arrays(plan))
    for message, options in {
        "n must lie in 1..16": {"n": 17},
        "block_rows must be one of 16, 32, got 64": {"block_rows": 64},
        "part_steps must lie in 1..62": {"n": 8, "part_steps": 63},
    }.items():
        with pytest.raises(ValueError, match=message):
            plan_of(matrix, **options)
