"""SparseGPT under a permutation: n:m chosen and compensated in an order that a search found.

A recipe for scripts in the manner of https://github.com/IST-DASLab/sparsegpt, which is no package:
:func:`fasterprune` takes the place of the method of that name. The original chooses its mask while
it updates and makes nothing up for a mask it is given; :func:`compensate` does. Masks are True =
keep here, in the original order; the original's own are True = prune. Tested with torch 2.13.

References
----------
Frantar and Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot,
ICML 2023.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    import torch
except ImportError as error:
    raise ImportError(
        "gyroperm.plugins.sparsegpt needs torch: pip install 'gyroperm[torch]' (tested with 2.13.0)"
    ) from error

import gyroperm
from gyroperm.pattern import Pattern
from gyroperm.saliency import obs
from gyroperm.solution import Solution


@dataclass(frozen=True, eq=False)
class Pruned:
    """A pruned and updated layer.

    Attributes
    ----------
    weights : Tensor, shape (R, C)
        In the original order, zero outside the mask.
    mask : Tensor of bool, shape (R, C)
        True = keep.
    solution : Solution or None
        The order that was searched.
    """

    weights: torch.Tensor
    mask: torch.Tensor
    solution: Solution | None = None


def prune(
    weights: torch.Tensor,
    gram: torch.Tensor,
    pattern: Pattern | None = None,
    *,
    saliency: Any = None,
    damp: float = 0.01,
    block_size: int = 128,
    **search: Any,
) -> Pruned:
    """Search an order, then prune and update the weights along it.

    Plain N:M chooses its mask while it updates, as SparseGPT does, within the groups of the order
    that was found. Every other pattern takes the search's mask.

    Parameters
    ----------
    weights : Tensor, shape (R, C)
    gram : Tensor, shape (C, C)
        ``H = X X^T`` over the calibration tokens, up to a positive factor.
    pattern : Pattern, optional
        2:4 by default.
    saliency : array_like, shape (R, C), optional
        What the search keeps most of; :func:`gyroperm.saliency.obs` by default.
    damp : float
        See :func:`compensate`.
    block_size : int
        See :func:`compensate`.
    search
        Further arguments of :func:`gyroperm.solve`, such as ``seed`` and ``time_limit``.

    Returns
    -------
    Pruned
        In the original order. Stock 2:4 kernels need the model's channels reordered first, see
        :func:`gyroperm.models.permute`.

    Raises
    ------
    ValueError
        As :func:`compensate` and :func:`gyroperm.solve`.
    """
    H = _checked_gram(weights, gram)
    pattern = pattern or Pattern.nm()
    if saliency is None:
        saliency = obs(weights.detach(), H, damp=damp)
    solution = gyroperm.solve(weights, saliency=saliency, pattern=pattern, **search)
    if not pattern.is_plain:
        mask = torch.tensor(solution.mask, device=weights.device)
        updated = compensate(weights, gram, mask, damp=damp, block_size=block_size)
        return Pruned(updated, mask, solution)
    found = prune_nm(
        weights,
        gram,
        pattern.n,
        pattern.m,
        groups=solution.groups[0],
        damp=damp,
        block_size=block_size,
    )
    return Pruned(found.weights, found.mask, solution)


def prune_nm(
    weights: torch.Tensor,
    gram: torch.Tensor,
    n: int = 2,
    m: int = 4,
    *,
    groups: Any = None,
    damp: float = 0.01,
    block_size: int = 128,
) -> Pruned:
    """SparseGPT at n:m: the mask of each group is chosen when its turn comes, from updated weights.

    Parameters
    ----------
    weights : Tensor, shape (R, C)
    gram : Tensor, shape (C, C)
        ``H = X X^T``, up to a positive factor.
    n, m : int
        Keep n of every m. (The original's ``prunen`` counts those that go.)
    groups : array_like of int, shape (G, m), optional
        Columns of each group in the order of their turns, -1 for virtual ones, as in
        ``Solution.groups``; consecutive columns by default.
    damp : float
        See :func:`compensate`.
    block_size : int
        See :func:`compensate`.

    Raises
    ------
    ValueError
        If shapes do not fit, something is not finite, or groups are no partition of the columns.
    """
    pattern = Pattern.nm(n, m)
    H = _checked_gram(weights, gram)
    order = _turns(groups, pattern.m, weights.shape[1])
    virtual = len(order) - weights.shape[1]
    W = torch.nn.functional.pad(weights.detach().to(H.dtype), (0, virtual))
    # A virtual column is zero and moves nothing.
    padded = torch.block_diag(H, H.diagonal().mean() * torch.eye(virtual).to(H))
    live = (order < weights.shape[1]).to(H.device)
    root = _inverse_root(padded[order][:, order], damp)
    choice = _Choice(pattern.n, pattern.m, live, padded.diagonal()[order] > 0)
    updated, kept = _sequential(W[:, order], root, choice, max(block_size, 1))
    found, mask = torch.empty_like(W), torch.empty_like(W, dtype=torch.bool)
    found[:, order], mask[:, order] = updated, kept
    columns = weights.shape[1]
    found, mask = found[:, :columns], mask[:, :columns]
    return Pruned(_no_worse(weights, found, mask, H), mask)


def compensate(
    weights: torch.Tensor,
    gram: torch.Tensor,
    mask: torch.Tensor,
    *,
    damp: float = 0.01,
    block_size: int = 128,
) -> torch.Tensor:
    """Update the kept weights so that they make up for those that a mask takes.

    SparseGPT's sequential update: columns take turns; what a pruned weight contributed is spread,
    optimally, over the columns whose turn is still to come. It is no least-squares fit of each row,
    which costs C times as much, and in rare rows it loses more than the bare mask: those keep
    their weights as they were.

    Parameters
    ----------
    weights : Tensor, shape (R, C)
        Of any floating dtype, on any device; the update is made in float32 at least, in float64
        where ``weights`` or ``gram`` is.
    gram : Tensor, shape (C, C)
        ``H = X X^T`` over the calibration tokens, up to a positive factor.
    mask : Tensor of bool, shape (R, C)
        True = keep.
    damp : float
        The share of the mean of H's diagonal that is added to it, so that an H of less than full
        rank (fewer tokens than channels, silent channels) has an inverse. Raised tenfold as often
        as rounding demands.
    block_size : int
        Columns that are updated at once; later ones follow in one product a block. No effect on the
        result but rounding.

    Returns
    -------
    Tensor, shape (R, C)
        In the dtype of ``weights``; exactly zero outside the mask. Of no row is the output error
        larger than that of ``weights * mask``.

    Raises
    ------
    ValueError
        If shapes do not fit, something is not finite, or ``mask`` is not boolean.
    """
    H = _checked_gram(weights, gram)
    if mask.dtype != torch.bool or mask.shape != weights.shape:
        raise ValueError(
            f"mask must be boolean, True = keep, of shape {tuple(weights.shape)}, got {mask.dtype} "
            f"of shape {tuple(mask.shape)}"
        )
    kept = mask.to(weights.device)
    root = _inverse_root(H, damp)
    W = weights.detach().to(H.dtype)
    updated, _ = _sequential(W, root, _Given(kept), max(block_size, 1))
    return _no_worse(weights, updated, kept, H)


def fasterprune(
    gpt: Any,
    sparsity: float = 0.5,
    prunen: int = 2,
    prunem: int = 4,
    blocksize: int = 128,
    percdamp: float = 0.01,
    **search: Any,
) -> Pruned:
    """Take the place of ``gpt.fasterprune(...)`` in a SparseGPT script, after ``add_batch``.

    Parameters
    ----------
    gpt : object
        With ``layer`` (Linear, Conv2d, or transformers' Conv1D) and ``H``, as the class
        ``SparseGPT`` of the original. The layer's weight is replaced.
    sparsity : float
        Must be ``prunen / prunem``.
    prunen, prunem : int
        Prune prunen of every prunem.
    blocksize, percdamp
        As in the original.
    search
        Further arguments of :func:`gyroperm.solve`.

    Raises
    ------
    ValueError
        If the sparsity is unstructured, for which no order is better than another.
    """
    if not 0 < prunen < prunem or not math.isclose(sparsity, prunen / prunem):
        raise ValueError(
            f"prunen of every prunem must go, and sparsity be their ratio, got prunen={prunen}, "
            f"prunem={prunem}, sparsity={sparsity}"
        )
    weight = gpt.layer.weight.data
    transposed = type(gpt.layer).__name__ == "Conv1D"
    matrix = weight.t() if transposed else weight.flatten(1)
    pattern = Pattern.nm(prunem - prunen, prunem)
    found = prune(matrix, gpt.H, pattern, damp=percdamp, block_size=blocksize, **search)
    updated = found.weights.t() if transposed else found.weights
    gpt.layer.weight.data = updated.reshape(weight.shape).to(weight.dtype)
    return found


# --- the update


@dataclass(frozen=True, eq=False)
class _Given:
    """A mask that is there already."""

    kept: torch.Tensor

    def at(self, column: int, W: torch.Tensor, cost: torch.Tensor) -> torch.Tensor | None:
        return self.kept[:, column, None]


@dataclass(frozen=True, eq=False)
class _Choice:
    """n of every m, chosen at a group's first column from the weights as they are then."""

    n: int
    m: int
    live: torch.Tensor
    heard: torch.Tensor

    def at(self, column: int, W: torch.Tensor, cost: torch.Tensor) -> torch.Tensor | None:
        if column % self.m:
            return None
        turn = slice(column, column + self.m)
        # A silent channel's weight costs nothing; a virtual one goes before all others.
        scores = (W[:, turn] ** 2 * cost[turn] * self.heard[turn]).masked_fill(~self.live[turn], -1)
        kept = torch.zeros_like(scores, dtype=torch.bool)
        return kept.scatter_(1, scores.topk(self.n, dim=1).indices, True)


def _sequential(
    W: torch.Tensor, root: torch.Tensor, choice: _Given | _Choice, block_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prune column after column, spreading each one's loss over those to come.

    Parameters
    ----------
    W : Tensor, shape (R, C)
        In the order of the turns.
    root : Tensor, shape (C, C)
        Upper triangular U with ``U^T U = H^-1``. Row j is column j of the inverse of what is left
        of H once columns before j are gone, over the root of its diagonal element.
    choice : object
        Gives the mask, from a column on.
    block_size : int

    Returns
    -------
    updated : Tensor, shape (R, C)
    kept : Tensor of bool, shape (R, C)
    """
    W, kept = W.clone(), torch.zeros_like(W, dtype=torch.bool)
    cost = root.diagonal() ** -2
    columns = W.shape[1]
    if isinstance(choice, _Choice):
        # A group's weights must all be up to date when it is chosen from.
        block_size = math.ceil(block_size / choice.m) * choice.m
    for start in range(0, columns, block_size):
        end = min(start + block_size, columns)
        lost = torch.zeros_like(W[:, start:end])
        for j in range(start, end):
            chosen = choice.at(j, W, cost)
            if chosen is not None:
                kept[:, j : j + chosen.shape[1]] = chosen
            error = torch.where(kept[:, j], 0.0, W[:, j]) / root[j, j]
            W[:, j:end] -= error[:, None] * root[j, j:end]
            lost[:, j - start] = error
        W[:, end:] -= lost @ root[start:end, end:]
    return W * kept, kept


def _inverse_root(H: torch.Tensor, damp: float) -> torch.Tensor:
    """Upper triangular U with ``U^T U = (H + damping)^-1``, from one Cholesky factor.

    With J the reversal, ``J H J = L L^T`` makes ``H = A A^T`` for the upper triangular
    ``A = J L J``; U is its inverse.
    """
    mean = float(H.diagonal().mean())
    identity = torch.eye(len(H), dtype=H.dtype, device=H.device)
    if not mean:
        return identity
    # A silent channel is as good as independent: nothing is spread over it.
    silent = (H.diagonal() <= 0).to(H.dtype) * mean
    while True:
        damped = H + torch.diag(silent) + damp * mean * identity
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not int(failed):
            return torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
        damp = max(10 * damp, 1e-6)


def _no_worse(
    weights: torch.Tensor, updated: torch.Tensor, mask: torch.Tensor, H: torch.Tensor
) -> torch.Tensor:
    """The updated weights in the dtype of the old; rows that lose more than by the bare mask, bare.

    Losses are those by the undamped H.
    """
    after = updated.to(weights.dtype) * mask
    bare = weights.detach() * mask
    worse = _losses(weights, after, H) > _losses(weights, bare, H)
    return torch.where(worse[:, None], bare, after)


def _losses(weights: torch.Tensor, pruned: torch.Tensor, H: torch.Tensor) -> torch.Tensor:
    error = weights.detach().to(H.dtype) - pruned.to(H.dtype)
    return ((error @ H) * error).sum(1)


# --- arguments


def _checked_gram(weights: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """The Gram matrix beside the weights, in the precision of the update."""
    if weights.dim() != 2:
        raise ValueError(f"weights must be (R, C), got shape {tuple(weights.shape)}")
    columns = weights.shape[1]
    if gram.shape != (columns, columns):
        raise ValueError(
            f"gram must have shape {(columns, columns)}, rows and columns for each input channel "
            f"of weights {tuple(weights.shape)}, got {tuple(gram.shape)}"
        )
    dtype = torch.promote_types(torch.promote_types(weights.dtype, gram.dtype), torch.float32)
    for name, one in (("weights", weights), ("gram", gram)):
        if not bool(torch.isfinite(one).all()):
            raise ValueError(f"{name} must be finite")
    return gram.detach().to(weights.device, dtype)


def _turns(groups: Any, m: int, columns: int) -> torch.Tensor:
    """The columns in the order of their turns; virtual ones come behind the real, ``columns`` on.

    Raises
    ------
    ValueError
        If groups are no partition.
    """
    if groups is None:
        return torch.arange(math.ceil(columns / m) * m)
    order: NDArray[np.int64] = np.asarray(groups).astype(np.int64)
    real = order >= 0
    if (
        order.ndim != 2
        or order.shape[1] != m
        or not np.array_equal(np.sort(order[real]), np.arange(columns))
    ):
        raise ValueError(
            f"groups must have shape (G, {m}) and hold each of the {columns} columns once, and -1, "
            f"got shape {order.shape}"
        )
    order[~real] = columns + np.arange(np.count_nonzero(~real))
    return torch.from_numpy(order.reshape(-1))
