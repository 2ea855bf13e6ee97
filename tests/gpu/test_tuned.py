"""What was measured, from one process to the next."""

import json
import warnings

import numpy as np
import pytest

from gyroperm.gpu import Card, IndexTables, choose, explain
from gyroperm.gpu.candidates import DENSE, Way, candidates
from gyroperm.gpu.tuned import TunedWays

CARD = Card("a card", "90", 132, 1.755e9, 4.8e12, 50 << 20, 232448, 233472)
TUNED = TunedWays("a card", 13000)


class Sizes:
    dtype = "float16"
    sparse = True

    def __init__(self, slots=512, dtype="float16"):
        tile_ptr = np.array([0, slots, slots + 256])
        self.index = IndexTables(np.zeros(slots + 256, int), tile_ptr, np.arange(256), 4096, 256)
        self.dtype = dtype


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("GYROPERM_CACHE_DIR", str(tmp_path))
    return tmp_path


def measured(matrix=None, n=1000, layout="tokens"):
    """Times that rank the ways as no prediction does."""
    found = candidates(matrix or Sizes(), n, layout, CARD, thorough=True)
    slowest_first = sorted(found, key=lambda one: -one.prediction.seconds)
    return [(one.way, 1e-5 * (i + 1)) for i, one in enumerate(slowest_first)]


def test_what_was_measured_is_chosen_by_later_processes():
    matrix, ways = Sizes(), measured()
    assert choose(matrix, 1000, "tokens", CARD, TUNED).measured is False
    path = TUNED.keep(matrix, 1000, "tokens", ways)
    assert path.exists()
    for n in (513, 1000, 1024):
        choice = choose(Sizes(), n, "tokens", CARD, TunedWays("a card", 13000))
        fastest = next(way for way, _ in ways if way != DENSE)
        assert (choice.measured, choice.way) == (True, fastest)
        assert "measured 1" in choice.why
    table = explain(matrix, 1000, "tokens", CARD, TUNED)
    assert "10 us" in table and table.endswith(choose(matrix, 1000, "tokens", CARD, TUNED).why)


def test_a_measured_dense_product_is_chosen_where_it_is_allowed():
    sparse = next(way for way, _ in measured() if way != DENSE)
    TUNED.keep(Sizes(), 1000, "tokens", [(sparse, 4e-5), (DENSE, 1e-5)])
    assert choose(Sizes(), 1000, "tokens", CARD, TUNED).way == DENSE
    forbidden = choose(Sizes(), 1000, "tokens", CARD, TUNED, allow_dense=False)
    assert (forbidden.way, forbidden.measured) == (sparse, True)


def test_a_measured_window_is_chosen_only_with_that_window():
    sparse = next(way for way, _ in measured() if way != DENSE)
    TUNED.keep(Sizes(), 1000, "tokens", [(sparse, 4e-5), (Way.of("window", slots=128), 1e-5)])
    assert choose(Sizes(), 1000, "tokens", CARD, TUNED).way == sparse


@pytest.mark.parametrize(
    "other",
    [
        (TunedWays("another card", 13000), Sizes(), 1000, "tokens"),
        (TunedWays("a card", 12080), Sizes(), 1000, "tokens"),
        (TUNED, Sizes(slots=576), 1000, "tokens"),
        (TUNED, Sizes(dtype="bfloat16"), 1000, "tokens"),
        (TUNED, Sizes(), 1025, "tokens"),
        (TUNED, Sizes(), 1000, "features"),
    ],
)
def test_what_was_measured_of_something_else_is_not_chosen(other):
    TUNED.keep(Sizes(), 1000, "tokens", measured())
    tuned, matrix, n, layout = other
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tuned.measured(matrix, n, layout) == []


def test_kernels_that_have_changed_are_measured_anew(monkeypatch):
    TUNED.keep(Sizes(), 1000, "tokens", measured())
    monkeypatch.setattr("gyroperm.gpu.tuned.fingerprint", lambda variant: "changed")
    assert TUNED.measured(Sizes(), 1000, "tokens") == []


def edited(change):
    def edit(path):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return edit


def of_way(**changed):
    return edited(lambda content: content["ways"][0].update(changed))


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "no mapping": lambda path: path.write_text("[1, 2]"),
    "another schema": edited(lambda content: content.update(schema=99)),
    "another card": edited(lambda content: content["of"].update(card="foreign")),
    "no key": edited(lambda content: content.pop("of")),
    "no ways": edited(lambda content: content.update(ways=[])),
    "ways of another type": edited(lambda content: content.update(ways={"spmm": 1})),
    "an unknown kind": of_way(kind="magic"),
    "a negative time": of_way(seconds=-1.0),
    "a time that is none": of_way(seconds=float("nan")),
    "a blocking that no tile has": of_way(
        kind="spmm", parameters={"block_n": 64, "warps_m": 3, "warps_n": 2, "stages": 4}
    ),
    "a blocking of words": of_way(
        kind="spmm", parameters={"block_n": "64", "warps_m": 1, "warps_n": 2, "stages": 4}
    ),
    "a cut that no tile has": of_way(kind="decode", parameters={"block_rows": 24, "part_steps": 4}),
    "too many columns to decode": of_way(
        kind="decode", parameters={"block_rows": 16, "part_steps": 4}
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_ignored_and_written_again(damage):
    path = TUNED.keep(Sizes(), 1000, "tokens", measured())
    DAMAGES[damage](path)
    with pytest.warns(UserWarning, match=f"{path} is ignored"):
        choice = choose(Sizes(), 1000, "tokens", CARD, TUNED)
    assert not choice.measured
    TUNED.keep(Sizes(), 1000, "tokens", measured())
    assert choose(Sizes(), 1000, "tokens", CARD, TUNED).measured
