"""The quality of searches against their time: instances x patterns x methods x budgets x seeds.

``python -m benchmarks.quality`` solves stored and generated matrices by every method, for each
time limit and to convergence, and prints what was retained and how long it took. Everything,
with the machine, goes into a JSON file. Nothing is asserted about time.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.arguments import at_least, positive_seconds
from benchmarks.instances import INSTANCES, PATTERNS, cases
from benchmarks.quality_benchmark import Benchmark, Settings
from gyroperm.files import check_writable
from gyroperm.report import write_json
from gyroperm.solvers import registry

RESULTS = Path(__file__).with_name("results")

METHODS = ("identity", "gyro", "assign")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to measure")
    what.add_argument(
        "--instances",
        nargs="+",
        choices=INSTANCES,
        default=list(INSTANCES),
        metavar="NAME",
        help=f"of {', '.join(INSTANCES)} (default: all)",
    )
    what.add_argument(
        "--patterns",
        nargs="+",
        choices=PATTERNS,
        default=list(PATTERNS),
        metavar="LABEL",
        help=f"of {', '.join(PATTERNS)}, where an instance has them (default: all)",
    )
    what.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME",
        help=f"registered methods or their aliases (default: {' '.join(METHODS)}, and those that "
        f"an imported module registers)",
    )
    what.add_argument(
        "--import",
        dest="modules",
        nargs="+",
        default=[],
        metavar="MODULE",
        help="Python modules to import first, which register methods of your own",
    )
    what.add_argument(
        "--budgets",
        nargs="*",
        type=positive_seconds,
        metavar="S",
        help="time limits in seconds, compilation excluded (default: 0.1 1 5; quick: 0.1 1)",
    )
    what.add_argument(
        "--converged",
        action=argparse.BooleanOptionalAction,
        help="measure also without a time limit (default: yes; quick: no)",
    )
    what.add_argument(
        "--longest",
        type=positive_seconds,
        default=60.0,
        metavar="S",
        help="cut a run without time limit after so many seconds (default: %(default)g)",
    )
    what.add_argument(
        "--seeds",
        nargs="+",
        type=_seed,
        metavar="N",
        help="seeds of the searches (default: 0 1 2; quick: 0)",
    )
    what.add_argument(
        "--threads", type=_count, metavar="N", help="worker threads (default: all cores)"
    )
    what.add_argument(
        "--targets",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="judge the figures that the searches are meant to reach (default: yes)",
    )
    what.add_argument(
        "--cold",
        action="store_true",
        help="time also the first call of a fresh process, with and without compiled code",
    )
    what.add_argument(
        "--memory",
        action="store_true",
        help="measure also the peak memory, in a process for each instance, pattern and method",
    )
    what.add_argument("--quick", action="store_true", help="take about a minute on two cores")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the JSON file to write, whole or not at all (default: quality.json, with --quick "
        "quality_quick.json, in benchmarks/results)",
    )
    output.add_argument(
        "--plot",
        action="store_true",
        help="draw efficacy against time for each instance and pattern, beside the JSON file",
    )
    output.add_argument("--quiet", action="store_true", help="show no progress and no tables")
    return parser


def _seed(text: str) -> int:
    return at_least(0, text)


def _count(text: str) -> int:
    return at_least(1, text)


def _settings(arguments: argparse.Namespace) -> Settings:
    """Settings of the arguments; ValueError or ImportError says which does not do."""
    quick = arguments.quick
    limits = _or(arguments.budgets, [0.1, 1.0] if quick else [0.1, 1.0, 5.0])
    budgets: list[float | None] = sorted(set(limits))
    if _or(arguments.converged, not quick):
        budgets.append(None)
    if not budgets:
        raise ValueError("nothing to measure: no --budgets, and --no-converged")
    if arguments.plot and find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib; pip install -e '.[plot]' installs it")
    if not cases(arguments.instances, arguments.patterns):
        raise ValueError("none of the --instances is measured for one of the --patterns")
    return Settings(
        instances=_unique(arguments.instances),
        patterns=_unique(arguments.patterns),
        methods=_methods(arguments.methods, arguments.modules),
        budgets=tuple(budgets),
        seeds=_unique(_or(arguments.seeds, [0] if quick else [0, 1, 2])),
        threads=arguments.threads,
        longest=arguments.longest,
        modules=tuple(arguments.modules),
        targets=arguments.targets,
        cold=arguments.cold,
        memory=arguments.memory,
        plot=arguments.plot,
        quiet=arguments.quiet,
    )


def _or(given: Any, default: Any) -> Any:
    return default if given is None else given


def _unique(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))


def _methods(given: Sequence[str] | None, modules: Sequence[str]) -> tuple[str, ...]:
    """The methods to measure, without aliases, after importing the modules."""
    before = registry.names()
    for module in modules:
        importlib.import_module(module)
    if given is None:
        given = [*METHODS, *(name for name in registry.names() if name not in before)]
    return _unique([registry.get(name).name for name in given])


def _out(arguments: argparse.Namespace) -> Path:
    """The file to write; OSError if that cannot be done."""
    if arguments.out is None:
        RESULTS.mkdir(exist_ok=True)
        out = RESULTS / ("quality_quick.json" if arguments.quick else "quality.json")
    else:
        out = arguments.out
    check_writable(out)
    return out


def _say(settings: Settings, text: str) -> None:
    if not settings.quiet:
        print(text, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; the exit code is 0, 1 if something failed, or 2 for bad usage."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        settings = _settings(arguments)
        out = _out(arguments)
    except (ValueError, ImportError, OSError) as error:
        parser.error(str(error))
    try:
        benchmark = Benchmark(settings)
    except OSError as error:
        print(f"quality: error: {error}", file=sys.stderr)
        return 1
    try:
        benchmark.measure()
    except KeyboardInterrupt:
        _say(settings, benchmark.text())
        print("quality: interrupted; no file was written", file=sys.stderr)
        return 130
    _say(settings, benchmark.text())
    write_json(out, benchmark.content())
    files = [out, *(benchmark.draw(out) if settings.plot else [])]
    print("Wrote:")
    for file in files:
        print(f"  {file}")
    return 1 if benchmark.runner.failures or benchmark.problems else 0


if __name__ == "__main__":
    sys.exit(main())
