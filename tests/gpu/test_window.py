"""Products by a shared window, emulated, against float64; and what their plans promise."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulated import EmulationError, run
from gpu_cases import WIDTHS, pack, random_tiles
from gyroperm import Pattern, solve
from gyroperm.gpu.format import HinmMatrix
from gyroperm.gpu.numbers import to_bits
from gyroperm.gpu.reorder import empty_slots, group_width, reordered
from gyroperm.gpu.window import (
    WindowBlocking,
    window_blocking,
    window_launch,
    window_plan,
)
from window_cases import multiply, to_dense

SPARSE = WindowBlocking(16, 2, 1, 64, 128, 32, 1, 1, True)
SPARSE_SPLIT = WindowBlocking(32, 4, 2, 32, 192, 64, 2, 1, True)
DENSE = WindowBlocking(32, 2, 1, 64, 160, 64, 1, 1, False)
DENSE_SPLIT = WindowBlocking(64, 2, 2, 32, 256, 48, 2, 1, False)


@pytest.mark.parametrize(
    ("blocking", "aligned"),
    [
        (SPARSE, True),
        (SPARSE_SPLIT, True),
        (SPARSE_SPLIT, False),
        (DENSE, True),
        (DENSE, False),
        (DENSE_SPLIT, True),
    ],
    ids=["sparse", "sparse split", "sparse odd", "dense", "dense odd", "dense split"],
)
def test_products_of_any_width(blocking, aligned):
    rng = np.random.default_rng(0)
    dtype = "bfloat16" if blocking in (SPARSE_SPLIT, DENSE) else "float16"
    # More tiles than whole groups, one of them empty, one ragged inside a step.
    lengths = [128, 0, 61, 192, 130][: 3 if blocking.tile_size == 64 else 5]
    tiles = random_tiles(rng, lengths, 240)
    matrix = pack(
        rng, tiles, blocking.tile_size, 240, sparse=blocking.sparse, dtype=dtype,
        outputs=len(lengths) * blocking.tile_size - 5,
    )  # fmt: skip
    plan = window_plan(matrix, blocking)
    for i, n in enumerate(WIDTHS):
        stride = None if aligned else n + n % 2 + 1
        multiply(
            matrix,
            plan,
            n,
            rng,
            seed=i,
            stride=stride,
            full=i % 2 == 1,
            keep_order=i % 3 == 2,
            activation=(None, "relu", "gelu", "silu")[i % 4],
        )


def test_each_row_is_copied_once_where_the_window_holds_all_and_conflicts_are_as_planned():
    rng = np.random.default_rng(1)
    blocking = window_blocking(32, 384, sparse=True, shared_limit=232448)
    assert (blocking.group, blocking.slots, blocking.threads) == (8, 384, 256)
    matrix = pack(rng, random_tiles(rng, [192] * 8, 384), 32, 384, sparse=True)
    plan = window_plan(matrix, blocking)
    union = len(np.unique(matrix.index.columns))
    assert (plan.loaded, plan.gathered) == (union, 8 * 192)
    counts = multiply(matrix, plan, 128, rng)
    assert counts.copies == 2 * union * 8
    assert counts.matrix_conflicts / counts.matrix_loads == pytest.approx(plan.conflicts)
    # Slots at random have conflicts of 1.6 in each read of eight rows.
    assert plan.conflicts < 0.85


def layered(rng, inputs, n, m, tiles):
    """n columns of each m of an order that all tiles share, for each tile."""
    windows = rng.permutation(inputs).reshape(-1, m)
    return [np.concatenate([rng.permutation(w)[:n] for w in windows]) for _ in range(tiles)]


@pytest.mark.parametrize("m", [8, 16])
def test_vnm_brings_each_column_in_once(m):
    rng = np.random.default_rng(2)
    blocking = window_blocking(32, 2048, sparse=True, shared_limit=101376)
    assert blocking.slots < 2048 / 4
    matrix = pack(rng, layered(rng, 2048, 4, m, 8), 32, 2048, sparse=True)
    plan = window_plan(matrix, blocking)
    assert plan.loaded == len(np.unique(matrix.index.columns))


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (4, 16)])
def test_vector_nm_brings_each_column_in_once(n, m):
    rng = np.random.default_rng(3)
    blocking = window_blocking(32, 2048, sparse=False, shared_limit=101376)
    matrix = pack(rng, layered(rng, 2048, n, m, 8), 32, 2048, sparse=False)
    plan = window_plan(matrix, blocking)
    assert plan.loaded == len(np.unique(matrix.index.columns))
    assert plan.conflicts < 0.6


def test_random_groups_are_brought_in_far_less_than_once_a_tile():
    rng = np.random.default_rng(4)
    matrix = pack(rng, random_tiles(rng, [1024] * 8, 2048), 32, 2048, sparse=True)
    share = {}
    for slots in (512, 896):
        blocking = replace(window_blocking(32, 2048, sparse=True, shared_limit=232448), slots=slots)
        plan = window_plan(matrix, blocking)
        share[slots] = plan.loaded / plan.gathered
    assert share[896] < 0.3 and share[896] < share[512] < 0.45


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    lengths=st.lists(st.integers(0, 200), min_size=1, max_size=5),
    inputs=st.sampled_from([200, 320, 1500]),
    sparse=st.booleans(),
    slots=st.sampled_from([128, 136, 200, 400]),
    ahead=st.integers(1, 3),
    phase_loads=st.sampled_from([4, 40, 128]),
)
def test_plans_hold_what_they_promise(seed, lengths, inputs, sparse, slots, ahead, phase_loads):
    rng = np.random.default_rng(seed)
    tiles = [
        np.where(rng.random(length) < 0.05, -1, rng.permutation(inputs)[:length])
        for length in lengths
    ]
    matrix = pack(rng, tiles, 16, inputs, sparse=sparse)
    blocking = WindowBlocking(16, 2, 1, 64, slots, phase_loads, ahead, 1, sparse)
    plan = window_plan(matrix, blocking)
    assert plan.loaded == replay(reordered(matrix, plan.order), plan)
    assert (to_dense(reordered(matrix, plan.order)) == to_dense(matrix)).all()


def replay(matrix, plan):
    """Follow the tables as the kernel does; returns the rows that were brought in."""
    tables, blocking, index = plan.tables, plan.blocking, matrix.index
    empty, loaded = empty_slots(matrix), 0
    seen = []
    for g, tiles in enumerate(tables.tiles):
        held = np.full(blocking.slots, -1)
        read_in = np.full(blocking.slots, -blocking.ahead - 1)
        at = np.zeros(blocking.group, int)
        phases = range(tables.phase_ptr[g], tables.phase_ptr[g + 1])
        for p in phases:
            words = tables.loads[p][tables.loads[p] != 0xFFFFFFFF].astype(int)
            slots = words >> 20
            assert len(np.unique(slots)) == len(slots)
            # The copy begins when phases up to this one's less `ahead`, less one, are done.
            assert (read_in[slots] < p - phases[0] - blocking.ahead).all()
            held[slots] = words & 0xFFFFF
            loaded += len(words)
            for place in range(blocking.group):
                first = tables.tile_steps[g, place, 0]
                for step in range(first + at[place], first + tables.done[p, place]):
                    of_step = slice(step * 64, step * 64 + 64)
                    used = tables.slots[of_step].astype(int)
                    assert (held[used] >= 0).all()
                    right = (held[used] == index.columns[of_step]) | empty[of_step]
                    assert right.all()
                    read_in[used] = p - phases[0]
                at[place] = tables.done[p, place]
        for place, tile in enumerate(tiles):
            if tile < 0:
                continue
            seen.append(tile)
            first, steps = tables.tile_steps[g, place]
            assert first == index.tile_ptr[tile] // 64
            assert at[place] == steps
            # What is not worked off is empty.
            assert empty[(first + steps) * 64 : index.tile_ptr[tile + 1]].all()
    assert sorted(seen) == list(range(index.tiles))
    return loaded


def test_a_reordered_matrix_is_the_same_matrix():
    rng = np.random.default_rng(5)
    for sparse in (True, False):
        matrix = pack(rng, random_tiles(rng, [128, 64, 190], 200), 32, 200, sparse=sparse)
        bounds = matrix.index.tile_ptr // group_width(matrix)
        order = np.concatenate([rng.permutation(np.arange(a, b)) for a, b in pairwise(bounds)])
        moved = reordered(matrix, order)
        assert (moved.values != matrix.values).any()
        assert (to_dense(moved) == to_dense(matrix)).all()
        back = reordered(moved, np.argsort(order))
        assert (back.values == matrix.values).all()
        assert (back.metadata == matrix.metadata).all()
        with pytest.raises(ValueError, match="in its tile"):
            reordered(matrix, np.roll(order, 1))
        with pytest.raises(ValueError, match="permutation"):
            reordered(matrix, np.zeros_like(order))


def test_mutants_are_caught():
    rng = np.random.default_rng(6)
    matrix = pack(rng, random_tiles(rng, [192, 130], 300), 16, 300, sparse=True)
    plan = window_plan(matrix, SPARSE)
    arranged = reordered(matrix, plan.order)
    x = to_bits(rng.standard_normal((300, 64)), "float16")
    y = np.zeros((32, 64), np.uint16)
    launch = window_launch(arranged, x, y, blocking=SPARSE, tables=plan.tables, bfloat16=False)
    for old, new in (
        ("copy_wait<AHEAD - 1>();\n        barrier();", "copy_wait<AHEAD - 1>();"),
        ("copy_wait<AHEAD - 1>();\n        barrier();", "barrier();"),
        ("copy_phase(phase + AHEAD);", "copy_phase(phase + AHEAD); copy_phase(phase + AHEAD);"),
    ):
        with pytest.raises(EmulationError):
            run(launch, edit=lambda source, old=old, new=new: source.replace(old, new))
    late = plan.tables.loads.copy()
    late[-1] = late[0]
    with pytest.raises(EmulationError):
        run(replace(launch, arguments={**launch.arguments, "loads": np.roll(late, 1, 0)}))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("multiply_sparse<1>", "multiply_sparse<0>"),
        ("most(0, least(8, columns - first))", "8"),
        ("int there = least(8, columns - first);", "int there = 8;"),
        ("int channel = load(row_map + packed_row);", "int channel = packed_row;"),
    ],
    ids=["one selector", "X's end", "Y's end", "no row map"],
)
def test_mutants_that_compute_or_reach_something_else_are_caught(old, new):
    rng = np.random.default_rng(7)
    # One tile for two places of a block, and every row of X is read, the last one too.
    matrix = pack(rng, random_tiles(rng, [192], 192), 16, 192, sparse=True, outputs=13)
    plan = window_plan(matrix, SPARSE)
    multiply(matrix, plan, 9, rng, stride=16)
    with pytest.raises((EmulationError, AssertionError)):
        multiply(matrix, plan, 9, rng, stride=16, edit=lambda source: source.replace(old, new))


def test_without_the_turn_of_the_slots_banks_conflict():
    rng = np.random.default_rng(8)
    matrix = pack(rng, random_tiles(rng, [192, 192], 192), 16, 192, sparse=True)
    plan = window_plan(matrix, SPARSE)

    def plain(source):
        return source.replace("slot & 7", "0")

    counts = multiply(matrix, plan, 64, rng, edit=plain)
    assert counts.matrix_conflicts == 7 * counts.matrix_loads > 0


def test_bad_arguments_are_named():
    rng = np.random.default_rng(7)
    matrix = pack(rng, random_tiles(rng, [64, 64], 100), 16, 100, sparse=True)
    with pytest.raises(ValueError, match="tiles of 32 rows"):
        window_plan(matrix, replace(SPARSE, tile_size=32))
    with pytest.raises(ValueError, match="sparse=False"):
        window_plan(matrix, replace(SPARSE, sparse=False))
    with pytest.raises(ValueError, match="slots must be a multiple of 8"):
        replace(SPARSE, slots=64)
    with pytest.raises(ValueError, match="1048576 rows"):
        window_plan(replace(matrix, index=replace(matrix.index, inputs=1 << 21)), SPARSE)
    with pytest.raises(ValueError, match="tile_size must be"):
        window_blocking(24, 100, sparse=True, shared_limit=101376)
    with pytest.raises(ValueError, match="do not fit"):
        window_blocking(32, 100, sparse=True, shared_limit=49152)
    plan = window_plan(matrix, SPARSE)
    x, y = np.zeros((100, 8), np.uint16), np.zeros((32, 8), np.uint16)
    launch = {"blocking": SPARSE, "tables": plan.tables, "bfloat16": False}
    with pytest.raises(ValueError, match="x's 8 columns"):
        window_launch(matrix, x, y[:, :4], **launch)
    with pytest.raises(ValueError, match="addend must have"):
        window_launch(matrix, x, y, addend=x, **launch)
    with pytest.raises(ValueError, match="activation must be"):
        window_launch(matrix, x, y, activation="tanh", **launch)


@pytest.mark.parametrize(
    "pattern",
    [
        Pattern.tvw(2, 4, vec_ratio=0.6, vec_size=16, row_ratio=0.2),
        Pattern.hinm(1, 4, vec_ratio=0.5, vec_size=16),
    ],
    ids=["tvw", "1:4"],
)
def test_solutions_multiply_as_their_masked_weights(pattern):
    rng = np.random.default_rng(8)
    weights = rng.standard_normal((90, 150)).astype(np.float16)
    solution = solve(weights, pattern=pattern, method="random", options={"count": 1})
    matrix = HinmMatrix.from_solution(solution, weights)
    assert (matrix.to_dense() == np.where(solution.mask, weights, 0)).all()
    plan = window_plan(matrix, SPARSE)
    multiply(matrix, plan, 65, rng, full=True, activation="relu")
