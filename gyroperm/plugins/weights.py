"""What the plug-ins for torch share: a weight's saliency, its groups, its mask as a tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import gyroperm
from gyroperm.solution import Solution

#: From a module and its dense weight to a saliency of the weight's shape.
SaliencyFunction = Callable[[nn.Module, torch.Tensor], Any]


def saliency_of(
    saliency: torch.Tensor | SaliencyFunction | None, module: nn.Module, weight: torch.Tensor
) -> torch.Tensor:
    """A saliency as a tensor beside its weight; the weight's magnitude by default.

    Raises
    ------
    ValueError
        If its shape is not the weight's.
    """
    if saliency is None:
        return weight.detach().abs()
    found = saliency(module, weight.detach()) if callable(saliency) else saliency
    found = torch.as_tensor(found, device=weight.device)
    if found.shape != weight.shape:
        raise ValueError(
            f"saliency must have the shape {tuple(weight.shape)} of the weight, got "
            f"{tuple(found.shape)}"
        )
    return found.detach()


def solved(
    module: nn.Module, weight: torch.Tensor, saliency: torch.Tensor, **search: Any
) -> Solution:
    """Search a module's weight, with the groups of its convolution.

    Raises
    ------
    ValueError
        If the weight's first two dimensions are not (output, input).
    """
    if getattr(module, "transposed", False):
        raise ValueError(
            f"the weight of {type(module).__name__} is (input, output); patterns are of "
            f"(output, input)"
        )
    groups = getattr(module, "groups", 1)
    return gyroperm.solve(weight, saliency=saliency, groups=groups, **search)


def mask_tensor(solution: Solution, like: torch.Tensor) -> torch.Tensor:
    """A solution's mask, 1 = keep, in the dtype and on the device of a tensor."""
    return torch.tensor(solution.mask).to(like.device, like.dtype)
