"""Specs: which axes of a family of models share an order, written down once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gyroperm.models.layout import Layout, members, parsed, sizes_of
from gyroperm.models.sites import Axis, Constraint, Site

#: Shapes of the tensors of a model, by name.
Shapes = Mapping[str, tuple[int, ...]]

_AXIS = re.compile(r"(?P<tensor>[^\[\]]+)\[(?P<dim>\d+)\](?P<optional>\?)?")
_PLACEHOLDER = re.compile(r"\\\{(\w+)\\\}")

#: A part of dimension 0, from and to; None for all of it.
_Rows = tuple[int, int] | None


def fitting(text: str, shapes: Shapes) -> Iterator[tuple[dict[str, str], str, int]]:
    """For each tensor that an axis fits: the placeholders' values, the tensor and the dimension."""
    parts = _AXIS.fullmatch(text)
    if parts is None:
        raise ValueError(f"an axis is written tensor[dim], got {text!r}")
    expression = re.compile(_PLACEHOLDER.sub(r"(?P<\1>\\d+)", re.escape(parts["tensor"])))
    for tensor in shapes:
        if found := expression.fullmatch(tensor):
            yield found.groupdict(), tensor, int(parts["dim"])


@dataclass(frozen=True)
class Coupled:
    """Axes that share one order.

    Parameters
    ----------
    name : str
        Of the site. With placeholders, ``"layers.{i}.ffn"``, one site for each number that fits.
    axes : mapping of str to str
        From an axis, ``"model.layers.{i}.mlp.up_proj.weight[0]"``, to its layout: the factors
        that make up its positions from the outermost to the innermost, ``"kv rep hd"``. A number
        is a repetition, ``"2 c"``; a sum holds parts one behind the other, ``"kv (2 qd + vd)"``,
        and what does not have the ordered factor stays in its place. ``"g o | c"`` says besides
        how dimension 0 is made up, where each of its blocks has an order of its own along this
        axis: the groups of a convolution, or the experts of a stack. A placeholder stands for
        digits; one that the site's name does not have matches all. ``?`` at the end marks an axis
        that a model may lack; every other must be there.
    order : str
        The factor that is ordered.
    within : str, optional
        The factor each of whose blocks has an order of its own.
    sizes : mapping of str to int
        Sizes of the factors; one of each axis may be left out.
    fixed : str
        Why these axes must stay as they are; empty where they may move.

    Examples
    --------
    The values of an attention with 8 key-value heads of 64 dimensions, each of which serves
    several query heads, may be reordered within a head:

    >>> values = Coupled(
    ...     "layers.{i}.values",
    ...     {
    ...         "layers.{i}.v_proj.weight[0]": "kv hd",
    ...         "layers.{i}.v_proj.bias[0]?": "kv hd",
    ...         "layers.{i}.o_proj.weight[1]": "kv rep hd",
    ...     },
    ...     order="hd", within="kv", sizes={"kv": 8, "hd": 64},
    ... )
    """

    name: str
    axes: Mapping[str, str]
    order: str
    within: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    fixed: str = ""

    def sites(self, shapes: Shapes) -> list[Site]:
        """The sites of a model whose tensors have these shapes.

        Raises
        ------
        ValueError
            If a needed axis is missing, or a layout does not fit a shape.
        """
        bindings: dict[str, list[tuple[str, int, str]]] = {}
        for text, layout in self.axes.items():
            for name, tensor, dim in self._found(text, shapes):
                bindings.setdefault(name, []).append((tensor, dim, layout))
        for text in self.axes:
            self._check_present(text, bindings, shapes)
        return [
            site for name, axes in bindings.items() for site in self._blocks(name, axes, shapes)
        ]

    def _found(self, text: str, shapes: Shapes) -> Iterator[tuple[str, str, int]]:
        """For each tensor that fits: the site's name, the tensor and the dimension."""
        for found, tensor, dim in fitting(text, shapes):
            yield self._named(found, text), tensor, dim

    def _named(self, values: Mapping[str, str], text: str) -> str:
        try:
            return self.name.format(**values)
        except KeyError as error:
            raise ValueError(
                f"the site {self.name!r} has a placeholder {error} that {text!r} lacks"
            ) from None

    def _check_present(
        self, text: str, bindings: Mapping[str, list[tuple[str, int, str]]], shapes: Shapes
    ) -> None:
        if text.endswith("?"):
            return
        present = {name for name, _, _ in self._found(text, shapes)}
        missing = [name for name in bindings if name not in present]
        if missing or not bindings:
            where = missing[0] if missing else self.name
            raise ValueError(f"{where}: the model has no tensor for {text!r}")

    def _blocks(
        self, name: str, axes: list[tuple[str, int, str]], shapes: Shapes
    ) -> Iterator[Site]:
        made = [self._placed(tensor, dim, layout, shapes) for tensor, dim, layout in axes]
        counts = {m.shape[:2] for m, _ in made}
        if len(counts) > 1:
            said = ", ".join(
                f"{tensor}[{dim}]: {m.shape[0]} x {m.shape[1]}"
                for (tensor, dim, _), (m, _) in zip(axes, made, strict=True)
            )
            raise ValueError(f"{name}: its axes differ in blocks or elements: {said}")
        ((blocks, size),) = counts
        constraint = self._constraint([m for m, _ in made])
        for b in range(blocks):
            own = tuple(
                Axis(tensor, dim, m[b], rows[b])
                for (tensor, dim, _), (m, rows) in zip(axes, made, strict=True)
            )
            label = f"{name}[{b}]" if self.within else name
            yield Site(label, size, own, constraint, self.fixed)

    def _placed(
        self, tensor: str, dim: int, text: str, shapes: Shapes
    ) -> tuple[NDArray[np.int64], list[_Rows]]:
        """Members, shape (blocks, size, copies), and the rows that each block is in."""
        shape = shapes[tensor]
        if dim >= len(shape):
            raise ValueError(f"{tensor}[{dim}]: the tensor has shape {shape}")
        outer, bar, inner = text.rpartition("|")
        if not bar:
            found = self._members(tensor, dim, parsed(inner), shape[dim], self.within)
            return found, [None] * len(found)
        if dim == 0 or outer.split()[:1] != [self.within]:
            raise ValueError(
                f"{self.name}: the layout {text!r} of {tensor}[{dim}] must have the factor of "
                f"within, {self.within!r}, outermost in dimension 0, and order another dimension"
            )
        rows = parsed(outer)
        sizes = sizes_of(rows, shape[0], self.sizes, f"{tensor}[0]")
        blocks = sizes[outer.split()[0]]
        each = shape[0] // blocks
        alike = self._members(tensor, dim, parsed(inner), shape[dim], None)
        return alike.repeat(blocks, axis=0), [(b * each, (b + 1) * each) for b in range(blocks)]

    def _members(
        self, tensor: str, dim: int, layout: Layout, length: int, within: str | None
    ) -> NDArray[np.int64]:
        what = f"{tensor}[{dim}]"
        for factor in filter(None, (self.order, within)):
            if factor not in layout.factors:
                raise ValueError(
                    f"{self.name}: the layout {layout.text!r} of {what} lacks {factor!r}"
                )
        sizes = sizes_of(layout, length, self.sizes, what)
        return members(layout, sizes, self.order, within)

    def _constraint(self, made: list[NDArray[np.int64]]) -> Constraint:
        if self.fixed:
            return "fixed"
        if self.within:
            return "within block"
        # Elements that are neighbours anywhere are channels; else each is a block of them.
        near = any(m.shape[1] < 2 or m[0, 1, 0] - m[0, 0, 0] == 1 for m in made)
        return "free" if near else "whole blocks"


@dataclass(frozen=True)
class Leaving:
    """A part of the model's output that carries a site's elements, whose order is undone there.

    Parameters
    ----------
    field : str
        Name of the field of the output, or its index in a tuple, or empty for a bare tensor;
        ``"hidden_states.2"`` is one of several. A tuple of tensors is undone one by one; a
        missing field or None is left alone.
    site : str
    dim : int
    """

    field: str
    site: str
    dim: int = -1


@dataclass(frozen=True)
class Spec:
    """Everything that may move in a family of models.

    Parameters
    ----------
    family : str
    coupled : tuple of Coupled
        Applied from the first to the last: what moves within a block before what moves blocks.
    leaving : tuple of Leaving
    kept : mapping of str to str
        From axes, written as those of :class:`Coupled`, that nothing can order to the reason.
    """

    family: str
    coupled: tuple[Coupled, ...]
    leaving: tuple[Leaving, ...] = ()
    kept: Mapping[str, str] = field(default_factory=dict)
