"""From what tracing wrote down to sites."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from torch import nn

from gyroperm.models.sites import Axis, Constraint, Site
from gyroperm.models.trace_ledger import Classes, Ids, Ledger
from gyroperm.models.trace_ops import KERNEL

_ALONE = "no other channel is tied in the same way"

# The first id of a site, for its place, and the site without a name.
_Found = tuple[int, Site]


def sites_of(ledger: Ledger) -> tuple[Site, ...]:
    """The sites of a traced model: classes that may change places, and those that may not.

    Parameters
    ----------
    ledger : Ledger

    Returns
    -------
    tuple of Site
        In the order of the parameters.
    """
    _without_shared_groups(ledger)
    classes = ledger.classes()
    builder = _Builder(ledger, classes)
    families: dict[tuple[object, ...], list[_Found]] = {}
    for found in sorted([*builder.moving(), *builder.fixed()], key=lambda one: one[0]):
        families.setdefault(_family(found[1]), []).append(found)
    return tuple(_named([[site for _, site in family] for family in families.values()]))


def _family(site: Site) -> tuple[object, ...]:
    """What sites of one family share: the same axes, though other positions of them."""
    axes = tuple(dict.fromkeys((axis.tensor, axis.dim, axis.copies) for axis in site.axes))
    return (site.reason, site.constraint, axes)


def untouched(ledger: Ledger, model: nn.Module) -> dict[str, str]:
    """Axes of parameters that the traced call did not use, with that as the reason."""
    touched = ledger.touched
    used = {(a.tensor, a.dim) for a in ledger.axes if touched[a.ids].any()}
    return {
        f"{name}[{dim}]": "the traced call does not use it"
        for name, parameter in model.named_parameters()
        if parameter.dim() >= 2
        for dim in (0, 1)
        if parameter.shape[dim] > 1 and (name, dim) not in used
    }


def _without_shared_groups(ledger: Ledger) -> None:
    """A dimension that is used both as a whole and by groups of rows stays."""
    touched = ledger.touched
    by_rows = {(a.tensor, a.dim) for a in ledger.axes if a.rows is not None}
    for axis in list(ledger.axes):
        if axis.rows is None and (axis.tensor, axis.dim) in by_rows and touched[axis.ids].any():
            for other in ledger.axes:
                if (other.tensor, other.dim) == (axis.tensor, axis.dim):
                    ledger.pin(other.ids, "used both by groups of rows and as a whole")


class _Builder:
    def __init__(self, ledger: Ledger, classes: Classes) -> None:
        self._ledger = ledger
        self._classes = classes
        # Ids by class, in the order of axes and positions.
        self._order = np.argsort(classes.of, kind="stable")
        counts = np.bincount(classes.of, minlength=len(classes.signature))
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        touched = np.zeros(len(counts), bool)
        touched[classes.of[ledger.touched]] = True
        real = np.zeros(len(counts), bool)
        named = np.array([bool(axis.tensor) for axis in ledger.axes], bool)
        real[classes.of[named[ledger.axis_of]]] = True
        self._shown = touched & real
        self._alike = _grouping(classes.signature)

    def moving(self) -> Iterator[_Found]:
        """Sites of two classes or more that may change places, with their first ids."""
        for group in self._alike:
            if len(group) > 1 and self._shown[group[0]]:
                ids = self._ids(group)
                yield int(ids[0, 0]), Site("", len(group), self._axes(ids))

    def fixed(self) -> Iterator[_Found]:
        """Classes that may not change places with any other, those of one reason together."""
        reasons = self._reasons()
        together: dict[tuple[int, str], list[int]] = {}
        for group in self._alike:
            one = int(group[0])
            if len(group) == 1 and self._shown[one] and reasons[one] != KERNEL:
                key = (int(self._classes.build[one]), reasons[one])
                together.setdefault(key, []).append(one)
        for (_, reason), members in together.items():
            ids = self._ids(np.array(members))
            site = Site("", len(members), self._axes(ids), "fixed", reason)
            yield int(ids[0, 0]), site

    def _ids(self, group: Ids) -> Ids:
        """The ids of classes of one build, shape (classes, ids)."""
        starts = self._starts[group]
        count = self._starts[group[0] + 1] - starts[0]
        return np.asarray(self._order[starts[:, None] + np.arange(count)])

    def _axes(self, ids: Ids) -> tuple[Axis, ...]:
        axis_of = self._ledger.axis_of[ids[0]]
        axes = []
        for number in dict.fromkeys(axis_of.tolist()):
            axis = self._ledger.axes[number]
            if axis.tensor:
                members = ids[:, axis_of == number] - axis.start
                axes.append(Axis(axis.tensor, axis.dim, members, axis.rows))
        return tuple(axes)

    def _reasons(self) -> list[str]:
        """For each class the first reason that tells it from all others, else from some."""
        single = [""] * len(self._classes.signature)
        shared = list(single)
        for entry in self._ledger.entries:
            if not entry.reason:
                continue
            told = np.unique(np.stack([entry.tags, self._classes.of[entry.ids[:, 0]]]), axis=1)
            _, tag, count = np.unique(told[0], return_inverse=True, return_counts=True)
            for alone, one in zip((count[tag] == 1).tolist(), told[1].tolist(), strict=True):
                reasons = single if alone else shared
                reasons[one] = reasons[one] or entry.reason
        return [one or other or _ALONE for one, other in zip(single, shared, strict=True)]


def _grouping(signature: np.ndarray) -> list[Ids]:
    """Classes of equal signatures, in the order of their first."""
    order = np.argsort(signature, kind="stable")
    cuts = np.flatnonzero(np.diff(signature[order])) + 1
    return sorted(np.split(order, cuts), key=lambda group: int(group[0])) if len(order) else []


def _named(families: list[list[Site]]) -> Iterator[Site]:
    """Named by the module whose weight makes the channels; later families of a name by number."""
    taken: dict[str, int] = {}
    for family in families:
        name = _base(family[0])
        taken[name] = taken.get(name, 0) + 1
        if taken[name] > 1:
            name += f"#{taken[name]}"
        if len(family) == 1:
            yield replace(family[0], name=name)
            continue
        for block, site in enumerate(family):
            kind: Constraint = site.constraint if site.fixed else "within block"
            yield replace(site, name=f"{name}[{block}]", constraint=kind)


def _base(site: Site) -> str:
    makes = [axis.tensor for axis in site.axes if axis.dim == 0]
    weights = [tensor for tensor in makes if tensor.endswith("weight")]
    first = [*weights, *makes, site.axes[0].tensor][0]
    module = first.removesuffix(".weight").removesuffix(".bias")
    return module.replace("[", "(").replace("]", ")")
