"""The packed matrix: round trips, fragments by the manual's formulas, and files."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gyroperm
import naive
from gyroperm.gpu import HinmMatrix, IndexTables
from gyroperm.gpu.numbers import from_bits, to_bits
from gyroperm.pattern import Pattern
from strategies import KINDS, packable_solutions, shuffled_solution

SPARSE_INSIDE = ((1, 2), (1, 4), (2, 4))


def any_bits(shape, rng):
    """Every number there is in 16 bits: zeros of both signs, subnormals, infinities and NaN."""
    bits = rng.integers(0, 2**16, shape, dtype=np.uint16)
    bits[rng.random(shape) < 0.1] = 0x8000
    bits[rng.random(shape) < 0.1] = 0
    return bits


def small_solution(pattern=None, shape=(40, 72), seed=0):
    rng = np.random.default_rng(seed)
    pattern = pattern or Pattern.hinm(vec_ratio=0.5, vec_size=16)
    return shuffled_solution(rng.random(shape), pattern, rng)


def weights_for(solution, seed=1, dtype=np.float16):
    shape = solution.mask.shape
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def packed_rows(vec_size, rows):
    """The size of packed tiles: a power of two that divides ``vec_size``, or holds the rows."""
    if vec_size is not None:
        return {16: 16, 32: 32, 48: 16}[vec_size]
    return 16 if rows <= 16 else 32 if rows <= 32 else 64 if rows <= 64 else 128


def tile_as_solved(solution, bits, rows):
    """The slots of the tile that holds these rows, and which of them are kept, by the solution."""
    mine = [t for t, own in enumerate(solution.tile_rows) if np.isin(rows[rows >= 0], own).all()]
    columns = solution.groups[mine[0]].reshape(-1) if mine else np.empty(0, int)
    columns = np.pad(columns, (0, -len(columns) % 64), constant_values=-1)
    real = (rows >= 0)[:, None] & (columns >= 0)
    return bits[np.ix_(rows, columns)], solution.mask[np.ix_(rows, columns)] & real, columns


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_every_bit_lies_where_the_lanes_of_a_warp_look_for_it(kind, data):
    solution = data.draw(packable_solutions(kind))
    bits = any_bits(solution.mask.shape, np.random.default_rng(data.draw(st.integers(0, 99))))
    packed = HinmMatrix.from_solution(solution, bits.view(np.float16))
    pattern = solution.pattern
    assert packed.sparse == ((pattern.n, pattern.m) in SPARSE_INSIDE)
    assert packed.shape == bits.shape
    assert packed.tile_size == packed_rows(pattern.vec_size, len(bits))
    rows = packed.index.row_map
    assert np.array_equal(np.sort(rows[rows >= 0]), np.arange(len(bits)))
    for t, own in enumerate(rows.reshape(packed.tiles, -1)):
        start, end = packed.index.tile_ptr[t : t + 2]
        steps = slice(start // 64, end // 64)
        if not np.isin(own, solution.tile_rows).any():
            assert start == end, "rows pruned whole take no step"
            continue
        block, mask, columns = tile_as_solved(solution, bits, own)
        assert np.array_equal(packed.index.columns[start:end], np.maximum(columns, 0))
        if packed.sparse:
            values, metadata = naive.packed_sparse_tile(block, mask)
            np.testing.assert_array_equal(packed.metadata[steps], metadata)
        else:
            values = naive.packed_dense_tile(block, mask)
        np.testing.assert_array_equal(packed.values[steps], values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@given(data=st.data())
def test_unpacking_gives_back_the_masked_weights(kind, dtype, data):
    torch = pytest.importorskip("torch")
    solution = data.draw(packable_solutions(kind))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    bits = any_bits(solution.mask.shape, rng)
    weights = torch.from_numpy(bits.view(np.int16)).view(getattr(torch, dtype))
    packed = HinmMatrix.from_solution(solution, weights)
    assert packed.dtype == dtype
    dense = packed.to_dense()
    expected = from_bits(np.where(solution.mask, bits, 0).astype(np.uint16), dtype)
    np.testing.assert_array_equal(dense, expected)
    assert np.array_equal(np.signbit(dense), np.signbit(expected))
    kept = np.where(solution.mask, bits, 0) & 0x7FFF
    assert packed.density == np.count_nonzero(kept) / kept.size


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_the_reference_product_is_that_of_the_masked_weights(kind, data):
    solution = data.draw(packable_solutions(kind))
    weights = weights_for(solution)
    x = np.random.default_rng(3).standard_normal((weights.shape[1], 5))
    packed = HinmMatrix.from_solution(solution, weights)
    expected = solution.apply(weights).astype(np.float64) @ x
    np.testing.assert_allclose(packed.matmul_reference(x), expected, rtol=1e-12, atol=1e-12)


def words_of_cutlass(meta):
    """The word that each lane loads for 32 rows and 32 slots: shape (M / 32, K / 32, 32).

    CUTLASS stores pairs of columns of 16-bit metadata one after the other, rows consecutive.
    """
    stored = meta.numpy().view(np.uint16).reshape(-1).view(np.uint32)
    return stored.reshape(meta.shape[1] // 2, len(meta) // 32, 32).transpose(1, 0, 2)


def test_metadata_is_what_torch_makes_for_cutlass():
    torch = pytest.importorskip("torch")
    conversions = pytest.importorskip("torch.sparse._semi_structured_conversions")
    rng = np.random.default_rng(5)
    weights = rng.standard_normal((64, 256)).astype(np.float16)
    solution = gyroperm.solve(weights, pattern=Pattern.nm(), method="identity")
    packed = HinmMatrix.from_solution(solution, weights)
    values, meta = conversions.sparse_semi_structured_from_dense_cutlass(
        torch.from_numpy(solution.apply(weights))
    )
    theirs = words_of_cutlass(meta)
    assert np.array_equal(packed.index.row_map, np.arange(64))
    assert np.array_equal(packed.index.columns, np.arange(256))
    for step in range(4):
        for block in range(4):
            for lane in range(32):
                # A warp of theirs has 32 rows and one fragment deep: selector 1 means the second
                # 16 rows. One of ours has 16 rows and two fragments: the second 32 slots.
                selector = lane % 4 // 2
                word = theirs[block // 2, 2 * step + selector]
                assert (
                    packed.metadata[step, block, lane]
                    == word[lane // 4 * 4 + block % 2 * 2 + lane % 2]
                )
                for half in range(2):
                    # Registers: rows g and g + 8 of the first 8 values, then of the last 8.
                    rows = block * 16 + lane // 4 + np.array([0, 0, 8, 8, 0, 0, 8, 8])
                    k = lane % 4 * 2 + np.array([0, 1, 0, 1, 8, 9, 8, 9])
                    expected = values.numpy()[rows, (2 * step + half) * 16 + k]
                    mine = packed.values[step, half, block, lane].view(np.float16)
                    assert np.array_equal(mine, expected)


@pytest.mark.parametrize(
    ("pattern", "rows", "tiles", "tile_size"),
    [
        (Pattern.nm(), 5, 1, 16),
        (Pattern.nm(), 40, 1, 64),
        (Pattern.nm(), 100, 1, 128),
        (Pattern.nm(), 300, 3, 128),
        (Pattern.hinm(vec_ratio=0.5, vec_size=256), 300, 2, 256),
        (Pattern.hinm(vec_ratio=0.5, vec_size=48), 100, 8, 16),
        (Pattern.hinm(vec_ratio=0.5, vec_size=96), 100, 4, 32),
        (Pattern.hinm(vec_ratio=0.5, vec_size=192), 300, 6, 64),
        (Pattern.hinm(vec_ratio=0.5, vec_size=288), 300, 4, 128),
        (Pattern.hinm(vec_ratio=0.5, vec_size=None), 140, 2, 128),
        (Pattern(vec_size=None, vec_ratio=0.5, allocation="global", row_ratio=0.5), 300, 4, 128),
    ],
)
def test_tiles_of_other_sizes_are_cut(pattern, rows, tiles, tile_size):
    solution = small_solution(pattern, (rows, 70))
    weights = weights_for(solution)
    packed = HinmMatrix.from_solution(solution, weights)
    assert (packed.tiles, packed.tile_size) == (tiles, tile_size)
    assert np.array_equal(packed.to_dense(), solution.apply(weights))


@pytest.mark.parametrize(
    "pattern",
    [Pattern.nm(), Pattern.vnm(16, 2, 8), Pattern.vector_nm(1, 2, 16)],
    ids=["nm", "vnm", "vector_nm"],
)
def test_outputs_of_a_list_of_matrices_are_stacked(pattern):
    rng = np.random.default_rng(7)
    listed = [rng.standard_normal((rows, 40)).astype(np.float16) for rows in (20, 37)]
    solution = gyroperm.solve(listed, pattern=pattern, method="identity")
    packed = HinmMatrix.from_solution(solution, listed)
    assert np.array_equal(packed.to_dense(), np.concatenate(solution.apply(listed)))


def test_a_convolution_is_packed_as_its_im2col_matrix():
    rng = np.random.default_rng(7)
    pattern = Pattern.hinm(vec_ratio=0.5, vec_size=16)
    convolution = rng.standard_normal((20, 6, 3, 3)).astype(np.float16)
    solution = gyroperm.solve(convolution, pattern=pattern, method="identity")
    packed = HinmMatrix.from_solution(solution, convolution)
    assert np.array_equal(packed.to_dense(), solution.apply(convolution).reshape(20, 54))


def test_weights_of_two_precisions_are_packed_as_numbers():
    rng = np.random.default_rng(8)
    listed = [rng.standard_normal((16, 24)).astype(dtype) for dtype in (np.float16, np.float32)]
    solution = gyroperm.solve(listed, pattern=Pattern.nm(), method="identity")
    packed = HinmMatrix.from_solution(solution, listed)
    assert packed.dtype == "float16"
    expected = np.concatenate(solution.apply(listed)).astype(np.float16)
    assert np.array_equal(packed.to_dense(), expected)


@pytest.mark.parametrize("given_as", [np.float16, np.float32, np.float64, ">f2", ">f4"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_are_rounded_once_to_the_dtype(given_as, dtype):
    solution = small_solution()
    weights = weights_for(solution, dtype=given_as)
    packed = HinmMatrix.from_solution(solution, weights, dtype)
    expected = from_bits(to_bits(solution.apply(weights), dtype), dtype)
    assert np.array_equal(packed.to_dense(), expected)


def test_torch_weights_that_train_are_packed():
    torch = pytest.importorskip("torch")
    solution = small_solution()
    weights = torch.nn.Parameter(torch.from_numpy(weights_for(solution, dtype=np.float32)))
    packed = HinmMatrix.from_solution(solution, weights.to(torch.bfloat16).t().contiguous().t())
    assert packed.dtype == "bfloat16"
    masked = solution.apply(weights.detach().to(torch.bfloat16)).float().numpy()
    assert np.array_equal(packed.to_dense(), masked)
    assert HinmMatrix.from_solution(solution, weights).dtype == "float16"


def test_fusion_shares_the_values():
    rng = np.random.default_rng(9)
    producer = HinmMatrix.from_solution(
        solution := small_solution(Pattern.tvw(vec_ratio=0.5, vec_size=16, row_ratio=0.2)),
        weights_for(solution),
    )
    solution = small_solution(shape=(33, 40), seed=2)
    consumer = HinmMatrix.from_solution(solution, weights_for(solution))
    order = producer.index.output_order
    fused = consumer.fused(order)
    assert np.shares_memory(fused.values, consumer.values)
    assert fused.shape == (33, len(order))
    x = rng.standard_normal((40, 4))
    # Nothing may be read from a position that holds no row.
    left = np.where(order[:, None] >= 0, x[order], np.nan)
    np.testing.assert_array_equal(fused.matmul_reference(left), consumer.matmul_reference(x))


def test_sizes_are_those_of_the_arrays():
    solution = small_solution(Pattern.hinm(vec_ratio=0.5, vec_size=16), (48, 160))
    packed = HinmMatrix.from_solution(solution, weights_for(solution))
    assert (packed.tiles, packed.steps) == (3, 6)
    assert packed.tile_steps.tolist() == [2, 2, 2]
    values, metadata, columns = 6 * 2 * 32 * 16, 6 * 32 * 4, 6 * 64 * 2
    assert packed.nbytes == values + metadata + columns + 4 * 4 + 48 * 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_file_holds_everything(kind, dtype, tmp_path):
    patterns = {
        "nm": Pattern.nm(),
        "hinm": Pattern.hinm(vec_ratio=0.5, vec_size=16),
        "vnm": Pattern.vnm(16, 2, 8),
        "vector_nm": Pattern.vector_nm(1, 2, 16),
        "tvw": Pattern.tvw(vec_ratio=0.5, vec_size=16, row_ratio=0.4),
    }
    solution = small_solution(patterns[kind])
    packed = HinmMatrix.from_solution(solution, weights_for(solution), dtype)
    packed.save(tmp_path / "layer.safetensors")
    read = HinmMatrix.load(tmp_path / "layer.safetensors")
    for name in ("values", "metadata"):
        np.testing.assert_array_equal(getattr(read, name), getattr(packed, name), strict=True)
        assert not getattr(read, name).flags.writeable
    for name in ("columns", "tile_ptr", "row_map"):
        np.testing.assert_array_equal(
            getattr(read.index, name), getattr(packed.index, name), strict=True
        )
    assert (read.dtype, read.shape, read.sparse) == (dtype, packed.shape, packed.sparse)


def rewritten(path, change):
    """The file with its header changed."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["__metadata__"].update(schema="7"), "has schema 7; this version reads schema"),
        (lambda h: h["__metadata__"].pop("schema"), "has schema None; this version reads schema 1"),
        (lambda h: h["__metadata__"].update(format="x"), "expected format .*HinmMatrix.*, got 'x'"),
        (lambda h: h.pop("__metadata__"), "expected format .*HinmMatrix.*, got None"),
        (lambda h: h["__metadata__"].update(dtype="int8"), "damaged.*dtype must be"),
        (lambda h: h["__metadata__"].update(outputs="many"), "damaged.*many"),
        (lambda h: h["__metadata__"].update(outputs="41"), "damaged.*each of 41 output rows"),
        (lambda h: h["values"].update(dtype="I16"), "damaged.*values must be .* uint16, got int16"),
        (lambda h: h.update(rows=h.pop("row_map")), "damaged.*row_map"),
    ],
)
def test_a_file_that_is_none_of_ours_is_refused(change, message, tmp_path):
    path = tmp_path / "layer.safetensors"
    solution = small_solution()
    HinmMatrix.from_solution(solution, weights_for(solution)).save(path)
    rewritten(path, change)
    with pytest.raises(ValueError, match=f"{path}.*{message}"):
        HinmMatrix.load(path)


