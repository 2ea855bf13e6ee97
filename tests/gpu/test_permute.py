"""Gathered channels and normalisations, against NumPy."""

import numpy as np
import pytest

from emulated import EmulationError, run
from gpu_cases import WIDTHS
from gyroperm.gpu.permute import (
    MOST_CHANNELS,
    permute,
    rms_norm,
    rms_norm_to_features,
    variants,
)

POISON = 0x7E57
DTYPES = ("float16", "bfloat16")


def from_bits(bits, dtype):
    if dtype == "float16":
        return bits.view(np.float16).astype(np.float64)
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def to_bits(values, dtype):
    values = np.asarray(values, np.float32)
    if dtype == "float16":
        return values.astype(np.float16).view(np.uint16)
    words = values.view(np.uint32)
    return ((words + 0x7FFF + (words >> 16 & 1)) >> 16).astype(np.uint16)


def laid_out(shape, stride, offset):
    """A poisoned matrix, rows `stride` elements apart, `offset` of them beyond 16 bytes."""
    flat = np.full(shape[0] * stride + 16, POISON, np.uint16)
    start = (-flat.ctypes.data % 16) // 2 + offset
    return np.lib.stride_tricks.as_strided(flat[start:], shape, (stride * 2, 2))


def layout(shape, kind):
    width = shape[1]
    return laid_out(
        shape,
        *{"aligned": (-(-width // 8) * 8, 0), "tight": (width, 0), "off": (width + 3, 5)}[kind],
    )


def table(order, dtype, *, aligned=True):
    flat = np.zeros(len(order) + 16, dtype)
    start = (-flat.ctypes.data % 16) // flat.itemsize + (not aligned)
    flat[start : start + len(order)] = order
    return flat[start : start + len(order)]


def normalised(tokens, weight, epsilon, dtype):
    """As LlamaRMSNorm, but for the last bit of the first rounding: both of its neighbours."""
    x, w = from_bits(tokens, dtype), from_bits(weight, dtype)
    exact = x / np.sqrt((x**2).mean(1, keepdims=True) + epsilon)
    # float32 arithmetic before the first rounding: some units in its last place.
    ends = [to_bits(exact * (1 + side * 2.0**-21), dtype) for side in (-1, 1)]
    return [to_bits(from_bits(end, dtype) * w, dtype) for end in ends]


def assert_normalised(result, tokens, weight, epsilon, dtype, order):
    ends = [end[:, order] for end in normalised(tokens, weight, epsilon, dtype)]
    either = (result == ends[0]) | (result == ends[1])
    assert either.all(), np.argwhere(~either)[:4]
    # Where no rounding is a close call there is one answer, and that is nearly everywhere.
    assert (ends[0] == ends[1]).mean() > 0.98


def activations(rng, count, channels, dtype, kind="aligned"):
    tokens = layout((count, channels), kind)
    tokens[...] = to_bits(rng.standard_normal((count, channels)), dtype)
    weight = table(to_bits(1 + 0.2 * rng.standard_normal(channels), dtype), np.uint16)
    return tokens, weight


@pytest.mark.parametrize("out_kind", ["aligned", "tight", "off"])
@pytest.mark.parametrize("kind", ["aligned", "tight", "off"])
@pytest.mark.parametrize("index", [np.uint16, np.int32])
def test_channels_in_any_order_at_any_size_and_alignment(index, kind, out_kind):
    rng = np.random.default_rng(1)
    for seed, (count, channels) in enumerate(
        [(1, 1), (3, 7), (1, 8), (9, 63), (2, 64), (5, 200), (2, 1031), (1, 2048)]
    ):
        tokens, out = layout((count, channels), kind), layout((count, channels), out_kind)
        tokens[...] = rng.integers(0, POISON, tokens.shape, dtype=np.uint16)
        order = rng.permutation(channels)
        given = table(order, index, aligned=seed % 3 != 2)
        run(permute(tokens, given, out), seed=seed, once=("out",))
        np.testing.assert_array_equal(out, tokens[:, order])


def test_several_tokens_of_a_block_share_the_order():
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, POISON, (2049, 16), dtype=np.uint16)
    order = rng.permutation(16).astype(np.uint16)
    out = np.full_like(tokens, POISON)
    launch = permute(tokens, order, out)
    assert launch.arguments["tokens_each"] == 2
    assert launch.grid == (1025, 1, 1)
    run(launch, once=("out",))
    np.testing.assert_array_equal(out, tokens[:, order])


def test_the_largest_row():
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, POISON, (2, MOST_CHANNELS), dtype=np.uint16)
    order = rng.permutation(MOST_CHANNELS).astype(np.uint16)
    out = np.full_like(tokens, POISON)
    counts = run(permute(tokens, order, out), once=("out",))
    np.testing.assert_array_equal(out, tokens[:, order])
    # Every token once, and the order once for each block.
    assert counts.bytes_copied == counts.bytes_stored == counts.bytes_loaded == tokens.nbytes


def test_an_order_may_repeat_and_leave_out_channels():
    rng = np.random.default_rng(4)
    tokens = rng.integers(0, POISON, (4, 40), dtype=np.uint16)
    order = rng.integers(0, 40, 77, dtype=np.int32)
    out = np.full((4, 77), POISON, np.uint16)
    run(permute(tokens, order, out), once=("out",))
    np.testing.assert_array_equal(out, tokens[:, order])


@pytest.mark.parametrize(("kind", "out_kind"), [("aligned", "aligned"), ("tight", "off")])
@pytest.mark.parametrize("index", [None, np.uint16, np.int32])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norm(dtype, index, kind, out_kind):
    rng = np.random.default_rng(5)
    for seed, (count, channels) in enumerate([(1, 1), (3, 7), (9, 63), (2, 384), (3, 2047)]):
        tokens, weight = activations(rng, count, channels, dtype, kind)
        out = layout((count, channels), out_kind)
        order = np.arange(channels) if index is None else rng.permutation(channels)
        given = None if index is None else table(order, index)
        launch = rms_norm(tokens, weight, out, epsilon=1e-5, dtype=dtype, order=given)
        run(launch, seed=seed, once=("out",))
        assert_normalised(out, tokens, weight, 1e-5, dtype, order)


@pytest.mark.parametrize("kind", ["aligned", "tight"])
@pytest.mark.parametrize("index", [None, np.uint16, np.int32])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_to_features(dtype, index, kind):
    rng = np.random.default_rng(6)
    for seed, (count, channels) in enumerate([(1, 1), (7, 63), (8, 384), (17, 100), (65, 40)]):
        tokens, weight = activations(rng, count, channels, dtype, kind)
        features = layout((channels, count), kind)
        order = np.arange(channels) if index is None else rng.permutation(channels)
        given = None if index is None else table(order, index)
        launch = rms_norm_to_features(
            tokens, weight, features, epsilon=1e-6, dtype=dtype, order=given
        )
        assert launch.arguments["tokens_each"] == 8
        run(launch, seed=seed, once=("out",))
        assert_normalised(features.T, tokens, weight, 1e-6, dtype, order)


# A row of so many channels, with a tail, takes blocks of so many threads.
CHANNELS = {128: 203, 256: 2055, 512: 8197}


@pytest.mark.emulated
@pytest.mark.parametrize("variant", variants(), ids=str)
def test_every_variant_at_any_number_of_tokens(variant):
    rng = np.random.default_rng(10)
    constants = dict(variant.constants)
    channels, dtype = CHANNELS[constants["THREADS"]], DTYPES[constants["GYROPERM_BF16"]]
    for seed, count in enumerate(WIDTHS):
        kind = ("aligned", "tight", "off")[seed % 3]
        tokens, weight = activations(rng, count, channels, dtype, kind)
        order = rng.permutation(channels)
        given = table(order, np.uint16)
        if not constants["NORM"]:
            out = layout((count, channels), kind)
            launch = permute(tokens, given, out)
        else:
            features = constants["FEATURE_MAJOR"]
            out = layout((channels, count) if features else (count, channels), kind)
            norm = rms_norm_to_features if features else rms_norm
            launch = norm(tokens, weight, out, epsilon=1e-5, dtype=dtype, order=given)
        assert launch.variant == variant
        run(launch, seed=seed, once=("out",))
        if not constants["NORM"]:
            np.testing.assert_array_equal(out, tokens[:, order])
        else:
            moved = out.T if constants["FEATURE_MAJOR"] else out
            assert_normalised(moved, tokens, weight, 1e-5, dtype, order)


@pytest.mark.parametrize("each", [1, 2, 4])
def test_norm_to_features_takes_as_many_tokens_as_fit(each):
    rng = np.random.default_rng(7)
    channels = 72
    order = rng.permutation(channels).astype(np.uint16)
    tokens, weight = activations(rng, 11, channels, "float16")
    features = np.full((channels, 16), POISON, np.uint16)
    limit = each * (channels * 2 + 16)
    launch = rms_norm_to_features(
        tokens, weight, features, epsilon=1e-5, dtype="float16", order=order, shared_bytes=limit
    )
    assert launch.arguments["tokens_each"] == each
    assert launch.shared_bytes == limit
    run(launch, once=("out",))
    assert_normalised(features[:, :11].T, tokens, weight, 1e-5, "float16", order)
    assert (features[:, 11:] == POISON).all()
    with pytest.raises(ValueError, match="shared_bytes must hold a token of 72 channels"):
        rms_norm_to_features(
            tokens, weight, features, epsilon=1e-5, dtype="float16", shared_bytes=100
        )


def test_a_norm_whose_weight_is_off_16_bytes():
    rng = np.random.default_rng(8)
    tokens, weight = activations(rng, 3, 64, "float16")
    off = table(weight, np.uint16, aligned=False)
    out = np.zeros((3, 64), np.uint16)
    run(rms_norm(tokens, off, out, epsilon=1e-5, dtype="float16"), once=("out",))
    assert_normalised(out, tokens, weight, 1e-5, "float16", np.arange(64))


def test_the_rounding_is_that_of_llama():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(9)
    for dtype, kind in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        tokens, weight = activations(rng, 5, 384, dtype)
        x, w = (torch.from_numpy(a.copy().view(np.int16)).view(kind) for a in (tokens, weight))
        mean = x.float().pow(2).mean(-1, keepdim=True)
        expected = (w * (x.float() * torch.rsqrt(mean + 1e-6)).to(kind)).view(torch.int16)
        out = np.zeros((5, 384), np.uint16)
        run(rms_norm(tokens, weight, out, epsilon=1e-6, dtype=dtype), once=("out",))
        # The order of the sum of squares may move a rounding now and then.
        assert (out == expected.numpy().view(np.uint16)).mean() > 0.995


def test_a_token_of_zeros_stays_zero():
    tokens, weight = np.zeros((2, 16), np.uint16), np.full(16, 0x3C00, np.uint16)
    out = np.full((2, 16), POISON, np.uint16)
    run(rms_norm(tokens, weight, out, epsilon=1e-6, dtype="float16"))
    assert (out == 0).all()


def test_the_same_bits_in_any_order_of_threads():
    rng = np.random.default_rng(10)
    tokens, weight = activations(rng, 4, 384, "bfloat16")
    results = []
    for seed in (0, 1, 2):
        out = np.zeros((4, 384), np.uint16)
        run(rms_norm(tokens, weight, out, epsilon=1e-6, dtype="bfloat16"), seed=seed)
        results.append(out)
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])


