"""The kernels as plain Python give the answers that they give compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

# Every method, and the problems it takes.
EVERY = ("nm", "1:3", "hinm", "vnm", "vector_nm", "tvw")
PLAIN = ("nm", "1:3")
METHODS = {
    "identity": EVERY,
    "gyro": EVERY,
    "assign": EVERY,
    "stripe": PLAIN,
    "swap": PLAIN,
    "ria": PLAIN,
    "random": EVERY,
    "two_axis": ("vnm", "vector_nm"),
    "ovw": ("hinm", "vnm", "vector_nm", "tvw"),
}

# Annealing takes another path after a difference in the last bit; descents do not.
OPTIONS = {"assign": {"anneal": False, "power": 1.0}}


def _matrix(rows: int, columns: int, seed: int) -> np.ndarray:
    # Multiples of 2^-18: small sums are exact in float32, whatever the order, and ties are rare.
    return np.random.default_rng(seed).integers(0, 2**18, (rows, columns)) / 2.0**18


def answers() -> dict[str, dict[str, object]]:
    """Every method on a tiny problem of every pattern: what it kept, and which entries."""
    from gyroperm import MaxRounds, Pattern, solve

    problems = {
        "nm": (Pattern.nm(), _matrix(6, 14, 0)),
        "1:3": (Pattern.nm(1, 3), _matrix(5, 9, 1)),
        "hinm": (Pattern.hinm(vec_ratio=0.5, vec_size=3), _matrix(8, 17, 2)),
        "vnm": (Pattern.vnm(3, 2, 6), _matrix(8, 13, 3)),
        "vector_nm": (Pattern.vector_nm(2, 4, 3), _matrix(8, 10, 4)),
        "tvw": (Pattern.tvw(1, 2, vec_ratio=0.5, vec_size=3, row_ratio=0.25), _matrix(8, 9, 5)),
    }
    result: dict[str, dict[str, object]] = {}
    for name, (pattern, S) in problems.items():
        for method in (method for method, takes in METHODS.items() if name in takes):
            run = {"pattern": pattern, "method": method, "stop": MaxRounds(2), "threads": 1}
            solution = solve(S, options=OPTIONS.get(method), **run)
            annealed = solve(S, **run) if method in OPTIONS else solution
            result[f"{name} by {method}"] = {
                "retained": solution.retained,
                "identity": solution.identity,
                "by default": annealed.retained,
                "mask": np.flatnonzero(solution.mask).tolist(),
            }
    result["exact kernels"] = _fixed_mask()
    return result


def _fixed_mask() -> dict[str, object]:
    """The best mask of given groups, with ties, virtual columns and virtual rows."""
    from gyroperm.arrangement import Arrangement

    S = np.random.default_rng(6).integers(0, 3, (5, 7)).astype(np.float64)
    rows = np.array([[3, 0, 4], [1, 2, -1]])
    groups = (np.array([[6, 2, -1, 0], [1, 5, 3, 4]]), np.array([[0, 1, 2, 3], [-1, -1, -1, 5]]))
    return {"mask": np.flatnonzero(Arrangement(rows, groups).mask(S, 2)).tolist()}


@pytest.fixture(scope="module")
def compiled_and_plain():
    import numba

    assert not numba.config.DISABLE_JIT, "this run compares with compiled kernels"
    run = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return answers(), json.loads(run.stdout)


def test_the_other_process_did_not_compile(compiled_and_plain):
    _, plain = compiled_and_plain
    assert plain.pop("compiled") is False


@pytest.mark.parametrize("method", METHODS)
def test_scores_agree(compiled_and_plain, method):
    compiled, plain = compiled_and_plain
    names = [name for name in compiled if name.endswith(f"by {method}")]
    assert len(names) == len(METHODS[method])
    for name in names:
        # Scores may be summed in another order when compiled, so ties may fall otherwise.
        assert plain[name]["retained"] == pytest.approx(compiled[name]["retained"], rel=1e-5), name
        assert plain[name]["identity"] == compiled[name]["identity"], name
        for answer in (plain[name], compiled[name]):
            assert answer["identity"] <= answer["by default"], name


def test_exact_kernels_agree_exactly(compiled_and_plain):
    compiled, plain = compiled_and_plain
    assert plain["exact kernels"] == compiled["exact kernels"]
    for name in compiled:
        if name.endswith("by identity"):
            assert plain[name] == compiled[name]


if __name__ == "__main__":
    from gyroperm.solvers.kernels import masking

    result = answers()
    # Compiled functions keep their Python original in py_func; plain ones have none.
    json.dump({**result, "compiled": hasattr(masking.mask_tile, "py_func")}, sys.stdout)
