"""Launches on a CUDA device, through CuPy."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from gyroperm.arrays import is_cupy, is_torch
from gyroperm.gpu.compiler import INSTALL, OLDEST_ARCHITECTURE, cubin_file
from gyroperm.gpu.launch import Launch
from gyroperm.gpu.model import Card
from gyroperm.gpu.operands import device_of, marshalled, place_of
from gyroperm.gpu.source import Variant

# Of the highest clock, what is held under load; and what is assumed where a driver tells none.
_HELD = 0.9
_MODEST_CLOCK, _MODEST_MEMORY = 1.5e9, 5e11

# Of a device, by CUDA's names. Asking for all that CuPy knows has the driver refuse some, which
# compute-sanitizer counts as errors.
_LIMITS = ("MultiProcessorCount", "MaxSharedMemoryPerBlockOptin")
_SIZES = ("L2CacheSize", "MaxSharedMemoryPerMultiprocessor")
_RATES = ("ClockRate", "MemoryClockRate", "GlobalMemoryBusWidth")


_REMEDY = (
    "Free arrays that are not needed, then what both libraries hold back: "
    "cupy.get_default_memory_pool().free_all_blocks() and torch.cuda.empty_cache(); or multiply "
    "with fewer columns at a time, on another device, or with allow_dense=False."
)


@dataclass(frozen=True)
class Limits:
    """What kernels are compiled for, and sized by, on a device.

    Parameters
    ----------
    architecture : str
        As NVRTC names it, without ``sm_``.
    multiprocessors : int
        How many there are.
    shared_bytes : int
        Shared memory that a block may ask for.
    """

    architecture: str
    multiprocessors: int
    shared_bytes: int


def cupy_module() -> Any:
    """CuPy.

    Raises
    ------
    ImportError
        If it is not installed; the message says how to install it.
    """
    try:
        import cupy
    except ImportError as error:
        raise ImportError(f"gyroperm.gpu runs kernels through CuPy: {INSTALL}") from error
    return cupy


def check_device(device: int) -> None:
    """Raise unless there is such a CUDA device.

    Raises
    ------
    ImportError
        If CuPy is not installed.
    RuntimeError
        If no driver answers.
    ValueError
        If the driver has fewer devices.
    """
    cupy = cupy_module()
    try:
        count = int(cupy.cuda.runtime.getDeviceCount())
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise RuntimeError(
            f"no CUDA device can be used: {error}. The driver is missing or older than CuPy's "
            f"CUDA; see what nvidia-smi prints"
        ) from error
    if not 0 <= device < count:
        raise ValueError(
            f"device must be in [0, {count}), the CUDA devices there are, got {device}"
        )


@cache
def limits(device: int) -> Limits:
    """The limits of a device.

    Raises
    ------
    ImportError, ValueError
        As :func:`check_device`.
    RuntimeError
        If no driver answers, or the device is older than sm_80.
    """
    check_device(device)
    cupy = cupy_module()
    with cuda_errors(f"asking device {device} for its limits"):
        properties = _attributes(device, _LIMITS)
        architecture = str(cupy.cuda.Device(device).compute_capability)
    if int(architecture) < OLDEST_ARCHITECTURE:
        raise RuntimeError(
            f"CUDA device {device} is sm_{architecture}; the kernels need sm_"
            f"{OLDEST_ARCHITECTURE} (Ampere) or newer, whose tensor cores have sparse products"
        )
    return Limits(
        architecture,
        int(properties["MultiProcessorCount"]),
        int(properties["MaxSharedMemoryPerBlockOptin"]),
    )


@cache
def card(device: int) -> Card:
    """A device as the performance model sees it, by what its driver says.

    Raises
    ------
    ImportError, ValueError, RuntimeError
        As :func:`limits`.
    """
    of_device = limits(device)
    cupy = cupy_module()
    with cuda_errors(f"asking device {device} for its rates"):
        properties = _attributes(device, _SIZES) | _attributes(device, _RATES, optional=True)
        name = cupy.cuda.runtime.getDeviceProperties(device)["name"]
    return card_of(name.decode() if isinstance(name, bytes) else name, of_device, properties)


def card_of(name: str, of_device: Limits, properties: Mapping[str, int]) -> Card:
    """A card by its name, its limits and CUDA's attributes of it.

    Memory moves two words a clock and pin, of the clock that CUDA tells. Multiprocessors are
    taken to hold nine tenths of their highest clock under load. A driver that tells no clocks is
    taken to be of a card of modest rates.
    """
    clock = 1e3 * properties.get("ClockRate", 0) * _HELD
    memory = 2e3 * properties.get("MemoryClockRate", 0) * properties.get("GlobalMemoryBusWidth", 0)
    return Card(
        name=name,
        architecture=of_device.architecture,
        multiprocessors=of_device.multiprocessors,
        clock=clock or _MODEST_CLOCK,
        memory_bytes=memory / 8 or _MODEST_MEMORY,
        l2_size=int(properties["L2CacheSize"]),
        shared_limit=of_device.shared_bytes,
        shared_total=int(properties["MaxSharedMemoryPerMultiprocessor"]),
    )


def driver_version() -> int:
    """The newest CUDA that the driver knows, as CUDA numbers it: 13000 for 13.0."""
    return int(cupy_module().cuda.runtime.driverGetVersion())


def resident_blocks(variant: Variant, threads: int, shared_bytes: int, device: int) -> int:
    """How many blocks of a kernel a device holds at once; at least one for each multiprocessor.

    Compiles and loads the kernel, if that has not been done.

    Raises
    ------
    ImportError, ValueError, RuntimeError
        As :func:`limits`.
    """
    from cupy_backends.cuda.api import driver

    kernel = _loaded(variant, device)
    with cuda_errors(f"asking for the occupancy of {variant}"), cupy_module().cuda.Device(device):
        each = driver.occupancyMaxActiveBlocksPerMultiprocessor(
            kernel.kernel.ptr, threads, shared_bytes
        )
    return max(1, int(each)) * limits(device).multiprocessors


def run(launch: Launch, stream: Any = None) -> None:
    """Launch a kernel on the device that its arrays lie on.

    The first launch of a variant compiles it, unless a file of an earlier process is there, and
    loads it. Every other one allocates nothing and waits for nothing, and so may be captured into
    a graph.

    Parameters
    ----------
    launch : Launch
        With CuPy arrays or torch CUDA tensors, all on one device.
    stream : cupy.cuda.Stream, optional
        By default torch's current stream of that device if an array is a torch tensor, else
        CuPy's current stream.

    Raises
    ------
    ImportError
        If CuPy is not installed.
    TypeError
        If an array has a dtype that its parameter does not take.
    ValueError
        If arrays lie on the host or on different devices, have gaps or are misaligned.
    RuntimeError
        If no driver answers, the device is older than sm_80, NVRTC refuses the source, or CUDA
        refuses the launch.
    """
    device = place_of(launch)
    arguments = tuple(marshalled(launch))
    _check_shared(launch, device)
    kernel = _loaded(launch.variant, device)
    if stream is None:
        stream = current_stream(*launch.arguments.values())
    with (
        cuda_errors(f"the launch of {launch.variant}"),
        cupy_module().cuda.Device(device),
        stream,
    ):
        kernel(launch.grid, (launch.threads, 1, 1), arguments, shared_mem=launch.shared_bytes)


def load(launch: Launch, device: int) -> None:
    """Compile and load a launch's kernel, if that has not been done; nothing is launched.

    Parameters
    ----------
    launch : Launch
        Its arrays may lie anywhere.
    device : int

    Raises
    ------
    ImportError, ValueError, RuntimeError
        As :func:`run`.
    """
    _check_shared(launch, device)
    _loaded(launch.variant, device)


def current_stream(*arrays: Any) -> Any:
    """The stream on which whoever made these arrays computes, as CuPy's.

    torch's current stream of a torch tensor's device, else CuPy's current one of the device of
    the first CuPy array, or of the current device if there is none.
    """
    for array in arrays:
        if is_torch(array):
            import torch

            return _wrapped(torch.cuda.current_stream(array.device).cuda_stream, device_of(array))
    devices = (device_of(array) for array in arrays if is_cupy(array))
    return cupy_module().cuda.get_current_stream(next(devices, -1))


def is_capturing(stream: Any) -> bool:
    """Whether what is launched into a stream is recorded into a graph."""
    with cuda_errors("asking a stream whether it is captured"):
        return bool(stream.is_capturing())


def as_cupy(array: Any) -> Any:
    """An array's memory as a CuPy array; of a torch tensor of 16-bit floats as uint16.

    CuPy arrays come back as they are. Nothing is copied.
    """
    if not is_torch(array):
        return array
    cupy = cupy_module()
    size = array.element_size()
    name = str(array.dtype).removeprefix("torch.")
    dtype = "uint16" if name in ("bfloat16", "float16") else name
    strides = tuple(step * size for step in array.stride())
    reach = sum((n - 1) * step for n, step in zip(array.shape, strides, strict=True)) + size
    memory = cupy.cuda.UnownedMemory(
        array.data_ptr(), reach if array.numel() else 0, array, device_of(array)
    )
    pointer = cupy.cuda.MemoryPointer(memory, 0)
    return cupy.ndarray(tuple(array.shape), dtype=dtype, memptr=pointer, strides=strides)


@contextmanager
def cuda_errors(doing: str) -> Iterator[None]:
    """Say what was being done when CUDA failed.

    Raises
    ------
    MemoryError
        If the device has too little memory, to CuPy or to torch; the message says how much was
        asked for, and what gives some back.
    RuntimeError
        For any other error of CUDA.
    """
    from cupy.cuda.memory import OutOfMemoryError
    from cupy_backends.cuda.api.driver import CUDADriverError
    from cupy_backends.cuda.api.runtime import CUDARuntimeError

    try:
        yield
    except (OutOfMemoryError, *_out_of_memory_of_torch()) as error:
        raise MemoryError(f"{doing}: out of device memory: {error} {_REMEDY}") from error
    except (CUDADriverError, CUDARuntimeError) as error:
        raise RuntimeError(f"{doing} failed: {error}") from error


def _out_of_memory_of_torch() -> tuple[type[Exception], ...]:
    torch = sys.modules.get("torch")
    return () if torch is None else (torch.cuda.OutOfMemoryError,)


def _attributes(device: int, names: Sequence[str], *, optional: bool = False) -> dict[str, int]:
    """CUDA's attributes of a device; optional ones that the driver does not tell are left out."""
    runtime = cupy_module().cuda.runtime
    found = {}
    for name in names:
        try:
            attribute = getattr(runtime, f"cudaDevAttr{name}")
            found[name] = int(runtime.deviceGetAttribute(attribute, device))
        except (AttributeError, runtime.CUDARuntimeError):
            if not optional:
                raise
    return found


