"""Hidden states that leave a model, put back into their original order on the way out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gyroperm.models.spec import Leaving

_BUFFER = "gyroperm_order_"
_UNDO = "_gyroperm_undo"


class _Undo:
    """Stands before the ``forward`` of one model and undoes the orders of its output's parts.

    No forward hook: sentence-transformers and others call ``forward`` itself, which runs none. The
    orders are buffers of the model, so that they are saved with the weights they belong to, and
    move to the device with them.
    """

    def __init__(self, model: nn.Module) -> None:
        self.leaving: list[Leaving] = []
        self._model = model
        # Another's, such as that of a library that moves weights between devices.
        self._outer = model.__dict__.get("forward")

    @property
    def __wrapped__(self) -> Any:
        """What it stands before; inspect.signature asks for it."""
        return self._outer or type(self._model).forward.__get__(self._model)

    @property
    def __code__(self) -> Any:
        """Where torch.export says that a dimension comes from."""
        inner = self.__wrapped__
        return getattr(inner, "func", inner).__code__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        asked = kwargs.get("return_dict")
        if asked is None:
            asked = getattr(getattr(self._model, "config", None), "return_dict", None)
        # A tuple of those parts that there are has no names; it is made at the end.
        later = asked is False
        output = self.__wrapped__(*args, **({**kwargs, "return_dict": True} if later else kwargs))
        for one in self.leaving:
            places = torch.argsort(getattr(self._model, buffer_of(one.site)))
            path = one.field.split(".") if one.field else []
            output = _replaced(output, path, one.dim, places)
        return output.to_tuple() if later and hasattr(output, "to_tuple") else output

    def install(self) -> None:
        self._model.__dict__["forward"] = self._model.__dict__[_UNDO] = self

    def remove(self) -> None:
        """Take it away; where another stands before it meanwhile, it does nothing from now on."""
        if self._model.__dict__.get("forward") is not self:
            return
        del self._model.__dict__["forward"], self._model.__dict__[_UNDO]
        if self._outer is not None:
            self._model.__dict__["forward"] = self._outer


def buffer_of(site: str) -> str:
    """The name of the buffer that holds a leaving site's order."""
    return _BUFFER + site.replace(".", "_")


def _replaced(output: Any, path: list[str], dim: int, places: torch.Tensor) -> Any:
    """The output with one part changed; named outputs are changed in place, as their own type."""
    if not path:
        return _undone(output, dim, places)
    name, *rest = path
    if hasattr(output, "keys"):
        if name in output.keys() and output[name] is not None:  # noqa: SIM118 - ModelOutput
            output[name] = _replaced(output[name], rest, dim, places)
        return output
    if isinstance(output, list | tuple) and name.isdigit() and int(name) < len(output):
        parts = list(output)
        parts[int(name)] = _replaced(parts[int(name)], rest, dim, places)
        return type(output)(parts)
    return output


def _undone(part: Any, dim: int, places: torch.Tensor) -> Any:
    if isinstance(part, torch.Tensor):
        return part.index_select(dim, places.to(part.device))
    if isinstance(part, list | tuple):
        return type(part)([_undone(one, dim, places) for one in part])
    return part


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
    own = [one for one in leaving if one.site == site]
    if not own:
        return
    name = buffer_of(site)
    total = torch.from_numpy(order)
    if hasattr(model, name):
        before = getattr(model, name)
        total = before[total.to(before.device)]
    if torch.equal(total, torch.arange(len(total), device=total.device)):
        _forget(model, site)
    else:
        _remember(model, own, total)


def restore_leaving(
    model: nn.Module, state: Mapping[str, torch.Tensor], *, graph: Any = None
) -> list[str]:
    """Have a new model undo the orders that were saved with reordered weights.

    A reordered model whose hidden states leave it keeps their order in a buffer, so its state
    has an entry more than a new model of the class. Called with that state before
    ``load_state_dict``, or after ``from_pretrained`` (which loads the weights, says that it does
    not know the buffer, and would have hidden states leave in the new order), this installs the
    buffer and what undoes the order.

    Parameters
    ----------
    model : nn.Module
        Without orders of its own; the saved ones replace them otherwise.
    state : mapping of str to Tensor
        The saved state: of ``state_dict()``, or of ``safetensors.torch.load_file``.
    graph : CouplingGraph or Spec, optional
        What the orders were applied by; found by :func:`gyroperm.models.coupling` otherwise.

    Returns
    -------
    list of str
        The sites whose order is undone; empty if the state holds none.

    Raises
    ------
    ValueError
        If the state holds an order that the model has no site for, or one of another size.

    Examples
    --------
    >>> restore_leaving(model, state)  # doctest: +SKIP
    >>> model.load_state_dict(state)  # doctest: +SKIP
    """
    from gyroperm.models.coupling import coupling

    restored = []
    for key, order in state.items():
        path, _, name = key.rpartition(".")
        if not name.startswith(_BUFFER):
            continue
        module = model.get_submodule(path)
        found = coupling(module, graph)
        own = [one for one in found.leaving if buffer_of(one.site) == name]
        if not own:
            raise ValueError(f"the state holds {key}, but {found.source} has no such site")
        site = found.by_name[own[0].site]
        if order.shape != (site.size,):
            raise ValueError(f"{key} must have shape ({site.size},), got {tuple(order.shape)}")
        _remember(module, own, order.clone())
        restored.append(site.name)
    return restored


def _remember(model: nn.Module, leaving: list[Leaving], order: torch.Tensor) -> None:
    parameter = next(model.parameters(), None)
    name = buffer_of(leaving[0].site)
    model.register_buffer(name, order if parameter is None else order.to(parameter.device))
    undo = model.__dict__.get(_UNDO)
    if undo is None:
        undo = _Undo(model)
        undo.install()
    undo.leaving += [one for one in leaving if one not in undo.leaving]


def _forget(model: nn.Module, site: str) -> None:
    """Remove what undoes a site's order."""
    undo = model.__dict__.get(_UNDO)
    if undo is None or not hasattr(model, buffer_of(site)):
        return
    delattr(model, buffer_of(site))
    undo.leaving = [one for one in undo.leaving if one.site != site]
    if not undo.leaving:
        undo.remove()
