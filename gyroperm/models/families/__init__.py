"""The specs that ship, by the ``model_type`` of a model's Hugging Face configuration."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from gyroperm.models.families import bert, gpt2, llama, mobilenet, neox, phi3, resnet, swin, t5, vit
from gyroperm.models.spec import Spec

#: Makes the spec of a model of the family.
Maker = Callable[[nn.Module], Spec]

FAMILIES: dict[str, Maker] = {
    "bert": bert.bert,
    "bloom": neox.bloom,
    "deit": vit.spec,
    "distilbert": bert.distilbert,
    "gpt2": gpt2.spec,
    "gpt_neox": neox.neox,
    "llama": llama.spec,
    "mistral": llama.spec,
    "mixtral": llama.spec,
    "mobilenet_v2": mobilenet.spec,
    "phi3": phi3.spec,
    "qwen2": llama.spec,
    "qwen2_moe": llama.spec,
    "qwen3": llama.spec,
    "qwen3_moe": llama.spec,
    "resnet": resnet.spec,
    "roberta": bert.bert,
    "swin": swin.spec,
    "t5": t5.spec,
    "vit": vit.spec,
    "xlm-roberta": bert.bert,
    "yolos": vit.spec,
}


def spec_of(model: nn.Module) -> Spec | None:
    """The spec of a model's family; None for a model that belongs to none that ships."""
    maker = FAMILIES.get(getattr(getattr(model, "config", None), "model_type", ""))
    return None if maker is None else maker(model)
