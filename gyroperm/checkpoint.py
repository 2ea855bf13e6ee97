"""Checkpoints in the safetensors format: read a tensor at a time, written with weights masked.

Written by their raw words, so that what a mask keeps, and every tensor that is not masked, stays
bit for bit what it was, whatever its dtype.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from gyroperm.files import atomic_path

#: The dtypes that are read as weights, by their safetensors names, as the unsigned words of
#: their size. Zero is all zero bits in each of them.
WEIGHT_WORDS = {"F64": "<u8", "F32": "<u4", "F16": "<u2", "BF16": "<u2"}

# A file begins with the length of its header, as a 64-bit little-endian integer.
_LENGTH_BYTES = 8
_CHUNK_BYTES = 16 << 20

# Elements of a block; whole bytes of packed masks.
_BLOCK = 1 << 22

Words = NDArray[np.unsignedinteger]
#: What a tensor becomes: given the checkpoint and the tensor, its new words, block by block.
Change = Callable[["Checkpoint", "Tensor"], Iterator[Words]]


@dataclass(frozen=True)
class Tensor:
    """What a checkpoint says of a tensor.

    Attributes
    ----------
    name : str
    dtype : str
        As safetensors names it: F32, BF16, I64, ...
    shape : tuple of int
    begin, end : int
        Its bytes, counted from the beginning of the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def row_size(self) -> int:
        """The elements of one index of the first dimension; 1 of a scalar."""
        return math.prod(self.shape[1:])


class Checkpoint:
    """A safetensors file, open for reading; a context manager.

    The file stays open, so that it can be replaced, even by what is written from it, while it is
    being read.

    Parameters
    ----------
    path : str or Path

    Attributes
    ----------
    path : Path
    tensors : dict of str to Tensor
        In the order of their bytes.
    metadata : dict of str to str
        The file's own notes.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is truncated or no safetensors file; names the file and what is wrong.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: BinaryIO = self.path.open("rb")
        try:
            header, self._data_begin = _read_header(self._file, self.path)
            self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
            self.tensors = _tensors(header, self._data_begin, self.size, self.path)
            _check_by_library(self.path)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    @property
    def size(self) -> int:
        """The bytes of the file."""
        return os.fstat(self._file.fileno()).st_size

    def read(self, name: str) -> NDArray[np.floating]:
        """The weights of a tensor.

        Parameters
        ----------
        name : str
            A tensor of F64, F32, F16 or BF16.

        Returns
        -------
        ndarray of float64, float32 or float16
            Exactly the stored values; BF16 becomes float32.

        Raises
        ------
        KeyError
            If there is no such tensor.
        ValueError
            If its dtype is another, or the file has become shorter.
        """
        tensor = self.tensors[name]
        return as_floats(self.words(tensor), tensor.dtype).reshape(tensor.shape)

    def blocks(self, tensor: Tensor) -> Iterator[Words]:
        """The words of a tensor of weights, in order, some millions at a time."""
        for begin in range(0, tensor.size, _BLOCK):
            yield self.words(tensor, begin, min(begin + _BLOCK, tensor.size))

    def raw(self, begin: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes of the file between two places, in chunks."""
        end = self.size if end is None else end
        self._file.seek(begin)
        while begin < end:
            chunk = self._file.read(min(_CHUNK_BYTES, end - begin))
            if not chunk:
                raise ValueError(f"{self.path} ends at byte {begin}: it was changed meanwhile")
            yield chunk
            begin += len(chunk)

    def write_masked(self, path: str | Path, masks: Mapping[str, NDArray[np.uint8]]) -> None:
        """Write this checkpoint with some weights set to zero, completely or not at all.

        Header and metadata, tensors without a mask, and kept weights are copied bit for bit.

        Parameters
        ----------
        path : str or Path
            May be the file that is being read.
        masks : mapping of str to ndarray of uint8
            For each masked tensor ``np.packbits`` of its mask, True where a weight is kept, in
            the tensor's own shape and C order. Packed because the masks of a whole model are
            held at once.

        Raises
        ------
        KeyError
            If there is no tensor of a mask's name.
        OSError
            If the file cannot be written; what was at ``path`` stays.
        """
        self.write_changed(path, {name: partial(_masked, bits) for name, bits in masks.items()})

    def write_changed(
        self,
        path: str | Path,
        changes: Mapping[str, Change],
        observe: Callable[[Any], object] | None = None,
    ) -> None:
        """Write this checkpoint with some tensors changed, completely or not at all.

        Header and metadata and all other tensors are copied bit for bit. A block at a time is
        held.

        Parameters
        ----------
        path : str or Path
            May be the file that is being read.
        changes : mapping of str to callable
            For each tensor that changes, what gives its words: as many of the same size.
        observe : callable, optional
            Is shown everything that is written, as buffers.

        Raises
        ------
        KeyError
            If there is no tensor of a change's name.
        OSError
            If the file cannot be written; what was at ``path`` stays.
        """
        changed = sorted((self.tensors[name] for name in changes), key=lambda t: t.begin)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            for piece in self._pieces(changed, changes):
                if observe is not None:
                    observe(piece)
                file.write(piece)
            # The old file is replaced next: the new one must be on the disk by then.
            file.flush()
            os.fsync(file.fileno())

    def _pieces(self, changed: list[Tensor], changes: Mapping[str, Change]) -> Iterator[Any]:
        copied = 0
        for tensor in changed:
            yield from self.raw(copied, tensor.begin)
            written = 0
            for words in changes[tensor.name](self, tensor):
                written += words.nbytes
                yield words.data
            if written != tensor.end - tensor.begin:
                raise ValueError(
                    f"{tensor.name!r} has {tensor.end - tensor.begin} bytes, a change gave "
                    f"{written}"
                )
            copied = tensor.end
        yield from self.raw(copied)

    def words(self, tensor: Tensor, begin: int = 0, end: int | None = None) -> Words:
        """The stored words of a tensor of weights, in C order.

        Parameters
        ----------
        tensor : Tensor
        begin, end : int
            Which elements, counted over the flattened tensor; all by default.

        Returns
        -------
        ndarray of uint16, uint32 or uint64, shape (end - begin,)

        Raises
        ------
        ValueError
            If it is no tensor of weights, or the file has become shorter.
        """
        if tensor.dtype not in WEIGHT_WORDS:
            raise ValueError(
                f"{tensor.name!r} is stored as {tensor.dtype}; weights are "
                f"{', '.join(WEIGHT_WORDS)}"
            )
        end = tensor.size if end is None else end
        words = np.empty(end - begin, dtype=WEIGHT_WORDS[tensor.dtype])
        self._file.seek(tensor.begin + begin * words.itemsize)
        if words.size and self._file.readinto(words.view(np.uint8).data) != words.nbytes:  # type: ignore[attr-defined]
            raise ValueError(f"{self.path} ends within {tensor.name!r}: it was changed meanwhile")
        return words


