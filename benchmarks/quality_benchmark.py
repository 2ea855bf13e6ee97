"""A benchmark of quality under way: what to measure, and what was measured so far."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

import gyroperm
from benchmarks import cold_start, machine, peak_memory, quality_plot
from benchmarks import quality_report as report
from benchmarks.instances import PATTERNS, Loader, cases, shape_text
from benchmarks.quality_runs import Measured, Run, Runner, conditions
from benchmarks.quality_targets import TARGETS, Outcome, outcome, targets_table
from benchmarks.run_log import RunLog
from benchmarks.variants import SINGLE, resolve
from gyroperm.report import pattern_figures
from gyroperm.solvers import registry

# A search reaches its peak of memory within so many seconds.
_MEMORY_SECONDS = 10.0

# The method a bound is found with, and the share of the bound's time that its search gets: the
# better the best known, the more a bound can leave out.
_BOUND_METHOD, _BOUND_SHARE = "assign", 0.1


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes
    ----------
    instances, patterns : tuple of str
    methods : tuple of str
        Labels of :mod:`benchmarks.variants`.
    plain_times, level_times : tuple of float
        Time limits in seconds, ascending, for plain N:M and for the other patterns.
    converged : bool
        Whether to run without a time limit too.
    seeds : tuple of int
    threads : int or None
        None for every processor that this process may use.
    longest : float
        Seconds after which a run to convergence is cut.
    bound : float or None
        Seconds for an upper bound of each instance and pattern; None for no more than comes with
        every solution.
    modules : tuple of str
        Imported because they register methods.
    targets, cold, memory, plot, quiet, fresh : bool
        Whether to judge the figures to reach, to time the first calls of fresh processes, to
        measure peak memory, to draw, to show no progress, and to measure again what the log of
        runs holds.
    """

    instances: tuple[str, ...]
    patterns: tuple[str, ...]
    methods: tuple[str, ...]
    plain_times: tuple[float, ...]
    level_times: tuple[float, ...]
    converged: bool
    seeds: tuple[int, ...]
    threads: int | None
    longest: float
    bound: float | None
    modules: tuple[str, ...]
    targets: bool
    cold: bool
    memory: bool
    plot: bool
    quiet: bool
    fresh: bool

    def budgets(self, pattern: str) -> tuple[float | None, ...]:
        """The time limits for a pattern, None, the last, for convergence."""
        times = self.plain_times if PATTERNS[pattern].is_plain else self.level_times
        return (*times, *((None,) * self.converged))

    def runs(self) -> list[Run]:
        """The runs of the table, case after case."""
        return [
            Run(instance, pattern, method, budget, seed)
            for instance, pattern in cases(self.instances, self.patterns)
            for method in self.methods
            for budget in ((None,) if method in SINGLE else self.budgets(pattern))
            for seed in (self.seeds[:1] if method in SINGLE else self.seeds)
        ]

    def target_runs(self) -> list[Run]:
        """The runs that the figures to reach are judged by."""
        return [run for target in TARGETS for run in target.runs(self.seeds)] * self.targets

    def memory_runs(self) -> list[Run]:
        """The runs whose peak of memory is measured, each in a process of its own."""
        chosen: dict[tuple[str, str, str], Run] = {}
        for run in self.runs() if self.memory else ():
            # The longest time limit that is not needlessly long, the shortest if all are.
            case = run.instance, run.pattern, run.method
            short = run.budget is not None and run.budget <= _MEMORY_SECONDS
            if run.seed == self.seeds[0] and (short or case not in chosen):
                chosen[case] = run
        return list(chosen.values())

    def most_seconds(self) -> float:
        """What all searches take if each takes all that it may."""
        every = [*dict.fromkeys((*self.runs(), *self.target_runs())), *self.memory_runs()]
        searches = [run for run in every if run.method not in SINGLE]
        bounds = len(cases(self.instances, self.patterns)) * (self.bound or 0.0)
        return bounds + math.fsum(
            self.longest if run.budget is None else run.budget for run in searches
        )


