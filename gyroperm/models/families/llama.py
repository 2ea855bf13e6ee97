"""Llama, Mistral, Qwen, with or without experts: rotary decoders with grouped-query attention."""

from __future__ import annotations

import re
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

_STACK = "experts.gate_up_proj"


def spec(model: nn.Module) -> Spec:
    """The spec of a decoder, with or without a head.

    Parameters
    ----------
    model : nn.Module
        Of a Hugging Face class with ``self_attn.q_proj`` and ``mlp.gate_proj`` or ``mlp.experts``.
    """
    config: Any = model.config
    base = prefix_of(model, "embed_tokens.weight")
    layer = base + "layers.{i}."
    own, mlp = layer + "self_attn", layer + "mlp"
    # The auxiliary loss counts expert by expert over all layers.
    together = getattr(config, "output_router_logits", False)
    experts = "experts" if together else layer + "experts"
    sizes = head_sizes(config)
    axes = {
        **separate_attention(own, "q_proj", "k_proj", "v_proj", "o_proj"),
        **{f"{own}.{one}_norm.weight[0]?": "qd" for one in "qk"},
    }
    return Spec(
        config.model_type,
        (
            *attention(own, axes, sizes, rotary=sizes["hd"]),
            *_ffns(model, mlp),
            *_experts(model, mlp, experts),
            Coupled("residual", _residual(base, layer), order="d"),
        ),
        (*hidden_states_leave(), *_router_logits(model, base + "layers", experts)),
        {
            base + "embed_tokens.weight[0]": RIM["tokens"],
            "lm_head.weight[0]": RIM["tokens"],
            "score.weight[0]": RIM["labels"],
            "qa_outputs.weight[0]": RIM["labels"],
        },
    )


def _ffns(model: nn.Module, mlp: str) -> Iterator[Coupled]:
    for own in (mlp, mlp + ".shared_expert"):
        if has(model, own.rpartition("{i}")[2] + ".up_proj.weight"):
            up = (f"{own}.gate_proj", f"{own}.up_proj")
            yield ffn(own.replace("mlp", "ffn"), up, f"{own}.down_proj")


def _experts(model: nn.Module, mlp: str, name: str) -> Iterator[Coupled]:
    """The hidden channels of each expert, and the experts, which the router's rows follow."""
    if not has(model, _STACK):
        return
    stack = mlp + ".experts."
    yield Coupled(
        stack + "ffn",
        {stack + "gate_up_proj[1]": "e | 2 c", stack + "down_proj[2]": "e | c"},
        order="c",
        within="e",
    )
    yield Coupled(
        name,
        {mlp + ".gate.weight[0]": "e", stack + "gate_up_proj[0]": "e", stack + "down_proj[0]": "e"},
        order="e",
    )


def _router_logits(model: nn.Module, layers: str, name: str) -> Iterator[Leaving]:
    """The router's logits leave with an entry for each layer that has experts."""
    stack = re.compile(rf"{re.escape(layers)}\.(\d+)\..*{re.escape(_STACK)}")
    names = [stack.fullmatch(own) for own, _ in model.named_parameters(remove_duplicate=False)]
    sparse = sorted(int(found[1]) for found in names if found)
    for k, i in enumerate(sparse):
        yield Leaving(f"router_logits.{k}", name.format(i=i))


def _residual(base: str, layer: str) -> Axes:
    own, mlp = layer + "self_attn.", layer + "mlp."
    readers = ("gate_proj", "up_proj", "gate", "shared_expert.gate_proj", "shared_expert.up_proj")
    axes: Axes = {base + "embed_tokens.weight[1]": "d", **norm(base + "norm")}
    for one in ("input_layernorm", "post_attention_layernorm"):
        axes |= norm(layer + one)
    for one in "qkv":
        axes |= columns(f"{own}{one}_proj", "d")
    axes |= rows(own + "o_proj", "d")
    for one in (*readers, "shared_expert_gate"):
        axes |= optional(columns(mlp + one, "d"))
    for one in ("down_proj", "shared_expert.down_proj"):
        axes |= optional(rows(mlp + one, "d"))
    axes |= {mlp + "experts.gate_up_proj[2]?": "d", mlp + "experts.down_proj[1]?": "d"}
    for one in ("lm_head", "score", "qa_outputs"):
        axes |= optional(columns(one, "d"))
    return axes
