"""A layer's output as what is judged: its weights, what they are fed, and how errors count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gyroperm.gram import DEFAULT_DAMP, Gram, checked_activations, checked_damp
from gyroperm.views import WeightView

#: What a search is for.
Objective = Literal["saliency", "error", "compensated"]
OBJECTIVES: tuple[str, ...] = ("saliency", "error", "compensated")

#: The share of the mean of H's diagonal that a search adds to it. More than compensation wants: a
#: mask has far more ways than kept weights have to fit the tokens that there happen to be.
SEARCH_DAMP = 0.1


@dataclass(frozen=True, eq=False)
class LayerOutput:
    """The weights of a problem and the inputs that they meet.

    Attributes
    ----------
    weights : ndarray of float32 or float64, shape (R, C)
        In the matrix form of the problem, divided by a power of two so that the largest magnitude
        is in [0.5, 1), whose factor no relative error sees.
    gram : Gram
        Of the inputs that all rows share.
    activations : ndarray of float, shape (tokens, C), or None
        The inputs themselves, where they were given.
    damp : float
        The share of the mean of H's diagonal that a search adds to it.
    objective : {"saliency", "error", "compensated"}
        What is searched for: the most saliency, the least error of the bare mask, or the least
        error once :func:`gyroperm.compensate` has updated what is kept.
    """

    weights: NDArray[np.floating]
    gram: Gram
    activations: NDArray[np.floating] | None = field(default=None, repr=False)
    damp: float = SEARCH_DAMP
    objective: Objective = "error"

    @property
    def compensated(self) -> bool:
        """Whether errors are those after compensation."""
        return self.objective == "compensated"

    @property
    def damped_gram(self) -> NDArray[np.float64]:
        """H as a search sees it, (C, C)."""
        return self.gram.damped(self.damp)

    @property
    def saliency(self) -> NDArray[np.floating]:
        """What pruning each weight alone costs, (R, C) in the weights' dtype.

        ``w^2 H_cc``, or ``w^2 / [H^-1]_cc`` where all others make up for it.
        """
        if self.compensated:
            inverse = np.linalg.inv(self.gram.regular(self.damp))
            cost = np.square(self.weights) / np.diagonal(inverse)
        else:
            cost = np.square(self.weights * self.gram.norms)
        return cost.astype(self.weights.dtype)

    def pruned(self, mask: NDArray[np.bool_]) -> NDArray[np.floating]:
        """The weights with a mask, compensated as by default where that is what counts."""
        if self.compensated:
            from gyroperm.compensation import compensated

            return compensated(self.weights, mask, self.gram, damp=DEFAULT_DAMP)
        return np.where(mask, self.weights, self.weights.dtype.type(0))

    def error(self, mask: NDArray[np.bool_]) -> float:
        """The squared relative output error of a mask (R, C), by H without damping.

        ``tr((W - What) H (W - What)^T) / tr(W H W^T)``; 0 where nothing is lost, infinity where
        the dense output is zero and the error is not.
        """
        return self.gram.relative_error(self.weights, self.pruned(mask))


@dataclass(frozen=True, eq=False)
class Inputs:
    """What the layer is fed, as the user says it.

    Attributes
    ----------
    gram, activations : array_like or None
        One of the two.
    damp : float
    """

    gram: Any
    activations: Any
    damp: float

    @classmethod
    def of(cls, gram: Any, activations: Any, damp: Any) -> Inputs | None:
        """None if nothing is said; ValueError if too much is, or damp is negative."""
        if gram is not None and activations is not None:
            raise ValueError("give either gram or activations, not both")
        damp = checked_damp(damp)
        return None if gram is None and activations is None else cls(gram, activations, damp)

    def meeting(
        self,
        weights: Sequence[NDArray[np.floating]],
        view: WeightView,
        objective: Objective,
        *,
        normalize: bool = False,
    ) -> LayerOutput:
        """The output of weights that meet these inputs.

        Parameters
        ----------
        weights : sequence of ndarray
        view : WeightView
            How they are seen as one matrix.
        objective : {"saliency", "error", "compensated"}
        normalize : bool
            Whether the output of each weight counts alike.

        Raises
        ------
        ValueError
            If inputs do not fit the matrix, or not all of its rows share its columns' inputs.
        """
        spatial = any(math.prod(shape[2:]) > 1 for shape in view.shapes)
        if view.conv_groups > 1 or (spatial and not view.im2col):
            raise ValueError(
                "gram and activations must be the inputs of every row: plain N:M on a convolution "
                "makes rows of its kernel positions, and the groups of a grouped one have inputs "
                "of their own; use a two-level pattern and groups=1, or search for saliency"
            )
        given: NDArray[np.floating] | None = None
        if self.activations is None:
            H = Gram.of(self.gram, columns=view.columns)
        else:
            given = checked_activations(self.activations, view.columns)
            H = Gram.of_activations(given)
        if normalize:
            norms = [math.sqrt(math.fsum(H.energies(view.rows_of(w)))) or 1.0 for w in weights]
            weights = [w / norm for w, norm in zip(weights, norms, strict=True)]
        W = view.matrix(weights)
        W = np.ldexp(W, -math.frexp(float(np.abs(W).max()))[1])
        return LayerOutput(W, H, given, self.damp, objective)
