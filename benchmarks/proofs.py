"""How often searches find what is optimal, and how long proofs of optima and bounds take.

``python -m benchmarks.proofs PART``, for plain 2:4, where PART is

- ``small``: random matrices of 32 x 16, whose optimum is found by listing all partitions, and how
  many of them ``auto`` solves to that optimum in a given time;
- ``optima``: how long ``exact`` takes to prove the optimum of random matrices of 128 x 64;
- ``certificates``: the bounds that ``solve(..., bound=300)`` proves for layers of
  all-MiniLM-L6-v2 with 384 columns, in processes of their own, with their peak memory.

Each part prints a table and writes JSON, with the machine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import gyroperm
from benchmarks import machine, minilm
from benchmarks.arguments import at_least, positive_seconds
from gyroperm.files import check_writable
from gyroperm.memory import peak_bytes
from gyroperm.report import format_table, solution_figures, write_json

#: Random matrices by name: a function of rows, columns and a seed.
KINDS: dict[str, Callable[[int, int, int], NDArray[np.float64]]] = {
    "uniform": lambda rows, columns, seed: np.random.default_rng(seed).random((rows, columns)),
    "gauss": lambda rows, columns, seed: np.random.default_rng(seed).standard_normal(
        (rows, columns)
    ),
}

SMALL_ROWS, SMALL_COLUMNS, SMALL_SEEDS = 32, 16, 100
OPTIMA_ROWS, OPTIMA_COLUMNS, OPTIMA_SEEDS = 128, 64, 10
_BOUND_SECONDS, _SEARCH_SECONDS = 300.0, 30.0

#: The layers whose bounds are proven: each kind with 384 columns, of two encoder layers.
LAYERS = tuple(
    f"encoder.layer.{i}.{kind}" for i in (0, 5) for kind in minilm.KINDS if kind != "output.dense"
)
_QUICK_SEEDS = 3


@cache
def _halvings() -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int64]]:
    """All groups of four of 16 columns, the two groups of every split of 8, and of every 8."""
    groups = np.array(list(combinations(range(16), 4)))
    place = np.full(1 << 16, -1)
    place[(1 << groups).sum(axis=1)] = np.arange(len(groups))
    eights = 1 << np.array(list(combinations(range(16), 8)))
    first = np.array([four for four in combinations(range(8), 4) if four[0] == 0])
    one = eights[:, first].sum(axis=2)
    whole = eights.sum(axis=1)
    return groups, np.stack([place[one], place[whole[:, None] - one]]), whole


def optimum_of_16(saliency: NDArray[np.floating]) -> float:
    """The most that 2:4 keeps of 16 columns, from all partitions into four groups.

    Parameters
    ----------
    saliency : ndarray of float, shape (R, 16)

    Raises
    ------
    ValueError
        If there are not 16 columns.
    """
    if saliency.ndim != 2 or saliency.shape[1] != 16:
        raise ValueError(f"saliency must be of shape (R, 16), got {saliency.shape}")
    groups, pairs, whole = _halvings()
    values = np.sort(saliency[:, groups], axis=2)[:, :, 2:].sum(axis=(0, 2), dtype=np.float64)
    best = np.zeros(1 << 16)
    best[whole] = values[pairs].sum(axis=0).max(axis=1)
    return float((best[whole] + best[whole ^ 0xFFFF]).max())


def is_found(retained: float, optimum: float) -> bool:
    """Whether what a search retained is the optimum, but for rounding."""
    return retained >= optimum * (1.0 - 1e-6)


def small(
    kinds: Sequence[str], seeds: int, budgets: Sequence[float], threads: int | None
) -> Iterator[dict[str, Any]]:
    """What ``auto`` finds of random matrices of 16 columns, beside the optimum."""
    for kind in kinds:
        for seed in range(seeds):
            weights = KINDS[kind](SMALL_ROWS, SMALL_COLUMNS, seed)
            optimum = optimum_of_16(np.abs(weights))
            for budget in budgets:
                solution = gyroperm.solve(weights, time_limit=budget, seed=seed, threads=threads)
                yield {
                    "kind": kind,
                    "seed": seed,
                    "budget": budget,
                    "method": solution.method,
                    "retained": solution.retained,
                    "optimum": optimum,
                    "found": is_found(solution.retained, optimum),
                }


def optima(
    kinds: Sequence[str], seeds: int, budget: float, threads: int | None
) -> Iterator[dict[str, Any]]:
    """The optima that ``exact`` proves of random matrices of 64 columns, and how long it takes."""
    for kind in kinds:
        for seed in range(seeds):
            weights = KINDS[kind](OPTIMA_ROWS, OPTIMA_COLUMNS, seed)
            # Compilation is not measured, in processor time either.
            gyroperm.solve(weights[:8, :16], method="exact", threads=threads)
            begin = time.process_time()
            solution = gyroperm.solve(
                weights, method="exact", time_limit=budget, seed=seed, threads=threads
            )
            yield {
                "kind": kind,
                "seed": seed,
                "budget": budget,
                "processor_seconds": time.process_time() - begin,
                **solution_figures(solution),
            }


def certificates(
    layers: Sequence[str], search: float, bound: float, threads: int | None
) -> Iterator[dict[str, Any]]:
    """The bounds that are proven for layers, each in a process that does nothing else."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
        for name in layers:
            yield pool.submit(_certificate, name, search, bound, threads).result()


