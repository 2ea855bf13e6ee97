"""The coupling graph: which axes of a model's parameters must share an order."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gyroperm.files import atomic_path
from gyroperm.models.sites import Axis, Site
from gyroperm.models.spec import Leaving, Shapes, Spec, fitting
from gyroperm.report import format_table

if TYPE_CHECKING:
    import networkx as nx

# So many sites of a kind are written out; the others are counted.
_SHOWN = 2


@dataclass(frozen=True, eq=False)
class CouplingGraph:
    """The sites of a model and how they tie its axes together.

    Attributes
    ----------
    source : str
        Where it comes from: the spec of a family, a user's, or tracing.
    sites : tuple of Site
        In the order in which their orders are applied.
    leaving : tuple of Leaving
        Where the output carries a site's elements.
    skipped : mapping of str to str
        Axes that are left as they are though a tensor of theirs has columns to order, by name,
        with the reason.
    tensors : tuple of str
        The model's tensors in its own order, for pictures.
    """

    source: str
    sites: tuple[Site, ...]
    leaving: tuple[Leaving, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    tensors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for site in self.sites:
            if site.name in seen:
                raise ValueError(f"two sites are called {site.name}")
            seen.add(site.name)

    @classmethod
    def from_spec(cls, model: nn.Module, spec: Spec) -> CouplingGraph:
        """Expand a spec for a model.

        Parameters
        ----------
        model : nn.Module
        spec : Spec

        Returns
        -------
        CouplingGraph

        Raises
        ------
        ValueError
            If the spec does not fit; the message names the site and the axis.
        """
        shapes = tensor_shapes(model)
        sites = tuple(site for coupled in spec.coupled for site in coupled.sites(shapes))
        known = {site.name for site in sites}
        lost = [leaving.site for leaving in spec.leaving if leaving.site not in known]
        if lost:
            raise ValueError(f"{spec.family}: nothing is known of the leaving site {lost[0]}")
        reasons = {
            f"{tensor}[{dim}]": reason
            for text, reason in spec.kept.items()
            for _, tensor, dim in fitting(text, shapes)
        }
        left = undescribed(model, sites, "not described by the spec", reasons)
        return cls(spec.family, sites, spec.leaving, left, tuple(shapes))

    @cached_property
    def by_name(self) -> dict[str, Site]:
        """The sites by their names."""
        return {site.name: site for site in self.sites}

    @property
    def free(self) -> tuple[Site, ...]:
        """The sites that may move."""
        return tuple(site for site in self.sites if not site.fixed)

    @cached_property
    def graph(self) -> nx.MultiGraph:
        """Nodes are axes, ``(tensor, dim)``; an edge ties two that share the order of a site.

        Nodes have ``sites``, the names of the sites that reorder them; edges ``site``,
        ``constraint`` and ``reason``.
        """
        import networkx as nx

        graph = nx.MultiGraph()
        for site in self.sites:
            keys = list(dict.fromkeys((axis.tensor, axis.dim) for axis in site.axes))
            for key in keys:
                graph.add_node(key)
                graph.nodes[key].setdefault("sites", []).append(site.name)
            tie = {"site": site.name, "constraint": site.constraint, "reason": site.reason}
            graph.add_edges_from((keys[0], key, tie) for key in keys[1:])
        for name, reason in self.skipped.items():
            graph.add_node(
                (name.partition("[")[0], int(name[:-1].rpartition("[")[2])), reason=reason
            )
        return graph

    def describe(self) -> str:
        """The sites as a table: what moves, how, and what follows."""
        rows = []
        for (pattern, *_), alike in groupby(self.sites, key=_kind):
            sites = list(alike)
            site = sites[0]
            axes = [_described(axis) for axis in site.axes]
            shown = ", ".join(axes[:_SHOWN]) + (
                f" and {len(axes) - _SHOWN} more" if len(axes) > _SHOWN else ""
            )
            count = f"{len(sites)} x {site.size}" if len(sites) > 1 else str(site.size)
            kind = f"fixed: {site.reason}" if site.fixed else site.constraint
            rows.append([pattern, count, kind, shown])
        text = f"{self.source}\n" + format_table(["site", "elements", "may move", "axes"], rows)
        left = [f"  {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join([text, "left as they are:", *left] if left else [text])

    def draw(self, path: str | Path) -> None:
        """Draw the graph (extra ``plot``).

        A line for each site, or for all blocks of a family, and a column for each module in the
        model's order; a mark where a site orders an axis of the module, with the dimension.

        Parameters
        ----------
        path : str or Path
            The picture, written whole or not at all; its suffix names the format.
        """
        from gyroperm.models.picture import drawn, resolution

        figure = drawn(self)
        suffix = Path(path).suffix.lstrip(".") or "png"
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=suffix, dpi=resolution(figure))


def _kind(site: Site) -> tuple[str, str, str, int]:
    """What sites that are described together have in common; layers only differ in their number."""
    pattern = re.sub(r"(?<=\.)\d+(?=\.)", "*", site.family)
    return pattern, site.constraint, site.reason, site.size


def _described(axis: Axis) -> str:
    return f"{axis}" + (f" x {axis.copies}" if axis.copies > 1 else "")


def tensor_shapes(model: nn.Module) -> Shapes:
    """The shapes of all parameters and buffers, tied ones under each of their names."""
    return {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers, tied ones under each of their names."""
    named: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    return {**named, **dict(model.named_buffers(remove_duplicate=False))}


def undescribed(
    model: nn.Module, sites: Sequence[Site], reason: str, known: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Axes of parameters that no site orders, by name, each with its own reason or the common."""
    described: Iterable[tuple[str, int]] = {(a.tensor, a.dim) for s in sites for a in s.axes}
    return {
        f"{name}[{dim}]": (known or {}).get(f"{name}[{dim}]", reason)
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.dim() >= 2
        # Behind the channels of a convolution lies its kernel; a stack has channels all through.
        for dim in range(2 if name.endswith("weight") else parameter.dim())
        if (name, dim) not in described and parameter.shape[dim] > 1
    }


def orders_by_site(graph: CouplingGraph, orders: Mapping[str, Any]) -> dict[str, Any]:
    """Orders by the name of their site; one of a family of blocks may come as one array.

    Parameters
    ----------
    graph : CouplingGraph
    orders : mapping of str to array_like
        For a site, shape (size,); for all blocks of a family at once, (blocks, size).

    Raises
    ------
    ValueError
        If there is no such site; the message names what there is.
    """
    found: dict[str, Any] = {}
    for name, order in orders.items():
        if name in graph.by_name:
            found[name] = order
            continue
        blocks = [site.name for site in graph.sites if site.family == name]
        if not blocks:
            near = ", ".join(sorted({site.family for site in graph.free})[:8])
            raise ValueError(f"there is no site {name!r}; there are {near or 'none that may move'}")
        if len(order) != len(blocks):
            raise ValueError(f"{name} has {len(blocks)} blocks, got {len(order)} orders")
        found.update(zip(blocks, order, strict=True))
    return found
