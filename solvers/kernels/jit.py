"""The one way kernels are compiled here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit, types
from numba.extending import intrinsic, overload

F = TypeVar("F", bound=Callable[..., Any])


@cache
def _drop_stale(folder: Path) -> None:
    """Remove compiled code in a folder that is older than any kernel.

    Numba notices when a kernel's own file changes, not when a kernel it inlines does, and would
    then run code that belongs to another version.
    """
    newest = max(source.stat().st_mtime for source in Path(__file__).parent.glob("*.py"))
    for cached in folder.glob("*.nb[ic]"):
        with contextlib.suppress(OSError):
            if cached.stat().st_mtime < newest:
                cached.unlink()


def _compiled(function: F, **options: Any) -> F:
    """Compile without the interpreter lock; what is on disk is used unless it is stale."""
    compiled = njit(nogil=True, cache=True, **options)(function)
    # Only Numba knows where: beside the kernels, in NUMBA_CACHE_DIR, or in the user's own folder.
    # With its compiler disabled there is nothing to ask, and it may find no place to write to.
    stats = getattr(compiled, "stats", None)
    if stats is not None and stats.cache_path is not None:
        _drop_stale(Path(stats.cache_path))
    return cast(F, compiled)


def kernel(function: F) -> F:
    """Compile without the interpreter lock, cached on disk, with IEEE arithmetic in order."""
    # Said, not left out: a kernel that is compiled first where a fast one calls it would inherit
    # that one's arithmetic, and be cached so.
    return _compiled(function, fastmath=False, error_model="python")


def fast_kernel(function: F) -> F:
    """As :func:`kernel`, but sums may be reordered so that they vectorise.

    For scores that guide the search only: what is accepted is judged by :func:`kernel` code.
    NaN and infinity never reach a kernel, so assuming their absence is safe.
    """
    return _compiled(function, fastmath=True, error_model="numpy")


def wide_vectors() -> None:
    """Let a kernel's loops use the widest vectors there are; to be called anywhere within it.

    Compilers shun vectors of 512 bits, for which early processors lowered their clock. Loops that
    do nothing but compare and add gain by them: the relu product a fifth to a third.
    """


@intrinsic
def _prefer_wide(typing_context):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        # llvmlite knows the attributes that have no value only.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), generate


@overload(wide_vectors, inline="always")
def _wide_vectors():  # type: ignore[no-untyped-def]
    return lambda: _prefer_wide()  # type: ignore[call-arg]
