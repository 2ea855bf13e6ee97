"""The quality of searches against their time: instances x patterns x methods x budgets x seeds.

``python -m benchmarks.quality`` solves stored and generated matrices by every registered method
and its published variants, for each time limit and to convergence, and prints what was retained
and how long it took. Everything, with the machine, goes into a JSON file. Every finished run goes
into a log beside it, so the same command continues what was interrupted, for as long as neither
gyroperm's code nor the machine has changed. Nothing is asserted about time.
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
from benchmarks.instances import INSTANCES, PATTERNS, QUERY, cases
from benchmarks.machine import results_file
from benchmarks.quality_benchmark import Benchmark, Settings
from benchmarks.variants import all_labels, unique_labels
from gyroperm.files import check_writable
from gyroperm.report import write_json

#: Time limits in seconds, for plain N:M and for patterns with a vector level.
PLAIN_TIMES, LEVEL_TIMES = (0.1, 1.0, 10.0, 30.0), (0.1, 1.0, 5.0, 60.0)

#: What the quick form measures, where nothing else is asked for: less than ten minutes.
QUICK_TIMES, QUICK_LONGEST = (0.1, 1.0), 1.5
QUICK_INSTANCES = (QUERY, "uniform128x64", "gauss512")
QUICK_PATTERNS = ("2:4", "1:4", "hinm75-v32", "vnm-v32-2:8", "vector-v32-8:32", "tvw75-v32")


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
        metavar="NAME",
        help=f"of {', '.join(INSTANCES)} (default: all but the large, "
        f"{', '.join(name for name, one in INSTANCES.items() if one.large)}; "
        f"quick: {', '.join(QUICK_INSTANCES)})",
    )
    what.add_argument(
        "--patterns",
        nargs="+",
        choices=PATTERNS,
        metavar="LABEL",
        help=f"of {', '.join(PATTERNS)}, where an instance has them (default: all; quick: "
        f"{', '.join(QUICK_PATTERNS)})",
    )
    what.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME",
        help="registered methods or their aliases, with their published variants, or single "
        "variants, as gyro/recipe (default: all that are registered)",
    )
    what.add_argument(
        "--plugin",
        dest="modules",
        nargs="+",
        default=[],
        metavar="MODULE",
        help="Python modules to import first, which register methods of your own",
    )
    what.add_argument(
        "--times",
        nargs="*",
        type=positive_seconds,
        metavar="S",
        help=f"time limits in seconds, compilation excluded (default: {_listed(PLAIN_TIMES)} for "
        f"plain N:M, {_listed(LEVEL_TIMES)} for the others; quick: {_listed(QUICK_TIMES)})",
    )
    what.add_argument(
        "--converged",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure also without a time limit (default: yes)",
    )
    what.add_argument(
        "--longest",
        type=positive_seconds,
        metavar="S",
        help="cut a run without time limit after so many seconds (default: 60; quick: "
        f"{QUICK_LONGEST:g})",
    )
    what.add_argument(
        "--bound",
        type=positive_seconds,
        metavar="S",
        help="prove an upper bound of each instance and pattern for so many seconds (default: "
        "only the bound that comes with every solution)",
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
        help="judge the figures that the searches are meant to reach (default: yes; quick: no)",
    )
    what.add_argument(
        "--cold",
        action="store_true",
        help="time also the first call of a fresh process, with and without compiled code",
    )
    what.add_argument(
        "--memory",
        action=argparse.BooleanOptionalAction,
        help="measure also the peak memory, in a process for each instance, pattern and method "
        "(default: yes; quick: no)",
    )
    what.add_argument(
        "--quick", action="store_true", help="a selection that takes less than ten minutes"
    )
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
        action=argparse.BooleanOptionalAction,
        help="draw efficacy against time for each instance and pattern, beside the JSON file "
        "(default: yes where matplotlib is installed)",
    )
    output.add_argument(
        "--fresh",
        action="store_true",
        help="measure again what the log beside the JSON file holds, and begin a new one",
    )
    output.add_argument("--quiet", action="store_true", help="show no progress and no tables")
    return parser


def _seed(text: str) -> int:
    return at_least(0, text)


def _count(text: str) -> int:
    return at_least(1, text)


def _listed(times: Sequence[float]) -> str:
    return " ".join(f"{seconds:g}" for seconds in times)


def _settings(arguments: argparse.Namespace) -> Settings:
    """Settings of the arguments; ValueError or ImportError says which does not do."""
    quick = arguments.quick
    regular = [name for name, instance in INSTANCES.items() if not instance.large]
    instances = _or(arguments.instances, QUICK_INSTANCES if quick else regular)
    patterns = _or(arguments.patterns, QUICK_PATTERNS if quick else list(PATTERNS))
    plain, level = (QUICK_TIMES, QUICK_TIMES) if quick else (PLAIN_TIMES, LEVEL_TIMES)
    if arguments.times is not None:
        plain = level = tuple(sorted(set(arguments.times)))
    if not plain and not arguments.converged:
        raise ValueError("nothing to measure: no --times, and --no-converged")
    drawn = find_spec("matplotlib") is not None
    if arguments.plot and not drawn:
        raise ValueError("--plot needs matplotlib; pip install -e '.[plot]' installs it")
    if not cases(instances, patterns):
        raise ValueError("none of the --instances is measured for one of the --patterns")
    return Settings(
        instances=_unique(instances),
        patterns=_unique(patterns),
        methods=_methods(arguments.methods, arguments.modules),
        plain_times=plain,
        level_times=level,
        converged=arguments.converged,
        seeds=_unique(_or(arguments.seeds, [0] if quick else [0, 1, 2])),
        threads=arguments.threads,
        longest=_or(arguments.longest, QUICK_LONGEST if quick else 60.0),
        bound=arguments.bound,
        modules=tuple(arguments.modules),
        targets=_or(arguments.targets, not quick),
        cold=arguments.cold,
        memory=_or(arguments.memory, not quick),
        plot=_or(arguments.plot, drawn),
        quiet=arguments.quiet,
        fresh=arguments.fresh,
    )


def _or(given: Any, default: Any) -> Any:
    return default if given is None else given


def _unique(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))


def _methods(given: Sequence[str] | None, modules: Sequence[str]) -> tuple[str, ...]:
    """The labels to measure, after importing the modules."""
    for module in modules:
        importlib.import_module(module)
    return tuple(all_labels()) if given is None else unique_labels(given)


def _out(arguments: argparse.Namespace) -> Path:
    """The file to write; OSError if that cannot be done."""
    if arguments.out is None:
        out = results_file("quality_quick.json" if arguments.quick else "quality.json")
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
    # A log may be read, and is written, as long as the benchmark runs; the JSON when it is done.
    log = out.with_suffix(".runs.jsonl")
    benchmark = Benchmark(settings, log)
    try:
        benchmark.measure()
    except OSError as error:
        print(f"quality: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        _say(settings, benchmark.text())
        print(f"quality: interrupted; the same command continues from {log}", file=sys.stderr)
        return 130
    _say(settings, benchmark.text())
    write_json(out, benchmark.content())
    files = [out, *(benchmark.draw(out) if settings.plot else [])]
    print("Wrote:")
    for file in files:
        print(f"  {file}")
    failed = [one for one in benchmark.runner.failures if not one.refused]
    return 1 if failed or benchmark.problems else 0


if __name__ == "__main__":
    sys.exit(main())
