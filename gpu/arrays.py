"""What a launch needs to know of an array, wherever it lives."""

from __future__ import annotations

from typing import Any

import numpy as np

_TABLE_DTYPES = ("uint16", "int32")


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
    rows, columns = _strides(array)
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


def check_activations(name: str, array: Any) -> None:
    """Refuse what is no matrix of 16-bit elements with elements of a row side by side.

    Raises
    ------
    TypeError
        If the elements do not have 16 bits.
    ValueError
        If the array is not two-dimensional, has no rows or no columns, or elements of a row do
        not lie side by side.
    """
    check_elements(name, array)
    if len(array.shape) != 2 or 0 in array.shape:
        raise ValueError(
            f"{name} must be a matrix that is not empty, got shape {tuple(array.shape)}"
        )
    rows, columns = _strides(array)
    if columns != 1 and array.shape[1] > 1:
        raise ValueError(
            f"{name} must have the elements of a row side by side, got {columns} elements from "
            f"one to the next"
        )
    if array.shape[0] > 1 and rows < array.shape[1]:
        raise ValueError(
            f"{name} must have rows that do not overlap, got {rows} elements from one to the next "
            f"for shape {tuple(array.shape)}"
        )


def check_elements(name: str, array: Any) -> None:
    """Refuse elements of other than 16 bits: float16, or the bits of bfloat16 in uint16.

    Raises
    ------
    TypeError
        If the elements do not have 16 bits.
    """
    if array.dtype.itemsize != 2:
        raise TypeError(f"{name} must have elements of 16 bits, got dtype {array.dtype}")


def check_table(name: str, array: Any) -> None:
    """Refuse what is no index table: one-dimensional, contiguous, of uint16 or int32.

    Raises
    ------
    TypeError
        If the entries are of another dtype.
    ValueError
        If the array is not one-dimensional, is empty or has gaps.
    """
    if _dtype_name(array) not in _TABLE_DTYPES:
        raise TypeError(f"{name} must hold uint16 or int32, got dtype {array.dtype}")
    if len(array.shape) != 1 or 0 in array.shape:
        raise ValueError(
            f"{name} must be one-dimensional and not empty, got shape {tuple(array.shape)}"
        )
    check_contiguous(name, array)


def check_contiguous(name: str, array: Any) -> None:
    """Refuse a vector with gaps between its elements.

    Raises
    ------
    ValueError
        If it has some.
    """
    if array.shape[0] > 1 and _strides(array) != [1]:
        raise ValueError(
            f"{name} must be contiguous, got {_strides(array)[0]} elements from one to the next"
        )


def is_wide(table: Any) -> int:
    """Whether a table's entries have 32 bits, as kernels ask; 0 for no table."""
    return int(table is not None and table.dtype.itemsize == 4)


def check_holds(name: str, table: Any, entries: int) -> None:
    """Refuse a table whose dtype cannot hold all of ``range(entries)``.

    Raises
    ------
    ValueError
        If it cannot; the message says which dtype can.
    """
    if entries - 1 > np.iinfo(_dtype_name(table)).max:
        raise ValueError(
            f"{name} must hold positions up to {entries - 1}, which {table.dtype} does not; use "
            f"int32"
        )


def _strides(array: Any) -> list[int]:
    """Elements from one index to the next, along each axis."""
    if hasattr(array, "data_ptr"):
        return [int(step) for step in array.stride()]
    return [int(step) // array.itemsize for step in array.strides]


def _dtype_name(array: Any) -> str:
    return str(array.dtype).removeprefix("torch.")
