"""``torch.ao.pruning``: a sparsifier whose masks come from a search over orders.

Masks are torch's own: 1 = keep, in the weight's original order. Tested with torch 2.13.
"""

from __future__ import annotations

from typing import Any

try:
    import torch
    from torch import nn
    from torch.ao.pruning import BaseSparsifier
except ImportError as error:
    raise ImportError(
        "gyroperm.plugins.torch_ao needs torch: pip install 'gyroperm[torch]' (tested with 2.13.0)"
    ) from error

from gyroperm.pattern import Pattern
from gyroperm.plugins.weights import SaliencyFunction, mask_tensor, saliency_of, solved
from gyroperm.solution import Solution


class GyropermSparsifier(BaseSparsifier):
    """Prunes each configured tensor with the best mask that a search over its orders finds.

    Every ``step()`` looks at the dense weight under the mask, so weights come back when they have
    grown, and starts from what the step before found.

    A mask is no part of the model's state dict (torch leaves it out on purpose). Save
    :meth:`masks` beside it, and give them to ``prepare`` in the configuration,
    ``[{"tensor_fqn": name, "mask": mask} for name, mask in masks.items()]``, before
    ``load_state_dict(..., strict=False)`` (torch misses the masks that it did not write).

    Parameters
    ----------
    pattern : Pattern
        Any pattern; 2:4 by default. A configuration may have another, ``{"tensor_fqn": ...,
        "pattern": ...}``.
    saliency : callable, optional
        From a module and its dense weight to a saliency of the weight's shape; the magnitude by
        default. A configuration may have another.
    search
        Further arguments of :func:`gyroperm.solve`, such as ``seed`` and ``time_limit``.

    Attributes
    ----------
    solutions : dict of str to Solution
        What the latest step found, by the tensor's name.
    """

    def __init__(
        self,
        pattern: Pattern | None = None,
        *,
        saliency: SaliencyFunction | None = None,
        **search: Any,
    ) -> None:
        pattern = Pattern.nm() if pattern is None else pattern
        # Not super(): what else is inherited from, such as torchao's, has arguments of its own.
        BaseSparsifier.__init__(self, {"pattern": pattern, "saliency": saliency, "search": search})
        self.solutions: dict[str, Solution] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Solutions follow from the weights; what is unpickled searches anew.
        self.solutions = {}
        self.enable_mask_update = True
        super().__setstate__(state)

    def update_mask(self, module: nn.Module, tensor_name: str, **kwargs: Any) -> None:
        """Search one tensor anew and set its mask, 1 = keep."""
        parametrized = getattr(module.parametrizations, tensor_name)
        self._set_mask(kwargs, module, parametrized.original, _mask_of(module, tensor_name))

    def _set_mask(
        self,
        config: dict[str, Any],
        module: nn.Module,
        weight: torch.Tensor,
        mask: torch.Tensor,
    ) -> None:
        name, pattern = config["tensor_fqn"], config["pattern"]
        before = self.solutions.get(name)
        # A pattern that prunes whole rows may keep others now: nothing to start from.
        if before is not None and (before.pattern != pattern or pattern.row_ratio):
            before = None
        solution = solved(
            module,
            weight.detach(),
            saliency_of(config["saliency"], module, weight),
            pattern=pattern,
            initial=before,
            **config["search"],
        )
        self.solutions[name] = solution
        # In place: the sparsifier's state and the parametrization share this tensor.
        mask.copy_(mask_tensor(solution, mask))

    def masks(self) -> dict[str, torch.Tensor]:
        """A copy of every tensor's mask, True = keep, by the tensor's name."""
        return {
            config["tensor_fqn"]: _mask_of(config["module"], config["tensor_name"]).bool().clone()
            for config in self.groups
        }


def _mask_of(module: nn.Module, tensor_name: str) -> torch.Tensor:
    mask: torch.Tensor = getattr(module.parametrizations, tensor_name)[0].mask
    return mask
