"""A model whose linear layers and convolutions are given packed weights."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from gyroperm.gpu.convolution import HinmConv2d
from gyroperm.gpu.format import HinmMatrix
from gyroperm.gpu.linear import HinmLinear, checked_dtype
from gyroperm.models.layers import PrunableLayer, layer_kind, prunable_layers
from gyroperm.models.report import Report
from gyroperm.problem import Problem
from gyroperm.solution import Solution
from gyroperm.views import WeightView

_ABOVE_NOTHING = 2.0**-20
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Replaced:
    """What :func:`replace_linears` did.

    Attributes
    ----------
    replaced : tuple of str
        Modules that are a :class:`HinmLinear` or a :class:`HinmConv2d` now.
    skipped : dict of str to str
        Modules that a solution was given for and that stay as they were, and why.
    """

    replaced: tuple[str, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"replaced {len(self.replaced)} layers"]
        lines += [f"left {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)


def replace_linears(
    model: nn.Module,
    solutions: Mapping[str, Solution] | Report,
    *,
    dtype: torch.dtype | None = None,
) -> Replaced:
    """Replace linear layers and convolutions of a model by packed ones, in place.

    Parameters
    ----------
    model : nn.Module
    solutions : mapping of str to Solution, or Report
        By the name of a module, or of its weight. Or what :func:`gyroperm.models.sparsify`
        returned for this model, whose weights are pruned already.
    dtype : {torch.float16, torch.bfloat16}, optional
        By default each weight's own; float16 for weights of another dtype.

    Returns
    -------
    Replaced
        Linear layers, GPT-2's Conv1D and two-dimensional convolutions are replaced. Skipped are
        layers that are of a class derived from these (their weights may be read by others, as in
        :class:`torch.nn.MultiheadAttention`), that have hooks, that share their weight with a
        module of another kind, or whose pattern cannot be packed; and convolutions that are
        grouped, of one dimension, or solved by input channel.

    Raises
    ------
    TypeError
        If the solutions are nothing of the above, or the dtype is another.
    ValueError
        If a name is no linear layer or convolution of the model, or a solution is of another
        shape; or if weights of a report are not zero where they were pruned. The model is then
        as it was.
    """
    name = None if dtype is None else checked_dtype(dtype)
    layers = prunable_layers(model)
    by_name = {one: layer for layer in layers.values() for one in _names(layer)}
    chosen = _solutions(solutions, by_name)
    made: dict[nn.Module, HinmLinear | HinmConv2d] = {}
    skipped: dict[str, str] = {}
    for layer, given in chosen:
        reason = _why_left(model, layer)
        if isinstance(given, Solution):
            _check_shape(layer, given)
        if not reason:
            solution = given if isinstance(given, Solution) else _reported(given, layer)
            weight = layer.oriented(layer.parameter.detach())
            try:
                matrix = HinmMatrix.from_solution(solution, weight, name)
            except ValueError as error:
                reason = str(error)
        if reason:
            skipped.update(dict.fromkeys(layer.modules, reason))
            continue
        for module in map(model.get_submodule, layer.modules):
            made[module] = _placed(module, matrix)
    return Replaced(tuple(_swapped(model, made)), skipped)


def _names(layer: PrunableLayer) -> Iterator[str]:
    for module in layer.modules:
        yield module
        yield f"{module}.weight" if module else "weight"


def _solutions(
    given: Any, by_name: Mapping[str, PrunableLayer]
) -> list[tuple[PrunableLayer, Solution | Report]]:
    if isinstance(given, Report):
        _check_names(given.masks, by_name)
        return [(by_name[name], given) for name in given.masks]
    if not isinstance(given, Mapping) or not all(
        isinstance(solution, Solution) for solution in given.values()
    ):
        raise TypeError(
            "solutions must be a mapping of module names to Solution, or the Report of sparsify()"
        )
    _check_names(given, by_name)
    found: dict[str, tuple[PrunableLayer, Solution | Report]] = {}
    for name, solution in given.items():
        layer = by_name[name]
        if layer.name in found and found[layer.name][1] is not solution:
            raise ValueError(f"solutions hold two for one weight, {layer.name}")
        found[layer.name] = (layer, solution)
    return list(found.values())


def _check_names(given: Mapping[str, Any], by_name: Mapping[str, PrunableLayer]) -> None:
    for name in given:
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, n=1)
            hint = f"; is it {near[0]!r}?" if near else ""
            raise ValueError(f"the model has no linear layer or convolution {name!r}{hint}")


def _reported(report: Report, layer: PrunableLayer) -> Solution:
    """The solution that a report's mask and arrangement are of."""
    mask = report.masks[layer.name]
    if mask.shape != layer.parameter.shape:
        raise ValueError(
            f"the report has a mask of shape {tuple(mask.shape)} for {layer.name}, which has shape "
            f"{tuple(layer.parameter.shape)}"
        )
    outside = layer.parameter.detach()[~mask.to(layer.parameter.device)]
    if torch.count_nonzero(outside):
        raise ValueError(
            f"{layer.name} has weights that are not zero outside of the report's mask: it is of "
            f"another model, or the masks have changed since"
        )
    # As saliency a mask is its own best one: the n of each group that have any.
    saliency = layer.oriented(mask.cpu().numpy()).astype(np.float64)
    arrangement = report.arrangements.get(layer.name)
    if arrangement is None:
        from gyroperm.engine import solve

        return solve(
            saliency,
            saliency=saliency,
            pattern=report.pattern,
            method="identity",
            groups=layer.groups,
        )
    view = WeightView.of([saliency.shape], report.pattern, listed=False, groups=layer.groups)
    matrix = view.matrix([saliency])
    # Rows of a tile without columns are not among those that were pruned whole.
    matrix[arrangement.tile_rows[arrangement.tile_rows >= 0]] += _ABOVE_NOTHING
    problem = Problem(matrix, report.pattern, view.blocks, view.orders)
    arrangement.check(problem)
    return Solution.measured(
        problem,
        arrangement,
        identity=0.0,
        view=view,
        method=str(report.settings.get("method", "")),
        seed=0,
        seconds=0.0,
    )


