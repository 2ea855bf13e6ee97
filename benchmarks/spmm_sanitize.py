"""Small launches of every kernel under NVIDIA's compute-sanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import ROOT
from benchmarks.spmm_small import KERNELS
from gyroperm.report import format_table

TOOLS = ("memcheck", "racecheck")

# What the sanitizer exits with where it found something; the program's own codes are 0 to 2.
_FOUND = 86
_LONGEST = 1800.0
_LINES = 15

# Where toolkits have it, below their folder.
_BELOW = ("bin", "compute-sanitizer", "extras/compute-sanitizer")


def find_sanitizer() -> str:
    """The path of compute-sanitizer: on PATH, or of the toolkit in CUDA_HOME or CUDA_PATH.

    Raises
    ------
    FileNotFoundError
        If it is nowhere; the message says where it comes from.
    """
    folders = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    known = [Path(folder) / below for folder in folders if folder for below in _BELOW]
    path = os.pathsep.join([os.environ.get("PATH", ""), *map(str, known)])
    found = shutil.which("compute-sanitizer", path=path)
    if found is None:
        raise FileNotFoundError(
            "compute-sanitizer is neither on PATH nor in CUDA_HOME or CUDA_PATH; it comes with "
            "the CUDA toolkit"
        )
    return found


def command(sanitizer: str, tool: str, kernel: str) -> list[str]:
    """What runs the small launches of a kernel under a tool."""
    options = ["--tool", tool, "--error-exitcode", str(_FOUND), "--print-limit", "10"]
    return [sanitizer, *options, sys.executable, "-m", "benchmarks.spmm_small", kernel]


def outcome(code: int) -> str:
    """What an exit code says."""
    known = {0: "clean", 1: "wrong result", _FOUND: "errors"}
    return known.get(code, f"exit status {code}")


def sanitize(sanitizer: str, tools: Sequence[str] = TOOLS) -> int:
    """Run every kernel under every tool and print what came of it; 0, or 1 if anything did."""
    rows, said = [], []
    for kernel in KERNELS:
        row = [kernel]
        for tool in tools:
            print(f"{tool} of {kernel}", file=sys.stderr, flush=True)
            result, output = _run(command(sanitizer, tool, kernel))
            row.append(result)
            if result != "clean":
                lines = "\n  ".join(output.splitlines()[-_LINES:])
                said.append(f"{tool} of {kernel}: {result}\n  {lines}")
        rows.append(row)
    print(format_table(["kernel", *tools], rows))
    for text in said:
        print(f"\n{text}")
    return 1 if said else 0


def _run(arguments: Sequence[str]) -> tuple[str, str]:
    try:
        done = subprocess.run(
            arguments, cwd=ROOT, capture_output=True, text=True, timeout=_LONGEST, check=False
        )
    except subprocess.TimeoutExpired:
        return f"not done after {_LONGEST:g} s", ""
    return outcome(done.returncode), done.stdout + done.stderr
