"""Layouts: how the channels of a dimension are made up, such as ``kv rep hd``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def sizes_of(
    layout: Sequence[str], length: int, sizes: Mapping[str, int], what: str
) -> dict[str, int]:
    """The size of each factor of a layout; at most one may be unknown and is inferred.

    Parameters
    ----------
    layout : sequence of str
        Factors from the outermost to the innermost: names, or numbers for repetitions.
    length : int
        Positions of the dimension, the product of the factors.
    sizes : mapping of str to int
        What is known.
    what : str
        Names the dimension in messages.

    Raises
    ------
    ValueError
        If more than one factor is unknown, a factor is named twice, or the product differs.
    """
    text = " ".join(layout)
    if len(set(layout)) < len(layout):
        raise ValueError(f"the layout {text!r} of {what} names a factor twice")
    known = {f: int(f) if f.isdigit() else sizes[f] for f in layout if f.isdigit() or f in sizes}
    unknown = [f for f in layout if f not in known]
    product = math.prod(known.values())
    if len(unknown) > 1:
        raise ValueError(f"{what}: the sizes of {' and '.join(unknown)} in {text!r} are not given")
    if unknown and product and length % product == 0:
        known[unknown[0]] = length // product
    elif unknown or product != length:
        said = ", ".join(f"{f} = {size}" for f, size in known.items())
        raise ValueError(f"{what} has {length} positions, which {text!r} with {said} does not give")
    return {f: known[f] for f in layout}


def members(
    layout: Sequence[str], sizes: Mapping[str, int], order: str, within: str | None
) -> NDArray[np.int64]:
    """The positions of each element of the factor ``order``, in each block of ``within``.

    Parameters
    ----------
    layout : sequence of str
    sizes : mapping of str to int
        Of every factor.
    order : str
        The factor whose elements are ordered.
    within : str or None
        The factor each of whose blocks has an order of its own.

    Returns
    -------
    ndarray of int64, shape (blocks, size, copies)
    """
    shape = [sizes[f] for f in layout]
    positions = np.arange(math.prod(shape)).reshape(shape)
    first = [layout.index(within)] if within else []
    first.append(layout.index(order))
    rest = [d for d in range(len(shape)) if d not in first]
    blocks = sizes[within] if within else 1
    return positions.transpose(first + rest).reshape(blocks, sizes[order], -1)