def test_conflicts_are_those_of_the_order_alone():
    rng = np.random.default_rng(11)
    count, channels = 2, 2048
    tokens, weight = activations(rng, count, channels, "float16")
    warps_of_elements = count * channels // 32
    out, features = np.zeros_like(tokens), np.zeros((channels, 8), np.uint16)

    order = rng.permutation(channels).astype(np.uint16)
    counts = run(permute(tokens, order, out), once=("out",))
    assert counts.copy_conflicts == 0
    # Of 32 random elements the fullest bank has 3.5 on average.
    assert 2 * warps_of_elements < counts.access_conflicts < 3 * warps_of_elements

    # A lane stores 8 neighbours: four lanes meet in a bank where order keeps neighbours together.
    counts = run(permute(tokens, np.arange(channels, dtype=np.uint16), out), once=("out",))
    assert counts.access_conflicts == 3 * warps_of_elements

    # Reading, normalising and writing by features in the original order have none.
    counts = run(rms_norm_to_features(tokens, weight, features, epsilon=1e-5, dtype="float16"))
    assert counts.access_conflicts == counts.copy_conflicts == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("copy_wait<0>();", ""),
        (
            "            shared_store(at, chunk_of(results));\n        }\n    }\n    barrier();",
            "}}",
        ),
        (
            "thread_index() / 32) * 4, sum);\n    }\n    barrier();",
            "thread_index() / 32) * 4, sum);\n    }",
        ),
        ("for (int mask = 16; mask; mask /= 2)", "for (int mask = 8; mask; mask /= 2)"),
        ("from_float(to_float(from_float(", "from_float((("),
    ],
)
def test_what_the_checks_catch(old, new):
    rng = np.random.default_rng(12)
    tokens, weight = activations(rng, 2, 1024, "float16")
    out = np.zeros_like(tokens)
    order = rng.permutation(1024)
    launch = rms_norm(
        tokens, weight, out, epsilon=1e-5, dtype="float16", order=order.astype(np.uint16)
    )
    new = new.replace("}}", "            shared_store(at, chunk_of(results));\n        }\n    }")
    with pytest.raises((EmulationError, AssertionError)):
        run(launch, edit=lambda source: source.replace(old, new))
        assert_normalised(out, tokens, weight, 1e-5, "float16", order)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("copy_wait<0>();\n    barrier();", "copy_wait<0>();"),
        ("least(chunk_elements, channels - c * chunk_elements)", "chunk_elements"),
        ("e < there ? entry(order, wide, first + e) * 2 : 0", "entry(order, wide, first + e) * 2"),
        ("least(tokens_each, static_cast<int>(all_tokens - first))", "tokens_each"),
    ],
)
def test_what_the_checks_catch_of_a_gather(old, new):
    rng = np.random.default_rng(13)
    # Two tokens a block, of which the last has one; and channels that end within a chunk.
    tokens, out = layout((2049, 30), "aligned"), layout((2049, 30), "aligned")
    tokens[...] = rng.integers(0, POISON, tokens.shape, dtype=np.uint16)
    order = rng.permutation(30)
    launch = permute(tokens, order.astype(np.uint16), out)
    with pytest.raises((EmulationError, AssertionError)):
        run(launch, once=("out",), edit=lambda source: source.replace(old, new))
        np.testing.assert_array_equal(out, tokens[:, order])


