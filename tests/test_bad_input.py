"""What cannot be solved is refused by name; what is merely strange is solved."""

from __future__ import annotations

import math

import numpy as np
import pytest

import naive
import strategies
from gyroperm import MaxRounds, Pattern, solve

FEW = {"stop": MaxRounds(3), "threads": 1}
GOOD = np.random.default_rng(0).standard_normal((8, 12))


def with_value(value, index, dtype=np.float64):
    array = GOOD.astype(dtype)
    array[index] = value
    return array


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_weights_that_are_not_finite_are_refused_with_the_index(value, dtype):
    with pytest.raises(ValueError, match=rf"weights must be finite, got {value} at index \(3, 7\)"):
        solve(with_value(value, (3, 7), dtype))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_saliency_that_is_not_finite_is_refused_with_the_index(value):
    saliency = np.abs(with_value(value, (5, 0)))
    with pytest.raises(ValueError, match=rf"saliency must be finite, got {value} at .*\(5, 0\)"):
        solve(GOOD, saliency=saliency)


def test_two_infinities_that_cancel_are_found():
    weights = with_value(math.inf, (1, 2))
    weights[4, 4] = -math.inf
    with pytest.raises(ValueError, match=r"got inf at index \(1, 2\)"):
        solve(weights)


def test_the_part_of_a_list_and_the_place_in_a_convolution_are_named():
    with pytest.raises(ValueError, match=r"weights\[1\] must be finite, got nan at index \(2, 3\)"):
        solve([GOOD, with_value(math.nan, (2, 3))])
    conv = np.ones((4, 4, 3, 3))
    conv[1, 2, 0, 1] = math.nan
    with pytest.raises(ValueError, match=r"at index \(1, 2, 0, 1\)"):
        solve(conv)
    with pytest.raises(ValueError, match=r"saliency\[1\] must not be negative"):
        solve([GOOD, GOOD], saliency=[np.abs(GOOD), GOOD])


def test_negative_saliency_is_refused_with_the_index():
    saliency = np.abs(GOOD)
    saliency[2, 9] = -0.25
    with pytest.raises(ValueError, match=r"saliency must not be negative, got -0\.25.*\(2, 9\)"):
        solve(GOOD, saliency=saliency)


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (GOOD.astype(complex), "complex128"),
        (GOOD.astype(object), "object"),
        (GOOD.astype(str), "<U"),
        (np.zeros((4, 4), dtype="datetime64[s]"), "datetime64"),
        (np.zeros((4, 4), dtype=[("a", float)]), "a"),
    ],
    ids=["complex", "object", "text", "dates", "records"],
)
def test_what_is_not_real_numbers_is_refused(array, dtype):
    with pytest.raises(TypeError, match=rf"weights must hold real numbers.*{dtype}"):
        solve(array)
    with pytest.raises(TypeError, match=r"saliency must hold real numbers"):
        solve(np.ones(array.shape), saliency=array)


@pytest.mark.parametrize("given", [None, 3.5, "weights.npy", {"a": 1}, object()])
def test_what_is_no_array_is_refused(given):
    with pytest.raises(TypeError, match="weights must be an array"):
        solve(given)


@pytest.mark.parametrize("shape", [(), (8,), (0, 4), (4, 0), (4, 4, 0)])
def test_wrong_ranks_and_empty_arrays_are_refused(shape):
    with pytest.raises(ValueError, match=r"weights must be a non-empty \(R, C\) matrix"):
        solve(np.ones(shape))


@pytest.mark.parametrize("shape", [(12, 8), (8, 11), (96,), (8, 12, 1), (1, 12)])
def test_a_saliency_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"saliency must have the shape of weights, \(8, 12\)"):
        solve(GOOD, saliency=np.ones(shape))


