"""``torch.nn.utils.prune``: masks of any pattern that an order of the channels makes good.

Masks are torch's own: 1 = keep, in the weight's original order. Tested with torch 2.13.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

try:
    import torch
    from torch import nn
    from torch.nn.utils import prune
except ImportError as error:
    raise ImportError(
        "gyroperm.plugins.torch_prune needs torch: "
        "pip install 'gyroperm[torch]' (tested with 2.13.0)"
    ) from error

from gyroperm.pattern import Pattern
from gyroperm.plugins.weights import SaliencyFunction, mask_tensor, saliency_of, solved
from gyroperm.solution import Solution


class NMPermuted(prune.BasePruningMethod):
    """A pruning method that keeps what a solution keeps, of what is not pruned already.

    Parameters
    ----------
    solution : Solution
        Of a weight of the tensor's shape.
    """

    # The method sees the whole tensor and the earlier mask, however much is pruned already.
    PRUNING_TYPE = "global"

    def __init__(self, solution: Solution) -> None:
        self.solution = solution

    def compute_mask(self, t: torch.Tensor, default_mask: torch.Tensor) -> torch.Tensor:
        """The mask, 1 = keep."""
        return mask_tensor(self.solution, default_mask) * default_mask


def nm_permuted(
    module: nn.Module,
    name: str = "weight",
    pattern: Pattern | None = None,
    saliency: torch.Tensor | SaliencyFunction | None = None,
    **search: Any,
) -> nn.Module:
    """Prune a tensor of a module with the best mask that a search over orders finds.

    As the functions of ``torch.nn.utils.prune`` do: the tensor becomes ``name + "_orig"`` times
    ``name + "_mask"`` before every forward; ``prune.remove`` makes it final. What an earlier
    method has pruned has no saliency and stays pruned.

    Parameters
    ----------
    module : nn.Module
        Changed in place, or left as it was if anything fails.
    name : str
        Of a parameter of shape (R, C) or (R, C, kh, kw).
    pattern : Pattern, optional
        Any pattern; 2:4 by default. The mask is in the original order: stock 2:4 kernels need the
        channels reordered first, see :func:`gyroperm.models.permute`.
    saliency : Tensor or callable, optional
        Of the tensor's shape, or a function of the module and the tensor; the magnitude by default.
    search
        Further arguments of :func:`gyroperm.solve`, such as ``seed`` and ``time_limit``.

    Returns
    -------
    nn.Module
        The module.

    Raises
    ------
    ValueError
        If the saliency has another shape, or the tensor is not (output, input).
    """
    weight = getattr(module, name).detach()
    scores = saliency_of(saliency, module, weight)
    earlier = getattr(module, f"{name}_mask", None)
    if earlier is not None:
        scores = scores * earlier
    solution = solved(module, weight, scores, pattern=pattern or Pattern.nm(), **search)
    return from_solution(module, name, solution)


def from_solution(module: nn.Module, name: str, solution: Solution) -> nn.Module:
    """Prune a tensor of a module with the mask of a solution, in its original order.

    Raises
    ------
    ValueError
        If the solution is of weights of another shape.
    """
    shape = tuple(getattr(module, name).shape)
    if solution.view.listed or solution.view.shapes[0] != shape:
        raise ValueError(
            f"{name} has shape {shape}, the solution is of {list(solution.view.shapes)}"
        )
    NMPermuted.apply(module, name, solution)
    return module


def solution_of(module: nn.Module, name: str = "weight") -> Solution:
    """The solution that a tensor of a module was pruned with last.

    Raises
    ------
    ValueError
        If it was not pruned with any, or ``prune.remove`` has made it final.
    """
    found = [one for one in _methods(module, name) if isinstance(one, NMPermuted)]
    if not found:
        raise ValueError(f"{name} of {type(module).__name__} is not pruned by nm_permuted")
    return found[-1].solution


def _methods(module: nn.Module, name: str) -> Iterator[prune.BasePruningMethod]:
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod) and hook._tensor_name == name:
            yield from hook if isinstance(hook, prune.PruningContainer) else [hook]
