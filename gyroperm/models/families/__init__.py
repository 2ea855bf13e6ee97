"""The specs that ship, by the ``model_type`` of a model's Hugging Face configuration."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from gyroperm.models.families import bert
from gyroperm.models.spec import Spec

#: Makes the spec of a model of the family.
Maker = Callable[[nn.Module], Spec]

FAMILIES: dict[str, Maker] = {
    "bert": bert.spec,
    "roberta": bert.spec,
}


def spec_of(model: nn.Module) -> Spec | None:
    """The spec of a model's family; None for a model that belongs to none that ships."""
    maker = FAMILIES.get(getattr(getattr(model, "config", None), "model_type", ""))
    return None if maker is None else maker(model)
