"""Inputs for a model: as given, or made up from what its configuration says."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

# Sequences and batches of made-up inputs: short, but longer than one.
_BATCH, _TOKENS = 2, 12


def model_inputs(model: nn.Module, inputs: Any = None, *, seed: int = 0) -> tuple[tuple, dict]:
    """Positional and keyword arguments for one call.

    Parameters
    ----------
    model : nn.Module
    inputs : Tensor, tuple, mapping or None
        A tensor is the only argument; a tuple or list holds the arguments, a mapping the keyword
        arguments. None makes up random tokens or pictures for models that carry a Hugging Face
        configuration.
    seed : int
        Of made-up inputs.

    Raises
    ------
    ValueError
        If there are no inputs and none can be made up.
    TypeError
        If the inputs are nothing of the above.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if inputs is None:
        inputs = _made_up(model, seed)
    if isinstance(inputs, torch.Tensor):
        inputs = (inputs,)
    if isinstance(inputs, Mapping):
        return (), {key: _on(value, device) for key, value in inputs.items()}
    if isinstance(inputs, list | tuple):
        return tuple(_on(value, device) for value in inputs), {}
    raise TypeError(
        f"inputs must be a tensor, a tuple of arguments or a mapping of keyword arguments, got "
        f"{type(inputs).__name__}"
    )


def _on(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _takes(model: nn.Module, name: str) -> bool:
    return name in inspect.signature(model.forward).parameters


def _made_up(model: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    config = getattr(model, "config", None)
    generator = torch.Generator().manual_seed(seed)
    if (vocabulary := getattr(config, "vocab_size", None)) is not None:
        most = getattr(config, "max_position_embeddings", None) or _TOKENS
        # RoBERTa's positions begin behind the padding's.
        tokens = max(1, min(_TOKENS, most - 2))
        low = min(2, vocabulary - 1)
        # Without a padding token, heads that pool take one sequence only.
        batch = 1 if getattr(config, "pad_token_id", None) is None else _BATCH
        return {
            name: torch.randint(low, vocabulary, (batch, tokens), generator=generator)
            for name in ("input_ids", "decoder_input_ids")
            if name == "input_ids" or _takes(model, name)
        }
    if (channels := getattr(config, "num_channels", None)) is not None:
        size = getattr(config, "image_size", None) or 64
        sides = (size, size) if isinstance(size, int) else tuple(size)
        return {"pixel_values": torch.randn(_BATCH, channels, *sides, generator=generator)}
    raise ValueError(
        f"inputs must be given: nothing is known of what {type(model).__name__} takes (a tensor, a "
        f"tuple of arguments, or a mapping of keyword arguments)"
    )
