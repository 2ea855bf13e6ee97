"""The one way kernels are compiled here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


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