GOOD = {
    "tokens": np.zeros((3, 16), np.uint16),
    "weight": np.zeros(16, np.uint16),
    "out": np.zeros((3, 16), np.uint16),
    "order": np.arange(16, dtype=np.uint16),
    "epsilon": 1e-5,
    "dtype": "float16",
}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokens": np.zeros((3, 16), np.float32)}, TypeError, "tokens must .* 16 bits.*float32"),
        ({"tokens": np.zeros((3, 32769), np.uint16)}, ValueError, "at most 32768 channels"),
        ({"out": np.zeros((3, 15), np.uint16)}, ValueError, r"out must have shape \(3, 16\)"),
        ({"out": np.zeros((3, 16), np.uint8)}, TypeError, "out must .* 16 bits.*uint8"),
        ({"order": np.arange(16)}, TypeError, "order must hold uint16 or int32, got dtype int64"),
        ({"order": np.arange(15, dtype=np.uint16)}, ValueError, r"out must have shape \(3, 15\)"),
        ({"order": np.zeros((4, 4), np.uint16)}, ValueError, "order must be one-dimensional"),
        ({"weight": np.zeros(15, np.uint16)}, ValueError, r"weight must have shape \(16,\)"),
        ({"weight": np.zeros(16)}, TypeError, "weight must .* 16 bits.*float64"),
        ({"weight": np.zeros(32, np.uint16)[::2]}, ValueError, "weight must be contiguous"),
        ({"epsilon": -1.0}, ValueError, "epsilon must be at least 0, got -1.0"),
        ({"epsilon": float("nan")}, ValueError, "epsilon must be at least 0, got nan"),
        ({"dtype": "float32"}, ValueError, "dtype must be one of float16, bfloat16"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, message):
    rms_norm(**GOOD)
    with pytest.raises(error, match=message):
        rms_norm(**{**GOOD, **change})
    if not {"weight", "epsilon", "dtype"} & set(change):
        given = {**GOOD, **change}
        with pytest.raises(error, match=message):
            permute(given["tokens"], given["order"], given["out"])


