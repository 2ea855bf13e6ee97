"""What a run did, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from gyroperm import measures
from gyroperm.files import atomic_path
from gyroperm.pattern import Pattern
from gyroperm.selection import Layer, Skipped
from gyroperm.solution import Solution, shown

_NAMES_SHOWN = 3

_SUMMED = ("retained", "identity", "unstructured", "kept", "weights", "seconds")


def format_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text: the first to the left, the others to the right, a rule below the headers.

    Parameters
    ----------
    headers : sequence of str
    rows : sequence of sequence of str
        As many cells in each as there are headers.
    """
    lines = [list(headers), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        ).rstrip()
        for line in lines
    )


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON, whole or not at all.

    NaN and infinity become null; a dataclass becomes an object of its fields.
    """
    text = json.dumps(_finite(content), indent=2, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if is_dataclass(content) and not isinstance(content, type):
        return _finite(asdict(content))
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content


def pattern_figures(pattern: Pattern) -> dict[str, Any]:
    """A pattern's parts, with its name and nominal sparsity."""
    return {
        "name": pattern.name,
        "text": str(pattern),
        "sparsity": pattern.sparsity,
        **asdict(pattern),
    }


def solution_figures(solution: Solution) -> dict[str, Any]:
    """A solution's measures, under their usual names; efficacy in percent, the rest as they are."""
    masks = solution.mask if solution.view.listed else [solution.mask]
    return {
        "method": solution.method,
        "seed": solution.seed,
        "retained": solution.retained,
        "identity": solution.identity,
        "unstructured": solution.unstructured,
        "basis": solution.basis,
        "ratio": solution.ratio,
        "efficacy": solution.efficacy,
        "bound": solution.bound,
        "bound_kind": solution.bound_kind,
        "gap": solution.gap,
        "gap_points": solution.gap_points,
        "status": solution.status,
        "lost": solution.lost,
        "infeasible": solution.infeasible,
        "kept": sum(int(mask.sum()) for mask in masks),
        "weights": sum(mask.size for mask in masks),
        "seconds": solution.seconds,
    }


def solution_json(solution: Solution) -> str:
    """A stored solution's pattern, shapes and measures as JSON; NaN becomes null."""
    content = {
        "pattern": pattern_figures(solution.pattern),
        "shapes": solution.view.shapes,
        **solution_figures(solution),
    }
    return json.dumps(_finite(content), indent=2, allow_nan=False)


def totals(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums over the figures of layers, and the ratio and efficacy of those sums."""
    sums = {
        name: math.fsum(figures[name] for figures in layers)
        if name not in ("kept", "weights")
        else sum(figures[name] for figures in layers)
        for name in _SUMMED
    }
    retained, identity, unstructured = (
        sums[name] for name in ("retained", "identity", "unstructured")
    )
    ratio = retained / unstructured if unstructured else math.nan
    efficacy = measures.efficacy(retained, identity, unstructured)
    return {"layers": len(layers), **sums, "ratio": ratio, "efficacy": efficacy}


@dataclass(frozen=True)
class LayerResult:
    """What was found for a layer.

    Attributes
    ----------
    layer : Layer
    figures : dict
        From :func:`solution_figures`.
    interrupted : bool
        Whether Ctrl-C cut its search short, or left it without one (method ``identity``).
    """

    layer: Layer
    figures: dict[str, Any]
    interrupted: bool = False


@dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes
    ----------
    header : dict
        Version, files and settings, as they go into the JSON.
    pattern : Pattern
    layers : list of LayerResult
    skipped : list of Skipped
    interrupted : bool
        Whether Ctrl-C was pressed.
    """

    header: dict[str, Any]
    pattern: Pattern
    layers: list[LayerResult]
    skipped: list[Skipped]
    interrupted: bool

    @property
    def totals(self) -> dict[str, Any]:
        """Sums over the layers, and the ratio and efficacy of those sums."""
        return totals([result.figures for result in self.layers])

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            **self.header,
            "pattern": pattern_figures(self.pattern),
            "interrupted": self.interrupted,
            "layers": [
                {
                    "name": result.layer.name,
                    "shape": result.layer.tensor.shape,
                    "dtype": result.layer.tensor.dtype,
                    "transposed": result.layer.transposed,
                    "interrupted": result.interrupted,
                    **result.figures,
                }
                for result in self.layers
            ],
            "totals": self.totals,
            "skipped": [
                {
                    "name": skipped.tensor.name,
                    "shape": skipped.tensor.shape,
                    "dtype": skipped.tensor.dtype,
                    "reason": skipped.reason,
                }
                for skipped in self.skipped
            ],
        }

    def text(self) -> str:
        """The table, and what was skipped."""
        parts = [f"{self.pattern}, method {self.header['method']}", self._table()]
        if self.skipped:
            parts.append(skipped_summary(self.skipped))
        return "\n\n".join(parts)

    def _table(self) -> str:
        headers = ["layer", "shape", "retained/unstructured", "efficacy", "seconds"]
        rows = [self._row(result) for result in self.layers]
        totals = self.totals
        count = f"total of {totals['layers']} layer{'s' * (totals['layers'] != 1)}"
        weights = f"{totals['kept']} of {totals['weights']} kept"
        rows.append([count, weights, *_measured(totals)])
        if self.interrupted:
            headers.append("interrupted")
            rows = [row if len(row) == len(headers) else [*row, ""] for row in rows]
        return format_table(headers, rows)

    def _row(self, result: LayerResult) -> list[str]:
        shape = "x".join(map(str, result.layer.tensor.shape))
        shape += " (in, out)" if result.layer.transposed else ""
        row = [result.layer.name, shape, *_measured(result.figures)]
        if result.interrupted:
            left = result.figures["method"] == "identity" != self.header["method"]
            row.append("not permuted" if left else "best so far")
        return row


def _measured(figures: dict[str, Any]) -> list[str]:
    return [
        shown(figures["ratio"], ".4f"),
        shown(figures["efficacy"], ".2f", " %"),
        f"{figures['seconds']:.2f}",
    ]


def skipped_summary(skipped: Sequence[Skipped]) -> str:
    """The skipped tensors by reason: how many, and a few of their names."""
    by_reason: dict[str, list[str]] = {}
    for tensor in skipped:
        by_reason.setdefault(tensor.reason, []).append(tensor.tensor.name)
    lines = [f"skipped, and left as they are: {len(skipped)} tensor{'s' * (len(skipped) != 1)}"]
    for reason, names in by_reason.items():
        shown = ", ".join(names[:_NAMES_SHOWN]) + ", ..." * (len(names) > _NAMES_SHOWN)
        lines.append(f"{len(names):5}  {reason}: {shown}")
    return "\n".join(lines)
