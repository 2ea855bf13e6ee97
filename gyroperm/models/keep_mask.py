"""Masks held through fine-tuning, and searched again on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import nn

from gyroperm.arrangement import Arrangement
from gyroperm.models.calibration import Calibration
from gyroperm.models.choice import Choice, chosen_before
from gyroperm.models.graph import named_tensors
from gyroperm.models.layer_saliency import LayerSaliency, Named, SaliencyFunction
from gyroperm.models.permute import permute
from gyroperm.models.report import Report
from gyroperm.models.solutions import Searches
from gyroperm.models.sparsify import tensor_mask
from gyroperm.models.stacks import search_sites
from gyroperm.stopping import MaxRounds, Stop

# Enough to follow weights that have moved a little since the last search.
_ROUNDS = 20


class KeepMask:
    """Holds the masks of a model while an optimizer changes its weights.

    Parameters
    ----------
    model : nn.Module
    masks : Report or mapping of str to Tensor
        What :func:`sparsify` has returned, or masks alone (True = keep) by the parameter's name,
        in its layout. Searching again (:meth:`refresh`) needs the report.

    Raises
    ------
    ValueError
        If a name is no parameter of the model, or a mask is not boolean or of another shape.

    Examples
    --------
    ::

        report = sparsify(model, "2:4", surgery=True)
        with KeepMask(model, report).attach(optimizer):
            for batch in data:
                ...  # as ever: forward, backward, optimizer.step()
    """

    def __init__(self, model: nn.Module, masks: Report | Mapping[str, torch.Tensor]) -> None:
        self._model = model
        self._report = masks if isinstance(masks, Report) else None
        self._masks: dict[str, torch.Tensor] = {}
        self._optimizers: list[torch.optim.Optimizer] = []
        self._handles: list[Any] = []
        self._arrangements: dict[str, Arrangement] = {}
        self._calibration: Calibration | None = None
        self._set(masks.masks if isinstance(masks, Report) else masks)
        if self._report is not None:
            self._arrangements = dict(self._report.arrangements)
            self._calibration = self._report.calibration
            # What the report holds beside is not needed here, and is large.
            self._report = replace(self._report, masks={}, arrangements={}, calibration=None)

    @property
    def masks(self) -> dict[str, torch.Tensor]:
        """The masks, by the parameter's name; True = keep."""
        return dict(self._masks)

    def _set(self, masks: Mapping[str, torch.Tensor]) -> None:
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        for name, mask in masks.items():
            if name not in parameters:
                raise ValueError(f"masks names {name!r}, which is no parameter of the model")
            own = parameters[name]
            if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
                kind = mask.dtype if isinstance(mask, torch.Tensor) else type(mask).__name__
                raise ValueError(f"the mask of {name} must be a tensor of bool, got {kind}")
            if mask.shape != own.shape:
                raise ValueError(
                    f"the mask of {name} must have the shape {tuple(own.shape)} of the parameter, "
                    f"got {tuple(mask.shape)}"
                )
        self._masks = dict(masks)
        # A parameter may be replaced by another of its name, so it is looked up when needed.

    def _pairs(self) -> Iterable[tuple[nn.Parameter, torch.Tensor]]:
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        for name, mask in self._masks.items():
            parameter = parameters[name]
            if mask.device != parameter.device:
                mask = self._masks[name] = mask.to(parameter.device)
            yield parameter, mask

    @torch.no_grad()
    def apply(self) -> None:
        """Set the weights outside the masks to zero."""
        for parameter, mask in self._pairs():
            parameter.data.masked_fill_(~mask, 0)

    def attach(
        self, optimizer: torch.optim.Optimizer, *, gradients: bool = False, state: bool = False
    ) -> KeepMask:
        """Set weights outside the masks to zero after each step of an optimizer, and now.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer
        gradients : bool
            Set their gradients to zero before each step, too: then no moment builds up for them.
        state : bool
            Set their part of the optimizer's state to zero after each step, too.

        Returns
        -------
        KeepMask
            Itself; as a context manager it detaches at the end.

        Raises
        ------
        ValueError
            If the optimizer steps none of the masked parameters.
        """
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not any(id(parameter) in stepped for parameter, _ in self._pairs()):
            raise ValueError(
                "the optimizer steps none of the masked parameters: it was made for another model, "
                "or for a copy"
            )

        def before(*_: Any) -> None:
            for parameter, mask in self._pairs():
                if parameter.grad is not None:
                    parameter.grad.masked_fill_(~mask, 0)

        def after(*_: Any) -> None:
            self.apply()
            if state:
                self._clear_state(optimizer)

        if gradients:
            self._handles.append(optimizer.register_step_pre_hook(before))
        self._handles.append(optimizer.register_step_post_hook(after))
        self._optimizers.append(optimizer)
        self.apply()
        return self

    @torch.no_grad()
    def _clear_state(self, optimizer: torch.optim.Optimizer) -> None:
        for parameter, mask in self._pairs():
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    value.masked_fill_(~mask, 0)

    def remove(self) -> None:
        """Detach from all optimizers; weights stay as they are."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._optimizers.clear()

    def __enter__(self) -> KeepMask:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The masks, to be saved beside the model's own state."""
        return dict(self._masks)

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Masks that :meth:`state_dict` gave; the weights are masked by them at once.

        Raises
        ------
        ValueError
            As for the class.
        """
        self._set(state)
        # An arrangement found for other masks starts nothing.
        self._arrangements = {}
        self.apply()

    def refresh(
        self,
        *,
        saliency: Named | str | SaliencyFunction | None = None,
        calibration: Calibration | None = None,
        stop: Stop | None = None,
        seed: int | None = None,
        threads: int | None = None,
        also: Mapping[str, Any] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Search masks again from the present weights, starting where the last search ended.

        Weights that were held at zero have no magnitude to come back with: call it after some
        steps without masks, or with a saliency that looks at the gradient. With surgery the orders
        are searched on, and the model, its gradients and the state of attached optimizers are
        reordered; as it has been proven once, that is not verified again.

        The same weights, seed and rounds give the same masks for any number of threads, so on
        every rank of a distributed run.

        Parameters
        ----------
        saliency : str or callable, optional
            As in :func:`sparsify`; as there by default.
        calibration : Calibration, optional
            For the model as it is now; that of the report, reordered since, by default.
        stop : callable, optional
            When each search stops; after 20 rounds by default. With a clock, ranks may differ.
        seed : int, optional
            The report's by default.
        threads : int, optional
        also : mapping of str to Tensor or list of Tensors, optional
            With surgery: more tensors that follow a parameter, such as averaged weights.

        Returns
        -------
        dict of str to Tensor
            The new masks; they are applied, and held from now on.

        Raises
        ------
        ValueError
            If there are masks only, and no report.
        """
        if self._report is None:
            raise ValueError(
                "refresh needs what sparsify() has returned: KeepMask(model, report), not masks "
                "alone"
            )
        settings = self._report.settings
        searches = Searches(
            self._report.pattern,
            settings["method"],
            settings["options"] or None,
            MaxRounds(_ROUNDS) if stop is None else stop,
            seed=settings["seed"] if seed is None else seed,
            threads=threads,
        )
        if calibration is not None:
            self._calibration = calibration
        kind = self._report.saliency if saliency is None else saliency
        measured = LayerSaliency(kind, self._calibration)
        choice = chosen_before(self._model, self._masks)
        measured.check(choice.pruned)
        masks = (
            self._again_in_place(choice, measured, searches)
            if self._report.graph is None
            else self._again_with_surgery(choice, measured, searches, also)
        )
        self._masks = masks
        self.apply()
        return self.masks

    def _again_in_place(
        self, choice: Choice, saliency: LayerSaliency, searches: Searches
    ) -> dict[str, torch.Tensor]:
        masks = {}
        for layer in choice.pruned:
            values = saliency.of(layer)
            last = self._arrangements.get(layer.name)
            initial = None if last is None else searches.rebuilt(last, values, layer.groups)
            solution = searches.solve(layer.name, values, groups=layer.groups, initial=initial)
            self._arrangements[layer.name] = solution.arrangement
            masks[layer.name] = tensor_mask(layer, solution)
        return masks

    def _again_with_surgery(
        self,
        choice: Choice,
        saliency: LayerSaliency,
        searches: Searches,
        also: Mapping[str, Any] | None,
    ) -> dict[str, torch.Tensor]:
        assert self._report is not None and self._report.graph is not None
        found, present = search_sites(
            self._report.graph,
            choice.by_tensor,
            {layer.name for layer in choice.pruned},
            lambda name: saliency.of(choice.known[name]),
            searches,
            onward=True,
        )
        permute(
            self._model,
            found.orders,
            graph=self._report.graph,
            verified=False,
            also=self._followers(also),
        )
        saliency = saliency.reordered(choice.known.values(), present.orders(), present.lost)
        self._calibration = saliency.calibration
        return {
            layer.name: tensor_mask(layer, searches.unpermuted(saliency.of(layer), layer.groups))
            for layer in choice.pruned
        }

    def _followers(self, also: Mapping[str, Any] | None) -> dict[str, list[torch.Tensor]]:
        """Tensors that follow parameters: what is given, and the state of all optimizers."""
        followers: dict[str, list[torch.Tensor]] = {}
        for name, given in (also or {}).items():
            followers[name] = [given] if isinstance(given, torch.Tensor) else list(given)
        for name, own in named_tensors(self._model).items():
            for optimizer in self._optimizers:
                state = optimizer.state.get(own, {}).values() if own in optimizer.state else ()
                for value in state:
                    if isinstance(value, torch.Tensor) and value.shape == own.shape:
                        followers.setdefault(name, []).append(value)
        return followers
