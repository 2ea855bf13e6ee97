"""torchao's ``WandaSparsifier``: a model ordered for its 2:4 masks, or masks of any pattern.

Masks are torch's own: 1 = keep. Tested with torchao 0.18 and torch 2.13; torchao has removed its
sparsifiers from later versions. The metric here is torchao's: it multiplies weights with the
*sum of squares* of their input, where the paper has its root.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gyroperm.models import CouplingGraph, Spec, coupling, permute
from gyroperm.models.inputs import model_inputs
from gyroperm.models.verify import evaluating
from gyroperm.pattern import Pattern
from gyroperm.plugins.ordering import searched_orders
from gyroperm.plugins.toolkits import need
from gyroperm.plugins.torch_ao import GyropermSparsifier

_sparsity: Any = need("torchao.sparsity", "torchao==0.18.0", "torchao 0.18.0, torch 2.13.0")


def order_for_wanda(
    model: nn.Module,
    calibration: Iterable[Any],
    *,
    block_size: int = 4,
    layers: Iterable[str] | None = None,
    graph: CouplingGraph | Spec | None = None,
    inputs: Any = None,
    **search: Any,
) -> dict[str, NDArray[np.int64]]:
    """Order a model's channels so that torchao's semi-structured masks keep more.

    Call it before ``WandaSparsifier(semi_structured_block_size=block_size).prepare``. The
    function of the model is compared before and after.

    Parameters
    ----------
    model : nn.Module
        Changed in place; computes what it did.
    calibration : iterable
        Batches: a tensor, a tuple of arguments or a mapping of keyword arguments each.
    block_size : int
        As torchao's ``semi_structured_block_size``: half of so many weights are kept.
    layers : iterable of str, optional
        Names of the ``nn.Linear`` that will be pruned; all by default.
    graph : CouplingGraph or Spec, optional
        What is coupled; found by :func:`gyroperm.models.coupling` otherwise.
    inputs : Tensor, tuple or mapping, optional
        To trace and to compare with; the first batch by default.
    search
        Settings of each search; see :func:`gyroperm.plugins.ordering.searched_orders`.

    Returns
    -------
    dict of str to ndarray of int64
        The orders that were applied, by site.

    Raises
    ------
    ValueError
        If a layer is no ``nn.Linear`` of the model, or calibration does not reach it.
    FunctionChanged
        If the graph does not describe the model rightly; the model is as it was.
    """
    batches = list(calibration)
    if not batches:
        raise ValueError("calibration must hold at least one batch")
    inputs = batches[0] if inputs is None else inputs
    found = coupling(model, graph, inputs=inputs)
    norms = input_norms(model, batches, layers)
    saliencies = {
        f"{name}.weight": (_weight(model, name).abs() * norm).float().cpu().numpy()
        for name, norm in norms.items()
    }
    # As torchao counts: block_size // 2 are pruned.
    pattern = Pattern.nm(block_size - block_size // 2, block_size)
    orders = searched_orders(found, saliencies, pattern, **search)
    permute(model, orders, graph=found, inputs=inputs)
    return orders


def input_norms(
    model: nn.Module, batches: Iterable[Any], layers: Iterable[str] | None = None
) -> dict[str, torch.Tensor]:
    """The sums of squares of each layer's input channels, by torchao's own observer.

    Parameters
    ----------
    model : nn.Module
    batches : iterable
    layers : iterable of str, optional
        Names of ``nn.Linear``; all that the batches reach by default.

    Returns
    -------
    dict of str to Tensor, shape (in_features,)

    Raises
    ------
    ValueError
        If a named layer is no ``nn.Linear``, or no batch reaches it.
    """
    linear = {name: one for name, one in model.named_modules() if type(one) is nn.Linear}
    names = list(linear if layers is None else layers)
    if unknown := [name for name in names if name not in linear]:
        raise ValueError(f"{unknown[0]!r} is no nn.Linear of {type(model).__name__}")
    observers = {name: _sparsity.PerChannelNormObserver() for name in names}
    with ExitStack() as stack:
        for name in names:
            hook = linear[name].register_forward_pre_hook(
                lambda _module, args, observer=observers[name]: _observe(observer, args)
            )
            stack.callback(hook.remove)
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        for batch in batches:
            args, kwargs = model_inputs(model, batch)
            model(*args, **kwargs)
    norms = {name: observer.norm for name, observer in observers.items() if observer.norm.numel()}
    if layers is not None and len(norms) < len(names):
        lost = next(name for name in names if name not in norms)
        raise ValueError(f"calibration never reached {lost}: no batch runs it")
    return norms


def _weight(model: nn.Module, name: str) -> torch.Tensor:
    weight: Any = model.get_submodule(name).weight
    return weight.detach()


def _observe(observer: Any, args: Any) -> None:
    observer(args[0])


def _metric(module: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """What torchao's sparsifier ranks by."""
    observer: Any = module.activation_post_process
    norm: torch.Tensor = observer.norm
    if not norm.numel():
        raise ValueError(
            f"calibration never reached a {module.extra_repr()} layer: run the prepared model on "
            f"calibration inputs before step()"
        )
    return weight.abs() * norm


class PermutedWandaSparsifier(GyropermSparsifier, _sparsity.WandaSparsifier):
    """torchao's ``WandaSparsifier`` with masks from a search over orders, of any pattern.

    Masks are in the original order; for stock 2:4 kernels see :func:`order_for_wanda`.

    Parameters
    ----------
    pattern : Pattern
        Any pattern; 2:4 by default.
    search
        Further arguments of :func:`gyroperm.solve`.
    """

    def __init__(self, pattern: Pattern | None = None, **search: Any) -> None:
        super().__init__(pattern, saliency=_metric, **search)


def retained(model: nn.Module, norms: Mapping[str, torch.Tensor]) -> float:
    """The saliency by torchao's metric that the weights of a model have, summed over layers.

    Parameters
    ----------
    model : nn.Module
        Prepared, or after ``squash_mask``.
    norms : mapping of str to Tensor
        From :func:`input_norms` of the dense model in the same order.
    """
    return sum(
        float((_weight(model, name).abs().double() * norm.double()).sum())
        for name, norm in norms.items()
    )
