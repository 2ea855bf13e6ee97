"""What is asked of the arrays of a launch or of a product, before any of it reaches a device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gyroperm.arrays import is_cupy, is_torch
from gyroperm.gpu.arrays import address
from gyroperm.gpu.launch import Launch
from gyroperm.gpu.source import parameters

Layout = Literal["features", "tokens"]
LAYOUTS: tuple[Layout, ...] = ("features", "tokens")

# What elements a parameter's type takes, None for any; and the bytes they must begin on.
_WORDS = ("uint16", "int16", "float16", "bfloat16")
_TAKEN: dict[str, tuple[tuple[str, ...] | None, int]] = {
    "u16": (_WORDS, 2),
    "int": (("int32",), 4),
    "u32": (("uint32", "int32"), 4),
    "float": (("float32",), 4),
    "uint4": (None, 16),
    "void": (None, 1),
}


def check_layout(layout: str) -> None:
    """Raise a ValueError unless a layout is one of :data:`LAYOUTS`."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")


def dtype_name(array: Any) -> str:
    """The name of an array's dtype, the same for NumPy, CuPy and torch."""
    return _name(array.dtype)


@cache
def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def device_of(array: Any) -> int | None:
    """The index of the CUDA device that an array lies on; None on the host."""
    if is_torch(array):
        return int(array.device.index) if array.device.type == "cuda" else None
    return int(array.device.id) if is_cupy(array) else None


def is_contiguous(array: Any) -> bool:
    """Whether elements lie one behind the other, the last dimension fastest."""
    return bool(array.is_contiguous() if is_torch(array) else array.flags.c_contiguous)


def are_rows_contiguous(array: Any) -> bool:
    """Whether the elements of each row of a matrix lie one behind the other."""
    if len(array.shape) != 2 or array.shape[1] <= 1:
        return is_contiguous(array)
    step = array.stride(1) if is_torch(array) else array.strides[1] // array.itemsize
    return int(step) == 1


def marshalled(launch: Launch) -> list[np.generic]:
    """The arguments of a launch as its kernel takes them: addresses as uint64, numbers as typed.

    Raises
    ------
    TypeError
        If the elements of an array are not what its parameter points to.
    ValueError
        If an array has gaps, or begins where its parameter's type may not.
    """
    kernel = launch.variant.kernel
    return [
        _pointer(kernel, asked, launch.arguments[asked.name])
        if asked.scalar is None
        else asked.scalar(launch.arguments[asked.name])
        for asked in _asked(kernel)
    ]


class _Asked(NamedTuple):
    """What a parameter takes: a number of a type, or an array of some dtypes and alignment."""

    name: str
    scalar: Any
    dtypes: tuple[str, ...] | None = None
    alignment: int = 1
    may_have_rows: bool = False


# Read from the source once: launches are made more often than anything else.
@cache
def _asked(kernel: str) -> list[_Asked]:
    asked = []
    for parameter in parameters(kernel):
        if parameter.is_pointer:
            target = parameter.declared.replace("const", "").replace("*", "").strip()
            # Matrices of 16-bit words come with the distance of their rows, other arrays without.
            asked.append(_Asked(parameter.name, None, *_TAKEN[target], target == "u16"))
        else:
            asked.append(_Asked(parameter.name, parameter.scalar))
    return asked


def _pointer(kernel: str, asked: _Asked, array: Any) -> np.uint64:
    if array is None:
        return np.uint64(0)
    if asked.dtypes is not None and dtype_name(array) not in asked.dtypes:
        raise TypeError(
            f"{asked.name} of {kernel} must have dtype {' or '.join(asked.dtypes)}, got "
            f"{dtype_name(array)}"
        )
    if not (is_contiguous(array) or (asked.may_have_rows and are_rows_contiguous(array))):
        raise ValueError(
            f"{asked.name} of {kernel} must be contiguous, got shape {tuple(array.shape)} with gaps"
        )
    begins = address(array)
    if begins % asked.alignment:
        raise ValueError(
            f"{asked.name} of {kernel} must begin on {asked.alignment} bytes, begins "
            f"{begins % asked.alignment} beyond"
        )
    return np.uint64(begins)


def place_of(launch: Launch) -> int:
    """The device that all arrays of a launch lie on.

    Raises
    ------
    ValueError
        If one lies on the host, or they lie on different devices.
    """
    found: dict[int, str] = {}
    for name in (asked.name for asked in _asked(launch.variant.kernel) if asked.scalar is None):
        value = launch.arguments[name]
        if value is None:
            continue
        device = device_of(value)
        if device is None:
            raise ValueError(f"{name} of {launch.variant.kernel} must lie on a CUDA device")
        found.setdefault(device, name)
    if len(found) != 1:
        listed = ", ".join(f"{name} on device {device}" for device, name in found.items())
        raise ValueError(f"{launch.variant.kernel} needs arrays of one device, got {listed}")
    return next(iter(found))


