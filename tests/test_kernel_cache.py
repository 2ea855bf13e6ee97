"""Compiled kernels on disk are not used once any kernel has changed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import gyroperm.solvers.kernels
from gyroperm.solvers.kernels.jit import fast_kernel, kernel

_KERNELS = Path(gyroperm.solvers.kernels.__file__).parent

_CALL = """
import numpy as np
from gyroperm.solvers.kernels.copying import copy_vector
copy_vector(np.ones(3, dtype=np.float32), np.empty(3, dtype=np.float32))
print(*copy_vector.stats.cache_hits.values())
"""


def _hits(folder: Path) -> int:
    """Call a kernel in a process of its own: how often the code in the folder was used."""
    done = subprocess.run(
        [sys.executable, "-c", _CALL],
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder), "NUMBA_DISABLE_JIT": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.strip() or 0)


@pytest.mark.parametrize("stale", [False, True])
def test_compiled_code_older_than_a_kernel_is_dropped(tmp_path, stale):
    assert _hits(tmp_path) == 0
    cached = list(tmp_path.rglob("*.nb[ic]"))
    assert len(cached) >= 2
    newest = max(source.stat().st_mtime for source in _KERNELS.glob("*.py"))
    for file in cached:
        os.utime(file, (newest, newest + (-10 if stale else 10)))
    assert _hits(tmp_path) == (0 if stale else 1)


@kernel
def _rounded(value, large):
    return (value + large) - large


@fast_kernel
def _rounded_by_a_fast_kernel(value, large):
    return _rounded(value, large)


def test_a_kernel_keeps_its_order_where_a_fast_one_is_compiled_first():
    # Reordered, the large number would cancel, and the value come back unrounded.
    assert _rounded_by_a_fast_kernel(0.3, 2.0**52) == 0.0
    assert _rounded(0.3, 2.0**52) == 0.0
