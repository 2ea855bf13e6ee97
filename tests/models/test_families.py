"""Each family's spec: the function is the same with random orders on every free site."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from gyroperm.models import coupling, permute
from gyroperm.models.families.parts import RIM
from small_families import SMALL, random_orders, rolled_orders, small_model


@dataclass(frozen=True)
class Case:
    """A model, and which axes must stay."""

    family: str
    kind: str
    kept: set[str]
    changes: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        changed = ",".join(f"{key}={value}" for key, value in self.changes.items())
        return f"{self.family}{self.kind}({changed})"


def _tokens(*tensors: str) -> set[str]:
    return {f"{tensor}.weight[0]" for tensor in tensors}


EMBEDDED = _tokens("model.embed_tokens", "lm_head")


def _bert(prefix: str, *heads: str, types: int = 2) -> set[str]:
    kinds = ("word", "position", "token_type") if types > 1 else ("word", "position")
    return _tokens(*(f"{prefix}embeddings.{kind}_embeddings" for kind in kinds), *heads)


def _pictures(prefix: str, *labels: str) -> set[str]:
    own = {f"{prefix}embeddings.position_embeddings[1]"}
    patches = f"{prefix}embeddings.patch_embeddings.projection.weight[1]"
    return own | {patches} | _tokens(*labels)


def _detections(prefix: str) -> set[str]:
    middle = f"{prefix}encoder.interpolation.mid_position_embeddings[2]"
    return _pictures(prefix) | {middle, f"{prefix}embeddings.detection_tokens[1]"}


def _swin(prefix: str) -> set[str]:
    tables = {
        f"{prefix}encoder.layers.{s}.blocks.{i}.attention.relative_position_bias."
        "relative_position_bias_table[0]"
        for s, depth in enumerate(SMALL["Swin"]["depths"])
        for i in range(depth)
    }
    return tables | {f"{prefix}embeddings.patch_embeddings.projection.weight[1]"}


T5_TABLES = {
    f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight[0]"
    for stack in ("encoder", "decoder")
}
T5_SHARED = _tokens("shared", "encoder.embed_tokens", "decoder.embed_tokens")
STEM = "embedder.embedder.convolution.weight[1]"
FIRST = "conv_stem.first_conv.convolution.weight[1]"

DECODERS = [
    Case("Llama", "ForCausalLM", EMBEDDED),
    Case("Llama", "ForCausalLM", EMBEDDED, {"tie_word_embeddings": True}),
    Case("Llama", "ForCausalLM", EMBEDDED, {"attention_bias": True, "mlp_bias": True}),
    Case("Llama", "ForCausalLM", EMBEDDED, {"num_key_value_heads": 4}),
    Case("Llama", "ForCausalLM", EMBEDDED, {"num_key_value_heads": 1}),
    Case("Llama", "Model", _tokens("embed_tokens")),
    Case("Llama", "ForSequenceClassification", _tokens("model.embed_tokens", "score")),
    Case("Llama", "ForTokenClassification", _tokens("model.embed_tokens", "score")),
    Case("Llama", "ForQuestionAnswering", _tokens("transformer.embed_tokens", "qa_outputs")),
    Case("Mistral", "ForCausalLM", EMBEDDED, {"num_key_value_heads": 1}),
    Case("Qwen2", "ForCausalLM", EMBEDDED, {"tie_word_embeddings": True}),
    Case("Qwen2", "ForCausalLM", EMBEDDED, {"num_key_value_heads": 4}),
    Case("Qwen3", "ForCausalLM", EMBEDDED),
    Case("Qwen3", "Model", _tokens("embed_tokens"), {"attention_bias": True}),
    Case("Mixtral", "ForCausalLM", EMBEDDED),
    Case("Mixtral", "ForCausalLM", EMBEDDED, {"output_router_logits": True}),
    Case("Qwen2Moe", "ForCausalLM", EMBEDDED),
    Case("Qwen2Moe", "ForCausalLM", EMBEDDED, {"output_router_logits": True}),
    Case("Qwen3Moe", "ForCausalLM", EMBEDDED),
    Case("Qwen3Moe", "Model", _tokens("embed_tokens"), {"mlp_only_layers": [0]}),
    Case("Phi3", "ForCausalLM", EMBEDDED),
    Case("Phi3", "ForCausalLM", EMBEDDED, {"partial_rotary_factor": 0.5}),
    Case("GPT2", "LMHeadModel", _tokens("transformer.wte", "transformer.wpe", "lm_head")),
    Case("GPT2", "Model", _tokens("wte", "wpe")),
    Case(
        "GPT2",
        "ForSequenceClassification",
        _tokens("transformer.wte", "transformer.wpe", "score"),
    ),
    Case(
        "GPT2",
        "ForTokenClassification",
        _tokens("transformer.wte", "transformer.wpe", "classifier"),
    ),
    Case(
        "GPT2", "ForQuestionAnswering", _tokens("transformer.wte", "transformer.wpe", "qa_outputs")
    ),
    Case("GPT2", "DoubleHeadsModel", _tokens("transformer.wte", "transformer.wpe", "lm_head")),
    Case("GPTNeoX", "ForCausalLM", _tokens("gpt_neox.embed_in", "lm_head")),
    Case("GPTNeoX", "Model", _tokens("embed_in"), {"rotary_pct": 1.0, "attention_bias": False}),
    Case("GPTNeoX", "Model", _tokens("embed_in"), {"use_parallel_residual": False}),
    Case("Bloom", "ForCausalLM", _tokens("transformer.word_embeddings", "lm_head")),
    Case("Bloom", "Model", _tokens("word_embeddings")),
    Case("T5", "ForConditionalGeneration", T5_SHARED | T5_TABLES | _tokens("lm_head")),
    Case(
        "T5",
        "Model",
        T5_SHARED | T5_TABLES,
        {"feed_forward_proj": "gated-gelu", "num_decoder_layers": 3},
    ),
    Case(
        "T5",
        "EncoderModel",
        {one for one in T5_SHARED | T5_TABLES if not one.startswith("decoder")},
    ),
]
ENCODERS = [
    Case("Bert", "Model", _bert("")),
    Case("Bert", "ForMaskedLM", _bert("bert.", "cls.predictions.decoder")),
    Case(
        "Bert",
        "ForMaskedLM",
        _bert("bert.", "cls.predictions.decoder"),
        {"tie_word_embeddings": False},
    ),
    Case(
        "Bert",
        "ForPreTraining",
        _bert("bert.", "cls.predictions.decoder", "cls.seq_relationship"),
    ),
    Case("Bert", "LMHeadModel", _bert("bert.", "cls.predictions.decoder"), {"is_decoder": True}),
    Case("Bert", "ForNextSentencePrediction", _bert("bert.", "cls.seq_relationship")),
    Case("Bert", "ForSequenceClassification", _bert("bert.", "classifier")),
    Case("Bert", "ForTokenClassification", _bert("bert.", "classifier")),
    Case("Bert", "ForQuestionAnswering", _bert("bert.", "qa_outputs")),
    Case("Roberta", "Model", _bert("")),
    Case("Roberta", "ForMaskedLM", _bert("roberta.", "lm_head.decoder")),
    Case("Roberta", "ForSequenceClassification", _bert("roberta.", "classifier.out_proj")),
    Case("Roberta", "ForTokenClassification", _bert("roberta.", "classifier")),
    Case("Roberta", "ForQuestionAnswering", _bert("roberta.", "qa_outputs")),
    Case("XLMRoberta", "ForSequenceClassification", _bert("roberta.", "classifier.out_proj")),
    Case("DistilBert", "Model", _bert("", types=1)),
    Case("DistilBert", "ForMaskedLM", _bert("distilbert.", "vocab_projector", types=1)),
    Case("DistilBert", "ForSequenceClassification", _bert("distilbert.", "classifier", types=1)),
    Case("DistilBert", "ForTokenClassification", _bert("distilbert.", "classifier", types=1)),
    Case("DistilBert", "ForQuestionAnswering", _bert("distilbert.", "qa_outputs", types=1)),
]
PICTURES = [
    Case("ViT", "Model", _pictures("")),
    Case("ViT", "Model", _pictures(""), {"qkv_bias": False}),
    Case("ViT", "ForImageClassification", _pictures("vit.", "classifier")),
    Case("ViT", "ForMaskedImageModeling", _pictures("vit.", "decoder.0")),
    Case("DeiT", "Model", _pictures("")),
    Case("DeiT", "ForImageClassification", _pictures("deit.", "classifier")),
    Case(
        "DeiT",
        "ForImageClassificationWithTeacher",
        _pictures("deit.", "cls_classifier", "distillation_classifier"),
    ),
    Case("Yolos", "Model", _detections("")),
    Case(
        "Yolos",
        "ForObjectDetection",
        _detections("vit.")
        | {"vit.encoder.interpolation.mid_position_embeddings[0]"}
        | _tokens("class_labels_classifier.layers.2", "bbox_predictor.layers.2"),
        {"num_hidden_layers": 3},
    ),
    Case("Swin", "Model", _swin("")),
    Case("Swin", "Model", _swin(""), {"qkv_bias": False}),
    Case(
        "Swin",
        "ForImageClassification",
        _swin("swin.") | {"swin.embeddings.position_embeddings[1]", "classifier.weight[0]"},
        {"use_absolute_embeddings": True},
    ),
    Case("Swin", "ForMaskedImageModeling", _swin("swin.") | _tokens("decoder.0")),
    Case("ResNet", "Model", {STEM}),
    Case("ResNet", "ForImageClassification", {f"resnet.{STEM}", "classifier.1.weight[0]"}),
    Case(
        "ResNet",
        "ForImageClassification",
        {f"resnet.{STEM}", "classifier.1.weight[0]"},
        {"layer_type": "bottleneck", "downsample_in_first_stage": True},
    ),
    Case("ResNet", "Backbone", {STEM}, {"out_features": ["stem", "stage1", "stage3"]}),
    Case("MobileNetV2", "Model", {FIRST}),
    Case("MobileNetV2", "Model", {FIRST}, {"first_layer_is_expansion": False}),
    Case(
        "MobileNetV2",
        "ForImageClassification",
        {f"mobilenet_v2.{FIRST}", "classifier.weight[0]"},
    ),
    Case(
        "MobileNetV2",
        "ForSemanticSegmentation",
        {f"mobilenet_v2.{FIRST}", "segmentation_head.classifier.convolution.weight[0]"},
    ),
]
CASES = [*DECODERS, *ENCODERS, *PICTURES]

# RMS norms, and attention that asks for its softmax so, compute in float32 whatever comes in.
NARROW = {"Llama", "Mistral", "Qwen2", "Qwen3", "Mixtral", "Qwen2Moe", "Qwen3Moe", "Phi3", "T5"}
NARROW |= {"Bloom"}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_random_orders_keep_the_function(case: Case) -> None:
    model = small_model(case.family, case.kind, **case.changes)
    graph = coupling(model)
    found = permute(model, random_orders(graph))
    if case.family in NARROW:
        assert (found.dtype, found.tolerance) == (torch.float32, 1e-4)
        assert found.error < 2e-5
    else:
        assert (found.dtype, found.tolerance) == (torch.float64, 1e-10)
        assert found.error < 1e-12


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_axis_has_a_site_or_a_reason(case: Case) -> None:
    graph = coupling(small_model(case.family, case.kind, **case.changes))
    assert set(graph.skipped) == case.kept
    assert set(graph.skipped.values()) <= set(RIM.values())
    assert all(site.reason for site in graph.sites if site.fixed)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_something_moves_everywhere(case: Case) -> None:
    model = small_model(case.family, case.kind, **case.changes)
    graph = coupling(model)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    permute(model, rolled_orders(graph), verified=False)
    unmoved = [n for n, tensor in model.named_parameters() if torch.equal(tensor, before[n])]
    # What stays: biases of labels and tokens, and norms of queries and keys that are turned.
    assert all(
        name.endswith((".bias", "_norm.weight")) and model.get_parameter(name).dim() == 1
        for name in unmoved
    )


@pytest.mark.parametrize("family", ["Llama", "Mixtral", "Bert", "ResNet"])
def test_weights_in_half_precision_are_compared_in_more(family: str) -> None:
    """Experts too, whose grouped product is made for the weights' own precision alone."""
    model = small_model(family).to(torch.bfloat16)
    experts = model.config._experts_implementation
    before = {name: tensor.sort().values for name, tensor in _flat(model)}
    found = permute(model, random_orders(coupling(model)))
    assert found.tolerance == (1e-4 if family in NARROW else 1e-10)
    assert model.config._experts_implementation == experts
    # Values only moved: no rounding, and no change of dtype.
    assert all(torch.equal(tensor.sort().values, before[name]) for name, tensor in _flat(model))


def _flat(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [(name, tensor.detach().flatten()) for name, tensor in model.named_parameters()]


def test_families_are_told_apart_by_their_configuration() -> None:
    from gyroperm.models.families import FAMILIES

    tested = {small_model(case.family, case.kind).config.model_type for case in CASES}
    assert tested == set(FAMILIES)
