"""The Gram matrix of a layer's inputs, checked: what an error of its weights does to its output."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gyroperm.arguments import is_number
from gyroperm.arrays import check_finite, to_numpy

# How far a Gram matrix that was summed in float32 may be from symmetric and from semidefinite,
# relative to its largest element and to its trace.
_ASYMMETRY, _INDEFINITE = 1e-4, 1e-6
# Damping where none was asked for and rounding demands some; raised tenfold while it is too little.
_LEAST_DAMP = 1e-10
# Relative to the mean of the diagonal: the inverse of a smaller pivot would be of rounding alone.
_LEAST_PIVOT = 1e-11

#: The share of the mean of H's diagonal that is added to it, as in SparseGPT.
DEFAULT_DAMP = 0.01


def checked_damp(damp: Any) -> float:
    """A finite number that is not negative; ValueError otherwise."""
    if not is_number(damp) or not 0 <= damp < math.inf:
        raise ValueError(f"damp must not be negative, a finite number, got {damp!r}")
    return float(damp)


@dataclass(frozen=True, eq=False)
class Gram:
    """``H = X^T X / tokens`` of inputs X (tokens, C), symmetric and positive semidefinite.

    The squared error of a layer's output, a token, is ``tr((W - What) H (W - What)^T)``. Made by
    :meth:`of` or :meth:`of_activations`, which check.

    Attributes
    ----------
    matrix : ndarray of float64, shape (C, C)
        H divided by a power of two, so that its largest element is in [0.5, 1): a factor changes
        no relative error, and H times a power of two gives bit for bit the same searches. All
        zeros if H is.
    exponent : int
        Of that power: H is ``matrix * 2**exponent``.
    rank : int or None
        The rank, where it is less than the number of channels that are not silent; else None.
    """

    matrix: NDArray[np.float64]
    exponent: int = 0
    rank: int | None = None

    @classmethod
    def of(cls, gram: Any, *, columns: int | None = None, warn: bool = True) -> Gram:
        """A Gram matrix of any library, checked.

        Parameters
        ----------
        gram : array_like of float, shape (C, C)
            H up to a positive factor. What float32 sums leave of asymmetry is averaged away.
        columns : int, optional
            What C must be.
        warn : bool
            Whether to warn of missing rank.

        Raises
        ------
        ValueError
            If it is no square matrix of that size, holds NaN or infinity, or is, beyond rounding,
            not symmetric or not positive semidefinite.

        Warns
        -----
        UserWarning
            If its rank is less than the number of its channels that are not silent.
        """
        given = to_numpy(gram, "gram")
        if given.ndim != 2 or given.shape[0] != given.shape[1] or not given.size:
            raise ValueError(f"gram must be a square matrix, got shape {given.shape}")
        if columns is not None and len(given) != columns:
            raise ValueError(
                f"gram must have shape {(columns, columns)}, rows and columns for each input "
                f"channel, got {given.shape}"
            )
        check_finite(given, "gram")
        exponent = _exponent(given)
        H = np.ldexp(given.astype(np.float64), -exponent)
        if (uneven := float(np.abs(H - H.T).max())) > _ASYMMETRY * float(np.abs(H).max()):
            raise ValueError(
                f"gram must be symmetric; it differs from its transpose by {uneven:.2g} where its "
                f"largest element is {np.abs(H).max():.2g} (both scaled alike)"
            )
        H = (H + H.T) / 2
        if not _definite(H, _INDEFINITE * max(0.0, float(np.trace(H)))):
            raise ValueError("gram must be positive semidefinite, as every X^T X is")
        # A diagonal may be negative by rounding; no channel has less than no energy.
        np.fill_diagonal(H, np.maximum(np.diagonal(H), 0.0))
        rank = _missing_rank(H, float(np.finfo(given.dtype).eps)) if warn else None
        if rank is not None:
            heard = int(np.count_nonzero(np.diagonal(H)))
            _warn(f"gram has rank {rank} where {heard} input channels are heard", rank)
        return cls(H, exponent, rank)

    @classmethod
    def of_activations(cls, activations: Any, *, columns: int | None = None) -> Gram:
        """The Gram matrix of a layer's inputs.

        Parameters
        ----------
        activations : array_like of float, shape (tokens, C)
            What the layer is fed, a token a row; leading dimensions may be several.
        columns : int, optional
            What C must be.

        Raises
        ------
        ValueError
            If the shape does not fit, or something is not finite.

        Warns
        -----
        UserWarning
            If there are fewer independent tokens than channels.
        """
        X = checked_activations(activations, columns)
        # A power of two, so that no square overflows.
        scale = _exponent(X)
        X = np.ldexp(X.astype(np.float64), -scale)
        H = X.T @ X / len(X)
        exponent = _exponent(H)
        H = np.ldexp(H, -exponent)
        rank = None
        if len(X) < X.shape[1]:
            rank = int(np.linalg.matrix_rank(X @ X.T, hermitian=True))
            rank = rank if rank < np.count_nonzero(np.diagonal(H)) else None
            if rank is not None:
                _warn(f"{len(X)} tokens of {X.shape[1]} input channels have rank {rank}", rank)
        return cls(H, exponent + 2 * scale, rank)

    @property
    def columns(self) -> int:
        """C."""
        return len(self.matrix)

    @cached_property
    def norms(self) -> NDArray[np.float64]:
        """The Euclidean norm of each input channel, up to one factor, shape (C,)."""
        return np.sqrt(np.diagonal(self.matrix))

    def damped(self, damp: float = DEFAULT_DAMP) -> NDArray[np.float64]:
        """H with ``damp`` times the mean of its diagonal added to the diagonal; a copy."""
        H = self.matrix.copy()
        H[np.diag_indices_from(H)] += damp * float(np.trace(H)) / len(H)
        return H

    def regular(self, damp: float = DEFAULT_DAMP) -> NDArray[np.float64]:
        """H, damped, and by as much more as an inverse demands in float64; a copy.

        A silent channel counts as independent of all others, of mean energy. Every part of it, of
        the same rows and columns, has an inverse too.
        """
        H = self.damped(damp)
        mean = float(np.trace(self.matrix)) / len(H) or 1.0
        silent = np.diagonal(self.matrix) <= 0
        H[silent, silent] += mean
        more = 0.0
        while True:
            try:
                pivots = np.square(np.diagonal(np.linalg.cholesky(H)))
                if pivots.min() > _LEAST_PIVOT * mean:
                    return H
            except np.linalg.LinAlgError:
                pass
            more = max(10 * more, _LEAST_DAMP)
            H[np.diag_indices_from(H)] += more * mean

    def inverse_root(self, damp: float = DEFAULT_DAMP) -> NDArray[np.float64]:
        """Upper triangular U with ``U^T U`` the inverse of :meth:`regular`.

        Row j is column j of the inverse of what is left of H once the columns before j are gone,
        over the root of its diagonal element. With J the reversal, ``J H J = L L^T`` makes
        ``H = A A^T`` for the upper triangular ``A = J L J``; U is its inverse.
        """
        lower = np.linalg.cholesky(self.regular(damp)[::-1, ::-1])
        root: NDArray[np.float64] = np.triu(np.linalg.inv(lower[::-1, ::-1]))
        return root

    def energies(self, weights: NDArray[np.floating]) -> NDArray[np.float64]:
        """``w H w^T`` of each row w of a matrix (R, C), at least 0, shape (R,)."""
        W = weights.astype(np.float64, copy=False)
        energies: NDArray[np.float64] = np.maximum(0.0, np.einsum("rc,rc->r", W @ self.matrix, W))
        return energies

    def relative_error(self, weights: NDArray[np.floating], pruned: NDArray[np.floating]) -> float:
        """``tr((W - What) H (W - What)^T) / tr(W H W^T)`` of matrices (R, C).

        0 where nothing is lost; infinity where the dense output is zero and the error is not.
        """
        W = weights.astype(np.float64, copy=False)
        # A power of two, so that no square overflows or vanishes.
        scale = -_exponent(W)
        error = np.ldexp(W - pruned, scale)
        total = math.fsum(self.energies(np.ldexp(W, scale)))
        lost = math.fsum(self.energies(error))
        return lost / total if total else (math.inf if lost else 0.0)


def checked_activations(activations: Any, columns: int | None = None) -> NDArray[np.floating]:
    """Inputs of a layer as (tokens, C); ValueError names what does not fit."""
    X = to_numpy(activations, "activations")
    if X.ndim < 2 or not X.size:
        raise ValueError(f"activations must have shape (tokens, C), got {X.shape}")
    if columns is not None and X.shape[-1] != columns:
        raise ValueError(
            f"activations must have shape (tokens, {columns}), a token a row, got {X.shape}"
        )
    check_finite(X, "activations")
    return X.reshape(-1, X.shape[-1])


def _exponent(array: NDArray[np.floating]) -> int:
    return math.frexp(float(np.abs(array).max()))[1]


def _definite(H: NDArray[np.float64], slack: float) -> bool:
    if not slack:
        return not H.any()
    try:
        np.linalg.cholesky(H + slack * np.eye(len(H)))
    except np.linalg.LinAlgError:
        return False
    return True


def _missing_rank(H: NDArray[np.float64], eps: float) -> int | None:
    """The rank, if it is less than the number of channels that are not silent.

    Of the matrix of correlations, in which channels of large and of small energy count alike.
    """
    heard = np.flatnonzero(np.diagonal(H) > 0)
    if not len(heard):
        return None
    roots = np.sqrt(np.diagonal(H)[heard])
    correlations = H[np.ix_(heard, heard)] / np.outer(roots, roots)
    try:
        # The least pivot bounds the least eigenvalue from above: most matrices need no more.
        pivots = np.square(np.diagonal(np.linalg.cholesky(correlations)))
        if pivots.min() > len(heard) * eps:
            return None
    except np.linalg.LinAlgError:
        pass
    values = np.linalg.eigvalsh(correlations)
    rank = int(np.count_nonzero(values > len(heard) * eps * values[-1]))
    return rank if rank < len(heard) else None


def _warn(what: str, rank: int) -> None:
    warnings.warn(
        f"{what}: too few tokens, or channels that copy others. Errors outside these {rank} "
        f"directions are seen by damping alone; more tokens, or more damping, generalise better",
        UserWarning,
        stacklevel=4,
    )
