"""Feed-forward blocks whose activations stay feature-major, in the order that costs nothing.

The first layer leaves its rows where its tiles computed them; whatever reads them has tables that
know the order, whatever is combined with them is written to the same places. The original order
comes back where the residual needs it, by the row map of the last layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from gyroperm.gpu.arrays import check_contiguous, row_stride
from gyroperm.gpu.chain_dense import DenseLayers
from gyroperm.gpu.decode import MAX_COLUMNS
from gyroperm.gpu.device import as_cupy, cuda_errors, cupy_module, current_stream, load, run
from gyroperm.gpu.format import HinmMatrix
from gyroperm.gpu.fusion import fusion
from gyroperm.gpu.index import IndexTables, align, fuse
from gyroperm.gpu.launch import Launch
from gyroperm.gpu.matrix import DeviceMatrix
from gyroperm.gpu.operands import LAYOUTS, Layout, device_of, dtype_name, stand_ins
from gyroperm.gpu.permute import MOST_CHANNELS, rms_norm, rms_norm_to_features
from gyroperm.gpu.plans import DecodeProducts, Plan, Scratch
from gyroperm.gpu.spmm import activation_code
from gyroperm.gpu.transpose import to_features, to_tokens
from gyroperm.gpu.window import WindowPlan


@dataclass(frozen=True, eq=False)
class RmsNorm:
    """The normalisation before a block, rounded as ``LlamaRMSNorm`` of transformers does.

    Parameters
    ----------
    weight : array of 16-bit elements, shape (C,)
        Of the block's dtype, where its matrices lie.
    epsilon : float
        Added to the mean of squares.
    """

    weight: Any
    epsilon: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Ffn:
    """``y = x + W_down activation(W_up h + b_up) + b_down``, h being x or its RMSNorm.

    Made by :meth:`of`, which composes the tables; the permutation between the layers then costs
    nothing at run time. Where each of the layers is taken to be faster densely (see
    :meth:`DeviceMatrix.choice`), the block runs by cuBLAS, layer by layer, and says so; else by
    the kernels alone. What is kept, and captured, is as with :class:`DeviceMatrix`: calls must
    follow one another.

    Parameters
    ----------
    up, down : DeviceMatrix
        ``down`` reads the rows of ``up`` where the tiles of ``up`` leave them.
    activation : {None, "relu", "gelu", "silu"}
    up_bias, down_bias : array, optional
    residual : bool
        Whether x is added.
    norm : RmsNorm, optional
    dense : DenseLayers, optional
        The layers as they were, where dense products may take the place of the kernels'.
    """

    up: DeviceMatrix
    down: DeviceMatrix
    activation: str | None
    up_bias: Any = None
    down_bias: Any = None
    residual: bool = True
    norm: RmsNorm | None = None
    dense: DenseLayers | None = None

    @classmethod
    def of(
        cls,
        up: HinmMatrix | DeviceMatrix,
        down: HinmMatrix | DeviceMatrix,
        *,
        activation: str | None = "gelu",
        up_bias: Any = None,
        down_bias: Any = None,
        residual: bool = True,
        norm: RmsNorm | None = None,
    ) -> Ffn:
        """A block of layers that have tables of their own.

        Parameters
        ----------
        up : HinmMatrix or DeviceMatrix, shape (D, C)
            A matrix of the host is copied to CuPy's current device.
        down : HinmMatrix or DeviceMatrix, shape (R, D)
            Its values are shared, its tables composed anew.
        activation : {None, "relu", "gelu", "silu"}
            gelu in its exact form.
        up_bias, down_bias : array, shapes (D,) and (R,), optional
            Of the matrices' dtype (or uint16, its bits), on their device.
        residual : bool
            Add x, for which R must be C.
        norm : RmsNorm, optional
            Applied to tokens on their way in.

        Raises
        ------
        ImportError, RuntimeError, MemoryError
            As :meth:`DeviceMatrix.upload`.
        TypeError
            If an array is of another dtype.
        ValueError
            If shapes, dtypes or devices do not fit together, or the activation is unknown.
        """
        up, down = _together(up=up, down=down)
        _check_shapes(up, down, activation, residual, norm)
        _check_bias(up, "up_bias", up_bias)
        _check_bias(down, "down_bias", down_bias)
        (reading,) = _composed(up, Follower(down, reads=True))
        return cls(
            up=up,
            down=reading,
            activation=activation,
            up_bias=as_cupy(up_bias),
            down_bias=as_cupy(down_bias),
            residual=residual,
            norm=norm,
            dense=DenseLayers(up, down, None, up_bias, None, down_bias, activation, residual),
        )

    @property
    def matrices(self) -> tuple[DeviceMatrix, ...]:
        """The layers, as they are multiplied with one after the other."""
        return self.up, self.down

    @property
    def inputs(self) -> int:
        """C, the features of x."""
        return self.matrices[0].index.inputs

    @property
    def outputs(self) -> int:
        """R, the features of the result."""
        return self.down.index.outputs

    def launches(
        self,
        x: Any,
        out: Any,
        *,
        plans: Sequence[Plan],
        scratch: Scratch,
        layout: Layout = "features",
    ) -> list[Launch]:
        """The launches of a block, in their order; nothing is allocated but by ``scratch``.

        Parameters
        ----------
        x, out : array, shapes (C, N) and (R, N), or (N, C) and (N, R) for ``layout="tokens"``
            ``out`` is written; it may be x itself. With a residual, feature-major ones have the
            same row stride.
        plans : sequence of Plan
            For each of :attr:`matrices` one for N columns.
        scratch : Scratch
        layout : {"features", "tokens"}

        Raises
        ------
        ValueError
            If the layout does not go with the norm, or row strides differ.
        """
        edges = self._edges(x, out, scratch, layout, plans)
        *before, last = plans
        hidden = _hidden(scratch, len(self.matrices[0].index.row_map), edges)
        return [
            *edges.before,
            *self._into(hidden, edges, before, scratch),
            *last.launches(
                self.down,
                hidden,
                edges.written,
                scratch,
                layout=edges.layout,
                bias=self.down_bias,
                addend=edges.residual,
            ),
            *edges.after,
        ]

    def prepare(self, n: int) -> None:
        """Make what N tokens need: before their launches are captured.

        Raises
        ------
        ValueError, RuntimeError, MemoryError
            As :meth:`DeviceMatrix.prepare`.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        stream, first = current_stream(), self.matrices[0]
        if self.dense is not None and self.dense.are_faster(n):
            self.dense.prepare(n, stream)
        layouts: tuple[Layout, ...] = LAYOUTS if self.norm is None else ("tokens",)
        for layout in layouts:
            plans = self._plans(n, layout, stream)
            for x, out in stand_ins(self.outputs, self.inputs, n, layout):
                scratch = first.scratch(x)
                for launch in self.launches(x, out, plans=plans, scratch=scratch, layout=layout):
                    load(launch, first.device)

    def forward(self, x: Any, *, out: Any = None, layout: Layout = "features") -> Any:
        """The block's result, on torch's current stream for a tensor, else on CuPy's.

        Parameters
        ----------
        x : cupy.ndarray or torch.Tensor, shape (C, N), or (N, C) for ``layout="tokens"``
            Of the matrices' dtype, or uint16 for its bits, on their device.
        out : array of the result's shape, optional
            May be x itself. To be given where a stream of CuPy's is captured.
        layout : {"features", "tokens"}
            More than 16 tokens are transposed on their way in and out. A norm takes tokens.

        Returns
        -------
        array of x's library and dtype, shape (R, N), or (N, R) for ``layout="tokens"``

        Raises
        ------
        TypeError, ValueError, RuntimeError, MemoryError
            As :meth:`DeviceMatrix.multiply`.
        """
        first = self.matrices[0]
        n = first.product.columns(x, layout)
        self._check_layout(layout)
        shape = (self.outputs, n) if layout == "features" else (n, self.outputs)
        self.down.product.check_rest(shape, out=out)
        stream = current_stream(x)
        if out is None:
            out = self._result(x, shape, layout)
        if n == 0:
            return out
        dense = self.dense
        if dense is not None and dense.are_faster(n) and dense.can_run(x, stream):
            norm = None if self.norm is None else partial(self._normalised, rms_norm, as_cupy(x))
            scratch = first.scratch(x)
            dense.multiply(x, out, stream, scratch, layout=layout, normalised=norm)
            return out
        launches = self.launches(
            as_cupy(x),
            as_cupy(out),
            plans=self._plans(n, layout, stream),
            scratch=first.scratch(x),
            layout=layout,
        )
        for launch in launches:
            run(launch, stream)
        return out

    def _plans(self, n: int, layout: str, stream: Any) -> list[Plan]:
        plans = [matrix.plan(n, layout, stream) for matrix in self.matrices]
        if layout == "features" or all(isinstance(plan, DecodeProducts) for plan in plans):
            return plans
        # Transposed on both sides of the chain, not of each product.
        return [matrix.plan(n, "features", stream) for matrix in self.matrices]

    def _into(
        self, hidden: Any, edges: _Edges, plans: Sequence[Plan], scratch: Scratch
    ) -> list[Launch]:
        """What writes the hidden activations, in the order of the first layer's tiles."""
        (plan,) = plans
        return plan.launches(
            self.up,
            edges.read,
            hidden,
            scratch,
            layout=edges.layout,
            keep_order=True,
            activation=self.activation,
            bias=self.up_bias,
        )

    def _edges(
        self, x: Any, out: Any, scratch: Scratch, layout: str, plans: Sequence[Plan]
    ) -> _Edges:
        self._check_layout(layout)
        added = x if self.residual else None
        as_it_lies = not self.residual or row_stride(x) == row_stride(out)
        if layout == "features":
            if not as_it_lies:
                raise ValueError(
                    f"out must have the row stride of x, {row_stride(x)}, as x is added to it, "
                    f"got {row_stride(out)}"
                )
            return _Edges("features", [], x, added, out, [])
        if as_it_lies and all(isinstance(plan, DecodeProducts) for plan in plans):
            if self.norm is None:
                return _Edges("tokens", [], x, added, out, [])
            read = scratch("normalised", tuple(x.shape), "int16")
            return _Edges("tokens", [self._normalised(rms_norm, x, read)], read, added, out, [])
        return self._transposed(x, out, scratch)

    def _transposed(self, x: Any, out: Any, scratch: Scratch) -> _Edges:
        n, before = len(x), []
        read = residual = None
        if self.norm is not None:
            read = _features(scratch, "normalised", self.inputs, n)
            before.append(self._normalised(rms_norm_to_features, x, read))
        if self.residual or self.norm is None:
            residual = _features(scratch, "x", self.inputs, n)
            before.append(to_features(x, residual))
            read = residual if read is None else read
        if not self.residual:
            written = _features(scratch, "y", self.outputs, n)
            return _Edges("features", before, read, None, written, [to_tokens(written, out)])
        # Where x was is its sum with the block, element by element.
        return _Edges("features", before, read, residual, residual, [to_tokens(residual, out)])

    def _normalised(self, by: Callable[..., Launch], x: Any, to: Any) -> Launch:
        norm = self.norm
        assert norm is not None
        return by(x, as_cupy(norm.weight), to, epsilon=norm.epsilon, dtype=self.down.dtype)

    def _check_layout(self, layout: str) -> None:
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
        if self.norm is not None and layout != "tokens":
            raise ValueError(f'a norm needs layout="tokens", got layout="{layout}"')

    def _result(self, x: Any, shape: tuple[int, int], layout: str) -> Any:
        if layout == "features" and self.residual and shape[1]:
            return self.down.result(x, (shape[0], row_stride(x)))[:, : shape[1]]
        return self.down.result(x, shape)


