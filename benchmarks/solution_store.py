"""Solutions that are kept on disk, so that nothing is solved twice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import gyroperm
from benchmarks.machine import code_digest
from gyroperm import Pattern, Solution
from gyroperm.stored import read_stored, stored_name


@dataclass(frozen=True)
class Task:
    """What to solve, but for the weights.

    Attributes
    ----------
    layer : str
        The layer's name.
    pattern : Pattern
    method : str
    time_limit : float or None
        Seconds, compilation excluded; None until the method has converged.
    seed : int
    """

    layer: str
    pattern: Pattern
    method: str
    time_limit: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Solved:
    """A task's solution, and whether it was read rather than solved now."""

    task: Task
    solution: Solution
    from_store: bool


class SolutionStore:
    """Solves tasks, keeping each solution as an ``.npz`` file in a folder.

    A file is found again only for the same weights, the same task, and the same code of gyroperm.

    Parameters
    ----------
    folder : Path
        Made when it is missing.
    fresh : bool
        Whether to solve again what the folder already holds.
    """

    def __init__(self, folder: Path, *, fresh: bool = False) -> None:
        self.folder = folder
        self.fresh = fresh
        folder.mkdir(parents=True, exist_ok=True)

    def solve(self, task: Task, weights: NDArray[np.floating]) -> Solved:
        """The solution of a task for these weights."""
        path = self.folder / _file_name(task, weights)
        stored = None if self.fresh else read_stored(path, task.pattern, np.abs(weights))
        if stored is not None:
            return Solved(task, stored, from_store=True)
        solution = gyroperm.solve(
            weights,
            pattern=task.pattern,
            method=task.method,
            time_limit=task.time_limit,
            seed=task.seed,
        )
        solution.save(path)
        return Solved(task, solution, from_store=False)


def _file_name(task: Task, weights: NDArray[np.floating]) -> str:
    settings = {
        "method": task.method,
        "time_limit": task.time_limit,
        "seed": task.seed,
        "code": code_digest(),
    }
    return stored_name(task.layer, task.pattern, settings, weights)
