"""Small checkpoints of several shards, written by hand, and what tests compare of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from test_checkpoint import random_words, write_raw

from gyroperm.checkpoint import Checkpoint

Stored = dict[str, tuple[str, tuple[int, ...], bytes]]


def linear(rows: int, columns: int, dtype: str = "BF16", seed: int = 0, scale: float = 1.0):
    """A weight as it is stored."""
    if scale == 1.0:
        return dtype, (rows, columns), random_words(dtype, (rows, columns), seed).tobytes()
    values = scale * np.random.default_rng(seed).standard_normal((rows, columns))
    assert dtype == "F32"
    return dtype, (rows, columns), values.astype("<f4").tobytes()


def vector(size: int):
    """A bias or a norm as it is stored."""
    return "F32", (size,), np.arange(size, dtype="<f4").tobytes()


def layers(count: int = 4, rows: int = 32, columns: int = 16, dtype: str = "BF16") -> Stored:
    """Linear maps with biases, between an embedding and a head."""
    tensors: Stored = {"model.embed_tokens.weight": linear(40, columns, dtype, 99)}
    for i in range(count):
        tensors[f"model.layers.{i}.up.weight"] = linear(rows, columns, dtype, i)
        tensors[f"model.layers.{i}.up.bias"] = vector(rows)
    tensors["lm_head.weight"] = linear(40, columns, dtype, 98)
    tensors["position_ids"] = ("I64", (1, 4), np.arange(4).astype("<i8").tobytes())
    return tensors


def sharded(
    folder: Path, tensors: Stored, shards: int = 3, config: dict[str, Any] | None = None
) -> Path:
    """A folder of so many shards with an index, a configuration and a tokenizer."""
    folder.mkdir(parents=True)
    names = list(tensors)
    placed = {}
    for s in range(shards):
        file = f"model-{s + 1:05}-of-{shards:05}.safetensors"
        own = names[s * len(names) // shards : (s + 1) * len(names) // shards]
        write_raw(folder / file, {name: tensors[name] for name in own}, {"format": "pt"})
        placed |= dict.fromkeys(own, file)
    index = {"metadata": {"total_size": 1}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "unheard-of"}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"weights from before")
    return folder


def results(folder: Path) -> dict[str, str]:
    """The SHA-256 of everything that must not depend on how a run went."""
    times = {"journal.jsonl", "report.json", "report.html"}
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in times
    }


def words_in(folder: Path, name: str) -> np.ndarray:
    """The stored words of a tensor of a folder of shards, in its shape."""
    for file in sorted(folder.glob("*.safetensors")):
        with Checkpoint(file) as shard:
            if name in shard.tensors:
                tensor = shard.tensors[name]
                return shard.words(tensor).reshape(tensor.shape)
    raise KeyError(name)
