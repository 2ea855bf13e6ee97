"""A model computed in float64, module by module, and what precision that really reached."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

#: How far two computations of the same function may differ, relative to the largest output.
TOLERANCES = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 3e-2,
    torch.bfloat16: 1e-1,
}


# Where Hugging Face's configurations name the way in which experts are computed.
_EXPERTS = "_experts_implementation"


class Lowest(TorchDispatchMode):
    """Remembers the least precise floating dtype that a float64 was narrowed to on its way.

    Attributes
    ----------
    dtype : torch.dtype
    """

    def __init__(self) -> None:
        super().__init__()
        self.dtype = torch.float64

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # What begins narrow, such as a mask, and is widened later loses nothing.
        if any(isinstance(arg, torch.Tensor) and arg.dtype == torch.float64 for arg in args):
            for part in result if isinstance(result, list | tuple) else (result,):
                self._see(part, args[0])
        return result

    def _see(self, part: Any, first: Any) -> None:
        if isinstance(part, torch.Tensor) and part.is_floating_point() and part.numel() > 1:
            dtype = part.dtype
            if TOLERANCES.get(dtype, 1.0) > TOLERANCES[self.dtype] and not _lossless(first, part):
                self.dtype = dtype if dtype in TOLERANCES else torch.bfloat16


def _lossless(wide: Any, narrow: Any) -> bool:
    """Whether one is a copy of the other: an input that began narrow loses nothing."""
    if not isinstance(wide, torch.Tensor) or not isinstance(narrow, torch.Tensor):
        return False
    return wide.shape == narrow.shape and torch.equal(wide, narrow.to(wide.dtype))


@contextmanager
def doubled(model: nn.Module) -> Iterator[None]:
    """Within the block each module computes in float64.

    The parameters and buffers of one module at a time are widened while it runs, so that no
    second model is held; they are the very same tensors afterwards.
    """
    with ExitStack() as stack:
        _plain_experts(model, stack)
        for module in model.modules():
            tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            if any(t.is_floating_point() for t in tensors):
                _Widened(module).install(stack)
        yield


def _plain_experts(model: nn.Module, stack: ExitStack) -> None:
    """Have Hugging Face's experts computed one by one: their grouped product has no float64."""
    found: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    for config in {id(one): one for one in found if hasattr(one, _EXPERTS)}.values():
        own = config._experts_implementation
        stack.callback(setattr, config, _EXPERTS, own)
        config._experts_implementation = "eager"


class _Widened:
    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._narrow: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._depth = 0

    def install(self, stack: ExitStack) -> None:
        before = self._module.register_forward_pre_hook(self._widen, with_kwargs=True)
        after = self._module.register_forward_hook(self._restore, always_call=True)
        stack.callback(before.remove)
        stack.callback(after.remove)
        stack.callback(self._put_back)

    def _widen(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        self._depth += 1
        if self._depth == 1:
            for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
                if tensor.is_floating_point() and tensor.dtype != torch.float64:
                    self._narrow.append((tensor, tensor.data))
                    tensor.data = tensor.data.double()
        return as_double(args), as_double(kwargs)

    def _restore(self, module: nn.Module, args: Any, output: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._put_back()

    def _put_back(self) -> None:
        while self._narrow:
            tensor, data = self._narrow.pop()
            tensor.data = data


def as_double(value: Any) -> Any:
    """Floating tensors in float64, in the containers they came in."""
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(as_double(one) for one in value))
    if isinstance(value, list | tuple):
        return type(value)(as_double(one) for one in value)
    if type(value) is dict:
        return {key: as_double(one) for key, one in value.items()}
    return value
