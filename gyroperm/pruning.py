"""Prune a checkpoint: check everything first, solve layer by layer, write once."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import gyroperm
from gyroperm.arguments import checked_duration
from gyroperm.arrays import check_finite
from gyroperm.checkpoint import Checkpoint
from gyroperm.engine import solve
from gyroperm.files import check_writable, file_name
from gyroperm.interrupt import Interrupt
from gyroperm.lossless import lossless
from gyroperm.pattern import Pattern
from gyroperm.report import LayerResult, Report, skipped_summary, solution_figures, write_json
from gyroperm.selection import Layer, Rules, Skipped, select, unmatched
from gyroperm.solution import Solution
from gyroperm.stopping import MaxRounds


@dataclass(frozen=True)
class Job:
    """What to prune, how, and where to write.

    Parameters
    ----------
    source, target : Path
        The safetensors file to read, and the one to write; they may be the same.
    pattern : Pattern
    method : str
    options : mapping
        The method's own options.
    seed : int
    threads : int or None
    time_limit : float or None
        Seconds for each layer.
    rounds : int or None
        Of each layer's search.
    bound : bool or float
        How hard to try to prove how much each layer can keep; see :func:`gyroperm.solve`.
    rules : Rules
        Which tensors are pruned.
    json : Path or None
        Where to write the report.
    solutions : Path or None
        The folder for each layer's solution.
    progress : bool
        Whether to show progress bars on standard error.
    lossless : bool
        Whether to look for orders that lose no nonzero; no weight is then changed.
    """

    source: Path
    target: Path
    pattern: Pattern
    method: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    threads: int | None = None
    time_limit: float | None = None
    rounds: int | None = None
    bound: bool | float = False
    rules: Rules = field(default_factory=Rules)
    json: Path | None = None
    solutions: Path | None = None
    progress: bool = False
    lossless: bool = False


@dataclass(frozen=True)
class Plan:
    """A job that passed its checks.

    Attributes
    ----------
    job : Job
    checkpoint : Checkpoint
        Open.
    layers : list of Layer
        To be pruned.
    skipped : list of Skipped
    notes : list of str
        What the user may want to know, though it is no error.
    """

    job: Job
    checkpoint: Checkpoint
    layers: list[Layer]
    skipped: list[Skipped]
    notes: list[str]


@contextmanager
def planned(job: Job) -> Iterator[Plan]:
    """Check a job, before any work, and keep its checkpoint open.

    Raises
    ------
    ValueError, TypeError
        If the file is unsound, an option does not fit, a weight is not finite, or nothing is
        left to prune.
    OSError
        If the checkpoint cannot be read, or a result could not be written.
    """
    _check_method(job)
    with Checkpoint(job.source) as checkpoint:
        _check_targets(job, checkpoint.size)
        layers, skipped = select(checkpoint.tensors, job.pattern, job.rules)
        notes = [
            f"{option} matches no tensor" for option in unmatched(checkpoint.tensors, job.rules)
        ]
        if not layers:
            why = skipped_summary(skipped) if skipped else "it holds no tensors"
            raise ValueError("\n".join([f"{job.source} has nothing to prune", *notes, why]))
        for layer in layers:
            check_finite(checkpoint.read(layer.name), f"{layer.name!r} of {job.source}")
        yield Plan(job, checkpoint, layers, skipped, notes)


def _check_method(job: Job) -> None:
    from gyroperm.solvers import registry

    registry.get(job.method).make_options(job.options or None)
    if job.time_limit is not None:
        checked_duration("time_limit", job.time_limit)
    checked_duration("bound", float(job.bound))
    if job.lossless and job.bound is not False:
        raise ValueError("a bound and lossless are not given together: lossless needs none")


def _check_targets(job: Job, size: int) -> None:
    files = [path for path in (job.target, job.json) if path is not None]
    for path in files:
        check_writable(path)
    if job.json is not None and job.json.resolve() in (job.target.resolve(), job.source.resolve()):
        raise ValueError(f"the report {job.json} would replace a checkpoint")
    if shutil.disk_usage(job.target.parent).free < size:
        raise OSError(errno.ENOSPC, f"{size} bytes are needed to write", str(job.target))
    if job.solutions is not None:
        if job.solutions.exists() and not job.solutions.is_dir():
            raise NotADirectoryError(f"{job.solutions} is no folder; solutions need one")
        inside = job.solutions / "solution.npz"
        check_writable(inside if job.solutions.exists() else job.solutions)


def prune(plan: Plan) -> Report:
    """Solve every layer of a plan, and write the pruned checkpoint and the report.

    At the first Ctrl-C the layer being solved gives its best so far, the remaining ones are
    pruned without permutation, and everything is written. At the second nothing is.

    Raises
    ------
    KeyboardInterrupt
        At the second Ctrl-C, or if it is pressed while the files are written.
    OSError
        If a file cannot be written; what was there stays.
    """
    job = plan.job
    if job.solutions is not None:
        job.solutions.mkdir(exist_ok=True)
    results: list[LayerResult] = []
    masks: dict[str, NDArray[np.uint8]] = {}
    with Interrupt() as interrupt, _layer_bar(plan) as bar:
        for layer in plan.layers:
            bar.set_description(layer.name)
            solution = _solve(plan, layer, interrupt)
            if job.solutions is not None:
                solution.save(job.solutions / file_name(layer.name, ".npz"))
            mask = np.swapaxes(solution.mask, 0, 1) if layer.transposed else solution.mask
            if job.lossless:
                # Either the mask drops zeros alone, whose sign stays too, or it is not used.
                mask = np.ones_like(mask)
            masks[layer.name] = np.packbits(mask)
            results.append(
                LayerResult(layer, solution_figures(solution), interrupted=interrupt.requested)
            )
            bar.update()
    plan.checkpoint.write_masked(job.target, masks)
    report = Report(_header(job), job.pattern, results, plan.skipped, interrupt.requested)
    if job.json is not None:
        write_json(job.json, report.as_dict())
    return report


def _solve(plan: Plan, layer: Layer, interrupt: Interrupt) -> Solution:
    job = plan.job
    weights = plan.checkpoint.read(layer.name)
    if layer.transposed:
        weights = np.swapaxes(weights, 0, 1)
    if interrupt.requested and not job.lossless:
        return solve(weights, pattern=job.pattern, method="identity", seed=job.seed)
    # A job for lossless orders has no bound to ask for.
    search = lossless if job.lossless else partial(solve, bound=job.bound)
    return search(
        weights,
        pattern=job.pattern,
        method=job.method,
        options=job.options or None,
        stop=interrupt if job.rounds is None else interrupt | MaxRounds(job.rounds),
        time_limit=job.time_limit,
        seed=job.seed,
        threads=job.threads,
        progress=job.progress,
    )


def _layer_bar(plan: Plan) -> Any:
    from tqdm import tqdm

    return tqdm(total=len(plan.layers), unit="layer", disable=not plan.job.progress, leave=False)


def _header(job: Job) -> dict[str, Any]:
    return {
        "version": gyroperm.__version__,
        "input": str(job.source),
        "output": str(job.target),
        "method": job.method,
        "options": dict(job.options),
        "seed": job.seed,
        "time_limit": job.time_limit,
        "rounds": job.rounds,
        "lossless": job.lossless,
        "bound": job.bound,
    }
