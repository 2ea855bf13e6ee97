"""Patterns: fields of the named constructors, what is refused, and how they print."""

from __future__ import annotations

import dataclasses
import math

import pytest

from gyroperm import Pattern


@pytest.mark.parametrize(
    ("pattern", "fields"),
    [
        (Pattern.nm(), (2, 4, None, 0.0, "uniform", None, 0.0)),
        (Pattern.nm(1, 8), (1, 8, None, 0.0, "uniform", None, 0.0)),
        (Pattern.hinm(vec_ratio=0.5, vec_size=32), (2, 4, 32, 0.5, "uniform", None, 0.0)),
        (Pattern.hinm(3, 5, vec_ratio=0.25), (3, 5, 64, 0.25, "uniform", None, 0.0)),
        (Pattern.vnm(64, 2, 8), (2, 4, 64, 0.5, "window", 8, 0.0)),
        (Pattern.vnm(16, 1, 10), (1, 4, 16, 0.6, "window", 10, 0.0)),
        (Pattern.vector_nm(2, 8, 32), (1, 1, 32, 0.75, "window", 8, 0.0)),
        (Pattern.vector_nm(4, 4, 8), (1, 1, 8, 0.0, "window", 4, 0.0)),
        (Pattern.tvw(vec_ratio=0.5, vec_size=32), (2, 4, 32, 0.5, "global", None, 0.0)),
        (
            Pattern.tvw(1, 2, vec_ratio=0.25, vec_size=8, row_ratio=0.125),
            (1, 2, 8, 0.25, "global", None, 0.125),
        ),
    ],
    ids=str,
)
def test_the_named_constructors_give_the_fields_of_the_table(pattern, fields):
    n, m, vec_size, vec_ratio, allocation, window, row_ratio = fields
    assert (pattern.n, pattern.m, pattern.vec_size) == (n, m, vec_size)
    assert (pattern.allocation, pattern.window) == (allocation, window)
    assert math.isclose(pattern.vec_ratio, vec_ratio, abs_tol=1e-12)
    assert pattern.row_ratio == row_ratio


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"n": 5, "m": 4}, "n"),
        ({"n": 0}, "n"),
        ({"n": -2}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": True}, "n"),
        ({"n": "two"}, "n"),
        ({"n": None}, "n"),
        ({"n": math.nan}, "n"),
        ({"n": math.inf}, "n"),
        ({"m": 0}, "m"),
        ({"m": -4}, "m"),
        ({"m": 4.5}, "m"),
        ({"m": None}, "m"),
        ({"vec_size": 0}, "vec_size"),
        ({"vec_size": -1}, "vec_size"),
        ({"vec_size": 2.5}, "vec_size"),
        ({"vec_size": "all"}, "vec_size"),
        ({"vec_ratio": -0.1}, "vec_ratio"),
        ({"vec_ratio": 1.0}, "vec_ratio"),
        ({"vec_ratio": 1.5}, "vec_ratio"),
        ({"vec_ratio": math.nan}, "vec_ratio"),
        ({"vec_ratio": None}, "vec_ratio"),
        ({"vec_ratio": "half"}, "vec_ratio"),
        ({"allocation": "ragged"}, "allocation"),
        ({"window": 8}, "window"),
        ({"allocation": "window"}, "window"),
        ({"allocation": "window", "window": 2}, "window"),
        ({"allocation": "window", "window": 8.5}, "window"),
        ({"allocation": "window", "window": 8, "vec_ratio": 0.3}, "vec_ratio"),
        ({"allocation": "window", "window": 8, "vec_ratio": 0.0}, "vec_ratio"),
        ({"n": 2, "m": 2, "allocation": "window", "window": 8, "vec_ratio": 0.625}, "m=2"),
        ({"row_ratio": 0.5}, "row_ratio"),
        ({"allocation": "window", "window": 8, "vec_ratio": 0.5, "row_ratio": 0.5}, "row_ratio"),
        ({"allocation": "global", "row_ratio": 1.0}, "row_ratio"),
        ({"allocation": "global", "row_ratio": -0.5}, "row_ratio"),
    ],
    ids=str,
)
def test_what_is_out_of_range_is_refused_by_name(arguments, named):
    with pytest.raises(ValueError, match=rf"\b{named}\b"):
        Pattern(**arguments)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Pattern.nm(3, 2), "n"),
        (lambda: Pattern.vnm(32, 2, 3), "M"),
        (lambda: Pattern.vnm(32, 5, 8), "n"),
        (lambda: Pattern.vnm(0, 2, 8), "vec_size"),
        (lambda: Pattern.vector_nm(5, 4, 32), "N"),
        (lambda: Pattern.vector_nm(0, 4, 32), "N"),
        (lambda: Pattern.vector_nm(1, 0, 32), "M"),
        (lambda: Pattern.tvw(row_ratio=1.0), "row_ratio"),
    ],
)
def test_the_named_constructors_refuse_by_name(make, named):
    with pytest.raises(ValueError, match=rf"\b{named}\b"):
        make()


