"""The picture of a coupling graph: a line for each site, a column for each module."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gyroperm.models.graph import CouplingGraph
    from gyroperm.models.sites import Site

# Inches a column and a line take, and what the letters of a label do.
_COLUMN, _LINE, _LETTER = 0.26, 0.3, 0.056
# No side of a picture has more pixels: readers refuse larger ones.
_PIXELS = 30_000
_FONT = 7

_GREY = "0.55"
_MARKS = {"free": "o", "within block": "s", "whole blocks": "D", "fixed": "o"}


@dataclass(frozen=True)
class Line:
    """One line of a picture.

    Attributes
    ----------
    label : str
    kind : str
        The constraint, which gives the mark.
    colour : str
        Of sites that may move; one for those of all layers alike.
    marks : mapping of str to set of int
        For each module the dimensions that follow, none for vectors alone.
    """

    label: str
    kind: str
    colour: str
    marks: dict[str, set[int]]


def lines_of(graph: CouplingGraph) -> list[Line]:
    """The lines of a graph, the blocks of one family in one, and the skipped axes at the end."""
    lines = []
    colours: dict[str, str] = {}
    for _, alike in groupby(graph.sites, key=lambda s: (s.family, s.constraint, s.reason)):
        sites = list(alike)
        site = sites[0]
        layer = re.sub(r"\d+", "#", site.family)
        colour = colours.setdefault(layer, f"C{len(colours) % 10}")
        size = f"{len(sites)} x {site.size}" if len(sites) > 1 else f"{site.size}"
        kind = "" if site.constraint == "free" else f", {site.constraint}"
        label = f"{site.family} ({size}{kind})"
        lines.append(Line(label, site.constraint, colour, _marks(sites)))
    reasons: dict[str, dict[str, set[int]]] = {}
    for name, reason in graph.skipped.items():
        tensor, _, dim = name.rstrip("]").rpartition("[")
        marks = reasons.setdefault(reason, {})
        marks.setdefault(_module(tensor), set()).add(int(dim))
    return lines + [Line(reason, "fixed", _GREY, marks) for reason, marks in reasons.items()]


def _marks(sites: Iterable[Site]) -> dict[str, set[int]]:
    marks: dict[str, set[int]] = {}
    for site in sites:
        for axis in site.axes:
            dims = marks.setdefault(_module(axis.tensor), set())
            if not axis.tensor.endswith(("bias", "running_mean", "running_var")):
                dims.add(axis.dim)
    return marks


def _module(tensor: str) -> str:
    """The module of a tensor, or the tensor itself where its name says more."""
    module, _, name = tensor.rpartition(".")
    return module if name in ("weight", "bias", "running_mean", "running_var") else tensor


def drawn(graph: CouplingGraph) -> Any:
    """The picture as a matplotlib figure.

    Parameters
    ----------
    graph : CouplingGraph

    Returns
    -------
    matplotlib.figure.Figure
    """
    from matplotlib.figure import Figure

    lines = lines_of(graph)
    present = dict.fromkeys(module for line in lines for module in line.marks)
    modules = [m for m in dict.fromkeys(map(_module, graph.tensors)) if m in present]
    modules = list(dict.fromkeys([*modules, *present]))
    place = {module: k for k, module in enumerate(modules)}
    lines.sort(key=lambda line: (line.colour == _GREY, min(place[m] for m in line.marks)))
    left = _LETTER * max((len(line.label) for line in lines), default=0) + 0.3
    below = _LETTER * max(map(len, modules), default=0) + 0.3
    wide, high = max(_COLUMN * len(modules), 3.5), max(_LINE * len(lines), 0.6)
    width, height = left + wide + 0.2, below + high + 0.8
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((left / width, below / height, wide / width, high / height))
    for row, line in enumerate(lines):
        _draw_line(axes, line, row, place)
    axes.set_xticks(range(len(modules)), modules, rotation=90, fontsize=_FONT)
    axes.set_yticks(range(len(lines)), [line.label for line in lines], fontsize=_FONT)
    axes.set_xlim(-0.6, max(len(modules), wide / _COLUMN) - 0.4)
    axes.set_ylim(max(len(lines), 1) - 0.4, -0.6)
    axes.grid(axis="x", color="0.93", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    figure.text(
        0.1 / width,
        1 - 0.2 / height,
        f"{graph.source}: axes that share an order",
        fontsize=_FONT + 2,
    )
    figure.text(
        0.1 / width,
        1 - 0.4 / height,
        "number: dimension of the weight; small: its vectors alone; round: any order, square: "
        "within each block, diamond: blocks as wholes, hollow: fixed",
        fontsize=_FONT,
        color="0.3",
    )
    return figure


def _draw_line(axes: Any, line: Line, row: int, place: dict[str, int]) -> None:
    fixed = line.kind == "fixed"
    colour = _GREY if fixed else line.colour
    columns = sorted(place[module] for module in line.marks)
    axes.plot(
        [columns[0], columns[-1]],
        [row, row],
        color=colour,
        linewidth=1,
        linestyle=":" if fixed else "-",
        zorder=1,
    )
    for module, dims in line.marks.items():
        axes.plot(
            place[module],
            row,
            marker=_MARKS[line.kind],
            markersize=9 if dims else 4,
            color=colour,
            markerfacecolor="white" if fixed else colour,
            zorder=2,
        )
        axes.text(
            place[module],
            row,
            " ".join(map(str, sorted(dims))),
            fontsize=_FONT - 1 if len(dims) < 2 else _FONT - 3,
            color="black" if fixed else "white",
            ha="center",
            va="center_baseline",
            zorder=3,
        )


def resolution(figure: Any) -> float:
    """Dots an inch: fewer where the picture would be too large for readers."""
    return float(min(150, _PIXELS / max(figure.get_size_inches())))
