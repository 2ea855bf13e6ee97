"""The report as one page: no script, nothing from the network, readable on a telephone."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from gyroperm.checkpoints.portrait import KEPT
from gyroperm.solution import shown

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --paper: #fdfdfb; --line: #cfd4da;
  --faint: #68717d; --kept: #1f6fb2; --all: #b9c2cc; --mark: #c2541b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --paper: #15191e; --line: #3a424c;
  --faint: #98a2ae; --kept: #5aa6e0; --all: #4a545f; --mark: #ee8a52; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  margin: 0 auto; max-width: 70rem; padding: 1rem; }
h1 { font-size: 1.4rem; margin: 0.5rem 0; } h2 { font-size: 1.1rem; margin: 2rem 0 0.5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.1rem 1rem; margin: 0; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; width: 100%; }
th, td { padding: 0.25rem 0.6rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
th { color: var(--faint); font-weight: 600; white-space: normal; } tfoot td { font-weight: 600; }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 6rem; }
@media (max-width: 40rem) { table { font-size: 0.72rem; } th, td { padding: 0.2rem 0.3rem; } }
details { border-bottom: 1px solid var(--line); padding: 0.3rem 0; }
summary { cursor: pointer; overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1rem; }
figure { margin: 0.5rem 0; } figcaption { font-size: 0.8rem; color: var(--faint); }
svg { width: 100%; height: auto; display: block; } svg text { font: 11px system-ui, sans-serif;
  fill: var(--faint); }
img { width: 100%; height: auto; image-rendering: pixelated; border: 1px solid var(--line); }
.note { color: var(--mark); }
"""

_WIDTH, _HEIGHT = 320, 150
_LEFT, _BOTTOM, _TOP = 56, 22, 8
# What is pruned fades into the paper, what is kept has the colour of the curves.
_COLOURS = {"kept": (31, 111, 178), "pruned": (150, 150, 150)}


def page(report: Mapping[str, Any]) -> str:
    """The report of a run as HTML.

    Parameters
    ----------
    report : mapping
        Of :func:`gyroperm.checkpoints.report.run_report`.
    """
    title = f"gyroperm: {report['pattern']['text']}"
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        _summary(report),
        "<h2>Layers</h2>",
        _layers(report),
        *_sites(report),
        "<h2>Each layer</h2>",
        *(_layer(layer, number == 0) for number, layer in enumerate(report["layers"])),
        *_skipped(report),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _summary(report: Mapping[str, Any]) -> str:
    settings, sums = report["settings"], report["totals"]
    sparsity = 1.0 - sums["kept"] / sums["weights"] if sums["weights"] else math.nan
    said = {
        "from": report["source"],
        "to": report["output"],
        "state": "whole" if report["complete"] else f"{len(report['left'])} layers are left",
        "method": f"{settings['method']}, seed {settings['seed']}",
        "allocation": _allocation(report["allocation"]),
        "pruned": f"{sums['weights'] - sums['kept']:,} of {sums['weights']:,} weights in "
        f"{sums['layers']} layers ({shown(100 * sparsity, '.2f', ' %')})",
        "retained": f"{shown(sums['ratio'], '.4f')} of unstructured, efficacy "
        f"{shown(sums['efficacy'], '.2f', ' %')}",
        "searched": f"{sums['seconds']:.1f} s in all",
        "version": report["version"],
    }
    items = "".join(f"<dt>{key}</dt><dd>{escape(str(text))}</dd>" for key, text in said.items())
    return f"<dl>{items}</dl>"


