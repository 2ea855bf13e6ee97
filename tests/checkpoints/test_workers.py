"""The same result from any workers, also when they die."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gyroperm import Pattern
from gyroperm.checkpoints import Job, Settings, prune_checkpoint
from gyroperm.checkpoints.crew import crew
from gyroperm.cli import main
from small_checkpoints import layers, results, sharded

SETTINGS = Settings(Pattern.hinm(vec_size=8), rounds=5)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return sharded(tmp_path / "model", layers(6))


@pytest.fixture
def expected(model: Path, tmp_path: Path) -> dict[str, str]:
    prune_checkpoint(Job(model, tmp_path / "expected", SETTINGS))
    return results(tmp_path / "expected")


class Backwards(Executor):
    """Any executor will do: this one does nothing until the last task was handed over."""

    def __init__(self) -> None:
        self.left: list[Any] = []

    def submit(self, fn, /, *args, **kwargs):
        future: Future[Any] = Future()
        self.left.append((future, fn, args))
        threading.Timer(0.05, self._drain).start()
        return future

    def _drain(self) -> None:
        while self.left:
            future, fn, args = self.left.pop()
            future.set_result(fn(*args))


def test_any_executor(model: Path, tmp_path: Path, expected: dict[str, str]) -> None:
    prune_checkpoint(Job(model, tmp_path / "b", SETTINGS), executor=Backwards())
    assert results(tmp_path / "b") == expected
    with ThreadPoolExecutor(3) as pool:
        prune_checkpoint(Job(model, tmp_path / "t", SETTINGS), executor=pool, threads=2)
    assert results(tmp_path / "t") == expected


def test_a_worker_process_that_dies(model: Path, tmp_path: Path, expected: dict[str, str]) -> None:
    """Killed while it works, it costs what was in flight."""
    out = tmp_path / "out"
    victims: list[int] = []

    def kill_one() -> None:
        while not victims:
            for child in _children():
                os.kill(child, signal.SIGKILL)
                victims.append(child)
                return
            time.sleep(0.01)

    killer = threading.Thread(target=kill_one)
    killer.start()
    prune_checkpoint(Job(model, out, SETTINGS), jobs=2)
    killer.join()
    assert len(victims) == 1
    assert results(out) == expected


def _children() -> list[int]:
    """The worker processes of this one: those that multiprocessing has spawned."""
    own = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [
        int(child) for child in own if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def test_a_task_that_fails_is_an_error(model: Path, tmp_path: Path, monkeypatch) -> None:
    def fail(*arguments: object) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr("gyroperm.checkpoints.tasks.LayerTask.run", fail)
    with pytest.raises(MemoryError, match="no more"):
        prune_checkpoint(Job(model, tmp_path / "out", SETTINGS))


def test_only_one_kind_of_worker() -> None:
    with pytest.raises(ValueError, match="only one of jobs"), crew(jobs=2, scheduler="tcp://x:1"):
        pass


def test_threads_are_divided_up(monkeypatch) -> None:
    monkeypatch.setattr("gyroperm.solvers.parallel.default_threads", lambda: 8)
    for jobs, threads in ((1, 8), (3, 2), (16, 1)):
        with crew(jobs=jobs) as workers:
            assert workers._threads == threads


def test_a_cluster_one_of_whose_workers_is_killed(
    model: Path, tmp_path: Path, expected: dict[str, str]
) -> None:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        processes = list(client.run(os.getpid).values())
        assert len(set(processes)) == 2
        out = tmp_path / "out"
        killed = threading.Event()

        def kill_one() -> None:
            journal = out / "gyroperm/journal.jsonl"
            while not (journal.exists() and journal.stat().st_size):
                time.sleep(0.01)
            os.kill(processes[0], signal.SIGKILL)
            killed.set()

        threading.Thread(target=kill_one).start()
        report = prune_checkpoint(Job(model, out, SETTINGS), scheduler=cluster.scheduler_address)
        assert killed.is_set()
        assert results(out) == expected
        done_by = {layer["process"] for layer in report["layers"]}
        assert not any(process.endswith(f":{os.getpid()}") for process in done_by)
        with client.get_executor() as executor:
            prune_checkpoint(Job(model, tmp_path / "again", SETTINGS), executor=executor)
        assert results(tmp_path / "again") == expected


def test_an_unreachable_scheduler(model: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("gyroperm.checkpoints.crew._PATIENCE", 0.5)
    command = ["solve", str(model), "-o", str(tmp_path / "out"), "--scheduler", "tcp://127.0.0.1:9"]
    assert main(command) == 2
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
