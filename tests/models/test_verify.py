"""What a model computes, for comparison: what cannot be compared is said before any work."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from gyroperm.models import reference, sparsify
from small_families import assert_same_state, state_of

INPUTS = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


class Log(nn.Module):
    """NaN for anything negative."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.log()


class Best(nn.Module):
    """Puts out numbers of classes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.argmax(-1)


def model(*last: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), *last)


@pytest.mark.parametrize(
    ("made", "inputs", "message"),
    [
        (model(Log()), INPUTS, "outputs of Sequential are not finite: nothing can be verified"),
        (model(Best()), INPUTS, "Sequential returns no floating tensor to compare"),
        (model(), None, "inputs must be given: nothing is known of what Sequential takes"),
    ],
)
def test_what_cannot_be_compared(made: nn.Module, inputs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reference(made, inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"surgery": True, "inputs": INPUTS}, "the outputs of Sequential are not finite"),
        ({"saliency": "wanda", "calibration": [INPUTS]}, "the input of '2' is not finite"),
    ],
)
def test_activations_that_are_not_finite_are_found_before_the_search(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gyroperm.models import solutions

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it has searched")

    monkeypatch.setattr(solutions, "solve", never)
    made = model(Log(), nn.Linear(8, 4))
    before = state_of(made)
    with pytest.raises(ValueError, match=re.escape(message)):
        sparsify(made, "2:4", progress=False, **options)
    assert_same_state(made, before)
