"""BERT, RoBERTa, MiniLM: post-norm encoders with separate query, key and value."""

from __future__ import annotations

from torch import nn

from gyroperm.models.families.prefix import prefix_of
from gyroperm.models.spec import Coupled, Leaving, Spec


def spec(model: nn.Module) -> Spec:
    """The spec of an encoder, with or without a head.

    Parameters
    ----------
    model : nn.Module
        Of a Hugging Face class whose configuration has ``num_attention_heads``.
    """
    base = prefix_of(model, "encoder.layer.0.attention.self.query.weight")
    layer = base + "encoder.layer.{i}."
    heads = {"head": model.config.num_attention_heads}
    attention, embeddings = layer + "attention.", base + "embeddings."
    residual = {
        **{f"{embeddings}{kind}_embeddings.weight[1]": "d" for kind in ("word", "position")},
        f"{embeddings}token_type_embeddings.weight[1]?": "d",
        **_norm(embeddings + "LayerNorm"),
        **{f"{attention}self.{name}.weight[1]": "d" for name in ("query", "key", "value")},
        **_output(attention + "output"),
        layer + "intermediate.dense.weight[1]": "d",
        **_output(layer + "output"),
        base + "pooler.dense.weight[1]?": "d",
        **_heads(),
    }
    return Spec(
        model.config.model_type,
        (
            Coupled(
                layer + "attention.values",
                {
                    **_rows(attention + "self.value", "head hd"),
                    attention + "output.dense.weight[1]": "head hd",
                },
                order="hd",
                within="head",
                sizes=heads,
            ),
            Coupled(
                layer + "attention.keys",
                {
                    **_rows(attention + "self.query", "head hd"),
                    **_rows(attention + "self.key", "head hd"),
                },
                order="hd",
                within="head",
                sizes=heads,
            ),
            Coupled(
                layer + "attention.heads",
                {
                    **_rows(attention + "self.query", "head hd"),
                    **_rows(attention + "self.key", "head hd"),
                    **_rows(attention + "self.value", "head hd"),
                    attention + "output.dense.weight[1]": "head hd",
                },
                order="head",
                sizes=heads,
            ),
            Coupled(
                layer + "ffn",
                {**_rows(layer + "intermediate.dense", "c"), layer + "output.dense.weight[1]": "c"},
                order="c",
            ),
            Coupled("residual", residual, order="d"),
        ),
        tuple(Leaving(name, "residual") for name in ("last_hidden_state", "hidden_states")),
    )


def _rows(module: str, layout: str) -> dict[str, str]:
    return {f"{module}.weight[0]": layout, f"{module}.bias[0]?": layout}


def _norm(module: str) -> dict[str, str]:
    return {f"{module}.weight[0]": "d", f"{module}.bias[0]?": "d"}


def _output(module: str) -> dict[str, str]:
    return {**_rows(module + ".dense", "d"), **_norm(module + ".LayerNorm")}


def _heads() -> dict[str, str]:
    """Heads that read the residual.

    A language model's decoder may be the embedding, so what it reads keeps to the residual's order.
    """
    reading = ("cls.predictions.transform.dense", "lm_head.dense")
    return {
        **{f"{name}.weight[1]?": "d" for name in (*reading, "classifier.dense", "qa_outputs")},
        **{f"{name}.weight[0]?": "d" for name in reading},
        **{f"{name}.bias[0]?": "d" for name in reading},
        **_optional_norm("cls.predictions.transform.LayerNorm"),
        **_optional_norm("lm_head.layer_norm"),
        "cls.predictions.decoder.weight[1]?": "d",
        "lm_head.decoder.weight[1]?": "d",
    }


def _optional_norm(module: str) -> dict[str, str]:
    return {f"{module}.weight[0]?": "d", f"{module}.bias[0]?": "d"}
