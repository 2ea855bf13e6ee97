"""The card that is measured: whether there is one that will do, and what it is."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import asdict, fields
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
    """Device 0, ready for JSON: the fields of :class:`Card`, and versions."""
    import cupy
    import torch

    from gyroperm.gpu.device import card, driver_version

    return {
        **asdict(card(0)),
        "cuda_driver": driver_version(),
        "cuda_runtime": cupy.cuda.runtime.runtimeGetVersion(),
        "torch_cuda": torch.version.cuda,
        "cusparselt": _cusparselt(torch),
        **_from_smi(),
    }


def of_model(card: dict[str, Any]) -> Card:
    """The card as the performance model sees it."""
    return Card(**{field.name: card[field.name] for field in fields(Card)})


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
