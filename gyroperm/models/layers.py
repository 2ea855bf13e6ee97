"""The layers of a model whose weights can be pruned: linear ones and convolutions."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gyroperm.arrays import to_numpy

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_STORED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class PrunableLayer:
    """A weight, and the modules that compute with it.

    Attributes
    ----------
    name : str
        Of the parameter; the first of its names, where it has several.
    parameter : nn.Parameter
    modules : tuple of str
        Those that multiply their input with it; more than one where it is shared.
    transposed : bool
        Whether it is stored as (in, out), as GPT-2's Conv1D is.
    groups : int
        Of a grouped convolution.
    """

    name: str
    parameter: nn.Parameter
    modules: tuple[str, ...]
    transposed: bool = False
    groups: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape as (out, in, ...), where in are the channels of one group."""
        shape = tuple(self.parameter.shape)
        return (shape[1], shape[0]) if self.transposed else shape

    @property
    def channels(self) -> int:
        """Input channels of the whole layer."""
        return self.shape[1] * self.groups

    @property
    def input_dim(self) -> int:
        """The dimension of the parameter that is its input channels."""
        return 0 if self.transposed else 1

    @property
    def convolution(self) -> bool:
        """Whether it is one."""
        return len(self.shape) > 2

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of :meth:`weights`: float32 for what is stored in less."""
        return np.dtype(np.float64 if self.parameter.dtype == torch.float64 else np.float32)

    def oriented(self, array: Any) -> Any:
        """An array or tensor of the parameter's layout as (out, in, ...), or the way back."""
        return array.T if self.transposed else array

    def weights(self) -> NDArray[np.floating]:
        """The weights as (out, in, ...), in float32 or float64; contiguous."""
        return np.ascontiguousarray(self.oriented(to_numpy(self.parameter, self.name)))

    def gradient(self) -> NDArray[np.floating] | None:
        """The gradient as (out, in, ...), if there is one."""
        grad = self.parameter.grad
        return None if grad is None else np.ascontiguousarray(self.oriented(to_numpy(grad, "grad")))


def prunable_layers(model: nn.Module) -> dict[str, PrunableLayer]:
    """All weights that linear layers and convolutions compute with, by their first name."""
    found: dict[int, PrunableLayer] = {}
    for name, module in model.named_modules():
        kind = layer_kind(module)
        weight = module._parameters.get("weight") if kind else None
        if weight is None or isinstance(weight, nn.parameter.UninitializedParameter):
            continue
        modules = (*found[id(weight)].modules, name) if id(weight) in found else (name,)
        found[id(weight)] = PrunableLayer(
            found[id(weight)].name if id(weight) in found else _parameter(name),
            weight,
            modules,
            kind == "transposed",
            getattr(module, "groups", 1) if kind == "convolution" else 1,
        )
    return {layer.name: layer for layer in found.values()}


def _parameter(module: str) -> str:
    return f"{module}.weight" if module else "weight"


def layer_kind(module: nn.Module) -> str:
    """``"linear"``, ``"transposed"`` (GPT-2's Conv1D), ``"convolution"``, or empty for others."""
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, _CONVOLUTIONS):
        return "convolution"
    library = sys.modules.get("transformers.pytorch_utils")
    return "transposed" if library and isinstance(module, library.Conv1D) else ""


def other_matrices(model: nn.Module, layers: dict[str, PrunableLayer]) -> dict[str, str]:
    """Parameters of two dimensions or more that are none of the layers' weights, and why not."""
    known = {id(layer.parameter) for layer in layers.values()}
    return {
        name: reason
        for module_name, module in model.named_modules()
        for name, parameter in _own(module_name, module)
        if id(parameter) not in known and (reason := _why_no_layer(module, parameter))
    }


def _own(module_name: str, module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in module.named_parameters(recurse=False):
        yield (f"{module_name}.{name}" if module_name else name), parameter


def _why_no_layer(module: nn.Module, parameter: nn.Parameter) -> str:
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        return "not initialised: run the model once before"
    if parameter.dim() < 2:
        return ""
    return (
        f"a parameter of {type(module).__name__}; linear layers and convolutions over one or two "
        f"dimensions are pruned"
    )


def why_unfit(layer: PrunableLayer) -> str:
    """Why no weight of this layer can be pruned at all; empty if it can."""
    if layer.parameter.dtype not in _STORED:
        dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in _STORED)
        return f"stored as {str(layer.parameter.dtype).removeprefix('torch.')}, not {dtypes}"
    if layer.parameter.is_meta:
        return "on the meta device, without values"
    return "" if math.prod(layer.shape) else "empty"
