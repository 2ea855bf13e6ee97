"""Micro-benchmarks of the kernels, as fractions of what a core of this machine can do.

``python -m benchmarks.kernels`` measures in every round every kernel and, in between, the
ceilings, so that each fraction compares times of the same round, and prints medians and spreads
over the rounds. The ceiling of arithmetic is a loop of subtract, maximum and add whose sums stay in
registers, that of memory a copy. A kernel's fraction is the time that the ceilings would need for
the operations and the memory traffic that its work cannot do without, by the time it took: its
thread's processor time, which others on the machine disturb least. With --against, a kernel that
reaches much less of its ceiling than in an earlier file is named, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import machine
from benchmarks.arguments import at_least
from benchmarks.ceiling import RELU_OPERATIONS, copy_loop, relu_loops
from benchmarks.kernel_cases import Case, all_cases
from benchmarks.machine import results_file
from gyroperm.files import check_writable
from gyroperm.report import format_table, write_json

# A sample repeats a call for at least so long.
_SAMPLE_SECONDS = 0.02

# Bytes of the vector that is copied: more than caches hold.
_COPIED = 1 << 27

#: A kernel is named as slower if its fraction falls below so much of the earlier one.
SLOWER = 0.8


def measure(cases: Sequence[Case], *, rounds: int, copied: int = _COPIED) -> dict[str, Any]:
    """Measure ceilings and kernels in turns.

    Parameters
    ----------
    cases : sequence of Case
    rounds : int
        How often each is measured, at least 1.
    copied : int
        Bytes of the vector whose copy is the ceiling of memory.

    Returns
    -------
    dict
        ``ceiling`` has the spreads of ``operations_per_second`` and ``bytes_per_second``;
        ``kernels`` has for each case ``kernel``, ``size``, ``unit``, ``limit`` (``arithmetic`` or
        ``memory``, whichever would take longer), the spreads ``per_second`` and ``fraction``, and
        ``rounds``.
    """
    loops, copy = relu_loops(), copy_loop(copied)
    for call in (*(loop for loop, _ in loops), copy[0], *(case.call for case in cases)):
        call()  # compiles
    rates: list[tuple[float, float]] = []
    seconds: list[list[float]] = [[] for _ in cases]
    for _ in tqdm(range(rounds), unit="round", leave=False, disable=None):
        arithmetic = 0.0
        for case, own in zip(cases, seconds, strict=True):
            # Before every kernel, the fastest of the round: a moment in which the core is shared
            # or clocked down must not pass for its ceiling.
            for loop, operations in loops:
                arithmetic = max(arithmetic, operations / _seconds(loop))
            own.append(_seconds(case.call))
        rates.append((arithmetic, copy[1] / _seconds(copy[0])))
    return {
        "ceiling": {
            "operations_per_second": _spread([rate for rate, _ in rates]),
            "bytes_per_second": _spread([rate for _, rate in rates]),
        },
        "kernels": [_figures(case, own, rates) for case, own in zip(cases, seconds, strict=True)],
    }


def _figures(
    case: Case, seconds: Sequence[float], rates: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    best = [(case.operations / arithmetic, case.traffic / memory) for arithmetic, memory in rates]
    fractions = [max(least) / took for least, took in zip(best, seconds, strict=True)]
    by_arithmetic = statistics.median(a for a, _ in best) >= statistics.median(b for _, b in best)
    return {
        "kernel": case.kernel,
        "size": case.size,
        "unit": case.unit,
        "limit": "arithmetic" if by_arithmetic else "memory",
        "per_second": _spread([case.count / took for took in seconds]),
        "fraction": _spread(fractions),
        "rounds": len(seconds),
    }


def _seconds(call: Callable[[], object]) -> float:
    """The processor time of a call, the mean over as many as fill a sample."""
    calls = 1
    while True:
        begin = time.thread_time()
        for _ in range(calls):
            call()
        took = time.thread_time() - begin
        if took >= _SAMPLE_SECONDS:
            return took / calls
        calls *= 2 if took <= 0 else min(64, max(2, round(1.2 * _SAMPLE_SECONDS / took)))


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def kernels_text(found: dict[str, Any], earlier: dict[str, Any] | None = None) -> str:
    """The ceilings and a row for each kernel; with what an earlier file has beside it."""
    ceiling = found["ceiling"]
    terms = ceiling["operations_per_second"]["median"] / RELU_OPERATIONS / 1e9
    memory = ceiling["bytes_per_second"]["median"] / 1e9
    headers = ["kernel, one thread", "size", "per second", "of ceiling", "least..greatest", "limit"]
    headers += ["before"] * (earlier is not None)
    before = _fractions(earlier or {"kernels": []})
    rows = []
    for one in found["kernels"]:
        fraction = one["fraction"]
        row = [
            one["kernel"],
            one["size"],
            f"{one['per_second']['median']:.3g} {one['unit']}",
            f"{100 * fraction['median']:.3g} %",
            f"{100 * fraction['least']:.3g}..{100 * fraction['greatest']:.3g} %",
            one["limit"],
        ]
        if earlier is not None:
            known = before.get((one["kernel"], one["size"]))
            row.append("-" if known is None else f"{100 * known:.3g} %")
        rows.append(row)
    return (
        f"ceiling of a core: {terms:.1f} G terms/s (maximum and addition, in registers), "
        f"{memory:.1f} GB/s read and written by a copy\n\n{format_table(headers, rows)}"
    )


def slower(found: dict[str, Any], earlier: dict[str, Any]) -> list[str]:
    """A line for each kernel whose fraction fell below :data:`SLOWER` of the earlier one."""
    before, now = _fractions(earlier), _fractions(found)
    return [
        f"{' '.join(case)}: {100 * now[case]:.3g} % of the ceiling, before {100 * was:.3g} %"
        for case, was in before.items()
        if case in now and now[case] < SLOWER * was
    ]


def _fractions(found: dict[str, Any]) -> dict[tuple[str, str], float]:
    return {(one["kernel"], one["size"]): one["fraction"]["median"] for one in found["kernels"]}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--rounds", type=lambda text: at_least(1, text), metavar="N", help="default: 9; quick: 3"
    )
    parser.add_argument("--quick", action="store_true", help="the smaller sizes, in seconds")
    parser.add_argument(
        "--against", type=Path, metavar="FILE", help="a JSON file of an earlier run to compare with"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the JSON file to write (default: kernels.json, with --quick kernels_quick.json, in "
        "benchmarks/results)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; the exit code is 0, 1 if a kernel is slower, or 2 for bad usage."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    quick = arguments.quick
    out = arguments.out or results_file("kernels_quick.json" if quick else "kernels.json")
    earlier = None
    try:
        check_writable(out)
        if arguments.against is not None:
            earlier = json.loads(arguments.against.read_text(encoding="utf-8"))
            _fractions(earlier)
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(str(error))
    described: dict[str, Any] = {"date": datetime.now(UTC).isoformat(timespec="seconds")}
    described |= {"machine": machine.describe(), "load_average": machine.load_average()}
    rounds = arguments.rounds or (3 if quick else 9)
    found = measure(all_cases(quick=quick), rounds=rounds)
    print(machine.headline(machine.describe()))
    print(f"\n{kernels_text(found, earlier)}")
    write_json(out, {**described, **found})
    print(f"\nWrote:\n  {out}")
    fell = slower(found, earlier) if earlier is not None else []
    for line in fell:
        print(f"slower: {line}", file=sys.stderr)
    return 1 if fell else 0


if __name__ == "__main__":
    sys.exit(main())
