"""A CUDA device made of CuPy's own arrays in the host's memory and the emulation of the kernels.

Whatever a product does between its arguments and its launches runs as on a device: CuPy's arrays,
their views and strides, plans, choices, scratch. Only what talks to a driver is stood in for.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import emulated
from gyroperm.gpu import dense, device, matrix
from gyroperm.gpu.launch import Launch
from gyroperm.gpu.source import Variant, parameters

LIMITS = {
    "MultiProcessorCount": 4,
    "MaxSharedMemoryPerBlockOptin": 99 * 1024,
    "MaxSharedMemoryPerMultiprocessor": 100 * 1024,
    "L2CacheSize": 6 << 20,
    "ClockRate": 1_700_000,
    "MemoryClockRate": 9_500_000,
    "GlobalMemoryBusWidth": 384,
}


@dataclass
class HostCard:
    """What was asked of the device.

    Attributes
    ----------
    loaded : list of Variant
        Kernels that were loaded, each once.
    launched : list of Variant
        Kernels that were launched.
    streams : list
        The stream of each launch.
    capturing : bool
        Whether streams say that they are captured: nothing may be allocated or loaded then.
    memory : int
        The most bytes that an allocation may have.
    dense : bool
        Whether there is a torch for dense products, which then runs on the host.
    """

    architecture: str = "86"
    devices: int = 1
    dense: bool = False
    loaded: list[Variant] = field(default_factory=list)
    launched: list[Variant] = field(default_factory=list)
    streams: list[Any] = field(default_factory=list)
    capturing: bool = False
    memory: int = 1 << 30
    _places: list[tuple[int, int]] = field(default_factory=list)

    def allocate(self, size: int) -> Any:
        """Memory of the device: poisoned, of exactly as many bytes."""
        from cupy.cuda import memory

        assert not self.capturing, f"{size} bytes are allocated while a stream is captured"
        if size > self.memory:
            raise memory.OutOfMemoryError(size, 0)
        if not size:
            return memory.MemoryPointer(memory.UnownedMemory(0, 0, None, 0), 0)
        host = np.full(size + 256, 0xFF, np.uint8)
        start = host.ctypes.data + -host.ctypes.data % 256
        self._places.append((start, size))
        return memory.MemoryPointer(memory.UnownedMemory(start, size, host, 0), 0)

    def load(self, variant: Variant, _: int) -> _Kernel:
        """The kernel of a variant."""
        if variant not in self.loaded:
            assert not self.capturing, f"{variant} is loaded while a stream is captured"
            self.loaded.append(variant)
        return _Kernel(self, variant)

    def bytes_from(self, address: int) -> Any:
        """What a kernel may touch from an address on: the rest of an allocation."""
        for start, size in reversed(self._places):
            if start <= address < start + size:
                raw = (ctypes.c_uint8 * (start + size - address)).from_address(address)
                return np.frombuffer(raw, np.uint8)
        raise AssertionError(f"{address:#x} is no memory of the device")


@dataclass
class _Kernel:
    card: HostCard
    variant: Variant

    def __call__(self, grid: Any, block: Any, arguments: Any, *, shared_mem: int) -> None:
        values = {}
        declared = parameters(self.variant.kernel)
        for parameter, value in zip(declared, arguments, strict=True):
            assert isinstance(value, np.generic), f"{parameter.name} is no number of NumPy's"
            if parameter.is_pointer:
                values[parameter.name] = self.card.bytes_from(int(value)) if value else None
            else:
                values[parameter.name] = value
        self.card.launched.append(self.variant)
        self.card.streams.append(_current[-1])
        emulated.run(Launch(self.variant, grid, block[0], shared_mem, values), once=())


class _Stream:
    """Streams of CuPy: those that are entered are current."""

    def __init__(self, card: HostCard, ptr: int = 0) -> None:
        self.ptr, self._card = ptr, card

    def __enter__(self) -> _Stream:
        _current.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _current.pop()

    def is_capturing(self) -> bool:
        return self._card.capturing

    def synchronize(self) -> None:
        assert not self._card.capturing, "a stream is waited for while it is captured"


_current: list[Any] = []


@contextmanager
def host_card(patch: pytest.MonkeyPatch, **described: Any) -> Iterator[HostCard]:
    """Let CuPy and the package see a device; everything is as before on leaving."""
    cupy = pytest.importorskip("cupy")

    class Array(cupy.ndarray):
        """Of the host's memory, which CuPy does not copy from or to without a driver."""

        def get(self, **_: Any) -> Any:
            found = np.empty(self.shape, self.dtype)
            address = self.data.ptr
            span = sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
            if self.size:
                raw = (ctypes.c_uint8 * (span + self.itemsize)).from_address(address)
                flat = np.frombuffer(raw, np.uint8)
                found[...] = np.ndarray(self.shape, self.dtype, flat, 0, self.strides)
            return found

        def set(self, values: Any) -> None:
            values = np.ascontiguousarray(values, self.dtype)
            assert values.shape == self.shape and self.flags.c_contiguous
            ctypes.memmove(self.data.ptr, values.ctypes.data, values.nbytes)

    card = HostCard(**described)
    null = _Stream(card)

    def empty(shape: Any, dtype: Any = float) -> Any:
        dtype = np.dtype(dtype)
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        size = int(np.prod(sizes, dtype=np.int64)) * dtype.itemsize
        return Array(sizes, dtype=dtype, memptr=card.allocate(size))

    def asarray(values: Any) -> Any:
        if isinstance(values, cupy.ndarray):
            return values
        made = empty(np.shape(values), np.asarray(values).dtype)
        made.set(values)
        return made

    class Device:
        def __init__(self, number: int | None = None) -> None:
            self.id = number or 0
            self.compute_capability = card.architecture

        def __enter__(self) -> Device:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    runtime = cupy.cuda.runtime
    numbers = {getattr(runtime, f"cudaDevAttr{name}"): value for name, value in LIMITS.items()}
    for name, stand_in in {
        "getDeviceCount": lambda: card.devices,
        "getDevice": lambda: 0,
        "deviceGetAttribute": lambda attribute, _: numbers[attribute],
        "getDeviceProperties": lambda _: {"name": b"a card"},
        "driverGetVersion": lambda: 13000,
    }.items():
        patch.setattr(runtime, name, stand_in)
    patch.setattr(cupy, "empty", empty)
    patch.setattr(cupy, "asarray", asarray)
    patch.setattr(cupy.cuda, "Device", Device)
    patch.setattr(cupy.cuda, "get_current_stream", lambda *_: _current[-1] if _current else null)
    patch.setattr(cupy.cuda, "Stream", lambda **_: _Stream(card, 7))
    patch.setattr(device, "_loaded", card.load)
    patch.setattr(matrix, "resident_blocks", _resident(card))
    # Dense products by torch on the host, in the same memory.
    patch.setattr(matrix, "can_be_dense", lambda: card.dense)
    patch.setattr(dense, "as_torch", _as_torch)
    patch.setattr(dense, "_on", lambda stream, device: nullcontext())
    patch.setattr(matrix.DeviceMatrix, "_made_dense", lambda self: dense.DenseProducts.of(self))
    for cached in (device.limits, device.card):
        cached.cache_clear()
    _current.clear()
    try:
        yield card
    finally:
        for cached in (device.limits, device.card):
            cached.cache_clear()


def _as_torch(array: Any, dtype: str) -> Any:
    import torch

    array = array.view(dtype)
    if not array.size:
        return torch.empty(array.shape, dtype=getattr(torch, dtype))
    span = sum((n - 1) * step for n, step in zip(array.shape, array.strides, strict=True))
    raw = (ctypes.c_uint8 * (span + array.itemsize)).from_address(array.data.ptr)
    flat = np.frombuffer(raw, np.uint8)
    return torch.from_numpy(np.ndarray(array.shape, array.dtype, flat, 0, array.strides))


def _resident(card: HostCard) -> Any:
    def resident(variant: Variant, threads: int, shared_bytes: int, number: int) -> int:
        card.load(variant, number)
        return 5

    return resident