def _check_shape(layer: PrunableLayer, solution: Solution) -> None:
    if solution.view.listed or solution.view.shapes != (layer.shape,):
        shapes = ", ".join(str(shape) for shape in solution.view.shapes)
        raise ValueError(
            f"the solution for {layer.name} is of {shapes}, its weight is (out, in) {layer.shape}"
        )


def _why_left(model: nn.Module, layer: PrunableLayer) -> str:
    if len(layer.shape) == 3:
        return "a convolution over one dimension"
    if layer.groups > 1:
        return f"a convolution of {layer.groups} groups, each a product of its own"
    if "" in layer.modules:
        return "the model itself; see HinmLinear.from_linear and HinmConv2d.from_solution"
    for module in map(model.get_submodule, layer.modules):
        if not _is_known(module):
            return f"a {type(module).__name__}, whose weight others may read"
        if any(getattr(module, hooks) for hooks in _HOOKS):
            return "it has hooks"
    others = [
        name
        for name, module in model.named_modules()
        if name not in layer.modules
        and any(own is layer.parameter for own in module._parameters.values())
    ]
    return f"its weight is shared with {', '.join(others)}" if others else ""


def _is_known(module: nn.Module) -> bool:
    kind = type(module)
    return kind in (nn.Linear, nn.Conv2d) or (
        layer_kind(module) == "transposed" and kind.__name__ == "Conv1D"
    )


def _placed(module: Any, matrix: HinmMatrix) -> HinmLinear | HinmConv2d:
    if isinstance(module, nn.Conv2d):
        return HinmConv2d.from_matrix(matrix, module)
    layer = HinmLinear.from_matrix(matrix, module.bias, module.weight.device)
    return layer.train(module.training)


def _swapped(model: nn.Module, made: Mapping[nn.Module, nn.Module]) -> list[str]:
    """Put what was made wherever what it replaces is registered; the names of those places."""
    names = []
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module in made:
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, made[module])
            names.append(name)
    return names
