"""Single runs of a search, each made once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import gyroperm
from benchmarks.instances import PATTERNS
from gyroperm import SearchState
from gyroperm.report import solution_figures

#: Methods that search for nothing: one run says it all, whatever the budget and the seed.
SINGLE = frozenset({"identity"})


@dataclass(frozen=True)
class Run:
    """A search to make.

    Attributes
    ----------
    instance, pattern, method : str
        Names of :mod:`benchmarks.instances` and of a registered method.
    budget : float or None
        The time limit in seconds, compilation excluded; None until the method has converged.
    seed : int
    """

    instance: str
    pattern: str
    method: str
    budget: float | None
    seed: int


@dataclass(frozen=True)
class Measured:
    """What came out of a run.

    Attributes
    ----------
    run : Run
    figures : dict
        From :func:`gyroperm.report.solution_figures`; ``seconds`` exclude compilation.
    cut : bool
        Whether a run to convergence was ended before it had converged.
    """

    run: Run
    figures: dict[str, Any]
    cut: bool


@dataclass(frozen=True)
class Failure:
    """A run that raised, with the message."""

    run: Run
    error: str


class Runner:
    """Makes runs, the same one only once.

    Parameters
    ----------
    weights : mapping of str to ndarray
        The instances by name.
    threads : int or None
        As for :func:`gyroperm.solve`.
    longest : float
        Seconds after which a run to convergence is cut.
    """

    def __init__(
        self,
        weights: Mapping[str, NDArray[np.floating]],
        *,
        threads: int | None,
        longest: float,
    ) -> None:
        self.weights = weights
        self.threads = threads
        self.longest = longest
        self._done: dict[Run, Measured] = {}
        self._failed: dict[Run, Failure] = {}

    @property
    def measured(self) -> list[Measured]:
        """What was measured so far."""
        return list(self._done.values())

    @property
    def failures(self) -> list[Failure]:
        """The runs so far that raised."""
        return list(self._failed.values())

    def make(self, run: Run) -> Measured | None:
        """The result of a run, made now unless it was before; None if it raised.

        A method from outside may not know every pattern: its failure is noted, and the others
        are measured all the same.
        """
        if run not in self._done and run not in self._failed:
            try:
                self._done[run] = self._make(run)
            except Exception as error:
                self._failed[run] = Failure(run, f"{type(error).__name__}: {error}")
        return self._done.get(run)

    def _make(self, run: Run) -> Measured:
        solution = gyroperm.solve(
            self.weights[run.instance],
            pattern=PATTERNS[run.pattern],
            method=run.method,
            time_limit=run.budget,
            # Not a TimeLimit: a method paces itself to fill that, and would not converge by itself.
            stop=self._is_too_long if run.budget is None else None,
            seed=run.seed,
            threads=self.threads,
        )
        cut = run.budget is None and solution.seconds >= self.longest
        return Measured(run, solution_figures(solution), cut)

    def _is_too_long(self, state: SearchState) -> bool:
        return state.seconds >= self.longest
