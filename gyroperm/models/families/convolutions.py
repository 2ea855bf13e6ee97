"""Parts of convolution networks: channels with their norm, and residual streams."""

from __future__ import annotations

from collections.abc import Iterable

from gyroperm.models.families.parts import Axes
from gyroperm.models.spec import Coupled, Leaving

_NORM = ("weight", "bias", "running_mean", "running_var")


def channels(module: str, layout: str = "c") -> Axes:
    """What a convolution with its batch norm puts out; a depthwise one follows what it takes in."""
    return {
        f"{module}.convolution.weight[0]": layout,
        f"{module}.convolution.bias[0]?": layout,
        **{f"{module}.normalization.{one}[0]?": layout for one in _NORM},
    }


def reads(module: str) -> Axes:
    """What a convolution takes in."""
    return {f"{module}.convolution.weight[1]": "c"}


def chained(name: str, writers: Iterable[str], readers: Iterable[str], extra: Axes) -> Coupled:
    """One order for all that put out the same channels and all that take them in."""
    axes: Axes = {}
    for module in writers:
        axes |= channels(module)
    for module in readers:
        axes |= reads(module)
    return Coupled(name, {**axes, **extra}, order="c")


def map_leaves(field: str, site: str) -> Leaving:
    """A feature map, whose channels are its dimension 1, leaves the model."""
    return Leaving(field, site, dim=1)


class Residuals:
    """The residual streams of a network, each with what writes to it and what reads from it."""

    def __init__(self, first: str) -> None:
        self.name = first
        self._found: dict[str, tuple[list[str], list[str], Axes]] = {}
        self.begin(first)

    def begin(self, name: str) -> None:
        """Another stream, which the next modules belong to."""
        self.name = name
        self._found[name] = ([], [], {})

    def writes(self, *modules: str) -> None:
        """Modules that put out the stream's channels."""
        self._found[self.name][0].extend(modules)

    def reads(self, *modules: str) -> None:
        """Modules that take them in."""
        self._found[self.name][1].extend(modules)

    def also(self, axes: Axes) -> None:
        """Other axes that follow."""
        self._found[self.name][2].update(axes)

    def coupled(self) -> list[Coupled]:
        """A site for each stream."""
        return [chained(name, *found) for name, found in self._found.items()]