def as_floats(words: Words, dtype: str) -> NDArray[np.floating]:
    """The values of stored words: exactly, BF16 as float32, the others without a copy."""
    if dtype == "BF16":
        # bfloat16 is the upper half of a float32.
        return np.left_shift(words.astype(np.uint32), 16).view(np.float32)
    return words.view(f"<f{words.itemsize}")


def _masked(bits: NDArray[np.uint8], checkpoint: Checkpoint, tensor: Tensor) -> Iterator[Words]:
    """The words of a tensor, zero where the bits of its packed mask are."""
    begin = 0
    for words in checkpoint.blocks(tensor):
        kept = np.unpackbits(bits[begin // 8 :], count=words.size)
        words[kept == 0] = 0
        yield words
        begin += words.size


def _read_header(file: BinaryIO, path: Path) -> tuple[dict[str, Any], int]:
    """The header, and where the data begins."""
    size = os.fstat(file.fileno()).st_size
    if size < _LENGTH_BYTES:
        raise ValueError(f"{path} is no safetensors file: it has {size} bytes")
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if length > size - _LENGTH_BYTES:
        raise ValueError(
            f"{path} is truncated, or no safetensors file: its header should have {length} "
            f"bytes, and {size - _LENGTH_BYTES} follow"
        )
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is no safetensors file: its header is no JSON: {error}"
        ) from error
    if not isinstance(header, dict):
        raise ValueError(f"{path} is no safetensors file: its header is no JSON object")
    return header, _LENGTH_BYTES + length


def _tensors(header: dict[str, Any], data_begin: int, size: int, path: Path) -> dict[str, Tensor]:
    found = []
    for name, entry in header.items():
        try:
            begin, end = (data_begin + int(offset) for offset in entry["data_offsets"])
            shape = tuple(int(length) for length in entry["shape"])
            tensor = Tensor(name, str(entry["dtype"]), shape, begin, end)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: the header's entry of {name!r} is malformed") from error
        if not data_begin <= begin <= end:
            raise ValueError(f"{path}: the header's entry of {name!r} has offsets out of range")
        if end > size:
            raise ValueError(f"{path} is truncated: {name!r} ends at byte {end} of {size}")
        found.append(tensor)
    return {tensor.name: tensor for tensor in sorted(found, key=lambda t: (t.begin, t.end))}


def _check_by_library(path: Path) -> None:
    """Let the format's own library have the last word: sizes, overlaps, holes, dtypes."""
    try:
        with safe_open(path, framework="np"):
            pass
    except SafetensorError as error:
        raise ValueError(f"{path} is no sound safetensors file: {error}") from error
