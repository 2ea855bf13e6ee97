"""How long a fresh process takes to its first answer, compilation included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from gyroperm.report import format_table

SHAPE = (256, 256)

#: What is solved: arguments of :func:`gyroperm.solve`, by a name.
CALLS: dict[str, dict[str, Any]] = {
    "2:4": {},
    "HiNM 75 %, V=32": {"vec_ratio": 0.5, "vec_size": 32},
}

#: Seconds that the first process, with an empty cache of compiled code, and later ones may take.
COLD_WITHIN, LATER_WITHIN = 15.0, 3.0

_PROGRAM = """
import json, sys, time
begin = time.perf_counter()
import numpy
import gyroperm
imported = time.perf_counter() - begin
shape, arguments = json.loads(sys.argv[1])
weights = numpy.random.default_rng(0).standard_normal(shape)
solution = gyroperm.solve(weights, **arguments)
print(json.dumps({"import_seconds": imported, "search_seconds": solution.seconds}))
"""


def measure(later: int = 3) -> list[dict[str, Any]]:
    """Time each of :data:`CALLS` in fresh processes.

    Each begins with a cache of its own that is empty; what it compiles is found by the later
    processes. Files that the system keeps in memory stay there.

    Parameters
    ----------
    later : int
        Processes after the first.

    Returns
    -------
    list of dict
        For each call ``name``, ``arguments``, ``shape``, ``cold``, the list ``later``, and the
        seconds that either may take, ``within``. ``cold`` and each of ``later`` have ``seconds``
        (the whole process), ``import_seconds`` and ``search_seconds`` (compilation excluded).

    Raises
    ------
    RuntimeError
        If a process fails; the message is what it said.
    """
    results = []
    for name, arguments in CALLS.items():
        with tempfile.TemporaryDirectory() as cache:
            cold = _run(arguments, cache)
            rest = [_run(arguments, cache) for _ in range(later)]
        results.append(
            {
                "name": name,
                "arguments": arguments,
                "shape": SHAPE,
                "cold": cold,
                "later": rest,
                "within": {"cold": COLD_WITHIN, "later": LATER_WITHIN},
            }
        )
    return results


def _run(arguments: dict[str, Any], cache: str) -> dict[str, float]:
    command = [sys.executable, "-c", _PROGRAM, json.dumps([SHAPE, arguments])]
    begin = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=cache,
        env={**os.environ, "NUMBA_CACHE_DIR": cache},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise RuntimeError(f"a process that solves {arguments} failed:\n{done.stderr.strip()}")
    return {"seconds": seconds, **json.loads(done.stdout)}


def cold_table(results: Sequence[dict[str, Any]]) -> str:
    """A row for the first and one for the slowest later process of each call."""
    headers = ["call in a fresh process", "seconds", "import", "search", "within", "reached"]
    rows = []
    for result in results:
        slowest = max(result["later"], key=lambda one: one["seconds"])
        for what, one, within in (
            ("cold cache", result["cold"], result["within"]["cold"]),
            (f"slowest of {len(result['later'])} later", slowest, result["within"]["later"]),
        ):
            rows.append(
                [
                    f"{result['name']} {' x '.join(map(str, result['shape']))}, {what}",
                    f"{one['seconds']:.2f}",
                    f"{one['import_seconds']:.2f}",
                    f"{one['search_seconds']:.2f}",
                    f"{within:g}",
                    "yes" if one["seconds"] <= within else "no",
                ]
            )
    return format_table(headers, rows)
