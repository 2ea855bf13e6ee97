"""ViT and DeiT: pre-norm encoders of patches."""

from __future__ import annotations

from typing import Any

from torch import nn

from gyroperm.models.families.parts import (
    RIM,
    Axes,
    attention,
    columns,
    ffn,
    has,
    head_sizes,
    hidden_states_leave,
    norm,
    optional,
    rows,
    separate_attention,
)
from gyroperm.models.families.prefix import prefix_of
from gyroperm.models.spec import Coupled, Leaving, Spec

_CLASSIFIERS = ("classifier", "cls_classifier", "distillation_classifier")
_TOKENS = ("cls_token", "distillation_token", "mask_token")


def spec(model: nn.Module) -> Spec:
    """The spec of an encoder, with or without a head.

    Parameters
    ----------
    model : nn.Module
        Of a Hugging Face class with ``embeddings.patch_embeddings`` and, since version 5,
        ``layers.0.attention.q_proj``; before that ``encoder.layer.0.attention``.
    """
    config: Any = model.config
    base = prefix_of(model, "embeddings.patch_embeddings.projection.weight")
    layer, own, qkvo, up, down = _names(model, base)
    patches = base + "embeddings.patch_embeddings.projection"
    pooler = base + "pooler.dense"
    residual: Axes = {
        **{f"{base}embeddings.{one}[2]?": "d" for one in (*_TOKENS, "position_embeddings")},
        **rows(patches, "d"),
        **norm(layer + "layernorm_before"),
        **rows(f"{own}.{qkvo[3]}", "d"),
        **norm(layer + "layernorm_after"),
        **columns(layer + up, "d"),
        **rows(layer + down, "d"),
        **norm(base + "layernorm"),
    }
    for one in qkvo[:3]:
        residual |= columns(f"{own}.{one}", "d")
    for one in (pooler, "decoder.0", *_CLASSIFIERS):
        residual |= optional(columns(one, "d"))
    pooled = has(model, pooler + ".weight")
    return Spec(
        config.model_type,
        (
            *attention(own, separate_attention(own, *qkvo), head_sizes(config)),
            ffn(layer + "ffn", [layer + up], layer + down),
            *([Coupled("pooled", rows(pooler, "c"), order="c")] if pooled else []),
            Coupled("residual", residual, order="d"),
        ),
        (*hidden_states_leave(), *([Leaving("pooler_output", "pooled")] if pooled else [])),
        {
            f"{base}embeddings.position_embeddings[1]": RIM["positions"],
            patches + ".weight[1]": RIM["pixels"],
            "decoder.0.weight[0]": RIM["pixels"],
            **{f"{one}.weight[0]": RIM["labels"] for one in _CLASSIFIERS},
        },
    )


def _names(model: nn.Module, base: str) -> tuple[str, str, tuple[str, str, str, str], str, str]:
    """The layer, its attention, the maps of that, and those of the feed-forward net."""
    if has(model, "layers.0.mlp.fc1.weight"):
        layer = base + "layers.{i}."
        qkvo = ("q_proj", "k_proj", "v_proj", "o_proj")
        return layer, layer + "attention", qkvo, "mlp.fc1", "mlp.fc2"
    layer = base + "encoder.layer.{i}."
    within = ("attention.query", "attention.key", "attention.value", "output.dense")
    return layer, layer + "attention", within, "intermediate.dense", "output.dense"
