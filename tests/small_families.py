"""Small models of each family, and what tests do to any model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from gyroperm.models import CouplingGraph

_TOKENS = {"vocab_size": 40, "pad_token_id": 0}
_PLAIN = {
    **_TOKENS,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
_GROUPED = {**_PLAIN, "num_key_value_heads": 2}
_EXPERTS = {"num_experts_per_tok": 2, "head_dim": 8}
_QWEN_EXPERTS = {**_EXPERTS, "num_experts": 4, "moe_intermediate_size": 12}
_PICTURES = {
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 8,
    "patch_size": 4,
    "encoder_stride": 4,
    "num_labels": 3,
}

#: Small configurations, by the name that Hugging Face gives the family's classes.
SMALL: dict[str, dict[str, Any]] = {
    "Llama": {**_GROUPED, "head_dim": 8},
    "Mistral": {**_GROUPED, "head_dim": 8},
    "Qwen2": _GROUPED,
    "Qwen3": {**_GROUPED, "head_dim": 8},
    "Mixtral": {**_GROUPED, **_EXPERTS, "num_local_experts": 4},
    "Qwen2Moe": {
        **_GROUPED,
        **_QWEN_EXPERTS,
        "shared_expert_intermediate_size": 14,
        "decoder_sparse_step": 2,
    },
    "Qwen3Moe": {**_GROUPED, **_QWEN_EXPERTS},
    "Phi3": {**_GROUPED, "hidden_size": 32},
    "GPT2": {**_TOKENS, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 32},
    "GPTNeoX": {**_PLAIN, "hidden_size": 32, "rotary_pct": 0.5},
    "Bloom": {**_TOKENS, "hidden_size": 24, "n_layer": 2, "n_head": 4},
    "T5": {
        **_TOKENS,
        "d_model": 24,
        "d_kv": 8,
        "d_ff": 20,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "decoder_start_token_id": 0,
    },
    "Bert": _PLAIN,
    "Roberta": _PLAIN,
    "XLMRoberta": _PLAIN,
    "DistilBert": {
        **_TOKENS,
        "dim": 24,
        "hidden_dim": 20,
        "n_layers": 2,
        "n_heads": 4,
        "max_position_embeddings": 32,
    },
    "ViT": _PICTURES,
    "DeiT": _PICTURES,
    "Yolos": {**_PICTURES, "image_size": [8, 8], "num_detection_tokens": 3},
    "Swin": {
        "image_size": 32,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [2, 1, 2],
        "num_heads": [2, 4, 4],
        "window_size": 4,
        "mlp_ratio": 2.0,
        "encoder_stride": 8,
        "num_labels": 3,
    },
    "ResNet": {
        "embedding_size": 8,
        "hidden_sizes": [8, 16, 12],
        "depths": [2, 2, 1],
        "num_labels": 3,
        "layer_type": "basic",
    },
    "MobileNetV2": {
        "num_labels": 3,
        "depth_multiplier": 0.25,
        "image_size": 32,
        "min_depth": 4,
        "depth_divisible_by": 4,
    },
}


def new_model(family: str, kind: str = "Model", **changes: Any) -> nn.Module:
    """A small model in evaluation mode as its library initialises it."""
    import transformers

    config = getattr(transformers, family + "Config")(**{**SMALL[family], **changes})
    made: nn.Module = getattr(transformers, family + kind)(config)
    return made.eval()


def small_model(family: str, kind: str = "Model", *, seed: int = 0, **changes: Any) -> nn.Module:
    """The same with everything drawn, such as ``small_model("Llama", "ForCausalLM")``."""
    return redrawn(new_model(family, kind, **changes), seed)


def redrawn(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and running statistic drawn anew: norms too begin as ones and zeros."""
    generator = torch.Generator().manual_seed(seed)
    running = [(n, b) for n, b in model.named_buffers() if "running" in n]
    for name, tensor in [*model.named_parameters(), *running]:
        if name.endswith("running_var"):
            drawn = torch.rand(tensor.shape, generator=generator) + 0.5
        elif tensor.dim() > 1:
            drawn = torch.randn(tensor.shape, generator=generator) * 0.3
        else:
            drawn = torch.randn(tensor.shape, generator=generator) * 0.5
            drawn += name.endswith("weight")
        tensor.data.copy_(drawn)
    return model


def random_orders(graph: CouplingGraph, seed: int = 0) -> dict[str, np.ndarray]:
    """A random order for every site that may move."""
    rng = np.random.default_rng(seed)
    return {site.name: rng.permutation(site.size) for site in graph.free}


def rolled_orders(graph: CouplingGraph) -> dict[str, np.ndarray]:
    """An order for every site that may move, in which nothing stays where it is."""
    return {site.name: np.roll(np.arange(site.size), 1) for site in graph.free}


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all that a model holds, buffers that are not saved too."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor.detach().clone() for name, tensor in named.items()}


def assert_same_state(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    """The model holds what it did, bit by bit."""
    after = state_of(model)
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
