"""What a report shows of a layer: its magnitudes, and a corner of it before and after."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gyroperm.solution import Solution

_BINS = 40
# Rows and columns of the corner that is pictured, and how many grey values it has.
_ROWS, _COLUMNS, _LEVELS = 32, 64, 127
#: Set in a pixel of what is kept.
KEPT = 128
# A curve of more points looks the same.
_POINTS = 60
_BLOCK = 1 << 20


def portrait(
    saliency: NDArray[np.floating], solution: Solution, exponent: int = 0
) -> dict[str, Any]:
    """The figures of a layer that only someone who holds its weights can tell, for JSON.

    Parameters
    ----------
    saliency : ndarray, shape (R, C, ...)
    solution : Solution
    exponent : int
        The magnitudes are ``2**exponent`` times the saliency.

    Returns
    -------
    dict
        ``histogram`` (``top``, the end of the last bin, and the counts of ``all`` and of what is
        ``kept``), ``picture`` (rows and columns, and the pixels of the corner ``before`` and
        ``after`` in base64) and ``history`` (seconds and what was retained).
    """
    matrix = solution.view.matrix([saliency])
    mask = solution.view.matrix([solution.mask])
    return {
        "histogram": _histogram(matrix, mask, exponent),
        "picture": _picture(matrix, mask, solution),
        "history": thinned(solution.history),
    }


def thinned(history: Any) -> list[list[float]]:
    """Some points of a history, the first and the last among them."""
    points = [[round(float(s), 4), float(kept)] for s, kept in history]
    if len(points) <= _POINTS:
        return points
    chosen = np.unique(np.linspace(0, len(points) - 1, _POINTS).astype(int))
    return [points[i] for i in chosen]


def _histogram(
    matrix: NDArray[np.floating], mask: NDArray[np.bool_], exponent: int
) -> dict[str, Any]:
    top = float(matrix.max())
    counts = {"all": np.zeros(_BINS, np.int64), "kept": np.zeros(_BINS, np.int64)}
    rows = max(1, _BLOCK // matrix.shape[1])
    for begin in range(0, len(matrix), rows):
        block, kept = matrix[begin : begin + rows], mask[begin : begin + rows]
        counts["all"] += np.histogram(block, _BINS, (0.0, top or 1.0))[0]
        counts["kept"] += np.histogram(block[kept], _BINS, (0.0, top or 1.0))[0]
    return {
        "top": math.ldexp(top, exponent),
        **{name: count.tolist() for name, count in counts.items()},
    }


def _picture(
    matrix: NDArray[np.floating], mask: NDArray[np.bool_], solution: Solution
) -> dict[str, Any]:
    """The first rows and columns as they lie, and as the hardware reads them."""
    rows = np.arange(min(_ROWS, len(matrix)))
    columns = np.tile(np.arange(min(_COLUMNS, matrix.shape[1])), (len(rows), 1))
    before = _pixels(matrix, mask, rows, columns)
    rows, columns = _packed(solution)
    after = _pixels(matrix, mask, rows, columns)
    return {"before": before, "after": after}


def _packed(solution: Solution) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first packed rows, and of each the first columns of its tile's groups."""
    # A global budget may leave a tile without columns.
    tiles = [t for t, groups in enumerate(solution.groups) if groups.size]
    width = min([_COLUMNS, *(solution.groups[t].size for t in tiles)])
    places = [(row, t) for t in tiles for row in solution.tile_rows[t] if row >= 0][:_ROWS]
    columns = np.zeros((len(places), width), dtype=np.int64)
    for own, (_, t) in zip(columns, places, strict=True):
        own[:] = solution.groups[t].reshape(-1)[:width]
    return np.array([row for row, _ in places], dtype=np.int64), columns


def _pixels(
    matrix: NDArray[np.floating],
    mask: NDArray[np.bool_],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
) -> dict[str, Any]:
    values = np.where(columns >= 0, matrix[rows[:, None], columns], 0.0)
    kept = (columns >= 0) & mask[rows[:, None], columns]
    top = float(values.max(initial=0.0)) or 1.0
    levels = np.rint(_LEVELS * np.sqrt(values / top)).astype(np.uint8)
    pixels = levels | np.where(kept, KEPT, 0).astype(np.uint8)
    return {
        "rows": len(rows),
        "columns": columns.shape[1],
        "pixels": base64.b64encode(pixels.tobytes()).decode(),
    }
