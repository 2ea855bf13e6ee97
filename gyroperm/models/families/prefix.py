"""Where a family's trunk lies in a model that may wrap it."""

from __future__ import annotations

from torch import nn


def prefix_of(model: nn.Module, known: str) -> str:
    """What comes before a parameter's known name: ``"bert."`` in a model with a head, else empty.

    Raises
    ------
    ValueError
        If the model has no such parameter.
    """
    for name, _ in model.named_parameters(remove_duplicate=False):
        if name == known or name.endswith("." + known):
            return name.removesuffix(known)
    raise ValueError(f"{type(model).__name__} has no parameter {known!r}, which its family has")
