"""What the demo found, as tables for people and as files for programs."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.embeddings import Agreement
from benchmarks.solution_store import Solved
from gyroperm import efficacy
from gyroperm.files import atomic_path


@dataclass(frozen=True)
class Total:
    """Solutions of several layers by one method, summed.

    Attributes
    ----------
    pattern, method : str
    layers : int
    ratio : float
        Summed retained / summed unstructured.
    efficacy : float
        Of the summed measures, in percent.
    seconds : float
        All searches together, compilation excluded.
    from_store : int
        How many of them were solved by an earlier run.
    """

    pattern: str
    method: str
    layers: int
    ratio: float
    efficacy: float
    seconds: float
    from_store: int


@dataclass(frozen=True)
class Compared:
    """Embeddings of a model pruned by one method against those of the dense model."""

    pruned: str
    pattern: str
    method: str
    agreement: Agreement


def total(pattern: str, solved: Sequence[Solved]) -> Total:
    """Sum the solutions of one pattern and method."""
    solutions = [s.solution for s in solved]
    retained = math.fsum(s.retained for s in solutions)
    identity = math.fsum(s.identity for s in solutions)
    unstructured = math.fsum(s.unstructured for s in solutions)
    return Total(
        pattern=pattern,
        method=solved[0].task.method,
        layers=len(solved),
        ratio=retained / unstructured,
        efficacy=efficacy(retained, identity, unstructured),
        seconds=math.fsum(s.seconds for s in solutions),
        from_store=sum(s.from_store for s in solved),
    )


def totals_table(totals: Iterable[Total]) -> str:
    """A row for each pattern and method."""
    lines = ["pattern      method    layers  retained/unstructured  efficacy  search time"]
    lines += [
        f"{t.pattern:<12} {t.method:<9} {t.layers:>6}  {t.ratio:>21.4f}  "
        f"{t.efficacy:>6.2f} %  {t.seconds:>9.1f} s"
        for t in totals
    ]
    return "\n".join(lines)


def layers_table(pattern: str, prefix: str, solved: Sequence[Solved]) -> str:
    """A row for each layer, and one for their sums: what each method kept, efficacy, seconds.

    Parameters
    ----------
    pattern : str
        The pattern of all solutions.
    prefix : str
        What the names of the layers have in common, left out of the table.
    solved : sequence of Solved
        Each layer by each method.
    """
    methods = list(dict.fromkeys(s.task.method for s in solved))
    layers = list(dict.fromkeys(s.task.layer for s in solved))
    found = {(s.task.layer, s.task.method): s.solution for s in solved}
    rows = [["", *methods]]
    for layer in layers:
        solutions = [found[layer, method] for method in methods]
        cells = [_cell(s.ratio, s.efficacy, s.seconds) for s in solutions]
        rows.append([layer.removeprefix(prefix), *cells])
    sums = [total(pattern, [s for s in solved if s.task.method == method]) for method in methods]
    rows.append(["all of them", *(_cell(t.ratio, t.efficacy, t.seconds) for t in sums)])
    return "\n".join(
        f"{row[0]:<23}" + "".join(f"  {c:<26}" for c in row[1:]).rstrip() for row in rows
    )


def _cell(ratio: float, efficacy: float, seconds: float) -> str:
    return f"{ratio:.4f}  {efficacy:6.2f} %  {seconds:6.2f} s"


def embeddings_table(compared: Iterable[Compared]) -> str:
    """A row for each pruned model."""
    lines = ["pruned layers  pattern      method    mean cosine  rank correlation"]
    lines += [
        f"{c.pruned:<14} {c.pattern:<12} {c.method:<9} {c.agreement.mean_cosine:>11.4f}  "
        f"{c.agreement.rank_correlation:>16.4f}"
        for c in compared
    ]
    return "\n".join(lines)


def solution_row(pattern: str, solved: Solved) -> dict[str, Any]:
    """The measures of one solution, as one row of a file."""
    task, solution = solved.task, solved.solution
    rows, columns = solution.mask.shape
    return {
        "layer": task.layer,
        "rows": rows,
        "columns": columns,
        "pattern": pattern,
        "method": task.method,
        "time_limit": task.time_limit,
        "seed": task.seed,
        "retained": solution.retained,
        "identity": solution.identity,
        "unstructured": solution.unstructured,
        "basis": solution.basis,
        "ratio": solution.ratio,
        "efficacy": solution.efficacy,
        "seconds": solution.seconds,
        "from_store": solved.from_store,
    }


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows of the same keys as CSV, whole or not at all."""
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
