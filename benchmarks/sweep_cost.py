"""What one sweep of assignment moves costs, against the columns and the groups of a block."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kernel_cases import annealed_moves
from gyroperm.files import atomic_path
from gyroperm.report import format_table
from gyroperm.solvers.columns import Cell, make_cell
from gyroperm.solvers.kernels.gain import relu_gain

_M = 4

# Moves in a call: the first pays for what a call sets up.
_MOVES = 2


@dataclass(frozen=True)
class Sweep:
    """A sweep: every group of a 2:4 problem takes part in one move, block by block.

    Attributes
    ----------
    rows, columns, block_groups : int
        R, C and B.
    terms : int
        Terms of the gain products, ``R * sum_b B_b^2``; ``R * C * B / m`` where B divides C / m.
    predicted : float
        Seconds for so many terms at the rate of a gain product that stays in the cache.
    seconds : float
        Measured, on one thread, median.
    least, greatest : float
    """

    rows: int
    columns: int
    block_groups: int
    terms: int
    predicted: float
    seconds: float
    least: float
    greatest: float


def measure(
    rows: int, columns: Sequence[int], block_groups: Sequence[int], *, repeats: int
) -> list[Sweep]:
    """Time a sweep for each number of columns and each block size that it has room for.

    Parameters
    ----------
    rows : int
    columns, block_groups : sequence of int
    repeats : int
        How often each is timed.
    """
    rng = np.random.default_rng(0)
    rate = _terms_per_second(rng, rows)
    return [
        _sweep(_cell(rng, rows, count), block, rate, repeats)
        for count in columns
        for block in block_groups
        if block * _M <= count
    ]


def _terms_per_second(rng: np.random.Generator, rows: int) -> float:
    """The rate of the gain product of 64 groups, the fastest of a few."""
    X = rng.random((64, rows), dtype=np.float32)
    gain = np.empty((64, 64), dtype=np.float32)
    relu_gain(X, X, gain)
    return 64 * 64 * rows / min(_timed(lambda: relu_gain(X, X, gain)) for _ in range(5))


def _cell(rng: np.random.Generator, rows: int, columns: int) -> Cell:
    saliency = rng.random((rows, columns), dtype=np.float32)
    groups = rng.permutation(columns).astype(np.int32).reshape(-1, _M)
    return make_cell(saliency, np.arange(rows, dtype=np.int32), groups)


def _sweep(cell: Cell, block_groups: int, rate: float, repeats: int) -> Sweep:
    count = -(-len(cell.groups) // block_groups)
    blocks = np.array_split(cell.groups, count)

    def run() -> None:
        for block in blocks:
            annealed_moves(cell, block, _MOVES)

    annealed_moves(cell, blocks[0][:2].copy(), _MOVES)  # compiles
    seconds = [_timed(run) / _MOVES for _ in range(repeats)]
    rows = cell.X.shape[1]
    terms = rows * sum(len(block) ** 2 for block in blocks)
    return Sweep(
        rows=rows,
        columns=cell.groups.size,
        block_groups=block_groups,
        terms=terms,
        predicted=terms / rate,
        seconds=statistics.median(seconds),
        least=min(seconds),
        greatest=max(seconds),
    )


def _timed(call: Any) -> float:
    begin = time.thread_time()
    call()
    return time.thread_time() - begin


def sweeps_table(sweeps: Sequence[Sweep]) -> str:
    """A row for each sweep."""
    headers = ["C", "B (groups)", "R", "terms", "predicted s", "measured s", "measured / predicted"]
    rows = [
        [
            str(one.columns),
            str(one.block_groups),
            str(one.rows),
            f"{one.terms:.3g}",
            f"{one.predicted:.4f}",
            f"{one.seconds:.4f}",
            f"{one.seconds / one.predicted:.2f}",
        ]
        for one in sweeps
    ]
    return format_table(headers, rows)


def as_dicts(sweeps: Sequence[Sweep]) -> list[dict[str, Any]]:
    """Ready for JSON."""
    return [asdict(one) for one in sweeps]


def save_plot(path: Path, sweeps: Sequence[Sweep]) -> None:
    """Draw seconds against columns, a line for each block size, measured beside predicted.

    Parameters
    ----------
    path : Path
        The PNG, written whole or not at all.
    sweeps : sequence of Sweep
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    for i, block in enumerate(sorted({one.block_groups for one in sweeps})):
        own = [one for one in sweeps if one.block_groups == block]
        columns = [one.columns for one in own]
        colour = f"C{i}"
        axis.plot(columns, [one.seconds for one in own], "o-", color=colour, label=f"B = {block}")
        axis.plot(columns, [one.predicted for one in own], ":", color=colour)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel("columns C")
    axis.set_ylabel("seconds of a sweep, one thread")
    axis.set_title(
        f"A sweep of assignment moves, 2:{_M}, R = {sweeps[0].rows}, blocks of B groups\n"
        "dotted: R C B / m terms at the rate of the gain product alone",
        fontsize=10,
    )
    axis.grid(True, which="major", alpha=0.3)
    axis.legend(fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