@dataclass(frozen=True, eq=False, kw_only=True)
class GatedFfn(Ffn):
    """``y = x + W_down (activation(W_gate h) * (W_up h))``, h being x or its RMSNorm.

    As :class:`Ffn`; ``gate`` leaves its rows in the order of its tiles, ``up`` multiplies them
    where they lie.

    Parameters
    ----------
    gate, up, down : DeviceMatrix
        The row map of ``up`` leads to the rows of ``gate``, where ``down`` reads them.
    gate_bias : array, optional
    up_bias : array, optional
        In the order of the rows of ``gate``.
    activation, down_bias, residual, norm
        As with :class:`Ffn`.
    """

    gate: DeviceMatrix
    gate_bias: Any = None

    @classmethod
    def of(  # type: ignore[override]
        cls,
        gate: HinmMatrix | DeviceMatrix,
        up: HinmMatrix | DeviceMatrix,
        down: HinmMatrix | DeviceMatrix,
        *,
        activation: str | None = "silu",
        gate_bias: Any = None,
        up_bias: Any = None,
        down_bias: Any = None,
        residual: bool = True,
        norm: RmsNorm | None = None,
    ) -> GatedFfn:
        """A block of layers that have tables of their own.

        Parameters
        ----------
        gate, up : HinmMatrix or DeviceMatrix, shape (D, C)
        down : HinmMatrix or DeviceMatrix, shape (R, D)
        gate_bias, up_bias, down_bias : array, shapes (D,), (D,) and (R,), optional
            In the original order.
        activation, residual, norm
            As :meth:`Ffn.of`.

        Raises
        ------
        ImportError, RuntimeError, MemoryError, TypeError, ValueError
            As :meth:`Ffn.of`.
        """
        gate, up, down = _together(gate=gate, up=up, down=down)
        if up.shape != gate.shape:
            raise ValueError(f"up must have the shape of gate, {gate.shape}, got {up.shape}")
        _check_shapes(up, down, activation, residual, norm)
        for matrix, name, bias in (
            (gate, "gate_bias", gate_bias),
            (up, "up_bias", up_bias),
            (down, "down_bias", down_bias),
        ):
            _check_bias(matrix, name, bias)
        beside, reading = _composed(gate, Follower(up, reads=False), Follower(down, reads=True))
        biases = gate_bias, up_bias, down_bias
        return cls(
            gate=gate,
            up=beside,
            down=reading,
            activation=activation,
            gate_bias=as_cupy(gate_bias),
            up_bias=_moved(gate, up_bias),
            down_bias=as_cupy(down_bias),
            residual=residual,
            norm=norm,
            dense=DenseLayers(gate, down, up, *biases, activation, residual),
        )

    @property
    def matrices(self) -> tuple[DeviceMatrix, ...]:
        """The layers, as they are multiplied with one after the other."""
        return self.gate, self.up, self.down

    def _into(
        self, hidden: Any, edges: _Edges, plans: Sequence[Plan], scratch: Scratch
    ) -> list[Launch]:
        of_gate, of_up = plans
        gate = of_gate.launches(
            self.gate,
            edges.read,
            hidden,
            scratch,
            layout=edges.layout,
            keep_order=True,
            activation=self.activation,
            bias=self.gate_bias,
        )
        # In place: each element is read and written by one thread.
        up = of_up.launches(
            self.up,
            edges.read,
            hidden,
            scratch,
            layout=edges.layout,
            bias=self.up_bias,
            factor=hidden,
        )
        return [*gate, *up]


