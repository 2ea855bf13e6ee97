"""Tensors of torch on the card that is measured."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

DEVICE = "cuda"


def normal(*shape: int, dtype: str = "bfloat16") -> Any:
    """Random numbers."""
    import torch

    return torch.randn(*shape, device=DEVICE).to(getattr(torch, dtype))


def empty(*shape: int, dtype: str = "bfloat16") -> Any:
    """Memory that is to be written."""
    import torch

    return torch.empty(*shape, device=DEVICE, dtype=getattr(torch, dtype))


def words(count: int) -> Any:
    """Random words of 32 bits."""
    import torch

    return torch.randint(0, 1 << 30, (count,), dtype=torch.int32, device=DEVICE)


def placed(array: NDArray[Any]) -> Any:
    """A copy of an array of the host."""
    import torch

    return torch.from_numpy(array).to(DEVICE)


def bits(tensor: Any) -> NDArray[np.uint16]:
    """The 16-bit words of a tensor, on the host."""
    import torch

    found: NDArray[np.uint16] = tensor.detach().view(torch.int16).cpu().numpy().view(np.uint16)
    return found
