"""Packed matrices on a CUDA card: every kernel against cuBLAS, cuSPARSELt and the card's ceilings.

``python -m benchmarks.spmm`` measures the ceilings of memory, L2 and tensor cores; products of
HiNM and vector N:M matrices of a language model's shapes by every kernel, by the one that the
dispatcher takes, by cuBLAS and by cuSPARSELt, all in turns; transposes; tiles of different
lengths; layers; a chain of them. Matrices are made at random, without a search. What a contender
computes is checked before it is timed. Weights are gone through in so many copies that L2 holds
none. Every finished case goes into a log beside the JSON file: the same command continues what
was interrupted, and ``--only`` adds sections. ``--table`` prints the tables of a JSON file,
``--sanitize`` runs a small launch of every kernel under compute-sanitizer.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import machine, spmm_card, spmm_sanitize
from benchmarks.arguments import at_least
from benchmarks.machine import results_file
from benchmarks.run_log import RunLog
from benchmarks.spmm_goals import judge
from benchmarks.spmm_report import case_name, tables
from benchmarks.spmm_sections import SECTIONS, Bench, Item
from benchmarks.spmm_tensors import DEVICE
from benchmarks.spmm_timing import FAILURES, on_card
from gyroperm.files import check_writable
from gyroperm.report import write_json

SCHEMA = 1
ROUNDS, QUICK_ROUNDS = 15, 5
WAYS, QUICK_WAYS = 4, 2

_PACKAGES = ("torch", "cupy-cuda12x", "cupy-cuda13x")


class LostCardError(Exception):
    """A kernel has left the card in a state that only another process gets out of."""


def is_lost() -> bool:
    """Whether CUDA refuses to compute anything in this process."""
    import torch

    try:
        torch.cuda.synchronize()
        return int(torch.ones(1, device=DEVICE).sum()) != 1
    except RuntimeError:
        return True


class Measured:
    """The benchmark under way.

    Parameters
    ----------
    bench : Bench
    log : RunLog
    quick : bool
    retry : bool
        Measure again what failed.
    is_lost : callable
        Whether the card cannot be used any more.
    """

    def __init__(
        self,
        bench: Bench,
        log: RunLog,
        *,
        quick: bool,
        retry: bool,
        is_lost: Callable[[], bool],
    ) -> None:
        self._bench, self._log, self._is_lost = bench, log, is_lost
        self._quick, self._retry = quick, retry

    def items(self, sections: Sequence[str]) -> Iterator[Item]:
        """All cases of these sections, in the order of :data:`SECTIONS`."""
        for name, section in SECTIONS.items():
            if name in sections:
                yield from section(quick=self._quick)

    def measure(self, sections: Sequence[str]) -> None:
        """Measure every case that the log does not have.

        Raises
        ------
        LostCardError
            If the card cannot be used any more; what has failed is noted, so that the next
            process leaves it out.
        """
        items = list(self.items(sections))
        for i, item in enumerate(items):
            known = self._log.find(item.key)
            if known is not None and not (self._retry and "error" in known):
                continue
            print(f"{i + 1}/{len(items)} {case_name(item.key)}", file=sys.stderr, flush=True)
            try:
                found: dict[str, Any] = {"contenders": item.measure(self._bench)}
            except FAILURES as error:
                found = {"error": f"{type(error).__name__}: {error}"}
            lost = self._is_lost()
            if lost and "contenders" in found:
                # Whichever broke it, those after it were not to blame.
                found = {"error": f"the card was lost: {_reasons(found['contenders'])}"}
            self._log.add(item.key, found)
            if lost:
                raise LostCardError(f"{case_name(item.key)}: {found['error']}")

    def cases(self) -> list[dict[str, Any]]:
        """Every case of every section that has been measured, with its contenders."""
        return [{**key, **found} for key, found in self._found() if "contenders" in found]

    def problems(self) -> list[dict[str, Any]]:
        """What failed, and every contender that computed something wrong."""
        failed = [{**key, **found} for key, found in self._found() if "error" in found]
        return failed + [
            {**key, "label": label, "wrong": one["wrong"]}
            for key, found in self._found()
            for label, one in found.get("contenders", {}).items()
            if "wrong" in one
        ]

    def _found(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        known = ((item.key, self._log.find(item.key)) for item in self.items(list(SECTIONS)))
        return [(key, found) for key, found in known if found is not None]


def _reasons(contenders: dict[str, dict[str, Any]]) -> str:
    absent = (f"{label}: {one['absent']}" for label, one in contenders.items() if "absent" in one)
    return "; ".join(absent) or "by a contender that was being timed"


def conditions(card: dict[str, Any], rounds: int, ways: int) -> dict[str, Any]:
    """What a measurement depends on: the card, its driver, what was asked for, and the code."""
    named = ("name", "cuda_driver", "cuda_runtime", "torch_cuda")
    asked = {"rounds": rounds, "ways": ways}
    return {**{name: card[name] for name in named}, **asked, "code": code_digest()}


def code_digest() -> str:
    """A digest of the kernels, what plans them, and what measures them."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    measuring = [file for file in here.glob("spmm*") if file.stem not in ("spmm_report", "spmm")]
    for file in sorted([*(machine.ROOT / "gpu").rglob("*"), *measuring]):
        if file.suffix in (".py", ".cu", ".h"):
            digest.update(f"{file.name}\n".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def content(
    measured: Measured, card: dict[str, Any], rounds: int, *, quick: bool
) -> dict[str, Any]:
    """Everything that was measured, ready for JSON."""
    cases = measured.cases()
    return {
        "schema": SCHEMA,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "rounds": rounds,
        "card": card,
        "machine": machine.describe(_PACKAGES),
        "cases": cases,
        "goals": judge(cases),
        "problems": measured.problems(),
    }


def read(path: Path) -> dict[str, Any]:
    """A results file.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it is no results file of this benchmark.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["schema"] != SCHEMA:
            raise ValueError(f"its schema is {found['schema']}, this version reads {SCHEMA}")
        tables(found)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no results file of benchmarks.spmm: {error!r}") from error
    return dict(found)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.spmm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=SECTIONS,
        metavar="SECTION",
        help=f"of {', '.join(SECTIONS)} (default: all); the JSON file has what was measured before "
        f"of the others too",
    )
    parser.add_argument("--quick", action="store_true", help="one shape, three N, a minute or two")
    parser.add_argument(
        "--rounds",
        type=lambda text: at_least(1, text),
        metavar="N",
        help=f"default: {ROUNDS}; quick: {QUICK_ROUNDS}",
    )
    parser.add_argument(
        "--ways",
        type=lambda text: at_least(1, text),
        metavar="N",
        help=f"measure so many ways of each kernel, those that the model predicts to be fastest "
        f"(default: {WAYS}; quick: {QUICK_WAYS})",
    )
    parser.add_argument("--fresh", action="store_true", help="begin a new log of cases")
    parser.add_argument("--retry", action="store_true", help="measure again what failed")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the JSON file to write (default: spmm.json, with --quick spmm_quick.json, in "
        "benchmarks/results)",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--table", type=Path, metavar="FILE", help="print the tables of a JSON file; needs no card"
    )
    instead.add_argument(
        "--sanitize",
        action="store_true",
        help="run a small launch of every kernel under compute-sanitizer's memcheck and racecheck",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; the exit code is 0, 1 if something failed, or 2 for bad usage.

    Also 2 where there is no card to measure on, before anything is done; 130 if interrupted.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        if arguments.table is not None:
            print(tables(read(arguments.table)))
            return 0
        spmm_card.require_card()
        if arguments.sanitize:
            return spmm_sanitize.sanitize(spmm_sanitize.find_sanitizer())
        out = _out(arguments)
    except spmm_card.NoCardError as error:
        print(f"spmm: error: no card to measure on: {error}", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return _measure(arguments, out)


def _out(arguments: argparse.Namespace) -> Path:
    """The file to write; OSError if that cannot be done."""
    if arguments.out is None:
        out = results_file("spmm_quick.json" if arguments.quick else "spmm.json")
    else:
        out = arguments.out
    check_writable(out)
    return Path(out)


def _measure(arguments: argparse.Namespace, out: Path) -> int:
    quick = arguments.quick
    rounds = arguments.rounds or (QUICK_ROUNDS if quick else ROUNDS)
    ways = arguments.ways or (QUICK_WAYS if quick else WAYS)
    card = spmm_card.describe()
    path = out.with_suffix(".runs.jsonl")
    log = RunLog(path, conditions(card, rounds, ways), fresh=arguments.fresh)
    bench = Bench(card, rounds, ways, on_card)
    measured = Measured(bench, log, quick=quick, retry=arguments.retry, is_lost=is_lost)
    print(f"{machine.headline(machine.describe(_PACKAGES))}\n{card['name']}\n", flush=True)
    lost = False
    try:
        measured.measure(arguments.only or list(SECTIONS))
    except KeyboardInterrupt:
        print(f"spmm: interrupted; the same command continues from {path}", file=sys.stderr)
        return 130
    except LostCardError as error:
        lost = True
        print(f"spmm: {error}", file=sys.stderr)
        print("spmm: the same command continues with the next case", file=sys.stderr)
    found = content(measured, card, rounds, quick=quick)
    write_json(out, found)
    print(f"{tables(found)}\n\nWrote:\n  {out}")
    for problem in found["problems"]:
        said = problem.get("error") or f"{problem['label']} is wrong: {problem['wrong']}"
        print(f"failed: {case_name(problem)}: {said}", file=sys.stderr)
    return 1 if lost or found["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
