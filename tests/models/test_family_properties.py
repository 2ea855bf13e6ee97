"""Architectures and orders drawn at random: the function stays, and every order is undone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gyroperm.models import coupling, permute
from small_families import assert_same_state, small_model, state_of

SOME = settings(max_examples=4)


@st.composite
def heads(draw: st.DrawFn) -> dict[str, int]:
    """Heads, key-value heads and dimensions of an attention, in any width."""
    kv = draw(st.sampled_from([1, 2, 3]))
    count = kv * draw(st.sampled_from([1, 2, 4]))
    return {
        "num_key_value_heads": kv,
        "num_attention_heads": count,
        "head_dim": 2 * draw(st.integers(1, 3)),
        "hidden_size": count * draw(st.integers(1, 7)),
    }


@st.composite
def plain_heads(draw: st.DrawFn, *, least: int = 1) -> dict[str, int]:
    """Heads that share the width."""
    count = draw(st.integers(1, 4))
    return {
        "num_attention_heads": count,
        "hidden_size": count * 2 * draw(st.integers(least, 4)),
    }


def _sizes(draw: st.DrawFn) -> dict[str, int]:
    return {
        "intermediate_size": draw(st.integers(1, 13)),
        "num_hidden_layers": draw(st.integers(1, 3)),
    }


def _tied(draw: st.DrawFn) -> dict[str, bool]:
    return {"tie_word_embeddings": draw(st.booleans())}


@st.composite
def llama(draw: st.DrawFn) -> dict[str, Any]:
    biases = {"attention_bias": draw(st.booleans()), "mlp_bias": draw(st.booleans())}
    return {**draw(heads()), **_sizes(draw), **_tied(draw), **biases}


@st.composite
def qwen3(draw: st.DrawFn) -> dict[str, Any]:
    return {**draw(heads()), **_sizes(draw), **_tied(draw), "attention_bias": draw(st.booleans())}


@st.composite
def experts(draw: st.DrawFn) -> dict[str, Any]:
    count = draw(st.integers(2, 5))
    routed = {"num_experts_per_tok": draw(st.integers(1, count))}
    # The product over experts wants rows of whole 16 bytes.
    wide = {name: 4 * draw(st.integers(1, 4)) for name in ("hidden_size", "moe_intermediate_size")}
    own = {"num_experts": count, "decoder_sparse_step": draw(st.integers(1, 2))}
    return {**draw(heads()), **_sizes(draw), **_tied(draw), **routed, **own, **wide}


@st.composite
def phi3(draw: st.DrawFn) -> dict[str, Any]:
    kv = draw(st.sampled_from([1, 2]))
    count = kv * draw(st.sampled_from([1, 2, 4]))
    part = {"partial_rotary_factor": draw(st.sampled_from([0.5, 1.0]))}
    own = {"num_key_value_heads": kv, "num_attention_heads": count, "hidden_size": 4 * count}
    return {**own, **_sizes(draw), **_tied(draw), **part}


@st.composite
def gpt2(draw: st.DrawFn) -> dict[str, Any]:
    own = draw(plain_heads())
    return {
        "n_head": own["num_attention_heads"],
        "n_embd": own["hidden_size"],
        "n_layer": draw(st.integers(1, 3)),
        "n_inner": draw(st.integers(1, 13)),
        **_tied(draw),
    }


@st.composite
def neox(draw: st.DrawFn) -> dict[str, Any]:
    part = {"rotary_pct": draw(st.sampled_from([0.5, 1.0]))}
    bias = {"attention_bias": draw(st.booleans())}
    parallel = {"use_parallel_residual": draw(st.booleans())}
    own = draw(plain_heads(least=2))
    return {**own, **_sizes(draw), **part, **bias, **parallel}


@st.composite
def bloom(draw: st.DrawFn) -> dict[str, Any]:
    own = draw(plain_heads())
    after = {"apply_residual_connection_post_layernorm": draw(st.booleans())}
    return {
        "n_head": own["num_attention_heads"],
        "hidden_size": own["hidden_size"],
        "n_layer": draw(st.integers(1, 3)),
        **_tied(draw),
        **after,
    }


@st.composite
def t5(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "d_model": draw(st.integers(3, 14)),
        "d_kv": draw(st.integers(1, 5)),
        "d_ff": draw(st.integers(1, 9)),
        "num_heads": draw(st.integers(1, 4)),
        "num_layers": draw(st.integers(1, 3)),
        "num_decoder_layers": draw(st.integers(1, 3)),
        "feed_forward_proj": draw(st.sampled_from(["relu", "gated-gelu"])),
        **_tied(draw),
    }


@st.composite
def encoder(draw: st.DrawFn) -> dict[str, Any]:
    return {**draw(plain_heads()), **_sizes(draw), **_tied(draw)}


@st.composite
def distilbert(draw: st.DrawFn) -> dict[str, Any]:
    own = draw(plain_heads())
    return {
        "n_heads": own["num_attention_heads"],
        "dim": own["hidden_size"],
        "hidden_dim": draw(st.integers(1, 13)),
        "n_layers": draw(st.integers(1, 3)),
    }


@st.composite
def pictures(draw: st.DrawFn) -> dict[str, Any]:
    return {**draw(plain_heads()), **_sizes(draw), "qkv_bias": draw(st.booleans())}


@st.composite
def swin(draw: st.DrawFn) -> dict[str, Any]:
    stages = draw(st.integers(1, 3))
    return {
        "embed_dim": 4 * draw(st.integers(1, 3)),
        "depths": [draw(st.integers(1, 2)) for _ in range(stages)],
        "num_heads": [draw(st.sampled_from([1, 2, 4])) for _ in range(stages)],
        "qkv_bias": draw(st.booleans()),
        "use_absolute_embeddings": draw(st.booleans()),
    }


@st.composite
def resnet(draw: st.DrawFn) -> dict[str, Any]:
    stages = draw(st.integers(1, 3))
    width = st.integers(1, 4).map(lambda quarter: 4 * quarter)
    return {
        "embedding_size": draw(width),
        "hidden_sizes": [draw(width) for _ in range(stages)],
        "depths": [draw(st.integers(1, 3)) for _ in range(stages)],
        "layer_type": draw(st.sampled_from(["basic", "bottleneck"])),
        "downsample_in_first_stage": draw(st.booleans()),
        "downsample_in_bottleneck": draw(st.booleans()),
    }


@st.composite
def mobilenet(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "depth_multiplier": draw(st.sampled_from([0.1, 0.2, 0.3])),
        "expand_ratio": draw(st.sampled_from([1.0, 2.0])),
        "first_layer_is_expansion": draw(st.booleans()),
        "finegrained_output": draw(st.booleans()),
        "tf_padding": draw(st.booleans()),
    }


FAMILIES = [
    ("Llama", "ForCausalLM", llama()),
    ("Mistral", "ForCausalLM", heads()),
    ("Qwen2", "Model", plain_heads()),
    ("Qwen3", "ForCausalLM", qwen3()),
    ("Qwen3Moe", "ForCausalLM", experts()),
    ("Phi3", "ForCausalLM", phi3()),
    ("GPT2", "LMHeadModel", gpt2()),
    ("GPTNeoX", "ForCausalLM", neox()),
    ("Bloom", "ForCausalLM", bloom()),
    ("T5", "ForConditionalGeneration", t5()),
    ("Bert", "ForMaskedLM", encoder()),
    ("Roberta", "ForSequenceClassification", encoder()),
    ("DistilBert", "ForSequenceClassification", distilbert()),
    ("ViT", "ForImageClassification", pictures()),
    ("DeiT", "Model", pictures()),
    ("Yolos", "Model", pictures()),
    ("Swin", "Model", swin()),
    ("ResNet", "ForImageClassification", resnet()),
    ("MobileNetV2", "ForImageClassification", mobilenet()),
]


@pytest.mark.parametrize(("family", "kind", "changes"), FAMILIES, ids=[f for f, *_ in FAMILIES])
@given(data=st.data())
@SOME
def test_any_architecture_and_any_orders(
    family: str, kind: str, changes: st.SearchStrategy[dict[str, Any]], data: st.DataObject
) -> None:
    drawn = data.draw(changes, "architecture")
    if family == "Qwen2":
        drawn["num_key_value_heads"] = 1
    seed = data.draw(st.integers(0, 99), "seed")
    model = small_model(family, kind, seed=seed, **drawn)
    graph = coupling(model)
    assert "not described by the spec" not in graph.skipped.values()
    rng = np.random.default_rng(seed)
    orders = {site.name: rng.permutation(site.size) for site in graph.free}
    before = state_of(model)
    found = permute(model, orders)
    assert found.same
    assert found.error <= (1e-10 if found.dtype == torch.float64 else 1e-4)
    for name, order in reversed(orders.items()):
        permute(model, {name: np.argsort(order)}, graph=graph, verified=False)
    assert_same_state(model, before)
