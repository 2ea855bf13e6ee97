"""Corners that once went wrong: odd sizes, endless limits, foreign callables, damaged input."""

import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass

import numpy as np
import pytest

import naive
from gyroperm import MaxRounds, Pattern, SearchState, Solution, TimeLimit, solve
from gyroperm.arrangement import Arrangement
from gyroperm.solvers import register, registry
from gyroperm.solvers.identity import identity_arrangement


def normal(rows, columns, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, columns))


@pytest.mark.parametrize("method", ["identity", "assign", "gyro"])
@pytest.mark.parametrize(("rows", "V"), [(65, 64), (100, 32), (9, 64), (64, 32)])
def test_tvw_never_keeps_more_than_its_sparsity_says(method, rows, V):
    pattern = Pattern.tvw(vec_size=V)
    solution = solve(normal(rows, 64), pattern=pattern, method=method)
    assert 0.2 < solution.mask.mean() <= 1 - pattern.sparsity + 1e-12


def test_a_limit_without_end_keeps_the_pace_of_none():
    S = normal(16, 16)
    assert TimeLimit(float("inf")).progress(SearchState(1.0, 1, 0.0, 0)) is None
    endless = solve(S, time_limit=float("inf"))
    assert np.array_equal(endless.mask, solve(S).mask)


@pytest.mark.parametrize("columns", [12, 28, 36, 44, 52])
def test_the_vec_ratio_that_a_message_suggests_is_accepted(columns):
    with pytest.raises(ValueError, match="at most") as refusal:
        solve(normal(4, columns), vec_ratio=0.999)
    suggested = float(str(refusal.value).split("at most ")[1].split()[0])
    assert solve(normal(4, columns), vec_ratio=suggested).groups[0].shape == (1, 4)


def test_a_single_group_still_anneals():
    pattern = Pattern.hinm(vec_size=8, vec_ratio=0.6)
    S = np.abs(normal(8, 10, seed=28))
    optimum = naive.optimum_hinm(S, n=2, m=4, V=8, vec_ratio=0.6)
    assert solve(S, pattern=pattern).retained == pytest.approx(optimum, rel=1e-12)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("patience", "abc"),
        ("patience", 2.5),
        ("block_groups", 1),
        ("anneal", "no"),
        ("power", float("inf")),
        ("row_hot", ".95"),
        ("hot", 1.0),
        ("row_rounds", float("nan")),
        ("row_share", 1.0),
    ],
)
def test_options_of_assign_are_refused_by_name(option, value):
    with pytest.raises(ValueError, match=option):
        solve(normal(8, 8), method="assign", options={option: value})


def test_a_callable_with_an_attribute_of_its_own_named_progress_is_a_stop():
    class Stop:
        progress = False

        def __call__(self, state):
            return state.rounds >= 2

    assert solve(normal(8, 16), stop=Stop()).retained > 0


def test_a_users_method_sees_only_the_options_that_were_given():
    seen = []

    @dataclass(frozen=True)
    class Needs:
        strength: int

    @register("needs", options=Needs, summary="for this test")
    def needs(search, options):
        seen.append((options.strength, search.problem.saliency.shape))
        return identity_arrangement(search.problem)

    try:
        solve(normal(8, 16), method="needs", options={"strength": 3})
        assert seen == [(3, (8, 16))]
    finally:
        registry._methods.pop("needs")


def test_what_is_pruned_may_hold_anything():
    S = np.abs(normal(8, 16))
    solution = solve(S)
    weights = np.where(solution.mask, S, np.inf)
    assert np.array_equal(solution.unpermute(solution.permute(weights)), solution.apply(S))


def test_sums_that_overflow_are_refused_before_they_are_normalised():
    with pytest.raises(ValueError, match="overflow"):
        solve([np.full((4, 8), 1e308), np.ones((4, 8))], normalize=True)


def test_an_archive_of_an_unknown_compression_is_refused(tmp_path):
    path = tmp_path / "solution.npz"
    solve(normal(4, 8)).save(path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        first = archive.infolist()[0].header_offset
    central = content.rindex(b"PK\x01\x02", 0, content.rindex(b"PK\x05\x06"))
    content[first + 8] = content[central + 10] = 99
    path.write_bytes(content)
    with pytest.raises(ValueError, match="solution"):
        Solution.load(path)


@pytest.mark.parametrize("kind", ["vnm", "vector_nm"])
def test_a_window_that_names_a_column_of_another_is_refused(kind):
    pattern = {"vnm": Pattern.vnm(4, 2, 8), "vector_nm": Pattern.vector_nm(2, 8, 4)}[kind]
    solution = solve(normal(8, 32), pattern=pattern, method="identity")
    order = np.roll(solution.col_order, 8)
    with pytest.raises(ValueError, match="outside the window"):
        Arrangement(solution.tile_rows, solution.groups, order).check(solution.view.layout(pattern))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_an_output_that_is_no_regular_file_is_left_alone(tmp_path):
    from gyroperm.files import check_writable

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="no regular file"):
        check_writable(pipe)


def test_a_closed_output_is_no_usage_error():
    command = [sys.executable, "-m", "gyroperm", "methods"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) != 2
    assert b"error" not in errors.lower()


def test_many_rounds_change_no_size():
    solution = solve(normal(32, 8), method="assign", options={"hot": 0.95}, stop=MaxRounds(3000))
    assert solution.mask.mean() == 0.5
