"""Index tables and index fusion, against dense products."""

import subprocess
import sys

import numpy as np
import pytest

import gyroperm
from gyroperm.gpu import IndexTables, fuse
from gyroperm.pattern import Pattern
from strategies import shuffled_solution

# Rows and columns that V = 16 and m = 4 do not divide, so that virtual ones appear.
PATTERNS = {
    "hinm": Pattern.hinm(vec_ratio=0.5, vec_size=16),
    "hinm, all vectors": Pattern.hinm(vec_ratio=0.0, vec_size=16),
    "tvw": Pattern.tvw(vec_ratio=0.5, vec_size=16, row_ratio=0.2),
    "vnm": Pattern.vnm(16, 2, 8),
    "nm": Pattern.nm(),
}
each_pattern = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS.keys())


def values_of(solution, weights):
    """The V x K_t block of each tile of the masked weights; virtual rows and slots are zero."""
    masked = solution.apply(weights)
    blocks = []
    for rows, groups in zip(solution.tile_rows, solution.groups, strict=True):
        columns = groups.reshape(-1)
        block = masked[np.ix_(rows, columns)]
        block[rows < 0] = 0
        block[:, columns < 0] = 0
        blocks.append(block)
    return blocks


def packed_product(tables, blocks, x):
    """Every tile's rows of the product, in packed order: what a kernel leaves without scatter."""
    ends = zip(tables.tile_ptr[:-1], tables.tile_ptr[1:], strict=True)
    tiles = [block @ x[tables.columns[a:b]] for block, (a, b) in zip(blocks, ends, strict=True)]
    return np.concatenate(tiles)


def scattered(tables, packed):
    y = np.zeros((tables.outputs, packed.shape[1]))
    real = tables.row_map >= 0
    y[tables.row_map[real]] = packed[real]
    return y


@each_pattern
def test_tables_multiply_as_the_masked_dense_matrix(pattern):
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((70, 50))
    x = rng.standard_normal((50, 7))
    solution = shuffled_solution(weights, pattern, rng)
    tables = IndexTables.from_solution(solution)
    y = scattered(tables, packed_product(tables, values_of(solution, weights), x))
    np.testing.assert_allclose(y, solution.apply(weights) @ x, rtol=1e-12, atol=1e-12)


@each_pattern
def test_tables_of_a_solved_layer(pattern):
    rng = np.random.default_rng(2)
    weights = rng.standard_normal((37, 30))
    x = rng.standard_normal((30, 3))
    solution = gyroperm.solve(weights, pattern=pattern, method="identity")
    tables = IndexTables.from_solution(solution)
    assert tables.tiles == len(solution.groups)
    assert tables.tile_size == solution.tile_rows.shape[1]
    y = scattered(tables, packed_product(tables, values_of(solution, weights), x))
    np.testing.assert_allclose(y, solution.apply(weights) @ x, rtol=1e-12, atol=1e-12)


def test_tvw_tiles_are_ragged_and_rows_pruned_whole_are_in_no_tile():
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((70, 50)) * np.linspace(0.1, 2, 70)[:, None]
    pattern = PATTERNS["tvw"]
    solution = gyroperm.solve(weights, pattern=pattern, method="identity")
    tables = IndexTables.from_solution(solution)
    sizes = np.diff(tables.tile_ptr)
    assert sizes.tolist() == [g.size for g in solution.groups]
    assert len(set(sizes)) > 1
    assert (tables.row_map >= 0).sum() == pattern.kept_rows(70)
    assert np.array_equal(tables.output_order[: len(tables.row_map)], tables.row_map)
    assert np.array_equal(np.sort(tables.output_order[tables.output_order >= 0]), np.arange(70))


def test_virtual_slots_read_row_zero():
    solution = shuffled_solution(np.ones((16, 50)), PATTERNS["nm"], np.random.default_rng(4))
    tables = IndexTables.from_solution(solution)
    virtual = solution.groups[0].reshape(-1) < 0
    assert virtual.sum() == 2
    assert (tables.columns[virtual] == 0).all()
    assert np.array_equal(tables.columns[~virtual], solution.groups[0].reshape(-1)[~virtual])


