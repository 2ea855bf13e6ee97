"""What a run did, put together from its folder: for programs, and as a page for people."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from gyroperm.checkpoints.budget import curve_of
from gyroperm.checkpoints.folder import RunFolder
from gyroperm.checkpoints.journal import read_journal
from gyroperm.checkpoints.page import page
from gyroperm.files import atomic_path
from gyroperm.measures import efficacy
from gyroperm.pattern import Pattern
from gyroperm.report import format_table, pattern_figures, totals, write_json
from gyroperm.solution import shown


def run_report(folder: RunFolder) -> dict[str, Any]:
    """The report of a run, finished or not.

    Parameters
    ----------
    folder : RunFolder

    Returns
    -------
    dict
        Ready for JSON: ``settings``, ``pattern``, ``complete``, ``layers`` (figures, seconds,
        memory, history, histogram and picture of each that is finished), ``left`` (names of those
        that are not), ``totals``, ``sites``, ``allocation`` and ``skipped``.

    Raises
    ------
    FileNotFoundError
        If the folder holds no run.
    ValueError
        If its manifest is damaged.
    """
    manifest = folder.read_manifest()
    if manifest is None:
        raise FileNotFoundError(f"{folder.path} holds no run: it has no {folder.manifest}")
    done = read_journal(folder.journal)
    layers, left = [], []
    for layer in manifest["layers"]:
        record = done.get(f"layer {layer['name']}")
        if record is None:
            left.append(layer["name"])
        else:
            # The journal keeps the time of the whole step; the search's own is in the figures.
            layers.append({**layer, **record, **_with_efficacy(record["figures"])})
    for layer in layers:
        del layer["figures"]
    return {
        "version": manifest["settings"]["version"],
        "source": manifest["source"],
        "output": str(folder.path),
        "complete": "output" in manifest,
        "settings": manifest["settings"],
        "pattern": pattern_figures(Pattern(**manifest["settings"]["pattern"])),
        "layers": layers,
        "left": left,
        "totals": totals(layers),
        "sites": [
            site
            for name, record in done.items()
            if name.startswith("channels ")
            for site in record["sites"]
        ],
        "unsearched": manifest.get("unsearched", {}),
        "allocation": _allocation(manifest, done),
        "skipped": manifest["skipped"],
    }


def _with_efficacy(figures: dict[str, Any]) -> dict[str, Any]:
    """Figures whose efficacy is of what was there before anything moved."""
    sums = (figures[name] for name in ("retained", "identity", "unstructured"))
    return {**figures, "efficacy": efficacy(*sums)}


def _allocation(manifest: dict[str, Any], done: dict[str, Any]) -> dict[str, Any]:
    """How the budget was spread, and what either way would keep before any search."""
    settings = manifest["settings"]
    found = {"kind": settings["allocation"], "target_sparsity": settings["target_sparsity"]}
    curves = {
        name.partition(" ")[2]: curve_of(record)
        for name, record in done.items()
        if name.startswith("curve ")
    }
    chosen = {
        layer["name"]: done[f"layer {layer['name']}"]["vec_ratio"]
        for layer in manifest["layers"]
        if f"layer {layer['name']}" in done
    }
    if not curves or set(curves) != set(chosen):
        return found
    pattern = settings["pattern"]
    uniform = 1.0 - (1.0 - settings["target_sparsity"]) * pattern["m"] / pattern["n"]
    return {
        **found,
        "unpermuted_uniform": math.fsum(curve.retained(uniform) for curve in curves.values()),
        "unpermuted_global": math.fsum(
            curve.retained(chosen[name]) for name, curve in curves.items()
        ),
    }


def write_report(folder: RunFolder) -> dict[str, Any]:
    """Write ``report.json`` and ``report.html`` of a run; returns what the first holds.

    Raises
    ------
    FileNotFoundError, ValueError
        See :func:`run_report`.
    OSError
        If they cannot be written.
    """
    report = run_report(folder)
    write_json(folder.report.with_suffix(".json"), report)
    with atomic_path(folder.report.with_suffix(".html")) as temporary:
        temporary.write_text(page(report), encoding="utf-8")
    return report


def report_text(report: dict[str, Any]) -> str:
    """The table of a report, for a terminal."""
    rows = [
        [
            layer["name"],
            "x".join(map(str, layer["shape"])) + " (in, out)" * layer["transposed"],
            shown(layer["ratio"], ".4f"),
            shown(layer["efficacy"], ".2f", " %"),
            f"{layer['seconds']:.2f}",
            f"{layer['peak_bytes'] / 1e6:.0f} MB",
        ]
        for layer in report["layers"]
    ]
    sums = report["totals"]
    rows.append(
        [
            f"total of {sums['layers']} layers",
            f"{sums['kept']} of {sums['weights']} kept",
            shown(sums["ratio"], ".4f"),
            shown(sums["efficacy"], ".2f", " %"),
            f"{sums['seconds']:.2f}",
            "",
        ]
    )
    headers = ["layer", "shape", "retained/unstructured", "efficacy", "seconds", "memory"]
    lines = [f"{report['pattern']['text']}, method {report['settings']['method']}", ""]
    lines.append(format_table(headers, rows))
    allocation = report["allocation"]
    if "unpermuted_global" in allocation:
        lines += [
            "",
            f"before any search a global allocation keeps {allocation['unpermuted_global']:.6g}, a "
            f"uniform one {allocation['unpermuted_uniform']:.6g}",
        ]
    if report["skipped"]:
        lines += ["", f"left as they are: {len(report['skipped'])} tensors"]
    return "\n".join(lines)


def open_report(path: str | Path) -> RunFolder:
    """The folder of a run, given itself or the ``gyroperm`` folder inside of it."""
    path = Path(path)
    inner = RunFolder(path)
    return inner if inner.manifest.exists() or path.name != "gyroperm" else RunFolder(path.parent)
