"""Arrays of any library as NumPy arrays, checked."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray


def to_numpy(array: Any, name: str = "weights") -> NDArray[np.floating]:
    """A real NumPy array of float32 or float64 with the values of any array.

    Parameters
    ----------
    array : ndarray, torch.Tensor, cupy.ndarray, or anything with ``__array__`` or ``__dlpack__``
        On any device; fp16 and bf16 become float32, integers become float64.
    name : str
        The argument's name, for error messages.

    Raises
    ------
    TypeError
        If this is no array, or its elements are not real numbers.
    """
    host = _to_host(array, name)
    if host.dtype.names:
        raise TypeError(_not_real(name, host))
    if host.dtype.kind == "V" or host.dtype.name == "bfloat16":
        # ml_dtypes registers bfloat16 and the fp8 kinds as void-like types that cast to float32.
        try:
            return host.astype(np.float32)
        except (TypeError, ValueError):
            raise TypeError(_not_real(name, host)) from None
    if host.dtype.kind in "iub":
        return host.astype(np.float64)
    if host.dtype.kind != "f":
        raise TypeError(_not_real(name, host))
    return host.astype(np.float64 if host.dtype.itemsize > 4 else np.float32, copy=False)


def _not_real(name: str, array: NDArray[Any]) -> str:
    return f"{name} must hold real numbers, got an array of dtype {array.dtype}"


def is_torch(array: Any) -> bool:
    """Whether this is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def is_cupy(array: Any) -> bool:
    """Whether this is a CuPy array, without importing CuPy."""
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(array, cupy.ndarray)


def _to_host(array: Any, name: str) -> NDArray[Any]:
    if isinstance(array, np.ndarray):
        return array
    if is_torch(array):
        tensor = array.detach()
        if tensor.is_complex():
            raise TypeError(f"{name} must hold real numbers, got a tensor of {tensor.dtype}")
        if tensor.is_floating_point() and tensor.element_size() < 4:
            tensor = tensor.float()
        return tensor.cpu().numpy()
    if is_cupy(array):
        return array.get()
    if hasattr(array, "__array__"):
        return np.asarray(array)
    if hasattr(array, "__dlpack__"):
        return np.from_dlpack(array)
    if isinstance(array, list | tuple):
        return np.asarray(array)
    raise TypeError(
        f"{name} must be an array (NumPy, torch, CuPy, or anything with __array__ or "
        f"__dlpack__), got {type(array).__name__}"
    )


def check_finite(array: NDArray[np.floating], name: str) -> None:
    """Raise ValueError, with the first index, if an array holds NaN or infinity."""
    # The sum is finite only if every element is, and needs no mask of the array's size; it may
    # still overflow, so the exact test has the last word.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(array.sum(dtype=np.float64)):
            return
    finite = np.isfinite(array)
    if not finite.all():
        index = tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), array.shape))
        raise ValueError(f"{name} must be finite, got {array[index]} at index {index}")


def check_non_negative(array: NDArray[np.floating], name: str) -> None:
    """Raise ValueError, with the first index, if an array holds a negative number."""
    if array.size and array.min() < 0:
        index = tuple(int(i) for i in np.unravel_index(int(np.argmax(array < 0)), array.shape))
        raise ValueError(f"{name} must not be negative, got {array[index]} at index {index}")
