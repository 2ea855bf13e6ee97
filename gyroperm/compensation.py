"""``compensate``: the kept weights that make up best for those that a mask takes."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gyroperm.arguments import checked_threads
from gyroperm.arrays import check_finite, is_cupy, is_torch, to_numpy
from gyroperm.gram import DEFAULT_DAMP, Gram, checked_damp

Update = Literal["exact", "sequential"]
UPDATES: tuple[str, ...] = ("exact", "sequential")

# Columns that the sequential update takes at once; later ones follow in one product a block.
_BLOCK = 128


def compensate(
    weights: Any,
    mask: Any,
    gram: Any,
    *,
    damp: float = DEFAULT_DAMP,
    update: Update = "exact",
    threads: int | None = None,
) -> Any:
    """The weights inside a mask that minimise the layer's output error.

    Of each row w with kept columns K and pruned columns P, ``w_K + H_KK^-1 H_KP w_P`` minimises
    ``(w - what) H (w - what)^T``, with H damped. Whatever the damping and the update, no row's
    error by the H that was given is larger than that of the bare mask: rows of which it would be
    keep their weights.

    Parameters
    ----------
    weights : array_like, shape (R, C) or (R, C, *kernel)
        Of a convolution the ``C * positions`` columns of the im2col view are meant.
    mask : array_like of bool, in the shape of ``weights``
        True where a weight is kept, as ``Solution.mask``.
    gram : array_like, shape (C, C)
        ``H = X^T X / tokens`` of the layer's inputs (tokens, C), up to a positive factor; or a
        :class:`gyroperm.gram.Gram`.
    damp : float
        The share of the mean of H's diagonal that is added to it, not negative. Where H lacks rank
        the least that rounding demands is added anyway.
    update : {"exact", "sequential"}
        ``exact`` solves each row's normal equations by Cholesky, ``C^3 / 24`` operations a row at
        2:4, once for rows with the same mask. ``sequential`` is SparseGPT's: columns take turns
        in ascending order, and what a pruned weight contributed is spread, optimally, over the
        columns whose turn is still to come; ``C^2`` operations a row, for large layers.
    threads : int, optional
        Worker threads; every processor this process may use by default.
    Returns
    -------
    array in the shape, dtype and kind of ``weights``
        Zero outside the mask. NumPy, torch and CuPy arrays keep their kind and device.

    Raises
    ------
    ValueError
        If shapes do not fit, the mask is not boolean, something is not finite, or H is not
        symmetric or not positive semidefinite, beyond rounding.

    Warns
    -----
    UserWarning
        If H lacks rank.

    References
    ----------
    Hassibi and Stork, Second Order Derivatives for Network Pruning: Optimal Brain Surgeon,
    NeurIPS 1992. Frantar and Alistarh, SparseGPT, ICML 2023 (sequential).

    Examples
    --------
    >>> import numpy as np, gyroperm
    >>> rng = np.random.default_rng(0)
    >>> weights, X = rng.standard_normal((8, 16)), rng.standard_normal((99, 16))
    >>> solution = gyroperm.solve(weights, activations=X)
    >>> updated = gyroperm.compensate(weights, solution.mask, X.T @ X)
    >>> bool(((updated != 0) == solution.mask).all())
    True
    """
    W = to_numpy(weights)
    kept = np.asarray(mask.cpu() if is_torch(mask) else mask.get() if is_cupy(mask) else mask)
    if W.ndim < 2 or not W.size:
        raise ValueError(f"weights must be (R, C) or (R, C, *kernel), got shape {W.shape}")
    if kept.dtype != np.bool_ or kept.shape != W.shape:
        raise ValueError(
            f"mask must be boolean, True = keep, of shape {W.shape}, got {kept.dtype} of shape "
            f"{kept.shape}"
        )
    check_finite(W, "weights")
    if update not in UPDATES:
        raise ValueError(f"update must be one of {', '.join(UPDATES)}, got {update!r}")
    columns = W[0].size
    H = gram if isinstance(gram, Gram) else Gram.of(gram, columns=columns)
    if H.columns != columns:
        raise ValueError(f"gram must have shape {(columns, columns)}, got {(H.columns,) * 2}")
    matrix, kept = W.reshape(len(W), columns), kept.reshape(len(W), columns)
    updated = compensated(
        matrix,
        kept,
        H,
        damp=checked_damp(damp),
        update=update,
        threads=checked_threads(threads),
    )
    return _as_given(weights, updated.reshape(W.shape))


def compensated(
    weights: NDArray[np.floating],
    mask: NDArray[np.bool_],
    gram: Gram,
    *,
    damp: float = DEFAULT_DAMP,
    update: Update = "exact",
    threads: int | None = None,
) -> NDArray[np.floating]:
    """:func:`compensate` for arguments that are checked already; in the dtype of ``weights``."""
    # The largest magnitude near 1, so that weights of any scale are updated alike.
    exponent = int(np.frexp(np.abs(weights).max())[1])
    W = np.ldexp(weights.astype(np.float64), -exponent)
    bare = np.where(mask, W, 0.0)
    found = (
        _exact(W, mask, gram, damp, checked_threads(threads))
        if update == "exact"
        else _swept(W, mask, gram, damp)
    )
    # Judged as they will be stored.
    found = found.astype(weights.dtype).astype(np.float64)
    # Rounding to the dtype may even make something worse of an update that changes next to nothing.
    worse = ~(gram.energies(W - found) <= gram.energies(W - bare))
    found[worse] = bare[worse]
    result: NDArray[np.floating] = np.ldexp(found, exponent).astype(weights.dtype)
    return result


def _exact(
    W: NDArray[np.float64], mask: NDArray[np.bool_], gram: Gram, damp: float, threads: int
) -> NDArray[np.float64]:
    from gyroperm.solvers.kernels.cholesky import solve_rows
    from gyroperm.solvers.parallel import parallel_map

    H = gram.regular(damp)
    # What each kept weight should meet: all of the output, H w, before anything is pruned.
    targets = W @ H
    found = np.where(mask, W, 0.0)
    alike: dict[bytes, list[int]] = {}
    for r, bits in enumerate(np.packbits(mask, axis=1)):
        alike.setdefault(bits.tobytes(), []).append(r)

    def solve(rows: list[int]) -> None:
        kept = np.flatnonzero(mask[rows[0]])
        if len(kept) == mask.shape[1]:
            found[rows] = W[rows]
        else:
            solve_rows(H, targets, kept, np.array(rows), found)

    parallel_map(solve, alike.values(), threads)
    return found


def _swept(
    W: NDArray[np.float64], mask: NDArray[np.bool_], gram: Gram, damp: float
) -> NDArray[np.float64]:
    """SparseGPT's update, blocks of columns at a time."""
    U = gram.inverse_root(damp)
    W = W.copy()
    columns = W.shape[1]
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        lost = np.zeros((len(W), end - start))
        for j in range(start, end):
            lost[:, j - start] = np.where(mask[:, j], 0.0, W[:, j]) / U[j, j]
            W[:, j:end] -= np.outer(lost[:, j - start], U[j, j:end])
        W[:, end:] -= lost @ U[start:end, end:]
    return np.where(mask, W, 0.0)


def _as_given(given: Any, updated: NDArray[np.floating]) -> Any:
    """An array in the kind, dtype and device of another."""
    if is_torch(given):
        import torch

        return torch.from_numpy(updated).to(given.device, given.dtype)
    if is_cupy(given):
        import cupy

        return cupy.asarray(updated).astype(given.dtype)
    return updated
