"""Phi-3: a rotary decoder whose queries, keys and values, and gate and up, are fused."""

from __future__ import annotations

from typing import Any

from torch import nn

from gyroperm.models.families.parts import (
    RIM,
    Axes,
    attention,
    columns,
    ffn,
    head_sizes,
    hidden_states_leave,
    norm,
    optional,
    rotary_dimensions,
    rows,
)
from gyroperm.models.families.prefix import prefix_of
from gyroperm.models.spec import Coupled, Spec


def spec(model: nn.Module) -> Spec:
    """The spec of a decoder, with or without a head.

    Parameters
    ----------
    model : nn.Module
        Of a Hugging Face class with ``self_attn.qkv_proj`` and ``mlp.gate_up_proj``.
    """
    config: Any = model.config
    base = prefix_of(model, "embed_tokens.weight")
    layer = base + "layers.{i}."
    own, mlp = layer + "self_attn", layer + "mlp"
    sizes = head_sizes(config)
    axes = {
        **rows(own + ".qkv_proj", "kv rep qd + kv qd + kv vd"),
        **columns(own + ".o_proj", "kv rep vd"),
    }
    residual: Axes = {
        base + "embed_tokens.weight[1]": "d",
        **norm(base + "norm"),
        **norm(layer + "input_layernorm"),
        **norm(layer + "post_attention_layernorm"),
        **columns(own + ".qkv_proj", "d"),
        **rows(own + ".o_proj", "d"),
        **columns(mlp + ".gate_up_proj", "d"),
        **rows(mlp + ".down_proj", "d"),
        **optional(columns("lm_head", "d") | columns("score", "d")),
    }
    return Spec(
        config.model_type,
        (
            *attention(own, axes, sizes, rotary=rotary_dimensions(config, sizes["hd"])),
            ffn(layer + "ffn", [mlp + ".gate_up_proj"], mlp + ".down_proj", "2 c"),
            Coupled("residual", residual, order="d"),
        ),
        hidden_states_leave(),
        {
            base + "embed_tokens.weight[0]": RIM["tokens"],
            "lm_head.weight[0]": RIM["tokens"],
            "score.weight[0]": RIM["labels"],
        },
    )