def _check_shared(launch: Launch, device: int) -> None:
    most = limits(device).shared_bytes
    if launch.shared_bytes > most:
        raise ValueError(
            f"{launch.variant} asks for {launch.shared_bytes} bytes of shared memory, a block of "
            f"CUDA device {device} may have {most}"
        )


@cache
def _loaded(variant: Variant, device: int) -> Any:
    cupy = cupy_module()
    of_device = limits(device)
    path = cubin_file(variant, of_device.architecture)
    with cuda_errors(f"loading {variant}"), cupy.cuda.Device(device):
        kernel = cupy.RawModule(path=str(path)).get_function(variant.kernel)
        # Once and for all launches, which may differ in what they ask for.
        kernel.max_dynamic_shared_size_bytes = of_device.shared_bytes - kernel.shared_size_bytes
        return kernel


@cache
def _wrapped(pointer: int, device: int | None) -> Any:
    cupy = cupy_module()
    if not hasattr(cupy.cuda.Stream, "from_external"):  # CuPy 13
        return cupy.cuda.ExternalStream(pointer, device)
    # CuPy takes it for a stream of the current device.
    with cupy.cuda.Device(device):
        return cupy.cuda.Stream.from_external(_External(pointer))


@dataclass(frozen=True)
class _External:
    pointer: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer
