"""Weights of any library as one matrix of what is packed: bits where they are half precision."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gyroperm.arrays import is_cupy, is_torch, to_numpy
from gyroperm.gpu.numbers import DTYPES
from gyroperm.views import WeightView


def weight_matrix(weights: Any, view: WeightView) -> tuple[NDArray[Any], str | None]:
    """The matrix of a view, with the values that the weights have.

    Parameters
    ----------
    weights : array of the shape that was solved, or a list of them
        NumPy, torch, CuPy, or anything that :func:`gyroperm.solve` takes.
    view : WeightView

    Returns
    -------
    matrix : ndarray of uint16, float32 or float64, shape (R, C)
    dtype : {"float16", "bfloat16"} or None
        What the bits of a uint16 matrix stand for; None for numbers.

    Raises
    ------
    ValueError
        If the number of weights or a shape differs.
    TypeError
        If they are no arrays of real numbers.
    """
    given = list(weights) if view.listed else [weights]
    if len(given) != len(view.shapes):
        raise ValueError(f"weights must hold {len(view.shapes)} arrays, got {len(given)}")
    for array, shape in zip(given, view.shapes, strict=True):
        if tuple(np.shape(array)) != shape:
            raise ValueError(f"weights must have shape {shape}, got {tuple(np.shape(array))}")
    read = [_bits(array) for array in given]
    dtypes = {dtype for _, dtype in read}
    if len(dtypes) == 1 and None not in dtypes:
        return view.matrix([bits for bits, _ in read]), dtypes.pop()
    return view.matrix([to_numpy(array) for array in given]), None


def _bits(array: Any) -> tuple[NDArray[Any], str | None]:
    if is_torch(array):
        return _torch_bits(array)
    host = array.get() if is_cupy(array) else array
    if not isinstance(host, np.ndarray) and hasattr(host, "__array__"):
        host = np.asarray(host)
    # The name alone would take numbers of the other byte order for bits.
    if isinstance(host, np.ndarray) and host.dtype.isnative and host.dtype.name in DTYPES:
        return np.ascontiguousarray(host).view(np.uint16), host.dtype.name
    return host, None


def _torch_bits(tensor: Any) -> tuple[NDArray[Any], str | None]:
    import torch

    dtype = {torch.float16: "float16", torch.bfloat16: "bfloat16"}.get(tensor.dtype)
    if dtype is None:
        return tensor, None
    return tensor.detach().cpu().contiguous().view(torch.int16).numpy().view(np.uint16), dtype
