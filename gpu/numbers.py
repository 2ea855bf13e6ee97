"""Half-precision numbers as the 16 bits that a kernel reads; NumPy has no bfloat16."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: The operands that tensor cores multiply at twice the rate where two of four are kept.
DTYPES = ("float16", "bfloat16")

# What is left of infinity without its sign.
_INFINITY = {"float16": 0x7C00, "bfloat16": 0x7F80}


def checked_dtype(dtype: Any) -> str:
    """The dtype, if it is "float16" or "bfloat16"; ValueError otherwise."""
    if dtype not in DTYPES:
        raise ValueError(f'dtype must be "float16" or "bfloat16", got {dtype!r}')
    return str(dtype)


def to_bits(array: ArrayLike, dtype: str) -> NDArray[np.uint16]:
    """Numbers rounded to the nearest of a dtype, ties to even, as bits.

    Parameters
    ----------
    array : array_like of real numbers, any shape
        NaN stays NaN; what is too large becomes infinite.
    dtype : {"float16", "bfloat16"}

    Returns
    -------
    ndarray of uint16, of the same shape

    Raises
    ------
    ValueError
        If the dtype is another one.
    TypeError
        If the array does not hold real numbers.
    """
    numbers = np.asarray(array)
    if numbers.dtype.kind not in "fiub":
        raise TypeError(f"array must hold real numbers, got dtype {numbers.dtype}")
    if checked_dtype(dtype) == "float16":
        with np.errstate(over="ignore", under="ignore"):
            return numbers.astype(np.float16).view(np.uint16)
    return _bfloat16_bits(_singles(numbers))


def from_bits(bits: NDArray[np.uint16], dtype: str) -> NDArray[np.float32]:
    """The numbers that bits stand for, exactly.

    Parameters
    ----------
    bits : ndarray of uint16, any shape
    dtype : {"float16", "bfloat16"}

    Returns
    -------
    ndarray of float32, of the same shape

    Raises
    ------
    ValueError
        If the dtype is another one.
    TypeError
        If the bits are no array of uint16.
    """
    if not isinstance(bits, np.ndarray) or bits.dtype != np.uint16:
        raise TypeError(f"bits must be an array of uint16, got {getattr(bits, 'dtype', bits)!r}")
    if checked_dtype(dtype) == "float16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def is_infinite(bits: NDArray[np.uint16], dtype: str) -> NDArray[np.bool_]:
    """Where bits stand for infinity, of either sign."""
    return (bits & 0x7FFF) == _INFINITY[checked_dtype(dtype)]


def _singles(numbers: NDArray[Any]) -> NDArray[np.float32]:
    """Singles that round to the same bfloat16 as the numbers do.

    A number between two singles becomes the one whose last bit is set, so that it is never
    mistaken for a tie when it is rounded again.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        singles = numbers.astype(np.float32)
        if numbers.dtype.kind == "f" and numbers.dtype.itemsize <= 4:
            return singles
        inexact = (singles != numbers) & ~np.isnan(singles)
        outward = inexact & (np.abs(singles) > np.abs(numbers))
    bits = singles.view(np.uint32) - outward.astype(np.uint32)
    return (bits | inexact.astype(np.uint32)).view(np.float32)


def _bfloat16_bits(singles: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = np.ascontiguousarray(singles).view(np.uint32).reshape(singles.shape)
    half_up = bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)
    # Rounding would carry a NaN into infinity or beyond; it is made quiet instead.
    rounded = np.where(np.isnan(singles), bits | np.uint32(0x400000), half_up)
    return (rounded >> 16).astype(np.uint16)
