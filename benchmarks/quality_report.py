"""Runs of several seeds put together, and their tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.instances import PATTERNS
from benchmarks.quality_runs import Failure, Measured
from benchmarks.spread import Spread
from benchmarks.variants import SINGLE
from gyroperm.report import format_table


@dataclass(frozen=True)
class Row:
    """The runs of one instance, pattern, method and budget.

    Attributes
    ----------
    instance, pattern, method : str
    budget : float or None
        The time limit in seconds; None for runs to convergence.
    seeds : tuple of int
    efficacy : Spread
        In percent.
    ratio : Spread
        Retained / unstructured.
    to_best : float
        How far the median of what is retained lies below the best known, as a fraction of that.
    to_best_points : float
        The same in points of efficacy.
    to_bound : float
        How far the median of what is retained lies below the proven bound, as a fraction of it.
    to_bound_points : float
        The same in points of efficacy.
    seconds : Spread
        Of the search, compilation excluded.
    cut : int
        Runs to convergence that were ended before.
    """

    instance: str
    pattern: str
    method: str
    budget: float | None
    seeds: tuple[int, ...]
    efficacy: Spread
    ratio: Spread
    to_best: float
    to_best_points: float
    to_bound: float
    to_bound_points: float
    seconds: Spread
    cut: int

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON, the budget as seconds or ``"converged"``."""
        return {**asdict(self), "budget": "converged" if self.budget is None else self.budget}


def summarise(
    measured: Sequence[Measured],
    known: Sequence[Measured] = (),
    *,
    best: Mapping[tuple[str, str], float] | None = None,
    bounds: Mapping[tuple[str, str], float] | None = None,
) -> list[Row]:
    """A row for each instance, pattern, method and budget, in the order of their first runs.

    Parameters
    ----------
    measured : sequence of Measured
    known : sequence of Measured
        Further runs, that count for the best known only.
    best, bounds : mapping, optional
        What else is known for each (instance, pattern): the most that was ever retained, and an
        upper bound besides those of the runs.
    """
    most = dict(best or {})
    least = dict(bounds or {})
    for one in (*measured, *known):
        case = one.run.instance, one.run.pattern
        most[case] = max(most.get(case, 0.0), one.figures["retained"])
        least[case] = min(least.get(case, math.inf), one.figures["bound"])
    groups: dict[tuple[str, str, str, float | None], list[Measured]] = {}
    for one in measured:
        run = one.run
        groups.setdefault((run.instance, run.pattern, run.method, run.budget), []).append(one)
    return [_row(*key, runs, most[key[:2]], least[key[:2]]) for key, runs in groups.items()]


def _row(
    instance: str,
    pattern: str,
    method: str,
    budget: float | None,
    runs: Sequence[Measured],
    best: float,
    bound: float,
) -> Row:
    def spread(name: str) -> Spread:
        return Spread.of([one.figures[name] for one in runs])

    def points(lost: float) -> float:
        return 100.0 * lost / room if room > 0 else math.nan

    retained = spread("retained").median
    figures = runs[0].figures
    room = figures["unstructured"] - figures["identity"]
    return Row(
        instance=instance,
        pattern=pattern,
        method=method,
        budget=budget,
        seeds=tuple(one.run.seed for one in runs),
        efficacy=spread("efficacy"),
        ratio=spread("ratio"),
        to_best=(best - retained) / best if best > 0 else 0.0,
        to_best_points=points(best - retained),
        to_bound=(bound - retained) / bound if bound > 0 else 0.0,
        to_bound_points=points(bound - retained),
        seconds=spread("seconds"),
        cut=sum(one.cut for one in runs),
    )


#: Columns of the tables, and how to read them.
LEGEND = (
    "efficacy, ret./unstr.: medians over seeds; retained against no permutation (0 %) and "
    "unstructured (100 %)\n"
    "to best: below the best known for the case, as a share of it and in points of efficacy\n"
    "to bound: below the proven bound, likewise\n"
    "seconds: median (least..greatest) of the search, compilation excluded"
)


