"""How sparse a matrix must be for a lossless order: the least sparsity at which methods find one.

``python -m benchmarks.lossless`` thins out random matrices and pruned layers of all-MiniLM-L6-v2,
lets ``gyroperm.lossless`` search by every method for the same time at each sparsity, and narrows
down by bisection where each method stops finding an order in which 2:4 (or another n:m) keeps
every nonzero; beside it, up to which sparsity there is proven to be none. Everything, with the
machine, goes into a JSON file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import gyroperm
from benchmarks import machine, minilm
from benchmarks.arguments import at_least, positive_seconds
from gyroperm import Pattern
from gyroperm.files import check_writable
from gyroperm.report import format_table, pattern_figures, write_json
from gyroperm.solvers import registry

RESULTS = Path(__file__).with_name("results")

# Sparsities are bisected to this many steps of a hundredth.
_STEPS = 100


def random_matrix(rows: int, columns: int, seed: int) -> NDArray[np.float32]:
    """Weights of random magnitude: which of them a sparsity leaves is anyone's guess."""
    return np.random.default_rng(seed).random((rows, columns), dtype=np.float32) + 1.0


def layer(name: str, seed: int) -> NDArray[np.float32]:
    """A layer of all-MiniLM-L6-v2, the same for every seed."""
    return minilm.linear_weights([name])[name]


#: The matrices that are thinned out, by name: a function of the seed.
INSTANCES: dict[str, Callable[[int], NDArray[np.float32]]] = {
    "random-64x64": partial(random_matrix, 64, 64),
    "random-128x128": partial(random_matrix, 128, 128),
    "random-384x384": partial(random_matrix, 384, 384),
    "layer.0.attention.self.query": partial(layer, "encoder.layer.0.attention.self.query"),
    "layer.3.attention.output.dense": partial(layer, "encoder.layer.3.attention.output.dense"),
}
QUICK = ("random-64x64", "layer.0.attention.self.query")


def thinned(weights: NDArray[np.float32], sparsity: float) -> NDArray[np.float32]:
    """The weights without the smallest of the whole matrix; the more, the sparser."""
    order = np.argsort(np.abs(weights), axis=None, kind="stable")
    result = weights.copy()
    result.reshape(-1)[order[: round(sparsity * weights.size)]] = 0.0
    return result


@dataclass(frozen=True)
class Attempt:
    """A search for a lossless order.

    Attributes
    ----------
    instance, method : str
    seed : int
    sparsity : float
    status : str
        Of the solution.
    lost : int
        Nonzeros not kept.
    seconds : float
    """

    instance: str
    method: str
    seed: int
    sparsity: float
    status: str
    lost: int
    seconds: float


def least(succeeds: Callable[[float], bool]) -> float | None:
    """The least sparsity, in hundredths, at which something succeeds, by bisection.

    It is taken to succeed at every sparsity above one at which it does; None if it never does.
    """
    low, high = 0, _STEPS
    while low < high:
        middle = (low + high) // 2
        if succeeds(middle / _STEPS):
            high = middle
        else:
            low = middle + 1
    return low / _STEPS if low < _STEPS else None


def measure(
    instance: str, method: str, seed: int, pattern: Pattern, budget: float, threads: int | None
) -> tuple[float | None, list[Attempt]]:
    """The least sparsity at which a method finds a lossless order, and its attempts."""
    weights = INSTANCES[instance](seed)
    attempts = []

    def succeeds(sparsity: float) -> bool:
        solution = gyroperm.lossless(
            thinned(weights, sparsity),
            pattern=pattern,
            method=method,
            time_limit=budget,
            seed=seed,
            threads=threads,
        )
        attempts.append(
            Attempt(
                *(instance, method, seed, sparsity),
                *(solution.status, solution.lost, solution.seconds),
            )
        )
        return solution.status == "lossless"

    return least(succeeds), attempts


