"""Which layers of a model are pruned, and why the others are not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn

from gyroperm.models.layers import PrunableLayer, other_matrices, prunable_layers, why_unfit
from gyroperm.pattern import Pattern
from gyroperm.selection import EMBEDDINGS, HEADS, why_no_fit


@dataclass(frozen=True)
class Choice:
    """The layers of a model, split.

    Attributes
    ----------
    pruned : list of PrunableLayer
        In the model's order.
    skipped : dict of str to str
        The reason by the parameter's name.
    known : dict of str to PrunableLayer
        All linear layers and convolutions, pruned or not.
    names : dict of str to str
        The layer (by its first name) of every name of its weight.
    """

    pruned: list[PrunableLayer]
    skipped: dict[str, str]
    known: dict[str, PrunableLayer]
    names: dict[str, str] = field(default_factory=dict)

    @property
    def by_tensor(self) -> dict[str, PrunableLayer]:
        """All linear layers and convolutions, by every name of their weight."""
        return {alias: self.known[name] for alias, name in self.names.items()}


def choose(
    model: nn.Module,
    pattern: Pattern,
    *,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    embeddings: bool = False,
    linear_only: str = "",
    strict: bool = False,
) -> Choice:
    """Split the weights of a model into those that are pruned and those that are not.

    Parameters
    ----------
    model : nn.Module
    pattern : Pattern
    include, exclude : str or iterable of str, optional
        Regular expressions, searched in the names of weights: pruned is what one of ``include``
        matches (or all, if there is none) and none of ``exclude`` does.
    embeddings : bool
        Whether output heads are pruned too.
    linear_only : str
        Why convolutions are left out; empty if they are not.
    strict : bool
        Whether a layer that does not fit the pattern is an error.

    Raises
    ------
    ValueError
        If an expression is none, or matches no weight; nothing is left to prune; or a layer does
        not fit and ``strict`` is set.
    """
    known = prunable_layers(model)
    names = _names(model, known)
    aliases: dict[str, list[str]] = {name: [] for name in known}
    for alias, name in names.items():
        aliases[name].append(alias)
    wanted = _expressions("include", include, aliases)
    unwanted = _expressions("exclude", exclude, aliases)
    looked_up = {id(m.weight): n for n, m in model.named_modules() if isinstance(m, nn.Embedding)}
    pruned, skipped = [], other_matrices(model, known)
    for name, layer in known.items():
        reason = _why_not_wanted(aliases[name], wanted, unwanted, embeddings)
        if not reason and (table := looked_up.get(id(layer.parameter))):
            reason = f"shared with the embedding {table}"
        reason = reason or why_unfit(layer)
        if not reason and layer.convolution:
            reason = linear_only
        if not reason and (misfit := _why_no_fit(layer, pattern)):
            if strict:
                raise ValueError(f"{name}: {misfit}; strict=True allows no layer that does not fit")
            reason = misfit
        if reason:
            skipped[name] = reason
        else:
            pruned.append(layer)
    if not pruned:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:4])
        raise ValueError(f"{type(model).__name__} has nothing to prune: {why or 'no weights'}")
    return Choice(pruned, skipped, known, names)


def chosen_before(model: nn.Module, masked: Iterable[str]) -> Choice:
    """The layers whose weights have these names, in this order."""
    known = prunable_layers(model)
    names = _names(model, known)
    return Choice([known[names[name]] for name in masked], {}, known, names)


def _names(model: nn.Module, layers: Mapping[str, PrunableLayer]) -> dict[str, str]:
    """The layer of every name of its weight."""
    ids = {id(layer.parameter): layer.name for layer in layers.values()}
    named = model.named_parameters(remove_duplicate=False)
    return {name: ids[id(one)] for name, one in named if id(one) in ids}


def _expressions(
    argument: str, given: str | Iterable[str] | None, aliases: dict[str, list[str]]
) -> list[re.Pattern[str]]:
    texts = [given] if isinstance(given, str) else list(given or ())
    found = []
    for text in texts:
        try:
            found.append(re.compile(text))
        except (re.error, TypeError) as error:
            raise ValueError(
                f"{argument} must be regular expressions, got {text!r}: {error}"
            ) from (None)
        if not any(found[-1].search(name) for own in aliases.values() for name in own):
            raise ValueError(
                f"{argument} {text!r} matches no weight of a linear layer or convolution"
            )
    return found


def _why_not_wanted(
    names: list[str],
    include: list[re.Pattern[str]],
    exclude: list[re.Pattern[str]],
    embeddings: bool,
) -> str:
    def one_of(expressions: list[re.Pattern[str]]) -> bool:
        return any(expression.search(name) for expression in expressions for name in names)

    if include and not one_of(include):
        return "matched by no include"
    if one_of(exclude):
        return "matched by exclude"
    if not embeddings and one_of([re.compile(f"{EMBEDDINGS}|{HEADS}")]):
        return "embedding or output head (embeddings=True prunes it)"
    return ""


def _why_no_fit(layer: PrunableLayer, pattern: Pattern) -> str:
    columns = layer.shape[1]
    # Virtual columns fill up where tiles are packed; here weights stay in place, and a kernel
    # reads whole groups.
    unit = pattern.window or pattern.m
    if pattern.shared_order and columns % unit:
        what = f"windows of {unit}" if pattern.window else f"groups of {unit}"
        return f"its {columns} input channels do not make whole {what} ({pattern})"
    return why_no_fit(layer.shape, pattern) or ""
