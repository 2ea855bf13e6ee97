"""A first pass over a checkpoint: every byte is read once before any search."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from gyroperm.arguments import checked_threads
from gyroperm.checkpoint import Checkpoint, as_floats
from gyroperm.checkpoints.saliency import first_not_finite
from gyroperm.checkpoints.source import Source


def inspected(
    source: Source, pruned: Collection[str], note: Callable[[str], object]
) -> dict[str, dict[str, Any]]:
    """The size and SHA-256 of every shard; all weights to be pruned are finite.

    Parameters
    ----------
    source : Source
    pruned : collection of str
        Names of tensors.
    note : callable
        Told of each shard that is done.

    Returns
    -------
    dict of str to dict
        ``size`` and ``sha256`` by the shard's name.

    Raises
    ------
    ValueError
        If a weight is not finite; names the tensor, the value and its index.
    OSError
        If a shard cannot be read.
    """

    def one(name: str) -> tuple[str, dict[str, Any]]:
        with source.shard(name) as shard:
            digest = _digest(shard, pruned)
            note(name)
            return name, {"size": shard.size, "sha256": digest}

    # Hashing lets other threads work meanwhile; a block is all that each holds.
    with ThreadPoolExecutor(min(len(source.shards), checked_threads(None))) as pool:
        return dict(pool.map(one, source.shards))


def _digest(shard: Checkpoint, pruned: Collection[str]) -> str:
    digest = hashlib.sha256()
    read = 0
    for tensor in shard.tensors.values():
        for piece in shard.raw(read, tensor.begin):
            digest.update(piece)
        read = tensor.begin
        if tensor.name not in pruned:
            continue
        place = 0
        for words in shard.blocks(tensor):
            digest.update(words.data)
            wrong = first_not_finite(words, tensor.dtype)
            if wrong is not None:
                index = tuple(int(i) for i in np.unravel_index(place + wrong, tensor.shape))
                value = as_floats(words[wrong : wrong + 1], tensor.dtype)[0]
                raise ValueError(
                    f"{tensor.name!r} of {shard.path} must be finite, got {value} at index {index}"
                )
            place += words.size
        read = tensor.end
    for piece in shard.raw(read):
        digest.update(piece)
    return digest.hexdigest()
