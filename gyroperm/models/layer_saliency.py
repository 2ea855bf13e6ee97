"""The saliency of a model's layers: of their weights, and of what calibration says of inputs."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gyroperm.arrays import check_finite, check_non_negative, to_numpy
from gyroperm.models.calibration import Calibration
from gyroperm.models.layers import PrunableLayer
from gyroperm.saliency import magnitude, removal_cost, ria, wanda

#: The saliencies that have a name.
Named = Literal["magnitude", "wanda", "ria", "obs"]
NAMED: tuple[str, ...] = ("magnitude", "wanda", "ria", "obs")


@dataclass(frozen=True, eq=False)
class LayerView:
    """What a saliency of one's own is given of a layer.

    Attributes
    ----------
    name : str
        Of the parameter.
    weights : ndarray of float32 or float64, shape (R, C) or (R, C, *kernel)
        Rows are output channels, also where the model stores them the other way round.
    gradient : ndarray of the same shape, or None
    norms : ndarray of float64, shape (C * groups,), or None
        The norm of each input channel, where there is a calibration.
    gram : ndarray of float32, shape (C, C), or None
        ``X X^T``, where the calibration has it.
    """

    name: str
    weights: NDArray[np.floating]
    gradient: NDArray[np.floating] | None
    norms: NDArray[np.float64] | None
    gram: NDArray[np.floating] | None


#: A saliency of one's own: from a layer to an array of its weights' shape.
SaliencyFunction = Callable[[LayerView], Any]


class LayerSaliency:
    """Computes saliencies layer by layer; holds none.

    Parameters
    ----------
    kind : str or callable
        One of :data:`NAMED`, or a function of a :class:`LayerView`. Where channels are reordered
        its values must follow their weights.
    calibration : Calibration, optional

    Raises
    ------
    ValueError
        If there is no such saliency, or it needs a calibration.
    """

    def __init__(
        self, kind: Named | str | SaliencyFunction, calibration: Calibration | None = None
    ) -> None:
        if not callable(kind) and kind not in NAMED:
            raise ValueError(
                f"saliency must be one of {', '.join(NAMED)}, or a function of a layer, got "
                f"{kind!r}"
            )
        if kind in ("wanda", "ria", "obs") and calibration is None:
            raise ValueError(
                f"saliency {kind!r} needs calibration: data, or what calibrate() has returned"
            )
        self.kind = kind
        self.calibration = calibration
        self._costs: dict[str, NDArray[np.float64]] = {}

    def check(self, layers: Iterable[PrunableLayer]) -> None:
        """Raise ValueError if the calibration lacks what a layer needs; the message names it."""
        for layer in layers:
            if self.kind in ("wanda", "ria", "obs"):
                self.norms(layer)
            if self.kind == "obs" and self.gram(layer) is None:
                raise ValueError(
                    f"saliency 'obs' needs the Gram matrix of {layer.name}: "
                    f'calibrate(..., statistics="gram")'
                )

    def norms(self, layer: PrunableLayer) -> NDArray[np.float64] | None:
        """The norm of each input channel of a layer, over all modules that use its weight."""
        if self.calibration is None:
            return None
        all_norms = [self.calibration[module].norms for module in layer.modules]
        for norms in all_norms:
            if norms.shape != (layer.channels,):
                raise ValueError(
                    f"the calibration of {layer.name} has {len(norms)} input channels, the layer "
                    f"has {layer.channels}: it was made with another model"
                )
        total: NDArray[np.float64] = np.sqrt(np.sum(np.square(all_norms), axis=0))
        return total

    def gram(self, layer: PrunableLayer) -> NDArray[np.floating] | None:
        """The Gram matrix of a layer's inputs, where the calibration has it."""
        if self.calibration is None:
            return None
        found = [
            self.calibration.layers[module].ordered_gram
            for module in layer.modules
            if module in self.calibration.layers
        ]
        grams = [gram for gram in found if gram is not None]
        if not grams or len(grams) < len(layer.modules):
            return None
        return grams[0] if len(grams) == 1 else np.sum(grams, axis=0)

    def of(self, layer: PrunableLayer) -> NDArray[np.floating]:
        """The saliency of a layer, shape (R, C, ...), in the dtype of its weights.

        Raises
        ------
        ValueError
            If weights or saliency are not finite, or a function returns something else than a
            saliency; the message names the layer.
        """
        weights = layer.weights()
        check_finite(weights, layer.name)
        found = self._computed(layer, weights)
        if found.shape != weights.shape:
            raise ValueError(
                f"the saliency of {layer.name} must have the shape {weights.shape} of its weights, "
                f"got {found.shape}"
            )
        found = found.astype(weights.dtype, copy=False)
        check_finite(found, f"the saliency of {layer.name}")
        check_non_negative(found, f"the saliency of {layer.name}")
        return found

    def _computed(
        self, layer: PrunableLayer, weights: NDArray[np.floating]
    ) -> NDArray[np.floating]:
        if callable(self.kind):
            reached = self.calibration is not None and all(
                module in self.calibration.layers for module in layer.modules
            )
            view = LayerView(
                layer.name,
                weights,
                layer.gradient(),
                self.norms(layer) if reached else None,
                self.gram(layer),
            )
            return to_numpy(self.kind(view), f"the saliency of {layer.name}")
        if self.kind == "magnitude":
            return magnitude(weights)
        if self.kind == "obs":
            scaled = np.abs(weights) * np.sqrt(self._cost(layer)).astype(weights.dtype)
            return np.square(scaled, out=scaled)
        norms = self.norms(layer)
        assert norms is not None
        function = wanda if self.kind == "wanda" else ria
        # The groups of a grouped convolution have input channels of their own.
        parts = zip(np.split(weights, layer.groups), np.split(norms, layer.groups), strict=True)
        return np.concatenate([function(w, x.astype(w.dtype)) for w, x in parts])

    def _cost(self, layer: PrunableLayer) -> NDArray[np.float64]:
        """1 / [H^-1]_cc; kept, because it takes an inverse and is but one number a channel."""
        if layer.name not in self._costs:
            gram = self.gram(layer)
            try:
                self._costs[layer.name] = removal_cost(gram)
            except ValueError as error:
                raise ValueError(f"{layer.name}: {error}") from error
        return self._costs[layer.name]

    def reordered(
        self,
        layers: Iterable[PrunableLayer],
        orders: Mapping[str, NDArray[np.int64]],
        lost: Container[str] = (),
    ) -> LayerSaliency:
        """The saliency of the model whose input channels were reordered, by the layer's name.

        The calibration of layers in ``lost`` is dropped.
        """
        if self.calibration is None:
            return self
        known = {layer.name: layer for layer in layers}
        modules = {m: order for name, order in orders.items() for m in known[name].modules}
        dropped = {module for name in known if name in lost for module in known[name].modules}
        kept = {name: one for name, one in self.calibration.layers.items() if name not in dropped}
        calibration = Calibration(kept, self.calibration.batches).reordered(modules)
        moved = LayerSaliency(self.kind, calibration)
        moved._costs = {
            name: cost[orders[name]] if name in orders else cost
            for name, cost in self._costs.items()
        }
        return moved
