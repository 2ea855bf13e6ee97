"""Products by cuBLAS on a dense copy of the weights, through torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from gyroperm.arrays import is_cupy, is_torch
from gyroperm.gpu.plans import Placed

if TYPE_CHECKING:
    import torch

# By their pointers: none, and what CUDA writes for the same stream.
_NULL_STREAMS = (0, 1)


@cache
def can_be_dense() -> bool:
    """Whether there is a torch that computes on CUDA devices."""
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())


@dataclass(frozen=True, eq=False)
class DenseProducts:
    """Of any number of columns, as cuBLAS computes them.

    Allocates nothing after it is made, but where a factor or an addend lies where the result is
    written. The product is rounded before an activation, factor and addend are applied, each of
    which rounds again; the kernels round once.

    Parameters
    ----------
    weights : Tensor of float16 or bfloat16, shape (R, C)
    """

    weights: torch.Tensor

    @classmethod
    def of(cls, matrix: Placed) -> DenseProducts:
        """The dense copy of a matrix, where it lies.

        Raises
        ------
        ImportError
            If torch is not installed.
        """
        import torch

        from gyroperm.gpu.torch_tiles import PackedTensors

        index = matrix.index
        dtype = getattr(torch, matrix.dtype)
        narrow = matrix.columns.dtype.itemsize == 2
        tensors = PackedTensors(
            as_torch(matrix.values, "int16").view(dtype),
            as_torch(matrix.metadata, "int32"),
            as_torch(matrix.columns, "int16" if narrow else "int32"),
            torch.from_numpy(index.tile_ptr.copy()),
            as_torch(matrix.row_map, "int32"),
            index.inputs,
            index.outputs,
        )
        with torch.no_grad():
            return cls(tensors.dense(dtype))

    def multiply(
        self,
        x: Any,
        out: Any,
        stream: Any,
        *,
        layout: str,
        activation: str | None = None,
        bias: Any = None,
        factor: Any = None,
        addend: Any = None,
    ) -> None:
        """Write a product, of arrays that have been checked, on a stream.

        Parameters
        ----------
        x, out, bias, factor, addend : array
            As :meth:`gyroperm.gpu.DeviceMatrix.multiply` has them.
        stream : cupy.cuda.Stream, or None for torch's current one
        layout, activation
            As there.
        """
        import torch

        with torch.no_grad(), _on(stream, self.weights.device):
            operands = (self._tensor(array) for array in (x, out, bias, factor, addend))
            x, out, bias, factor, addend = operands
            factor, addend = _apart(factor, out), _apart(addend, out)
            tokens = layout == "tokens"
            left, right = (x, self.weights.T) if tokens else (self.weights, x)
            if bias is None:
                torch.mm(left, right, out=out)
            else:
                torch.addmm(bias if tokens else bias[:, None], left, right, out=out)
            _activate(out, activation)
            if factor is not None:
                out.mul_(factor)
            if addend is not None:
                out.add_(addend)

    def _tensor(self, array: Any) -> torch.Tensor | None:
        if array is None:
            return None
        tensor = array.detach() if is_torch(array) else as_torch(array, "int16")
        return tensor.view(self.weights.dtype)


def _apart(tensor: torch.Tensor | None, out: torch.Tensor) -> torch.Tensor | None:
    """A tensor that writing the result leaves alone: kernels read each element before that."""
    if tensor is None or tensor.data_ptr() != out.data_ptr():
        return tensor
    return tensor.clone()


def as_torch(array: Any, dtype: str) -> torch.Tensor:
    """An array's memory as a tensor, its elements as a dtype of their size that torch has."""
    import torch

    viewed = array.view(dtype)
    if not is_cupy(array) and not array.flags.writeable:
        viewed = viewed.copy()  # torch has no tensors that must not be written
    return torch.as_tensor(viewed)


def _activate(out: torch.Tensor, activation: str | None) -> None:
    import torch

    if activation == "relu":
        out.relu_()
    elif activation == "gelu":
        torch.ops.aten.gelu.out(out, out=out)
    elif activation == "silu":
        torch.ops.aten.silu_(out)


@contextmanager
def _on(stream: Any, device: Any) -> Iterator[None]:
    import torch

    if stream is None:
        yield
    elif stream.ptr in _NULL_STREAMS:
        # Of no pointer torch would make a stream of its own, which waits for nothing.
        with torch.cuda.stream(torch.cuda.default_stream(device)):
            yield
    else:
        with torch.cuda.stream(torch.cuda.ExternalStream(stream.ptr, device=device)):
            yield
