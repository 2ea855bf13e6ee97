"""Saliencies: how much each weight matters."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gyroperm.arrays import check_finite, check_non_negative, to_numpy
from gyroperm.gram import DEFAULT_DAMP, Gram, checked_damp


def magnitude(weights: Any) -> NDArray[np.floating]:
    """The magnitude of each weight, ``|W|``.

    Parameters
    ----------
    weights : array_like, any shape

    Returns
    -------
    ndarray of float32 or float64, the shape of ``weights``

    References
    ----------
    Han et al., Learning both Weights and Connections for Efficient Neural Networks, NeurIPS 2015.
    """
    return np.abs(to_numpy(weights))


def _with_norms(weights: Any, input_norms: Any) -> tuple[NDArray[np.floating], NDArray[Any]]:
    w = np.abs(to_numpy(weights))
    norms = to_numpy(input_norms, "input_norms")
    if w.ndim < 2:
        raise ValueError(f"weights must be (R, C) or (R, C, kh, kw), got shape {w.shape}")
    if norms.shape != w.shape[1:2]:
        raise ValueError(
            f"input_norms must have shape {w.shape[1:2]}, one number an input channel of weights "
            f"{w.shape}, got {norms.shape}"
        )
    check_finite(w, "weights")
    check_finite(norms, "input_norms")
    check_non_negative(norms, "input_norms")
    return w, norms.reshape(1, -1, *(1,) * (w.ndim - 2))


def wanda(weights: Any, input_norms: Any) -> NDArray[np.floating]:
    """Wanda: the magnitude times the norm of the weight's input, ``|W| * ||x_c||``.

    Parameters
    ----------
    weights : array_like, shape (R, C) or (R, C, kh, kw)
    input_norms : array_like, shape (C,)
        The Euclidean norm of each input channel over the calibration tokens.

    Returns
    -------
    ndarray of float32 or float64, the shape of ``weights``

    Raises
    ------
    ValueError
        If shapes differ, or a norm is negative or not finite.

    References
    ----------
    Sun et al., A Simple and Effective Pruning Approach for Large Language Models, ICLR 2024.
    """
    w, norms = _with_norms(weights, input_norms)
    return w * norms


def ria(weights: Any, input_norms: Any, *, power: float = 0.5) -> NDArray[np.floating]:
    """RIA: relative importance times the input's norm to a power.

    ``(|W_rc| / sum_r |W_rc| + |W_rc| / sum_c |W_rc|) * ||x_c||**power``; a row or column of zeros
    contributes nothing.

    Parameters
    ----------
    weights : array_like, shape (R, C) or (R, C, kh, kw)
        The sums of a convolution run over kernel positions as well.
    input_norms : array_like, shape (C,)
        The Euclidean norm of each input channel over the calibration tokens.
    power : float
        The paper's a, 0.5.

    Returns
    -------
    ndarray of float32 or float64, the shape of ``weights``

    Raises
    ------
    ValueError
        If shapes differ, or a norm is negative or not finite.

    References
    ----------
    Zhang et al., Plug-and-Play: An Efficient Post-training Pruning Method for Large Language
    Models, ICLR 2024.
    """
    w, norms = _with_norms(weights, input_norms)
    by_row = w.sum(axis=tuple(range(1, w.ndim)), keepdims=True, dtype=np.float64)
    by_column = w.sum(axis=(0, *range(2, w.ndim)), keepdims=True, dtype=np.float64)
    # Where a sum is zero so is every weight in it: any divisor gives the zero that is meant.
    by_row[by_row == 0] = 1.0
    by_column[by_column == 0] = 1.0
    return (w / by_row + w / by_column).astype(w.dtype) * norms**power


def obs(weights: Any, gram: Any, *, damp: float = DEFAULT_DAMP) -> NDArray[np.floating]:
    """OBS: what removing a weight costs once the others make up for it, ``w^2 / [H^-1]_cc``.

    ``H = X X^T`` (over the calibration tokens) is the Hessian of the layer's squared output error,
    up to a factor that no ranking sees. As in SparseGPT, ``damp`` times the mean of its diagonal is
    added to the diagonal, so that a channel that is silent, or a copy of others, has an inverse.

    Parameters
    ----------
    weights : array_like, shape (R, C)
    gram : array_like, shape (C, C)
        H, up to a positive factor.
    damp : float
        Not negative; 0 only where H has an inverse.

    Returns
    -------
    ndarray of float32 or float64, shape (R, C)
        All zeros if H is.

    Raises
    ------
    ValueError
        If shapes do not fit, or H is not finite, not symmetric, not positive semidefinite (each
        beyond rounding), or singular without damping.

    References
    ----------
    Hassibi and Stork, Second Order Derivatives for Network Pruning: Optimal Brain Surgeon,
    NeurIPS 1992. Frantar and Alistarh, SparseGPT, ICML 2023.
    """
    w = to_numpy(weights)
    if w.ndim != 2:
        raise ValueError(f"weights must be (R, C), got shape {w.shape}")
    check_finite(w, "weights")
    cost = removal_cost(gram, damp=damp)
    if cost.shape != w.shape[1:]:
        raise ValueError(
            f"gram must have shape {(w.shape[1],) * 2}, rows and columns for each input channel "
            f"of weights {w.shape}, got {(len(cost),) * 2}"
        )
    return (np.square(w, dtype=np.float64) * cost).astype(w.dtype)


def fisher(weights: Any, gradients: Any) -> NDArray[np.floating]:
    """Fisher: by how much the loss rises when a weight goes, ``w^2 * mean_s g_s^2 / 2``.

    The diagonal of the empirical Fisher information, the mean of the squared gradients of single
    samples, stands for the Hessian of the loss at a minimum.

    Parameters
    ----------
    weights : array_like, any shape
    gradients : iterable of array_like, each of the shape of ``weights``
        The gradient of the loss of one sample each; an array of shape (samples, ...) is one too.
        They are taken one by one, so that an iterator need not hold them all. The gradient of a
        batch's mean loss is no sum of squares, and will not do.

    Returns
    -------
    ndarray of float32 or float64, the shape of ``weights``

    Raises
    ------
    ValueError
        If there are no gradients, a shape differs, or something is not finite.

    References
    ----------
    Theis et al., Faster Gaze Prediction with Dense Networks and Fisher Pruning, 2018.
    """
    w = to_numpy(weights)
    check_finite(w, "weights")
    squares = np.zeros(w.shape)
    samples = 0
    for s, one in enumerate(gradients):
        gradient = to_numpy(one, f"gradients[{s}]")
        if gradient.shape != w.shape:
            raise ValueError(
                f"gradients[{s}] must have the shape of weights, {w.shape}, got {gradient.shape}"
            )
        check_finite(gradient, f"gradients[{s}]")
        squares += np.square(gradient, dtype=np.float64)
        samples += 1
    if not samples:
        raise ValueError("gradients must hold that of one sample at least, got none")
    return (np.square(w, dtype=np.float64) * squares / (2 * samples)).astype(w.dtype)


def removal_cost(gram: Any, *, damp: float = DEFAULT_DAMP) -> NDArray[np.float64]:
    """``1 / [H^-1]_cc`` of each input channel, shape (C,): what :func:`obs` multiplies w^2 with."""
    damp = checked_damp(damp)
    H = Gram.of(gram, warn=False)
    if not H.matrix.any():
        return np.zeros(H.columns)
    try:
        inverse = np.linalg.inv(np.linalg.cholesky(H.damped(damp)))
    except np.linalg.LinAlgError:
        raise ValueError(f"gram has no inverse with damp={damp}; a larger damp gives one") from None
    cost: NDArray[np.float64] = np.ldexp(1.0 / np.square(inverse).sum(axis=0), H.exponent)
    return cost
