"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well.

    If the block raises, the temporary file is removed and whatever was at ``path`` stays.

    Raises
    ------
    OSError
        If the folder does not exist or cannot be written.
    """
    target = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp is private to its owner; the result gets what a plain open() would give.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~umask)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def copy_file(source: str | Path, target: str | Path) -> None:
    """Copy a file's content, completely or not at all, and onto the disk."""
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())


def check_writable(path: str | Path) -> None:
    """Raise OSError, before any work, unless :func:`atomic_path` could write there."""
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder; an output file is needed")
    if target.exists() and not target.is_file():
        raise OSError(f"{target} is no regular file")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {target.parent} does not exist")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"the folder {target.parent} cannot be written")


def sync_folder(folder: str | Path) -> None:
    """Have the names of a folder's files on the disk, where the system knows how."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_name(name: str, suffix: str) -> str:
    """A file's name for anything that has one: what file names cannot hold is quoted."""
    return f"{quote(name, safe='')}{suffix}"
