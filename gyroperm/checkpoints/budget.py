"""A budget of weights for a whole model, spread over its layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gyroperm.checkpoints.tasks import Placed
from gyroperm.engine import solve
from gyroperm.pattern import Pattern

# Shares of the vectors at which a layer's curve is measured.
_SHARES = tuple(k / 16 for k in (1, 2, 3, 4, 6, 8, 10, 12, 14, 16))


@dataclass(frozen=True)
class Curve:
    """How much saliency a layer retains for the number of vectors that a tile keeps.

    Attributes
    ----------
    rows : int
        What a vector of all tiles costs.
    columns : int
        The most vectors that a tile can keep: the columns, padded to groups of m.
    points : tuple of (int, float)
        Vectors kept and saliency retained, ascending.
    """

    rows: int
    columns: int
    points: tuple[tuple[int, float], ...]

    def steps(self, m: int) -> list[tuple[float, int]]:
        """For each further group of m vectors beyond the first: its gain per weight, and which."""
        hull = _upper_hull([(0, 0.0), *self.points])
        places = np.arange(1, self.columns // m) * m
        kept = np.array([k for k, _ in hull])
        slopes = np.diff([value for _, value in hull]) / np.diff(kept) / self.rows
        segment = np.searchsorted(kept, places, side="right") - 1
        segment = np.minimum(segment, len(slopes) - 1)
        return [(float(slopes[s]), int(k)) for s, k in zip(segment, places, strict=True)]

    def retained(self, vec_ratio: float) -> float:
        """What the layer retains, unpermuted, between the measured points by a straight line."""
        kept = (1.0 - vec_ratio) * self.columns
        known = [(0, 0.0), *self.points]
        return float(np.interp(kept, [k for k, _ in known], [value for _, value in known]))


def _upper_hull(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """The least concave curve above some points."""
    hull: list[tuple[int, float]] = []
    for x, y in points:
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if (y1 - y0) * (x - x0) > (y - y0) * (x1 - x0):
                break
            hull.pop()
        hull.append((x, y))
    return hull


def spread(curves: Mapping[str, Curve], pattern: Pattern) -> dict[str, float]:
    """The ``vec_ratio`` of each layer that keeps the most in all, for the weights of a uniform one.

    What a layer keeps rises less and less with the number of its vectors, so the groups of
    vectors that bring the most per weight are taken one after the other, from whichever layer,
    until as many weights are kept as with the same ``vec_ratio`` in every layer.

    Parameters
    ----------
    curves : mapping of str to Curve
    pattern : Pattern
        With the uniform ``vec_ratio``.

    Returns
    -------
    dict of str to float
    """
    m = pattern.m
    left = sum(c.rows * (pattern.kept_columns(c.columns) - m) for c in curves.values())
    kept = dict.fromkeys(curves, m)
    # Within a layer gains only fall, and equal ones stay in their order.
    steps = sorted(
        ((gain, name) for name, curve in curves.items() for gain, _ in curve.steps(m)),
        key=lambda step: -step[0],
    )
    for _, name in steps:
        cost = curves[name].rows * m
        if cost <= left:
            left -= cost
            kept[name] += m
    return {name: 1.0 - kept[name] / curves[name].columns for name in curves}


@dataclass(frozen=True)
class CurveTask:
    """Measure what a layer retains, unpermuted, at several numbers of vectors."""

    layer: Placed
    pattern: Pattern

    @property
    def name(self) -> str:
        """By which the journal knows it."""
        return f"curve {self.layer.tensor}"

    @property
    def weights(self) -> int:
        """How much there is to measure."""
        return self.layer.size

    def run(self, threads: int | None) -> dict[str, Any]:
        """Do it."""
        saliency = self.layer.saliency()
        matrix = saliency.reshape(len(saliency), -1)
        columns = self.pattern.padded_columns(matrix.shape[1])
        m = self.pattern.m
        points = []
        for kept in sorted({max(m, int(share * columns) // m * m) for share in _SHARES}):
            pattern = replace(self.pattern, vec_ratio=1.0 - kept / columns)
            solution = solve(matrix, saliency=matrix, pattern=pattern, method="identity")
            points.append([kept, solution.retained])
        return {"rows": len(matrix), "columns": columns, "points": points}


def curve_of(record: Mapping[str, Any]) -> Curve:
    """A curve as the journal has it."""
    points = tuple((int(kept), float(value)) for kept, value in record["points"])
    return Curve(int(record["rows"]), int(record["columns"]), points)
