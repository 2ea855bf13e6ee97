"""Orders applied to a model's tensors, in place, and taken back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gyroperm.models.graph import named_tensors
from gyroperm.models.sites import Axis, Site


class Carried:
    """Every tensor that follows when parameters are reordered.

    A parameter's storage is reordered once, however many names it has; gradients, optimizer
    state and other tensors of its shape follow it.

    Parameters
    ----------
    model : nn.Module
    optimizer : torch.optim.Optimizer, optional
        Its state of a parameter's shape follows.
    also : mapping of str to Tensor or sequence of Tensors, optional
        Tensors of a parameter's shape, by the parameter's name.

    Raises
    ------
    ValueError
        If ``also`` names no tensor of the model, or a shape differs.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        also: Mapping[str, Any] | None = None,
    ) -> None:
        self._named = named_tensors(model)
        self._optimizer = optimizer
        self._also: dict[int, list[torch.Tensor]] = {}
        for name, tensors in (also or {}).items():
            self._add(name, [tensors] if isinstance(tensors, torch.Tensor) else list(tensors))

    def _add(self, name: str, tensors: list[torch.Tensor]) -> None:
        if name not in self._named:
            raise ValueError(f"also names {name!r}, which the model does not have")
        own = self._named[name]
        for tensor in tensors:
            if tensor.shape != own.shape:
                raise ValueError(
                    f"also[{name!r}] must have the shape {tuple(own.shape)} of the parameter, got "
                    f"{tuple(tensor.shape)}"
                )
        followers = self._also.setdefault(id(own), [])
        # A tied parameter's followers may be given under each of its names.
        known = {id(tensor) for tensor in followers}
        followers.extend(tensor for tensor in tensors if id(tensor) not in known)

    def reorder(self, site: Site, order: NDArray[np.int64]) -> None:
        """Put ``order[p]`` at element p wherever the site has positions.

        Parameters
        ----------
        site : Site
        order : ndarray of int64, shape (size,)
            A bijection.
        """
        done: set[tuple[int, int, bytes, Any]] = set()
        for axis in site.axes:
            own = self._named[axis.tensor]
            # Tied tensors are one storage under several names.
            key = (own.data_ptr(), axis.dim, axis.members.tobytes(), axis.rows)
            if key in done:
                continue
            done.add(key)
            for tensor in self._followers(own):
                _gather(tensor, axis, order)

    def _followers(self, own: torch.Tensor) -> Iterator[torch.Tensor]:
        yield own
        if own.grad is not None:
            yield own.grad
        yield from self._also.get(id(own), [])
        if self._optimizer is not None and isinstance(own, nn.Parameter):
            for state in self._optimizer.state.get(own, {}).values():
                if isinstance(state, torch.Tensor) and state.shape == own.shape:
                    yield state


@torch.no_grad()
def _gather(tensor: torch.Tensor, axis: Axis, order: NDArray[np.int64]) -> None:
    target = tensor.data
    if axis.rows is not None:
        target = target[axis.rows[0] : axis.rows[1]]
    index = torch.from_numpy(axis.index(order, target.shape[axis.dim])).to(target.device)
    target.copy_(target.index_select(axis.dim, index))