@pytest.mark.parametrize("saliency", [np.ones((8, 12)), [np.ones((8, 12))], []])
def test_the_saliency_of_a_list_is_a_list_as_long(saliency):
    with pytest.raises(ValueError, match="saliency must be a list of 2 arrays"):
        solve([GOOD, GOOD], saliency=saliency)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 5}, "n must be at most m, got n=5, m=4"),
        ({"n": 3, "m": 2}, "n must be at most m"),
        ({"m": 0}, "m must be an integer of at least 1, got 0"),
        ({"n": 0}, "n must be an integer of at least 1, got 0"),
        ({"m": 4.5}, "m must be an integer"),
        ({"vec_ratio": 1.0}, r"vec_ratio must lie in \[0, 1\), got 1\.0"),
        ({"vec_ratio": -0.25}, r"vec_ratio must lie in \[0, 1\), got -0\.25"),
        ({"vec_ratio": math.nan}, r"vec_ratio must lie in \[0, 1\), got nan"),
        ({"vec_ratio": 0.8}, "vec_ratio=0.8 leaves fewer than m=4 of 12 columns"),
        ({"vec_size": 0, "vec_ratio": 0.5}, "vec_size must be an integer of at least 1"),
        ({"groups": 0}, "groups must be an integer of at least 1"),
        ({"groups": 1.5}, "groups must be an integer of at least 1"),
        ({"groups": "two"}, "groups must be an integer"),
        ({"groups": 3}, "groups=3 does not divide the 8 rows"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"seed": 0.5}, "seed must be an integer of at least 0"),
        ({"seed": None}, "seed must be an integer of at least 0"),
        ({"seed": "zero"}, "seed must be an integer of at least 0"),
        ({"threads": 0}, "threads must be an integer of at least 1"),
        ({"threads": 1.5}, "threads must be an integer of at least 1"),
        ({"threads": "all"}, "threads must be an integer of at least 1"),
        ({"time_limit": -1.0}, "time_limit must not be negative"),
        ({"time_limit": math.nan}, "time_limit must not be negative"),
        ({"time_limit": "soon"}, "time_limit must"),
        ({"method": "magic"}, "unknown method 'magic'; known are auto, assign, dive, exact"),
        ({"method": None}, "unknown method None; known are"),
        ({"method": ["gyro"]}, "unknown method .*; known are"),
        ({"method": "identity", "options": {"rounds": 3}}, "unknown option 'rounds'.*takes none"),
        (
            {"method": "gyro", "options": {"shedule": (8, 1)}},
            "unknown option 'shedule' of method 'gyro'; it takes .*schedule",
        ),
        ({"method": "gyro", "options": {"schedule": ()}}, "schedule"),
        ({"method": "gyro", "options": {"schedule": (8, 0)}}, "schedule"),
    ],
    ids=str,
)
def test_arguments_out_of_range_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        solve(GOOD, **arguments)


def test_a_refused_pattern_is_the_one_that_was_given():
    with pytest.raises(ValueError, match=r"not of HiNM 2:4, vec_ratio 0\.5, V=32 "):
        solve(np.ones((64, 32)), pattern=Pattern.hinm(vec_size=32), method="stripe")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pattern": "2:4"}, "pattern must be a gyroperm.Pattern, got str"),
        ({"stop": 3}, "stop must be callable, got int"),
        ({"initial": GOOD}, "initial must be a gyroperm.Solution, got ndarray"),
        ({"method": "gyro", "options": 3}, "options of 'gyro' must be a mapping or GyroOptions"),
        ({"method": "identity", "options": [1]}, "options of 'identity' must be a mapping"),
    ],
    ids=str,
)
def test_arguments_of_another_type_are_refused_by_name(arguments, message):
    with pytest.raises(TypeError, match=message):
        solve(GOOD, **arguments)


@pytest.mark.parametrize(
    "part", [{"n": 2}, {"m": 4}, {"vec_ratio": 0.0}, {"vec_size": 64}, {"n": 1, "vec_ratio": 0.5}]
)
def test_a_pattern_together_with_its_parts_is_refused(part):
    with pytest.raises(ValueError, match=f"give either pattern or {', '.join(part)}, not both"):
        solve(GOOD, pattern=Pattern.nm(), **part)


def test_an_empty_list_is_refused():
    with pytest.raises(ValueError, match="at least one matrix, got an empty list"):
        solve([])


def test_lists_that_cannot_share_an_order_are_refused():
    with pytest.raises(ValueError, match=r"equally many columns, got \[10, 12\]"):
        solve([GOOD, GOOD[:, :10]])
    with pytest.raises(ValueError, match="groups must be 1 for a list"):
        solve([GOOD, GOOD], groups=2)


def test_an_initial_solution_must_fit():
    first = solve(GOOD, **FEW)
    with pytest.raises(ValueError, match=r"initial is of pattern 2:4, not 1:4"):
        solve(GOOD, n=1, initial=first)
    with pytest.raises(ValueError, match=r"initial is for weights of .*\(8, 12\).*not .*\(8, 8\)"):
        solve(GOOD[:, :8], initial=first)
    with pytest.raises(ValueError, match="initial is for weights of"):
        solve([GOOD], initial=first)
    pattern = Pattern.tvw(vec_ratio=0.5, vec_size=2, row_ratio=0.5)
    S = np.abs(GOOD)
    tvw = solve(S, pattern=pattern, **FEW)
    with pytest.raises(ValueError, match="initial does not fit this saliency"):
        solve(
            S,
            saliency=S * np.where(tvw.mask.any(axis=1), 0.0, 1.0)[:, None],
            pattern=pattern,
            initial=tvw,
        )


