"""What a launch needs to know of an array, wherever it lives."""

from __future__ import annotations

from typing import Any


def address(array: Any) -> int:
    """The address of an array's first element: of NumPy, CuPy or torch."""
    if hasattr(array, "data_ptr"):
        return int(array.data_ptr())
    if hasattr(array, "ctypes"):
        return int(array.ctypes.data)
    return int(array.data.ptr)


def row_stride(array: Any) -> int:
    """Elements from one row of a two-dimensional array to the next.

    Raises
    ------
    ValueError
        If the array is not two-dimensional, or its rows are not contiguous.
    """
    if len(array.shape) != 2:
        raise ValueError(f"an array must have two dimensions, got shape {tuple(array.shape)}")
    if hasattr(array, "data_ptr"):
        rows, columns = (int(step) for step in array.stride())
    else:
        rows, columns = (int(step) // array.itemsize for step in array.strides)
    if columns != 1 and array.shape[1] > 1:
        raise ValueError(
            f"rows must be contiguous, got shape {tuple(array.shape)} with {columns} elements "
            f"from one column to the next"
        )
    return rows if array.shape[0] > 1 else max(rows, int(array.shape[1]))


def begins_on_16_bytes(*arrays: Any) -> bool:
    """Whether every row of these 16-bit arrays begins on 16 bytes; None counts as such."""
    return all(
        address(array) % 16 == 0 and row_stride(array) % 8 == 0
        for array in arrays
        if array is not None
    )
