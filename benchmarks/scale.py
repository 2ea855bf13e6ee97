"""Large layers: published searches against gyroperm's, memory, and the cost of a sweep.

``python -m benchmarks.scale`` runs, on matrices of a language model's size, RIA's assignment to
convergence (2:4) and gyro-permutation to its end (HiNM 75 %, V = 128), each cut after a stated
time; then ``assign`` in a twentieth of the time that took, in ten times that, and in fixed times.
Every run has a
process of its own, whose peak memory is held against three times the float32 matrix and 300 MB.
Then it times sweeps of assignment moves for several widths and block sizes. Finished runs go into
a log beside the JSON file: the same command continues what was interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import machine, peak_memory, sweep_cost
from benchmarks.arguments import at_least, positive_seconds
from benchmarks.instances import INSTANCES, Loader
from benchmarks.machine import results_file
from benchmarks.quality_runs import Run, Runner, conditions
from benchmarks.run_log import RunLog
from benchmarks.scale_contests import Contest, Entry, contest_text, findings, hold
from benchmarks.variants import resolve
from gyroperm.files import check_writable
from gyroperm.report import write_json

CONTESTS = (
    Contest("2:4", "ria/converged", (60.0,)),
    Contest("hinm75-v128", "gyro", (30.0, 120.0)),
)
QUICK_CONTESTS = (
    Contest("2:4", "ria/converged", (1.0,)),
    Contest("hinm75-v128", "gyro", (0.5, 1.0)),
)
QUICK_INSTANCES = ("lm1024x2752",)

LONGEST, QUICK_LONGEST = 1200.0, 5.0

# Rows, columns and groups of a block of the sweeps that are timed.
_SWEEPS = (1024, (512, 1024, 2048, 4096, 8192), (32, 64, 128, 192, 256, 512, 1024))
_QUICK_SWEEPS = (256, (256, 512, 1024), (32, 64, 128))


class Scale:
    """The benchmark under way.

    Parameters
    ----------
    contests : sequence of Contest
    instances : sequence of str
    threads : int or None
    longest : float
        Seconds after which a published search is cut.
    modules : sequence of str
        Imported because they register methods.
    log : RunLog
    """

    def __init__(
        self,
        contests: Sequence[Contest],
        instances: Sequence[str],
        *,
        threads: int | None,
        longest: float,
        modules: Sequence[str],
        log: RunLog,
    ) -> None:
        self.contests = contests
        self.instances = instances
        self.loader = Loader()
        self.held: list[list[Entry]] = []
        self.problems: list[str] = []
        self.sweeps: list[sweep_cost.Sweep] = []
        self._modules = modules
        self._runner = Runner(self.loader, threads=threads, longest=longest, log=log)

    def hold_contests(self) -> None:
        """Make the runs of every contest, printing each when it is done."""
        for instance in self.instances:
            described = self.loader.description(instance)
            self.loader.forget()
            for contest in self.contests:
                if contest.pattern not in INSTANCES[instance].patterns:
                    continue
                try:
                    resolve(contest.published)
                    entries = hold(contest, instance, described, self._make)
                except (RuntimeError, ValueError) as error:
                    self.problems.append(f"{instance}, {contest.pattern}: {error}")
                    print(f"{self.problems[-1]}\n", flush=True)
                    continue
                self.held.append(entries)
                print(f"{contest_text(entries, described)}\n", flush=True)

    def _make(self, run: Run) -> dict[str, Any]:
        return self._runner.logged("alone", run, lambda: self._make_alone(run))

    def _make_alone(self, run: Run) -> dict[str, Any]:
        runner = self._runner
        begin = time.perf_counter()
        found = peak_memory.measure(
            run, threads=runner.threads, longest=runner.longest, modules=self._modules
        )
        return {**found, "process_seconds": time.perf_counter() - begin}

    def content(self) -> dict[str, Any]:
        """Everything that was measured, ready for JSON."""
        return {
            "longest": self._runner.longest,
            "threads": self._runner.threads,
            "instances": self.loader.described,
            "runs": [entry.as_dict() for entries in self.held for entry in entries],
            "findings": [findings(entries) for entries in self.held],
            "sweeps": sweep_cost.as_dicts(self.sweeps),
            "problems": self.problems,
        }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    large = [name for name, instance in INSTANCES.items() if instance.large]
    parser.add_argument(
        "--instances",
        nargs="+",
        choices=[name for name in INSTANCES if name.startswith("lm")],
        metavar="NAME",
        help=f"default: {', '.join(large)}; quick: {', '.join(QUICK_INSTANCES)}",
    )
    parser.add_argument(
        "--patterns",
        nargs="+",
        choices=[contest.pattern for contest in CONTESTS],
        metavar="LABEL",
        help=f"of {', '.join(contest.pattern for contest in CONTESTS)} (default: all)",
    )
    parser.add_argument(
        "--longest",
        type=positive_seconds,
        metavar="S",
        help=f"cut a published search after so many seconds (default: {LONGEST:g}; quick: "
        f"{QUICK_LONGEST:g})",
    )
    parser.add_argument(
        "--sweeps",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="time sweeps for several widths and block sizes too (default: yes)",
    )
    parser.add_argument(
        "--plugin",
        nargs="+",
        default=[],
        metavar="MODULE",
        help="Python modules to import first, which register methods",
    )
    parser.add_argument("--threads", type=lambda text: at_least(1, text), metavar="N")
    parser.add_argument("--quick", action="store_true", help="a small instance, about a minute")
    parser.add_argument("--fresh", action="store_true", help="begin a new log of runs")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the JSON file to write (default: scale.json, with --quick scale_quick.json, in "
        "benchmarks/results); the plot of the sweeps goes beside it",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; the exit code is 0, 1 if something failed, or 2 for bad usage."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    quick = arguments.quick
    out = arguments.out or results_file("scale_quick.json" if quick else "scale.json")
    try:
        check_writable(out)
        for module in arguments.plugin:
            importlib.import_module(module)
    except (OSError, ImportError) as error:
        parser.error(str(error))
    large = [name for name, instance in INSTANCES.items() if instance.large]
    contests = QUICK_CONTESTS if quick else CONTESTS
    log = out.with_suffix(".runs.jsonl")
    described: dict[str, Any] = {"date": datetime.now(UTC).isoformat(timespec="seconds")}
    described |= {"machine": machine.describe(), "load_average": machine.load_average()}
    scale = Scale(
        [one for one in contests if one.pattern in (arguments.patterns or [one.pattern])],
        arguments.instances or (QUICK_INSTANCES if quick else large),
        threads=arguments.threads,
        longest=arguments.longest or (QUICK_LONGEST if quick else LONGEST),
        modules=arguments.plugin,
        log=RunLog(log, conditions(), fresh=arguments.fresh),
    )
    print(f"{machine.headline(machine.describe())}\n", flush=True)
    try:
        scale.hold_contests()
        files = [out]
        if arguments.sweeps:
            files += _measure_sweeps(scale, out, quick)
    except KeyboardInterrupt:
        print(f"scale: interrupted; the same command continues from {log}", file=sys.stderr)
        return 130
    write_json(out, {**described, **scale.content()})
    print("Wrote:\n" + "\n".join(f"  {file}" for file in files))
    return 1 if scale.problems else 0


def _measure_sweeps(scale: Scale, out: Path, quick: bool) -> list[Path]:
    """Time the sweeps, print them, and draw them where matplotlib is installed."""
    rows, columns, blocks = _QUICK_SWEEPS if quick else _SWEEPS
    scale.sweeps = sweep_cost.measure(rows, columns, blocks, repeats=3 if quick else 5)
    print(f"A sweep of assignment moves\n{sweep_cost.sweeps_table(scale.sweeps)}\n", flush=True)
    if find_spec("matplotlib") is None:
        return []
    picture = out.with_name(f"{out.stem}_sweeps.png")
    sweep_cost.save_plot(picture, scale.sweeps)
    return [picture]


if __name__ == "__main__":
    sys.exit(main())
