"""How much of what matters a mask keeps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gyroperm.arrays import to_numpy
from gyroperm.problem import Problem

# Sums of up to 2^40 non-negative terms by pairwise summation stay within this of the exact sum.
ROUNDING = 1e-13

# Numbers of which a copy, and what is derived from it, is no matter.
_SELECTED = 1 << 18


def retained(saliency: NDArray[np.floating], mask: NDArray[np.bool_]) -> float:
    """The summed saliency of what a mask keeps, in float64.

    Parameters
    ----------
    saliency : ndarray of float, shape (R, C)
    mask : ndarray of bool, shape (R, C)
        True where a weight is kept.

    Returns
    -------
    float
        ``sum saliency[mask]``.
    """
    # A row at a time in float64, so that no matrix-sized copy is made.
    return math.fsum(
        float(np.sum(row, where=kept, dtype=np.float64))
        for row, kept in zip(saliency, mask, strict=True)
    )


def top_sum(values: NDArray[np.floating], count: int) -> float:
    """The sum of the ``count`` largest of a vector, in float64."""
    if count <= 0:
        return 0.0
    if count < values.size:
        values = np.partition(values, values.size - count)[values.size - count :]
    return float(np.sum(values, dtype=np.float64))


def unstructured_by_row(saliency: NDArray[np.floating], kept: NDArray[np.integer] | int) -> float:
    """The largest sum that keeps ``kept[r]`` weights of each row r (Pool and Yu's 100 %)."""
    counts = np.broadcast_to(kept, saliency.shape[:1])
    return math.fsum(top_sum(row, int(count)) for row, count in zip(saliency, counts, strict=True))


def unstructured_by_layer(saliency: NDArray[np.floating], kept: int) -> float:
    """The largest sum that keeps ``kept`` weights of the whole layer."""
    values = saliency.reshape(-1)
    if not 0 < kept < values.size or values.size <= _SELECTED:
        return top_sum(values, kept)
    # No copy as large as the layer: numbers that are not negative are in the order of their bits,
    # whose first 16 leave few that may be the last to be kept.
    counts = np.zeros(1 << 16, dtype=np.int64)
    for block in _blocks(values):
        counts += np.bincount(_first_bits(block), minlength=1 << 16)
    above = np.cumsum(counts[::-1])[::-1] - counts
    last = int(np.flatnonzero(above < kept)[0])
    sums, undecided = [], []
    for block in _blocks(values):
        bits = _first_bits(block)
        sums.append(float(np.sum(block, where=bits > last, dtype=np.float64)))
        undecided.append(block[bits == last])
    return math.fsum(sums) + top_sum(np.concatenate(undecided), kept - int(above[last]))


def _blocks(values: NDArray[np.floating]) -> Iterator[NDArray[np.floating]]:
    return (values[first : first + _SELECTED] for first in range(0, values.size, _SELECTED))


def _first_bits(values: NDArray[np.floating]) -> NDArray[np.int64]:
    """The first 16 bits of numbers of at least 0; those of -0.0 are those of 0.0."""
    size = 8 * values.itemsize
    return ((values + 0.0).view(f"u{values.itemsize}") >> (size - 16)).astype(np.int64)


def efficacy(retained: float, identity: float, unstructured: float) -> float:
    """Pool and Yu's efficacy, in percent; NaN where the denominator is not positive.

    ``100 * (retained - identity) / (unstructured - identity)``: 0 is what the pattern keeps
    without permutation, 100 what unstructured pruning would keep.
    """
    room = unstructured - identity
    return 100.0 * (retained - identity) / room if room > 0.0 else math.nan


def output_error(
    weights: ArrayLike,
    pruned: ArrayLike,
    *,
    activations: ArrayLike | None = None,
    gram: ArrayLike | None = None,
) -> float:
    """The relative error of a layer's output, ``||(W - What) X||_F / ||W X||_F``.

    Parameters
    ----------
    weights, pruned : array_like, shape (R, C)
        The dense and the pruned weights.
    activations : array_like, shape (C, tokens), optional
        The layer's inputs X, one column a token.
    gram : array_like, shape (C, C), optional
        ``X X^T``, up to a positive factor. Exactly one of the two must be given.

    Returns
    -------
    float
        0 where nothing is lost; infinity where the dense output is zero and the error is not.

    Raises
    ------
    ValueError
        If shapes differ, or not exactly one of ``activations`` and ``gram`` is given.
    """
    dense = to_numpy(weights).astype(np.float64)
    kept = to_numpy(pruned, "pruned").astype(np.float64)
    if dense.ndim != 2 or kept.shape != dense.shape:
        raise ValueError(
            f"weights and pruned must be matrices of one shape, got {dense.shape} and {kept.shape}"
        )
    error = dense - kept
    if (activations is None) == (gram is None):
        raise ValueError("give exactly one of activations and gram")
    if activations is not None:
        inputs = to_numpy(activations, "activations").astype(np.float64)
        if inputs.ndim != 2 or inputs.shape[0] != dense.shape[1]:
            raise ValueError(
                f"activations must have shape ({dense.shape[1]}, tokens), got {inputs.shape}"
            )
        gram = inputs @ inputs.T
    H = to_numpy(gram, "gram").astype(np.float64)
    if H.shape != (dense.shape[1], dense.shape[1]):
        raise ValueError(f"gram must have shape {(dense.shape[1],) * 2}, got {H.shape}")
    total = max(0.0, float(np.einsum("rc,rc->", dense @ H, dense)))
    lost = max(0.0, float(np.einsum("rc,rc->", error @ H, error)))
    return math.sqrt(lost / total) if total else (math.inf if lost else 0.0)


@dataclass(frozen=True)
class Reference:
    """What a mask is measured against: unstructured pruning of as many weights.

    Attributes
    ----------
    by_row : float
        The largest sum with as many weights in each row as the mask keeps there.
    by_layer : float
        The largest sum with as many weights in the whole layer as the mask keeps.
    bound : float
        A proven upper bound for the pattern under any arrangement, rounded outward.
    """

    by_row: float
    by_layer: float
    bound: float


def reference(problem: Problem, mask: NDArray[np.bool_]) -> Reference:
    """Compute what ``mask``, of the problem's pattern, is measured against."""
    counts = mask.sum(axis=1)
    by_row = unstructured_by_row(problem.saliency, counts)
    by_layer = unstructured_by_layer(problem.saliency, int(counts.sum()))
    # Padding may let another arrangement keep more entries than this one: virtual columns cost
    # nothing in a group that would prune them anyway.
    most = min(problem.pattern.n * problem.groups_per_tile, problem.columns)
    if problem.pattern.allocation == "global":
        rows = sum(len(rows) for rows in problem.block_rows)
        limit = unstructured_by_layer(problem.saliency, _most_entries(problem, rows))
    elif (counts == most).all():
        limit = by_row
    else:
        limit = unstructured_by_row(problem.saliency, most)
    return Reference(by_row, by_layer, limit * (1.0 + ROUNDING))


def _most_entries(problem: Problem, rows: int) -> int:
    """The most entries a ragged arrangement can keep, whichever tiles get the budget."""
    # No tile has more than V rows, so a group keeps at most n entries in each of V rows.
    per_group = problem.pattern.n * min(problem.tile_size, rows)
    return min(problem.total_groups * per_group, rows * problem.columns)