class Follower(NamedTuple):
    """A matrix whose tables are composed: it reads the rows of the first, or lies on them."""

    matrix: DeviceMatrix
    reads: bool


def composition(
    first: DeviceMatrix, position_of: Any, followers: Sequence[tuple[Follower, Any]]
) -> list[Launch]:
    """The launches that compose tables on the device, as the host composes them.

    Parameters
    ----------
    first : DeviceMatrix
        The layer that leaves its rows in the order of its tiles.
    position_of : array of int32, shape (D,)
        Written: where each of its rows lies.
    followers : sequence of (Follower, array)
        Of each follower its matrix, and the array that its column table, or its row map, is
        written to.
    """
    return fusion(
        first.row_map,
        position_of,
        [(matrix.columns if reads else matrix.row_map, to) for (matrix, reads), to in followers],
    )


class _Edges(NamedTuple):
    """How a chain is entered and left: the layout inside, its ends, and launches on both sides."""

    layout: str
    before: list[Launch]
    read: Any
    residual: Any
    written: Any
    after: list[Launch]


def _hidden(scratch: Scratch, rows: int, edges: _Edges) -> Any:
    if edges.layout == "tokens":
        return scratch("hidden", (len(edges.read), rows), "int16")
    return _features(scratch, "hidden", rows, edges.read.shape[1])


