"""The card that is measured: whether there is one that will do, and what it is."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

from gyroperm.gpu.model import Card

# What nvidia-smi is asked for beside what CUDA tells.
_ASKED = ("driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit")


class NoCardError(Exception):
    """There is nothing to measure on, and why."""


def require_card() -> None:
    """Raise unless CuPy and torch can both use CUDA device 0.

    Raises
    ------
    NoCardError
        With what to do about it.
    """
    from gyroperm.gpu.device import limits

    try:
        import torch
    except ImportError as error:
        raise NoCardError(
            "the dense products to compare with are torch's: pip install 'gyroperm[torch]'"
        ) from error
    try:
        limits(0)
    except (ImportError, RuntimeError, ValueError) as error:
        raise NoCardError(str(error)) from error
    if not torch.cuda.is_available():
        raise NoCardError(f"torch {torch.__version__} finds no CUDA device, CuPy does")


def describe() -> dict[str, Any]:
    """Device 0: ``name``, ``architecture``, sizes, rates and versions, ready for JSON."""
    import cupy
    import torch

    device = cupy.cuda.Device(0)
    runtime = cupy.cuda.runtime
    asked = device.attributes
    name = runtime.getDeviceProperties(0)["name"]
    return {
        "name": name.decode() if isinstance(name, bytes) else str(name),
        "architecture": str(device.compute_capability),
        "multiprocessors": int(asked["MultiProcessorCount"]),
        "clock": 1e3 * asked["ClockRate"],
        # Both edges of the clock.
        "memory_rate": 2e3 * asked["MemoryClockRate"] * asked["GlobalMemoryBusWidth"] / 8,
        "l2_size": int(asked["L2CacheSize"]),
        "shared_limit": int(asked["MaxSharedMemoryPerBlockOptin"]),
        "shared_total": int(asked["MaxSharedMemoryPerMultiprocessor"]),
        "cuda_driver": runtime.driverGetVersion(),
        "cuda_runtime": runtime.runtimeGetVersion(),
        "torch_cuda": torch.version.cuda,
        "cusparselt": _cusparselt(torch),
        **_from_smi(),
    }


def of_model(card: dict[str, Any]) -> Card:
    """The card as the performance model sees it."""
    return Card(
        card["name"],
        card["architecture"],
        card["multiprocessors"],
        card["clock"],
        card["memory_rate"],
        card["l2_size"],
        card["shared_limit"],
        card["shared_total"],
    )


def _cusparselt(torch: Any) -> int | None:
    try:
        found = torch.backends.cusparselt.version()
    except (AttributeError, RuntimeError):
        return None
    return None if found is None else int(found)


def _from_smi() -> dict[str, str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, "--id=0", f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(_ASKED, map(str.strip, done.stdout.strip().split(",")), strict=False))
