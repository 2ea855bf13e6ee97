"""What the benchmarks of whole models share: their options, their log of runs, their file."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.arguments import at_least
from benchmarks.quality_runs import conditions
from benchmarks.run_log import RunLog
from benchmarks.spread import Spread
from gyroperm.files import check_writable
from gyroperm.report import write_json


def add_options(parser: argparse.ArgumentParser, name: str) -> None:
    """The options of every such benchmark; its file is ``name.json``."""
    add = parser.add_argument
    add("--threads", type=partial(at_least, 1), default=1, metavar="N", help="default: 1")
    add("--quick", action="store_true", help="a small run, to see that it works")
    add("--fresh", action="store_true", help="measure again what an earlier run has logged")
    add("--quiet", action="store_true", help="show no progress and no table")
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help=f"the JSON file (default: {name}.json, with --quick {name}_quick.json, in "
        f"benchmarks/results); the log of runs goes beside it",
    )


class Session:
    """One call of a benchmark.

    Parameters
    ----------
    name : str
        Of its file.
    arguments : Namespace
        With the options of :func:`add_options`.
    packages : sequence of str
        Those whose versions matter besides gyroperm's own.

    Raises
    ------
    OSError
        If the file cannot be written.
    """

    def __init__(self, name: str, arguments: argparse.Namespace, packages: Sequence[str]) -> None:
        default = f"{name}_quick.json" if arguments.quick else f"{name}.json"
        self.out: Path = arguments.out or machine.results_file(default)
        check_writable(self.out)
        self._about = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine.describe(packages),
            "load_average": machine.load_average(),
            "threads": arguments.threads,
        }
        self._log = RunLog(
            self.out.with_suffix(".runs.jsonl"),
            {**conditions(packages), "threads": arguments.threads},
            fresh=arguments.fresh,
        )

    @property
    def headline(self) -> str:
        """The machine and the versions, for people."""
        return machine.headline(self._about["machine"])

    def measured(
        self, key: Mapping[str, Any], measure: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """What was measured for a key, by this call or an interrupted one before."""
        found: dict[str, Any] = self._log.measured(key, measure)
        return found

    def write(self, content: Mapping[str, Any]) -> None:
        """Write the file: where the figures come from, and the figures."""
        write_json(self.out, {**self._about, **content})


def spread_text(runs: Sequence[Mapping[str, Any]], name: str, form: str) -> str:
    """Median, least and greatest of one figure."""
    return Spread.of([run[name] for run in runs]).text(form)


def change_text(
    without: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]], name: str, form: str
) -> str:
    """The spread of what each run has more than the one without that it belongs to."""
    changes = [b[name] - a[name] for a, b in zip(without, runs, strict=True)]
    return Spread.of(changes).text(form)
