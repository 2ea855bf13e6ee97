"""BERT, RoBERTa, MiniLM, DistilBERT: post-norm encoders with separate query, key and value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    without_cross_attention,
)
from gyroperm.models.families.prefix import prefix_of
from gyroperm.models.spec import Coupled, Leaving, Spec


@dataclass(frozen=True)
class _Names:
    """What a family calls the parts of a layer."""

    layer: str
    attention: str
    qkvo: tuple[str, str, str, str]
    up: str
    down: str
    norms: tuple[str, str]


_BERT = _Names(
    "encoder.layer.{i}.",
    "attention",
    ("self.query", "self.key", "self.value", "output.dense"),
    "intermediate.dense",
    "output.dense",
    ("attention.output.LayerNorm", "output.LayerNorm"),
)
_DISTILBERT = _Names(
    "transformer.layer.{i}.",
    "attention",
    ("q_lin", "k_lin", "v_lin", "out_lin"),
    "ffn.lin1",
    "ffn.lin2",
    ("sa_layer_norm", "output_layer_norm"),
)

# A language model's decoder may be the embedding, so what it reads keeps to the residual's order.
_TRANSFORMS = (
    ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"),
    ("lm_head.dense", "lm_head.layer_norm"),
    ("vocab_transform", "vocab_layer_norm"),
)
_DECODERS = ("cls.predictions.decoder", "lm_head.decoder", "vocab_projector")
_LABELLING = ("classifier", "classifier.out_proj", "cls.seq_relationship", "qa_outputs")


def bert(model: nn.Module) -> Spec:
    """The spec of a BERT, RoBERTa or MiniLM, with or without a head.

    Parameters
    ----------
    model : nn.Module
        Of a Hugging Face class with ``encoder.layer``.
    """
    without_cross_attention(model.config)
    base = prefix_of(model, "embeddings.word_embeddings.weight")
    # A classifier reads what is pooled, or the residual where nothing is.
    if has(model, "classifier.dense.weight"):
        pooling = {"classifier.dense": ["classifier.out_proj"], base + "pooler.dense": []}
    else:
        pooling = {base + "pooler.dense": ["classifier", "cls.seq_relationship"]}
    return _spec(model, base, _BERT, pooling)


def distilbert(model: nn.Module) -> Spec:
    """The spec of a DistilBERT, with or without a head.

    Parameters
    ----------
    model : nn.Module
        Of a Hugging Face class with ``transformer.layer``.
    """
    base = prefix_of(model, "embeddings.word_embeddings.weight")
    return _spec(model, base, _DISTILBERT, {"pre_classifier": ["classifier"]})


def _spec(model: nn.Module, base: str, names: _Names, pooling: Mapping[str, Sequence[str]]) -> Spec:
    config: Any = model.config
    layer = base + names.layer
    own = layer + names.attention
    pooled = {one: readers for one, readers in pooling.items() if has(model, one + ".weight")}
    kinds = {"word": "tokens", "position": "positions", "token_type": "types"}
    return Spec(
        config.model_type,
        (
            *attention(own, separate_attention(own, *names.qkvo), head_sizes(config)),
            ffn(layer + "ffn", [layer + names.up], layer + names.down),
            *(_pooled(one, readers) for one, readers in pooled.items()),
            Coupled("residual", _residual(base, names, list(pooled)), order="d"),
        ),
        (
            *hidden_states_leave(),
            *(
                Leaving("pooler_output", _name(one))
                for one in pooled
                if one == base + "pooler.dense"
            ),
        ),
        {
            **{
                f"{base}embeddings.{kind}_embeddings.weight[0]": RIM[what]
                for kind, what in kinds.items()
            },
            **{f"{one}.weight[0]": RIM["tokens"] for one in _DECODERS},
            **{f"{one}.weight[0]": RIM["labels"] for one in _LABELLING},
        },
    )


def _name(dense: str) -> str:
    return "pooled" if dense.endswith("pooler.dense") else dense.partition(".")[0] + ".pooled"


def _pooled(dense: str, readers: Sequence[str]) -> Coupled:
    axes = rows(dense, "c")
    for one in readers:
        axes |= optional(columns(one, "c"))
    return Coupled(_name(dense), axes, order="c")


def _residual(base: str, names: _Names, pooled: list[str]) -> Axes:
    layer = base + names.layer
    own, embeddings = layer + names.attention, base + "embeddings."
    axes: Axes = {
        **{f"{embeddings}{kind}_embeddings.weight[1]": "d" for kind in ("word", "position")},
        f"{embeddings}token_type_embeddings.weight[1]?": "d",
        **norm(embeddings + "LayerNorm"),
    }
    for one in names.qkvo[:3]:
        axes |= columns(f"{own}.{one}", "d")
    for one in (f"{own}.{names.qkvo[3]}", layer + names.down):
        axes |= rows(one, "d")
    for one in names.norms:
        axes |= norm(layer + one)
    axes |= columns(layer + names.up, "d")
    for one in (*pooled, *_DECODERS, "qa_outputs", *([] if pooled else ["classifier"])):
        axes |= optional(columns(one, "d"))
    for dense, normed in _TRANSFORMS:
        axes |= optional({**columns(dense, "d"), **rows(dense, "d"), **norm(normed)})
    return axes
