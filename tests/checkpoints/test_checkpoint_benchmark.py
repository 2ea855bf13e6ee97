"""The benchmark of whole checkpoints, on blocks that take no time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from test_checkpoint import as_float64

ROOT = Path(__file__).resolve().parents[2]

# benchmarks/ is installed nowhere. Last on the path: the tree cannot shadow what is installed.
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks import checkpoint  # noqa: E402
from small_checkpoints import words_in  # noqa: E402

SMALL = {"q_proj": (32, 16), "down_proj": (16, 64)}


def test_what_is_generated(tmp_path: Path) -> None:
    assert checkpoint.generate(tmp_path / "m", 2, SMALL) == 2 * (32 * 16 + 16 * 64)
    first = as_float64("BF16", words_in(tmp_path / "m", "model.layers.0.q_proj.weight"))
    second = as_float64("BF16", words_in(tmp_path / "m", "model.layers.1.q_proj.weight"))
    assert first.shape == (32, 16) and not np.array_equal(first, second)
    assert 0.001 < first.std() < 0.2


def test_what_is_measured(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(checkpoint, "QUICK", SMALL)
    out = tmp_path / "out.json"
    command = ["--quick", "--jobs", "1", "2", "--patterns", "2:4", "--method", "identity"]
    assert checkpoint.main([*command, "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    one, two = content["results"]
    assert (one["jobs"], two["jobs"]) == (1, 2)
    assert one["weights"] == two["weights"] == 32 * 16 + 16 * 64
    assert one["ratio"] == two["ratio"]
    assert one["scaling"] == 1.0 and two["scaling"] > 0
    pace = one["weights_per_second_and_core"]
    assert pace == pytest.approx(one["weights"] / one["layer_seconds"])
    assert content["extrapolated_by"] == 22
    assert "extrapolated" in capsys.readouterr().out


def test_extrapolation() -> None:
    assert checkpoint.extrapolated(1e6, 64e6, 64, 1.0) == 1.0
    assert checkpoint.extrapolated(1e6, 64e6, 32, 0.5) == 4.0
