"""ResNet: one residual a stage, free channels inside of each block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from gyroperm.models.families.convolutions import Residuals, chained, map_leaves
from gyroperm.models.families.parts import RIM
from gyroperm.models.families.prefix import prefix_of
from gyroperm.models.spec import Coupled, Leaving, Spec


def spec(model: nn.Module) -> Spec:
    """The spec of a ResNet of basic or bottleneck blocks, with or without a head.

    Parameters
    ----------
    model : nn.Module
        Of a Hugging Face class with ``embedder.embedder`` and ``encoder.stages``.
    """
    config: Any = model.config
    base = prefix_of(model, "embedder.embedder.convolution.weight")
    stem = base + "embedder.embedder"
    residuals = Residuals("residual.stem")
    residuals.writes(stem)
    inner: list[Coupled] = []
    # Which stream each stage puts out; the first is the stem's.
    streams = [residuals.name]
    stages: Any = model.get_submodule(base + "encoder.stages")
    for s, stage in enumerate(stages):
        for i, block in enumerate(stage.layers):
            path = f"{base}encoder.stages.{s}.layers.{i}"
            inner += _inside(path, len(block.layer))
            residuals.reads(path + ".layer.0")
            if not isinstance(block.shortcut, nn.Identity):
                residuals.reads(path + ".shortcut")
                residuals.begin(f"residual.{s}")
                residuals.writes(path + ".shortcut")
            residuals.writes(f"{path}.layer.{len(block.layer) - 1}")
        streams.append(residuals.name)
    residuals.also({"classifier.1.weight[1]?": "c"})
    return Spec(
        config.model_type,
        (*inner, *residuals.coupled()),
        tuple(_leaving(streams, getattr(model, "out_indices", ()))),
        {stem + ".convolution.weight[1]": RIM["pixels"], "classifier.1.weight[0]": RIM["labels"]},
    )


def _inside(block: str, count: int) -> Iterator[Coupled]:
    """The channels between the convolutions of a block."""
    for j in range(count - 1):
        own, after = f"{block}.layer.{j}", f"{block}.layer.{j + 1}"
        yield chained(own, [own], [after], {})


def _leaving(streams: list[str], maps: Any) -> Iterator[Leaving]:
    for field in ("last_hidden_state", "pooler_output"):
        yield map_leaves(field, streams[-1])
    for k, stream in enumerate(streams):
        yield map_leaves(f"hidden_states.{k}", stream)
    for k, stage in enumerate(maps):
        yield map_leaves(f"feature_maps.{k}", streams[stage])
