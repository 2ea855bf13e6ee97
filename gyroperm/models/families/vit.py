"""ViT, DeiT and YOLOS: pre-norm encoders of patches."""

from __future__ import annotations

from collections.abc import Iterator
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
_TOKENS = ("cls_token", "distillation_token", "mask_token", "detection_tokens")
_DETECTORS = ("class_labels_classifier", "bbox_predictor")


def spec(model: nn.Module) -> Spec:
    """The spec of an encoder, with or without a head.

    Parameters
    ----------
    model : nn.Module
        Of a Hugging Face class with ``embeddings.patch_embeddings`` and ``layers.0.attention``,
        or, as in YOLOS and before version 5, ``encoder.layer.0.attention``.
    """
    config: Any = model.config
    base = prefix_of(model, "embeddings.patch_embeddings.projection.weight")
    layer, own, qkvo, up, down = _names(model, base)
    patches = base + "embeddings.patch_embeddings.projection"
    pooler = base + "pooler.dense"
    middle = base + "encoder.interpolation.mid_position_embeddings"
    residual: Axes = {
        **{f"{base}embeddings.{one}[2]?": "d" for one in (*_TOKENS, "position_embeddings")},
        f"{middle}[3]?": "d",
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
    first = [f"{one}.layers.0" for one in _DETECTORS]
    for one in (pooler, "decoder.0", *first, *_CLASSIFIERS):
        residual |= optional(columns(one, "d"))
    pooled = has(model, pooler + ".weight")
    return Spec(
        config.model_type,
        (
            *attention(own, separate_attention(own, *qkvo), head_sizes(config)),
            ffn(layer + "ffn", [layer + up], layer + down),
            *([Coupled("pooled", rows(pooler, "c"), order="c")] if pooled else []),
            *(site for one in _DETECTORS for site in _detector(model, one)),
            Coupled("residual", residual, order="d"),
        ),
        (*hidden_states_leave(), *([Leaving("pooler_output", "pooled")] if pooled else [])),
        {
            f"{base}embeddings.position_embeddings[1]": RIM["positions"],
            patches + ".weight[1]": RIM["pixels"],
            "decoder.0.weight[0]": RIM["pixels"],
            f"{base}embeddings.detection_tokens[1]": RIM["positions"],
            f"{middle}[0]": RIM["layers"],
            f"{middle}[2]": RIM["positions"],
            **{f"{one}.layers.2.weight[0]": RIM["labels"] for one in _DETECTORS},
            **{f"{one}.weight[0]": RIM["labels"] for one in _CLASSIFIERS},
        },
    )


def _detector(model: nn.Module, head: str) -> Iterator[Coupled]:
    """The hidden channels of a head of three layers."""
    if has(model, head + ".layers.2.weight"):
        for j in range(2):
            yield ffn(f"{head}.{j}", [f"{head}.layers.{j}"], f"{head}.layers.{j + 1}")


def _names(model: nn.Module, base: str) -> tuple[str, str, tuple[str, str, str, str], str, str]:
    """The layer, its attention, the maps of that, and those of the feed-forward net."""
    if has(model, "layers.0.mlp.fc1.weight"):
        layer = base + "layers.{i}."
        qkvo = ("q_proj", "k_proj", "v_proj", "o_proj")
        return layer, layer + "attention", qkvo, "mlp.fc1", "mlp.fc2"
    layer = base + "encoder.layer.{i}."
    within = ("attention.query", "attention.key", "attention.value", "output.dense")
    return layer, layer + "attention", within, "intermediate.dense", "output.dense"