def case_table(rows: Sequence[Row], peaks: Mapping[str, int] | None = None) -> str:
    """A row for each method and budget of one instance and pattern.

    Parameters
    ----------
    rows : sequence of Row
        Of one instance and pattern.
    peaks : mapping of str to int, optional
        The peak memory by method, in bytes.
    """
    headers = ["method", "budget", "efficacy", "ret./unstr.", "to best", "points"]
    headers += ["to bound", "points", "seconds"] + ["peak MiB"] * bool(peaks)
    table = []
    for row in rows:
        cells = [
            row.method,
            _budget([row]),
            _percent(row.efficacy.median, 2),
            f"{row.ratio.median:.4f}",
            _percent(100 * row.to_best, 3),
            f"{row.to_best_points:.2f}",
            _percent(100 * row.to_bound, 3),
            f"{row.to_bound_points:.2f}",
            row.seconds.text(".3f"),
        ]
        if peaks:
            cells.append(f"{peaks[row.method] / 2**20:.0f}" if row.method in peaks else "-")
        table.append(cells)
    return format_table(headers, table)


def _budget(rows: Sequence[Row]) -> str:
    """The budget of rows of one method and budget."""
    if rows[0].method in SINGLE:
        return "-"
    if rows[0].budget is not None:
        return f"{rows[0].budget:g} s"
    cut, runs = sum(row.cut for row in rows), sum(len(row.seeds) for row in rows)
    return f"cut, {cut} of {runs}" if cut else "converged"


def _percent(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f} %"


def tables(
    rows: Sequence[Row],
    shapes: Mapping[str, str],
    peaks: Mapping[tuple[str, str], Mapping[str, int]] | None = None,
) -> str:
    """A table for each instance and pattern, under its name, shape and pattern.

    Parameters
    ----------
    rows : sequence of Row
    shapes : mapping of str to str
        Of the instances, for people.
    peaks : mapping, optional
        For each (instance, pattern), the peak memory by method, in bytes.
    """
    parts = []
    for instance, label in dict.fromkeys((row.instance, row.pattern) for row in rows):
        own = [row for row in rows if (row.instance, row.pattern) == (instance, label)]
        heading = f"{instance} ({shapes[instance]}), {label}"
        if str(PATTERNS[label]) != label:
            heading += f": {PATTERNS[label]}"
        found = (peaks or {}).get((instance, label))
        parts.append(f"{heading}\n{case_table(own, found)}")
    return "\n\n".join(parts)


def overview_table(rows: Sequence[Row]) -> str:
    """A row for each method and budget, over all instances and patterns."""
    headers = [
        "method",
        "budget",
        "cases",
        "mean efficacy",
        "mean points to best",
        "seconds in all",
    ]
    table = []
    for method, budget in dict.fromkeys((row.method, row.budget) for row in rows):
        own = [row for row in rows if (row.method, row.budget) == (method, budget)]
        table.append(
            [
                method,
                _budget(own),
                str(len(own)),
                _percent(statistics.fmean(row.efficacy.median for row in own), 2),
                f"{statistics.fmean(row.to_best_points for row in own):.2f}",
                f"{math.fsum(row.seconds.median for row in own):.2f}",
            ]
        )
    return format_table(headers, table)


def failures_text(failures: Sequence[Failure]) -> str:
    """A line for each method and pattern that is not for it, then for each failure's message."""
    refused: dict[str, list[str]] = {}
    for one in failures:
        if one.refused:
            patterns = refused.setdefault(one.run.method, [])
            patterns += [one.run.pattern] * (one.run.pattern not in patterns)
    lines = [f"{method} does not take {', '.join(ps)}" for method, ps in refused.items()]
    failed = [
        f"failed: {f.run.method} on {f.run.instance}, {f.run.pattern}: {f.error}"
        for f in failures
        if not f.refused
    ]
    return "\n".join([*lines, *dict.fromkeys(failed)])
