"""Activations between token-major and feature-major, against NumPy."""

import numpy as np
import pytest

from emulated import EmulationError, run
from gyroperm.gpu.transpose import to_features, to_tokens

POISON = 0x7E57
SIZES = [
    (1, 1),
    (1, 200),
    (7, 8),
    (8, 7),
    (9, 63),
    (17, 65),
    (63, 64),
    (64, 64),
    (65, 130),
    (200, 72),
]


def random_bits(rng, *shape):
    return rng.integers(0, POISON, shape, dtype=np.uint16)


def laid_out(shape, stride, offset):
    """A poisoned matrix, rows `stride` elements apart, `offset` of them beyond 16 bytes."""
    flat = np.full(shape[0] * stride + 16, POISON, np.uint16)
    start = (-flat.ctypes.data % 16) // 2 + offset
    rows = np.lib.stride_tricks.as_strided(flat[start:], shape, (stride * 2, 2))
    assert rows.ctypes.data % 16 == offset * 2
    return rows


def up(size, multiple=8):
    return -(-size // multiple) * multiple


@pytest.mark.parametrize("features_stride", ["aligned", "tight", "wide, off"])
@pytest.mark.parametrize("tokens_stride", ["aligned", "tight", "wide, off"])
@pytest.mark.parametrize("table", [None, np.uint16, np.int32])
def test_both_ways_at_any_size_and_alignment(table, tokens_stride, features_stride):
    rng = np.random.default_rng(1)
    layouts = {
        "aligned": lambda n: (up(n), 0),
        "tight": lambda n: (n, 0),
        "wide, off": lambda n: (n + 3, 5),
    }
    for seed, (count, channels) in enumerate(SIZES):
        tokens = laid_out((count, channels), *layouts[tokens_stride](channels))
        rows = channels + 5 * (table is not None)
        features = laid_out((rows, count), *layouts[features_stride](count))
        positions = np.arange(channels)
        if table is not None:
            positions = rng.permutation(rows)[:channels].astype(table)
        tokens[...] = random_bits(rng, count, channels)
        expected = np.full((rows, count), POISON, np.uint16)
        expected[positions] = tokens.T
        given = None if table is None else positions
        run(to_features(tokens, features, given), seed=seed, once=("out",))
        np.testing.assert_array_equal(features, expected)

        back = laid_out((count, channels), *layouts[tokens_stride](channels))
        run(to_tokens(features, back, given), seed=seed, once=("out",))
        np.testing.assert_array_equal(back, tokens)


def test_padding_columns_of_features_are_neither_read_nor_written():
    rng = np.random.default_rng(2)
    tokens = random_bits(rng, 70, 40)
    features = np.full((40, 80), POISON, np.uint16)
    run(to_features(tokens, features), once=("out",))
    np.testing.assert_array_equal(features[:, :70], tokens.T)
    assert (features[:, 70:] == POISON).all()
    back = np.zeros_like(tokens)
    run(to_tokens(features, back), once=("out",))
    np.testing.assert_array_equal(back, tokens)


def test_float16_is_moved_as_it_is():
    tokens = np.random.default_rng(3).standard_normal((33, 24)).astype(np.float16)
    tokens[0, :4] = [np.nan, np.inf, -0.0, 6e-8]
    features = np.zeros((24, 33), np.float16)
    run(to_features(tokens, features))
    np.testing.assert_array_equal(features.view(np.uint16), tokens.T.view(np.uint16))


@pytest.mark.parametrize(("tokens_extra", "features_extra"), [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("way", ["to_features", "to_tokens"])
def test_no_bank_conflicts_and_every_byte_once(way, tokens_extra, features_extra):
    rng = np.random.default_rng(4)
    tokens = laid_out((192, 128), 128 + tokens_extra, 0)
    features = laid_out((128, 192), 192 + features_extra, 0)
    tokens[...] = random_bits(rng, 192, 128)
    features[...] = random_bits(rng, 128, 192)
    launch = to_features(tokens, features) if way == "to_features" else to_tokens(features, tokens)
    counts = run(launch, once=("out",))
    assert counts.matrix_loads > 0
    assert counts.matrix_conflicts == counts.copy_conflicts == counts.access_conflicts == 0
    assert counts.bytes_loaded + counts.bytes_copied == counts.bytes_stored == 2 * 192 * 128


def test_a_table_is_read_once_for_a_row_of_a_tile():
    rng = np.random.default_rng(5)
    tokens, features = random_bits(rng, 128, 128), np.zeros((128, 128), np.uint16)
    counts = run(to_features(tokens, features, rng.permutation(128).astype(np.uint16)))
    # By the four lanes that share a row of the output, in each of two tiles.
    assert counts.bytes_loaded == 128 * 2 * 4 * 2


def mutations():
    def changing(old, new):
        return lambda source: source.replace(old, new)

    return {
        "no wait": changing("copy_wait<0>();", ""),
        "no barrier": changing("    barrier();\n\n    // A warp has", "\n    // A warp has"),
        "swapped neighbours": changing("matrix * 2 + i % 2", "matrix * 2 + 1 - i % 2"),
        "no swizzle": changing("int turn = (row & 1) | (row >> 2 & 6);", "int turn = 0;"),
    }


@pytest.mark.parametrize("mutation", mutations())
def test_what_the_checks_catch(mutation):
    rng = np.random.default_rng(6)
    tokens, features = random_bits(rng, 64, 64), np.zeros((64, 64), np.uint16)
    try:
        counts = run(to_features(tokens, features), edit=mutations()[mutation])
    except EmulationError:
        return
    assert counts.matrix_conflicts > 0 or not np.array_equal(features, tokens.T)


ENDS = {
    # By chunks: what is changed, for rows that begin on 16 bytes.
    "rows beyond the last are read": ("row < rows ? most(", "true ? most(", "aligned"),
    "whole chunks are read": ("most(0, least(chunk_elements, columns - column))", "8", "aligned"),
    "rows beyond the last are written": ("if (column >= columns) return;", "", "aligned"),
    "whole chunks are written": ("rows - row, true", "chunk_elements, true", "aligned"),
    # By single elements.
    "columns beyond the last are read": ("row < rows && column < columns", "row < rows", "tight"),
    "columns beyond the last are written": ("|| row >= rows) continue;", ") continue;", "tight"),
    "read elements are overwritten": ("can take.\n    barrier();", "can take.\n", "tight"),
    "elements are read early": ("chunks[half]);\n    barrier();", "chunks[half]);", "tight"),
}


@pytest.mark.parametrize("name", ENDS)
def test_what_the_checks_catch_of_parts_of_a_tile(name):
    old, new, kind = ENDS[name]
    rng = np.random.default_rng(7)
    count, channels = 50, 59
    strides = (up(channels), up(count)) if kind == "aligned" else (channels, count + 1)
    tokens = laid_out((count, channels), strides[0], 0)
    features = laid_out((channels, count), strides[1], 0)
    tokens[...] = random_bits(rng, count, channels)
    with pytest.raises((EmulationError, AssertionError)):
        run(
            to_features(tokens, features),
            once=("out",),
            edit=lambda source: source.replace(old, new),
        )
        np.testing.assert_array_equal(features, tokens.T)


@pytest.mark.parametrize(
    ("tokens", "features", "positions", "error", "message"),
    [
        (
            np.zeros((4, 8), np.float32),
            np.zeros((8, 4), np.uint16),
            None,
            TypeError,
            "tokens.*float32",
        ),
        (
            np.zeros((4, 8), np.uint16),
            np.zeros((8, 4), np.uint8),
            None,
            TypeError,
            "features.*uint8",
        ),
        (np.zeros(8, np.uint16), np.zeros((8, 4), np.uint16), None, ValueError, r"tokens.*\(8,\)"),
        (np.zeros((0, 8), np.uint16), np.zeros((8, 4), np.uint16), None, ValueError, "not empty"),
        (
            np.zeros((8, 4), np.uint16).T,
            np.zeros((8, 4), np.uint16),
            None,
            ValueError,
            "side by side",
        ),
        (np.zeros((4, 8), np.uint16), np.zeros((8, 3), np.uint16), None, ValueError, "4 columns"),
        (np.zeros((4, 8), np.uint16), np.zeros((7, 4), np.uint16), None, ValueError, "8 rows"),
        (
            np.zeros((4, 8), np.uint16),
            np.zeros((8, 4), np.uint16),
            np.arange(8),
            TypeError,
            "positions.*int64",
        ),
        (
            np.zeros((4, 8), np.uint16),
            np.zeros((8, 4), np.uint16),
            np.arange(7, dtype=np.int32),
            ValueError,
            "each of 8 channels, got 7",
        ),
        (
            np.zeros((4, 8), np.uint16),
            np.zeros((8, 4), np.uint16),
            np.arange(16, dtype=np.int32)[::2],
            ValueError,
            "positions must be contiguous",
        ),
        (
            np.zeros((4, 8), np.uint16),
            np.broadcast_to(np.zeros(4, np.uint16), (8, 4)),
            None,
            ValueError,
            "features must have rows that do not overlap",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tokens, features, positions, error, message):
    with pytest.raises(error, match=message):
        to_features(tokens, features, positions)
    with pytest.raises(error, match=message):
        to_tokens(features, tokens, positions)