def _measured(
    runs: Sequence[tuple[str, str, int]],
    pattern: Pattern,
    budget: float,
    threads: int | None,
    quiet: bool,
) -> tuple[list[dict[str, Any]], list[str]]:
    """What was found for each instance, method and seed, and what was refused."""
    results = []
    failures = []
    for instance, method, seed in tqdm(runs, unit="run", disable=quiet, leave=False):
        try:
            found, attempts = measure(instance, method, seed, pattern, budget, threads)
        except ValueError as error:
            # A method need not know every pattern.
            failures.append(f"{method}, {instance}: {error}")
            continue
        results.append(
            {
                "instance": instance,
                "method": method,
                "seed": seed,
                "least": found,
                "attempts": attempts,
            }
        )
    return results, failures


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{100 * mean(known):.1f} %" if len(known) == len(values) else "-"


def _text(results: Sequence[dict[str, Any]], methods: Sequence[str]) -> str:
    rows = []
    for instance in dict.fromkeys(r["instance"] for r in results):
        mine = [r for r in results if r["instance"] == instance]
        proven = [a.sparsity for r in mine for a in r["attempts"] if a.status == "infeasible"]
        cells = [_mean([r["least"] for r in mine if r["method"] == method]) for method in methods]
        rows.append([instance, *cells, f"{100 * max(proven):.0f} %" if proven else "-"])
    return format_table(["matrix", *methods, "none up to"], rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lossless",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--instances", nargs="+", choices=INSTANCES, metavar="NAME", help=", ".join(INSTANCES))
    add("--methods", nargs="+", metavar="NAME", help="registered methods (default: all)")
    add("--n", type=partial(at_least, 1), default=2, help="default 2")
    add("--m", type=partial(at_least, 1), default=4, help="default 4")
    add(
        "--budget",
        type=positive_seconds,
        metavar="S",
        help="seconds for each search (default 3; quick: 0.5)",
    )
    add(
        "--seeds",
        nargs="+",
        type=partial(at_least, 0),
        metavar="N",
        help="of matrices and searches (default 0 1 2; quick: 0)",
    )
    add("--threads", type=partial(at_least, 1), metavar="N", help="default: all cores")
    add("--quick", action="store_true", help="two matrices, one seed, short searches")
    add("--out", type=Path, metavar="FILE", help="the JSON file (default: in benchmarks/results)")
    add("--quiet", action="store_true", help="show no progress and no table")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; the exit code is 0, 1 if a search failed, or 2 for bad usage."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    quick = arguments.quick
    default = "lossless_quick.json" if quick else "lossless.json"
    try:
        pattern = Pattern.nm(arguments.n, arguments.m)
        names = arguments.methods or registry.names("saliency")
        methods = list(dict.fromkeys(registry.get(name).name for name in names))
        if arguments.out is None:
            RESULTS.mkdir(exist_ok=True)
        out = arguments.out or RESULTS / default
        check_writable(out)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    budget = arguments.budget or (0.5 if quick else 3.0)
    instances = arguments.instances or (QUICK if quick else tuple(INSTANCES))
    seeds = arguments.seeds or ([0] if quick else [0, 1, 2])
    results, failures = _measured(
        [(i, method, seed) for i in instances for method in methods for seed in seeds],
        *(pattern, budget, arguments.threads, arguments.quiet),
    )
    about = machine.describe()
    content = {
        "machine": about,
        "pattern": pattern_figures(pattern),
        "budget": budget,
        "threads": arguments.threads,
        "results": results,
        "failures": failures,
    }
    write_json(out, content)
    if not arguments.quiet:
        shown = [name for name in methods if any(r["method"] == name for r in results)]
        print(machine.headline(about))
        print(f"\nleast sparsity with a lossless order for {pattern}, {budget:g} s for each search")
        print(_text(results, shown))
        print(f"\nWrote:\n  {out}")
    for failure in failures:
        print(f"lossless: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
