"""Runs that are killed, damaged or short of space, and gone on with."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gyroperm import Pattern
from gyroperm.checkpoints import Job, Settings, prune_checkpoint
from gyroperm.checkpoints.journal import Journal, read_journal
from small_checkpoints import layers, results, sharded

SETTINGS = Settings(Pattern.hinm(vec_size=8), rounds=5)

IDENTITY = Settings(Pattern.hinm(vec_size=8), method="identity")


def killed_after(steps: int, job: Job) -> bool:
    """Begin a run in a copy of this process that is killed after so many steps on the disk.

    A step is a file of the output that is opened or renamed, or content that is synced: the places
    between which something is there or not. Whether it was killed, or came to its end.
    """
    child = os.fork()
    if child == 0:
        left = [steps]

        def count() -> None:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            if event in ("open", "os.rename") and str(job.target) in str(arguments[0]):
                count()

        sync = os.fsync

        def fsync(handle: int) -> None:
            count()
            sync(handle)

        os.fsync = fsync
        sys.addaudithook(hook)
        code = 1
        try:
            prune_checkpoint(job)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return sharded(tmp_path / "model", layers())


@pytest.mark.parametrize("seed", range(2))
def test_killed_again_and_again_it_goes_on(model: Path, tmp_path: Path, seed: int) -> None:
    # Also has every kernel loaded before this process is copied.
    prune_checkpoint(Job(model, tmp_path / "whole", IDENTITY))
    out = tmp_path / "out"
    job = Job(model, out, IDENTITY)
    draw = random.Random(seed)
    kills, killed = 0, True
    while killed:
        before = finished(out)
        killed = killed_after(draw.randrange(1, 60), job)
        kills += killed
        assert kills < 100
        assert before <= finished(out)
    assert kills >= 2
    assert results(out) == results(tmp_path / "whole")
    lines = (out / "gyroperm/journal.jsonl").read_text().splitlines()
    # What is in the journal is not done again.
    assert len(lines) == len(finished(out)) == 4 + 3 + 3


def test_killed_at_any_step(model: Path, tmp_path: Path) -> None:
    prune_checkpoint(Job(model, tmp_path / "whole", IDENTITY))
    expected = results(tmp_path / "whole")
    steps = random.Random(0).sample(range(90), 6)
    for step in steps:
        job = Job(model, tmp_path / str(step), IDENTITY)
        assert killed_after(step, job)
        done = finished(job.target)
        prune_checkpoint(job)
        assert results(job.target) == expected
        assert done <= finished(job.target)


def finished(out: Path) -> set[str]:
    journal = out / "gyroperm/journal.jsonl"
    return set(read_journal(journal)) if journal.exists() else set()


def test_killed_at_random_times_with_workers(model: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "gyroperm",
        "solve",
        str(model),
        "--rounds",
        "5",
        "--jobs",
        "2",
    ]
    command += ["--pattern", "hinm", "--vec-size", "8"]
    prune_checkpoint(Job(model, tmp_path / "whole", SETTINGS))
    out = tmp_path / "out"
    draw = random.Random(1)
    for _ in range(3):
        process = subprocess.Popen(
            [*command, "-o", out], start_new_session=True, stderr=subprocess.DEVNULL
        )
        time.sleep(draw.uniform(0.5, 5.0))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run([*command, "-o", out], check=True, capture_output=True, timeout=120)
    assert results(out) == results(tmp_path / "whole")


@pytest.mark.parametrize("side", ["input", "output", "mask"])
def test_damage_is_noticed(model: Path, tmp_path: Path, side: str, caplog) -> None:
    out = tmp_path / "out"
    job = Job(model, out, SETTINGS)
    prune_checkpoint(job)
    expected = results(out)
    file = {
        "input": model / "model-00002-of-00003.safetensors",
        "output": out / "model-00002-of-00003.safetensors",
        "mask": out / "gyroperm/masks/model.layers.1.up.weight.safetensors",
    }[side]
    times = file.stat()
    content = bytearray(file.read_bytes())
    content[-40] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    if side == "input":
        with pytest.raises(ValueError, match=r"00002-of-00003\.safetensors was changed or damaged"):
            prune_checkpoint(job)
        return
    prune_checkpoint(job)
    assert results(out) == expected
    assert f"{file} is not as it was written" in caplog.text


def test_a_file_that_cannot_grow(model: Path, tmp_path: Path) -> None:
    """A full disk, as far as the process can tell."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "gyroperm", "solve", model, "-o", out, "--method", "identity"]
    size = max(file.stat().st_size for file in model.glob("*.safetensors"))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 8, size - 8))

    # Beside what is to be limited, only files that are smaller are written.
    environment = {**os.environ, "NUMBA_CACHE_DIR": os.environ.get("NUMBA_CACHE_DIR", "")}
    found = subprocess.run(
        command, preexec_fn=limit, capture_output=True, text=True, timeout=120, env=environment
    )
    assert found.returncode == 1, found.stderr
    assert "File too large" in found.stderr
    assert "the same command goes on" in found.stderr
    written = {file.name for file in out.glob("*.safetensors")}
    assert len(written) < 3 and not list(out.glob(".*"))
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    prune_checkpoint(Job(model, tmp_path / "whole", Settings(Pattern.nm(), method="identity")))
    assert results(out) == results(tmp_path / "whole")


def test_a_second_process_is_refused(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prune_checkpoint(Job(model, out, SETTINGS))
    with (
        Journal(out / "gyroperm/journal.jsonl"),
        pytest.raises(BlockingIOError, match="another process is writing"),
    ):
        prune_checkpoint(Job(model, out, SETTINGS))


def test_every_cut_of_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        for i in range(3):
            journal.add(f"layer {i}", {"retained": i / 3, "name of": "é"})
        whole = dict(journal.done)
    content = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        with Journal(path) as journal:
            lines = sum(end <= length for end in ends)
            assert list(journal.done.items()) == list(whole.items())[:lines]
            journal.add("more", {"x": 1})
        with Journal(path) as journal:
            assert len(journal.done) == lines + 1 and journal.damaged == 0


def test_damaged_lines_count_as_not_written(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        for i in range(3):
            journal.add(str(i), {"x": 7})
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"7", b"8")
    path.write_bytes(b"".join(lines))
    with Journal(path) as journal:
        assert set(journal.done) == {"0", "2"}
        assert journal.damaged == 1


def test_a_damaged_manifest(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = Job(model, out, SETTINGS)
    prune_checkpoint(job)
    manifest = out / "gyroperm/manifest.json"
    manifest.write_text(json.dumps({"format": "other"}))
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        prune_checkpoint(job)
