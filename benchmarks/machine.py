"""The machine and the software that figures were measured with."""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gyroperm
import gyroperm.solvers
from gyroperm.solvers.parallel import default_threads

ROOT = Path(__file__).resolve().parents[1]

#: Where the benchmarks write what they measured.
RESULTS = Path(__file__).with_name("results")

_PACKAGES = ("numpy", "numba", "llvmlite", "ortools", "networkx")

# Where a container's limits are, in the second and the first version of Linux's control groups.
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_QUOTA_V1 = (
    Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"),
    Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
)
_MEMORY = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def describe(packages: Sequence[str] = ()) -> dict[str, Any]:
    """What a reader of figures needs to know of where they come from, ready for JSON.

    Parameters
    ----------
    packages : sequence of str
        More packages whose versions matter.

    Returns
    -------
    dict
        ``cpu`` (model), ``cores`` (that this process may run on), ``cpu_quota`` (cores' worth of
        time a container is limited to, None without a limit), ``memory_bytes`` (that this
        process may use, None where the system does not tell), ``platform``, ``python``,
        ``packages`` (version by name, None where not installed), ``gyroperm`` (version),
        ``commit`` and ``modified`` (of the code that runs, see :func:`commit`).
    """
    found = commit()
    return {
        "cpu": cpu_model(),
        "cores": default_threads(),
        "cpu_quota": cpu_quota(),
        "memory_bytes": memory_bytes(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {name: _version(name) for name in (*_PACKAGES, *packages)},
        "gyroperm": gyroperm.__version__,
        "commit": found and found[0],
        "modified": found and found[1],
    }


def headline(machine: dict[str, Any]) -> str:
    """Two lines for people from :func:`describe`."""
    cores = f"{machine['cores']} core{'s' * (machine['cores'] != 1)}"
    if machine["cpu_quota"] is not None:
        cores += f" (limited to {machine['cpu_quota']:g})"
    memory = machine["memory_bytes"]
    size = "" if memory is None else f", {memory / 2**30:.1f} GiB"
    code = f"gyroperm {machine['gyroperm']}"
    if machine["commit"]:
        code += f" at {machine['commit'][:12]}" + " with changes" * machine["modified"]
    packages = ", ".join(f"{name} {v}" for name, v in machine["packages"].items() if v)
    return f"{machine['cpu']}, {cores}{size}\n{code}, {machine['python']}, {packages}"


def load_average() -> list[float] | None:
    """Runnable processes over the last 1, 5 and 15 minutes; None where the system has no such."""
    try:
        return list(os.getloadavg())
    except (AttributeError, OSError):
        return None


def cpu_model() -> str:
    """The processor's name, as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    if platform.system() == "Darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine()


def cpu_quota() -> float | None:
    """The cores' worth of time that a container is limited to; None without a limit."""
    try:
        quota, period = _QUOTA.read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = (path.read_text().strip() for path in _QUOTA_V1)
        except OSError:
            return None
    # No limit is "max" in the second version, -1 in the first.
    return int(quota) / int(period) if quota.isdecimal() and int(period) > 0 else None


def memory_bytes() -> int | None:
    """The memory that this process may use: the machine's, or a container's if that is less."""
    try:
        sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (AttributeError, ValueError, OSError):
        return None
    for path in _MEMORY:
        try:
            sizes.append(int(path.read_text()))
        except (OSError, ValueError):
            continue
    return min(sizes)


def commit() -> tuple[str, bool] | None:
    """The git commit of the gyroperm that is imported, and whether its code differs from it.

    None if it is imported from elsewhere than this tree, or the tree is no git checkout.
    """
    if Path(gyroperm.solvers.__path__[0]).resolve() != ROOT / "solvers":
        return None
    top = _output("git", "rev-parse", "--show-toplevel")
    head = _output("git", "rev-parse", "HEAD")
    changes = _output("git", "status", "--porcelain", "--", "gyroperm", "solvers", "gpu")
    if not top or not head or changes is None or Path(top).resolve() != ROOT:
        return None
    return head, bool(changes)


def results_file(name: str) -> Path:
    """The path of a file in :data:`RESULTS`, which is made if it is missing."""
    RESULTS.mkdir(exist_ok=True)
    return RESULTS / name


@cache
def code_digest() -> str:
    """A digest of what gyroperm's code does: what was found by other code is not to be reused.

    Of the syntax trees, so that comments and formatting do not count.
    """
    digest = hashlib.sha256(gyroperm.__version__.encode())
    for package in (gyroperm, gyroperm.solvers):
        folder = Path(package.__path__[0])
        for file in sorted(folder.rglob("*.py")):
            digest.update(str(file.relative_to(folder)).encode())
            digest.update(ast.dump(ast.parse(file.read_bytes())).encode())
    return digest.hexdigest()


def _output(*command: str) -> str | None:
    """What a program prints; None if it is missing or fails."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