def _features(scratch: Scratch, name: str, rows: int, n: int) -> Any:
    # Rows that begin on 16 bytes, and few sizes to keep; a few columns lie closer together.
    width = n if n <= MAX_COLUMNS else -(-n // 64) * 64
    return scratch(name, (rows, width), "int16")[:, :n]


def _together(**given: HinmMatrix | DeviceMatrix) -> list[DeviceMatrix]:
    """The matrices on one device, of one dtype."""
    placed = {
        name: DeviceMatrix.upload(matrix) if isinstance(matrix, HinmMatrix) else matrix
        for name, matrix in given.items()
    }
    first, *others = placed.items()
    for name, matrix in others:
        if matrix.dtype != first[1].dtype:
            raise ValueError(
                f"{name} must have the dtype of {first[0]}, {first[1].dtype}, got {matrix.dtype}"
            )
        if device_of(matrix.values) != device_of(first[1].values):
            raise ValueError(
                f"{name} must lie on the device of {first[0]}, {device_of(first[1].values)}, got "
                f"{device_of(matrix.values)}"
            )
    return list(placed.values())


def _check_shapes(
    up: DeviceMatrix,
    down: DeviceMatrix,
    activation: str | None,
    residual: bool,
    norm: RmsNorm | None,
) -> None:
    activation_code(activation)
    hidden, inputs = up.shape
    if down.shape[1] != hidden:
        raise ValueError(f"down must have {hidden} columns, the rows of up, got {down.shape}")
    if residual and down.shape[0] != inputs:
        raise ValueError(
            f"down must have {inputs} rows, the columns of up, for x to be added, got {down.shape}"
        )
    if norm is not None:
        _check_vector(up, "the weight of norm", norm.weight, inputs)
        if inputs > MOST_CHANNELS:
            raise ValueError(f"norm takes at most {MOST_CHANNELS} features, got {inputs}")


def _check_bias(matrix: DeviceMatrix, name: str, bias: Any) -> None:
    if bias is not None:
        _check_vector(matrix, name, bias, matrix.shape[0])


def _check_vector(matrix: DeviceMatrix, name: str, array: Any, length: int) -> None:
    if dtype_name(array) not in (matrix.dtype, "uint16"):
        raise TypeError(
            f"{name} must have the weights' dtype {matrix.dtype} (or uint16, its bits), got "
            f"{dtype_name(array)}"
        )
    if tuple(array.shape) != (length,):
        raise ValueError(f"{name} must have shape ({length},), got {tuple(array.shape)}")
    check_contiguous(name, array)
    if device_of(array) != device_of(matrix.values):
        raise ValueError(
            f"{name} must lie where the weights do, device {device_of(matrix.values)}, got "
            f"{device_of(array)}"
        )


def _composed(first: DeviceMatrix, *followers: Follower) -> list[DeviceMatrix]:
    """The followers with tables for where the tiles of the first leave its rows."""
    order = first.index.row_map
    indices = [
        fuse(matrix.index, order) if reads else align(matrix.index, order)
        for matrix, reads in followers
    ]
    tables = [
        index.columns if reads else index.row_map
        for (_, reads), index in zip(followers, indices, strict=True)
    ]
    if device_of(first.values) is not None:
        tables = _composed_on_device(first, followers, tables)
    return [
        replace(matrix, index=index, columns=table, window=_fused_window(matrix, index))
        if reads
        else replace(matrix, index=index, row_map=table)
        for (matrix, reads), index, table in zip(followers, indices, tables, strict=True)
    ]


def _fused_window(matrix: DeviceMatrix, index: IndexTables) -> WindowPlan | None:
    plan = matrix.window
    return None if plan is None else plan.fused(matrix.index.columns, index.columns)


def _composed_on_device(
    first: DeviceMatrix, followers: Sequence[Follower], tables: Sequence[Any]
) -> list[Any]:
    cupy = cupy_module()
    stream = cupy.cuda.get_current_stream()
    with cuda_errors("composing index tables"), cupy.cuda.Device(first.device):
        made = [cupy.empty(table.shape, table.dtype) for table in tables]
        position_of = cupy.empty(first.index.outputs, "int32")
        pairs = [pair for pair in zip(followers, made, strict=True) if len(pair[1])]
        for launch in composition(first, position_of, pairs):
            run(launch, stream)
        # From here on any stream may read them.
        stream.synchronize()
    return made


def _moved(first: DeviceMatrix, bias: Any) -> Any:
    """A bias in the order in which the tiles of the first layer leave its rows."""
    if bias is None:
        return None
    order = np.maximum(first.index.row_map, 0)
    if device_of(bias) is None:
        return np.asarray(bias)[order]
    cupy, stream = cupy_module(), current_stream(bias)
    # By the host, once: CuPy would compile kernels of its own, from headers that may not be there.
    with cuda_errors("moving a bias"), cupy.cuda.Device(first.device), stream:
        moved = cupy.asarray(cupy.asnumpy(as_cupy(bias))[order])
        stream.synchronize()
    return moved
