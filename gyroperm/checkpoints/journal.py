"""The journal of a run: a line for everything that is finished, and safe on the disk."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from gyroperm.files import sync_folder

_DIGITS = 16


class Journal:
    """An append-only file of JSON lines, each with a checksum; a context manager.

    A line that is not whole, because the process was killed while it was written, is cut off when
    the journal is opened again; one that was damaged counts as not written. Only one process can
    have a journal open.

    Parameters
    ----------
    path : str or Path
        Made when it is missing.

    Attributes
    ----------
    done : dict of str to dict
        What is finished, by its name; the last line of a name counts.
    damaged : int
        Lines that could not be read.

    Raises
    ------
    OSError
        If the file cannot be written, or another process has it open.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        # Without a buffer nothing is left to be written when writing has failed.
        self._file = self.path.open("ab", buffering=0)
        try:
            _lock(self._file.fileno(), self.path)
            self.done, self.damaged, end = _read(self.path)
            self._file.truncate(end)
            sync_folder(self.path.parent)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, name: str, record: dict[str, Any]) -> None:
        """Note that something is finished; on the disk when this returns."""
        text = json.dumps({"name": name, **record})
        line = f"{_checksum(text)} {text}\n".encode()
        end = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(end)
            raise
        self.done[name] = record


def read_journal(path: str | Path) -> dict[str, dict[str, Any]]:
    """What is finished, by its name, without opening the journal for writing.

    Raises
    ------
    OSError
        If there is no such file.
    """
    return _read(Path(path))[0]


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def _read(path: Path) -> tuple[dict[str, dict[str, Any]], int, int]:
    """What is there, how many lines are damaged, and where the last whole line ends."""
    done: dict[str, dict[str, Any]] = {}
    damaged = end = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            end += len(line)
            checksum, _, text = line[:-1].decode(errors="replace").partition(" ")
            if checksum != _checksum(text):
                damaged += 1
                continue
            record = json.loads(text)
            done[record.pop("name")] = record
    return done, damaged, end


def _lock(handle: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(
            f"another process is writing {path.parent.parent}; wait for it, or end it"
        ) from None
