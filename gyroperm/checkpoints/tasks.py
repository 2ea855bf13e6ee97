"""The steps of a run, each of which reads from the disk and writes to it, wherever it is made."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gyroperm.checkpoint import Change, Checkpoint
from gyroperm.checkpoints.packed import digest_of
from gyroperm.checkpoints.portrait import portrait
from gyroperm.checkpoints.results import read_solution, save_solution
from gyroperm.checkpoints.rewriting import Rewritten
from gyroperm.checkpoints.saliency import Orders, magnitudes, scale_down
from gyroperm.checkpoints.settings import Settings
from gyroperm.engine import solve
from gyroperm.files import copy_file
from gyroperm.memory import Growth, peak_bytes
from gyroperm.pattern import Pattern
from gyroperm.report import solution_figures
from gyroperm.solution import Solution


class Task(Protocol):
    """A step of a run, which can be sent to another process."""

    @property
    def name(self) -> str:
        """By which the journal knows it."""

    @property
    def weights(self) -> int:
        """How much there is to do."""

    def run(self, threads: int | None) -> dict[str, Any]:
        """Do it; what the journal notes, ready for JSON."""


def perform(task: Task, threads: int | None) -> dict[str, Any]:
    """Run a task, and note how long it took, how much memory its process had, and where."""
    begin = time.perf_counter()
    with Growth():
        found = task.run(threads)
        peak = peak_bytes()
    return {
        **found,
        "seconds": time.perf_counter() - begin,
        "peak_bytes": peak,
        "process": f"{platform.node()}:{os.getpid()}",
    }


@dataclass(frozen=True)
class Placed:
    """A weight, and where it is.

    Parameters
    ----------
    tensor : str
    shard : Path
    shape : tuple of int
        As it is stored.
    transposed : bool
        Whether it is stored as (in, out, ...).
    orders : (ndarray or None, ndarray or None)
        What surgery makes of the first two dimensions, as they are stored.
    """

    tensor: str
    shard: Path
    shape: tuple[int, ...]
    transposed: bool = False
    orders: Orders = (None, None)

    @property
    def size(self) -> int:
        """The number of weights."""
        return int(np.prod(self.shape))

    def saliency(self) -> NDArray[np.floating]:
        """``|W|`` as (out, in, ...), reordered."""
        with Checkpoint(self.shard) as shard:
            tensor = shard.tensors[self.tensor]
            return magnitudes(shard, tensor, transposed=self.transposed, orders=self.orders)

    def unmoved(self) -> Placed:
        """The same before surgery."""
        return replace(self, orders=(None, None))

    @property
    def moved(self) -> bool:
        """Whether surgery moves it."""
        return any(order is not None for order in self.orders)


@dataclass(frozen=True)
class LayerTask:
    """Search a layer, and write its orders and mask.

    Parameters
    ----------
    layer : Placed
    pattern : Pattern
        Its own, where a budget differs from layer to layer.
    settings : Settings
    result : Path
        The file to write.
    """

    layer: Placed
    pattern: Pattern
    settings: Settings
    result: Path

    @property
    def name(self) -> str:
        """By which the journal knows it."""
        return f"layer {self.layer.tensor}"

    @property
    def weights(self) -> int:
        """How much there is to search."""
        return self.layer.size

    def run(self, threads: int | None) -> dict[str, Any]:
        """Do it."""
        before = self._unpermuted() if self.layer.moved else None
        saliency = self.layer.saliency()
        exponent = 0
        if self.settings.surgery:
            # The order of the columns was searched for all weights that share it.
            solution = _unpermuted(saliency, self.pattern)
        else:
            exponent = scale_down(saliency)
            solution = self.settings.search(saliency, self.pattern, threads).rescaled(exponent)
        if before is not None:
            solution = replace(solution, identity=before)
        described = {"name": self.layer.tensor, "transposed": self.layer.transposed}
        return {
            "file": self.result.name,
            "sha256": save_solution(self.result, solution, described),
            "vec_ratio": self.pattern.vec_ratio,
            "figures": solution_figures(solution),
            **portrait(saliency, solution, exponent),
        }

    def _unpermuted(self) -> float:
        return _unpermuted(self.layer.unmoved().saliency(), self.pattern).retained


def _unpermuted(saliency: NDArray[np.floating], pattern: Pattern) -> Solution:
    return solve(saliency, saliency=saliency, pattern=pattern, method="identity")


@dataclass(frozen=True)
class ShardTask:
    """Write a shard with its layers masked, and reordered where there was surgery.

    Parameters
    ----------
    source, target : Path
    masks : mapping of str to Path
        The result of each layer that is masked.
    transposed : frozenset of str
        Layers stored as (in, out).
    orders : mapping of str to (ndarray or None, ndarray or None)
        Of each tensor that is reordered.
    """

    source: Path
    target: Path
    masks: Mapping[str, Path]
    transposed: frozenset[str] = frozenset()
    orders: Mapping[str, Orders] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """By which the journal knows it."""
        return f"shard {self.target.name}"

    @property
    def weights(self) -> int:
        """How much there is to write: little beside any search."""
        return 0

    def run(self, threads: int | None) -> dict[str, Any]:
        """Do it."""
        digest = hashlib.sha256()
        with Checkpoint(self.source) as shard:
            changes: dict[str, Change] = {}
            for name in {**self.orders, **self.masks}:
                mask = partial(self._mask, name) if name in self.masks else None
                changes[name] = Rewritten(self.orders.get(name, (None, None)), mask)
            shard.write_changed(self.target, changes, digest.update)
        return {"file": self.target.name, "sha256": digest.hexdigest()}

    def _mask(self, name: str) -> NDArray[np.uint8]:
        """The packed mask of a layer as it is stored."""
        mask = read_solution(self.masks[name]).mask
        return np.packbits(np.swapaxes(mask, 0, 1) if name in self.transposed else mask)


@dataclass(frozen=True)
class CopyTask:
    """Copy a file that belongs to the model."""

    source: Path
    target: Path

    @property
    def name(self) -> str:
        """By which the journal knows it."""
        return f"copy {self.target.name}"

    @property
    def weights(self) -> int:
        """Nothing to speak of."""
        return 0

    def run(self, threads: int | None) -> dict[str, Any]:
        """Do it."""
        copy_file(self.source, self.target)
        return {"file": self.target.name, "sha256": digest_of(self.target)}
