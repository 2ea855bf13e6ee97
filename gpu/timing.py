"""How long something takes on a device."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from gyroperm.gpu.device import cuda_errors, cupy_module

# What is written over before each run: L2 several times, and long enough that the device is busy
# while the host prepares what is timed.
_LEAST_FLUSHED, _FLUSHED_L2 = 128 << 20, 3
_WARM_UP, _AHEAD = 3, 16


def seconds_of(
    launch: Callable[[], None], *, device: int, stream: Any, l2_size: int, repeats: int = 30
) -> float:
    """The median time between events on a stream, L2 emptied before each run.

    Parameters
    ----------
    launch : callable
        Launches it into the stream; does not wait.
    device : int
    stream : cupy.cuda.Stream
    l2_size : int
        Bytes.
    repeats : int

    Raises
    ------
    RuntimeError
        If CUDA fails.
    MemoryError
        If there is no memory for what empties L2.
    """
    cupy = cupy_module()
    with cuda_errors("timing a product"), cupy.cuda.Device(device), stream:
        flushed = cupy.empty(max(_LEAST_FLUSHED, _FLUSHED_L2 * l2_size), cupy.uint8)
        for _ in range(_WARM_UP):
            launch()
        # The host falls behind the device while that runs short products: a lead at the start.
        for _ in range(_AHEAD):
            flushed.fill(0)
        events = []
        for _ in range(repeats):
            flushed.fill(0)
            begin, end = cupy.cuda.Event(), cupy.cuda.Event()
            begin.record(stream)
            launch()
            end.record(stream)
            events.append((begin, end))
        stream.synchronize()
        return median(cupy.cuda.get_elapsed_time(begin, end) * 1e-3 for begin, end in events)
