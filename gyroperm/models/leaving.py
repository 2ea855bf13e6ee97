"""Hidden states that leave a model, put back into their original order on the way out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gyroperm.models.spec import Leaving

_BUFFER = "gyroperm_leaving_"


class _Undo:
    """A forward hook that undoes the order of one part of the output.

    The order is a buffer of the model, so that it is saved with the weights it belongs to, and
    moves to the device with them.
    """

    def __init__(self, leaving: Leaving) -> None:
        self.leaving = leaving

    @property
    def buffer(self) -> str:
        return _BUFFER + (self.leaving.field or "output")

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        places = torch.argsort(getattr(module, self.buffer))
        return _replaced(output, self.leaving.field, lambda part: self._undone(part, places))

    def _undone(self, part: Any, places: torch.Tensor) -> Any:
        if isinstance(part, torch.Tensor):
            return part.index_select(self.leaving.dim, places.to(part.device))
        if isinstance(part, list | tuple):
            return type(part)([self._undone(one, places) for one in part])
        return part


def _replaced(output: Any, name: str, change: Any) -> Any:
    """The output with one part changed; named outputs are changed in place, as their own type."""
    if not name:
        return change(output)
    if hasattr(output, "keys") or isinstance(output, dict):
        if name in output.keys() and output[name] is not None:  # noqa: SIM118 - ModelOutput
            output[name] = change(output[name])
        return output
    if isinstance(output, list | tuple) and name.isdigit() and int(name) < len(output):
        parts = list(output)
        parts[int(name)] = change(parts[int(name)])
        return type(output)(parts)
    return output


def undo_on_leaving(
    model: nn.Module, leaving: Iterable[Leaving], site: str, order: NDArray[np.int64]
) -> None:
    """Undo a site's order wherever its elements leave the model.

    Called again, for a further reordering, it undoes both.

    Parameters
    ----------
    model : nn.Module
    leaving : iterable of Leaving
    site : str
        Whose order it is; others are left out.
    order : ndarray of int64, shape (size,)
    """
    for one in leaving:
        if one.site != site:
            continue
        undo = _Undo(one)
        new = torch.from_numpy(order)
        if hasattr(model, undo.buffer):
            before = getattr(model, undo.buffer)
            total = before[new.to(before.device)]
        else:
            parameter = next(model.parameters(), None)
            total = new if parameter is None else new.to(parameter.device)
        model.register_buffer(undo.buffer, total)
        if not any(
            isinstance(hook, _Undo) and hook.leaving == one
            for hook in model._forward_hooks.values()
        ):
            model.register_forward_hook(undo)
        if torch.equal(total, torch.arange(len(total), device=total.device)):
            forget(model, one)


def forget(model: nn.Module, leaving: Leaving) -> None:
    """Remove what :func:`undo_on_leaving` installed for one part of the output."""
    for key, hook in list(model._forward_hooks.items()):
        if isinstance(hook, _Undo) and hook.leaving == leaving:
            del model._forward_hooks[key]
            delattr(model, hook.buffer)
