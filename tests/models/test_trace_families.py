"""Tracing Hugging Face classes, against what is known of their families."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gyroperm.models import CouplingGraph, coupling, permute
from gyroperm.models.trace import trace
from small_families import random_orders, small_model


def checked(model: nn.Module, inputs: Any = None, tolerance: float = 1e-10) -> CouplingGraph:
    graph = trace(model, inputs)
    assert graph.source == "traced by torch.export"
    verified = permute(model, random_orders(graph), graph=graph, inputs=inputs)
    assert verified is not None and verified.error < tolerance
    return graph


def axes_of(graph: CouplingGraph, *, free: bool = True) -> dict[frozenset[str], tuple[int, ...]]:
    """The sizes of the sites by the axes that they reorder, with the positions of each element."""
    found: dict[frozenset[str], tuple[int, ...]] = {}
    for site in graph.free if free else graph.sites:
        key = frozenset(f"{axis} {axis.members.tolist()}" for axis in site.axes)
        found[key] = (site.size,)
    return found


@pytest.mark.parametrize("kind", ["Model", "ForSequenceClassification"])
def test_bert_agrees_with_its_spec(kind: str) -> None:
    model = small_model("Bert", kind, num_attention_heads=3, intermediate_size=32)
    graph = checked(model)
    spec = coupling(model)
    traced, described = axes_of(graph), axes_of(spec)
    leaving = {one.site for one in spec.leaving}
    inner = {
        frozenset(f"{axis} {axis.members.tolist()}" for axis in site.axes)
        for site in spec.free
        if site.constraint != "whole blocks" and site.name not in leaving
    }
    assert inner <= traced.keys()
    assert sorted(s.size for s in graph.free if s.constraint == "within block") == [8] * 12
    assert sorted(s.size for s in graph.free if s.family.endswith("intermediate.dense")) == [32] * 2
    residual = next(key for key in described if any("word_embeddings" in axis for axis in key))
    if kind == "Model":
        # Its outputs are the residual and what is pooled, so that tracing leaves them alone.
        assert traced.keys() == inner
        site = graph.by_name["embeddings.LayerNorm"]
        assert site.fixed and site.reason == "leaves the model as its output"
    else:
        assert residual in traced


def test_resnet() -> None:
    sizes = {"hidden_sizes": [16, 32], "depths": [2, 2], "layer_type": "bottleneck"}
    model = small_model("ResNet", "ForImageClassification", **sizes)
    graph = checked(model, {"pixel_values": torch.randn(2, 3, 32, 32)})
    # Stem, two streams, and two inner sites for each of the four bottlenecks.
    assert sorted(s.size for s in graph.free) == sorted([8, 16, 32, *[4] * 4, *[8] * 4])
    assert all(s.constraint == "free" for s in graph.free)
    assert {s.reason.split(" in ")[0] for s in graph.sites if s.fixed} == {
        "meets the input pixel_values",
        "leaves the model as its output",
    }


def test_mobilenet() -> None:
    graph = checked(small_model("MobileNetV2", "ForImageClassification", min_depth=8))
    expanded = graph.by_name["mobilenet_v2.layer.3.expand_1x1.convolution"]
    assert expanded.size == 48
    assert {axis.tensor.removesuffix(".weight") for axis in expanded.axes} >= {
        f"mobilenet_v2.layer.3.{name}"
        for name in (
            "expand_1x1.convolution",
            "conv_3x3.convolution",
            "conv_3x3.normalization",
            "reduce_1x1.convolution",
        )
    }
    assert len([s for s in graph.free if ".expand_1x1." in s.name]) == 16


def test_gpt2_with_weights_in_by_out() -> None:
    graph = checked(small_model("GPT2", "LMHeadModel", n_head=3, use_cache=False))
    by_axes = {frozenset(map(str, s.axes)): s.size for s in graph.free}
    layer = "transformer.h.0."
    ffn = {f"{layer}mlp.c_fc.weight[1]", f"{layer}mlp.c_fc.bias[0]", f"{layer}mlp.c_proj.weight[0]"}
    assert by_axes[frozenset(ffn)] == 96
    fused = [s for s in graph.free if f"{layer}attn.c_attn.weight[1]" in map(str, s.axes)]
    assert [(s.size, s.constraint) for s in fused] == [(8, "within block")] * 6
    # The head is the embedding: its storage has one name, and its words stay.
    assert any(s.size == 24 and "transformer.wte.weight[1]" in map(str, s.axes) for s in graph.free)


def test_llama_has_fixed_rotary_dimensions() -> None:
    heads = {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 4}
    # Its norms compute in float32.
    model = small_model("Llama", "ForCausalLM", **heads, use_cache=False)
    graph = checked(model, None, 1e-4)
    queries = "model.layers.1.self_attn.q_proj.weight[0]"
    turned = [s for s in graph.sites if queries in map(str, s.axes)]
    assert all(s.fixed and "meets a constant tensor in mul" in s.reason for s in turned)
    values = [s for s in graph.free if s.family == "model.layers.1.self_attn.v_proj"]
    assert [(s.size, [a.copies for a in s.axes]) for s in values] == [(4, [1, 2])] * 3
    assert graph.by_name["model.layers.0.mlp.gate_proj"].size == 20


def test_swin_with_windows_and_bias_tables() -> None:
    sizes = {"depths": [2, 1], "num_heads": [2, 4], "patch_size": 4, "mlp_ratio": 4.0}
    graph = checked(small_model("Swin", "ForImageClassification", **sizes))
    assert graph.by_name["swin.encoder.layers.0.blocks.0.mlp.fc1"].size == 32
    assert [s.size for s in graph.free if s.family.endswith("1.blocks.0.attention.v_proj")] == [
        4
    ] * 4


def test_experts_in_a_custom_kernel_are_fixed_and_named() -> None:
    model = small_model("Mixtral", "ForCausalLM", num_hidden_layers=1, use_cache=False)
    graph = checked(model, None, 1e-4)
    experts = [s for s in graph.sites if ".experts." in s.name]
    assert experts and all(s.fixed for s in experts)
    assert all("model.layers.0.mlp.experts" in s.reason for s in experts)
