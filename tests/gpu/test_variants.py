"""The list of kernels that are compiled beforehand holds every one that is chosen."""

import numpy as np
import pytest

from gyroperm.gpu import Card, HinmMatrix, IndexTables
from gyroperm.gpu.candidates import DENSE, candidates
from gyroperm.gpu.fusion import fuse_columns, invert
from gyroperm.gpu.matrix import DeviceMatrix
from gyroperm.gpu.permute import MOST_CHANNELS, permute, rms_norm, rms_norm_to_features
from gyroperm.gpu.plans import Target, make_plan, planned_columns
from gyroperm.gpu.tiling import TILE_SIZES
from gyroperm.gpu.variants import ARCHITECTURES, shipped
from gyroperm.gpu.window import window_blocking

COLUMNS = (1, 5, 8, 16, 17, 33, 65, 200)
every_architecture = pytest.mark.parametrize(
    "architecture", ARCHITECTURES.values(), ids=ARCHITECTURES
)


def matrix_of(tile_size, tile_steps, *, sparse, dtype, inputs=64):
    steps, blocks, rows = sum(tile_steps), tile_size // 16, tile_size * len(tile_steps)
    index = IndexTables(
        np.zeros(steps * 64, int),
        np.cumsum([0, *tile_steps]) * 64,
        np.arange(rows),
        inputs,
        rows,
    )
    values = np.zeros((steps, 2 if sparse else 4, blocks, 32, 8), np.uint16)
    metadata = np.full((steps * sparse, blocks, 32), 0xEEEEEEEE, np.uint32)
    packed = HinmMatrix(values, metadata, index, dtype)
    return DeviceMatrix(values, packed.metadata, index.columns, index.row_map, index, dtype)


def asked_for(matrix, n, architecture):
    """The launches of products with n columns by each way, aligned or not, in both layouts."""
    limits = architecture.block_shared_bytes, architecture.shared_bytes
    card = Card("a card", architecture.name, 132, 1.7e9, 3e12, 50 << 20, *limits)
    target = Target(132, limits[0], lambda variant, threads, shared_bytes: 132, np.copy)
    outputs, inputs = matrix.shape

    def scratch(name, shape, dtype):
        return np.empty(shape, dtype)

    for layout in ("features", "tokens"):
        operands = [
            [np.zeros((rows, width), np.uint16)[:, :n] for rows in (inputs, outputs)]
            for width in (n, n + -n % 8)
        ]
        if layout == "tokens":
            operands = [[np.zeros((n, columns), np.uint16) for columns in (inputs, outputs)]]
        for one in candidates(matrix, n, layout, card):
            if one.way != DENSE:
                plan = make_plan(one.way, planned_columns(n), matrix, target)
                for x, y in operands:
                    yield from plan.launches(matrix, x, y, scratch, layout=layout)


def check_listed(launch, listed):
    assert launch.variant in listed
    one = listed[launch.variant]
    assert launch.threads == one.threads
    assert launch.shared_bytes <= one.shared_bytes


@every_architecture
@pytest.mark.parametrize("tile_size", TILE_SIZES)
def test_what_is_chosen_of_products_is_listed(tile_size, architecture):
    listed = {one.variant: one for one in shipped(architecture)}
    for sparse, dtype, inputs in ((True, "float16", 64), (False, "bfloat16", 70_000)):
        # Few long tiles are split by rows and by steps, many short ones are not.
        for tile_steps in ([40], [3] * 20, [1, 0]):
            matrix = matrix_of(tile_size, tile_steps, sparse=sparse, dtype=dtype, inputs=inputs)
            for n in COLUMNS:
                for launch in asked_for(matrix, n, architecture):
                    check_listed(launch, listed)


@every_architecture
def test_shared_windows_are_listed(architecture):
    listed = {one.variant: one for one in shipped(architecture)}
    for tile_size in TILE_SIZES:
        for sparse in (False, True):
            chosen = window_blocking(
                tile_size, 4096, sparse=sparse, shared_limit=architecture.block_shared_bytes
            )
            one = listed[chosen.variant(bfloat16=sparse, aligned=not sparse)]
            assert chosen.threads == one.threads
            assert chosen.shared_bytes <= one.shared_bytes
            assert chosen.blocks == one.resident


@every_architecture
def test_what_moves_activations_is_listed(architecture):
    listed = {one.variant: one for one in shipped(architecture)}
    launches = [
        invert(np.arange(8, dtype=np.int32), np.zeros(8, np.int32)),
        fuse_columns(*(np.zeros(8, np.int32) for _ in range(3)), inputs=8),
    ]
    for channels in (8, 4096, MOST_CHANNELS):
        tokens, weight = np.zeros((3, channels), np.uint16), np.zeros(channels, np.uint16)
        launches.append(permute(tokens, np.zeros(channels, np.int32), np.empty_like(tokens)))
        for dtype in ("float16", "bfloat16"):
            options = {"epsilon": 1e-5, "dtype": dtype}
            launches.append(rms_norm(tokens, weight, np.empty_like(tokens), **options))
            features = np.empty((channels, 3), np.uint16)
            launches.append(rms_norm_to_features(tokens, weight, features, **options))
    for launch in launches:
        check_listed(launch, listed)


@every_architecture
def test_blocks_fit_into_a_multiprocessor(architecture):
    for one in shipped(architecture):
        assert one.shared_bytes <= architecture.block_shared_bytes
        assert one.threads * one.resident <= architecture.threads
        assert one.most_registers * one.threads * one.resident <= 65536


def test_a_cap_of_registers_is_what_leaves_room_for_the_blocks():
    listed = {
        (one.threads, one.resident): one.most_registers for one in shipped(ARCHITECTURES["90"])
    }
    # In eights: 65536 registers for 256 threads, and for five times as many.
    assert listed[256, 1] == 255
    assert listed[256, 5] == 48
