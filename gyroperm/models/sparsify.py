"""A model pruned to a pattern, layer by layer, with or without reordering its channels."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gyroperm.arguments import checked_duration, checked_integer
from gyroperm.arrangement import Arrangement
from gyroperm.arrays import check_finite
from gyroperm.measures import output_error
from gyroperm.models.calibration import Calibration, calibrate
from gyroperm.models.choice import Choice, choose
from gyroperm.models.coupling import coupling
from gyroperm.models.graph import CouplingGraph
from gyroperm.models.layer_saliency import LayerSaliency, Named, SaliencyFunction
from gyroperm.models.layers import PrunableLayer
from gyroperm.models.permute import permute, take_back
from gyroperm.models.report import LayerReport, Report
from gyroperm.models.solutions import Searches, described_stop
from gyroperm.models.spec import Spec
from gyroperm.models.stacks import Found, search_sites
from gyroperm.models.verify import Verified, reference
from gyroperm.pattern import Pattern
from gyroperm.solution import Solution
from gyroperm.stopping import Stop

_NM = re.compile(r"\s*(\d+)\s*:\s*(\d+)\s*")


def sparsify(
    model: nn.Module,
    pattern: Pattern | str,
    *,
    saliency: Named | str | SaliencyFunction = "magnitude",
    calibration: Calibration | Iterable[Any] | None = None,
    surgery: bool = False,
    graph: CouplingGraph | Spec | None = None,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    embeddings: bool = False,
    method: str = "auto",
    options: Mapping[str, Any] | None = None,
    stop: Stop | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    strict: bool = False,
    store: str | Path | None = None,
    verified: bool = True,
    inputs: Any = None,
    progress: bool = True,
    threads: int | None = None,
) -> Report:
    """Prune the linear layers and convolutions of a model, in place.

    Without surgery each weight is solved by itself, and masked in the order in which it lies: any
    pattern, for kernels that read rows and columns through an order of their own. With surgery
    (plain N:M) the channels of the model are reordered first, so that in each weight the groups of
    m are consecutive input channels, as stock 2:4 kernels read them: for each order that several
    weights share, all of them are searched as one tall matrix. The reordered model is proven to
    compute the same before anything is masked.

    One coupled group of weights at a time is held in float32 beside the model, and masks.

    Parameters
    ----------
    model : nn.Module
        Changed in place when everything has been found, or left as it was if anything fails.
    pattern : Pattern or str
        Text is plain N:M, such as ``"2:4"``.
    saliency : {"magnitude", "wanda", "ria", "obs"} or callable
        A function is given a :class:`~gyroperm.models.layer_saliency.LayerView` and returns an
        array of its weights' shape; where channels are reordered its values must follow them.
        ``"obs"`` is for linear layers; convolutions are then skipped.
    calibration : Calibration or iterable of batches, optional
        What :func:`calibrate` has returned, or data for it (see there). Wanda and RIA need norms,
        OBS the Gram matrix; where it has Gram matrices, output errors are reported.
    surgery : bool
    graph : CouplingGraph or Spec, optional
        With surgery: what is coupled; found by :func:`coupling` otherwise.
    include, exclude : str or iterable of str, optional
        Regular expressions, searched in the names of weights. Pruned is what one of ``include``
        matches (all, if there is none) and none of ``exclude`` does.
    embeddings : bool
        Whether output heads are pruned too.
    method, options, stop, time_limit, seed, threads
        Of each search; see :func:`gyroperm.solve`. With a ``stop`` that no clock is part of, or
        without any, the same seed gives the same result for any number of threads.
    strict : bool
        Raise, rather than skip, where a layer does not fit the pattern.
    store : str or Path, optional
        A folder that keeps each search's solution. A run that was interrupted finds them again.
    verified : bool
        With surgery: compare outputs before and after.
    inputs : Tensor, tuple or mapping, optional
        For the comparison and for tracing; by default the first batch of calibration data given
        as a list, or made up for Hugging Face models.
    progress : bool
        Show a progress bar on standard error.

    Returns
    -------
    Report
        With the masks, the orders, and what each layer keeps.

    Raises
    ------
    ValueError
        If an argument does not fit, a weight is not finite, or a layer's calibration is missing;
        the message names the layer.
    TypeError
        If the pattern, the graph or the calibration is nothing of the above.
    FunctionChanged
        If the reordered model computes something else; it names the first module that does.

    Examples
    --------
    >>> from torch import nn
    >>> from gyroperm.models import sparsify
    >>> model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    >>> report = sparsify(model, "2:4", progress=False)
    >>> int((model[2].weight != 0).sum(dim=1).max())
    16
    """
    pattern = checked_pattern(pattern)
    _check_surgery(surgery, pattern, graph)
    linear_only = "OBS is for linear layers: a convolution has no Gram matrix here"
    choice = choose(
        model,
        pattern,
        include=include,
        exclude=exclude,
        embeddings=embeddings,
        linear_only=linear_only if saliency == "obs" else "",
        strict=strict,
    )
    searches = Searches(
        pattern,
        method,
        options,
        stop,
        None if time_limit is None else checked_duration("time_limit", time_limit),
        checked_integer("seed", seed, 0),
        threads,
        None if store is None else Path(store),
    )
    _check_method(searches)
    coupled = None
    if surgery:
        inputs = _first(calibration) if inputs is None else inputs
        coupled = coupling(model, graph, inputs=inputs)
        if verified:
            # Whoever lacks inputs, or gets NaN out, hears of it before the search, not after.
            reference(model, inputs)
    for layer in choice.pruned:
        check_finite(layer.weights(), layer.name)
    measured = LayerSaliency(saliency, _calibrated(model, saliency, calibration, choice, progress))
    measured.check(choice.pruned)
    run = _Run(model, choice, searches, measured, progress)
    if coupled is None:
        rows, masks, arrangements = run.masks_alone()
        found, equal = Found(), None
    else:
        rows, masks, found, equal = run.with_surgery(coupled, verified, inputs)
        arrangements = {}
    apply_masks(choice.known, masks)
    return Report(
        pattern,
        _settings(saliency, searches, surgery),
        tuple(rows),
        masks,
        found.orders,
        tuple(found.sites),
        found.unsearched,
        choice.skipped,
        equal,
        arrangements,
        coupled,
        run.saliency.calibration,
        saliency,
    )


def checked_pattern(pattern: Pattern | str) -> Pattern:
    """A pattern, or plain N:M from text such as ``"2:4"``."""
    if isinstance(pattern, Pattern):
        return pattern
    if not isinstance(pattern, str):
        raise TypeError(
            f"pattern must be a gyroperm.Pattern or text such as '2:4', got "
            f"{type(pattern).__name__}"
        )
    parts = _NM.fullmatch(pattern)
    if parts is None:
        raise ValueError(
            f"pattern must be N:M such as '2:4', or a gyroperm.Pattern for others, got {pattern!r}"
        )
    return Pattern.nm(int(parts[1]), int(parts[2]))


def _check_surgery(surgery: bool, pattern: Pattern, graph: Any) -> None:
    if surgery and not pattern.is_plain:
        raise ValueError(
            f"surgery is for plain N:M, whose groups are consecutive channels; {pattern} reads "
            f"columns through an order of each tile or layer, and needs none: surgery=False"
        )
    if not surgery and graph is not None:
        raise ValueError("graph is only used with surgery=True")


def _check_method(searches: Searches) -> None:
    from gyroperm.solvers import registry

    registry.get(searches.method).make_options(searches.options)


def _first(calibration: Any) -> Any:
    """The first batch of data that are there to be read again."""
    return calibration[0] if isinstance(calibration, list | tuple) and calibration else None


def _calibrated(
    model: nn.Module, saliency: Any, calibration: Any, choice: Choice, progress: bool
) -> Calibration | None:
    if calibration is None or isinstance(calibration, Calibration):
        return calibration
    # Magnitudes can want data for one thing only: the output error.
    gram = saliency in ("obs", "magnitude")
    needed = saliency in ("wanda", "ria", "obs")
    return calibrate(
        model,
        calibration,
        statistics="gram" if gram else "norms",
        modules=[m for one in choice.pruned for m in one.modules] if needed else None,
        progress=progress,
    )


def _settings(saliency: Any, searches: Searches, surgery: bool) -> dict[str, Any]:
    named = saliency if isinstance(saliency, str) else getattr(saliency, "__name__", "callable")
    return {
        "saliency": named,
        "surgery": surgery,
        "method": searches.method,
        "options": dict(searches.options or {}),
        "stop": described_stop(searches.stop),
        "time_limit": searches.time_limit,
        "seed": searches.seed,
    }


@torch.no_grad()
def apply_masks(layers: Mapping[str, PrunableLayer], masks: Mapping[str, torch.Tensor]) -> None:
    """Set the weights outside the masks to zero, in place."""
    for name, mask in masks.items():
        layers[name].parameter.data.masked_fill_(~mask, 0)


@dataclass
class _Run:
    """One run: what is searched, and what comes of it. The model changes in ``with_surgery``."""

    model: nn.Module
    choice: Choice
    searches: Searches
    saliency: LayerSaliency
    progress: bool

    def masks_alone(
        self,
    ) -> tuple[list[LayerReport], dict[str, torch.Tensor], dict[str, Arrangement]]:
        """Each layer by itself, in the order in which it lies."""
        rows, masks, arrangements = [], {}, {}
        with _bar(len(self.choice.pruned), "layer", self.progress) as bar:
            for layer in self.choice.pruned:
                bar.set_description(layer.name)
                saliency = self.saliency.of(layer)
                solution = self.searches.solve(layer.name, saliency, groups=layer.groups)
                before = self._unpermuted_error(layer, saliency)
                del saliency
                rows.append(self._row(layer, solution, solution.identity, before, solution.seconds))
                masks[layer.name] = tensor_mask(layer, solution)
                arrangements[layer.name] = solution.arrangement
                bar.update()
        return rows, masks, arrangements

    def with_surgery(
        self, graph: CouplingGraph, verified: bool, inputs: Any
    ) -> tuple[list[LayerReport], dict[str, torch.Tensor], Found, Verified | None]:
        """The orders searched and applied, then each layer's groups as they lie."""
        before = {layer.name: self._before(layer) for layer in self.choice.pruned}
        with _bar(len(graph.sites), "site", self.progress) as bar:
            found, present = search_sites(
                graph,
                self.choice.by_tensor,
                set(before),
                lambda name: self.saliency.of(self.choice.known[name]),
                self.searches,
                progress=bar,
            )
        equal = permute(self.model, found.orders, graph=graph, verified=verified, inputs=inputs)
        self.saliency = self.saliency.reordered(
            self.choice.known.values(), present.orders(), present.lost
        )
        try:
            rows, masks = self._consecutive(before, found)
        except BaseException:
            take_back(self.model, graph, found.orders)
            raise
        return rows, masks, found, equal

    def _consecutive(
        self, before: Mapping[str, tuple[float, float]], found: Found
    ) -> tuple[list[LayerReport], dict[str, torch.Tensor]]:
        """The masks of the groups as they lie now."""
        rows, masks = [], {}
        for layer in self.choice.pruned:
            saliency = self.saliency.of(layer)
            solution = self.searches.unpermuted(saliency, layer.groups)
            del saliency
            identity, error = before[layer.name]
            seconds = found.seconds.get(layer.name, 0.0)
            rows.append(self._row(layer, solution, identity, error, seconds))
            masks[layer.name] = tensor_mask(layer, solution)
        return rows, masks

    def _before(self, layer: PrunableLayer) -> tuple[float, float]:
        """What is kept, and the output error, without permutation."""
        saliency = self.saliency.of(layer)
        solution = self.searches.unpermuted(saliency, layer.groups)
        return solution.retained, self._error(layer, solution)

    def _unpermuted_error(self, layer: PrunableLayer, saliency: NDArray[np.floating]) -> float:
        if layer.convolution or self.saliency.gram(layer) is None:
            return math.nan
        return self._error(layer, self.searches.unpermuted(saliency, layer.groups))

    def _error(self, layer: PrunableLayer, solution: Solution) -> float:
        gram = None if layer.convolution else self.saliency.gram(layer)
        if gram is None:
            return math.nan
        weights = layer.weights()
        return output_error(weights, solution.apply(weights), gram=gram)

    def _row(
        self,
        layer: PrunableLayer,
        solution: Solution,
        identity: float,
        identity_error: float,
        seconds: float,
    ) -> LayerReport:
        return LayerReport(
            layer.name,
            tuple(layer.parameter.shape),
            solution.mask.size,
            int(solution.mask.sum()),
            solution.retained,
            identity,
            solution.unstructured,
            seconds,
            self._error(layer, solution),
            identity_error,
            not layer.parameter.requires_grad,
            layer.modules if len(layer.modules) > 1 else (),
            layer.transposed,
        )


def tensor_mask(layer: PrunableLayer, solution: Solution) -> torch.Tensor:
    """A solution's mask in the parameter's layout, on its device."""
    mask = np.ascontiguousarray(layer.oriented(solution.mask))
    return torch.from_numpy(np.array(mask)).to(layer.parameter.device)


def _bar(total: int, unit: str, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit=unit, disable=not progress, leave=False)