class Benchmark:
    """A benchmark under way: what was measured so far, as text and for JSON.

    Parameters
    ----------
    settings : Settings
    log : Path or None
        Where finished runs are kept, so that an interrupted benchmark continues.
    """

    def __init__(self, settings: Settings, log: Path | None) -> None:
        self.settings = settings
        self.runs, self.target_runs = settings.runs(), settings.target_runs()
        self.loader = Loader()
        self.log = RunLog(log, conditions(), fresh=settings.fresh)
        self.runner = Runner(
            self.loader, threads=settings.threads, longest=settings.longest, log=self.log
        )
        self.peaks: dict[tuple[str, str], dict[str, int]] = {}
        self.bounds: dict[tuple[str, str], float] = {}
        self.cold: list[dict[str, Any]] = []
        self.problems: list[str] = []
        self.machine = machine.describe()
        self._load = [machine.load_average()]
        self._began = datetime.now(UTC)
        self._begin = time.perf_counter()

    def _names(self, of: str) -> list[str]:
        """The instances, patterns or methods of all runs."""
        runs = (*self.runs, *self.target_runs)
        return list(dict.fromkeys(getattr(run, of) for run in runs))

    def measure(self) -> None:
        """Make every run, and whatever else the settings ask for.

        Raises
        ------
        FileNotFoundError
            If the weights of an instance are not installed.
        """
        settings = self.settings
        todo = list(dict.fromkeys((*self.runs, *self.target_runs)))
        self._say(f"{len(todo)} runs, {settings.most_seconds() / 60:.1f} minutes at most")
        with tqdm(todo, unit="run", disable=settings.quiet, leave=False) as bar:
            for run in bar:
                bar.set_description(f"{run.method} {run.instance[-24:]} {run.pattern}")
                self.runner.make(run)
        self._measure_bounds()
        self._measure_memory()
        if settings.cold:
            self._measure_cold_starts()
        self._load.append(machine.load_average())

    def _measure_bounds(self) -> None:
        seconds = self.settings.bound
        every = cases(self.settings.instances, self.settings.patterns) if seconds else []
        for case in tqdm(every, "bounds", disable=self.settings.quiet, leave=False):
            instance, pattern = case
            run = Run(instance, pattern, _BOUND_METHOD, _BOUND_SHARE * (seconds or 0.0), 0)
            try:
                found = self.runner.logged("bound", run, partial(self._bound, run), bound=seconds)
            except Exception as error:
                # As for runs: one case that fails must not lose the others.
                self.problems.append(f"no bound for {', '.join(case)}: {error!r}")
            else:
                self.bounds[case] = found["bound"]

    def _bound(self, run: Run) -> dict[str, Any]:
        solution = gyroperm.solve(
            self.loader.weights(run.instance),
            pattern=PATTERNS[run.pattern],
            method=run.method,
            time_limit=run.budget,
            bound=self.settings.bound,
            threads=self.settings.threads,
        )
        return {"bound": solution.bound, "retained": solution.retained, "status": solution.status}

    def _measure_memory(self) -> None:
        quiet = self.settings.quiet
        with tqdm(self.settings.memory_runs(), unit="process", disable=quiet, leave=False) as bar:
            for run in bar:
                bar.set_description(f"memory of {run.method} {run.instance[-24:]} {run.pattern}")
                # Not of what failed, or does not take the pattern.
                if self.runner.make(run) is not None:
                    self._measure_peak(run)

    def _measure_peak(self, run: Run) -> None:
        settings = self.settings
        measure = partial(
            peak_memory.measure,
            run,
            threads=settings.threads,
            longest=settings.longest,
            modules=settings.modules,
        )
        try:
            found = self.runner.logged("alone", run, measure)
        except RuntimeError as error:
            self.problems.append(str(error))
        else:
            self.peaks.setdefault((run.instance, run.pattern), {})[run.method] = found["peak_bytes"]

    def _measure_cold_starts(self) -> None:
        self._say("timing the first calls of fresh processes ...")
        try:
            self.cold = cold_start.measure()
        except RuntimeError as error:
            self.problems.append(str(error))

    def _say(self, text: str) -> None:
        if not self.settings.quiet:
            print(text, file=sys.stderr, flush=True)

    def _measured(self) -> list[Measured]:
        """The runs of the table that were measured."""
        table = set(self.runs)
        return [one for one in self.runner.measured if one.run in table]

    def rows(self) -> list[report.Row]:
        """The rows of the table."""
        return report.summarise(
            self._measured(),
            self.runner.measured,
            best=self.runner.best_known(),
            bounds=self.bounds,
        )

    def outcomes(self) -> list[Outcome]:
        """The figures to reach that were measured for every seed."""
        found = {one.run: one for one in self.runner.measured}
        judged = []
        for target in TARGETS if self.settings.targets else ():
            runs = target.runs(self.settings.seeds)
            if all(run in found for run in runs):
                judged.append(outcome(target, [found[run] for run in runs]))
        return judged

    def text(self) -> str:
        """Everything that was measured, for people."""
        rows, outcomes = self.rows(), self.outcomes()
        shapes = {name: shape_text(found) for name, found in self.loader.described.items()}
        parts = [machine.headline(self.machine)]
        if self.runner.from_log:
            parts.append(f"{self.runner.from_log} of the figures are from {self.log.path}")
        if rows:
            parts += [report.LEGEND, report.tables(rows, shapes, self.peaks)]
            parts += ["All instances and patterns", report.overview_table(rows)]
        if self.runner.failures:
            parts.append(report.failures_text(self.runner.failures))
        if outcomes:
            parts += ["Figures to reach, medians over seeds", targets_table(outcomes)]
        if self.cold:
            parts.append(cold_start.cold_table(self.cold))
        parts += self.problems
        return "\n\n".join(parts)

    def content(self) -> dict[str, Any]:
        """Everything that was measured, ready for JSON."""
        return {
            "date": self._began.isoformat(timespec="seconds"),
            "machine": self.machine,
            "load_average": dict(zip(("before", "after"), self._load, strict=False)),
            "settings": asdict(self.settings),
            "methods": {name: _described(name) for name in self._names("method")},
            "patterns": {
                label: pattern_figures(PATTERNS[label]) for label in self._names("pattern")
            },
            "instances": self.loader.described,
            "bounds": [
                {"instance": instance, "pattern": pattern, "bound": bound}
                for (instance, pattern), bound in self.bounds.items()
            ],
            "rows": [{**row.as_dict(), "peak_bytes": self._peak_bytes(row)} for row in self.rows()],
            "runs": [_flat(one) for one in self.runner.measured],
            "failures": [asdict(failure) for failure in self.runner.failures],
            "targets": [one.as_dict() for one in self.outcomes()],
            "cold": self.cold,
            "problems": self.problems,
            "seconds": time.perf_counter() - self._begin,
        }

    def _peak_bytes(self, row: report.Row) -> int | None:
        return self.peaks.get((row.instance, row.pattern), {}).get(row.method)

    def draw(self, out: Path) -> list[Path]:
        """A picture for each instance and pattern, beside ``out`` and named after it.

        Without what searches for nothing: it has no time, and its efficacy is 0 by definition.
        """
        rows = [row for row in self.rows() if row.method not in SINGLE]
        measured = [one for one in self._measured() if one.run.method not in SINGLE]
        files = []
        for case in dict.fromkeys((row.instance, row.pattern) for row in rows):
            instance, label = case
            name = re.sub(r"[^\w.\-]+", "-", f"{out.stem}_{instance}_{label}")
            files.append(out.with_name(f"{name}.png"))
            shape = shape_text(self.loader.described[instance])
            quality_plot.save_pareto(
                files[-1],
                f"{instance} ({shape}), {PATTERNS[label]}",
                [row for row in rows if (row.instance, row.pattern) == case],
                [one for one in measured if (one.run.instance, one.run.pattern) == case],
            )
        return files


def _flat(measured: Measured) -> dict[str, Any]:
    run = asdict(measured.run)
    if run["budget"] is None:
        run["budget"] = "converged"
    # The run's method is a label, the figures' the method without its variant.
    return {**measured.figures, **run, "cut": measured.cut}


def _described(label: str) -> dict[str, Any]:
    """A method's summary and options; what JSON has no form for, as text."""
    name, given = resolve(label)
    method = registry.get(name)
    options = json.loads(json.dumps(asdict(method.make_options(given)), default=str))
    return {"summary": method.summary, "options": options}