def _allocation(allocation: Mapping[str, Any]) -> str:
    if allocation["target_sparsity"] is None:
        return str(allocation["kind"])
    text = f"{allocation['kind']}, for a sparsity of {allocation['target_sparsity']:.4g}"
    if "unpermuted_global" in allocation:
        gain = allocation["unpermuted_global"] / allocation["unpermuted_uniform"] - 1.0
        text += f"; before any search it keeps {100 * gain:+.2f} % against a uniform one"
    return text


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]], foot: Sequence[str] = ()) -> str:
    def cells(row: Sequence[str], kind: str) -> str:
        return "<tr>" + "".join(f"<{kind}>{escape(cell)}</{kind}>" for cell in row) + "</tr>"

    body = "".join(cells(row, "td") for row in rows)
    end = f"<tfoot>{cells(foot, 'td')}</tfoot>" if foot else ""
    return (
        f'<div class="wide"><table><thead>{cells(headers, "th")}</thead>'
        f"<tbody>{body}</tbody>{end}</table></div>"
    )


def _layers(report: Mapping[str, Any]) -> str:
    # What was reached comes first: a telephone shows so much without scrolling.
    headers = (
        *("layer", "retained / unstructured", "efficacy", "seconds"),
        *("shape", "vec_ratio", "memory"),
    )
    rows = [
        [
            layer["name"],
            shown(layer["ratio"], ".4f"),
            shown(layer["efficacy"], ".2f", " %"),
            f"{layer['seconds']:.2f}",
            "x".join(map(str, layer["shape"])) + " (in, out)" * layer["transposed"],
            f"{layer['vec_ratio']:.4g}",
            f"{layer['peak_bytes'] / 1e6:.0f} MB",
        ]
        for layer in report["layers"]
    ]
    sums = report["totals"]
    foot = [
        *(f"{sums['layers']} layers", shown(sums["ratio"], ".4f")),
        *(shown(sums["efficacy"], ".2f", " %"), f"{sums['seconds']:.2f}", "", "", ""),
    ]
    return _table(headers, rows, foot)


def _sites(report: Mapping[str, Any]) -> list[str]:
    if not report["sites"] and not report["unsearched"]:
        return []
    rows = [
        [
            *(site["name"], str(site["size"]), str(len(site["layers"]))),
            *(f"{site['retained']:.6g}", f"{site['identity']:.6g}"),
            *(shown(site["efficacy"], ".2f", " %"), f"{site['seconds']:.2f}"),
        ]
        for site in report["sites"]
    ]
    headers = (
        *("channels", "elements", "weights", "retained", "unpermuted"),
        *("efficacy", "seconds"),
    )
    left = "".join(
        f"<li>{escape(name)}: {escape(why)}</li>" for name, why in report["unsearched"].items()
    )
    return [
        "<h2>Reordered channels</h2>",
        _table(headers, rows),
        f"<ul>{left}</ul>" if left else "",
    ]


def _layer(layer: Mapping[str, Any], is_open: bool) -> str:
    plots = [
        ("retained over the seconds of the search", _curve(layer["history"])),
        ("|W|: all weights, and those that are kept", _histogram(layer["histogram"])),
        ("a corner as it lies; kept weights are blue", _picture(layer["picture"]["before"])),
        ("the same as the hardware reads it", _picture(layer["picture"]["after"])),
    ]
    figures = "".join(
        f"<figure>{plot}<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, plot in plots
        if plot
    )
    return (
        f"<details{' open' if is_open else ''}><summary>{escape(layer['name'])}: "
        f"{shown(layer['ratio'], '.4f')}</summary>"
        f'<div class="plots">{figures}</div></details>'
    )


def _skipped(report: Mapping[str, Any]) -> list[str]:
    if not report["skipped"]:
        return []
    rows = [
        [one["name"], "x".join(map(str, one["shape"])), one["dtype"], one["reason"]]
        for one in report["skipped"]
    ]
    table = _table(("tensor", "shape", "dtype", "why"), rows)
    return [
        f"<h2>Left as they are</h2><details><summary>{len(rows)} tensors</summary>{table}</details>"
    ]


def _svg(content: str, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{content}</svg>"
    )