@pytest.mark.parametrize("first", PATTERNS.values(), ids=PATTERNS.keys())
@pytest.mark.parametrize("second", PATTERNS.values(), ids=PATTERNS.keys())
def test_a_fused_chain_equals_the_unfused_one(first, second):
    rng = np.random.default_rng(5)
    w1, w2 = rng.standard_normal((70, 50)), rng.standard_normal((45, 70))
    bias = rng.standard_normal((70, 1))
    x = rng.standard_normal((50, 6))
    s1, s2 = shuffled_solution(w1, first, rng), shuffled_solution(w2, second, rng)
    t1, t2 = IndexTables.from_solution(s1), IndexTables.from_solution(s2)

    expected = s2.apply(w2) @ np.maximum(s1.apply(w1) @ x + bias, 0)

    order = t1.output_order
    left = np.zeros((len(order), x.shape[1]))
    left[: len(t1.row_map)] = packed_product(t1, values_of(s1, w1), x)
    left = np.maximum(left + np.where(order[:, None] >= 0, bias[order], 0), 0)
    # Nothing may be read from a position that holds no row.
    left[order < 0] = np.nan
    fused = fuse(t2, order)
    assert fused.inputs == len(order)
    y = scattered(fused, packed_product(fused, values_of(s2, w2), left))
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


def test_two_consumers_read_one_producer_that_packs_without_gaps():
    rng = np.random.default_rng(6)
    w1 = rng.standard_normal((70, 50))
    producer = shuffled_solution(w1, PATTERNS["hinm"], rng)
    hidden = rng.standard_normal((70, 4))
    for rows in (33, 64):
        weights = rng.standard_normal((rows, 70))
        solution = shuffled_solution(weights, PATTERNS["hinm"], rng)
        fused = fuse(IndexTables.from_solution(solution), producer.row_order)
        left = hidden[producer.row_order]
        y = scattered(fused, packed_product(fused, values_of(solution, weights), left))
        np.testing.assert_allclose(y, solution.apply(weights) @ hidden, rtol=1e-12, atol=1e-12)


def test_fusing_with_the_original_order_changes_nothing():
    solution = shuffled_solution(np.ones((20, 24)), PATTERNS["hinm"], np.random.default_rng(7))
    tables = IndexTables.from_solution(solution)
    fused = fuse(tables, np.arange(24))
    for name in ("columns", "tile_ptr", "row_map"):
        assert np.array_equal(getattr(fused, name), getattr(tables, name)), name
    assert (fused.inputs, fused.outputs) == (tables.inputs, tables.outputs)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (np.arange(23), "names 23 rows, the consumer reads an X of 24"),
        (np.arange(25), "names 25 rows, the consumer reads an X of 24"),
        (np.array([*range(23), 0]), "not a permutation of 24 rows: row 23 is missing"),
        (np.array([*range(23), 24]), "not a permutation of 24 rows: row 23 is missing"),
        (np.array([*range(24), -2]), "row ids or -1, got -2"),
        (np.arange(24).reshape(4, 6), "one-dimensional"),
    ],
)
def test_fuse_refuses_what_is_no_row_order(order, message):
    solution = shuffled_solution(np.ones((20, 24)), PATTERNS["hinm"], np.random.default_rng(8))
    tables = IndexTables.from_solution(solution)
    with pytest.raises(ValueError, match=message):
        fuse(tables, order)


