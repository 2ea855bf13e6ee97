"""Searches with one set of settings, whose solutions are kept on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import gyroperm
from gyroperm.arrangement import Arrangement
from gyroperm.engine import solve
from gyroperm.pattern import Pattern
from gyroperm.problem import Problem
from gyroperm.solution import Solution
from gyroperm.stopping import AllOf, AnyOf, Stop
from gyroperm.stored import read_stored, stored_name
from gyroperm.views import WeightView


@dataclass(frozen=True)
class Searches:
    """How every search of a run is made, and where solutions are kept.

    Parameters
    ----------
    pattern : Pattern
    method : str
    options : mapping, optional
    stop : callable, optional
    time_limit : float, optional
        Seconds for each search.
    seed : int
    threads : int, optional
    store : Path, optional
        A folder; made when it is missing. A solution is found again only for the same saliency
        and the same settings.
    """

    pattern: Pattern
    method: str = "auto"
    options: Mapping[str, Any] | None = None
    stop: Stop | None = None
    time_limit: float | None = None
    seed: int = 0
    threads: int | None = None
    store: Path | None = field(default=None)

    def __post_init__(self) -> None:
        if self.store is not None:
            self.store.mkdir(parents=True, exist_ok=True)

    def solve(
        self,
        name: str,
        saliency: NDArray[np.floating],
        *,
        groups: int = 1,
        initial: Solution | None = None,
    ) -> Solution:
        """The solution of a saliency, read where it is stored already.

        Parameters
        ----------
        name : str
            For the file's name.
        saliency : ndarray, shape (R, C, ...)
        groups : int
            Of a grouped convolution.
        initial : Solution, optional
            Where to start.
        """
        path = self.store and self.store / self._file_name(name, saliency, groups, initial)
        stored = path and read_stored(path, self.pattern, saliency)
        if stored:
            return stored
        solution = solve(
            saliency,
            saliency=saliency,
            pattern=self.pattern,
            method=self.method,
            options=self.options,
            stop=self.stop,
            time_limit=self.time_limit,
            seed=self.seed,
            threads=self.threads,
            groups=groups,
            initial=initial,
        )
        if path:
            solution.save(path)
        return solution

    def unpermuted(self, saliency: NDArray[np.floating], groups: int = 1) -> Solution:
        """The pattern as the weights lie."""
        return solve(
            saliency, saliency=saliency, pattern=self.pattern, method="identity", groups=groups
        )

    def rebuilt(
        self, arrangement: Arrangement, saliency: NDArray[np.floating], groups: int = 1
    ) -> Solution | None:
        """A solution of this saliency from an earlier arrangement; None if it no longer fits."""
        view = WeightView.of([saliency.shape], self.pattern, listed=False, groups=groups)
        problem = Problem(view.matrix([saliency]), self.pattern, view.blocks, view.orders)
        try:
            arrangement.check(problem)
        except ValueError:
            # Ragged patterns prune whole rows by the saliency itself.
            return None
        return Solution.measured(
            problem,
            arrangement,
            identity=0.0,
            view=view,
            method=self.method,
            seed=self.seed,
            seconds=0.0,
        )

    def _file_name(
        self,
        name: str,
        saliency: NDArray[np.floating],
        groups: int,
        initial: Solution | None,
    ) -> str:
        settings = {
            "version": gyroperm.__version__,
            "method": self.method,
            "options": repr(self.options),
            "stop": described_stop(self.stop),
            "time_limit": self.time_limit,
            "seed": self.seed,
            "groups": groups,
        }
        start: list[NDArray[np.uint8]] = []
        if initial is not None:
            masks = initial.mask if initial.view.listed else [initial.mask]
            start = [np.packbits(mask) for mask in masks]
        return stored_name(name, self.pattern, settings, saliency, *start)


def described_stop(stop: Stop | None) -> str:
    """A stopping criterion as text, the same for equal ones; by its repr if it is one's own."""
    if stop is None:
        return "converged"
    if isinstance(stop, AnyOf | AllOf):
        return f"{type(stop).__name__}({', '.join(map(described_stop, stop.criteria))})"
    return f"{type(stop).__name__}({vars(stop)})" if hasattr(stop, "__dict__") else repr(stop)
