"""The saliency of stored weights, read a block at a time."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gyroperm.checkpoint import Checkpoint, Tensor, Words, as_floats

# Bits that are all set in infinities and NaN alone.
_EXPONENT = {"F64": 0x7FF << 52, "F32": 0xFF << 23, "F16": 0x1F << 10, "BF16": 0xFF << 7}

# Elements of a block; its float32 copies are small beside any layer that matters.
_BLOCK = 1 << 20

#: What comes to each place of the first two dimensions of a tensor; None where nothing moves.
Orders = tuple[NDArray[np.int64] | None, NDArray[np.int64] | None]


def magnitudes(
    checkpoint: Checkpoint,
    tensor: Tensor,
    *,
    transposed: bool = False,
    orders: Orders = (None, None),
) -> NDArray[np.floating]:
    """``|W|`` as (out, in, ...): one array and a block are all that is ever held.

    Parameters
    ----------
    checkpoint : Checkpoint
    tensor : Tensor
        Of two dimensions or more.
    transposed : bool
        Whether it is stored as (in, out, ...).
    orders : (ndarray of int or None, ndarray of int or None)
        Of the first two dimensions as they are stored: what comes to each place.

    Returns
    -------
    ndarray of float32, or float64 for what is stored as F64
    """
    shape = tensor.shape
    dtype = np.float64 if tensor.dtype == "F64" else np.float32
    stored = (shape[1], shape[0], *shape[2:]) if transposed else shape
    result = np.empty(stored, dtype=dtype)
    first, second = orders
    place = np.arange(shape[0]) if first is None else np.argsort(first)
    rows = max(1, _BLOCK // max(1, tensor.row_size))
    for begin in range(0, shape[0], rows):
        end = min(begin + rows, shape[0])
        words = checkpoint.words(tensor, begin * tensor.row_size, end * tensor.row_size)
        values = as_floats(words, tensor.dtype).reshape(end - begin, *shape[1:])
        if second is not None:
            values = values[:, second]
        if first is None and not transposed:
            np.abs(values, out=result[begin:end])
        elif transposed:
            result[:, place[begin:end]] = np.swapaxes(np.abs(values), 0, 1)
        else:
            result[place[begin:end]] = np.abs(values)
    return result


def scale_down(saliency: NDArray[np.floating]) -> int:
    """Divide a saliency in place by the power of two that a search would; returns its exponent.

    A search needs no copy of such a one.
    """
    exponent = math.frexp(float(saliency.max()))[1]
    np.ldexp(saliency, -exponent, out=saliency)
    return exponent


def first_not_finite(words: Words, dtype: str) -> int | None:
    """The place of the first infinity or NaN among stored words; None if there is none."""
    bits = words.dtype.type(_EXPONENT[dtype])
    wrong = (words & bits) == bits
    return int(np.argmax(wrong)) if wrong.any() else None
