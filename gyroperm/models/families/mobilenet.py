"""MobileNetV2: depthwise convolutions follow the channels that they take in."""

from __future__ import annotations

from typing import Any

from torch import nn

from gyroperm.models.families.convolutions import Residuals, chained, channels, map_leaves
from gyroperm.models.families.parts import RIM, has
from gyroperm.models.families.prefix import prefix_of
from gyroperm.models.spec import Coupled, Spec


def spec(model: nn.Module) -> Spec:
    """The spec of a MobileNetV2, with or without a head.

    Parameters
    ----------
    model : nn.Module
        Of a Hugging Face class with ``conv_stem`` and ``layer.0.conv_3x3``.
    """
    config: Any = model.config
    base = prefix_of(model, "conv_stem.first_conv.convolution.weight")
    inner = _stem(model, base + "conv_stem.")
    residuals = Residuals("residual.stem")
    residuals.writes(base + "conv_stem.reduce_1x1")
    streams = []
    blocks: Any = model.get_submodule(base + "layer")
    for i, block in enumerate(blocks):
        path = f"{base}layer.{i}."
        residuals.reads(path + "expand_1x1")
        if not block.use_residual:
            residuals.begin(f"residual.{i}")
        residuals.writes(path + "reduce_1x1")
        streams.append(residuals.name)
        inner.append(
            chained(
                path + "expanded",
                [path + "expand_1x1", path + "conv_3x3"],
                [path + "reduce_1x1"],
                {},
            )
        )
    residuals.reads(base + "conv_1x1")
    features = {**channels(base + "conv_1x1"), "classifier.weight[1]?": "c"}
    inner.append(Coupled("features", features, order="c"))
    if has(model, "segmentation_head.conv_pool.convolution.weight"):
        residuals.reads("segmentation_head.conv_pool", "segmentation_head.conv_aspp")
        inner += _segmentation(model.segmentation_head)
    return Spec(
        config.model_type,
        (*inner, *residuals.coupled()),
        (
            *(map_leaves(field, "features") for field in ("last_hidden_state", "pooler_output")),
            *(map_leaves(f"hidden_states.{k}", stream) for k, stream in enumerate(streams)),
        ),
        {
            base + "conv_stem.first_conv.convolution.weight[1]": RIM["pixels"],
            "classifier.weight[0]": RIM["labels"],
            "segmentation_head.classifier.convolution.weight[0]": RIM["labels"],
        },
    )


def _stem(model: nn.Module, stem: str) -> list[Coupled]:
    first, expand = stem + "first_conv", stem + "expand_1x1"
    depthwise, reduce = stem + "conv_3x3", stem + "reduce_1x1"
    if not has(model, expand + ".convolution.weight"):
        return [chained(stem + "expanded", [first, depthwise], [reduce], {})]
    return [
        chained(first, [first], [expand], {}),
        chained(stem + "expanded", [expand, depthwise], [reduce], {}),
    ]


def _segmentation(module: Any) -> list[Coupled]:
    """A head that reads pooled and plain features, one behind the other."""
    head = "segmentation_head."
    projection, classifier = head + "conv_projection", head + "classifier"
    both = f"{projection}.convolution.weight[1]"
    sizes = {"pool": module.conv_pool.convolution.out_channels}
    sites = [chained(projection, [projection], [classifier], {})]
    for own in ("pool", "aspp"):
        written = channels(f"{head}conv_{own}", own)
        sites.append(Coupled(head + own, {**written, both: "pool + aspp"}, own, sizes=sizes))
    return sites
