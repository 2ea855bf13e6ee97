"""Layouts: how the channels of a dimension are made up, such as ``kv rep hd``.

A layout multiplies factors from the outermost to the innermost, ``kv rep hd``: names, numbers for
repetitions, and sums in parentheses, ``kv (2 qd + vd)``: parts that lie one behind the other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_TOKEN = re.compile(r"\s*(\w+|[()+])")


@dataclass(frozen=True)
class Layout:
    """A parsed layout.

    Attributes
    ----------
    parts : tuple of tuple
        Summands, one behind the other; each is a product of names, numbers and further layouts.
    text : str
    """

    parts: tuple[tuple[str | Layout, ...], ...]
    text: str

    @property
    def factors(self) -> list[str]:
        """Its names, each once."""
        return list(dict.fromkeys(self._names()))

    def _names(self) -> Iterator[str]:
        for product in self.parts:
            for part in product:
                if isinstance(part, Layout):
                    yield from part._names()
                elif not part.isdigit():
                    yield part

    def length(self, sizes: Mapping[str, int]) -> int:
        """How many positions it has."""
        return sum(math.prod(_length(part, sizes) for part in product) for product in self.parts)

    def coordinates(self, sizes: Mapping[str, int]) -> dict[str, NDArray[np.int64]]:
        """For each factor, every position's element of it; -1 where the factor plays no part."""
        summands = [_product(product, sizes) for product in self.parts]
        return {
            name: np.concatenate([places.get(name, np.full(n, -1)) for n, places in summands])
            for name in self.factors
        }


def parsed(text: str) -> Layout:
    """Parse a layout.

    Raises
    ------
    ValueError
        If it is not well formed, or a product names a factor twice.
    """
    tokens = _TOKEN.findall(text)
    if _TOKEN.sub("", text).strip():
        raise ValueError(f"the layout {text!r} may hold names, numbers, '+' and parentheses only")
    layout = _sum(tokens, text)
    if tokens:
        raise ValueError(f"the layout {text!r} has a parenthesis too many")
    _check_once(layout)
    return layout


def sizes_of(layout: Layout, length: int, sizes: Mapping[str, int], what: str) -> dict[str, int]:
    """The size of each factor of a layout; at most one may be unknown and is inferred.

    Parameters
    ----------
    layout : Layout
    length : int
        Positions of the dimension.
    sizes : mapping of str to int
        What is known.
    what : str
        Names the dimension in messages.

    Raises
    ------
    ValueError
        If more than one factor is unknown, or the layout has another length.
    """
    known = {factor: sizes[factor] for factor in layout.factors if factor in sizes}
    unknown = [factor for factor in layout.factors if factor not in known]
    if len(unknown) > 1:
        raise ValueError(
            f"{what}: the sizes of {' and '.join(unknown)} in {layout.text!r} are not given"
        )
    for factor in unknown:
        # No product names a factor twice, so the length is linear in its size.
        none = layout.length({**known, factor: 0})
        each = layout.length({**known, factor: 1}) - none
        known[factor] = max(0, length - none) // each if each else 0
    if layout.length(known) != length:
        said = ", ".join(f"{f} = {size}" for f, size in known.items() if f not in unknown)
        raise ValueError(
            f"{what} has {length} positions, which {layout.text!r}"
            f"{' with ' + said if said else ''} does not give"
        )
    return known


def members(
    layout: Layout, sizes: Mapping[str, int], order: str, within: str | None
) -> NDArray[np.int64]:
    """The positions of each element of the factor ``order``, in each block of ``within``.

    Parameters
    ----------
    layout : Layout
    sizes : mapping of str to int
        Of every factor.
    order : str
        The factor whose elements are ordered.
    within : str or None
        The factor each of whose blocks has an order of its own.

    Returns
    -------
    ndarray of int64, shape (blocks, size, copies)

    Raises
    ------
    ValueError
        If ``order`` occurs outside of ``within``.
    """
    coordinates = layout.coordinates(sizes)
    element = coordinates[order]
    block = coordinates[within] if within else np.zeros_like(element)
    positions = np.flatnonzero(element >= 0)
    if np.any(block[positions] < 0):
        raise ValueError(f"the layout {layout.text!r} has {order!r} outside of {within!r}")
    blocks = sizes[within] if within else 1
    # A stable sort keeps the copies of an element in the order in which they lie.
    ranked = positions[np.lexsort((element[positions], block[positions]))]
    return ranked.reshape(blocks, sizes[order], -1)


def _length(part: str | Layout, sizes: Mapping[str, int]) -> int:
    if isinstance(part, Layout):
        return part.length(sizes)
    return int(part) if part.isdigit() else sizes[part]


def _product(
    product: tuple[str | Layout, ...], sizes: Mapping[str, int]
) -> tuple[int, dict[str, NDArray[np.int64]]]:
    """Length and coordinates of a product."""
    length, found = 1, dict[str, NDArray[np.int64]]()
    for part in product:
        inner = _length(part, sizes)
        found = {name: np.repeat(places, inner) for name, places in found.items()}
        own = part.coordinates(sizes) if isinstance(part, Layout) else _own(part, inner)
        found.update({name: np.tile(places, length) for name, places in own.items()})
        length *= inner
    return length, found


def _own(factor: str, size: int) -> dict[str, NDArray[np.int64]]:
    return {} if factor.isdigit() else {factor: np.arange(size)}


def _sum(tokens: list[str], text: str) -> Layout:
    """Take a sum from the front of the tokens."""
    parts: list[tuple[str | Layout, ...]] = []
    product: list[str | Layout] = []
    while tokens and tokens[0] != ")":
        token = tokens.pop(0)
        if token == "(":
            product.append(_sum(tokens, text))
            if not tokens or tokens.pop(0) != ")":
                raise ValueError(f"the layout {text!r} lacks a closing parenthesis")
        elif token == "+":
            parts.append(tuple(product))
            product = []
        else:
            product.append(token)
    parts.append(tuple(product))
    if not all(parts):
        raise ValueError(f"the layout {text!r} has an empty part")
    return Layout(tuple(parts), text)


def _check_once(layout: Layout) -> None:
    for product in layout.parts:
        seen: set[str] = set()
        for part in product:
            names = set(part.factors) if isinstance(part, Layout) else _own(part, 1).keys()
            if twice := seen & names:
                raise ValueError(f"the layout {layout.text!r} names {min(twice)!r} twice")
            seen |= names
            if isinstance(part, Layout):
                _check_once(part)
