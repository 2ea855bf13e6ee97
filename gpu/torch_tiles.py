"""The tiles of packed tensors as dense blocks, by torch: on any device, gradients not tracked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

STEP = 64


@dataclass(frozen=True, eq=False)
class PackedTensors:
    """A packed matrix in tensors of one device; see :class:`gyroperm.gpu.HinmMatrix`.

    Parameters
    ----------
    values : Tensor of float16 or bfloat16, shape (steps, inner, V / 16, 32, 8)
    metadata : Tensor of int32, shape (steps, V / 16, 32), or (0, V / 16, 32)
        The bits of the unsigned words.
    columns : Tensor of int16 or int32, shape (64 * steps,)
        int16 holds the bits of uint16.
    tile_ptr : Tensor of int32, shape (T + 1,)
    row_map : Tensor of int32, shape (T * V,)
    inputs, outputs : int
        C and R.
    """

    values: torch.Tensor
    metadata: torch.Tensor
    columns: torch.Tensor
    tile_ptr: torch.Tensor
    row_map: torch.Tensor
    inputs: int
    outputs: int

    def blocks(self, dtype: torch.dtype) -> Iterator[tuple[torch.Tensor, ...]]:
        """Of each tile the output rows (V',), the columns (K,) and the weights (V', K).

        Virtual rows are left out. Pads and virtual slots are there, as column 0 with zeros.
        """
        tile_ptr = self.tile_ptr.tolist()
        # torch has few operations on unsigned integers.
        mask = 0xFFFF if self.columns.dtype == torch.int16 else -1
        columns = self.columns.long() & mask
        for t, rows in enumerate(self.row_map.long().view(len(tile_ptr) - 1, -1)):
            steps = slice(tile_ptr[t] // STEP, tile_ptr[t + 1] // STEP)
            block = self._block(steps, dtype)
            real = rows >= 0
            yield rows[real], columns[tile_ptr[t] : tile_ptr[t + 1]], block[real]

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """The masked weights, shape (R, C)."""
        weights = self.values.new_zeros(self.outputs, self.inputs, dtype=dtype)
        for rows, columns, block in self.blocks(dtype):
            # A pad adds a zero to column 0.
            weights[rows] = block.new_zeros(len(rows), self.inputs).index_add_(1, columns, block)
        return weights

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """``x @ W.T`` in x's dtype, shape (N, R)."""
        y = x.new_empty(len(x), self.outputs)
        for rows, columns, block in self.blocks(x.dtype):
            y[:, rows] = x[:, columns] @ block.T
        return y

    def product_of_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        """``gradient @ W`` in its dtype, shape (N, C)."""
        result = gradient.new_zeros(len(gradient), self.inputs)
        for rows, columns, block in self.blocks(gradient.dtype):
            result.index_add_(1, columns, gradient[:, rows] @ block)
        return result

    def _block(self, steps: slice, dtype: torch.dtype) -> torch.Tensor:
        # By step, fragment along the step, 16 rows, row % 8, k % 8 // 2, k // 8, row // 8, k % 2.
        values = self.values[steps]
        count, inner, blocks = values.shape[:3]
        parts = values.view(count, inner, blocks, 8, 4, 2, 2, 2).permute(2, 6, 3, 0, 1, 5, 4, 7)
        V = blocks * 16
        if inner != 2:
            return parts.reshape(V, count * STEP).to(dtype)
        # By step, 16 rows, row % 8, fragment along the step, k // 8.
        words = self.metadata[steps].view(count, blocks, 8, 2, 2)
        shifts = torch.arange(0, 32, 4, device=words.device, dtype=words.dtype).view(2, 4)
        nibbles = words[..., None, None] >> shifts
        nibbles = nibbles.permute(1, 5, 2, 0, 3, 4, 6).reshape(V, count * 16)
        places = torch.stack([nibbles & 3, nibbles >> 2 & 3], dim=2).long()
        block = values.new_zeros(V, count * 16, 4, dtype=dtype)
        block.scatter_(2, places, parts.reshape(V, count * 16, 2).to(dtype))
        return block.view(V, count * STEP)