def _certificate(name: str, search: float, bound: float, threads: int | None) -> dict[str, Any]:
    weights = minilm.linear_weights([name])[name]
    gyroperm.solve(weights[:8, :16], time_limit=0.1, bound=True, threads=threads)
    begin, processor = time.perf_counter(), time.process_time()
    solution = gyroperm.solve(weights, n=2, m=4, time_limit=search, bound=bound, threads=threads)
    return {
        "layer": name,
        "shape": list(weights.shape),
        "search_limit": search,
        "bound_limit": bound,
        "bound_seconds": time.perf_counter() - begin - solution.seconds,
        "processor_seconds": time.process_time() - processor,
        "peak_bytes": peak_bytes(),
        "bound_efficacy": solution.efficacy + solution.gap_points,
        **solution_figures(solution),
    }


def _small_text(results: Sequence[dict[str, Any]]) -> str:
    cases = dict.fromkeys((r["kind"], r["budget"]) for r in results)
    rows = []
    for kind, budget in cases:
        mine = [r for r in results if (r["kind"], r["budget"]) == (kind, budget)]
        found = sum(r["found"] for r in mine)
        rows.append([kind, f"{budget:g}", f"{found} of {len(mine)}"])
    return format_table(["matrix", "seconds", "optimum found"], rows)


def _optima_text(results: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            f"{r['kind']} {r['seed']}",
            r["status"],
            f"{r['efficacy']:.4f} %",
            f"{r['gap_points']:.4f}",
            f"{r['seconds']:.1f}",
            f"{r['processor_seconds']:.1f}",
        ]
        for r in results
    ]
    return format_table(
        ["matrix", "status", "efficacy", "gap, points", "seconds", "of processors"], rows
    )


def _certificates_text(results: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            r["layer"].removeprefix("encoder."),
            r["bound_kind"],
            f"{r['retained']:.2f}",
            f"{r['bound']:.2f}",
            f"{r['efficacy']:.2f} %",
            f"{r['bound_efficacy']:.2f} %",
            f"{r['gap_points']:.2f}",
            f"{r['bound_seconds']:.0f}",
            f"{r['peak_bytes'] / 2**20:.0f}",
        ]
        for r in results
    ]
    headers = ["layer", "proof", "retained", "bound", "efficacy", "bound", "gap, points"]
    return format_table([*headers, "seconds", "peak MiB"], rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.proofs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("part", choices=("small", "optima", "certificates"))
    add("--kinds", nargs="+", choices=KINDS, metavar="NAME", help=", ".join(KINDS))
    add("--seeds", type=partial(at_least, 1), metavar="N", help="matrices of a kind")
    add(
        "--times",
        nargs="+",
        type=positive_seconds,
        metavar="S",
        help="seconds of a search (default: small 0.05 1, optima 30, certificates 30)",
    )
    add("--layers", nargs="+", choices=LAYERS, metavar="NAME", help=", ".join(LAYERS))
    add("--bound", type=positive_seconds, metavar="S", help="seconds of a bound (default 300)")
    add("--threads", type=partial(at_least, 1), metavar="N", help="default: all cores")
    add("--quick", action="store_true", help="a few matrices or one layer, and a short bound")
    add("--out", type=Path, metavar="FILE", help="the JSON file (default: in benchmarks/results)")
    add("--quiet", action="store_true", help="show no progress and no table")
    return parser


def _measurements(arguments: argparse.Namespace) -> tuple[Iterator[dict[str, Any]], int]:
    """What a command line asks for, made one by one, and how many there are."""
    threads, quick = arguments.threads, arguments.quick
    kinds = arguments.kinds or list(KINDS)
    if arguments.part == "small":
        seeds = arguments.seeds or (_QUICK_SEEDS if quick else SMALL_SEEDS)
        budgets = arguments.times or [0.05, 1.0]
        return small(kinds, seeds, budgets, threads), len(kinds) * seeds * len(budgets)
    limit = (arguments.times or [_SEARCH_SECONDS])[0]
    if arguments.part == "optima":
        seeds = arguments.seeds or (1 if quick else OPTIMA_SEEDS)
        return optima(kinds, seeds, limit, threads), len(kinds) * seeds
    layers = arguments.layers or (LAYERS[:1] if quick else LAYERS)
    bound = arguments.bound or (60.0 if quick else _BOUND_SECONDS)
    return certificates(layers, limit, bound, threads), len(layers)


_TEXTS = {"small": _small_text, "optima": _optima_text, "certificates": _certificates_text}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; the exit code is 0, or 2 for bad usage."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    part = arguments.part
    try:
        quick = "_quick" * arguments.quick
        out = arguments.out or machine.results_file(f"proofs_{part}{quick}.json")
        check_writable(out)
        found, total = _measurements(arguments)
        if arguments.part != "small" and len(arguments.times or []) > 1:
            raise ValueError(f"--times takes one number for {part}")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    about = machine.describe()
    results = []
    try:
        for result in tqdm(found, total=total, unit="run", disable=arguments.quiet, leave=False):
            results.append(result)
            # Written as it grows: an interrupted benchmark keeps what it measured.
            write_json(
                out,
                {
                    "machine": about,
                    "load": machine.load_average(),
                    "threads": arguments.threads,
                    "results": results,
                },
            )
    except FileNotFoundError as error:
        parser.error(str(error))
    if not arguments.quiet:
        print(machine.headline(about))
        print(f"\n{_TEXTS[part](results)}\n\nWrote:\n  {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
