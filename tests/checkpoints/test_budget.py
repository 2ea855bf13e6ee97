"""A budget spread over layers: the same weights, and more saliency."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gyroperm import Pattern
from gyroperm.checkpoints import Job, Settings, prune_checkpoint
from gyroperm.checkpoints.budget import Curve, spread
from small_checkpoints import layers, linear, results, sharded


def kept_by(ratios: dict[str, float], curves: dict[str, Curve], pattern: Pattern) -> dict[str, int]:
    return {
        name: pattern.m * round((1 - ratio) * curves[name].columns / pattern.m)
        for name, ratio in ratios.items()
    }


@given(st.data())
def test_the_best_of_all_spreads(data: st.DataObject) -> None:
    """Concave curves with a point at every step: no other spread of the budget retains more."""
    m = 2
    pattern = Pattern.hinm(1, m, vec_ratio=0.5, vec_size=4)
    curves = {}
    for name in "abc":
        groups = data.draw(st.integers(2, 4))
        gains = sorted(data.draw(st.lists(st.integers(0, 50), min_size=groups, max_size=groups)))
        sums = np.cumsum(gains[::-1])
        points = tuple((m * (i + 1), float(value)) for i, value in enumerate(sums))
        curves[name] = Curve(4, m * groups, points)
    ratios = spread(curves, pattern)
    kept = kept_by(ratios, curves, pattern)
    budget = sum(pattern.kept_columns(c.columns) for c in curves.values())
    assert sum(kept.values()) == budget
    found = sum(dict(curves[name].points)[k] for name, k in kept.items())
    best = max(
        sum(dict(curve.points)[k] for curve, k in zip(curves.values(), choice, strict=True))
        for choice in np.ndindex(*(c.columns // m + 1 for c in curves.values()))
        for choice in [tuple(m * k for k in choice)]
        if min(choice) >= m and sum(choice) == budget
    )
    assert found == best


def test_layers_of_unlike_worth(tmp_path: Path) -> None:
    """A layer ten times as large keeps more, and the whole retains more than uniformly."""
    tensors = {
        f"layers.{i}.weight": linear(32, 64, "F32", i, scale)
        for i, scale in enumerate((0.1, 1.5, 4.0))
    }
    model = sharded(tmp_path / "model", tensors, shards=2)
    pattern = Pattern.hinm(vec_size=8)
    found = {}
    for allocation in ("uniform", "global"):
        settings = Settings(pattern, method="identity", target_sparsity=0.75, allocation=allocation)
        found[allocation] = prune_checkpoint(Job(model, tmp_path / allocation, settings))
    sums = {kind: report["totals"] for kind, report in found.items()}
    assert sums["global"]["kept"] == sums["uniform"]["kept"] == sums["uniform"]["weights"] // 4
    assert sums["global"]["retained"] > 1.05 * sums["uniform"]["retained"]
    ratios = [layer["vec_ratio"] for layer in found["global"]["layers"]]
    assert ratios[0] > ratios[1] > ratios[2]
    allocation = found["global"]["allocation"]
    assert allocation["kind"] == "global" and allocation["target_sparsity"] == 0.75
    assert allocation["unpermuted_uniform"] == pytest.approx(sums["uniform"]["retained"])
    assert allocation["unpermuted_global"] == pytest.approx(sums["global"]["retained"], rel=0.02)


def test_a_spread_does_not_depend_on_workers(tmp_path: Path) -> None:
    model = sharded(tmp_path / "model", layers())
    settings = Settings(
        Pattern.hinm(vec_size=8), method="identity", target_sparsity=0.8, allocation="global"
    )
    for jobs in (1, 2):
        prune_checkpoint(Job(model, tmp_path / str(jobs), settings), jobs=jobs)
    assert results(tmp_path / "1") == results(tmp_path / "2")
