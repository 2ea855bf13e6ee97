"""How much memory there is and was used, and refusing beforehand what would not fit."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

#: The limit and the use of this process's control group, version 2 and version 1.
_CONTROL_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


def available() -> float:
    """Bytes that can still be had; infinite where the system does not tell.

    The least of what the machine has left, what the control group still allows, and what the
    process's own limit on its address space leaves.
    """
    return min(_machine(), _control_group(), _address_space())


def require(needed: float, what: str) -> None:
    """Raise MemoryError with both figures if so many bytes cannot be had.

    Parameters
    ----------
    needed : float
        Bytes.
    what : str
        What needs them; the message begins with it.
    """
    left = available()
    if needed > left:
        raise MemoryError(
            f"{what} needs about {needed / 1e9:.1f} GB of memory, and {left / 1e9:.1f} GB are "
            f"available"
        )


def peak_bytes() -> int:
    """The peak resident memory of this process so far."""
    try:
        # Not ru_maxrss, where Linux has this: that one is kept when a process becomes another
        # program, and would start from the size of the one that started it.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    import resource

    # macOS counts in bytes, others in KiB.
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Growth:
    """By how much more memory this process occupied, at the most, than when a block began.

    Attributes
    ----------
    bytes : int or None
        Known at the end; None where the system cannot begin the peak anew (other than Linux).
    """

    bytes: int | None = None

    def __enter__(self) -> Growth:
        # What is garbage already would make room for what comes.
        gc.collect()
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self._before = None
        else:
            self._before = peak_bytes()
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            self.bytes = peak_bytes() - self._before


def _number(path: str) -> float:
    try:
        return float(Path(path).read_text())
    except (OSError, ValueError):
        return float("inf")


def _machine() -> float:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024.0 * int(line.split()[1])
    except OSError:
        pass
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return float("inf")


def _control_group() -> float:
    for limit, used in _CONTROL_GROUPS:
        allowed = _number(limit)
        if allowed < float("inf"):
            in_use = _number(used)
            return allowed - in_use if in_use < float("inf") else allowed
    return float("inf")


def _address_space() -> float:
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit == resource.RLIM_INFINITY:
            return float("inf")
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        return float(limit - pages * resource.getpagesize())
    except (ImportError, OSError, ValueError):
        return float("inf")
