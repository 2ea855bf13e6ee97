"""Calibration: what each layer is fed, summed up without keeping any of it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gyroperm.files import atomic_path
from gyroperm.models.inputs import model_inputs
from gyroperm.models.layers import layer_kind
from gyroperm.models.verify import evaluating

Statistics = Literal["norms", "gram"]

_SCHEMA = 1


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """What one layer was fed.

    Attributes
    ----------
    tokens : int
        Vectors of input channels that were counted: tokens of a linear layer, positions of a
        convolution's input.
    squares : ndarray of float64, shape (C,)
        Each input channel's sum of squares over them.
    gram : ndarray of float32, shape (C, C), or None
        ``X X^T``; None for convolutions, and where it was not asked for.
    order : ndarray of int64, shape (C,), or None
        Which of the channels above is each of the layer's present ones, if they were reordered.
    """

    tokens: int
    squares: NDArray[np.float64]
    gram: NDArray[np.float32] | None = None
    order: NDArray[np.int64] | None = None

    @property
    def norms(self) -> NDArray[np.float64]:
        """The Euclidean norm of each present input channel, shape (C,)."""
        norms: NDArray[np.float64] = np.sqrt(self.squares)
        return norms if self.order is None else norms[self.order]

    @property
    def ordered_gram(self) -> NDArray[np.float32] | None:
        """The Gram matrix of the present input channels, shape (C, C)."""
        if self.gram is None or self.order is None:
            return self.gram
        return self.gram[np.ix_(self.order, self.order)]

    def reordered(self, order: NDArray[np.int64]) -> LayerInputs:
        """The same for channels of which ``order[p]`` has come to position p; nothing is copied."""
        present = order if self.order is None else self.order[order]
        return LayerInputs(self.tokens, self.squares, self.gram, present)


@dataclass(frozen=True)
class Calibration:
    """What the layers of a model were fed.

    Attributes
    ----------
    layers : mapping of str to LayerInputs
        By the name of the module. A module that was never reached is missing.
    batches : int
        How often the model was run.
    """

    layers: Mapping[str, LayerInputs] = field(default_factory=dict)
    batches: int = 0

    def __getitem__(self, module: str) -> LayerInputs:
        """What a module was fed.

        Raises
        ------
        ValueError
            If it was never reached.
        """
        if module not in self.layers:
            raise ValueError(
                f"calibration never reached {module!r}: no batch ran it, or it is no linear layer "
                f"or convolution that was watched; exclude it, or calibrate with data that use it"
            )
        return self.layers[module]

    def reordered(self, orders: Mapping[str, NDArray[np.int64]]) -> Calibration:
        """The calibration of the model whose input channels were reordered, by module."""
        moved = {
            name: one.reordered(orders[name]) for name, one in self.layers.items() if name in orders
        }
        return Calibration({**self.layers, **moved}, self.batches)

    def save(self, path: str | Path) -> None:
        """Write to an ``.npz`` file, complete or not at all; read it back with :meth:`load`."""
        arrays: dict[str, NDArray[Any]] = {}
        for i, one in enumerate(self.layers.values()):
            arrays[f"squares{i}"] = one.squares
            if one.gram is not None:
                arrays[f"gram{i}"] = one.gram
            if one.order is not None:
                arrays[f"order{i}"] = one.order
        header = {
            "calibration": _SCHEMA,
            "batches": self.batches,
            "modules": list(self.layers),
            "tokens": [one.tokens for one in self.layers.values()],
        }
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, header=np.array(json.dumps(header)), **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read what :meth:`save` wrote.

        Raises
        ------
        ValueError
            If this is no such file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                stored = {name: file[name] for name in file.files}
            header = json.loads(str(stored["header"]))
            if header["calibration"] != _SCHEMA:
                raise ValueError(f"schema {header['calibration']}, this version reads {_SCHEMA}")
            layers = {
                name: LayerInputs(
                    int(tokens),
                    stored[f"squares{i}"],
                    stored.get(f"gram{i}"),
                    stored.get(f"order{i}"),
                )
                for i, (name, tokens) in enumerate(
                    zip(header["modules"], header["tokens"], strict=True)
                )
            }
            return cls(layers, int(header["batches"]))
        except (
            zipfile.BadZipFile,
            KeyError,
            TypeError,
            ValueError,
            EOFError,
            AttributeError,
        ) as error:
            raise ValueError(f"{path} is no calibration: {error}") from error


def calibrate(
    model: nn.Module,
    data: Iterable[Any],
    *,
    statistics: Statistics = "norms",
    modules: Iterable[str] | None = None,
    progress: bool = False,
) -> Calibration:
    """Run data through a model, and sum up what its linear layers and convolutions are fed.

    The model runs in evaluation mode and without gradients. Sums are kept, activations are not:
    (C,) numbers a layer in float64, or (C, C) in float32. Every token counts, also a padded one
    (leave padding out, or use batches of equal lengths).

    Parameters
    ----------
    model : nn.Module
    data : iterable
        Batches: each a tensor, a tuple or list of arguments, or a mapping of keyword arguments.
    statistics : {"norms", "gram"}
        The squared norm of each input channel (for Wanda and RIA), or the Gram matrix ``X X^T``
        as well (for OBS and output errors). Convolutions have norms only, over all positions.
    modules : iterable of str, optional
        Names of the modules to watch; by default all linear layers, convolutions and GPT-2's
        Conv1D. A few at a time keep Gram matrices of large models in memory.
    progress : bool
        Show a progress bar on standard error.

    Returns
    -------
    Calibration

    Raises
    ------
    ValueError
        If there is no data, a module of ``modules`` does not exist or is never reached, or
        activations are not finite; the message names the module and the batch.
    TypeError
        If ``data`` is a single tensor or mapping, or a batch is nothing of the above.
    """
    if statistics not in ("norms", "gram"):
        raise ValueError(f"statistics must be 'norms' or 'gram', got {statistics!r}")
    if isinstance(data, torch.Tensor | Mapping | str) or not isinstance(data, Iterable):
        raise TypeError(
            f"data must be an iterable of batches, such as [batch], got {type(data).__name__}"
        )
    watched = _watched(model, modules)
    sums: dict[str, _Sums] = {}
    batches = 0
    with ExitStack() as stack:
        for name, module in watched.items():
            sums[name] = _Sums(name, layer_kind(module) == "convolution", statistics == "gram")
            hook = module.register_forward_pre_hook(sums[name].see, with_kwargs=True)
            stack.callback(hook.remove)
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        for batch in _bar(data, progress):
            arguments, named = model_inputs(model, batch)
            for one in sums.values():
                one.batch = batches
            model(*arguments, **named)
            batches += 1
    if not batches:
        raise ValueError("data must hold at least one batch, got none")
    found = {name: one.result() for name, one in sums.items() if one.tokens}
    calibration = Calibration(found, batches)
    for name in watched if modules is not None else ():
        calibration[name]
    return calibration


def _watched(model: nn.Module, modules: Iterable[str] | None) -> dict[str, nn.Module]:
    # A module under several names is one module, and is watched under each of them.
    known = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if layer_kind(module)
    }
    if modules is None:
        if not known:
            raise ValueError(f"{type(model).__name__} has no linear layer and no convolution")
        return known
    wanted = [modules] if isinstance(modules, str) else list(modules)
    for name in wanted:
        if name not in known:
            raise ValueError(
                f"modules names {name!r}, which is no linear layer or convolution of "
                f"{type(model).__name__}"
            )
    return {name: known[name] for name in wanted}


def _bar(data: Iterable[Any], progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(data, desc="calibration", unit="batch", disable=not progress, leave=False)


class _Sums:
    """A pre-hook that adds up what one module is fed."""

    def __init__(self, name: str, convolution: bool, gram: bool) -> None:
        self.name = name
        self.batch = 0
        self.tokens = 0
        self._convolution = convolution
        self._with_gram = gram and not convolution
        self._squares: torch.Tensor | None = None
        self._gram: torch.Tensor | None = None

    def see(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = args[0] if args else next(iter(kwargs.values()))
        x = self._vectors(given.detach(), module).float()
        if not len(x):
            return
        # The accumulation is what runs over a whole data set: there float64 is worth its price.
        squares = x.square().sum(dim=0).cpu().double()
        if not bool(torch.isfinite(squares).all()):
            raise ValueError(
                f"the input of {self.name!r} is not finite (or too large for float32) in batch "
                f"{self.batch}: the module before it, or the data, is to blame"
            )
        self.tokens += len(x)
        self._squares = squares if self._squares is None else self._squares + squares
        if self._with_gram:
            if self._gram is None:
                self._gram = torch.zeros(x.shape[1], x.shape[1], device=x.device)
            self._gram.addmm_(x.T, x)

    def _vectors(self, x: torch.Tensor, module: nn.Module) -> torch.Tensor:
        """The input as (tokens, C)."""
        if not self._convolution:
            return x.reshape(-1, x.shape[-1])
        # Without a batch dimension channels come first.
        kernel: Any = module.kernel_size
        return x.movedim(x.dim() - len(kernel) - 1, -1).flatten(0, -2)

    def result(self) -> LayerInputs:
        assert self._squares is not None
        gram = None if self._gram is None else self._gram.cpu().numpy()
        return LayerInputs(self.tokens, self._squares.numpy(), gram)
