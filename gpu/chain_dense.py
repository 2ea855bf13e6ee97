"""Feed-forward blocks by cuBLAS, where the kernels would lose on every layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gyroperm.arrays import is_torch
from gyroperm.gpu.candidates import DENSE
from gyroperm.gpu.device import as_cupy, is_capturing, run
from gyroperm.gpu.launch import Launch
from gyroperm.gpu.matrix import DeviceMatrix
from gyroperm.gpu.operands import Layout
from gyroperm.gpu.plans import Scratch


@dataclass(frozen=True, eq=False)
class DenseLayers:
    """The layers of a block in their original order, to be multiplied with densely.

    Parameters
    ----------
    first, down : DeviceMatrix
        ``first`` is the one that has the activation.
    up : DeviceMatrix, optional
        Of a gated block: what the gate is multiplied with.
    first_bias, up_bias, down_bias : array or None
        In the original order, of any library.
    activation : {None, "relu", "gelu", "silu"}
    residual : bool
    """

    first: DeviceMatrix
    down: DeviceMatrix
    up: DeviceMatrix | None
    first_bias: Any
    up_bias: Any
    down_bias: Any
    activation: str | None
    residual: bool

    @property
    def matrices(self) -> tuple[DeviceMatrix, ...]:
        """The layers, as they are multiplied with one after the other."""
        return (self.first, *((self.up,) if self.up is not None else ()), self.down)

    def are_faster(self, n: int) -> bool:
        """Whether each of the layers is taken to be faster densely, and may be."""
        return all(matrix.choice(n).way == DENSE for matrix in self.matrices)

    def can_run(self, x: Any, stream: Any) -> bool:
        """Whether they can here: a graph of CuPy's holds no products of cuBLAS."""
        return is_torch(x) or not is_capturing(stream)

    def prepare(self, n: int, stream: Any) -> None:
        """Make the dense copies, and say so."""
        for matrix in self.matrices:
            matrix.dense_products(n, stream)

    def multiply(
        self,
        x: Any,
        out: Any,
        stream: Any,
        scratch: Scratch,
        *,
        layout: Layout,
        normalised: Callable[[Any], Launch] | None,
    ) -> None:
        """Write the block's result, of arrays that have been checked.

        Parameters
        ----------
        x, out : array
            As :meth:`gyroperm.gpu.Ffn.forward` has them; ``out`` may be x.
        stream : cupy.cuda.Stream
        scratch : Scratch
        layout : {"features", "tokens"}
        normalised : callable, optional
            Makes the launch that writes the norm of x into an array of its shape.
        """
        n = int(x.shape[1 if layout == "features" else 0])
        on = None if is_torch(x) else stream

        def product(matrix: DeviceMatrix, read: Any, written: Any, **epilogue: Any) -> Any:
            matrix.dense_products(n, stream).multiply(read, written, on, layout=layout, **epilogue)
            return written

        def memory(name: str, shape: tuple[int, int]) -> Any:
            return self.first.result(x, shape) if is_torch(x) else scratch(name, shape, "int16")

        rows = self.first.shape[0]
        shape = (rows, n) if layout == "features" else (n, rows)
        read = x
        if normalised is not None:
            read = memory("normalised", (int(x.shape[0]), int(x.shape[1])))
            run(normalised(as_cupy(read)), stream)
        hidden = product(
            self.first,
            read,
            memory("hidden", shape),
            bias=self.first_bias,
            activation=self.activation,
        )
        if self.up is not None:
            gate, hidden = hidden, memory("gated", shape)
            product(self.up, read, hidden, bias=self.up_bias, factor=gate)
        added = x if self.residual else None
        product(self.down, hidden, out, bias=self.down_bias, addend=added)
