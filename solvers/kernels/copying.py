"""Copies between arrays inside kernels.

A slice assignment brings a shape check whose error message takes longer to compile than most
kernels here: half of the time of a first call.
"""

from __future__ import annotations

from gyroperm.solvers.kernels.jit import kernel


@kernel
def copy_vector(source, target):  # type: ignore[no-untyped-def]
    """Copy a vector into the beginning of another of at least its length."""
    for i in range(len(source)):
        target[i] = source[i]


@kernel
def copy_matrix(source, target):  # type: ignore[no-untyped-def]
    """Copy a matrix into another of the same shape."""
    for i in range(source.shape[0]):
        for j in range(source.shape[1]):
            target[i, j] = source[i, j]
