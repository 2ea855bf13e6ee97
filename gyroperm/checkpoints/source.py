"""A checkpoint as it is published: a file, an index with its shards, or a folder of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gyroperm.checkpoint import Checkpoint, Tensor

_INDEX = "*.safetensors.index.json"
_CONFIG = "config.json"
# Weights in other formats would be those from before pruning.
_OTHER_WEIGHTS = {".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".pt", ".pth"}
_SHOWN = 4


@dataclass(frozen=True)
class Source:
    """What is where in a checkpoint; nothing is kept open.

    Attributes
    ----------
    folder : Path
    shards : tuple of str
        The names of the safetensors files, in the order of their names.
    tensors : dict of str to Tensor
        Of all shards, in the order of the shards and of their bytes.
    shard_of : dict of str to str
        The shard of each tensor.
    index : str or None
        The name of the index file.
    others : tuple of str
        Further files of the folder that belong to the model: configuration, tokenizer, code.
    config : mapping
        ``config.json`` of the folder; empty where there is none.
    """

    folder: Path
    shards: tuple[str, ...]
    tensors: dict[str, Tensor]
    shard_of: dict[str, str]
    index: str | None = None
    others: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, path: str | Path) -> Source:
        """Read headers, index and configuration, and check that they agree.

        Parameters
        ----------
        path : str or Path
            A safetensors file, an index, or a folder with either, or with several safetensors
            files that share no tensor.

        Raises
        ------
        OSError
            If something cannot be read; a missing shard is named.
        ValueError
            If a file is unsound, the folder holds no checkpoint or several, or the index and the
            shards differ; the message names the file and the tensors.
        """
        path = Path(path)
        if path.is_dir():
            return _of_folder(path)
        if path.name.endswith(".index.json"):
            return _of_index(path)
        return _of_shards(path.parent, [path.name])

    @property
    def size(self) -> int:
        """The bytes of all shards."""
        return sum((self.folder / name).stat().st_size for name in self.shards)

    @property
    def files(self) -> tuple[str, ...]:
        """The names of all files that an output has: shards, index, and what is copied."""
        return (*self.shards, *((self.index,) if self.index else ()), *self.others)

    def shard(self, name: str) -> Checkpoint:
        """A shard, opened."""
        return Checkpoint(self.folder / name)

    def path_of(self, tensor: str) -> Path:
        """The file that holds a tensor."""
        return self.folder / self.shard_of[tensor]


def _of_folder(folder: Path) -> Source:
    indices = sorted(folder.glob(_INDEX))
    if len(indices) > 1:
        names = ", ".join(index.name for index in indices)
        raise ValueError(f"{folder} holds several checkpoints ({names}); give one of the indices")
    if indices:
        return _of_index(indices[0])
    found = sorted(file.name for file in folder.glob("*.safetensors") if file.is_file())
    if not found:
        raise ValueError(f"{folder} holds no .safetensors file and no {_INDEX}")
    return _of_shards(folder, found, whole_folder=True)


def _of_index(index: Path) -> Source:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        placed = {str(name): str(file) for name, file in content["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{index} is no index of a checkpoint: it needs a weight_map from tensors to files "
            f"({type(error).__name__}: {error})"
        ) from error
    if not placed:
        raise ValueError(f"{index} names no tensors")
    files = sorted(set(placed.values()))
    outside = [name for name in files if Path(name).name != name]
    if outside:
        raise ValueError(f"{index} names {outside[0]!r}, which is no file of its own folder")
    missing = [name for name in files if not (index.parent / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{index} names {_several(missing)}, which {_lie(missing)} not in {index.parent}: "
            f"{len(missing)} of {len(files)} shards are missing"
        )
    source = _of_shards(index.parent, files, index=index.name, whole_folder=True)
    lacking = [name for name, file in placed.items() if source.shard_of.get(name) != file]
    if lacking:
        where = _several(sorted({placed[name] for name in lacking}))
        raise ValueError(
            f"{index} places {_several(lacking)} in {where}, which {_lie(lacking)} not there: the "
            f"index and the shards differ"
        )
    return source


def _of_shards(
    folder: Path, files: list[str], *, index: str | None = None, whole_folder: bool = False
) -> Source:
    tensors: dict[str, Tensor] = {}
    shard_of: dict[str, str] = {}
    for name in files:
        with Checkpoint(folder / name) as shard:
            for tensor in shard.tensors.values():
                if tensor.name in tensors:
                    raise ValueError(
                        f"{tensor.name!r} is both in {shard_of[tensor.name]} and in {name}: "
                        f"{folder} holds more than one checkpoint; give a file or an index"
                    )
                tensors[tensor.name] = tensor
                shard_of[tensor.name] = name
    others = _others(folder, {*files, index}) if whole_folder else ()
    return Source(folder, tuple(files), tensors, shard_of, index, others, _config(folder))


def _others(folder: Path, known: set[str | None]) -> tuple[str, ...]:
    return tuple(
        sorted(
            file.name
            for file in folder.iterdir()
            if file.is_file()
            and file.name not in known
            and not file.name.startswith(".")
            and file.suffix not in _OTHER_WEIGHTS
            and not file.name.endswith((".safetensors", ".index.json"))
        )
    )


def _config(folder: Path) -> dict[str, Any]:
    file = folder / _CONFIG
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is no JSON object")
    return content


def _several(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _lie(names: list[str]) -> str:
    return "lies" if len(names) == 1 else "lie"