def test_a_sum_that_overflows_is_refused_not_returned_as_infinity():
    with pytest.raises(ValueError, match="overflow"):
        solve(np.full((8, 8), 1e308))


def test_the_first_error_comes_before_any_search():
    """An unknown method is no reason to compile or search."""
    calls = []
    with pytest.raises(ValueError, match="unknown method"):
        solve(GOOD, method="magic", stop=lambda now: calls.append(now) or False)
    assert not calls


# ---------------------------------------------------------------- strange, but solved

PATTERNS = {
    "nm": (Pattern.nm(), {"n": 2, "m": 4}),
    "hinm": (
        Pattern.hinm(vec_ratio=0.5, vec_size=4),
        {"n": 2, "m": 4, "V": 4, "vec_ratio": 0.5},
    ),
    "vnm": (Pattern.vnm(4, 2, 8), {"n": 2, "V": 4, "M": 8}),
    "vector_nm": (Pattern.vector_nm(2, 4, 4), {"N": 2, "M": 4, "V": 4}),
    "tvw": (
        Pattern.tvw(vec_ratio=0.5, vec_size=4, row_ratio=0.25),
        {"n": 2, "m": 4, "V": 4, "vec_ratio": 0.5, "row_ratio": 0.25},
    ),
}
STRANGE = {
    "all zero": np.zeros((9, 16)),
    "ties everywhere": np.ones((9, 16)),
    "one row": np.abs(GOOD[:1]),
    "one entry that matters": with_value(0, ...) + np.eye(8, 12) * (np.arange(8) == 3)[:, None],
    "equal rows": np.tile(np.abs(GOOD[:1]), (9, 1)),
    "equal columns": np.tile(np.abs(GOOD[:, :1]), (1, 12)),
    "float16": np.abs(GOOD).astype(np.float16),
    "subnormal float32": (np.abs(GOOD) * 1e-40).astype(np.float32),
    "subnormal float64": np.abs(GOOD) * 1e-310,
    "the smallest float64": np.full((9, 12), 5e-324),
    "huge float64": np.abs(GOOD) * 1e300,
    "huge float32": (np.abs(GOOD) * 1e37).astype(np.float32),
    "huge and tiny": np.abs(GOOD) * np.logspace(-300, 300, 12),
}
every_kind = pytest.mark.parametrize("kind", strategies.KINDS)
searching = pytest.mark.parametrize("method", ["identity", "gyro", "assign"])


@pytest.mark.filterwarnings("error")
@every_kind
@searching
@pytest.mark.parametrize("name", STRANGE)
def test_strange_matrices_are_solved(kind, method, name):
    S = STRANGE[name]
    pattern, parameters = PATTERNS[kind]
    solution = solve(S, pattern=pattern, method=method, **FEW)
    strategies.check(kind, S, solution, parameters)
    expected = naive.masked_sum(S, solution.mask)
    assert solution.retained == pytest.approx(expected, rel=1e-12, abs=0.0)
    assert math.isfinite(solution.retained)
    assert solution.identity <= solution.retained <= solution.bound
    assert all(math.isfinite(value) for _, value in solution.history)


@pytest.mark.filterwarnings("error")
@every_kind
@searching
@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (1, 3), (7, 2), (5, 3), (6, 5)])
def test_matrices_smaller_than_a_group_or_a_tile_are_solved(kind, method, shape):
    S = np.random.default_rng(1).random(shape)
    pattern, parameters = PATTERNS[kind]
    if kind in ("hinm", "tvw") and shape[1] <= 4:
        # Half of one group's columns are fewer than m: that is an error of the pattern.
        with pytest.raises(ValueError, match="leaves fewer than m=4"):
            solve(S, pattern=pattern, method=method, **FEW)
        ratio = {"vec_ratio": 0.0}
        pattern = Pattern(**{**pattern.__dict__, **ratio})
        parameters = {**parameters, **ratio}
    solution = solve(S, pattern=pattern, method=method, **FEW)
    strategies.check(kind, S, solution, parameters)
    assert solution.identity <= solution.retained <= solution.bound


@searching
def test_an_all_zero_matrix_still_gets_a_whole_mask(method):
    solution = solve(np.zeros((8, 16)), method=method, **FEW)
    assert (solution.mask.sum(axis=1) == 8).all()
    assert solution.retained == solution.bound == 0.0