def test_features_of_another_shape_are_refused():
    given = {name: value for name, value in GOOD.items() if name != "out"}
    for shape in ((15, 3), (17, 3), (16, 2)):
        with pytest.raises(ValueError, match=r"features must have shape \(16, at least 3\)"):
            rms_norm_to_features(features=np.zeros(shape, np.uint16), **given)


def test_tensors_of_torch_make_the_same_launch():
    torch = pytest.importorskip("torch")
    tokens = np.zeros((3, 40), np.int16)[:, :16]
    arrays = {**GOOD, "tokens": tokens}
    launch = rms_norm(**arrays)
    tensors = {
        name: torch.from_numpy(value) if name == "order" else value
        for name, value in {**arrays, "order": np.arange(16, dtype=np.int32)}.items()
    }
    tensors["tokens"] = torch.zeros(3, 40, dtype=torch.bfloat16)[:, :16]
    other = rms_norm(**tensors)
    assert other.grid == launch.grid
    assert other.arguments["in_stride"] == launch.arguments["in_stride"] == 40
    assert (launch.arguments["wide_order"], other.arguments["wide_order"]) == (0, 1)
    with pytest.raises(ValueError, match="tokens must have the elements of a row side by side"):
        rms_norm(**{**tensors, "tokens": tensors["tokens"].T})
