import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gyroperm.gpu.schedule import Schedule, balanced, equal_shares, longest_first

TILES = st.lists(st.integers(0, 40), min_size=1, max_size=30)
SIZES = {
    "n": st.integers(1, 300),
    "block_n": st.sampled_from([64, 128]),
    "blocks": st.integers(1, 40),
}


def covered(schedule: Schedule, tile_steps: list[int]) -> dict[tuple[int, int], list[int]]:
    """The steps of each tile and column, in the order of its parts."""
    steps: dict[tuple[int, int], list[int]] = {}
    parts: dict[tuple[int, int], list[int]] = {}
    order = sorted(range(len(schedule.items)), key=lambda i: tuple(schedule.items[i, [1, 0, 4]]))
    first = np.concatenate([[0], np.cumsum(tile_steps)])
    for tile, column, start, length, part, of, _, _ in schedule.items[order]:
        steps.setdefault((tile, column), []).extend(
            range(start - first[tile], start - first[tile] + length)
        )
        parts.setdefault((tile, column), []).append(part)
        assert 0 <= part < of
    for key, found in parts.items():
        assert found == list(range(len(found))), key
    return steps


@pytest.mark.parametrize("make", [longest_first, equal_shares, balanced])
@given(tile_steps=TILES, **SIZES)
def test_every_step_is_done_once(make, tile_steps, n, block_n, blocks):
    schedule = make(np.array(tile_steps), n, block_n, blocks)
    steps = covered(schedule, tile_steps)
    expected = {
        (tile, column): list(range(length))
        for tile, length in enumerate(tile_steps)
        for column in range(0, n, block_n)
    }
    assert steps == expected
    assert 1 <= schedule.blocks <= blocks
    assert schedule.work_ptr[0] == 0 and schedule.work_ptr[-1] == len(schedule.items)
    assert (np.diff(schedule.work_ptr) >= 0).all()


@given(tile_steps=TILES, **SIZES)
def test_shared_tiles_have_slots_and_counters_of_their_own(tile_steps, n, block_n, blocks):
    schedule = equal_shares(np.array(tile_steps), n, block_n, blocks)
    shared = schedule.items[schedule.items[:, 5] > 1]
    slots = shared[:, 6] + shared[:, 4]
    assert sorted(slots) == list(range(schedule.slots))
    counters = {tuple(item[:2]): item[7] for item in shared}
    assert sorted(counters.values()) == list(range(schedule.counters))


def test_few_tiles_are_shared_and_many_are_not():
    few = balanced([64] * 4, n=64, block_n=64, blocks=132)
    many = balanced([64] * 132, n=1024, block_n=128, blocks=132)
    assert few.counters == 4 and few.blocks > 100
    assert many.counters == 0 and many.longest == 8 * 66


def test_ragged_tiles_end_together():
    tile_steps = np.random.default_rng(0).integers(4, 60, 64)
    schedule = balanced(tile_steps, n=4096, block_n=128, blocks=264)
    ideal = (tile_steps + 2).sum() * 32 / 264
    assert schedule.longest < 1.03 * ideal


@pytest.mark.parametrize("name", ["n", "block_n", "blocks"])
def test_sizes_are_positive(name):
    sizes = {"n": 64, "block_n": 64, "blocks": 4, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        balanced([4], **sizes)
