"""Pictures of what methods reach in how much time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality_report import Row
from benchmarks.quality_runs import Measured
from gyroperm.files import atomic_path

# A logarithmic axis has no zero.
_LEAST_SECONDS = 1e-3

# Ten colours tell ten methods apart; then the marker changes.
_STYLES = [(f"C{i}", marker) for marker in "os^D" for i in range(10)]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (seconds, efficacy) points that none other reaches or exceeds in less time, ascending."""
    front: list[tuple[float, float]] = []
    for seconds, efficacy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or efficacy > front[-1][1]:
            front.append((seconds, efficacy))
    return front


def save_pareto(path: Path, title: str, rows: Sequence[Row], measured: Sequence[Measured]) -> None:
    """Draw efficacy against seconds for one instance and pattern, with the Pareto front.

    Parameters
    ----------
    path : Path
        The PNG, written whole or not at all.
    title : str
    rows : sequence of Row
        The medians over seeds, at least one, joined by a line for each method.
    measured : sequence of Measured
        The single runs, drawn small.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    axis = figure.subplots()
    for i, method in enumerate(dict.fromkeys(row.method for row in rows)):
        _draw_method(
            axis,
            method,
            _STYLES[i % len(_STYLES)],
            [row for row in rows if row.method == method],
            [one for one in measured if one.run.method == method],
        )
    _draw_front(axis, rows)
    axis.set_xscale("log")
    axis.set_xlabel("search time (s, log scale; compilation excluded)")
    axis.set_ylabel("efficacy (%): 0 no permutation, 100 unstructured")
    axis.set_title(title, fontsize=10)
    axis.grid(True, which="major", alpha=0.3)
    # Beside the picture: many methods would cover their own points.
    figure.legend(loc="outside right upper", fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _draw_method(
    axis: Any,
    method: str,
    style: tuple[str, str],
    rows: Sequence[Row],
    measured: Sequence[Measured],
) -> None:
    colour, marker = style
    axis.scatter(
        [_shown(one.figures["seconds"]) for one in measured],
        [one.figures["efficacy"] for one in measured],
        s=10,
        color=colour,
        alpha=0.5,
        linewidths=0,
    )
    medians = sorted(rows, key=lambda row: row.seconds.median)
    axis.plot(
        [_shown(row.seconds.median) for row in medians],
        [row.efficacy.median for row in medians],
        f"{marker}-",
        color=colour,
        label=f"{method}, medians of {len(rows)} budget{'s' * (len(rows) != 1)}",
    )
    for row in rows:
        if row.budget is None and len(rows) > 1:
            axis.annotate(
                "cut" if row.cut else "converged",
                (_shown(row.seconds.median), row.efficacy.median),
                xytext=(0, -14),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=colour,
            )


def _draw_front(axis: Any, rows: Sequence[Row]) -> None:
    points = [(_shown(row.seconds.median), row.efficacy.median) for row in rows]
    front = pareto_front(points)
    end = max(seconds for seconds, _ in points)
    axis.step(
        [seconds for seconds, _ in front] + [end],
        [efficacy for _, efficacy in front] + [front[-1][1]],
        where="post",
        color="0.4",
        linestyle=":",
        linewidth=1.2,
        label="Pareto front of the medians",
        zorder=1,
    )


def _shown(seconds: float) -> float:
    return max(seconds, _LEAST_SECONDS)