def test_fuse_refuses_a_row_order_of_floats():
    solution = shuffled_solution(np.ones((20, 24)), PATTERNS["hinm"], np.random.default_rng(8))
    with pytest.raises(TypeError, match="producer_row_order must hold integers"):
        fuse(IndexTables.from_solution(solution), np.arange(24.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": [0, 1, 2, 8]}, r"columns must lie in \[0, 8\)"),
        ({"columns": [0, 1, 2, -1]}, r"columns must lie in \[0, 8\)"),
        ({"columns": [0, 1, 2]}, "tile_ptr must run from 0 to the 3 slots"),
        ({"tile_ptr": [1, 4, 4]}, "tile_ptr must run from 0"),
        ({"tile_ptr": [0, 5, 4]}, "tile_ptr must not fall"),
        ({"tile_ptr": [0]}, "T \\+ 1 entries"),
        ({"row_map": [0, 1, 2]}, "V rows for each of 2 tiles, got 3"),
        ({"row_map": [0, 1, 2, 2]}, "names a row twice"),
        ({"row_map": [0, 1, 2, 4]}, r"rows in \[0, 4\) or -1"),
        ({"row_map": [0, 1, 2, -2]}, r"rows in \[0, 4\) or -1"),
        ({"inputs": 0}, "inputs must be at least 1"),
    ],
)
def test_tables_that_do_not_fit_together_are_refused(change, message):
    good = {
        "columns": [0, 7, 3, 1],
        "tile_ptr": [0, 4, 4],
        "row_map": [3, 1, 0, -1],
        "inputs": 8,
        "outputs": 4,
    }
    assert IndexTables(**good).tiles == 2
    with pytest.raises(ValueError, match=message):
        IndexTables(**{**good, **change})


@pytest.mark.parametrize(("inputs", "dtype"), [(65536, np.uint16), (65537, np.int32)])
def test_columns_are_as_small_as_the_inputs_allow(inputs, dtype):
    tables = IndexTables([inputs - 1], [0, 1], [0], inputs, 1)
    assert tables.columns.dtype == dtype
    assert tables.columns[0] == inputs - 1
    assert tables.tile_ptr.dtype == tables.row_map.dtype == np.int32


def test_fusion_widens_columns_that_no_longer_fit():
    order = np.full(70_000, -1)
    order[-2:] = [1, 0]
    fused = fuse(IndexTables([0, 1], [0, 2], [0], 2, 1), order)
    assert fused.columns.dtype == np.int32
    assert fused.columns.tolist() == [69_999, 69_998]


def test_tables_cannot_be_changed():
    tables = IndexTables([0], [0, 1], [0], 1, 1)
    for name in ("columns", "tile_ptr", "row_map"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(tables, name)[0] = 0


def test_an_im2col_convolution_has_tables():
    rng = np.random.default_rng(9)
    weights = rng.standard_normal((20, 6, 3, 3))
    solution = gyroperm.solve(weights, pattern=PATTERNS["hinm"], method="identity")
    tables = IndexTables.from_solution(solution)
    assert (tables.inputs, tables.outputs) == (54, 20)
    x = rng.standard_normal((54, 5))
    blocks = solution.permute(solution.apply(weights))
    y = scattered(tables, packed_product(tables, blocks, x))
    np.testing.assert_allclose(
        y, solution.apply(weights).reshape(20, 54) @ x, rtol=1e-12, atol=1e-12
    )


def test_matrices_of_a_list_stack_their_outputs():
    rng = np.random.default_rng(10)
    weights = [rng.standard_normal((16, 32)), rng.standard_normal((32, 32))]
    solution = gyroperm.solve(weights, pattern=Pattern.vnm(16, 2, 8), method="identity")
    tables = IndexTables.from_solution(solution)
    x = rng.standard_normal((32, 5))
    y = scattered(tables, packed_product(tables, solution.permute(solution.apply(weights)), x))
    np.testing.assert_allclose(y, np.vstack(solution.apply(weights)) @ x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 2, "vec_ratio": 0.5, "vec_size": 4}, "a convolution of 2 groups"),
        ({}, "a convolution solved by input channel"),
    ],
)
def test_what_is_no_single_product_is_refused(options, message):
    solution = gyroperm.solve(np.ones((8, 8, 3, 3)), method="identity", **options)
    with pytest.raises(ValueError, match=message):
        IndexTables.from_solution(solution)


def test_the_package_runs_without_solver_libraries_and_device():
    program = """
import sys
for name in ("ortools", "networkx", "cupy", "torch"):
    sys.modules[name] = None  # makes any import of it fail
from gyroperm.gpu import IndexTables, fuse
fused = fuse(IndexTables([0, 2, 1], [0, 3], [1, 0], 3, 2), [2, 0, 1])
assert fused.columns.tolist() == [1, 0, 2], fused.columns
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
