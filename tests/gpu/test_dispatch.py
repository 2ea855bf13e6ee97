"""Which way a product is computed, by cards that are made by hand."""

from dataclasses import replace

import numpy as np
import pytest

import gyroperm
from doc_pages import run_script
from gyroperm.gpu import Card, HinmMatrix, IndexTables, choose, explain
from gyroperm.gpu.candidates import DENSE, Way, candidates
from gyroperm.gpu.device import Limits, card_of
from gyroperm.gpu.dispatch import DENSE_MARGIN, dense_message
from gyroperm.gpu.model import Prediction, Tiles
from gyroperm.gpu.schedule import TILE_STEPS, balanced, estimated
from gyroperm.gpu.window import WindowPlan, WindowTables, window_blocking
from gyroperm.pattern import Pattern

MB, KB = 1 << 20, 1 << 10
CARDS = {
    "H200": Card("NVIDIA H200", "90", 132, 1.755e9, 4.8e12, 50 * MB, 232448, 233472),
    "A100": Card("NVIDIA A100-SXM4-80GB", "80", 108, 1.41e9, 2.04e12, 40 * MB, 166912, 167936),
    "4090": Card("NVIDIA GeForce RTX 4090", "89", 128, 2.52e9, 1.01e12, 72 * MB, 101376, 102400),
    "3090": Card("NVIDIA GeForce RTX 3090", "86", 82, 1.695e9, 9.36e11, 6 * MB, 101376, 102400),
    "B200": Card("NVIDIA B200", "100", 148, 1.85e9, 8e12, 126 * MB, 232448, 233472),
    "5090": Card("NVIDIA GeForce RTX 5090", "120", 170, 2.41e9, 1.79e12, 96 * MB, 101376, 102400),
}


