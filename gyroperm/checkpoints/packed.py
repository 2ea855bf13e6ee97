"""Small safetensors files: the same content is the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gyroperm.checkpoint import Checkpoint
from gyroperm.files import atomic_path

_NAMES = {"|u1": "U8", "<i4": "I32", "<i8": "I64", "<f4": "F32", "<f8": "F64"}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def write_arrays(
    path: str | Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> str:
    """Write arrays as a safetensors file, completely or not at all, and on the disk.

    The format's own library orders metadata by chance; here they keep the order given.

    Returns
    -------
    str
        The file's SHA-256, in hexadecimal.

    Raises
    ------
    OSError
        If the file cannot be written; what was at ``path`` stays.
    """
    stored = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, array in stored.items():
        begin, end = end, end + array.nbytes
        header[name] = {
            "dtype": _NAMES[array.dtype.newbyteorder("<").str],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    # As the format's own library does, so that data begin at a multiple of eight.
    text += b" " * (-len(text) % 8)
    pieces: list[Any] = [len(text).to_bytes(8, "little"), text]
    pieces += [array.data for array in stored.values()]
    digest = hashlib.sha256()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for piece in pieces:
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def read_arrays(path: str | Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The arrays and the metadata of a file of :func:`write_arrays`.

    Raises
    ------
    OSError, ValueError
        If it cannot be read, or is no such file.
    """
    with Checkpoint(path) as file:
        arrays = {}
        for name, tensor in file.tensors.items():
            if tensor.dtype not in _DTYPES:
                raise ValueError(f"{path} holds {name!r} as {tensor.dtype}")
            raw = b"".join(file.raw(tensor.begin, tensor.end))
            arrays[name] = np.ndarray(tensor.shape, _DTYPES[tensor.dtype], raw)
        return arrays, file.metadata


def digest_of(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
