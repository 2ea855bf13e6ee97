"""Arrays of every library and weights of every shape."""

from __future__ import annotations

import numpy as np
import pytest

import naive
from gyroperm import MaxRounds, Pattern, solve
from gyroperm.views import WeightView

FEW = {"stop": MaxRounds(4), "threads": 1}
EXACT = {"rel": 1e-12, "abs": 0.0}
PATTERNS = {
    "nm": Pattern.nm(),
    "hinm": Pattern.hinm(vec_ratio=0.5, vec_size=4),
    "vnm": Pattern.vnm(4, 2, 8),
    "vector_nm": Pattern.vector_nm(2, 4, 4),
    "tvw": Pattern.tvw(vec_ratio=0.5, vec_size=4, row_ratio=0.25),
}
every_pattern = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS.keys())
searching = pytest.mark.parametrize("method", ["identity", "gyro", "assign"])


class OnlyArray:
    """An array-like that offers nothing but ``__array__``."""

    def __init__(self, values):
        self._values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self._values, dtype=dtype)


class OnlyDlpack:
    """An array-like that offers nothing but DLPack."""

    def __init__(self, values):
        self._values = values

    def __dlpack__(self, **options):
        return self._values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._values.__dlpack_device__()


def weights_of(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# ---------------------------------------------------------------- libraries, dtypes, layouts


@every_pattern
@pytest.mark.parametrize("wrap", [OnlyArray, OnlyDlpack])
def test_objects_that_only_offer_a_protocol(pattern, wrap):
    weights = weights_of((10, 16))
    plain = solve(weights, pattern=pattern, **FEW)
    wrapped = solve(wrap(weights), pattern=pattern, saliency=wrap(np.abs(weights)), **FEW)
    assert np.array_equal(wrapped.mask, plain.mask)
    assert wrapped.retained == plain.retained
    assert np.array_equal(wrapped.apply(wrap(weights)), plain.apply(weights))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.int64, np.bool_])
def test_every_real_dtype(dtype):
    weights = (10 * weights_of((6, 8))).astype(dtype)
    solution = solve(weights, **FEW)
    S = np.abs(weights.astype(np.float64))
    assert solution.retained == pytest.approx(naive.masked_sum(S, solution.mask), **EXACT)
    assert solution.apply(weights).dtype == dtype


def test_float64_is_measured_in_float64():
    """A part in 2^40 is lost in float32."""
    S = 1.0 + np.ldexp(np.arange(32, dtype=np.float64).reshape(4, 8), -40)
    solution = solve(S, method="identity")
    best = naive.best_mask(S, [range(4)], [[range(4), range(4, 8)]], 2)
    assert np.array_equal(solution.mask, best)
    assert solution.retained == pytest.approx(naive.masked_sum(S, best), rel=1e-15)


@every_pattern
@pytest.mark.parametrize(
    "layout",
    [
        np.asfortranarray,
        lambda a: np.repeat(a, 2, axis=1)[:, ::2],
        lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
        lambda a: a.astype(">f4"),
    ],
    ids=["fortran", "strided", "reversed", "big-endian"],
)
def test_memory_layout_does_not_matter(pattern, layout):
    weights = weights_of((10, 16), seed=1)
    one = solve(weights, pattern=pattern, **FEW)
    other = solve(layout(weights), pattern=pattern, saliency=layout(np.abs(weights)), **FEW)
    assert np.array_equal(one.mask, other.mask)
    assert one.retained == other.retained


