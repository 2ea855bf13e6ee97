"""Wanda and RIA scripts: the mask of their metric under a permutation.

A recipe for scripts in the manner of ``lib/prune.py`` of https://github.com/locuslab/wanda and
https://github.com/biomedical-cybernetics/Relative-importance-and-activation-pruning, which are no
packages. There, True = prune; so it is here. Tested with torch 2.13.

References
----------
Sun et al., A Simple and Effective Pruning Approach for Large Language Models, ICLR 2024.
Zhang et al., Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models,
ICLR 2024.
"""

from __future__ import annotations

from typing import Any

try:
    import torch
except ImportError as error:
    raise ImportError(
        "gyroperm.plugins.wanda needs torch: pip install 'gyroperm[torch]' (tested with 2.13.0)"
    ) from error

import gyroperm
from gyroperm.pattern import Pattern


def prune_mask(
    W_metric: torch.Tensor,
    prune_n: int = 2,
    prune_m: int = 4,
    *,
    pattern: Pattern | None = None,
    **search: Any,
) -> torch.Tensor:
    """``W_mask`` for a ``W_metric``, in place of the loop over groups of ``prune_m`` columns.

    Parameters
    ----------
    W_metric : Tensor, shape (R, C)
        What each weight is worth: ``|W| * sqrt(scaler_row)`` in Wanda.
    prune_n, prune_m : int
        Prune prune_n of every prune_m.
    pattern : Pattern, optional
        Any other pattern instead.
    search
        Further arguments of :func:`gyroperm.solve`, such as ``seed`` and ``time_limit``.

    Returns
    -------
    Tensor of bool, shape (R, C)
        True = *prune*, beside ``W_metric``, in the original order: ``W.data[W_mask] = 0``. Stock
        2:4 kernels need the model's channels reordered first, see :func:`gyroperm.models.permute`.

    Raises
    ------
    ValueError
        If not ``0 < prune_n < prune_m``, or as :func:`gyroperm.solve`.
    """
    if pattern is None:
        if not 0 < prune_n < prune_m:
            raise ValueError(
                f"prune_n of every prune_m must go, got prune_n={prune_n}, prune_m={prune_m}; "
                f"unstructured pruning needs no order"
            )
        pattern = Pattern.nm(prune_m - prune_n, prune_m)
    metric = W_metric.detach()
    solution = gyroperm.solve(metric, saliency=metric, pattern=pattern, **search)
    return torch.tensor(~solution.mask, device=W_metric.device)