@pytest.mark.parametrize("content", [b"", b"no tensors at all", b"\xff" * 64])
def test_what_is_no_safetensors_file_is_refused(content, tmp_path):
    path = tmp_path / "layer.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} is no packed matrix: expected a safetensors"):
        HinmMatrix.load(path)


def test_a_cut_file_is_refused_and_a_missing_one_is_missing(tmp_path):
    path = tmp_path / "layer.safetensors"
    with pytest.raises(FileNotFoundError):
        HinmMatrix.load(path)
    solution = small_solution()
    HinmMatrix.from_solution(solution, weights_for(solution)).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is no packed matrix"):
        HinmMatrix.load(path)


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    import safetensors.numpy

    path = tmp_path / "layer.safetensors"
    path.write_text("before")

    def fail(tensors, file, metadata):
        file.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    solution = small_solution()
    with pytest.raises(OSError, match="disk full"):
        HinmMatrix.from_solution(solution, weights_for(solution)).save(path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["before"]


@pytest.mark.parametrize("V", [8, 20, 300])
def test_tiles_that_fragments_do_not_divide_are_refused(V):
    solution = small_solution(Pattern.hinm(vec_ratio=0.5, vec_size=V))
    message = f"vec_size must be a multiple of 16, or None .*vec_size={V}"
    with pytest.raises(ValueError, match=message):
        HinmMatrix.from_solution(solution, weights_for(solution))


def test_weights_that_do_not_fit_are_refused():
    solution = small_solution()
    weights = weights_for(solution, dtype=np.float32)
    with pytest.raises(ValueError, match=r"weights must have shape \(40, 72\), got \(72, 40\)"):
        HinmMatrix.from_solution(solution, weights.T)
    with pytest.raises(ValueError, match=r"""dtype must be .*, got 'float32'"""):
        HinmMatrix.from_solution(solution, weights, "float32")
    with pytest.raises(TypeError, match="weights must hold real numbers"):
        HinmMatrix.from_solution(solution, weights.astype(complex))
    with pytest.raises(ValueError, match=r"x must have shape \(72, N\), got \(40, 3\)"):
        HinmMatrix.from_solution(solution, weights).matmul_reference(np.ones((40, 3)))


@pytest.mark.parametrize(("size", "dtype"), [(65520.0, "float16"), (1e39, "bfloat16")])
def test_a_weight_too_large_is_refused_only_where_it_is_kept(size, dtype):
    solution = small_solution()
    weights = np.where(solution.mask, 1.0, size)
    packed = HinmMatrix.from_solution(solution, weights, dtype)
    assert np.array_equal(packed.to_dense(), solution.mask)
    weights[tuple(np.argwhere(solution.mask)[-1])] = size
    with pytest.raises(ValueError, match=f"too large for {dtype}"):
        HinmMatrix.from_solution(solution, weights, dtype)
    # Infinity is what was given, not what rounding made of it.
    weights[weights == size] = np.inf
    assert np.isinf(HinmMatrix.from_solution(solution, weights, dtype).to_dense()).sum() == 1


def fields(**change):
    """What makes a matrix of one tile and step, changed."""
    index = IndexTables(np.arange(64), [0, 64], np.arange(16), 64, 16)
    good = {
        "values": np.zeros((1, 2, 1, 32, 8), np.uint16),
        "metadata": np.full((1, 1, 32), 0xEEEEEEEE, np.uint32),
        "index": index,
        "dtype": "float16",
    }
    return {**good, **{k: v(good[k]) if callable(v) else v for k, v in change.items()}}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"values": lambda v: v[:0]}, ValueError, r"values must have shape \(1, 2, 1, 32, 8\)"),
        ({"values": lambda v: v.view(np.float16)}, TypeError, "values must be .* got float16"),
        ({"values": [1]}, TypeError, "values must be a NumPy array of uint16, got list"),
        ({"metadata": lambda m: m[:0]}, ValueError, r"metadata must have shape \(1, 1, 32\)"),
        ({"metadata": lambda m: m * 0}, ValueError, r"ascending order, got 0x00000000 at \(0, 0"),
        ({"metadata": lambda m: m ^ 0x500}, ValueError, "ascending order, got 0xeeeeebee"),
        ({"values": np.zeros((1, 4, 1, 32, 8), np.uint16)}, ValueError, r"metadata .*\(0, 1, 32\)"),
        ({"dtype": "float32"}, ValueError, "dtype must be"),
        ({"index": lambda i: replace(i, tile_ptr=[0, 32, 64])}, ValueError, "index must have tile"),
        ({"index": lambda i: replace(i, outputs=17)}, ValueError, "each of 17 output rows, got 16"),
        (
            {
                "index": lambda i: replace(
                    i, tile_ptr=[0, 32, 64], row_map=np.arange(32), outputs=32
                )
            },
            ValueError,
            "multiples of 64",
        ),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(change, error, message):
    assert HinmMatrix(**fields()).sparse
    with pytest.raises(error, match=message):
        HinmMatrix(**fields(**change))


