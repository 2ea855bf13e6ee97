"""A benchmark of quality under way: what to measure, and what was measured so far."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import cold_start, machine, peak_memory, quality_plot
from benchmarks import quality_report as report
from benchmarks.instances import INSTANCES, PATTERNS, cases, description
from benchmarks.quality_runs import SINGLE, Measured, Run, Runner
from benchmarks.quality_targets import TARGETS, Outcome, outcome, targets_table
from gyroperm.report import pattern_figures
from gyroperm.solvers import registry


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes
    ----------
    instances, patterns, methods : tuple of str
        Names; methods without aliases.
    budgets : tuple of (float or None)
        Time limits in seconds, ascending; None, the last, for convergence.
    seeds : tuple of int
    threads : int or None
        None for every processor that this process may use.
    longest : float
        Seconds after which a run to convergence is cut.
    modules : tuple of str
        Imported because they register methods.
    targets, cold, memory, plot, quiet : bool
        Whether to judge the figures to reach, to time the first calls of fresh processes, to
        measure peak memory, to draw, and to show no progress.
    """

    instances: tuple[str, ...]
    patterns: tuple[str, ...]
    methods: tuple[str, ...]
    budgets: tuple[float | None, ...]
    seeds: tuple[int, ...]
    threads: int | None
    longest: float
    modules: tuple[str, ...]
    targets: bool
    cold: bool
    memory: bool
    plot: bool
    quiet: bool

    def runs(self) -> list[Run]:
        """The runs of the table, case after case."""
        return [
            Run(instance, pattern, method, budget, seed)
            for instance, pattern in cases(self.instances, self.patterns)
            for method in self.methods
            for budget in ((None,) if method in SINGLE else self.budgets)
            for seed in (self.seeds[:1] if method in SINGLE else self.seeds)
        ]

    def target_runs(self) -> list[Run]:
        """The runs that the figures to reach are judged by."""
        return [run for target in TARGETS for run in target.runs(self.seeds)] * self.targets


class Benchmark:
    """A benchmark under way: what was measured so far, as text and for JSON.

    Parameters
    ----------
    settings : Settings

    Raises
    ------
    FileNotFoundError
        If the weights of an instance are not installed.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.runs, self.target_runs = settings.runs(), settings.target_runs()
        self.weights = {name: INSTANCES[name].load() for name in self._names("instance")}
        self.runner = Runner(self.weights, threads=settings.threads, longest=settings.longest)
        self.peaks: dict[tuple[str, str], dict[str, int]] = {}
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
        """Make every run, and whatever else the settings ask for."""
        settings = self.settings
        todo = list(dict.fromkeys((*self.runs, *self.target_runs)))
        with tqdm(todo, unit="run", disable=settings.quiet, leave=False) as bar:
            for run in bar:
                bar.set_description(f"{run.method} {run.instance[-24:]} {run.pattern}")
                self.runner.make(run)
        if settings.memory:
            self._measure_memory()
        if settings.cold:
            self._measure_cold_starts()
        self._load.append(machine.load_average())

    def _measure_memory(self) -> None:
        # The last budget is the longest: a search that is cut short may not reach its peak.
        longest = {(run.instance, run.pattern, run.method): run for run in self.runs}
        quiet = self.settings.quiet
        with tqdm(longest.values(), unit="process", disable=quiet, leave=False) as bar:
            for run in bar:
                bar.set_description(f"memory of {run.method} {run.instance[-24:]} {run.pattern}")
                if self.runner.make(run) is not None:
                    self._measure_peak(run)

    def _measure_peak(self, run: Run) -> None:
        settings = self.settings
        try:
            peak = peak_memory.measure(
                run,
                threads=settings.threads,
                longest=settings.longest,
                modules=settings.modules,
            )
        except RuntimeError as error:
            self.problems.append(str(error))
        else:
            self.peaks.setdefault((run.instance, run.pattern), {})[run.method] = peak

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
        return report.summarise(self._measured(), self.runner.measured)

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
        shapes = {name: weights.shape for name, weights in self.weights.items()}
        parts = [machine.headline(self.machine)]
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
            "instances": {
                name: description(INSTANCES[name], weights)
                for name, weights in self.weights.items()
            },
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
            shape = " x ".join(map(str, self.weights[instance].shape))
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
    return {**run, **measured.figures, "cut": measured.cut}


def _described(name: str) -> dict[str, Any]:
    """A method's summary and options; what JSON has no form for, as text."""
    method = registry.get(name)
    options = json.loads(json.dumps(asdict(method.make_options(None)), default=str))
    return {"summary": method.summary, "options": options}
