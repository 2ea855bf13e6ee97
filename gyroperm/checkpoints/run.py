"""A checkpoint pruned into a folder: interrupted at any moment, it goes on from there."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from gyroperm.checkpoints.budget import CurveTask, curve_of, spread
from gyroperm.checkpoints.crew import Crew, crew
from gyroperm.checkpoints.folder import OWN, tensor_figures
from gyroperm.checkpoints.inspection import inspected
from gyroperm.checkpoints.journal import Journal
from gyroperm.checkpoints.packed import digest_of
from gyroperm.checkpoints.plan import Job, Plan
from gyroperm.checkpoints.progress import Progress, logger
from gyroperm.checkpoints.report import write_report
from gyroperm.checkpoints.results import read_orders
from gyroperm.checkpoints.saliency import Orders
from gyroperm.checkpoints.tasks import CopyTask, LayerTask, ShardTask, Task
from gyroperm.files import sync_folder
from gyroperm.pattern import Pattern
from gyroperm.report import write_json

# Orders, masks and the journal, beside a sixteenth of what is pruned for the masks themselves.
_MORE_BYTES = 50e6


def prune_checkpoint(
    plan: Plan | Job,
    *,
    jobs: int = 1,
    threads: int | None = None,
    executor: Executor | None = None,
    scheduler: str | None = None,
    bar: bool = False,
) -> dict[str, Any]:
    """Prune a checkpoint into a folder.

    Every layer that is finished is noted in a journal. A run that was interrupted, by whatever, is
    gone on with when the same is asked for again: what was in flight is done again, and without a
    time limit the result is the same, byte for byte, for any number of workers.

    Parameters
    ----------
    plan : Plan or Job
    jobs : int
        Processes on this machine.
    threads : int, optional
        Of each task; see :func:`gyroperm.checkpoints.crew.crew`.
    executor : concurrent.futures.Executor, optional
        Instead of jobs. Its workers must see the checkpoint and the output under the same paths:
        they read and write there themselves.
    scheduler : str, optional
        Instead of jobs: the address of a Dask scheduler (extra ``dask``), likewise.
    bar : bool
        Whether to draw a progress bar on standard error. What happens goes to the logger
        ``gyroperm.checkpoints`` too.

    Returns
    -------
    dict
        The report, as it is written to ``gyroperm/report.json`` of the output.

    Raises
    ------
    ValueError
        If a weight is not finite, a shard was changed since the run was begun, or the output
        holds a run with other settings.
    OSError
        If something cannot be read or written; what is finished stays, and can be gone on with.
    ConnectionError
        If the scheduler cannot be reached.
    RuntimeError
        If worker processes die again and again.
    """
    plan = plan.planned() if isinstance(plan, Job) else plan
    with (
        crew(jobs=jobs, threads=threads, executor=executor, scheduler=scheduler) as workers,
        closing(Progress(bar)) as progress,
    ):
        _check_space(plan)
        plan.folder.make(plan.source.files)
        with Journal(plan.folder.journal) as journal:
            run = _Run(plan, workers, journal, progress)
            run.begin()
            run.channels()
            run.layers()
            run.shards()
            run.end()
    return write_report(plan.folder)


def _check_space(plan: Plan) -> None:
    """OSError, before any work, if the output would not fit."""
    folder = plan.folder.path
    there = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    masks = sum(layer.tensor.size for layer in plan.layers) / 8
    needed = plan.source.size + masks + _MORE_BYTES - there
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if shutil.disk_usage(existing).free < needed:
        raise OSError(errno.ENOSPC, f"{needed:.0f} bytes are needed to write", str(folder))


class _Run:
    """One run, from the state in which an earlier one left its folder."""

    def __init__(self, plan: Plan, workers: Crew, journal: Journal, progress: Progress) -> None:
        self.plan = plan
        self.workers = workers
        self.journal = journal
        self.progress = progress
        self.manifest: dict[str, Any] = {}
        #: What surgery makes of each tensor.
        self.moved: dict[str, Orders] = {}

    def begin(self) -> None:
        """Read every byte once; begin a manifest, or find that of the run to go on with."""
        plan = self.plan
        if self.journal.damaged:
            logger.warning("%d damaged lines of the journal are done anew", self.journal.damaged)
        earlier = plan.folder.read_manifest()
        if earlier is not None:
            self._check_same(earlier, plan.begun())
        self.progress.stage("reading", len(plan.source.shards))
        pruned = {layer.name for layer in plan.layers}
        shards = inspected(plan.source, pruned, self.progress.done)
        self.manifest = {
            "format": OWN,
            "source": str(plan.source.folder),
            "input": shards,
            **plan.begun(),
            "skipped": [
                {**tensor_figures(one.tensor), "reason": one.reason} for one in plan.skipped
            ],
        }
        if earlier is not None:
            self._check_input(earlier["input"])
        # An output counts as finished when its manifest says so, and not before.
        write_json(plan.folder.manifest, self.manifest)

    def _check_same(self, earlier: dict[str, Any], now: dict[str, Any]) -> None:
        for part, said in now.items():
            was = earlier.get(part)
            if was == _as_json(said):
                continue
            what = part
            if isinstance(said, dict) and isinstance(was, dict):
                differing = [key for key in said if was.get(key) != _as_json(said[key])]
                what = ", ".join(f"{key} was {was.get(key)!r}" for key in differing)
            raise ValueError(
                f"{self.plan.folder.path} holds a run that differs ({what}); give the same "
                f"options to go on with it, or another folder"
            )

    def _check_input(self, before: dict[str, Any]) -> None:
        for name, said in self.manifest["input"].items():
            if before.get(name) != said:
                raise ValueError(
                    f"{self.plan.source.folder / name} was changed or damaged since the run in "
                    f"{self.plan.folder.path} was begun: its SHA-256 is {said['sha256']}, and was "
                    f"{before.get(name, {}).get('sha256')}; restore it, or begin in another folder"
                )

    def channels(self) -> None:
        """Search the orders of coupled channels, where there is surgery."""
        plan = self.plan
        if plan.coupled is None:
            return
        from gyroperm.checkpoints.coupling import ChannelsTask, composed

        layers = {layer.name: layer for layer in plan.layers}
        tasks = [
            ChannelsTask(
                group,
                tuple(plan.placed(layers[name]) for name in group.layers),
                frozenset(name for name in group.layers if layers[name].tensor.dtype == "F64"),
                plan.settings,
                plan.folder.orders_of(group.name),
            )
            for group in plan.coupled.groups
        ]
        self._do("channels", tasks, plan.folder.orders)
        orders = {}
        for task in tasks:
            orders.update(read_orders(task.result))
        shapes = {name: tensor.shape for name, tensor in plan.source.tensors.items()}
        self.moved = composed(plan.coupled.sites, orders, shapes)

    def layers(self) -> None:
        """Search every layer."""
        plan = self.plan
        patterns = self._patterns()
        self._do(
            "layers",
            [
                LayerTask(
                    plan.placed(layer, orders=self.moved.get(layer.name, (None, None))),
                    patterns[layer.name],
                    plan.settings,
                    plan.folder.mask_of(layer.name),
                )
                for layer in plan.layers
            ],
            plan.folder.masks,
        )

    def _patterns(self) -> dict[str, Pattern]:
        """The pattern of each layer."""
        plan = self.plan
        common = plan.settings.common_pattern
        if plan.settings.allocation == "uniform":
            return dict.fromkeys((layer.name for layer in plan.layers), common)
        tasks = [CurveTask(plan.placed(layer), common) for layer in plan.layers]
        self._do("curves", tasks, None)
        curves = {
            layer.name: curve_of(self.journal.done[task.name])
            for layer, task in zip(plan.layers, tasks, strict=True)
        }
        ratios = spread(curves, common)
        return {name: replace(common, vec_ratio=ratio) for name, ratio in ratios.items()}

    def shards(self) -> None:
        """Write every shard, then what else belongs to the model."""
        plan, source = self.plan, self.plan.source
        masked = {} if plan.settings.lossless else {layer.name: layer for layer in plan.layers}
        tasks: list[Task] = []
        for name in source.shards:
            own = [layer for layer in masked.values() if source.shard_of[layer.name] == name]
            tasks.append(
                ShardTask(
                    source.folder / name,
                    plan.folder.path / name,
                    {layer.name: plan.folder.mask_of(layer.name) for layer in own},
                    frozenset(layer.name for layer in own if layer.transposed),
                    {t: o for t, o in self.moved.items() if source.shard_of[t] == name},
                )
            )
        self._do("shards", tasks, plan.folder.path)
        # Last: without its index a folder of shards cannot be taken for a whole checkpoint.
        for names in (source.others, (source.index,) if source.index else ()):
            copies = [CopyTask(source.folder / name, plan.folder.path / name) for name in names]
            self._do("files", copies, plan.folder.path)

    def end(self) -> None:
        """Note the checksums of the output: it is whole."""
        folder = self.plan.folder
        # Workers that were killed on the way, and whose work others did.
        folder.tidy(self.plan.source.files)
        done = self.journal.done
        self.manifest["output"] = {
            record["file"]: {
                "size": (folder.path / record["file"]).stat().st_size,
                "sha256": record["sha256"],
            }
            for name, record in sorted(done.items())
            if name.startswith(("shard ", "copy "))
        }
        sync_folder(folder.path)
        write_json(folder.manifest, self.manifest)

    def _do(self, stage: str, tasks: Sequence[Task], folder: Path | None) -> None:
        """Do what is not done yet, and note it."""
        left = [task for task in tasks if not self._is_done(task, folder)]
        weights = sum(task.weights for task in left)
        self.progress.stage(stage, len(left), weights, before=len(tasks) - len(left))
        for task, found in self.workers.each(left):
            if folder is not None:
                sync_folder(folder)
            self.journal.add(task.name, found)
            self.progress.done(task.name.partition(" ")[2], task.weights, _note(found))

    def _is_done(self, task: Task, folder: Path | None) -> bool:
        record = self.journal.done.get(task.name)
        if record is None or folder is None:
            return record is not None
        file = folder / record["file"]
        if file.is_file() and digest_of(file) == record["sha256"]:
            return True
        logger.warning("%s is not as it was written, and is made anew", file)
        return False


def _as_json(content: Any) -> Any:
    """What becomes of something that is written as JSON and read again."""
    return json.loads(json.dumps(content))


def _note(found: dict[str, Any]) -> str:
    figures = found.get("figures")
    if not figures:
        return ""
    return f"{figures['ratio']:.4f} of unstructured in {found['seconds']:.1f} s"
