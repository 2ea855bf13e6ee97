"""The operations of a model, as torch.export or torch.fx record them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from torch import fx, nn
from torch.func import functional_call, functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten

from gyroperm.models.inputs import model_inputs
from gyroperm.models.verify import evaluating

EXAMPLE = """
    from gyroperm.models import Coupled, Spec, coupling
    spec = Spec("mine", (
        Coupled("layers.{i}.ffn", {
            "layers.{i}.up.weight[0]": "c",    # rows of the first weight
            "layers.{i}.up.bias[0]?": "c",     # ? : a model may lack it
            "layers.{i}.down.weight[1]": "c",  # columns of the second follow
        }, order="c"),
    ))
    graph = coupling(model, spec)
docs/models.md, "Writing a spec", tells more"""


@dataclass(frozen=True, eq=False)
class Captured:
    """A recorded call.

    Attributes
    ----------
    source : str
        Who recorded it.
    module : torch.fx.GraphModule
        In ATen operations without mutation.
    tensors : mapping of str to str
        From a placeholder to the parameter or buffer that it stands for.
    constants : frozenset of str
        Placeholders that stand for tensors made on the way.
    unseen : bool
        Whether values may have been taken out and come back unseen: as numbers, or by NumPy.
    """

    source: str
    module: fx.GraphModule
    tensors: Mapping[str, str] = field(default_factory=dict)
    constants: frozenset[str] = frozenset()
    unseen: bool = False


def captured(model: nn.Module, inputs: Any = None) -> Captured:
    """Record one call of a model in evaluation mode.

    Parameters
    ----------
    model : nn.Module
    inputs : Tensor, tuple, mapping or None
        See :func:`gyroperm.models.inputs.model_inputs`.

    Raises
    ------
    ValueError
        If there are no inputs, or the model can be neither exported nor traced.
    """
    name = type(model).__name__
    try:
        args, kwargs = model_inputs(model, inputs)
    except ValueError as error:
        raise ValueError(
            f"{name} has no spec, and tracing it needs inputs: {error}. Or write a spec:{EXAMPLE}"
        ) from error
    with evaluating(model), _plain(), torch.no_grad():
        try:
            return _exported(model, args, kwargs)
        except Exception as error:
            first = error
        try:
            return _traced(model, args, kwargs)
        except Exception as error:
            raise ValueError(
                f"{name} has no spec and cannot be traced: torch.export says {_cause(first)}; "
                f"torch.fx says {_cause(error)}. Write a spec:{EXAMPLE}"
            ) from error


@contextmanager
def _plain() -> Iterator[None]:
    """Without fused kernels for whole layers, and without the warnings of torch's own code."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with catch_warnings():
            simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _exported(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Captured:
    program = torch.export.export(model, args, kwargs, strict=False)
    # Without decompositions this only turns mutation into new values.
    program = program.run_decompositions({})
    signature = program.graph_signature
    tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    constants = frozenset(signature.inputs_to_lifted_tensor_constants)
    return Captured("traced by torch.export", program.graph_module, tensors, constants)


def _traced(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Captured:
    """Run the model on the inputs and record what it does, branches as they are taken."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    flat, tree = tree_flatten((args, kwargs))
    places = [k for k, one in enumerate(flat) if isinstance(one, torch.Tensor)]

    def call(tensors: list[torch.Tensor], given: list[torch.Tensor]) -> Any:
        leaves = list(flat)
        for k, tensor in zip(places, given, strict=True):
            leaves[k] = tensor
        args, kwargs = tree_unflatten(leaves, tree)
        result = functional_call(model, dict(zip(state, tensors, strict=True)), args, kwargs)
        leaves, _ = tree_flatten(result)
        return [one for one in leaves if isinstance(one, torch.Tensor)]

    # A number taken out of a tensor is one of these inputs, as the branches that hang on it are.
    record = make_fx(functionalize(call, remove="mutations"), _error_on_data_dependent_ops=False)
    module = record(list(state.values()), [flat[k] for k in places])
    holders = [node.name for node in module.graph.nodes if node.op == "placeholder"]
    tensors = dict(zip(holders, state, strict=False))
    return Captured("traced by torch.fx", module, tensors, unseen=True)


def _cause(error: BaseException) -> str:
    """The first line that says something, with the kind of the error."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "nothing")
    return f"{type(error).__name__}: {text[:300]}"
