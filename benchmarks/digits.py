"""A convolution network on scikit-learn's digits, pruned with and without permutation.

``python -m benchmarks.digits`` trains a small residual network for each seed, prunes it to 2:4 and
1:4 by magnitude, as it lies and with its channels reordered first (found by tracing, and proven to
leave its function unchanged), and fine-tunes both with their masks held: accuracies on the half of
the digits that no training has seen, as pruned, with the statistics of batch norms taken anew, and
fine-tuned.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from benchmarks.arguments import at_least
from benchmarks.model_runs import Session, add_options, change_text, spread_text
from gyroperm.models import KeepMask, sparsify
from gyroperm.report import format_table

PATTERNS = ("2:4", "1:4")
PACKAGES = ("torch", "scikit-learn")

# What training adds to a seed, so that fine-tuning sees its batches in another order.
_FINE_TUNING = 1000

#: The figures of the table, their titles and formats.
_COLUMNS = {
    "ratio": ("retained/unstructured", ".4f"),
    "efficacy": ("efficacy, %", ".1f"),
    "pruned": ("accuracy pruned, %", ".2f"),
    "renormed": ("norms anew, %", ".2f"),
    "tuned": ("fine-tuned, %", ".2f"),
}


class Block(nn.Module):
    """Two convolutions beside the residual stream."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Feature maps to feature maps of the same shape."""
        y = self.norm1(self.conv1(x)).relu()
        y = self.norm2(self.conv2(y))
        return (x + y).relu()


class Network(nn.Module):
    """Digits of 8 x 8 pixels to scores of ten classes.

    Parameters
    ----------
    width : int
        Channels of the first half; the second has twice as many.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        self.first = Block(width)
        self.wider = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.wider_norm = nn.BatchNorm2d(2 * width)
        self.second = Block(2 * width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(2 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pictures (N, 1, 8, 8) to scores (N, 10)."""
        x = self.first(self.stem_norm(self.stem(x)).relu())
        x = self.second(self.wider_norm(self.wider(x)).relu())
        return self.classifier(self.pool(x).flatten(1))


@dataclass(frozen=True)
class Settings:
    """How the networks are trained.

    Attributes
    ----------
    width : int
        See :class:`Network`.
    epochs, tuning : int
        Of training, and of fine-tuning.
    batch : int
    rate, tuning_rate : float
        What Adam begins with; it falls to zero along a cosine.
    """

    width: int = 16
    epochs: int = 30
    tuning: int = 5
    batch: int = 32
    rate: float = 3e-3
    tuning_rate: float = 1e-3


@dataclass(frozen=True)
class Digits:
    """Pictures (N, 1, 8, 8) of float32 in 0 to 1, and their classes (N,) of int64."""

    pictures: torch.Tensor
    classes: torch.Tensor

    def __len__(self) -> int:
        return len(self.classes)


def load_digits() -> tuple[Digits, Digits]:
    """Those to train with and those to test with: the two halves, as they are numbered."""
    from sklearn import datasets

    found = datasets.load_digits()
    pictures = torch.from_numpy(found.images).float().unsqueeze(1) / 16
    classes = torch.from_numpy(found.target).long()
    half = len(classes) // 2
    return Digits(pictures[:half], classes[:half]), Digits(pictures[half:], classes[half:])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the context torch draws from a seed; afterwards goes on as if nothing had been."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Digits,
    epochs: int,
    batch: int,
    seed: int,
) -> None:
    """Train in place, in batches whose order the seed decides."""
    generator = torch.Generator().manual_seed(seed)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(data), generator=generator).split(batch):
            optimizer.zero_grad()
            scores = model(data.pictures[rows])
            nn.functional.cross_entropy(scores, data.classes[rows]).backward()
            optimizer.step()
        rate.step()


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits) -> float:
    """The share of pictures whose class scores highest, in percent."""
    model.eval()
    right = model(data.pictures).argmax(dim=1) == data.classes
    return 100 * float(right.double().mean())


