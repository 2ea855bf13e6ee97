"""T5: one table of relative positions for all layers, so that their heads move together."""

from __future__ import annotations

from typing import Any

from torch import nn

from gyroperm.models.families.parts import (
    RIM,
    Axes,
    attention,
    columns,
    factors,
    ffn,
    has,
    hidden_states_leave,
    norm,
    optional,
    rows,
    separate_attention,
)
from gyroperm.models.families.prefix import prefix_of
from gyroperm.models.spec import Coupled, Spec

_TABLE = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"


def spec(model: nn.Module) -> Spec:
    """The spec of an encoder, alone or with its decoder and a head.

    Parameters
    ----------
    model : nn.Module
        Of a Hugging Face class with ``encoder.block``.
    """
    config: Any = model.config
    base = prefix_of(model, "shared.weight")
    sizes = {"kv": config.num_heads, "rep": 1, "hd": config.d_kv}
    gated = has(model, "DenseReluDense.wi_0.weight")
    stacks = [base + "encoder."]
    if has(model, "EncDecAttention.q.weight"):
        stacks.append(base + "decoder.")
    residual: Axes = {base + "shared.weight[1]": "d"}
    coupled: list[Coupled] = []
    for stack in stacks:
        coupled += _stack(stack, sizes, gated, residual)
    for one in ("lm_head", "classifier", "qa_outputs", "classification_head.dense"):
        residual |= optional(columns(one, "d"))
    if has(model, "classification_head.dense.weight"):
        head = "classification_head."
        coupled.append(ffn("pooled", [head + "dense"], head + "out_proj"))
    return Spec(
        config.model_type,
        (*coupled, Coupled("residual", residual, order="d")),
        hidden_states_leave(
            "encoder_last_hidden_state", "encoder_hidden_states", "decoder_hidden_states"
        ),
        {
            base + "shared.weight[0]": RIM["tokens"],
            "lm_head.weight[0]": RIM["tokens"],
            **{
                f"{one}.weight[0]": RIM["labels"]
                for one in ("classifier", "qa_outputs", "classification_head.out_proj")
            },
            **{f"{stack}embed_tokens.weight[0]": RIM["tokens"] for stack in stacks},
            **{f"{stack}{_TABLE}[0]": RIM["buckets"] for stack in stacks},
        },
    )


def _stack(stack: str, sizes: dict[str, int], gated: bool, residual: Axes) -> list[Coupled]:
    """The sites of the encoder or the decoder; adds to the residual's axes."""
    decoder = stack.endswith("decoder.")
    layer = stack + "block.{i}.layer."
    net = f"{layer}{2 if decoder else 1}."
    own = separate_attention(layer + "0.SelfAttention", "q", "k", "v", "o")
    up = [net + "DenseReluDense.wi_0", net + "DenseReluDense.wi_1"]
    if not gated:
        up = [net + "DenseReluDense.wi"]
    sites = attention(layer + "0.SelfAttention", own, sizes, heads=False)
    sites.append(
        # Every layer adds the table of the first.
        Coupled(stack + "heads", {**own, f"{stack}{_TABLE}[1]": "kv"}, "kv", sizes=factors(sizes))
    )
    if decoder:
        cross = layer + "1.EncDecAttention"
        sites += attention(cross, separate_attention(cross, "q", "k", "v", "o"), sizes)
        residual |= _attention_residual(cross)
    sites.append(ffn(net + "ffn", up, net + "DenseReluDense.wo"))
    residual |= {stack + "embed_tokens.weight[1]?": "d", **norm(stack + "final_layer_norm")}
    residual |= _attention_residual(layer + "0.SelfAttention")
    residual |= {**norm(layer + "{j}.layer_norm"), **rows(net + "DenseReluDense.wo", "d")}
    for one in up:
        residual |= columns(one, "d")
    return sites


def _attention_residual(module: str) -> Axes:
    axes = rows(module + ".o", "d")
    for one in "qkv":
        axes |= columns(f"{module}.{one}", "d")
    return axes
