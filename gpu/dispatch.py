"""Which way a product is computed: what was measured on the card, else what the model predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gyroperm.gpu.candidates import DENSE, Candidate, Way, candidates, window_way
from gyroperm.gpu.model import Card, HasTables, Tiles, described, sizes
from gyroperm.gpu.operands import check_layout

if TYPE_CHECKING:
    from gyroperm.gpu.tuned import TunedWays
    from gyroperm.gpu.window import WindowPlan

#: A dense product takes as many bytes as the pruned one saves: it must be so many times as fast.
DENSE_MARGIN = 1.1


class DenseProductWarning(UserWarning):
    """A product runs by cuBLAS on a dense copy of the weights, because that is faster."""


@dataclass(frozen=True)
class Choice:
    """The way that a product is computed.

    Parameters
    ----------
    way : Way
        The kernel and its parameters.
    seconds : float
        What it takes, measured or predicted.
    measured : bool
        Whether the card was timed (:meth:`DeviceMatrix.tune`), else it is a prediction.
    why : str
        A sentence.
    """

    way: Way
    seconds: float
    measured: bool
    why: str


def choose(
    matrix: HasTables,
    n: int,
    layout: str = "features",
    card: Card | None = None,
    tuned: TunedWays | None = None,
    *,
    window: WindowPlan | None = None,
    aligned: bool = True,
    allow_dense: bool = True,
) -> Choice:
    """The way to compute a product that takes the least time.

    Parameters
    ----------
    matrix : HinmMatrix or DeviceMatrix
        ``W``.
    n : int
        N, the columns of X.
    layout : {"features", "tokens"}
        How X and the result lie; transposes are counted where a kernel needs them.
    card : Card
        By default that of CuPy's current device.
    tuned : TunedWays, optional
        What was measured on this card; it goes before predictions.
    window : WindowPlan, optional
        Of the matrix, if it is to be uploaded with one.
    aligned : bool
        Whether all rows of a feature-major X begin on 16 bytes.
    allow_dense : bool
        Whether it may be a dense product, if that is faster by a margin of 10 %.

    Raises
    ------
    ValueError
        If ``n`` is below 1 or the layout is unknown.

    Notes
    -----
    A prediction may be wrong; see :mod:`gyroperm.gpu.model` for where it is rough. It is worst
    for products of a few microseconds, where the latencies of launches decide, and where the
    predictions of two ways are close.
    """
    _check(n, layout)
    card = card if card is not None else _current_card()
    if tuned is not None:
        by_window = None if window is None else window_way(window)
        ways = [
            (way, seconds)
            for way, seconds in tuned.measured(matrix, n, layout, aligned=aligned)
            if (allow_dense or way != DENSE) and (way.kind != "window" or way == by_window)
        ]
        if ways:
            return _chosen(matrix, n, ways, measured=True)
    found = _sorted(candidates(matrix, n, layout, card, window=window, aligned=aligned))
    ways = [(one.way, one.prediction.seconds) for one in found if allow_dense or one.way != DENSE]
    bounds = {one.way: one.prediction.bound_by for one in found}
    return _chosen(matrix, n, ways, measured=False, bounds=bounds)


def explain(
    matrix: HasTables,
    n: int,
    layout: str = "features",
    card: Card | None = None,
    tuned: TunedWays | None = None,
    *,
    window: WindowPlan | None = None,
    aligned: bool = True,
    allow_dense: bool = True,
) -> str:
    """A table of the ways to compute a product, and which is chosen.

    Parameters
    ----------
    matrix, n, layout, card, tuned, window, aligned, allow_dense
        As :func:`choose` takes them. With a card made by hand no device is needed.

    Returns
    -------
    str
        A line for each way, fastest first: what is predicted, the level that bounds it, seconds
        at each level, and what was measured, if it was.
    """
    _check(n, layout)
    card = card if card is not None else _current_card()
    measured = dict(tuned.measured(matrix, n, layout, aligned=aligned)) if tuned else {}
    # Predictions choose among few ways, measurements among all that were tried.
    found = _sorted(
        candidates(matrix, n, layout, card, window=window, aligned=aligned, thorough=bool(measured))
    )
    tiles = Tiles.of(matrix)
    inside = "two of four" if matrix.sparse else "all"
    head = (
        f"{sizes(matrix, n)} ({layout}), {len(tiles.steps)} tiles of {tiles.tile_size} rows, "
        f"{inside} stored of {64 * tiles.total} kept columns, on {card.name}"
    )
    names = ["way", "predicted", "bound by", "memory", "l2", "shared", "tensor", "fixed"]
    table = [[*names, "measured"]] + [_row(one, measured.get(one.way)) for one in found]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
    chosen = choose(
        matrix, n, layout, card, tuned, window=window, aligned=aligned, allow_dense=allow_dense
    )
    return "\n".join([head, *lines, chosen.why])


def dense_message(matrix: HasTables, why: str) -> str:
    """What is said once, where the products of a matrix become dense."""
    return (
        f"a product is computed by cuBLAS on a dense copy of the weights, of "
        f"{Tiles.of(matrix).dense_bytes} bytes: {why} allow_dense=False forbids it."
    )


def _check(n: int, layout: str) -> None:
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    check_layout(layout)


def _current_card() -> Card:
    from gyroperm.gpu.device import card, cupy_module

    return card(cupy_module().cuda.runtime.getDevice())


def _sorted(found: list[Candidate]) -> list[Candidate]:
    return sorted(found, key=lambda one: one.prediction.seconds)


def _chosen(
    matrix: HasTables,
    n: int,
    ways: list[tuple[Way, float]],
    *,
    measured: bool,
    bounds: dict[Way, str] | None = None,
) -> Choice:
    """The choice among ways that are sorted by their seconds."""
    sparse = [(way, seconds) for way, seconds in ways if way != DENSE]
    way, seconds = ways[0]
    if way == DENSE and sparse and sparse[0][1] < DENSE_MARGIN * seconds:
        way, seconds = sparse[0]
    did = "measured" if measured else "predicted"
    why = f"{sizes(matrix, n)} by {way}: {did} {described(seconds)}"
    if bounds:
        why += f", bound by {bounds[way]}"
    others = [(other, time) for other, time in ways if other.kind != way.kind]
    if others:
        why += f"; {others[0][0]} {described(others[0][1])}"
    return Choice(way, seconds, measured, why + ".")


def _row(one: Candidate, measured: float | None) -> list[str]:
    predicted = one.prediction
    levels = (predicted.memory, predicted.l2, predicted.shared, predicted.tensor, predicted.fixed)
    return [
        str(one.way),
        described(predicted.seconds),
        predicted.bound_by,
        *map(described, levels),
        "" if measured is None else described(measured),
    ]
