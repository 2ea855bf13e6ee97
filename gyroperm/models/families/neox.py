"""GPT-NeoX and Pythia, BLOOM: queries, keys and values fused head by head."""

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

_ALIBI = "ALiBi's slopes are computed from the head's number"


def neox(model: nn.Module) -> Spec:
    """The spec of a GPT-NeoX: dimensions of a head behind the rotary ones may be reordered.

    Parameters
    ----------
    model : nn.Module
        Of a Hugging Face class with ``attention.query_key_value`` and ``embed_in``.
    """
    base = prefix_of(model, "embed_in.weight")
    layer = base + "layers.{i}."
    rotary = rotary_dimensions(model.config, head_sizes(model.config)["hd"])
    return _spec(
        model,
        layer,
        layer + "attention",
        base + "embed_in",
        norm(base + "final_layer_norm"),
        rotary=rotary,
    )


def bloom(model: nn.Module) -> Spec:
    """The spec of a BLOOM, whose heads must stay in their places.

    Parameters
    ----------
    model : nn.Module
        Of a Hugging Face class with ``self_attention.query_key_value`` and ``word_embeddings``.
    """
    base = prefix_of(model, "word_embeddings.weight")
    layer = base + "h.{i}."
    return _spec(
        model,
        layer,
        layer + "self_attention",
        base + "word_embeddings",
        {**norm(base + "word_embeddings_layernorm"), **norm(base + "ln_f")},
        heads_fixed=_ALIBI,
    )


def _spec(
    model: nn.Module, layer: str, own: str, embedding: str, norms: Axes, **constraints: Any
) -> Spec:
    config: Any = model.config
    axes = {
        **rows(own + ".query_key_value", "kv (2 qd + vd)"),
        **columns(own + ".dense", "kv vd"),
    }
    mlp = layer + "mlp.dense_"
    readers = ("lm_head", "embed_out", "score", "classifier", "qa_outputs")
    residual: Axes = {
        embedding + ".weight[1]": "d",
        **norms,
        **norm(layer + "input_layernorm"),
        **columns(own + ".query_key_value", "d"),
        **rows(own + ".dense", "d"),
        **norm(layer + "post_attention_layernorm"),
        **columns(mlp + "h_to_4h", "d"),
        **rows(mlp + "4h_to_h", "d"),
    }
    for one in readers:
        residual |= optional(columns(one, "d"))
    return Spec(
        config.model_type,
        (
            *attention(own, axes, head_sizes(config), **constraints),
            ffn(layer + "ffn", [mlp + "h_to_4h"], mlp + "4h_to_h"),
            Coupled("residual", residual, order="d"),
        ),
        hidden_states_leave(),
        {
            embedding + ".weight[0]": RIM["tokens"],
            **{f"{one}.weight[0]": RIM["tokens"] for one in readers[:2]},
            **{f"{one}.weight[0]": RIM["labels"] for one in readers[2:]},
        },
    )