def test_every_order_of_places_but_the_ascending_is_refused():
    for first in range(4):
        for second in range(4):
            for shift in range(0, 32, 4):
                word = 0xEEEEEEEE & ~(0xF << shift) | (first | second << 2) << shift
                metadata = np.full((1, 1, 32), 0xEEEEEEEE, np.uint32)
                metadata[0, 0, 9] = word
                if first < second:
                    HinmMatrix(**fields(metadata=metadata))
                else:
                    with pytest.raises(ValueError, match="ascending"):
                        HinmMatrix(**fields(metadata=metadata))


def test_arrays_are_read_only_and_those_given_stay_writable():
    given_fields = fields()
    packed = HinmMatrix(**given_fields)
    given_fields["values"][:] = 1
    assert not packed.values.any()
    for array in (packed.values, packed.metadata):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0


def test_packing_needs_neither_solver_libraries_nor_a_device(tmp_path):
    program = """
import sys
for name in ("ortools", "networkx", "cupy", "torch"):
    sys.modules[name] = None  # makes any import of it fail
import numpy as np
from gyroperm.gpu import HinmMatrix
assert "numba" not in sys.modules
from gyroperm import Solution
solution = Solution.load(sys.argv[1])
weights = np.random.default_rng(0).standard_normal(solution.mask.shape).astype(np.float16)
packed = HinmMatrix.from_solution(solution, weights)
assert np.array_equal(packed.to_dense(), solution.apply(weights))
"""
    path = tmp_path / "solution.npz"
    small_solution().save(path)
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
