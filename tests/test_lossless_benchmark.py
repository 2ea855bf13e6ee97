"""The benchmark of lossless conversion: its bisection, its matrices, and a tiny run of it."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import gyroperm

ROOT = Path(__file__).resolve().parents[1]

if not (ROOT / "benchmarks" / "lossless.py").is_file():
    pytest.skip("tests/ lies apart from the source tree", allow_module_level=True)

# Last on the path, and gyroperm is imported by now: the tree cannot shadow what is installed.
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks.lossless import INSTANCES, least, main, thinned  # noqa: E402


@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.37, 0.5, 0.99])
def test_bisection_finds_where_success_begins(threshold):
    asked = []

    def succeeds(sparsity):
        asked.append(sparsity)
        return sparsity >= threshold - 1e-9

    assert least(succeeds) == pytest.approx(threshold)
    assert len(asked) <= 7
    assert least(lambda sparsity: False) is None


def test_thinning_leaves_the_largest():
    weights = INSTANCES["random-64x64"](3)
    sparse = thinned(weights, 0.75)
    kept = sparse != 0
    assert kept.sum() == weights.size // 4
    assert np.array_equal(sparse[kept], weights[kept])
    assert weights[kept].min() >= weights[~kept].max()
    assert not np.array_equal(weights, INSTANCES["random-64x64"](4))


def test_a_tiny_run(tmp_path, capsys):
    out = tmp_path / "lossless.json"
    arguments = ["--instances", "random-64x64", "--methods", "auto", "identity", "--seeds", "0"]
    assert main([*arguments, "--budget", "0.1", "--quiet", "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    assert content["machine"]["gyroperm"] == gyroperm.__version__
    found = {result["method"]: result for result in content["results"]}
    assert set(found) == {"assign", "identity"}
    assert 0.6 < found["assign"]["least"] < found["identity"]["least"]
    for attempt in found["assign"]["attempts"]:
        lossless = attempt["status"] == "lossless"
        assert lossless == (attempt["lost"] == 0)
        assert lossless == (attempt["sparsity"] >= found["assign"]["least"])
    # More than half of all weights cannot be kept.
    assert found["assign"]["attempts"][0]["sparsity"] == 0.5
    assert found["assign"]["attempts"][0]["status"] == "infeasible"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("wrong", [["--methods", "magic"], ["--n", "5"], ["--budget", "0"]])
def test_bad_usage_is_refused(wrong, tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        main([*wrong, "--out", str(tmp_path / "l.json")])
    assert refused.value.code == 2
    assert "error" in capsys.readouterr().err
