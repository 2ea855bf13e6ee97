"""``torch.sparse.to_sparse_semi_structured``: 2:4 weights for the sparse tensor cores.

Masks are True = keep. Tested with torch 2.13. Compression is checked anywhere; the conversion
itself needs a CUDA device of compute capability 8.0 or more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

try:
    import torch
    from torch import nn
    from torch.sparse._semi_structured_conversions import (
        sparse_semi_structured_from_dense_cutlass,
        sparse_semi_structured_to_dense_cutlass,
    )
except ImportError as error:
    raise ImportError(
        "gyroperm.plugins.semi_structured needs torch: "
        "pip install 'gyroperm[torch]' (tested with 2.13.0)"
    ) from error

from gyroperm.solution import Solution

_N, _M = 2, 4
_CAPABILITY = (8, 0)
# In float32 torch keeps 1 of 2, not 2 of 4.
_DTYPES = (torch.float16, torch.bfloat16)


def packed_order(weight: torch.Tensor, solution: Solution) -> torch.Tensor:
    """A weight with a plain N:M solution's mask applied and its columns in the solution's order.

    What multiplies it must come in that order too: ``x[..., order]`` with ``order`` the solution's
    ``col_order``, or from a layer whose rows were reordered by :func:`gyroperm.models.permute`.

    Parameters
    ----------
    weight : Tensor, shape (R, C)
        In its original order.
    solution : Solution

    Raises
    ------
    ValueError
        If the solution is not plain N:M of one matrix of this shape, or m does not divide C.
    """
    if not solution.pattern.is_plain or solution.view.listed or solution.view.conv_groups > 1:
        raise ValueError(f"semi-structured kernels need plain 2:4 of one matrix, got {solution}")
    if solution.view.shapes[0] != tuple(weight.shape) or weight.dim() != 2:
        raise ValueError(
            f"the solution is of weights {solution.view.shapes[0]}, got {tuple(weight.shape)}"
        )
    order = torch.tensor(solution.col_order, dtype=torch.int64, device=weight.device)
    if len(order) != weight.shape[1]:
        raise ValueError(f"the {weight.shape[1]} columns are no multiple of {solution.pattern.m}")
    return solution.apply(weight.detach())[:, order]


def round_trip(
    weight: torch.Tensor, mask: Any = None, *, dtype: torch.dtype = torch.float16
) -> torch.Tensor:
    """Compress a 2:4 weight by torch's own conversion and expand it again, on any device.

    Parameters
    ----------
    weight : Tensor, shape (R, C)
        In the order in which it will be multiplied.
    mask : array_like of bool or Solution, shape (R, C), optional
        True = keep, in the same order; the weight's nonzeros by default.
    dtype : torch.dtype
        float16 or bfloat16, in which the weight is compressed.

    Returns
    -------
    Tensor, shape (R, C)
        What the kernel multiplies with: the masked weight.

    Raises
    ------
    ValueError
        If the mask keeps more than 2 of 4 somewhere (it says where), or the shape cannot be
        compressed.
    RuntimeError
        If what comes back is not the masked weight.
    """
    dense = _masked(weight, mask, "the weight").to(dtype)
    _check_compressible(dense, "the weight")
    compressed, metadata = sparse_semi_structured_from_dense_cutlass(dense)
    expanded = sparse_semi_structured_to_dense_cutlass(compressed, metadata)
    if not torch.equal(expanded, dense):
        raise RuntimeError("torch's 2:4 conversion does not give the masked weight back")
    return expanded


def to_semi_structured(model: nn.Module, masks: Mapping[str, Any]) -> list[str]:
    """Replace the weights of linear layers by torch's semi-structured ones.

    Every layer is checked, by a round trip through torch's conversion, before any is changed.

    Parameters
    ----------
    model : nn.Module
        On a CUDA device, in float16 or bfloat16, in the order of the masks. Changed in place; for
        inference.
    masks : mapping of str to array_like of bool or Solution
        True = keep, by the name of the layer or of its weight.

    Returns
    -------
    list of str
        The layers, in the order of ``masks``.

    Raises
    ------
    ValueError
        If a layer is no ``nn.Linear``, a mask is not 2:4, or shape or dtype do not fit.
    RuntimeError
        If there is no CUDA device that can run them; nothing is changed.
    """
    layers = {name.removesuffix(".weight"): mask for name, mask in masks.items()}
    dense = {name: _checked(model, name, mask) for name, mask in layers.items()}
    for name, weight in dense.items():
        _check_device(weight, name)
    for name, weight in dense.items():
        sparse = torch.sparse.to_sparse_semi_structured(weight.contiguous())
        model.get_submodule(name).weight = nn.Parameter(sparse, requires_grad=False)
    return list(dense)


def _checked(model: nn.Module, name: str, mask: Any) -> torch.Tensor:
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        raise ValueError(f"the model has no layer {name!r}") from None
    if not isinstance(layer, nn.Linear):
        raise ValueError(f"{name} must be an nn.Linear, got {type(layer).__name__}")
    weight = layer.weight.detach()
    if weight.dtype not in _DTYPES:
        raise ValueError(
            f"{name}.weight must be float16 or bfloat16 (torch's float32 format keeps 1 of 2), "
            f"got {weight.dtype}: convert the model with .half() or .bfloat16() first"
        )
    dense = _masked(weight, mask, name)
    _check_compressible(dense, name)
    round_trip(dense, dtype=weight.dtype)
    return dense


def _masked(weight: torch.Tensor, mask: Any, name: str) -> torch.Tensor:
    if isinstance(mask, Solution):
        mask = mask.mask
    dense = weight.detach()
    if mask is not None:
        given = mask if isinstance(mask, torch.Tensor) else torch.tensor(np.asarray(mask))
        kept = given.to(weight.device)
        if kept.shape != weight.shape:
            raise ValueError(
                f"the mask of {name} must have shape {tuple(weight.shape)}, got {tuple(kept.shape)}"
            )
        _check_groups(kept.bool(), name)
        dense = torch.where(kept.bool(), dense, torch.zeros_like(dense))
    else:
        _check_groups(dense != 0, name)
    return dense


def _check_groups(kept: torch.Tensor, name: str) -> None:
    if kept.dim() != 2 or kept.shape[1] % _M:
        raise ValueError(
            f"{name} must be a matrix whose columns are a multiple of {_M}, got {tuple(kept.shape)}"
        )
    counts = kept.unflatten(1, (-1, _M)).sum(-1)
    if (counts > _N).any():
        row, group = (int(i) for i in (counts > _N).nonzero()[0])
        raise ValueError(
            f"{name} keeps {int(counts[row, group])} of columns {_M * group} to "
            f"{_M * group + _M - 1} in row {row}; {_N} of {_M} are allowed. A mask from a search "
            f"is 2:4 in the order it found: reorder the model by gyroperm.models.permute, or "
            f"use packed_order"
        )


def _check_compressible(dense: torch.Tensor, name: str) -> None:
    if dense.dtype not in _DTYPES:
        raise ValueError(f"dtype must be float16 or bfloat16, got {dense.dtype}")
    shape = torch.sparse.SparseSemiStructuredTensorCUTLASS._DTYPE_SHAPE_CONSTRAINTS[dense.dtype]
    rows, columns = shape.sparse_min_rows, shape.sparse_min_cols
    if dense.shape[0] % rows or dense.shape[1] % columns:
        raise ValueError(
            f"{name} must have a multiple of {rows} rows and of {columns} columns to be "
            f"compressed, got {tuple(dense.shape)}"
        )


def _check_device(weight: torch.Tensor, name: str) -> None:
    if not weight.is_cuda:
        found = (
            "none is available" if not torch.cuda.is_available() else f"it is on {weight.device}"
        )
        raise RuntimeError(
            f"{name} cannot be converted: semi-structured weights live on CUDA devices, {found}. "
            f"Its mask passes torch's 2:4 round trip (see round_trip)"
        )
    capability = torch.cuda.get_device_capability(weight.device)
    if capability < _CAPABILITY:
        raise RuntimeError(
            f"{name} cannot be converted: sparse tensor cores need compute capability 8.0, "
            f"{weight.device} has {capability[0]}.{capability[1]}"
        )
