"""A tensor's words, reordered and masked while they are copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gyroperm.checkpoint import Checkpoint, Tensor, Words
from gyroperm.checkpoints.saliency import Orders

# Elements of a block.
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Rewritten:
    """What becomes of a tensor: a change for :meth:`Checkpoint.write_changed`.

    Parameters
    ----------
    orders : (ndarray or None, ndarray or None)
        What comes to each place of the first two dimensions; None where nothing moves.
    mask : callable, optional
        Gives the packed mask, ``np.packbits`` in the tensor's own shape and new order, when the
        tensor's turn comes; zeros become zero words.
    """

    orders: Orders = (None, None)
    mask: Callable[[], NDArray[np.uint8]] | None = None

    def __call__(self, checkpoint: Checkpoint, tensor: Tensor) -> Iterator[Words]:
        """The new words, block by block."""
        bits = None if self.mask is None else self.mask()
        first, second = self.orders
        length = tensor.shape[0] if tensor.shape else 1
        rows = max(1, _BLOCK // max(1, tensor.row_size))
        for begin in range(0, length, rows):
            end = min(begin + rows, length)
            words = _rows(checkpoint, tensor, begin, end, first)
            if second is not None:
                words = words.reshape(end - begin, tensor.shape[1], -1)[:, second].reshape(-1)
            if bits is not None:
                words[~_kept(bits, begin * tensor.row_size, words.size)] = 0
            yield words


def _rows(
    checkpoint: Checkpoint,
    tensor: Tensor,
    begin: int,
    end: int,
    order: NDArray[np.int64] | None,
) -> Words:
    size = tensor.row_size
    if order is None:
        return checkpoint.words(tensor, begin * size, end * size)
    if tensor.size <= _BLOCK:
        rows = checkpoint.words(tensor).reshape(-1, size)
        return rows[order[begin:end]].reshape(-1)
    return np.concatenate(
        [checkpoint.words(tensor, int(r) * size, int(r) * size + size) for r in order[begin:end]]
    )


def _kept(bits: NDArray[np.uint8], begin: int, count: int) -> NDArray[np.bool_]:
    """Some entries of a packed mask, which need not begin with a byte."""
    skipped = begin % 8
    unpacked = np.unpackbits(bits[begin // 8 :], count=skipped + count)
    return unpacked[skipped:].astype(np.bool_)
