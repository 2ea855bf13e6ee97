"""NVIDIA's Model Optimizer: a mode ``"gyroperm"`` of ``mts.sparsify``, and orders for its own.

Importing this module registers the mode; do so before ``mto.restore``, too. Masks are Model
Optimizer's own: True = keep, in the weight's original order, saved and restored with the model.
Tested with nvidia-modelopt 0.47 and torch 2.13.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gyroperm.models import CouplingGraph, Spec, coupling, permute
from gyroperm.pattern import Pattern
from gyroperm.plugins.ordering import searched_orders
from gyroperm.plugins.toolkits import need
from gyroperm.plugins.weights import saliency_of, solved

# The last two it imports without asking for them; the extra names them.
_INSTALL = "gyroperm[modelopt]"
_TESTED = "nvidia-modelopt 0.47.0, torch 2.13.0"
_searcher = need("modelopt.torch.opt.searcher", _INSTALL, _TESTED)
_mode = need("modelopt.torch.sparsity.weight_sparsity.mode", _INSTALL, _TESTED)
_sparse = need("modelopt.torch.sparsity.weight_sparsity.searcher", _INSTALL, _TESTED)

#: The name of the mode.
MODE = "gyroperm"

# What Model Optimizer's modes leave dense by default, and the sizes they ask for.
_DENSE = "*lm_head*"
_ROWS, _COLUMNS = 8, 16


class GyropermSearcher(_sparse.BaseSparseSearcher):  # type: ignore[name-defined]
    """Masks from a search over orders, for ``mts.sparsify(model, "gyroperm", config)``.

    The configuration has, beside Model Optimizer's own keys:

    ``pattern``
        A :class:`gyroperm.Pattern`, or a text such as ``"2:4 sparsity"``, the default: keep 2 of 4.
    ``saliency``
        A function of a module and its dense weight; the magnitude by default.
    ``search``
        A mapping of further arguments of :func:`gyroperm.solve`, such as ``seed``.

    A weight whose input channels m does not divide (the window, for windowed patterns) is skipped
    with a warning and stays dense.
    """

    @property
    def default_search_config(self) -> dict[str, Any]:
        """Model Optimizer's defaults and those above."""
        return {**super().default_search_config, "saliency": None, "search": {}}

    def sanitize_search_config(self, config: Any) -> dict[str, Any]:
        """The configuration, with the pattern as a :class:`gyroperm.Pattern`."""
        # Not the parent's: it takes 2:4 alone.
        checked = _searcher.BaseSearcher.sanitize_search_config(self, config)
        return {**checked, "pattern": _pattern(checked["pattern"])}

    def _check_weight_size(self, weight: torch.Tensor, mod_name: str) -> bool:
        pattern: Pattern = self.config["pattern"]
        columns = weight.shape[1] if pattern.is_plain else weight[0].numel()
        unit = pattern.window or pattern.m
        if columns % unit:
            warnings.warn(
                f"Skipping {mod_name}: {unit} does not divide its {columns} columns, as {pattern} "
                f"asks for",
                stacklevel=2,
            )
        return not columns % unit

    def _compute_mask(self, module: Any) -> torch.Tensor:
        weight = module.weight.detach()
        scores = saliency_of(self.config["saliency"], module, weight)
        solution = solved(
            module, weight, scores, pattern=self.config["pattern"], **self.config["search"]
        )
        return torch.tensor(solution.mask, device=weight.device)


def _pattern(given: Any) -> Pattern:
    if isinstance(given, Pattern):
        return given
    named = re.fullmatch(r"\s*(\d+):(\d+)(\s+sparsity)?\s*", str(given))
    if not isinstance(given, str) or named is None:
        raise ValueError(
            f'pattern must be a gyroperm.Pattern or a text such as "2:4 sparsity", got {given!r}'
        )
    return Pattern.nm(int(named[1]), int(named[2]))


class GyropermModeDescriptor(_mode.SparseMagnitudeModeDescriptor):  # type: ignore[name-defined]
    """The mode ``"gyroperm"``: which layers, saving, restoring and exporting as by magnitude."""

    @property
    def name(self) -> str:
        """The mode's name."""
        return MODE

    @property
    def search_algorithm(self) -> type:
        """The searcher of its masks."""
        return GyropermSearcher


# Reloading this module must not register the mode twice.
if MODE not in _mode.SparsityModeRegistry:
    _mode.SparsityModeRegistry.register_mode(GyropermModeDescriptor)


def order_for_sparsify(
    model: nn.Module,
    *,
    graph: CouplingGraph | Spec | None = None,
    inputs: Any = None,
    **search: Any,
) -> dict[str, NDArray[np.int64]]:
    """Reorder a model's channels so that 2:4 masks of consecutive columns keep more.

    Call it before ``mts.sparsify(model, "sparse_magnitude")`` or ``"sparsegpt"``, whose masks stock
    2:4 kernels read. The model computes what it did, which is verified.

    Parameters
    ----------
    model : nn.Module
        Changed in place, or left as it was if anything fails.
    graph : CouplingGraph or Spec, optional
        What is coupled; found by :func:`gyroperm.models.coupling` otherwise.
    inputs : Tensor, tuple or mapping, optional
        To trace and to compare with; made up for Hugging Face models.
    search
        Settings of each search; see :func:`gyroperm.plugins.ordering.searched_orders`.

    Returns
    -------
    dict of str to ndarray of int64
        The orders that were applied, by site.

    Raises
    ------
    FunctionChanged
        If the graph does not describe the model rightly; the model is as it was.
    """
    found = coupling(model, graph, inputs=inputs)
    saliencies = {
        f"{name}.weight": module.weight.detach().abs().float().cpu().numpy()
        for name, module in _pruned(model)
    }
    orders = searched_orders(found, saliencies, Pattern.nm(), **search)
    permute(model, orders, graph=found, inputs=inputs)
    return orders


def _pruned(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers that Model Optimizer's own modes prune by default."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and not fnmatch(name, _DENSE):
            rows, columns = module.weight.shape[:2]
            if rows % _ROWS == 0 and columns % _COLUMNS == 0:
                yield name, module
