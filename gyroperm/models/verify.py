"""Whether a model still computes the same function."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gyroperm.models.inputs import model_inputs
from gyroperm.models.precision import TOLERANCES, Lowest, as_double, doubled


class FunctionChanged(RuntimeError):  # noqa: N818 - it says what happened
    """A model computes something else than before.

    Attributes
    ----------
    module : str
        The first module, in the order of execution, whose output differs by more than an order
        of its elements; empty if only the outputs of the whole differ.
    """

    def __init__(self, message: str, module: str) -> None:
        super().__init__(message)
        self.module = module


@dataclass(frozen=True, eq=False)
class Reference:
    """What a model computes.

    Attributes
    ----------
    inputs : tuple
        Positional and keyword arguments.
    outputs : list of Tensor
        Every floating tensor of the output.
    dtype : torch.dtype
        The least precise that anything was computed in.
    """

    inputs: tuple[tuple[Any, ...], dict[str, Any]]
    outputs: list[torch.Tensor]
    dtype: torch.dtype


@dataclass(frozen=True)
class Verified:
    """How near two computations are.

    Attributes
    ----------
    error : float
        The largest difference, relative to the largest output.
    tolerance : float
        What the precision of the computation allows.
    dtype : torch.dtype
        The least precise that anything was computed in, though asked for float64.
    """

    error: float
    tolerance: float
    dtype: torch.dtype

    @property
    def same(self) -> bool:
        """Whether the function is the same, to rounding."""
        return self.error <= self.tolerance


def reference(model: nn.Module, inputs: Any = None) -> Reference:
    """Run a model for later comparison, in evaluation mode and in float64 where it allows.

    Parameters
    ----------
    model : nn.Module
    inputs : Tensor, tuple, mapping or None
        A tensor is the only argument; a tuple or list holds the arguments, a mapping the keyword
        arguments. Made up for Hugging Face models.

    Returns
    -------
    Reference
        For :func:`verify`: inputs, outputs, and the precision they were computed in.

    Raises
    ------
    ValueError
        If an output is NaN or infinite, or there is none, or inputs are needed.
    """
    arguments = model_inputs(model, inputs)
    outputs, dtype = _run(model, arguments)
    if not outputs:
        raise ValueError(f"{type(model).__name__} returns no floating tensor to compare")
    if not all(bool(torch.isfinite(one).all()) for one in outputs):
        raise ValueError(
            f"the outputs of {type(model).__name__} are not finite: nothing can be verified with "
            f"these inputs"
        )
    return Reference(arguments, outputs, dtype)


def verify(model: nn.Module, before: Reference) -> Verified:
    """Compare a model with what it computed before.

    Parameters
    ----------
    model : nn.Module
    before : Reference
        From :func:`reference`.

    Returns
    -------
    Verified
        The largest difference, what is allowed, and whether the function is the same.
    """
    outputs, dtype = _run(model, before.inputs)
    lowest = max(dtype, before.dtype, key=lambda one: TOLERANCES[one])
    return Verified(_difference(before.outputs, outputs), TOLERANCES[lowest], lowest)


def _difference(before: list[torch.Tensor], after: list[torch.Tensor]) -> float:
    if [one.shape for one in before] != [one.shape for one in after]:
        return float("inf")
    worst = 0.0
    for old, new in zip(before, after, strict=True):
        if old.numel():
            scale = float(old.abs().max()) or 1.0
            worst = max(worst, float((new - old).abs().nan_to_num(nan=float("inf")).max()) / scale)
    return worst


def _run(
    model: nn.Module, arguments: tuple[tuple[Any, ...], dict[str, Any]]
) -> tuple[list[torch.Tensor], torch.dtype]:
    try:
        return _run_double(model, arguments)
    except (RuntimeError, NotImplementedError, TypeError):
        # A kernel without float64, or a parameter used outside its own module.
        with evaluating(model), torch.no_grad():
            outputs = floats(model(*arguments[0], **arguments[1]))
        dtypes = [one.dtype for one in [*outputs, *model.parameters()] if one.is_floating_point()]
        lowest = max(dtypes, key=lambda one: TOLERANCES.get(one, 1.0))
        return [one.double() for one in outputs], lowest


def _run_double(
    model: nn.Module, arguments: tuple[tuple[Any, ...], dict[str, Any]]
) -> tuple[list[torch.Tensor], torch.dtype]:
    lowest = Lowest()
    given = as_double(arguments)
    with evaluating(model), torch.no_grad(), doubled(model), lowest:
        outputs = floats(model(*given[0], **given[1]))
    return [one.double() for one in outputs], lowest.dtype


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block; each module's own mode is back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def floats(output: Any) -> list[torch.Tensor]:
    """The floating tensors of an output, however it is nested."""
    if isinstance(output, torch.Tensor):
        return [output.detach()] if output.is_floating_point() else []
    if isinstance(output, Mapping) or hasattr(output, "keys"):
        return [one for key in output.keys() for one in floats(output[key])]  # noqa: SIM118
    if isinstance(output, list | tuple):
        return [one for part in output for one in floats(part)]
    return []


# --- the module to blame


def traces(
    model: nn.Module, arguments: tuple[tuple[Any, ...], dict[str, Any]]
) -> list[tuple[str, torch.Tensor]]:
    """The sorted outputs of every module, in the order in which modules end.

    Sorting makes them comparable across orders: a module whose channels were reordered has the
    same values in other places.
    """
    found: list[tuple[str, torch.Tensor]] = []

    def see(name: str, output: Any) -> None:
        parts = floats(output)
        if parts and parts[0].dim():
            found.append((name, parts[0].flatten(1 if parts[0].dim() > 1 else 0).sort().values))

    with ExitStack() as stack:
        for name, module in model.named_modules():
            hook = module.register_forward_hook(lambda _m, _a, out, name=name: see(name, out))
            stack.callback(hook.remove)
        _run(model, arguments)
    return found


def first_difference(
    before: list[tuple[str, torch.Tensor]],
    after: list[tuple[str, torch.Tensor]],
    tolerance: float,
) -> str:
    """The first module whose output is not the same up to order; empty if there is none."""
    for (name, old), (_, new) in zip(before, after, strict=False):
        if _difference([old.double()], [new.double()]) > tolerance:
            return name
    return ""