@every_pattern
@searching
def test_inputs_are_left_as_they_were(pattern, method):
    weights = weights_of((10, 16), seed=2)
    saliency = weights**2
    before = weights.copy(), saliency.copy()
    weights.setflags(write=False)
    saliency.setflags(write=False)
    solution = solve(weights, pattern=pattern, saliency=saliency, method=method, **FEW)
    solution.apply(weights)
    solution.permute(weights)
    assert np.array_equal(weights, before[0])
    assert np.array_equal(saliency, before[1])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_torch_tensors(dtype):
    torch = pytest.importorskip("torch")
    weights = torch.from_numpy(weights_of((10, 16))).to(getattr(torch, dtype))
    parameter = torch.nn.Parameter(weights)
    S = weights.double().abs().numpy()
    solution = solve(parameter, vec_ratio=0.5, vec_size=4, **FEW)
    assert solution.retained == pytest.approx(naive.masked_sum(S, solution.mask), **EXACT)

    pruned = solution.apply(parameter)
    assert isinstance(pruned, torch.Tensor)
    assert pruned.dtype == weights.dtype
    kept = torch.from_numpy(solution.mask.copy())
    assert torch.equal(pruned.detach()[kept], weights[kept])
    assert not pruned.detach()[~kept].any()
    pruned.float().sum().backward()
    assert torch.equal(parameter.grad != 0, kept)


def test_torch_views_and_saliencies():
    torch = pytest.importorskip("torch")
    weights = torch.from_numpy(weights_of((16, 10))).t()
    plain = solve(weights.numpy().copy(), **FEW)
    strided = solve(weights, saliency=weights.abs(), **FEW)
    assert np.array_equal(plain.mask, strided.mask)


def test_complex_torch_tensors_are_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"weights must hold real numbers.*complex64"):
        solve(torch.zeros(4, 4, dtype=torch.complex64))


# ---------------------------------------------------------------- convolutions


@searching
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (5,), (2, 1, 3)])
def test_plain_convolutions_order_input_channels(kernel, method):
    weights = weights_of((5, 12, *kernel))
    solution = solve(weights, method=method, **FEW)
    assert solution.mask.shape == weights.shape
    assert sorted(solution.col_order) == list(range(12))
    # Kernel positions are rows like any other.
    rows = np.moveaxis(solution.mask, 1, -1).reshape(-1, 12)
    S = np.abs(np.moveaxis(weights, 1, -1).reshape(-1, 12))
    naive.check_nm(rows, solution.tile_rows, solution.groups, solution.col_order, n=2, m=4)
    assert solution.retained == pytest.approx(naive.masked_sum(S, rows), **EXACT)
    assert solution.identity == pytest.approx(naive.identity_nm(S, 2, 4), **EXACT)
    assert np.array_equal(solution.apply(weights), np.where(solution.mask, weights, 0))


@pytest.mark.parametrize("pattern", list(PATTERNS.values())[1:], ids=list(PATTERNS)[1:])
@searching
def test_two_level_convolutions_take_the_im2col_view(pattern, method):
    weights = weights_of((9, 4, 3, 2))
    conv = solve(weights, pattern=pattern, method=method, **FEW)
    flat = solve(weights.reshape(9, 24), pattern=pattern, method=method, **FEW)
    assert np.array_equal(conv.mask, flat.mask.reshape(weights.shape))
    assert conv.retained == flat.retained
    blocks = conv.permute(weights)
    for one, other in zip(blocks, flat.permute(weights.reshape(9, 24)), strict=True):
        assert np.array_equal(one, other)
    assert np.array_equal(conv.unpermute(blocks), conv.apply(weights))


@searching
def test_grouped_plain_convolutions_have_an_order_for_each_group(method):
    weights = weights_of((6, 8, 3, 3))
    solution = solve(weights, groups=3, method=method, **FEW)
    assert solution.col_order.shape == (3, 8)
    assert solution.tile_rows.shape == (3, 18)
    identity = 0.0
    for g in range(3):
        part = np.moveaxis(weights[2 * g : 2 * g + 2], 1, -1).reshape(18, 8)
        mask = np.moveaxis(solution.mask[2 * g : 2 * g + 2], 1, -1).reshape(18, 8)
        rows = solution.tile_rows[g : g + 1] - 18 * g
        naive.check_nm(mask, rows, solution.groups[g : g + 1], solution.col_order[g], n=2, m=4)
        identity += naive.identity_nm(np.abs(part), 2, 4)
    assert solution.identity == pytest.approx(identity, **EXACT)
    assert np.array_equal(solution.unpermute(solution.permute(weights)), solution.apply(weights))


