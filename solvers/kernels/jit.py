"""The one way kernels are compiled here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


def _drop_stale_caches() -> None:
    """Remove compiled code that is older than any kernel.

    Numba notices when a kernel's own file changes, not when a kernel it inlines does, and would
    then run code that belongs to another version.
    """
    folder = Path(__file__).parent
    newest = max(source.stat().st_mtime for source in folder.glob("*.py"))
    for cached in folder.glob("__pycache__/*.nb[ic]"):
        with contextlib.suppress(OSError):
            if cached.stat().st_mtime < newest:
                cached.unlink()


_drop_stale_caches()


def kernel(function: F) -> F:
    """Compile without the interpreter lock, cached on disk, with IEEE arithmetic in order."""
    return cast(F, njit(nogil=True, cache=True)(function))


def fast_kernel(function: F) -> F:
    """As :func:`kernel`, but sums may be reordered so that they vectorise.

    For scores that guide the search only: what is accepted is judged by :func:`kernel` code.
    NaN and infinity never reach a kernel, so assuming their absence is safe.
    """
    compiled = njit(nogil=True, cache=True, fastmath=True, error_model="numpy")(function)
    return cast(F, compiled)
