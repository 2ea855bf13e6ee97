"""apex's ASP: its permutation search replaced, or its masks.

:func:`install` puts gyroperm's search where ``apex.contrib.sparsity.permutation_lib`` looks for its
own, which takes hours on wide layers or, above 2048 channels, two minutes of random swaps; ASP then
finds the layers that share an order and permutes them as before. :func:`mask_calculator` makes a
function for ``ASP.init_model_for_pruning``, of any pattern. Masks are ASP's: True = keep.

Nothing here but :func:`install` needs apex. apex is on no package index: its sources were read,
and its calls are tested where it is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

try:
    import torch
except ImportError as error:
    raise ImportError(
        "gyroperm.plugins.apex_asp needs torch: pip install 'gyroperm[torch]' (tested with 2.13.0)"
    ) from error

import gyroperm
from gyroperm.arrays import to_numpy
from gyroperm.pattern import Pattern
from gyroperm.plugins.toolkits import need

_NAMES = ("accelerated_search_for_good_permutation", "sum_after_2_to_4")


def accelerated_search_for_good_permutation(
    matrix_group: torch.Tensor,
    options: Mapping[str, Any] | None = None,
    verbosity: int = 0,
    **search: Any,
) -> list[int]:
    """A good order of the columns of weights that share it, for 2:4.

    Parameters
    ----------
    matrix_group : Tensor, shape (R, C)
        The weights, stacked.
    options : mapping, optional
        Of apex's search. Only ``progressive_search_time_limit`` is read, as a limit in seconds.
    verbosity : int
        Above 1, what was found is printed.
    search
        Further arguments of :func:`gyroperm.solve`.

    Returns
    -------
    list of int
        Each column once: ``matrix_group[:, found]`` keeps the most.

    Raises
    ------
    ValueError
        If 4 does not divide the columns.
    """
    weights = matrix_group.detach()
    if weights.shape[1] % 4:
        raise ValueError(f"2:4 needs columns that 4 divides, got {tuple(weights.shape)}")
    limit = (options or {}).get("progressive_search_time_limit")
    if limit is not None:
        search.setdefault("time_limit", float(limit))
    solution = gyroperm.solve(weights, pattern=Pattern.nm(), **search)
    if verbosity > 1:
        print(f"[gyroperm] {solution.summary()}")
    return [int(column) for column in np.asarray(solution.col_order)]


def sum_after_2_to_4(matrix: Any) -> float:
    """The magnitude that 2:4 of consecutive columns keeps, in float64.

    Parameters
    ----------
    matrix : array_like, shape (R, C)
        4 divides C.
    """
    groups = np.abs(to_numpy(matrix, "matrix")).astype(np.float64)
    if groups.ndim != 2 or groups.shape[1] % 4:
        raise ValueError(f"matrix must be (R, C) with C divided by 4, got shape {groups.shape}")
    return float(np.partition(groups.reshape(-1, 4), 2, axis=1)[:, 2:].sum())


def mask_calculator(
    pattern: Pattern | None = None, **search: Any
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function for ``ASP.init_model_for_pruning(model, mask_calculator=...)``.

    Masks are in the original order: for stock 2:4 kernels leave ASP's own and :func:`install`
    the search instead. Give ``allow_permutation=False`` with it.

    Parameters
    ----------
    pattern : Pattern, optional
        Any pattern; 2:4 by default.
    search
        Further arguments of :func:`gyroperm.solve`.

    Returns
    -------
    callable
        From a weight, shape (R, C), (R, C, k) or (R, C, kh, kw), to its boolean mask, True = keep.
    """
    pattern = pattern or Pattern.nm()

    def calculate(weight: torch.Tensor) -> torch.Tensor:
        # A one-dimensional kernel is a two-dimensional one of height 1.
        dense = weight.detach()
        dense = dense.unsqueeze(2) if dense.dim() == 3 else dense
        solution = gyroperm.solve(dense, pattern=pattern, **search)
        return torch.tensor(solution.mask, device=weight.device).reshape(weight.shape)

    return calculate


@contextmanager
def install(**search: Any) -> Iterator[None]:
    """Let ASP search with gyroperm within the block, around ``ASP.compute_sparse_masks()``.

    Parameters
    ----------
    search
        Further arguments of :func:`gyroperm.solve`, such as ``seed`` and ``time_limit``.

    Raises
    ------
    ImportError
        If apex is not installed.
    """
    library = need(
        "apex.contrib.sparsity.permutation_lib",
        "git+https://github.com/NVIDIA/apex",
        "none: apex is on no package index",
    )
    before = {name: getattr(library, name) for name in _NAMES if hasattr(library, name)}

    def found(
        matrix_group: torch.Tensor, options: Mapping[str, Any] | None = None, verbosity: int = 0
    ) -> list[int]:
        return accelerated_search_for_good_permutation(matrix_group, options, verbosity, **search)

    library.__dict__.update(dict(zip(_NAMES, (found, sum_after_2_to_4), strict=True)))
    try:
        yield
    finally:
        for name in _NAMES:
            if name in before:
                setattr(library, name, before[name])
            else:
                # Without CUDA kernels apex's library lacks them altogether.
                delattr(library, name)
