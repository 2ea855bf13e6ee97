"""Pictures of a search: quality against time, and a layer before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gyroperm import Solution
from gyroperm.files import atomic_path

_IDENTITY, _GYRO, _AUTO = "0.45", "#d1602b", "#1f5fa8"

# How much of the layer a picture of weights shows: more could not be told apart.
_TILES = 2
_COLUMNS = 64


@dataclass(frozen=True)
class Panel:
    """Solutions of one layer for one pattern.

    Attributes
    ----------
    title : str
    identity, gyro : Solution
    auto : sequence of Solution
        Runs of their own, by ascending time limit.
    """

    title: str
    identity: Solution
    gyro: Solution
    auto: Sequence[Solution]


def save_quality_against_time(path: Path, title: str, panels: Sequence[Panel]) -> None:
    """Draw what a layer retains against the seconds of the search.

    Parameters
    ----------
    path : Path
        The PNG, written whole or not at all.
    title : str
    panels : sequence of Panel
        Drawn side by side.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.8 * len(panels), 4.6), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        _draw_panel(axis, panel)
        axis.set_title(panel.title)
        axis.set_xlabel("search time (s, log scale; compilation excluded)")
    axes[0].set_ylabel("retained / unstructured")
    _save(figure, path)


def _draw_panel(axis: Any, panel: Panel) -> None:
    identity, gyro = panel.identity.ratio, panel.gyro
    axis.axhline(
        identity,
        color=_IDENTITY,
        linestyle="--",
        label=f"identity (no permutation), {identity:.4f}",
    )
    seconds, kept = _rising(gyro)
    label = f"gyro as it rises, {gyro.ratio:.4f} in {gyro.seconds:.2g} s"
    axis.step(seconds, kept, where="post", color=_GYRO, linewidth=1.8, label=label)
    axis.plot(seconds[-1], kept[-1], "s", color=_GYRO)
    last = panel.auto[-1]
    axis.plot(
        [solution.seconds for solution in panel.auto],
        [solution.ratio for solution in panel.auto],
        "o-",
        color=_AUTO,
        linewidth=1.8,
        label=f"auto, a run for each time limit, {last.ratio:.4f} in {last.seconds:.2g} s",
    )
    axis.set_xscale("log")
    axis.grid(True, which="major", alpha=0.3)
    axis.legend(loc="upper left", fontsize=9, framealpha=0.95)
    # Room for the legend above the curves.
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.3 * (high - low))


def _rising(solution: Solution) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The best so far at each improvement, as seconds and retained / unstructured."""
    history = np.array(solution.history, dtype=np.float64)
    kept = np.maximum.accumulate(history[:, 1]) / solution.unstructured
    # A logarithmic axis has no zero.
    return np.maximum(history[:, 0], 1e-3), kept


def save_layer(
    path: Path,
    title: str,
    weights: NDArray[np.floating],
    identity: Solution,
    permuted: Solution,
) -> None:
    """Draw a corner of a layer: as it lies, kept as it lies, and kept once permuted.

    Parameters
    ----------
    path : Path
        The PNG, written whole or not at all.
    title : str
    weights : ndarray of float, shape (R, C)
    identity, permuted : Solution
        Of a pattern whose tiles order their own columns (HiNM).
    """
    from matplotlib.figure import Figure

    magnitude = np.abs(weights)
    tiles = min(_TILES, len(permuted.groups))
    rows = tiles * permuted.tile_rows.shape[1]
    n, m = permuted.pattern.n, permuted.pattern.m
    # Caption, picture, columns to a group, label of the columns.
    pictures = [
        (f"before: the first {tiles} tiles of rows as they lie", magnitude, 1, "column"),
        (
            "kept without permutation, in place\n"
            f"(the layer retains {identity.ratio:.4f} of unstructured)",
            np.where(identity.mask, magnitude, np.nan),
            1,
            "column",
        ),
        (
            f"kept by auto: {tiles} tiles of its rows, packed as a kernel reads them\n"
            f"(the layer retains {permuted.ratio:.4f} of unstructured)",
            _packed(permuted, magnitude, tiles),
            m,
            f"kept vector of the tile; each row keeps {n} of every {m}",
        ),
    ]
    figure = Figure(figsize=(16, 6.6), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(1, len(pictures))
    scale = float(np.quantile(magnitude, 0.99))
    for axis, (caption, picture, group, label) in zip(axes, pictures, strict=True):
        corner = picture[:rows, :_COLUMNS]
        image = _draw_matrix(axis, corner, scale, permuted.tile_rows.shape[1], group)
        axis.set_title(caption, fontsize=10)
        axis.set_xlabel(label)
    axes[0].set_ylabel("row (a line between tiles)")
    axes[-1].set_ylabel("packed row")
    figure.colorbar(image, ax=axes, label="|weight| (pruned weights are white)", extend="max")
    _save(figure, path)


def _packed(solution: Solution, magnitude: NDArray[np.floating], tiles: int) -> Any:
    """The first tiles in packed order, NaN where a weight is pruned."""
    values: Sequence[Any] = solution.permute(magnitude)[:tiles]
    masks: Sequence[Any] = solution.permute(solution.mask.astype(magnitude.dtype))[:tiles]
    blocks = [np.where(mask > 0, value, np.nan) for value, mask in zip(values, masks, strict=True)]
    return np.concatenate(blocks)


def _draw_matrix(axis: Any, picture: NDArray[Any], scale: float, tile: int, group: int) -> Any:
    import matplotlib

    colours = matplotlib.colormaps["YlGnBu"].with_extremes(bad="white")
    image = axis.imshow(
        picture, cmap=colours, vmin=0.0, vmax=scale, interpolation="nearest", aspect="auto"
    )
    for row in range(tile, picture.shape[0], tile):
        axis.axhline(row - 0.5, color="black", linewidth=1.5)
    if group > 1:
        for column in range(group, picture.shape[1], group):
            axis.axvline(column - 0.5, color="0.75", linewidth=0.5)
    return image


def _save(figure: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
