"""Index fusion by launches, against what the host composes."""

import numpy as np
import pytest

from emulated import EmulationError, run
from gyroperm.gpu import IndexTables, fuse
from gyroperm.gpu.fusion import fuse_columns, fusion, invert
from gyroperm.gpu.source import text


def consumer(rng, rows, slots):
    return IndexTables(rng.integers(0, rows, slots), [0, slots], [0], rows, 1)


def order_with_gaps(rng, rows, gaps):
    order = np.concatenate([np.arange(rows), np.full(gaps, -1)])
    return rng.permutation(order).astype(np.int32)


@pytest.mark.parametrize(
    ("rows", "gaps", "slots"), [(1, 0, 1), (7, 9, 64), (300, 0, 1000), (4096, 128, 2049)]
)
@pytest.mark.parametrize("positions", [np.uint16, np.int32])
def test_as_the_host_fuses(positions, rows, gaps, slots):
    rng = np.random.default_rng(1)
    order = order_with_gaps(rng, rows, gaps)
    consumers = [consumer(rng, rows, slots), consumer(rng, rows, 2 * slots + 1)]
    position_of = np.full(rows, 0xBAD, positions)
    # Of one consumer the table stays narrow where it can, of the other it is wide.
    fused = [np.zeros(slots, np.uint16), np.zeros(2 * slots + 1, np.int32)]
    pairs = [(c.columns, f) for c, f in zip(consumers, fused, strict=True)]
    first, *rest = fusion(order, position_of, pairs)
    run(first, once=("position_of",))
    assert np.array_equal(order[position_of], np.arange(rows))
    for launch in rest:
        run(launch, seed=3, once=("fused",))
    for tables, result in zip(consumers, fused, strict=True):
        np.testing.assert_array_equal(result, fuse(tables, order).columns)


def test_tables_widen_where_positions_need_it():
    rng = np.random.default_rng(2)
    order = np.full(70_000, -1, np.int32)
    order[rng.permutation(70_000)[:50]] = np.arange(50)
    tables = consumer(rng, 50, 64)
    position_of, fused = np.zeros(50, np.int32), np.zeros(64, np.int32)
    for launch in fusion(order, position_of, [(tables.columns, fused)]):
        run(launch)
    np.testing.assert_array_equal(fused, fuse(tables, order).columns)
    assert fused.max() > 65535


def test_a_narrow_order_and_wide_columns():
    rng = np.random.default_rng(3)
    order = rng.permutation(200).astype(np.uint16)
    columns = rng.integers(0, 200, 128).astype(np.int32)
    position_of, fused = np.zeros(200, np.uint16), np.zeros(128, np.uint16)
    for launch in fusion(order, position_of, [(columns, fused)]):
        run(launch)
    np.testing.assert_array_equal(fused, np.argsort(order)[columns])


def test_a_launch_of_few_blocks_covers_a_long_table():
    rng = np.random.default_rng(4)
    columns = rng.integers(0, 100, 4096 * 256 + 300).astype(np.uint16)
    position_of, fused = rng.permutation(100).astype(np.uint16), np.zeros_like(columns)
    launch = fuse_columns(columns, position_of, fused, 100)
    assert launch.grid == (4096, 1, 1)
    run(launch, once=("fused",))
    np.testing.assert_array_equal(fused, position_of[columns])


def test_ids_that_name_no_row_are_written_nowhere():
    order = np.array([2, -1, 3, 0, -7, 1, 1000], np.int32)
    position_of = np.zeros(3, np.int32)
    run(invert(order, position_of), once=("position_of",))
    assert position_of.tolist() == [3, 5, 0]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("k < slots;", "k <= slots;"),
        ("k += grid_x() * threads", "k += threads"),
        ("if (wide_fused)", "if (!wide_fused)"),
        ("p < positions;", "p + 1 < positions;"),
        ("row < 0 || row >= rows", "row < 0"),
        ("row < 0 || row >= rows", "row >= rows"),
        ("if (wide_positions)", "if (!wide_positions)"),
    ],
)
def test_what_the_checks_catch(old, new):
    # Positions that hold no row, and names of rows that there are not.
    order = np.random.default_rng(5).permutation(np.arange(-9, 300)).astype(np.int32)
    columns = np.arange(290, dtype=np.uint16)[::-1].copy()
    position_of, fused = np.zeros(290, np.uint16), np.zeros(290, np.uint16)

    def edit(source):
        return source.replace(old, new)

    with pytest.raises((EmulationError, AssertionError)):
        for launch in fusion(order, position_of, [(columns, fused)]):
            is_changed = old in text(f"{launch.variant.kernel}.cu")
            run(launch, once=("position_of", "fused"), edit=edit if is_changed else None)
        np.testing.assert_array_equal(order[fused], columns)


NARROW, WIDE = np.zeros(8, np.uint16), np.zeros(8, np.int32)


@pytest.mark.parametrize(
    ("order", "position_of", "error", "message"),
    [
        (np.arange(8), WIDE, TypeError, "producer_row_order must hold uint16 or int32.*int64"),
        (WIDE, np.zeros(8), TypeError, "position_of must hold uint16 or int32.*float64"),
        (WIDE.reshape(2, 4), WIDE, ValueError, "producer_row_order must be one-dimensional"),
        (WIDE[:0], WIDE, ValueError, "not empty"),
        (WIDE[:7], WIDE, ValueError, "names at most 7 rows, position_of is of 8 rows"),
        (np.zeros(65537, np.int32), NARROW, ValueError, "positions up to 65536, which uint16"),
    ],
)
def test_what_cannot_be_inverted_is_refused(order, position_of, error, message):
    with pytest.raises(error, match=message):
        invert(order, position_of)
    with pytest.raises(error, match=message):
        fusion(order, position_of, [])


@pytest.mark.parametrize(
    ("columns", "fused", "inputs", "error", "message"),
    [
        (np.arange(8), NARROW, 8, TypeError, "columns must hold uint16 or int32"),
        (NARROW, np.zeros(8, np.uint32), 8, TypeError, "fused must hold uint16 or int32"),
        (NARROW, NARROW[:7], 8, ValueError, "fused must have the 8 slots of columns, got 7"),
        (np.zeros(16, np.uint16)[::2], NARROW, 8, ValueError, "columns must be contiguous"),
        (NARROW, NARROW, 7, ValueError, "inputs must be at least the 8 rows.*got 7"),
        (NARROW, NARROW, 65537, ValueError, "fused must hold positions up to 65536"),
    ],
)
def test_what_cannot_be_fused_is_refused(columns, fused, inputs, error, message):
    with pytest.raises(error, match=message):
        fuse_columns(columns, WIDE, fused, inputs)