@searching
@pytest.mark.parametrize("kind", ["hinm", "vnm", "vector_nm", "tvw"])
def test_grouped_two_level_convolutions_never_share_a_tile(kind, method):
    pattern = PATTERNS[kind]
    weights = weights_of((12, 4, 2, 2))
    solution = solve(weights, pattern=pattern, groups=2, method=method, **FEW)
    for rows in solution.tile_rows:
        assert len({int(r) // 6 for r in rows if r >= 0}) == 1
    if pattern.shared_order:
        assert solution.col_order.shape == (2, 16)
    assert np.array_equal(solution.unpermute(solution.permute(weights)), solution.apply(weights))


def test_depthwise_convolutions():
    weights = weights_of((6, 1, 3, 3))
    solution = solve(weights, groups=6, **FEW)
    # One input channel: a group of one real column keeps it.
    assert solution.mask.all()
    assert solution.retained == solution.identity == pytest.approx(np.abs(weights).sum(dtype=float))


# ---------------------------------------------------------------- lists


@searching
def test_a_list_shares_one_order(method):
    parts = [weights_of((5, 12), 1), weights_of((9, 12), 2), weights_of((3, 12), 3)]
    solution = solve(parts, method=method, **FEW)
    assert isinstance(solution.mask, list)
    assert [mask.shape for mask in solution.mask] == [part.shape for part in parts]
    stacked, S = np.concatenate(solution.mask), np.abs(np.concatenate(parts))
    order = solution.col_order
    naive.check_nm(stacked, solution.tile_rows, solution.groups, order, n=2, m=4)
    assert solution.retained == pytest.approx(naive.masked_sum(S, stacked), **EXACT)
    pruned = solution.apply(parts)
    for part, mask, result in zip(parts, solution.mask, pruned, strict=True):
        assert np.array_equal(result, np.where(mask, part, 0))
    restored = solution.unpermute(solution.permute(parts))
    assert all(np.array_equal(a, b) for a, b in zip(restored, pruned, strict=True))


@searching
@pytest.mark.parametrize("kind", ["vnm", "vector_nm"])
def test_a_windowed_list_shares_windows_but_no_tiles(kind, method):
    parts = [weights_of((6, 16), 1), weights_of((10, 16), 2)]
    solution = solve(parts, pattern=PATTERNS[kind], method=method, **FEW)
    assert solution.col_order.shape == (16,)
    first = 0
    for part, mask, tiles in zip(parts, solution.mask, (2, 3), strict=True):
        rows = solution.tile_rows[first : first + tiles]
        rows = np.where(rows >= 0, rows - (6 if first else 0), -1)
        groups = solution.groups[first : first + tiles]
        if kind == "vnm":
            naive.check_vnm(mask, rows, groups, solution.col_order, n=2, V=4, M=8)
        else:
            naive.check_vector_nm(mask, rows, solution.col_order, N=2, M=4, V=4)
        assert mask.shape == part.shape
        first += tiles
    restored = solution.unpermute(solution.permute(parts))
    for part, mask, result in zip(parts, solution.mask, restored, strict=True):
        assert np.array_equal(result, np.where(mask, part, 0))


def test_a_list_of_one_gives_lists_and_suits_every_pattern():
    weights = weights_of((8, 16))
    for pattern in PATTERNS.values():
        alone = solve(weights, pattern=pattern, **FEW)
        listed = solve([weights], pattern=pattern, **FEW)
        assert np.array_equal(listed.mask[0], alone.mask)
        assert np.array_equal(listed.apply([weights])[0], alone.apply(weights))


def test_a_list_may_mix_convolutions_and_matrices():
    parts = [weights_of((4, 8, 3, 3), 1), weights_of((6, 8), 2)]
    solution = solve(parts, **FEW)
    assert [mask.shape for mask in solution.mask] == [(4, 8, 3, 3), (6, 8)]
    restored = solution.unpermute(solution.permute(parts))
    for a, b in zip(restored, solution.apply(parts), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("pattern", [PATTERNS["hinm"], PATTERNS["tvw"]], ids=str)
def test_a_list_is_refused_where_tiles_order_their_own_columns(pattern):
    with pytest.raises(ValueError, match=r"order their own columns.*plain N:M or a windowed"):
        solve([weights_of((8, 16)), weights_of((8, 16))], pattern=pattern)


def test_normalize_makes_each_matrix_count_alike():
    parts = [weights_of((6, 12), 1), weights_of((6, 12), 2)]
    one = solve(parts, normalize=True, **FEW)
    other = solve([parts[0] * 2**14, parts[1]], normalize=True, **FEW)
    assert all(np.array_equal(a, b) for a, b in zip(one.mask, other.mask, strict=True))
    expected = sum(
        naive.masked_sum(np.abs(part), mask) / np.abs(part).sum(dtype=float)
        for part, mask in zip(parts, one.mask, strict=True)
    )
    assert one.retained == pytest.approx(expected, rel=1e-5)
    # Without it the large matrix decides alone.
    alone = solve(parts[0], method="assign", **FEW)
    decided = solve([parts[0] * 2**20, parts[1] * 0], method="assign", **FEW)
    assert np.array_equal(decided.mask[0], alone.mask)
    zeros = solve([parts[0] * 0, parts[1]], normalize=True, **FEW)
    assert np.isfinite(zeros.retained)


# ---------------------------------------------------------------- permute and its inverse


@every_pattern
@searching
def test_permute_reads_what_the_indices_say(pattern, method):
    weights = weights_of((10, 19), seed=5)
    solution = solve(weights, pattern=pattern, method=method, **FEW)
    permuted = solution.permute(weights)
    if pattern.is_plain:
        assert permuted.shape == (10, 20)
        for p, c in enumerate(solution.col_order):
            assert np.array_equal(permuted[:, p], weights[:, c] if c >= 0 else np.zeros(10))
    else:
        assert len(permuted) == len(solution.groups)
        for block, rows, groups in zip(permuted, solution.tile_rows, solution.groups, strict=True):
            assert block.shape == (pattern.vec_size, groups.size)
            for v, r in enumerate(rows):
                for k, c in enumerate(groups.reshape(-1)):
                    assert block[v, k] == (weights[r, c] if r >= 0 and c >= 0 else 0)
    assert np.array_equal(solution.unpermute(permuted), solution.apply(weights))


def test_unpermute_refuses_other_shapes():
    weights = weights_of((10, 16))
    plain = solve(weights, **FEW)
    with pytest.raises(ValueError, match=r"block 0 must have shape \(10, 16\), got \(10, 12\)"):
        plain.unpermute(np.zeros((10, 12)))
    tiled = solve(weights, pattern=PATTERNS["hinm"], **FEW)
    with pytest.raises(ValueError, match="must hold 3 blocks, got 2"):
        tiled.unpermute(tiled.permute(weights)[:2])


@pytest.mark.parametrize("name", ["apply", "permute"])
def test_apply_and_permute_refuse_other_shapes(name):
    weights = weights_of((10, 16))
    with pytest.raises(ValueError, match=r"shape \(10, 16\), got \(16, 10\)"):
        getattr(solve(weights, **FEW), name)(weights.T)
    with pytest.raises(ValueError, match="must hold 2 arrays, got 1"):
        getattr(solve([weights, weights], **FEW), name)([weights])


def test_a_view_puts_back_what_it_took():
    shapes = [(4, 6, 3, 2), (5, 6), (2, 6, 7)]
    arrays = [weights_of(shape, i) for i, shape in enumerate(shapes)]
    view = WeightView.of(shapes, Pattern.nm(), listed=True)
    matrix = view.matrix(arrays)
    assert matrix.shape == (4 * 6 + 5 + 2 * 7, 6)
    for array, again in zip(arrays, view.split(matrix), strict=True):
        assert np.array_equal(array, again)
