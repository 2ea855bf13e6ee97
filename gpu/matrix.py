"""A packed matrix on a CUDA device, and products with it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gyroperm.arrays import is_torch
from gyroperm.gpu.candidates import DENSE, Way, candidates
from gyroperm.gpu.dense import DenseProducts, can_be_dense
from gyroperm.gpu.device import (
    as_cupy,
    card,
    check_device,
    cuda_errors,
    cupy_module,
    current_stream,
    driver_version,
    is_capturing,
    limits,
    load,
    resident_blocks,
    run,
)
from gyroperm.gpu.dispatch import (
    Choice,
    DenseProductWarning,
    choose,
    dense_message,
    explain,
)
from gyroperm.gpu.format import HinmMatrix
from gyroperm.gpu.index import IndexTables
from gyroperm.gpu.numbers import to_bits
from gyroperm.gpu.operands import LAYOUTS, Layout, Product, check_layout, stand_ins
from gyroperm.gpu.plans import Plan, Scratch, Target, make_plan, planned_columns
from gyroperm.gpu.reorder import reordered
from gyroperm.gpu.source import Variant
from gyroperm.gpu.spmm import activation_code
from gyroperm.gpu.timing import seconds_of
from gyroperm.gpu.tuned import TunedWays
from gyroperm.gpu.window import WindowPlan, window_blocking, window_plan

# Numbers that products are timed with, repeated: a prime, so that no two rows are alike.
_DRAWN = 1_000_003


@dataclass(frozen=True, eq=False)
class DeviceMatrix:
    """A packed weight matrix on a CUDA device; made by :meth:`upload`.

    Whatever a product with N columns of X needs beside its operands is made by the first such
    product, or by :meth:`prepare`, and kept; later ones allocate nothing but their result, wait
    for nothing, and may be captured into a graph. Counters and, for CuPy, workspaces are among
    what is kept: the products of one matrix must follow one another, in one stream or by events.
    torch's products take their workspaces from torch's allocator.

    Which kernel computes a product is chosen by what :meth:`tune` measured, else by a model of
    the card: see :meth:`explain`. Where cuBLAS is taken to be faster on the same weights with
    their zeros, it computes the product from a dense copy of them, which is made once; a
    :class:`DenseProductWarning` says so. That takes torch, and is never done with
    ``keep_order``.

    Parameters
    ----------
    values, metadata, columns, row_map : cupy.ndarray
        As :class:`HinmMatrix` has them, all on one device.
    index : IndexTables
        The tables on the host.
    dtype : {"float16", "bfloat16"}
    allow_dense : bool
        Whether products may be dense ones.
    window : WindowPlan, optional
        Whose order the matrix lies in: its tiles may then share a window of X.
    """

    values: Any
    metadata: Any
    columns: Any
    row_map: Any
    index: IndexTables
    dtype: str
    allow_dense: bool = True
    window: WindowPlan | None = None
    _choices: dict[tuple[Any, ...], Choice] = field(default_factory=dict, init=False, repr=False)
    _plans: dict[tuple[Way, int], Plan] = field(default_factory=dict, init=False, repr=False)
    _kept: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def upload(
        cls,
        matrix: HinmMatrix,
        device: int | None = None,
        *,
        allow_dense: bool = True,
        window: bool = False,
    ) -> DeviceMatrix:
        """Copy a packed matrix to a device.

        Parameters
        ----------
        matrix : HinmMatrix
        device : int, optional
            CuPy's current device by default.
        allow_dense : bool
            Whether products may run by cuBLAS on a dense copy, which takes its own memory.
        window : bool
            Plan on the host how tiles share a window of X (see :mod:`gyroperm.gpu.window`): one
            more way to compute wide products, for tiles of few rows. Takes seconds for large
            matrices; slots are reordered inside their tiles, for every way alike.

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
        plan = None
        if window:
            blocking = window_blocking(
                matrix.tile_size,
                matrix.shape[1],
                sparse=matrix.sparse,
                shared_limit=limits(device).shared_bytes,
            )
            plan = window_plan(matrix, blocking)
            matrix = reordered(matrix, plan.order)
        index = matrix.index
        arrays = matrix.values, matrix.metadata, index.columns, index.row_map
        doing = f"copying a packed matrix of {matrix.nbytes} bytes to CUDA device {device}"
        with cuda_errors(doing), cupy.cuda.Device(device):
            values, metadata, columns, row_map = (cupy.asarray(array) for array in arrays)
            # From here on any stream may read them.
            cupy.cuda.get_current_stream().synchronize()
        return cls(values, metadata, columns, row_map, index, matrix.dtype, allow_dense, plan)

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

        Tables, what CuPy's products keep, and kernels, for X in either layout, whether its rows
        begin on 16 bytes or not.

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
        stream = current_stream()
        for layout in LAYOUTS:
            for allow_dense in {self.allow_dense, False}:
                choice = self._choice(n, layout, allow_dense)
                self._say(choice)
                products = self._products(choice.way, n, stream)
                if not isinstance(products, DenseProducts):
                    self._load(products, n, layout)

    def _load(self, plan: Plan, n: int, layout: Layout) -> None:
        for x, out in stand_ins(*self.shape, n, layout):
            for launch in plan.launches(self, x, out, self._kept_scratch(), layout=layout):
                load(launch, self.device)

    def choice(self, n: int, layout: Layout = "features") -> Choice:
        """The way that products with N columns are computed, and why.

        Raises
        ------
        ValueError
            If ``n`` is below 1 or the layout is unknown.
        """
        return self._choice(n, layout, self.allow_dense)

    def explain(self, n: int, layout: Layout = "features") -> str:
        """A table of the ways to compute a product with N columns, and which is chosen.

        See :func:`gyroperm.gpu.explain`; for as many columns as the products have at most that
        share a choice with those of N.

        Raises
        ------
        ValueError
            If ``n`` is below 1 or the layout is unknown.
        """
        return explain(
            self,
            planned_columns(n),
            layout,
            card(self.device),
            self._tuned,
            window=self.window,
            aligned=n % 8 == 0,
            allow_dense=self._may_be_dense(),
        )

    def tune(
        self,
        n: int,
        layout: Layout = "features",
        *,
        repeats: int = 30,
        progress: bool = True,
    ) -> Choice:
        """Time the ways to compute a product on this card, and take the fastest from then on.

        What is measured is kept in a file of the cache folder and decides for all matrices of
        the same shape and tiles, for N up to the next power of two, in later processes too. Each
        run finds L2 without weights or X, as the layers of a large model do. Most of its time
        goes into kernels that are still to be compiled, some twenty.

        Parameters
        ----------
        n : int
            Columns of X.
        layout : {"features", "tokens"}
        repeats : int
            Runs of each way, of which the median counts.
        progress : bool
            Show a progress bar.

        Returns
        -------
        Choice

        Raises
        ------
        ValueError
            If ``n`` or ``repeats`` is below 1 or the layout is unknown.
        RuntimeError
            If a kernel does not compile, or CUDA fails.
        MemoryError
            If the device has too little memory.
        OSError
            If the file cannot be written.
        """
        if n < 1 or repeats < 1:
            raise ValueError(f"n and repeats must be at least 1, got {n} and {repeats}")
        check_layout(layout)
        of_device, aligned = card(self.device), n % 8 == 0
        found = candidates(
            self, n, layout, of_device, window=self.window, aligned=aligned, thorough=True
        )
        ways = [one.way for one in found if one.way != DENSE or self._may_be_dense()]
        # What the slower ones need is not kept.
        times = [
            (way, replace(self)._timed(way, n, layout, repeats)) for way in _shown(ways, progress)
        ]
        self._tuned.keep(self, n, layout, times, aligned=aligned)
        self._choices.clear()
        return self.choice(n, layout)

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
            out = self.result(x, shape)
        if n == 0:
            return out
        choice = self._choice(n, layout, self.allow_dense and not keep_order)
        self._say(choice)
        self._run(
            choice.way,
            n,
            x,
            out,
            stream,
            layout=layout,
            keep_order=keep_order,
            activation=activation,
            bias=bias,
            factor=factor,
            addend=addend,
        )
        return out

    def _run(
        self,
        way: Way,
        n: int,
        x: Any,
        out: Any,
        stream: Any,
        *,
        layout: str,
        keep_order: bool = False,
        activation: str | None = None,
        **epilogue: Any,
    ) -> None:
        """Launch a product, of arrays that have been checked."""
        products = self._products(way, n, stream)
        if isinstance(products, DenseProducts):
            if not is_torch(x) and is_capturing(stream):
                raise RuntimeError(
                    "a graph of CuPy's cannot hold products of cuBLAS: capture by torch, or "
                    "upload the matrix with allow_dense=False"
                )
            on = None if is_torch(x) else stream
            products.multiply(x, out, on, layout=layout, activation=activation, **epilogue)
            return
        launches = products.launches(
            self,
            as_cupy(x),
            as_cupy(out),
            self.scratch(x),
            layout=layout,
            keep_order=keep_order,
            activation=activation,
            **{name: as_cupy(array) for name, array in epilogue.items()},
        )
        for launch in launches:
            run(launch, stream)

    @property
    def _tuned(self) -> TunedWays:
        return TunedWays(card(self.device).name, driver_version())

    def _may_be_dense(self) -> bool:
        return self.allow_dense and can_be_dense()

    def _choice(self, n: int, layout: str, allow_dense: bool) -> Choice:
        key = planned_columns(n), layout, n % 8 == 0, allow_dense
        if key not in self._choices:
            self._choices[key] = choose(
                self,
                key[0],
                layout,
                card(self.device),
                self._tuned,
                window=self.window,
                aligned=key[2],
                allow_dense=allow_dense and can_be_dense(),
            )
        return self._choices[key]

    def _say(self, choice: Choice) -> None:
        if choice.way == DENSE and not self._kept.get("said"):
            self._kept["said"] = True
            warnings.warn(dense_message(self, choice.why), DenseProductWarning, stacklevel=3)

    def _products(self, way: Way, n: int, stream: Any) -> Plan | DenseProducts:
        columns = 0 if way.kind == "window" else planned_columns(n)
        made: Plan | DenseProducts | None
        made = self._kept.get(DENSE) if way == DENSE else self._plans.get((way, columns))
        if made is not None:
            return made
        if is_capturing(stream):
            raise RuntimeError(
                f"a product with {n} columns is captured before anything was made for it: "
                f"call prepare({n}), or multiply once, before the capture"
            )
        if way == DENSE:
            self._kept[DENSE] = self._made_dense()
            return self._kept[DENSE]
        self._plans[way, columns] = self._made(way, columns)
        return self._plans[way, columns]

    def _made(self, way: Way, columns: int) -> Plan:
        cupy, device = cupy_module(), self.device
        of_device = limits(device)

        def resident(variant: Variant, threads: int, shared_bytes: int) -> int:
            return resident_blocks(variant, threads, shared_bytes, device)

        target = Target(of_device.multiprocessors, of_device.shared_bytes, resident, cupy.asarray)
        doing = f"making what {way} needs"
        with cuda_errors(doing), cupy.cuda.Device(device):
            plan = make_plan(way, columns, self, target)
            cupy.cuda.get_current_stream().synchronize()
        return plan

    def _made_dense(self) -> DenseProducts:
        import torch

        with cuda_errors("making a dense copy of packed weights"), torch.cuda.device(self.device):
            made = DenseProducts.of(self)
            torch.cuda.current_stream().synchronize()
        return made

    def _timed(self, way: Way, n: int, layout: str, repeats: int) -> float:
        cupy, of_device = cupy_module(), card(self.device)
        rows, columns = self.shape
        x_shape, shape = (
            ((columns, n), (rows, n)) if layout == "features" else ((n, columns), (n, rows))
        )
        # Zeros would run faster. Numbers of the host: CuPy's own ask for another library.
        drawn = np.random.default_rng(0).standard_normal(_DRAWN, dtype=np.float32)
        with cuda_errors("making what a product is timed with"), cupy.cuda.Device(self.device):
            x = cupy.asarray(np.resize(to_bits(drawn, self.dtype), x_shape))
            out = cupy.empty(shape, "uint16")
            stream = cupy.cuda.Stream(non_blocking=True)
            # The one that has copied them is another.
            cupy.cuda.get_current_stream().synchronize()
        return seconds_of(
            lambda: self._run(way, n, x, out, stream, layout=layout),
            device=self.device,
            stream=stream,
            l2_size=of_device.l2_size,
            repeats=repeats,
        )

    def plan(self, n: int, layout: str, stream: Any) -> Plan:
        """What products of packed weights with N columns need, the fastest way.

        Raises
        ------
        RuntimeError
            If it has not been made yet, and the stream is being captured.
        """
        plan = self._products(self._choice(n, layout, False).way, n, stream)
        assert not isinstance(plan, DenseProducts)
        return plan

    def dense_products(self, n: int, stream: Any) -> DenseProducts:
        """What dense products with N columns need; a warning says once that there are some.

        Raises
        ------
        RuntimeError
            If it has not been made yet, and the stream is being captured.
        """
        self._say(self._choice(n, "features", True))
        products = self._products(DENSE, n, stream)
        assert isinstance(products, DenseProducts)
        return products

    def result(self, x: Any, shape: tuple[int, int]) -> Any:
        """A new array of X's library and dtype."""
        return _tensor(x, shape, x.dtype) if is_torch(x) else self._allocated(shape, x.dtype)

    def scratch(self, x: Any) -> Scratch:
        """Memory for the launches of one product: torch's for a tensor X, else what is kept."""
        return self._torch_scratch(x) if is_torch(x) else self._kept_scratch()

    def _torch_scratch(self, x: Any) -> Scratch:
        import torch

        # torch's allocator orders memory by streams, and gives captured graphs their own.
        def scratch(name: str, shape: tuple[int, ...], dtype: str) -> Any:
            return as_cupy(_tensor(x, shape, getattr(torch, dtype)))

        return scratch

    def _kept_scratch(self) -> Scratch:
        def scratch(name: str, shape: tuple[int, ...], dtype: str) -> Any:
            if (name, shape) not in self._kept:
                self._kept[name, shape] = self._allocated(shape, dtype)
            return self._kept[name, shape]

        return scratch

    def _allocated(self, shape: tuple[int, ...], dtype: Any) -> Any:
        cupy = cupy_module()
        with cuda_errors(_allocating(shape, dtype)), cupy.cuda.Device(self.device):
            return cupy.empty(shape, dtype)


def _tensor(like: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    import torch

    with cuda_errors(_allocating(shape, dtype)):
        return torch.empty(shape, dtype=dtype, device=like.device)


def _allocating(shape: tuple[int, ...], dtype: Any) -> str:
    return f"allocating an array of shape {shape} and dtype {dtype}"


def _shown(ways: list[Way], progress: bool) -> Iterable[Way]:
    from tqdm import tqdm

    shown: Iterable[Way] = tqdm(ways, "tuning", unit="way", disable=not progress, leave=False)
    return shown