@torch.no_grad()
def renormed(model: nn.Module, data: Digits) -> nn.Module:
    """A copy whose batch norms have the statistics of what they are fed now; nothing is trained."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean over what comes
    model.train()
    model(data.pictures)
    return model


class Benchmark:
    """Trains, prunes and fine-tunes.

    Parameters
    ----------
    settings : Settings
    threads : int
        Of the search.
    """

    def __init__(self, settings: Settings, threads: int) -> None:
        self.settings = settings
        self.threads = threads

    @cached_property
    def data(self) -> tuple[Digits, Digits]:
        """For training and for testing."""
        return load_digits()

    def trained(self, seed: int) -> Network:
        """A dense network."""
        settings = self.settings
        with seeded(seed):
            model = Network(settings.width)
        optimizer = torch.optim.Adam(model.parameters(), lr=settings.rate)
        train(model, optimizer, self.data[0], settings.epochs, settings.batch, seed)
        return model

    def measure(self, seed: int, patterns: Sequence[str]) -> dict[str, Any]:
        """One network, dense and pruned in every way; ready for JSON."""
        begin = time.perf_counter()
        dense = self.trained(seed)
        return {
            "seed": seed,
            "dense": accuracy(dense, self.data[1]),
            "weights": sum(p.numel() for p in dense.parameters()),
            "training_seconds": time.perf_counter() - begin,
            "pruned": [
                self.prune(dense, seed, pattern, surgery)
                for pattern in patterns
                for surgery in (False, True)
            ],
        }

    def prune(self, dense: Network, seed: int, pattern: str, surgery: bool) -> dict[str, Any]:
        """A copy of a network pruned, and fine-tuned."""
        training, testing = self.data
        settings = self.settings
        model = copy.deepcopy(dense)
        report = sparsify(
            model,
            pattern,
            surgery=surgery,
            method="auto" if surgery else "identity",
            seed=seed,
            threads=self.threads,
            inputs=training.pictures[:8],
            progress=False,
        )
        pruned = accuracy(model, testing)
        anew = accuracy(renormed(model, training), testing)
        optimizer = torch.optim.Adam(model.parameters(), lr=settings.tuning_rate)
        order = seed + _FINE_TUNING
        with KeepMask(model, report).attach(optimizer):
            train(model, optimizer, training, settings.tuning, settings.batch, order)
        zeros = sum(int((model.get_parameter(n) == 0).sum()) for n in report.masks)
        totals = report.totals
        return {
            "seed": seed,
            "pattern": pattern,
            "surgery": surgery,
            "ratio": totals["ratio"],
            "efficacy": totals["efficacy"],
            "kept": totals["kept"],
            "masked": totals["weights"],
            "pruned": pruned,
            "renormed": anew,
            "tuned": accuracy(model, testing),
            "zeros_after_tuning": zeros,
            "search_seconds": totals["seconds"],
            "verified": report.as_dict()["verified"],
            "skipped": dict(report.skipped),
        }


def tables(results: Sequence[dict[str, Any]]) -> str:
    """Every pattern without permutation and with surgery, and the change from one to the other."""
    every = [one for result in results for one in result["pruned"]]
    rows = []
    for pattern in dict.fromkeys(one["pattern"] for one in every):
        own = [one for one in every if one["pattern"] == pattern]
        without, surgery = ([r for r in own if r["surgery"] == kind] for kind in (False, True))
        for name, runs in (("none", without), ("surgery", surgery)):
            cells = [spread_text(runs, key, form) for key, (_, form) in _COLUMNS.items()]
            rows.append([pattern, name, *cells])
        cells = [change_text(without, surgery, key, "+" + f) for key, (_, f) in _COLUMNS.items()]
        rows.append([pattern, "surgery less none", *cells])
    titles = [title for title, _ in _COLUMNS.values()]
    return (
        f"accuracy dense, %: {spread_text(results, 'dense', '.2f')}\n\n"
        f"{format_table(['pattern', 'permutation', *titles], rows)}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.digits", description=__doc__)
    add = parser.add_argument
    add(
        "--seeds",
        nargs="+",
        type=partial(at_least, 0),
        metavar="N",
        help="of training and search (default: 0 1 2 3 4; quick: 0)",
    )
    add("--patterns", nargs="+", choices=PATTERNS, default=PATTERNS, help="default: both")
    add(
        "--epochs",
        type=partial(at_least, 1),
        metavar="N",
        help=f"of training (default: {Settings.epochs}; quick: 4)",
    )
    add(
        "--tuning",
        type=partial(at_least, 1),
        metavar="N",
        help=f"epochs of fine-tuning (default: {Settings.tuning}; quick: 1)",
    )
    add_options(parser, "digits")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; the exit code is 0, 1 without scikit-learn, 2 for bad usage."""
    parser = _parser()
    given = parser.parse_args(argv)
    try:
        session = Session("digits", given, PACKAGES)
    except OSError as error:
        parser.error(str(error))
    settings = Settings(
        epochs=given.epochs or (4 if given.quick else Settings.epochs),
        tuning=given.tuning or (1 if given.quick else Settings.tuning),
    )
    benchmark = Benchmark(settings, given.threads)
    seeds = given.seeds or ([0] if given.quick else [0, 1, 2, 3, 4])
    results = []
    before = torch.get_num_threads()
    torch.set_num_threads(given.threads)
    try:
        for seed in tqdm(seeds, unit="seed", disable=given.quiet, leave=False):
            key = {"seed": seed, "patterns": given.patterns, **asdict(settings)}
            results.append(session.measured(key, partial(benchmark.measure, seed, given.patterns)))
    except ImportError as error:
        print(f"digits: {error}; pip install -e '.[demo]' installs it", file=sys.stderr)
        return 1
    finally:
        torch.set_num_threads(before)
    session.write({"settings": settings, "results": results})
    if not given.quiet:
        print(session.headline)
        print(
            f"\nscikit-learn's digits, {results[0]['weights']} weights, seeds "
            f"{' '.join(map(str, seeds))}, pruned by magnitude\n"
        )
        print(tables(results))
        print(f"\nWrote:\n  {session.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
