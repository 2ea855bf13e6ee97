"""A run in a process of its own, and the most memory that the process occupies.

In a process of its own, since memory that an earlier search returned is not given back to the
system at once, and would be counted for the next or hide what that takes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.instances import Loader
from benchmarks.machine import ROOT
from benchmarks.quality_runs import Run, Runner
from gyroperm.memory import peak_bytes


def measure(
    run: Run, *, threads: int | None, longest: float, modules: Sequence[str] = ()
) -> dict[str, Any]:
    """A run in a process that does nothing else, and the peak of its resident memory in bytes.

    That is with Python, numpy, the compiled kernels and the instance itself; what a run of the
    method ``identity`` takes is the part that has nothing to do with searching.

    Parameters
    ----------
    run : Run
    threads, longest
        As for :class:`benchmarks.quality_runs.Runner`.
    modules : sequence of str
        Modules to import before, which register methods.

    Returns
    -------
    dict
        ``figures`` and ``cut`` of :class:`benchmarks.quality_runs.Measured`, and ``peak_bytes``.

    Raises
    ------
    RuntimeError
        If the process fails; the message is what it said.
    """
    options = {"threads": threads, "longest": longest}
    command = [sys.executable, "-m", "benchmarks.peak_memory", json.dumps([asdict(run), options])]
    done = subprocess.run(
        [*command, *modules], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the process that should make {run} failed:\n{done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def make_here(run: Run, *, threads: int | None, longest: float) -> dict[str, Any]:
    """As :func:`measure`, in this process; the peak is then of all that it ever did."""
    runner = Runner(Loader(), threads=threads, longest=longest)
    measured = runner.make(run)
    if measured is None:
        raise RuntimeError(runner.failures[0].error)
    return {"figures": measured.figures, "cut": measured.cut, "peak_bytes": peak_bytes()}


def main(argv: Sequence[str] | None = None) -> int:
    """Make the run that :func:`measure` describes, and print what it gave and the peak."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peak_memory", description=__doc__)
    parser.add_argument("described", type=json.loads, help="the run and the runner's options")
    parser.add_argument("modules", nargs="*", help="modules to import before")
    arguments = parser.parse_args(argv)
    for module in arguments.modules:
        importlib.import_module(module)
    fields, options = arguments.described
    try:
        found = make_here(Run(**fields), **options)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
