"""The ways to compute a product, each with what the model predicts for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gyroperm.gpu import model
from gyroperm.gpu.decode import MAX_COLUMNS, DecodePlan, most_steps
from gyroperm.gpu.model import Card, HasTables, Prediction, Tiles
from gyroperm.gpu.spmm import Blocking, blockings
from gyroperm.gpu.window import WindowPlan

_WINDOW = ("group", "warps_m", "block_n", "slots", "phase_loads", "ahead", "blocks")


@dataclass(frozen=True)
class Way:
    """A kernel and what may be chosen of it.

    Parameters
    ----------
    kind : {"spmm", "window", "decode", "dense"}
        "dense" is cuBLAS, on a dense copy of the weights.
    parameters : tuple of (str, int)
        Of :class:`~gyroperm.gpu.spmm.Blocking`, of a :class:`~gyroperm.gpu.window.WindowBlocking`
        or of :meth:`DecodePlan.of`, sorted by name.
    """

    kind: str
    parameters: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, kind: str, **parameters: int) -> Way:
        """A way by the names of its parameters."""
        return cls(kind, tuple(sorted(parameters.items())))

    def __str__(self) -> str:
        chosen = ", ".join(f"{name}={value}" for name, value in self.parameters)
        return f"{self.kind}({chosen})" if chosen else self.kind


DENSE = Way("dense")


@dataclass(frozen=True)
class Candidate:
    """A way and its prediction, transposes of token-major operands counted."""

    way: Way
    prediction: Prediction


def candidates(
    matrix: HasTables,
    n: int,
    layout: str,
    card: Card,
    *,
    window: WindowPlan | None = None,
    aligned: bool = True,
    thorough: bool = False,
) -> list[Candidate]:
    """The ways to compute a product, those that are likelier before others of equal time.

    Parameters
    ----------
    matrix : HinmMatrix or DeviceMatrix
    n : int
        Columns of X.
    layout : {"features", "tokens"}
    card : Card
    window : WindowPlan, optional
        Of the matrix, if it has one.
    aligned : bool
        Whether all rows of a feature-major X begin on 16 bytes.
    thorough : bool
        Include blockings that are seldom the fastest, and cuts of the decode kernel that its own
        estimate has ruled out: for timing.
    """
    tiles = Tiles.of(matrix)
    tokens = layout == "tokens"
    found = []
    if n <= MAX_COLUMNS:
        for plan in _cuts(matrix, n, card, thorough):
            way = Way.of("decode", block_rows=plan.block_rows, part_steps=plan.part_steps)
            found.append(Candidate(way, model.decode(card, plan, tiles, n, tokens)))
    fitting = blockings(
        tiles.tile_size, n, sparse=tiles.sparse, shared_limit=card.shared_limit, thorough=thorough
    )
    for blocking in fitting:
        predicted = model.spmm(card, blocking, tiles, n, aligned or tokens)
        if tokens:
            predicted = predicted.with_transposes(card, tiles, n)
        found.append(Candidate(_way_of(blocking), predicted))
    if window is not None:
        predicted = model.window(card, window, tiles, n, aligned or tokens)
        if tokens:
            predicted = predicted.with_transposes(card, tiles, n)
        found.append(Candidate(window_way(window), predicted))
    dense = model.dense(card, channels=tiles.inputs, outputs=tiles.outputs, n=n)
    return [*found, Candidate(DENSE, dense)]


def window_way(plan: WindowPlan) -> Way:
    """The way by a shared window."""
    chosen = {name: getattr(plan.blocking, name) for name in _WINDOW}
    return Way.of("window", **chosen)


def _cuts(matrix: HasTables, n: int, card: Card, thorough: bool) -> Iterator[DecodePlan]:
    def cut(block_rows: int | None = None, part_steps: int | None = None) -> DecodePlan:
        return DecodePlan.of(
            matrix.index,
            sparse=matrix.sparse,
            multiprocessors=card.multiprocessors,
            n=n,
            block_rows=block_rows,
            part_steps=part_steps,
        )

    chosen = cut()
    yield chosen
    longest = int(chosen.tile_steps.max())
    if chosen.slots and longest <= most_steps(n):
        yield cut(part_steps=longest)  # whole tiles: no sums to be left and counted
    if thorough:
        V = matrix.index.tile_size
        for rows in (16, 32, 64, 128, 256):
            if V % rows == 0 and rows != chosen.block_rows:
                yield cut(rows)


def _way_of(blocking: Blocking) -> Way:
    return Way.of(
        "spmm",
        block_n=blocking.block_n,
        warps_m=blocking.warps_m,
        warps_n=blocking.warps_n,
        stages=blocking.stages,
    )
