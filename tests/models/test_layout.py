"""Layouts, against positions counted out one by one."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gyroperm.models.layout import members, parsed, sizes_of

SIZES = {"a": 2, "b": 3, "c": 2}
TEXTS = ("a", "a b", "b a", "2 a", "a 3", "a b c", "a + b", "b + a b", "2 a b + a c", "3 a + 2 + a")
TEXTS += ("a (b + c)", "a (2 b + c)", "(a + b) c", "c (b + a + b) 2")


def _labels(text: str, sizes: dict[str, int]) -> list[dict[str, int]]:
    """Each position's element of every factor, by substituting text: a product nests loops."""
    if "+" in re.sub(r"\(.*?\)", "", text):
        parts = re.split(r"\+(?![^(]*\))", text)
        return [label for part in parts for label in _labels(part, sizes)]
    text = text.strip()
    if not text:
        return [{}]
    first = re.match(r"\((.*?)\)|(\w+)", text)
    assert first is not None
    if first[1] is not None:
        outer = _labels(first[1], sizes)
    elif first[2].isdigit():
        outer = [{}] * int(first[2])
    else:
        outer = [{first[2]: e} for e in range(sizes[first[2]])]
    return [{**one, **rest} for one in outer for rest in _labels(text[first.end() :], sizes)]


@given(text=st.sampled_from(TEXTS), data=st.data())
def test_positions_of_every_factor(text: str, data: st.DataObject) -> None:
    labels = _labels(text, SIZES)
    layout = parsed(text)
    assert layout.length(SIZES) == len(labels)
    order = data.draw(st.sampled_from(layout.factors))
    expected = [
        [i for i, at in enumerate(labels) if at.get(order) == e] for e in range(SIZES[order])
    ]
    assert members(layout, SIZES, order, None).tolist() == [expected]
    inside = [
        f for f in layout.factors if all(f in at for at in labels if order in at) and f != order
    ]
    if inside:
        within = data.draw(st.sampled_from(inside))
        blocks = [
            [
                [i for i, at in enumerate(labels) if at.get(order) == e and at.get(within) == b]
                for e in range(SIZES[order])
            ]
            for b in range(SIZES[within])
        ]
        assert members(layout, SIZES, order, within).tolist() == blocks


@pytest.mark.parametrize(
    ("text", "length", "known", "found"),
    [
        ("kv rep hd", 24, {"kv": 2, "hd": 4}, {"kv": 2, "rep": 3, "hd": 4}),
        ("2 c", 10, {}, {"c": 5}),
        ("kv rep hd + kv hd + kv vd", 32, {"kv": 2, "rep": 2, "hd": 4}, {"vd": 4}),
        ("head (2 (rot + pass) + vd)", 24, {"head": 1, "rot": 4, "vd": 8}, {"pass": 4}),
        ("rot + pass", 8, {"rot": 8}, {"pass": 0}),
    ],
)
def test_an_unknown_size_is_inferred(
    text: str, length: int, known: dict[str, int], found: dict[str, int]
) -> None:
    assert sizes_of(parsed(text), length, known, "w[0]") == {**known, **found}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a a", "names 'a' twice"),
        ("a (b + a)", "names 'a' twice"),
        ("a (b c c)", "names 'c' twice"),
        ("a, b", "may hold names, numbers"),
        ("a (b", "lacks a closing parenthesis"),
        ("a) b", "a parenthesis too many"),
        ("a + ", "has an empty part"),
        ("", "has an empty part"),
    ],
)
def test_malformed(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parsed(text)


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"w\[0\]: the sizes of a and b in 'a b' are not given"):
        sizes_of(parsed("a b"), 6, {}, "w[0]")
    with pytest.raises(ValueError, match=r"w\[0\] has 7 positions, which 'a b' with a = 2 does"):
        sizes_of(parsed("a b"), 7, {"a": 2}, "w[0]")
    with pytest.raises(ValueError, match="w has 3 positions, which 'a \\+ b' with a = 4 does not"):
        sizes_of(parsed("a + b"), 3, {"a": 4}, "w")
    with pytest.raises(ValueError, match="has 'b' outside of 'a'"):
        members(parsed("a b + b"), SIZES, "b", "a")


def test_orders_gather_what_the_members_say() -> None:
    found = members(parsed("2 a b + c"), SIZES, "b", "a")
    assert found.shape == (2, 3, 2) and found.dtype == np.int64
    assert found[1].tolist() == [[3, 9], [4, 10], [5, 11]]
