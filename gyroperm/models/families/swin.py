"""Swin: a residual a stage, merged patch by patch, and a table of relative positions a block."""

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
    norm,
    optional,
    rows,
    separate_attention,
)
from gyroperm.models.families.prefix import prefix_of
from gyroperm.models.spec import Coupled, Leaving, Spec

_TABLE = "relative_position_bias.relative_position_bias_table"


def spec(model: nn.Module) -> Spec:
    """The spec of an encoder, with or without a head.

    Parameters
    ----------
    model : nn.Module
        Of a Hugging Face class with ``encoder.layers.0.blocks``.

    Raises
    ------
    ValueError
        If the model is a backbone, whose norms of each stage are not described.
    """
    config: Any = model.config
    if has(model, "hidden_states_norms.stage1.weight"):
        raise ValueError("the spec of swin does not describe backbones; give one as graph=")
    base = prefix_of(model, "embeddings.patch_embeddings.projection.weight")
    embeddings, last = base + "embeddings.", len(config.depths) - 1
    coupled: list[Coupled] = []
    for s, heads in enumerate(config.num_heads):
        width = config.embed_dim * 2**s
        block = f"{base}encoder.layers.{s}.blocks.{{i}}."
        own = block + "attention"
        axes = separate_attention(own, "q_proj", "k_proj", "v_proj", "o_proj")
        sizes = {"kv": heads, "rep": 1, "hd": width // heads}
        coupled += attention(own, {**axes, f"{own}.{_TABLE}[1]": "kv"}, sizes)
        coupled.append(ffn(block + "ffn", [block + "mlp.fc1"], block + "mlp.fc2"))
        residual = _blocks(block)
        if s == 0:
            residual |= {
                **rows(embeddings + "patch_embeddings.projection", "d"),
                **norm(embeddings + "norm"),
                embeddings + "position_embeddings[2]?": "d",
                embeddings + "mask_token[2]?": "d",
            }
        else:
            residual |= rows(f"{base}encoder.layers.{s - 1}.downsample.reduction", "d")
        if s < last:
            merging = f"{base}encoder.layers.{s}.downsample."
            residual |= {**norm(merging + "norm", "4 d"), **columns(merging + "reduction", "4 d")}
        else:
            heading = columns("classifier", "d") | columns("decoder.0", "d")
            residual |= {**norm(base + "layernorm"), **optional(heading)}
        coupled.append(Coupled(f"residual.{s}", residual, order="d"))
    return Spec(
        config.model_type,
        tuple(coupled),
        _leaving(last),
        {
            embeddings + "patch_embeddings.projection.weight[1]": RIM["pixels"],
            embeddings + "position_embeddings[1]": RIM["positions"],
            f"{base}encoder.layers.{{s}}.blocks.{{i}}.attention.{_TABLE}[0]": RIM["buckets"],
            "classifier.weight[0]": RIM["labels"],
            "decoder.0.weight[0]": RIM["pixels"],
        },
    )


def _blocks(block: str) -> Axes:
    """How the blocks of a stage read and write its residual."""
    axes: Axes = {**norm(block + "layernorm_before"), **norm(block + "layernorm_after")}
    for one in ("attention.q_proj", "attention.k_proj", "attention.v_proj", "mlp.fc1"):
        axes |= columns(block + one, "d")
    return {**axes, **rows(block + "attention.o_proj", "d"), **rows(block + "mlp.fc2", "d")}


def _leaving(last: int) -> tuple[Leaving, ...]:
    """A stage's state leaves merged, in the order of the next; as a sequence and as a map."""
    stages = [0, *(min(s + 1, last) for s in range(last + 1))]
    return (
        *(Leaving(field, f"residual.{last}") for field in ("last_hidden_state", "pooler_output")),
        *(Leaving(f"hidden_states.{k}", f"residual.{s}") for k, s in enumerate(stages)),
        *(Leaving(f"reshaped_hidden_states.{k}", f"residual.{s}", 1) for k, s in enumerate(stages)),
    )
