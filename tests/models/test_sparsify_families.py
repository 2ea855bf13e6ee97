"""Surgery on models of every make: the function kept, then exactly 2:4 where kernels look."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from gyroperm import MaxRounds
from gyroperm.models import permute, reference, sparsify, verify
from gyroperm.models.layers import prunable_layers
from small_families import SMALL, redrawn, small_model
from small_models import Inverted, Residual, kept_in_groups

TRACED = "traced by torch.export"


def resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        Residual(8, 8),
        Residual(8, 16),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 12),
        nn.ReLU(),
        nn.Linear(12, 4),
    )


def mobilenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 1),
        Inverted(8, 24),
        Inverted(8, 24),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


class Shared(nn.Module):
    """A weight that reads its own output, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.body, self.again = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.again.weight = self.body.weight
        self.frozen = nn.Linear(16, 4).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(self.first(x).relu()).relu()
        return self.frozen(self.again(x).relu())


def electra() -> nn.Module:
    """Of a family without a spec, and of those whose hidden states leave."""
    from transformers import ElectraConfig, ElectraModel

    return ElectraModel(ElectraConfig(**SMALL["Bert"], embedding_size=24))


PICTURES = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1))

#: The model, its inputs, where its coupling comes from, and sites that must be searched.
MODELS: dict[str, tuple[Any, Any, str, set[str]]] = {
    "resnet by hand": (resnet, PICTURES, TRACED, {"0", "1.conv1", "2.conv1", "2.conv2", "5"}),
    "mobilenet by hand": (mobilenet, PICTURES, TRACED, {"0", "1.expand", "2.expand"}),
    "shared and frozen": (Shared, torch.ones(1, 8), TRACED, {"first"}),
    "Electra": (electra, None, TRACED, {"encoder.layer.0.intermediate.dense"}),
    "Llama": (
        lambda: small_model("Llama", "ForCausalLM"),
        None,
        "llama",
        {"model.layers.1.self_attn.values[1]", "model.layers.0.ffn", "residual"},
    ),
    "GPT2": (
        lambda: small_model("GPT2", "LMHeadModel", n_head=3),
        None,
        "gpt2",
        {"transformer.h.1.attn.values[2]", "transformer.h.0.ffn", "residual"},
    ),
    "ViT": (
        lambda: small_model("ViT", "ForImageClassification", num_attention_heads=3),
        None,
        "vit",
        {"residual"},
    ),
    "ResNet": (lambda: small_model("ResNet", "ForImageClassification"), None, "resnet", set()),
}


@pytest.mark.parametrize("name", MODELS)
def test_surgery(name: str) -> None:
    make, inputs, source, sites = MODELS[name]
    torch.manual_seed(0)
    dense = redrawn(make()).eval()
    model, reordered = copy.deepcopy(dense), copy.deepcopy(dense)
    options: dict[str, Any] = {"stop": MaxRounds(10), "threads": 1, "progress": False}
    report = sparsify(model, "2:4", surgery=True, inputs=inputs, **options)

    assert report.graph is not None and report.graph.source == source
    assert sites <= {site.name for site in report.sites} and report.sites
    assert report.verified is not None and report.verified.same
    permute(reordered, report.orders, graph=report.graph, verified=False)
    assert verify(reordered, reference(dense, inputs)).same

    layers = prunable_layers(model)
    assert report.masks.keys() | report.skipped.keys() >= layers.keys()
    state = reordered.state_dict()
    for row in report.layers:
        mask = report.masks[row.name]
        groups = layers[row.name].oriented(mask)
        assert (kept_in_groups(groups) == 2).all()
        assert torch.equal(model.get_parameter(row.name), torch.where(mask, state[row.name], 0))
        assert (row.weights, row.kept) == (mask.numel(), mask.numel() // 2)
        assert row.frozen != model.get_parameter(row.name).requires_grad
        assert 0.5 < row.identity / row.unstructured <= 1 and row.retained <= row.unstructured
        # The saliency is the magnitude, so what is kept is what is left.
        left = float(model.get_parameter(row.name).detach().abs().double().sum())
        assert left == pytest.approx(row.retained, rel=1e-6)
    assert report.totals["retained"] > report.totals["identity"]
    assert all(site.retained >= site.identity for site in report.sites)
    for tensor, values in model.named_parameters():
        assert tensor in report.masks or torch.equal(values, state[tensor])