def stand_ins(
    outputs: int, inputs: int, n: int, layout: str
) -> Iterator[tuple[NDArray[np.uint16], NDArray[np.uint16]]]:
    """Arrays of the host in the place of X and Y: launches that are made of them are not run.

    First with rows that begin on 16 bytes, then, for feature-major ones, with rows that do not.
    Nothing is written to them, so they take no memory.
    """
    shapes = [(rows, n) if layout == "features" else (n, rows) for rows in (inputs, outputs)]
    for offset in (0, 1) if layout == "features" else (0,):
        x, y = (_placed(shape, offset) for shape in shapes)
        yield x, y


def _placed(shape: tuple[int, int], offset: int) -> NDArray[np.uint16]:
    rows, columns = shape
    width = -(-columns // 8) * 8
    flat = np.empty(rows * width + 8 + offset, np.uint16)
    first = -flat.ctypes.data % 16 // 2 + offset
    return flat[first : first + rows * width].reshape(rows, width)[:, :columns]


@dataclass(frozen=True)
class Product:
    """The shapes of a product ``Y = W X``, and what its operands must be.

    Parameters
    ----------
    outputs, inputs : int
        R and C.
    packed_rows : int
        T * V, the rows of Y where they are left in the order of the tiles.
    dtype : {"float16", "bfloat16"}
        Of all operands; uint16 is taken for the bits of either.
    device : int or None
        Where they must lie; None is the host.
    """

    outputs: int
    inputs: int
    packed_rows: int
    dtype: str
    device: int | None

    def columns(self, x: Any, layout: str) -> int:
        """N, of an X that has been checked.

        Raises
        ------
        TypeError
            If X is no array of the dtype.
        ValueError
            If the layout is unknown, or X has another shape, gaps in its rows, or lies elsewhere.
        """
        check_layout(layout)
        self._check_array("x", x)
        shape = tuple(x.shape)
        features = layout == "features"
        expected = f"({self.inputs}, N)" if features else f"(N, {self.inputs})"
        if len(shape) != 2 or shape[0 if features else 1] != self.inputs:
            raise ValueError(
                f'x must have shape {expected} for layout="{layout}", got shape {shape}'
            )
        if not are_rows_contiguous(x):
            other = "tokens" if features else "features"
            raise ValueError(
                f"x must have contiguous rows, got shape {shape} with gaps between columns; a "
                f'transposed view is read without a copy as layout="{other}"'
            )
        return int(shape[1 if features else 0])

    def result_shape(self, n: int, layout: str, keep_order: bool = False) -> tuple[int, int]:
        """The shape of Y."""
        rows = self.packed_rows if keep_order else self.outputs
        return (rows, n) if layout == "features" else (n, rows)

    def check_rest(
        self,
        shape: tuple[int, int],
        *,
        bias: Any = None,
        out: Any = None,
        factor: Any = None,
        addend: Any = None,
    ) -> None:
        """Check what a product is combined with and written to, where it is given.

        Raises
        ------
        TypeError
            If one is no array of the dtype.
        ValueError
            If one has another shape, gaps in its rows, or lies elsewhere.
        """
        for name, array, expected in (
            ("bias", bias, (self.outputs,)),
            ("out", out, shape),
            ("factor", factor, shape),
            ("addend", addend, shape),
        ):
            if array is None:
                continue
            self._check_array(name, array)
            if tuple(array.shape) != expected:
                raise ValueError(f"{name} must have shape {expected}, got {tuple(array.shape)}")
            if not are_rows_contiguous(array):
                raise ValueError(f"{name} must have contiguous rows, got a view with gaps")

    def _check_array(self, name: str, array: Any) -> None:
        if not hasattr(array, "shape") or not hasattr(array, "dtype"):
            raise TypeError(f"{name} must be a CuPy array or a torch tensor, got {type(array)}")
        if dtype_name(array) not in (self.dtype, "uint16"):
            raise TypeError(
                f"{name} must have the weights' dtype {self.dtype} (or uint16, its bits), got "
                f"{dtype_name(array)}"
            )
        found = device_of(array)
        if found != self.device:
            raise ValueError(
                f"{name} must lie on {_named(self.device)}, as the weights do, got an array on "
                f"{_named(found)}"
            )


def _named(device: int | None) -> str:
    return "the host" if device is None else f"CUDA device {device}"