@pytest.mark.parametrize(
    ("pattern", "text", "name"),
    [
        (Pattern.nm(), "2:4", "N:M"),
        (Pattern.hinm(vec_ratio=0.5, vec_size=32), "HiNM 2:4", "HiNM"),
        (Pattern.vnm(64, 2, 10), "64:2:10", "V:N:M"),
        (Pattern.vector_nm(2, 8, 32), "2:8", "vector N:M"),
        (Pattern.tvw(vec_ratio=0.5, row_ratio=0.25), "TVW 2:4", "TVW"),
    ],
)
def test_a_pattern_prints_its_name(pattern, text, name):
    assert text in str(pattern)
    assert pattern.name == name


def test_a_pattern_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Pattern.nm().n = 1


def test_equal_patterns_are_equal_and_hash_alike():
    assert Pattern.vnm(8, 2, 8) == Pattern(2, 4, 8, 0.5, "window", 8)
    assert len({Pattern.nm(), Pattern(), Pattern.nm(2, 4), Pattern.nm(1, 4)}) == 2


@pytest.mark.parametrize(
    ("pattern", "sparsity"),
    [
        (Pattern.nm(2, 4), 0.5),
        (Pattern.nm(4, 4), 0.0),
        (Pattern.hinm(2, 4, vec_ratio=0.5), 0.75),
        (Pattern.vnm(64, 2, 10), 0.8),
        (Pattern.vector_nm(2, 8, 32), 0.75),
        (Pattern.tvw(2, 4, vec_ratio=0.5, row_ratio=0.5), 0.875),
    ],
    ids=str,
)
def test_total_sparsity(pattern, sparsity):
    assert pattern.sparsity == pytest.approx(sparsity, abs=1e-12)


@pytest.mark.parametrize(
    ("pattern", "columns", "kept"),
    [
        (Pattern.nm(2, 4), 16, 16),
        (Pattern.nm(2, 4), 13, 16),
        (Pattern.nm(2, 4), 1, 4),
        (Pattern.hinm(vec_ratio=0.5), 384, 192),
        # 0.3 * 40 is 12.000000000000002 in binary, and 1 - 0.7 is 0.30000000000000004.
        (Pattern.hinm(vec_ratio=0.7), 40, 12),
        (Pattern.hinm(vec_ratio=2 / 3), 12, 4),
        (Pattern.hinm(vec_ratio=0.5), 20, 8),
        (Pattern.vnm(8, 2, 10), 30, 12),
        (Pattern.vnm(8, 2, 10), 31, 16),
        (Pattern.vector_nm(3, 8, 8), 16, 6),
    ],
    ids=str,
)
def test_kept_columns(pattern, columns, kept):
    assert pattern.kept_columns(columns) == kept


def test_too_few_columns_left_is_refused_with_the_largest_ratio_that_fits():
    with pytest.raises(ValueError, match=r"vec_ratio=0\.9 leaves fewer than m=4.* at most 0\.5"):
        Pattern.hinm(vec_ratio=0.9).kept_columns(8)


@pytest.mark.parametrize("M", range(4, 40))
def test_a_window_keeps_four_vectors_for_every_window_size(M):
    pattern = Pattern.vnm(32, 2, M)
    assert pattern.kept_per_window == 4
    assert pattern.kept_columns(3 * M) == 12


def test_only_windowed_patterns_have_windows():
    with pytest.raises(AttributeError, match="no windows"):
        _ = Pattern.nm().kept_per_window
    assert [p.shared_order for p in (Pattern.nm(), Pattern.vnm(8, 2, 8), Pattern.hinm())] == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("rows", "ratio", "kept"), [(10, 0.0, 10), (10, 0.3, 7), (9, 0.5, 5), (1, 0.9, 1), (3, 0.9, 1)]
)
def test_whole_rows_that_survive(rows, ratio, kept):
    assert Pattern.tvw(row_ratio=ratio).kept_rows(rows) == kept
