"""GPT-2: learned positions, and linear maps whose weights are (in, out)."""

from __future__ import annotations

from typing import Any

from torch import nn

from gyroperm.models.families.parts import (
    RIM,
    Axes,
    attention,
    columns,
    head_sizes,
    hidden_states_leave,
    norm,
    optional,
    without_cross_attention,
)
from gyroperm.models.families.prefix import prefix_of
from gyroperm.models.spec import Coupled, Spec


def spec(model: nn.Module) -> Spec:
    """The spec of a decoder, with or without a head.

    Parameters
    ----------
    model : nn.Module
        Of a Hugging Face class with ``attn.c_attn`` and ``mlp.c_fc``.
    """
    config: Any = model.config
    without_cross_attention(config)
    base = prefix_of(model, "wte.weight")
    layer = base + "h.{i}."
    own = layer + "attn"
    axes = {**_out(own + ".c_attn", "2 kv qd + kv vd"), own + ".c_proj.weight[0]": "kv vd"}
    ffn = {**_out(layer + "mlp.c_fc", "c"), layer + "mlp.c_proj.weight[0]": "c"}
    readers = ("lm_head", "score", "classifier", "qa_outputs", "multiple_choice_head.summary")
    residual: Axes = {
        base + "wte.weight[1]": "d",
        base + "wpe.weight[1]": "d",
        **norm(layer + "ln_1"),
        own + ".c_attn.weight[0]": "d",
        **_out(own + ".c_proj", "d"),
        **norm(layer + "ln_2"),
        layer + "mlp.c_fc.weight[0]": "d",
        **_out(layer + "mlp.c_proj", "d"),
        **norm(base + "ln_f"),
    }
    for one in readers:
        residual |= optional(columns(one, "d"))
    return Spec(
        config.model_type,
        (
            *attention(own, axes, head_sizes(config)),
            Coupled(layer + "ffn", ffn, order="c"),
            Coupled("residual", residual, order="d"),
        ),
        hidden_states_leave(),
        {
            base + "wte.weight[0]": RIM["tokens"],
            base + "wpe.weight[0]": RIM["positions"],
            "lm_head.weight[0]": RIM["tokens"],
            **{f"{one}.weight[0]": RIM["labels"] for one in readers[1:]},
        },
    )


def _out(module: str, layout: str) -> Axes:
    """What a Conv1D puts out."""
    return {f"{module}.weight[1]": layout, f"{module}.bias[0]": layout}
