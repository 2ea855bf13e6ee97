"""A packed matrix on a CUDA device, and products with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gyroperm.arrays import is_torch
from gyroperm.gpu.device import (
    as_cupy,
    check_device,
    cuda_errors,
    cupy_module,
    current_stream,
    is_capturing,
    limits,
    resident_blocks,
    run,
)
from gyroperm.gpu.dispatch import choose
from gyroperm.gpu.format import HinmMatrix
from gyroperm.gpu.index import IndexTables
from gyroperm.gpu.operands import Layout, Product
from gyroperm.gpu.plans import Plan, Scratch, Target, make_plan, plan_key
from gyroperm.gpu.source import Variant
from gyroperm.gpu.spmm import activation_code


@dataclass(frozen=True, eq=False)
class DeviceMatrix:
    """A packed weight matrix on a CUDA device; made by :meth:`upload`.

    Whatever a product with N columns of X needs beside its operands is made by the first such
    product, or by :meth:`prepare`, and kept; later ones allocate nothing but their result, wait
    for nothing, and may be captured into a graph. Counters and, for CuPy, workspaces are among
    what is kept: the products of one matrix must follow one another, in one stream or by events.
    torch's products take their workspaces from torch's allocator.

    Parameters
    ----------
    values, metadata, columns, row_map : cupy.ndarray
        As :class:`HinmMatrix` has them, all on one device.
    index : IndexTables
        The tables on the host.
    dtype : {"float16", "bfloat16"}
    """

    values: Any
    metadata: Any
    columns: Any
    row_map: Any
    index: IndexTables
    dtype: str
    _plans: dict[tuple[str, int], Plan] = field(default_factory=dict, init=False, repr=False)
    _kept: dict[tuple[Any, ...], Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def upload(cls, matrix: HinmMatrix, device: int | None = None) -> DeviceMatrix:
        """Copy a packed matrix to a device.

        Parameters
        ----------
        matrix : HinmMatrix
        device : int, optional
            CuPy's current device by default.

        Raises
        ------
        ImportError
            If CuPy is not installed.
        RuntimeError
            If no driver answers, or the device is older than sm_80.
        ValueError
            If there is no such device.
        MemoryError
            If the device has too little memory.
        """
        check_device(device or 0)
        cupy = cupy_module()
        device = cupy.cuda.runtime.getDevice() if device is None else device
        limits(device)
        index = matrix.index
        arrays = matrix.values, matrix.metadata, index.columns, index.row_map
        doing = f"copying a packed matrix of {matrix.nbytes} bytes to CUDA device {device}"
        with cuda_errors(doing), cupy.cuda.Device(device):
            values, metadata, columns, row_map = (cupy.asarray(array) for array in arrays)
            # From here on any stream may read them.
            cupy.cuda.get_current_stream().synchronize()
        return cls(values, metadata, columns, row_map, index, matrix.dtype)

    @property
    def shape(self) -> tuple[int, int]:
        """(R, C)."""
        return self.index.outputs, self.index.inputs

    @property
    def device(self) -> int:
        """The index of the CUDA device."""
        return int(self.values.device.id)

    @property
    def sparse(self) -> bool:
        """Whether two of every four slots are stored (else all are)."""
        return int(self.values.shape[1]) == 2

    @property
    def product(self) -> Product:
        """What the operands of a product must be."""
        return Product(*self.shape, len(self.index.row_map), self.dtype, self.device)

    def prepare(self, n: int) -> None:
        """Make what products with N columns need: before their launches are captured.

        Raises
        ------
        ValueError
            If N is below 1.
        RuntimeError
            If a kernel does not compile, or CUDA fails.
        MemoryError
            If the device has too little memory.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        self._plan(n, current_stream())

    def multiply(
        self,
        x: Any,
        *,
        bias: Any = None,
        activation: str | None = None,
        out: Any = None,
        keep_order: bool = False,
        factor: Any = None,
        addend: Any = None,
        layout: Layout = "features",
    ) -> Any:
        """``activation(W X + bias) * factor + addend``, summed in float32.

        Runs on torch's current stream of the device where X is a torch tensor, else on CuPy's.

        Parameters
        ----------
        x : cupy.ndarray or torch.Tensor, shape (C, N), or (N, C) for ``layout="tokens"``
            Of the matrix's dtype, or uint16 for its bits, on its device; rows contiguous. Rows
            that all begin on 16 bytes (feature-major: N a multiple of 8) are read faster.
        bias : array, shape (R,), optional
        activation : {None, "relu", "gelu", "silu"}
            gelu in its exact form.
        out : array of the result's shape, optional
            What is written, not the memory of X; made in X's library by default. To be given
            where a stream of CuPy's is captured.
        keep_order : bool
            Leave rows in the order of the tiles, ``index.output_order``, for a consumer that is
            fused to it: the result has T * V rows, of which virtual ones are not written.
        factor, addend : array of the result's shape and row stride, optional
            For ``layout="features"``.
        layout : {"features", "tokens"}
            Whether X and the result are feature-major, as the kernels have them, or token-major,
            as torch has them: from 17 tokens on that takes a transpose on each side.

        Returns
        -------
        array of X's library and dtype, shape (R, N), or (N, R) for ``layout="tokens"``

        Raises
        ------
        TypeError
            If an array has another dtype, or is neither CuPy's nor torch's.
        ValueError
            If a shape does not fit, rows are not contiguous, an array lies on another device, or
            the activation or the layout is unknown; all before anything is launched.
        RuntimeError
            If CUDA refuses a launch, or the stream is being captured and this N is not prepared.
        MemoryError
            If the device has too little memory.
        """
        activation_code(activation)
        product = self.product
        n = product.columns(x, layout)
        if layout == "tokens" and (factor is not None or addend is not None):
            raise ValueError('factor and addend need layout="features"')
        shape = product.result_shape(n, layout, keep_order)
        product.check_rest(shape, bias=bias, out=out, factor=factor, addend=addend)
        stream = current_stream(x)
        if out is None:
            out = self._new(x, shape)
        if n == 0:
            return out
        launches = self._plan(n, stream).launches(
            self,
            as_cupy(x),
            as_cupy(out),
            self._torch_scratch(x) if is_torch(x) else self._kept_scratch(),
            layout=layout,
            keep_order=keep_order,
            activation=activation,
            bias=as_cupy(bias),
            factor=as_cupy(factor),
            addend=as_cupy(addend),
        )
        for launch in launches:
            run(launch, stream)
        return out

    def _plan(self, n: int, stream: Any) -> Plan:
        key = plan_key(choose(n), n)
        if key not in self._plans:
            if is_capturing(stream):
                raise RuntimeError(
                    f"a product with {n} columns is captured before anything was made for it: "
                    f"call prepare({n}), or multiply once, before the capture"
                )
            self._plans[key] = self._made(key)
        return self._plans[key]

    def _made(self, key: tuple[str, int]) -> Plan:
        cupy, device = cupy_module(), self.device
        of_device = limits(device)

        def resident(variant: Variant, threads: int, shared_bytes: int) -> int:
            return resident_blocks(variant, threads, shared_bytes, device)

        target = Target(of_device.multiprocessors, of_device.shared_bytes, resident, cupy.asarray)
        doing = f"making what {key[0]} needs for up to {key[1]} columns"
        with cuda_errors(doing), cupy.cuda.Device(device):
            plan = make_plan(key, self, target)
            cupy.cuda.get_current_stream().synchronize()
        return plan

    def _new(self, x: Any, shape: tuple[int, int]) -> Any:
        if is_torch(x):
            import torch

            return torch.empty(shape, dtype=x.dtype, device=x.device)
        return self._allocated(shape, x.dtype)

    def _torch_scratch(self, x: Any) -> Scratch:
        import torch

        # torch's allocator orders memory by streams, and gives captured graphs their own.
        def scratch(name: str, shape: tuple[int, ...], dtype: str) -> Any:
            return as_cupy(torch.empty(shape, dtype=getattr(torch, dtype), device=x.device))

        return scratch

    def _kept_scratch(self) -> Scratch:
        def scratch(name: str, shape: tuple[int, ...], dtype: str) -> Any:
            if (name, shape) not in self._kept:
                self._kept[name, shape] = self._allocated(shape, dtype)
            return self._kept[name, shape]

        return scratch

    def _allocated(self, shape: tuple[int, ...], dtype: Any) -> Any:
        cupy = cupy_module()
        doing = f"allocating an array of shape {shape} and dtype {dtype}"
        with cuda_errors(doing), cupy.cuda.Device(self.device):
            return cupy.empty(shape, dtype)
