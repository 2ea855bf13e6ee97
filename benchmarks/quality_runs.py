"""Single runs of a search, each made once."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gyroperm
from benchmarks import machine
from benchmarks.instances import PATTERNS, Loader
from benchmarks.run_log import RunLog
from benchmarks.variants import resolve
from gyroperm import SearchState
from gyroperm.report import solution_figures
from gyroperm.solvers import registry
from gyroperm.solvers.parallel import default_threads


@dataclass(frozen=True)
class Run:
    """A search to make.

    Attributes
    ----------
    instance, pattern, method : str
        Names of :mod:`benchmarks.instances` and a label of :mod:`benchmarks.variants`.
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
    """A run that raised, with the message.

    Attributes
    ----------
    run : Run
    error : str
    refused : bool
        Whether the method says that it does not take this pattern, which is no fault.
    """

    run: Run
    error: str
    refused: bool


def conditions(packages: Sequence[str] = ()) -> dict[str, Any]:
    """What measurements depend on besides their runs, ready for JSON.

    Parameters
    ----------
    packages : sequence of str
        More packages whose versions matter.
    """
    described = machine.describe(packages)
    kept = {name: described[name] for name in ("cpu", "cores", "cpu_quota", "python", "packages")}
    return {"code": machine.code_digest(), **kept}


class Runner:
    """Makes runs, the same one only once.

    Parameters
    ----------
    loader : Loader
        Where the instances come from.
    threads : int or None
        As for :func:`gyroperm.solve`.
    longest : float
        Seconds after which a run to convergence is cut.
    log : RunLog, optional
        Where finished runs are kept and found again; by default none is.
    """

    def __init__(
        self,
        loader: Loader,
        *,
        threads: int | None,
        longest: float,
        log: RunLog | None = None,
    ) -> None:
        self.loader = loader
        self.threads = threads
        self.longest = longest
        self.log = RunLog(None, {}) if log is None else log
        self.from_log = 0
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

        A method may not know every pattern: that is noted, and the others are measured all the
        same.
        """
        if run not in self._done and run not in self._failed:
            try:
                self._done[run] = self._found_or_made(run)
            except FileNotFoundError:
                raise
            except Exception as error:
                refused = _refuses(run, error)
                self._failed[run] = Failure(run, f"{type(error).__name__}: {error}", refused)
        return self._done.get(run)

    def logged(
        self, kind: str, run: Run, measure: Callable[[], dict[str, Any]], **more: Any
    ) -> dict[str, Any]:
        """What was measured of a run, from the log unless it is measured now.

        Parameters
        ----------
        kind : str
            What is measured.
        run : Run
        measure : callable
            Returns what goes into the log, ready for JSON.
        **more
            What it depends on besides, ready for JSON.
        """
        key = {"kind": kind, **self._key(run), **more}
        self.from_log += self.log.find(key) is not None
        found: dict[str, Any] = self.log.measured(key, measure)
        return found

    def best_known(self) -> dict[tuple[str, str], float]:
        """The most that any run in the log retained, by instance and pattern.

        Whatever code found it: what is retained is a fact of the weights.
        """
        best: dict[tuple[str, str], float] = {}
        described = self.loader.described
        for key, value in self.log.everything():
            case = key["instance"], key["pattern"]
            same = described.get(case[0], {}).get("sha256") == key["sha256"]
            if key["kind"] == "run" and same:
                best[case] = max(best.get(case, 0.0), value["figures"]["retained"])
        return best

    def _found_or_made(self, run: Run) -> Measured:
        found = self.logged("run", run, lambda: self._make(run))
        return Measured(run, found["figures"], found["cut"])

    def _key(self, run: Run) -> dict[str, Any]:
        """What tells a run from others in the log."""
        name, options = resolve(run.method)
        method = registry.get(name)
        chosen = json.loads(json.dumps(asdict(method.make_options(options)), default=str))
        return {
            **asdict(run),
            "pattern_parts": asdict(PATTERNS[run.pattern]),
            "options": chosen,
            "method_code": None if registry.is_shipped(name) else _source_digest(method.solve),
            "sha256": self.loader.description(run.instance)["sha256"],
            "threads": self.threads or default_threads(),
            "longest": self.longest if run.budget is None else None,
        }

    def _make(self, run: Run) -> dict[str, Any]:
        method, options = resolve(run.method)
        solution = gyroperm.solve(
            self.loader.weights(run.instance),
            pattern=PATTERNS[run.pattern],
            method=method,
            options=options,
            time_limit=run.budget,
            # Not a TimeLimit: a method paces itself to fill that, and would not converge by itself.
            stop=self._is_too_long if run.budget is None else None,
            seed=run.seed,
            threads=self.threads,
        )
        cut = run.budget is None and solution.seconds >= self.longest
        return {"figures": solution_figures(solution), "cut": cut}

    def _is_too_long(self, state: SearchState) -> bool:
        return state.seconds >= self.longest


def _refuses(run: Run, error: Exception) -> bool:
    """Whether a method says, by a ValueError that names it, that a pattern is not for it."""
    # The pattern cannot be looked for: a warm-up has smaller tiles, and names those.
    return isinstance(error, ValueError) and resolve(run.method)[0] in str(error)


def _source_digest(function: Callable[..., Any]) -> str | None:
    """A digest of the file that a method from outside is written in; None if there is none."""
    try:
        source = inspect.getsourcefile(function)
    except TypeError:
        return None
    if source is None or not Path(source).is_file():
        return None
    return hashlib.sha256(Path(source).read_bytes()).hexdigest()
