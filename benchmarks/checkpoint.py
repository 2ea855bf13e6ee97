"""A whole checkpoint pruned: weights a second and core, one and two workers, and peak memory.

The checkpoint has the shapes of a language model of 1.1 billion parameters. A few of its blocks are
generated in true size and pruned; what the whole takes is extrapolated from them, and marked so
(with --blocks 22 nothing is). --for-parameters says what the pace means for a larger model; see
docs/checkpoints.md for what that assumes:

    seconds = weights / (pace * cores) + bytes * (1 / read + 1 / write) / disks
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.arguments import at_least
from benchmarks.instances import language_model
from benchmarks.machine import results_file
from gyroperm import Pattern
from gyroperm.checkpoints import Job, Settings, prune_checkpoint
from gyroperm.files import check_writable
from gyroperm.report import format_table, write_json

#: The weights of a block of TinyLlama 1.1B, (out, in), and how many blocks it has.
BLOCK = {
    "self_attn.q_proj": (2048, 2048),
    "self_attn.k_proj": (256, 2048),
    "self_attn.v_proj": (256, 2048),
    "self_attn.o_proj": (2048, 2048),
    "mlp.gate_proj": (5632, 2048),
    "mlp.up_proj": (5632, 2048),
    "mlp.down_proj": (2048, 5632),
}
BLOCKS = 22
#: Blocks an eighth as wide, for trying out.
QUICK = {name: (rows // 8, columns // 8) for name, (rows, columns) in BLOCK.items()}

PATTERNS = {"2:4": Pattern.nm(), "hinm75-v64": Pattern.hinm(vec_size=64)}


def generate(folder: Path, blocks: int, shapes: dict[str, tuple[int, int]]) -> int:
    """Write a folder with a shard for each block, in BF16; returns its weights."""
    folder.mkdir(parents=True)
    placed, weights = {}, 0
    for block in range(blocks):
        file = f"model-{block + 1:05}-of-{blocks:05}.safetensors"
        header: dict[str, Any] = {}
        end = 0
        for name, (rows, columns) in shapes.items():
            begin, end = end, end + 2 * rows * columns
            header[f"model.layers.{block}.{name}.weight"] = {
                "dtype": "BF16",
                "shape": [rows, columns],
                "data_offsets": [begin, end],
            }
        placed |= dict.fromkeys(header, file)
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for rows, columns in shapes.values():
                matrix = language_model(rows, columns, block)
                out.write((matrix.view(np.uint32) >> 16).astype("<u2").tobytes())
                weights += rows * columns
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return weights


def measure(source: Path, settings: Settings, jobs: int) -> dict[str, Any]:
    """Prune a folder with so many workers of one thread each; times in seconds, sizes in bytes."""
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        begin = time.perf_counter()
        report = prune_checkpoint(Job(source, Path(folder), settings), jobs=jobs, threads=1)
        wall = time.perf_counter() - begin
    layers = report["layers"]
    weights = report["totals"]["weights"]
    steps = sum(layer["seconds"] for layer in layers)
    largest = max(layer["weights"] for layer in layers)
    return {
        "jobs": jobs,
        "weights": weights,
        "seconds": wall,
        "layer_seconds": steps,
        "weights_per_second_and_core": weights / steps,
        "weights_per_second": weights / wall,
        "ratio": report["totals"]["ratio"],
        "efficacy": report["totals"]["efficacy"],
        "peak_bytes": max(layer["peak_bytes"] for layer in layers),
        "allowed_bytes": 2.5 * 4 * largest + 500e6,
    }


def extrapolated(pace: float, weights: float, cores: int, efficiency: float) -> float:
    """The seconds of the searches of so many weights at a pace per core, on so many cores."""
    return weights / (pace * cores * efficiency)


def _text(results: Sequence[dict[str, Any]], arguments: argparse.Namespace, whole: float) -> str:
    rows = []
    for found in results:
        pace = found["weights_per_second_and_core"]
        larger = extrapolated(pace, arguments.for_parameters, arguments.cores, found["scaling"])
        rows.append(
            [
                f"{found['pattern']}, {found['jobs']} workers",
                f"{found['seconds']:.1f}",
                f"{pace / 1e6:.3f}",
                f"{found['scaling']:.2f}",
                f"{found['ratio']:.4f}",
                f"{found['peak_bytes'] / 1e6:.0f} of {found['allowed_bytes'] / 1e6:.0f}",
                f"{whole * found['seconds'] / 60:.1f}",
                f"{larger / 60:.1f}",
            ]
        )
    headers = [
        *("pattern", "seconds", "M weights/s/core", "scaling", "retained/unstructured"),
        *("MB, peak", "whole, min (extrapolated)"),
        f"{arguments.for_parameters / 1e9:g}B on {arguments.cores} cores, min (extrapolated)",
    ]
    return format_table(headers, rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--blocks", type=partial(at_least, 1), default=1, help=f"of {BLOCKS} (default 1)")
    add("--patterns", nargs="+", choices=PATTERNS, default=list(PATTERNS), metavar="NAME")
    add("--jobs", nargs="+", type=partial(at_least, 1), default=[1, 2], help="default 1 2")
    add("--method", default="auto", help="default auto")
    add("--rounds", type=partial(at_least, 0), help="of each search (default: until converged)")
    add("--for-parameters", type=float, default=6.5e9, help="weights of a larger model (6.5e9)")
    add("--cores", type=partial(at_least, 1), default=64, help="that it would have (default 64)")
    add("--folder", type=Path, help="where to generate (default: a temporary folder)")
    add("--quick", action="store_true", help="blocks an eighth as wide; for trying out")
    add("--out", type=Path, metavar="FILE", help="the JSON file (default: in benchmarks/results)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Generate, measure, print and write; the exit code is 0, or 2 for bad usage."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        name = "checkpoint_quick.json" if arguments.quick else "checkpoint.json"
        out = arguments.out or results_file(name)
        check_writable(out)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    results = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        source = Path(folder) / "model"
        generate(source, arguments.blocks, QUICK if arguments.quick else BLOCK)
        for pattern in arguments.patterns:
            settings = Settings(PATTERNS[pattern], method=arguments.method, rounds=arguments.rounds)
            alone = None
            for jobs in arguments.jobs:
                found = {"pattern": pattern, **measure(source, settings, jobs)}
                alone = alone or found
                # What a core does beside others, of what it does with the fewest.
                found["scaling"] = (
                    found["weights_per_second"] / alone["weights_per_second"] * alone["jobs"] / jobs
                )
                results.append(found)
    about = machine.describe()
    whole = BLOCKS / arguments.blocks
    content = {
        "machine": about,
        "blocks": arguments.blocks,
        "quick": arguments.quick,
        "extrapolated_by": whole,
        "method": arguments.method,
        "rounds": arguments.rounds,
        "results": results,
    }
    write_json(out, content)
    print(machine.headline(about))
    print(_text(results, arguments, whole))
    print(f"\nWrote:\n  {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
