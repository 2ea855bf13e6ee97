"""The benchmark of optima and bounds: its optimum of small matrices, and tiny runs of its parts."""

import json
import sys
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

import gyroperm

ROOT = Path(__file__).resolve().parents[1]

if not (ROOT / "benchmarks" / "proofs.py").is_file():
    pytest.skip("tests/ lies apart from the source tree", allow_module_level=True)

# Last on the path, and gyroperm is imported by now: the tree cannot shadow what is installed.
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks.proofs import KINDS, is_found, main, optimum_of_16  # noqa: E402


@pytest.mark.parametrize("kind", KINDS)
def test_the_optimum_of_16_columns_is_what_exact_proves(kind):
    weights = KINDS[kind](8, 16, 5)
    solution = gyroperm.solve(weights, method="exact")
    assert solution.status == "optimal"
    assert optimum_of_16(np.abs(weights)) == pytest.approx(solution.retained, rel=1e-6)


def test_the_optimum_of_16_columns_where_it_is_known():
    # Four kinds of columns: a row keeps both of its large ones only if they are apart in pairs.
    saliency = np.zeros((4, 16))
    for row in range(4):
        saliency[row, [row, row + 4, row + 8]] = 1.0
    assert optimum_of_16(saliency) == 12.0
    # All partitions of 8 of the columns, the other 8 never matter.
    rng = np.random.default_rng(0)
    saliency = np.zeros((3, 16))
    saliency[:, :8] = rng.random((3, 8))
    spread = [
        sum(
            np.sort(saliency[:, [*pair, 14, 15]], axis=1)[:, 2:].sum()
            for pair in np.reshape(order, (4, 2))
        )
        for order in permutations(range(8))
        if order[0] == 0
    ]
    assert optimum_of_16(saliency) == pytest.approx(max(spread))
    with pytest.raises(ValueError, match=r"shape \(R, 16\), got \(4, 12\)"):
        optimum_of_16(np.ones((4, 12)))


def test_auto_finds_the_optimum_of_small_matrices(tmp_path):
    out = tmp_path / "small.json"
    assert main(["small", "--quick", "--times", "0.3", "--quiet", "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    assert content["machine"]["gyroperm"] == gyroperm.__version__
    results = content["results"]
    assert len(results) == 6
    assert {r["kind"] for r in results} == set(KINDS)
    for result in results:
        assert result["found"] == is_found(result["retained"], result["optimum"])
        assert result["retained"] <= result["optimum"] * (1.0 + 1e-6)
    assert sum(result["found"] for result in results) >= 5


def test_a_tiny_run_of_the_other_parts(tmp_path, monkeypatch, capsys):
    from benchmarks import proofs

    monkeypatch.setattr(proofs, "OPTIMA_COLUMNS", 16)
    out = tmp_path / "optima.json"
    arguments = ["optima", "--kinds", "gauss", "--seeds", "2", "--times", "20"]
    assert main([*arguments, "--out", str(out)]) == 0
    results = json.loads(out.read_text())["results"]
    assert [r["status"] for r in results] == ["optimal", "optimal"]
    assert all(r["processor_seconds"] > 0 and r["gap_points"] < 1e-6 for r in results)
    assert "gauss 1" in capsys.readouterr().out

    out = tmp_path / "certificates.json"
    arguments = ["certificates", "--quick", "--times", "0.2", "--bound", "0.01"]
    try:
        assert main([*arguments, "--out", str(out)]) == 0
    except SystemExit:
        pytest.skip(capsys.readouterr().err)
    (result,) = json.loads(out.read_text())["results"]
    # No time for more than the bound that comes for nothing.
    assert result["bound_kind"] == "unstructured"
    assert result["bound_efficacy"] == pytest.approx(100.0)
    assert result["peak_bytes"] > 1 << 26
    with pytest.raises(SystemExit):
        main(["optima", "--times", "1", "2", "--out", str(out)])
