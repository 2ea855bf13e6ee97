"""Whose turn it is, of tests that several processes run: some must not run beside others.

A test marked ``alone`` holds a lock that all others share. Who waits for it holds a gate through
which every test goes first, so that no other begins meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def one_thread_for_libraries() -> None:
    """Keep torch and NumPy, not yet imported, from more threads than there are cores for.

    Numba's number, which tests choose, is another.
    """
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")


class _Lock:
    """A file that processes lock; a process that dies lets go of it."""

    def __init__(self, path: Path) -> None:
        # Imported where it is needed: Windows has none.
        import fcntl

        self._fcntl = fcntl
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def take(self, *, shared: bool = False) -> None:
        self._fcntl.flock(self._file, self._fcntl.LOCK_SH if shared else self._fcntl.LOCK_EX)

    def release(self) -> None:
        # Said, not left to closing: processes that a test forked have the file open, too.
        self._fcntl.flock(self._file, self._fcntl.LOCK_UN)

    def close(self) -> None:
        os.close(self._file)


class Turns:
    """The turns of this process: of tests, each from the set-up of its fixtures on.

    Parameters
    ----------
    folder : Path
        That all processes of the run see.
    """

    def __init__(self, folder: Path) -> None:
        self._gate, self._lock = _Lock(folder / "gate.lock"), _Lock(folder / "turn.lock")
        self._alone = False

    def begin(self, item: pytest.Item) -> None:
        """Wait until the test may run."""
        if self._alone:
            return  # kept from the test before
        self._alone = is_alone(item)
        self._gate.take()
        self._lock.take(shared=not self._alone)
        self._gate.release()

    def end(self, next_item: pytest.Item | None) -> None:
        """Let others run, unless the next test is alone as well."""
        if self._alone and next_item is not None and is_alone(next_item):
            return
        self._alone = False
        self._lock.release()


def is_alone(item: pytest.Item) -> bool:
    """Whether a test must not run beside others."""
    return item.get_closest_marker("alone") is not None


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file, which other processes wait for, while something is made."""
    lock = _Lock(path)
    try:
        lock.take()
        yield
    finally:
        lock.close()