def _axes(left: str, right: str, low: str, high: str) -> str:
    bottom = _HEIGHT - _BOTTOM
    return (
        f'<path d="M{_LEFT} {_TOP}V{bottom}H{_WIDTH - 4}" fill="none" stroke="var(--line)"/>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 6}">{left}</text>'
        f'<text x="{_WIDTH - 4}" y="{_HEIGHT - 6}" text-anchor="end">{right}</text>'
        f'<text x="{_LEFT - 4}" y="{bottom}" text-anchor="end">{low}</text>'
        f'<text x="{_LEFT - 4}" y="{_TOP + 9}" text-anchor="end">{high}</text>'
    )


def _short(value: float) -> str:
    """At least four digits of a number in little room: 13.25 k rather than 1.325e+04."""
    for unit, prefix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if 10 * unit <= value < 1e12:
            return f"{value / unit:.4g}{prefix}"
    return f"{value:.4g}"


def _curve(history: Sequence[Sequence[float]]) -> str:
    """What was retained over time, as steps."""
    if len(history) < 2:
        return ""
    times, values = np.array(history).T
    span = float(times[-1] - times[0]) or 1.0
    low, high = float(values.min()), float(values.max())
    x = _LEFT + (times - times[0]) / span * (_WIDTH - 4 - _LEFT)
    room = _HEIGHT - _BOTTOM - _TOP
    y = _HEIGHT - _BOTTOM - (values - low) / ((high - low) or 1.0) * room
    steps = "".join(f"H{a:.1f}V{b:.1f}" for a, b in zip(x[1:], y[1:], strict=True))
    path = f'<path d="M{x[0]:.1f} {y[0]:.1f}{steps}" fill="none" stroke="var(--kept)"/>'
    axes = _axes(f"{times[0]:.2g} s", f"{times[-1]:.3g} s", _short(low), _short(high))
    return _svg(axes + path, "retained saliency over time")


def _histogram(histogram: Mapping[str, Any]) -> str:
    top = max(histogram["all"]) or 1
    bins = len(histogram["all"])
    width = (_WIDTH - 4 - _LEFT) / bins
    room = _HEIGHT - _BOTTOM - _TOP
    bars = []
    for kind in ("all", "kept"):
        shape = "".join(
            f"M{_LEFT + i * width:.1f} {_HEIGHT - _BOTTOM}v{-room * count / top:.1f}h{width:.1f}"
            f"V{_HEIGHT - _BOTTOM}z"
            for i, count in enumerate(histogram[kind])
            if count
        )
        bars.append(f'<path d="{shape}" fill="var(--{kind})"/>')
    axes = _axes("0", f"{histogram['top']:.3g}", "0", _short(top))
    return _svg("".join(bars) + axes, "histogram of the magnitudes")


def _picture(corner: Mapping[str, Any]) -> str:
    pixels = np.frombuffer(base64.b64decode(corner["pixels"]), np.uint8)
    if not pixels.size:
        return ""
    pixels = pixels.reshape(corner["rows"], corner["columns"])
    kept = (pixels & KEPT) > 0
    strength = (pixels & (KEPT - 1))[..., None] / (KEPT - 1)
    colours = np.where(kept[..., None], _COLOURS["kept"], _COLOURS["pruned"])
    rgb = np.rint(255 - strength * (255 - colours)).astype(np.uint8)
    data = base64.b64encode(_png(rgb)).decode()
    size = f'width="{corner["columns"]}" height="{corner["rows"]}"'
    return f'<img {size} alt="a corner of the layer" src="data:image/png;base64,{data}">'


def _png(rgb: np.ndarray) -> bytes:
    """A picture in the Portable Network Graphics format."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    height, width, _ = rgb.shape
    # Eight bits of each of three colours; every line begins with the filter 0, none.
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    lines = b"".join(b"\0" + line.tobytes() for line in rgb)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines, 9))
        + chunk(b"IEND", b"")
    )