class Sizes:
    """A packed matrix without its values; slots of each tile."""

    dtype = "float16"

    def __init__(self, outputs, inputs, V, slots, sparse=True):
        tiles = -(-outputs // V)
        slots = np.broadcast_to(slots, tiles)
        rows = np.full(tiles * V, -1)
        rows[:outputs] = np.arange(outputs)
        tile_ptr = np.concatenate([[0], np.cumsum(slots)])
        columns = np.zeros(tile_ptr[-1], np.int64)
        self.index = IndexTables(columns, tile_ptr, rows, inputs, outputs)
        self.sparse = sparse


@pytest.fixture(params=CARDS)
def card(request):
    return CARDS[request.param]


@pytest.mark.parametrize("layout", ["features", "tokens"])
def test_one_token_through_a_large_matrix_is_decoded(card, layout):
    choice = choose(Sizes(4096, 14336, 128, 3584), 1, layout, card)
    assert choice.way.kind == "decode"
    assert not choice.measured
    assert "4096 x 14336 by 1 column by decode(" in choice.why


def test_many_tokens_through_a_matrix_of_which_an_eighth_is_kept_are_multiplied_sparsely(card):
    matrix = Sizes(4096, 4096, 128, 1024)
    for layout in ("features", "tokens"):
        assert choose(matrix, 4096, layout, card).way.kind == "spmm"


@pytest.mark.parametrize("name", ["H200", "A100", "B200"])
def test_many_tokens_through_small_tiles_of_all_columns_are_dense_unless_that_is_forbidden(name):
    card = CARDS[name]
    matrix = Sizes(4096, 4096, 32, 4096)
    assert choose(matrix, 4096, "tokens", card).way == DENSE
    forbidden = choose(matrix, 4096, "tokens", card, allow_dense=False)
    assert forbidden.way.kind == "spmm"
    message = dense_message(matrix, choose(matrix, 4096, "tokens", card).why)
    assert "33554432 bytes" in message and "allow_dense=False forbids it" in message


def test_a_tiny_matrix_is_not_copied_for_nothing(card):
    matrix = Sizes(128, 128, 32, 64)
    for n in (1, 16, 64):
        choice = choose(matrix, n, "features", card)
        assert choice.way != DENSE
        assert "bound by latency" in choice.why


def test_dense_must_win_by_a_margin(card):
    for slots in range(256, 4097, 256):
        matrix = Sizes(4096, 4096, 64, slots)
        found = candidates(matrix, 2048, "features", card)
        dense = next(one.prediction.seconds for one in found if one.way == DENSE)
        sparse = min(one.prediction.seconds for one in found if one.way != DENSE)
        is_dense = choose(matrix, 2048, "features", card).way == DENSE
        assert is_dense == (dense * DENSE_MARGIN <= sparse)


def test_a_matrix_without_a_column_is_multiplied(card):
    matrix = Sizes(256, 512, 64, 0)
    for n in (1, 40, 3000):
        times = [one.seconds for one in predicted(matrix, n, card, "tokens").values()]
        assert all(0 < one < 1e-3 for one in times)


def predicted(matrix, n, card, layout="features"):
    return {one.way: one.prediction for one in candidates(matrix, n, layout, card)}


def assert_slower(slower, faster):
    """Every level of every way; times, but for how evenly the work happens to end."""
    common = slower.keys() & faster.keys()
    assert {way.kind for way in common} >= {"spmm", "dense"}
    for way in common:
        for level in ("memory", "l2", "shared", "tensor", "fixed"):
            assert getattr(slower[way], level) >= getattr(faster[way], level) * (1 - 1e-9)
    fastest = [min(one.seconds for one in found.values()) for found in (slower, faster)]
    assert fastest[0] >= 0.98 * fastest[1]


@pytest.mark.parametrize("n", [48, 512, 2048])
def test_more_is_never_predicted_to_take_less(card, n):
    matrix = Sizes(2048, 4096, 64, 1024)
    base = predicted(matrix, n, card)
    assert_slower(predicted(Sizes(2048, 4096, 64, 1088), n, card), base)
    assert_slower(predicted(Sizes(2048, 8192, 64, 1024), n, card), base)
    assert_slower(predicted(Sizes(2048, 70000, 64, 1024), n, card), base)  # ids of 32 bits
    assert_slower(predicted(Sizes(4096, 4096, 64, 1024), n, card), base)
    assert_slower(predicted(matrix, 2 * n, card), base)
    assert_slower(predicted(matrix, n, card, "tokens"), base)
    for slower in (
        replace(card, clock=card.clock / 2),
        replace(card, memory_bytes=card.memory_bytes / 2),
        replace(card, l2_size=card.l2_size // 8),
    ):
        assert_slower(predicted(matrix, n, slower), base)


@pytest.mark.parametrize("n", [1, 48, 512, 2048])
def test_weights_that_are_all_stored_are_never_predicted_to_take_less(card, n):
    # Not by levels: the larger stages of dense weights hide more of L2's latency.
    sparse, dense = (
        choose(Sizes(2048, 4096, 64, 1024, sparse=sparse), n, "features", card, allow_dense=False)
        for sparse in (True, False)
    )
    assert dense.seconds >= 0.98 * sparse.seconds


def test_decoding_more_columns_or_weights_is_never_predicted_to_take_less(card):
    def decoded(inputs, slots, n, layout):
        # Whole tiles, whatever the estimate would cut.
        way = Way.of("decode", block_rows=16, part_steps=slots // 64)
        matrix = Sizes(4096, inputs, 64, slots)
        found = candidates(matrix, n, layout, card, thorough=True)
        return min(
            one.prediction.seconds
            for one in found
            if one.way.kind == "decode" and one.way.parameters[1] == way.parameters[1]
        )

    for layout in ("features", "tokens"):
        assert decoded(4096, 512, 4, layout) >= decoded(4096, 512, 1, layout)
        assert decoded(4096, 1024, 1, layout) >= decoded(4096, 512, 1, layout)
        assert decoded(16384, 512, 1, layout) >= decoded(4096, 512, 1, layout)


def test_rows_that_do_not_begin_on_16_bytes_cost(card):
    matrix = Sizes(2048, 4096, 128, 2048)
    aligned, not_aligned = (
        candidates(matrix, 511, "features", card, aligned=aligned) for aligned in (True, False)
    )
    for one, other in zip(aligned, not_aligned, strict=True):
        assert one.way == other.way
        assert one.way == DENSE or one.prediction.shared < other.prediction.shared
        assert one.prediction.seconds <= other.prediction.seconds


def test_a_prediction_is_its_slowest_level_as_it_is_spread():
    prediction = Prediction(memory=3e-6, l2=4e-6, shared=2e-6, tensor=1e-6, stretch=3, fixed=1e-6)
    assert prediction.seconds == pytest.approx(1e-6 + 4e-6 * 1.5)
    assert prediction.bound_by == "l2"
    slow = replace(prediction, shared=2.5e-6)
    assert (slow.bound_by, slow.seconds) == ("shared", pytest.approx(8.5e-6))
    assert replace(prediction, fixed=1e-3).bound_by == "latency"


def test_the_rates_of_a_card():
    # 312 and 989 dense TFLOP/s are published, two operations a product.
    assert 2 * CARDS["A100"].products == pytest.approx(312e12, rel=0.01)
    h100 = replace(CARDS["H200"], clock=1.83e9)
    assert 2 * h100.dense_products == pytest.approx(989e12, rel=0.01)
    # And of GeForce cards 71, 165 and 210 with sums in float32.
    for name, rate in (("3090", 71e12), ("4090", 165e12), ("5090", 210e12)):
        assert 2 * CARDS[name].dense_products == pytest.approx(rate, rel=0.02)


def test_a_card_by_what_a_driver_tells():
    told = {
        "ClockRate": 1980000,
        "MemoryClockRate": 3201000,
        "GlobalMemoryBusWidth": 6144,
        "L2CacheSize": 50 * MB,
        "MaxSharedMemoryPerMultiprocessor": 233472,
    }
    card = card_of("NVIDIA H200", Limits("90", 132, 232448), told)
    assert card.memory_bytes == pytest.approx(4.9e12, rel=0.01)
    assert card.clock == pytest.approx(1.78e9, rel=0.01)
    assert replace(card, clock=1.755e9, memory_bytes=4.8e12) == CARDS["H200"]
    del told["ClockRate"], told["MemoryClockRate"]
    quiet = card_of("NVIDIA H200", Limits("90", 132, 232448), told)
    assert 1e9 < quiet.clock < 3e9 and quiet.memory_bytes > 1e11


def test_the_longest_block_is_estimated_as_it_is_scheduled():
    rng = np.random.default_rng(0)
    for _ in range(60):
        tiles = int(rng.integers(1, 200))
        steps = rng.integers(0, 60, tiles) if rng.random() < 0.5 else np.full(tiles, 30)
        n, blocks = int(rng.integers(1, 1500)), int(rng.integers(1, 600))
        schedule = balanced(steps, n, 128, blocks)
        longest, busy = estimated(steps, -(-n // 128), blocks)
        assert busy == schedule.blocks
        sums = np.concatenate([[0], np.cumsum(schedule.items[:, 3] + TILE_STEPS)])
        most = np.diff(sums[schedule.work_ptr]).max() - TILE_STEPS
        assert abs(longest - most) <= 0.25 * most + TILE_STEPS


def test_bytes_of_the_weights_are_those_of_the_packed_matrix():
    for pattern in (Pattern.hinm(vec_ratio=0.5, vec_size=32), Pattern.vector_nm(2, 4, 32)):
        matrix = packed(pattern)
        assert Tiles.of(matrix).weight_bytes == matrix.nbytes


def packed(pattern):
    weights = np.random.default_rng(1).standard_normal((96, 256))
    solution = gyroperm.solve(weights, pattern=pattern, method="identity")
    return HinmMatrix.from_solution(solution, weights)


def window_of(matrix, card, loaded):
    """A plan of which only the sizes are made."""
    index = matrix.index
    blocking = window_blocking(
        index.tile_size, index.inputs, sparse=matrix.sparse, shared_limit=card.shared_limit
    )
    steps = np.diff(index.tile_ptr).reshape(-1, blocking.group) // 64
    groups, phases = len(steps), -(-loaded // blocking.phase_loads)
    tables = WindowTables(
        slots=np.zeros(len(index.columns), np.uint16),
        tiles=np.arange(index.tiles).reshape(groups, -1),
        tile_steps=np.stack([np.zeros_like(steps), steps], -1),
        phase_ptr=np.linspace(0, phases, groups + 1).astype(int),
        done=np.zeros((phases, blocking.group), int),
        loads=np.zeros((phases, blocking.phase_loads), np.uint32),
    )
    order = np.arange(len(index.columns) // 4)
    return WindowPlan(blocking, order, tables, loaded, len(index.columns), 0.0)


def test_tiles_that_share_a_window_are_a_way_where_it_is_planned(card):
    matrix = Sizes(4096, 4096, 32, 2048)

    def found(loaded):
        plan = window_of(matrix, card, loaded)
        ways = candidates(matrix, 4096, "features", card, window=plan)
        (window,) = [one for one in ways if one.way.kind == "window"]
        assert dict(window.way.parameters)["slots"] == plan.blocking.slots
        return window.prediction

    kinds = {one.way.kind for one in candidates(matrix, 4096, "features", card)}
    assert kinds == {"spmm", "dense"}
    slots = len(matrix.index.columns)
    once, again = found(slots // 4), found(slots)
    assert once.l2 < again.l2 and once.shared < again.shared
    assert once.tensor == again.tensor
    plan = window_of(matrix, card, slots // 4)
    choice = choose(matrix, 4096, "features", card, window=plan, allow_dense=False)
    spmm = choose(matrix, 4096, "features", card, allow_dense=False)
    assert choice.seconds == min(once.seconds, spmm.seconds)


def test_the_table_names_ways_levels_and_the_choice():
    matrix = Sizes(4096, 4096, 128, 1024)
    lines = explain(matrix, 16, "tokens", CARDS["H200"]).splitlines()
    assert "4096 x 4096 by 16 columns (tokens)" in lines[0]
    assert lines[1].split()[:2] == ["way", "predicted"]
    kinds = {line.split("(")[0].split()[0] for line in lines[2:-1]}
    assert kinds == {"decode", "spmm", "dense"}
    assert lines[-1] == choose(matrix, 16, "tokens", CARDS["H200"]).why
    predicted = [line.split("  ")[0] for line in lines[2:-1]]
    assert len(predicted) == len(set(predicted))


@pytest.mark.parametrize(
    ("n", "layout", "message"),
    [(0, "features", "n must be at least 1, got 0"), (1, "rows", "layout must be one of features")],
)
def test_what_cannot_be_chosen_for(n, layout, message):
    for asked in (choose, explain):
        with pytest.raises(ValueError, match=message):
            asked(Sizes(64, 64, 16, 64), n, layout, CARDS["A100"])


def test_the_code_of_the_page_runs(tmp_path):
    assert "decode(" in run_script("gpu.md", tmp_path)
