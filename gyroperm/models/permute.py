"""Orders applied everywhere they must go, and the function proven unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gyroperm.models.coupling import coupling
from gyroperm.models.graph import CouplingGraph, orders_by_site
from gyroperm.models.leaving import undo_on_leaving
from gyroperm.models.spec import Spec
from gyroperm.models.surgery import Carried
from gyroperm.models.verify import (
    FunctionChanged,
    Verified,
    first_difference,
    reference,
    traces,
    verify,
)

Order = NDArray[np.int64]


def permute(
    model: nn.Module,
    orders: Mapping[str, Any],
    *,
    graph: CouplingGraph | Spec | None = None,
    verified: bool = True,
    inputs: Any = None,
    optimizer: torch.optim.Optimizer | None = None,
    also: Mapping[str, Any] | None = None,
) -> Verified | None:
    """Reorder a model's channels in place, and prove that it still computes the same.

    Weights, biases, norm parameters and running statistics, embeddings and gradients follow; a
    storage with several names is reordered once. Where hidden states leave the model their order
    is undone (a buffer, and ``forward`` of this instance); a saved model is loaded with
    :func:`gyroperm.models.restore_leaving`. What the model alone uses keeps the new order:
    attention maps that of the heads, ``inputs_embeds`` and the outputs of inner modules that of the
    residual stream.

    Parameters
    ----------
    model : nn.Module
        Changed in place, or left as it was if anything fails.
    orders : mapping of str to array_like of int
        For a site, or for all blocks of a family at once, its order: ``order[p]`` is the element
        that comes to position p. See ``coupling(model).describe()`` for the sites.
    graph : CouplingGraph or Spec, optional
        What is coupled; found by :func:`coupling` otherwise.
    verified : bool
        Compare outputs before and after.
    inputs : Tensor, tuple or mapping, optional
        For the comparison, and for tracing; made up for Hugging Face models.
    optimizer : torch.optim.Optimizer, optional
        Whose state follows.
    also : mapping of str to Tensor or list of Tensors, optional
        More tensors of a parameter's shape that follow it, by the parameter's name.

    Returns
    -------
    Verified or None
        How near the outputs are; None without verification.

    Raises
    ------
    FunctionChanged
        If outputs differ by more than rounding; it names the first module that does, and the
        model is as it was.
    ValueError
        If an order is no bijection, belongs to a site that is fixed, or names no site.
    """
    found = coupling(model, graph, inputs=inputs)
    checked = _checked(found, orders)
    carried = Carried(model, optimizer, also)
    before = reference(model, inputs) if verified else None
    _apply(model, found, carried, checked)
    if before is None:
        return None
    try:
        after = verify(model, before)
    except BaseException:
        _apply(model, found, carried, _inverse(checked))
        raise
    if not after.same:
        _refuse(model, found, carried, checked, before.inputs, after)
    return after


def take_back(model: nn.Module, graph: CouplingGraph, orders: Mapping[str, Order]) -> None:
    """Undo what :func:`permute` has applied."""
    _apply(model, graph, Carried(model), _inverse(_checked(graph, orders)))


def _checked(graph: CouplingGraph, orders: Mapping[str, Any]) -> dict[str, Order]:
    """Checked orders in the order in which the sites are applied."""
    given = orders_by_site(graph, orders)
    return {s.name: s.checked(given[s.name]) for s in graph.sites if s.name in given}


def _inverse(orders: Mapping[str, Order]) -> dict[str, Order]:
    """What takes the orders back: the last first."""
    return {name: np.argsort(order) for name, order in reversed(list(orders.items()))}


def _apply(
    model: nn.Module, graph: CouplingGraph, carried: Carried, orders: Mapping[str, Order]
) -> None:
    for name, order in orders.items():
        carried.reorder(graph.by_name[name], order)
        undo_on_leaving(model, graph.leaving, name, order)


def _refuse(
    model: nn.Module,
    graph: CouplingGraph,
    carried: Carried,
    orders: Mapping[str, Order],
    arguments: Any,
    after: Verified,
) -> None:
    """Take the orders back, and say which module differs first."""
    changed = traces(model, arguments)
    _apply(model, graph, carried, _inverse(orders))
    module = first_difference(traces(model, arguments), changed, after.tolerance)
    where = f"the first module that differs is {module!r}" if module else "no single module differs"
    raise FunctionChanged(
        f"the orders of {', '.join(list(orders)[:4])}{' ...' if len(orders) > 4 else ''} change "
        f"what the model computes: outputs differ by {after.error:.2g} of their size, "
        f"{after.tolerance:.0e} is allowed in {str(after.dtype).removeprefix('torch.')}; {where}. "
        f"The model is as it was; {graph.source} does not describe it rightly",
        module,
    )
