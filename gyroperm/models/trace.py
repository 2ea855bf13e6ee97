"""The coupling graph of any module, found by following its channels through one call.

Every position along every dimension of a parameter gets an id. Operations hand ids on (a slice, a
concatenation, a transpose), tie them where channels meet (an addition, the columns of the weight
that reads them), or tell them apart (the groups of a group norm). What an operation does that is
not known keeps the positions it touches where they are, and is said.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from gyroperm.models.graph import CouplingGraph, named_tensors
from gyroperm.models.trace_capture import Captured, captured
from gyroperm.models.trace_ledger import Ledger
from gyroperm.models.trace_ops import follow, operation
from gyroperm.models.trace_sites import sites_of, untouched
from gyroperm.models.trace_values import Factor, Follower, Value

# Operations that hold a graph of their own.
_WRAPPERS = ("wrap_with_autocast", "wrap_with_set_grad_enabled")


def trace(model: nn.Module, inputs: Any = None) -> CouplingGraph:
    """Follow a model's channels through one call, and find what may be reordered.

    Parameters
    ----------
    model : nn.Module
        Recorded in evaluation mode; left as it was.
    inputs : Tensor, tuple, mapping or None
        For the call; made up for models with a Hugging Face configuration. Branches are followed
        as these inputs take them.

    Returns
    -------
    CouplingGraph
        Channels that enter or leave the model, or meet an operation that is not known, are fixed
        sites that say so.

    Raises
    ------
    ValueError
        If the model can be neither exported nor traced, or inputs are needed; the message names
        the cause and shows how to write a :class:`~gyroperm.models.Spec`.
    """
    call = captured(model, inputs)
    ledger = Ledger()
    _Run(model, call, ledger).run()
    return CouplingGraph(
        call.source,
        sites_of(ledger),
        skipped=untouched(ledger, model),
        tensors=tuple(named_tensors(model)),
    )


class _Run:
    """Values in place of tensors, through a recorded graph."""

    def __init__(self, model: nn.Module, call: Captured, ledger: Ledger) -> None:
        self._call = call
        self._follower = Follower(ledger)
        self._names = _canonical(model)
        self._lost = _not_saved(model)

    def run(self) -> None:
        module = self._call.module
        given = []
        for node in module.graph.nodes:
            if node.op == "placeholder":
                given.append(self._entering(node))
        results = self._interpret(module, given, "")
        for value in _leaves(results):
            self._follower.pinned(value, value.factors, "leaves the model as its output")

    def _entering(self, node: fx.Node) -> Any:
        """A parameter or buffer with its ids, or an input, which stays."""
        made = node.meta.get("val")
        if not isinstance(made, torch.Tensor):
            return made
        shape = tuple(int(size) for size in made.shape)
        name = self._names.get(self._call.tensors.get(node.name, ""), "")
        if not name:
            made_here = node.name in self._call.constants
            return Value(shape, why="a constant tensor" if made_here else f"the input {node.name}")
        if not made.is_floating_point() or name in self._lost:
            return Value(shape, why=f"the buffer {name}")
        factors = [
            Factor((d,), self._follower.ledger.axis(name, d, size))
            for d, size in enumerate(shape)
            if size > 1
        ]
        return Value(shape, tuple(factors), parameter=name)

    def _interpret(self, module: fx.GraphModule, given: list[Any], inside: str) -> Any:
        known: dict[fx.Node, Any] = {}
        arguments = iter(given)
        for node in module.graph.nodes:
            if node.op == "placeholder":
                known[node] = next(arguments)
            elif node.op == "get_attr":
                known[node] = _attribute(module, str(node.target))
            elif node.op == "output":
                return fx.map_arg(node.args[0], known.__getitem__)
            else:
                known[node] = self._called(node, known, inside)
                if self._call.unseen and not node.users:
                    self._taken_out(known[node])
        raise AssertionError("a graph without an output")

    def _taken_out(self, values: Any) -> None:
        """What no operation reads may have been read by Python."""
        for value in _leaves(values):
            self._follower.pinned(value, value.factors, f"taken out after {self._follower.where}")

    def _called(self, node: fx.Node, known: dict[fx.Node, Any], inside: str) -> Any:
        args: Any = fx.map_arg(node.args, known.__getitem__)
        kwargs: Any = fx.map_arg(node.kwargs, known.__getitem__)
        where = _module_of(node) or inside
        if node.target is operator.getitem:
            container, index = args
            return container[index]
        if str(node.target) in _WRAPPERS:
            k = next(k for k, one in enumerate(args) if isinstance(one, fx.GraphModule))
            return self._interpret(args[k], list(args[k + 1 :]), where)
        shapes = _shapes(node.meta.get("val"))
        if not isinstance(node.target, torch._ops.OpOverload):
            return self._not_an_operation(node, args, kwargs, shapes)
        name = operation(node.target)
        self._follower.where = f"{name} in {where}" if where else name
        return follow(self._follower, node.target, args, kwargs, shapes)

    def _not_an_operation(self, node: fx.Node, args: Any, kwargs: Any, shapes: Any) -> Any:
        """Arithmetic on sizes is done; anything else is not followed."""
        values = _leaves([args, kwargs])
        if not values and shapes is None:
            return node.target(*args, **kwargs) if callable(node.target) else None
        for value in values:
            self._follower.pinned(value, value.factors, f"not followed through {node.target}")
        return _staying(shapes, f"what {node.target} returns")


def _staying(shapes: Any, why: str) -> Any:
    if isinstance(shapes, list):
        return [_staying(shape, why) for shape in shapes]
    return None if shapes is None else Value(shapes, why=why)


def _leaves(values: Any) -> list[Value]:
    return [v for v in torch.utils._pytree.tree_leaves(values) if isinstance(v, Value)]


def _shapes(made: Any) -> Any:
    if isinstance(made, torch.Tensor):
        return tuple(int(size) for size in made.shape)
    return [_shapes(one) for one in made] if isinstance(made, list | tuple) else None


def _attribute(module: fx.GraphModule, target: str) -> Any:
    found: Any = module
    for part in target.split("."):
        found = getattr(found, part)
    if isinstance(found, torch.Tensor):
        return Value(tuple(found.shape), why="a constant tensor")
    return found


def _module_of(node: fx.Node) -> str:
    """The innermost module in which a node was recorded."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def _canonical(model: nn.Module) -> dict[str, str]:
    """The first name of each tensor, by all of its names."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(t), name) for name, t in named_tensors(model).items()}


def _not_saved(model: nn.Module) -> set[str]:
    """Buffers that a state dict leaves out: an order given to them would be lost."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    }
