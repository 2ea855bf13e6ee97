"""Linear layers of torch whose weights are packed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from gyroperm.gpu.format import HinmMatrix
from gyroperm.gpu.index import IndexTables
from gyroperm.gpu.torch_tiles import PackedTensors

if TYPE_CHECKING:
    from gyroperm.gpu.matrix import DeviceMatrix
    from gyroperm.solution import Solution

#: Of the state dict.
SCHEMA = 1

_DTYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
_PACKED = ("values", "metadata", "columns", "tile_ptr", "row_map", "described")
# A fresh layer has tiles of so many rows, without columns.
_FRESH_ROWS = 16


class HinmLinear(nn.Module):
    """``y = x W^T + b`` with packed weights, in the place of :class:`torch.nn.Linear`.

    On a CUDA device the product is computed by the package's kernels, on torch's current stream,
    and X must have the dtype of the weights (inside ``torch.autocast`` it is cast to it). On
    other devices it is computed by torch from the same stored values, in float32 (float64 for a
    float64 X), from X of any floating dtype, and rounded to it: to compare with, not for speed.

    The weights are frozen; gradients flow to X, and to the bias if it requires one.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    device : torch.device, optional
    dtype : {torch.float16, torch.bfloat16}
        Of weights and bias.

    Attributes
    ----------
    values, metadata, columns, tile_ptr, row_map : Tensor
        The packed weights, as buffers; see :class:`~gyroperm.gpu.HinmMatrix`. The bits of
        unsigned integers are held as signed ones of the same size.
    described : Tensor of int64, shape (3,)
        The schema of the state dict, ``in_features`` and ``out_features``.
    bias : Parameter, shape (out_features,), or None
        Requires no gradient unless it is asked to.
    allow_dense : bool
        Whether products on a CUDA device may run by cuBLAS on a dense copy of the weights, where
        that is taken to be faster. To be set before the first of them; True by default.
    window : bool
        Whether the first product on a CUDA device plans how tiles share a window of X, which is
        one more way to compute wide products with tiles of few rows; see
        :meth:`DeviceMatrix.upload`. The buffers then hold the same weights with the slots of each
        tile in another order. To be set before that product; False by default.

    Notes
    -----
    A new layer's weights are zero: it is there to load a state dict, of whatever tiles. Layers
    with weights are made by :meth:`from_linear` and :meth:`from_solution`.
    """

    values: torch.Tensor
    metadata: torch.Tensor
    columns: torch.Tensor
    tile_ptr: torch.Tensor
    row_map: torch.Tensor
    described: torch.Tensor
    bias: nn.Parameter | None
    allow_dense: bool = True
    window: bool = False

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float16,
    ) -> None:
        super().__init__()
        checked_dtype(dtype)
        self.in_features, self.out_features = in_features, out_features
        self._on_device: DeviceMatrix | None = None
        for name, tensor in _tensors(_without_weights(in_features, out_features, dtype)).items():
            self.register_buffer(name, tensor.to(device))
        zeros = torch.zeros(out_features, device=device, dtype=dtype) if bias else None
        self.bias = None if zeros is None else nn.Parameter(zeros, requires_grad=False)

    @classmethod
    def from_matrix(
        cls,
        matrix: HinmMatrix,
        bias: torch.Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> HinmLinear:
        """A layer of a packed matrix.

        Parameters
        ----------
        matrix : HinmMatrix
        bias : Tensor, shape (R,), optional
            Rounded to the matrix's dtype.
        device : torch.device, optional
            The bias's by default, else the host.

        Raises
        ------
        ValueError
            If the bias has another shape.
        """
        outputs, inputs = matrix.shape
        if bias is not None and tuple(bias.shape) != (outputs,):
            raise ValueError(f"bias must have shape ({outputs},), got {tuple(bias.shape)}")
        if device is None and bias is not None:
            device = bias.device
        dtype = getattr(torch, matrix.dtype)
        layer = cls(inputs, outputs, bias is not None, device, dtype)
        layer._adopt({name: tensor.to(device) for name, tensor in _tensors(matrix).items()})
        if bias is not None and layer.bias is not None:
            layer.bias.data.copy_(bias.detach())
        return layer

    @classmethod
    def from_solution(
        cls,
        solution: Solution,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> HinmLinear:
        """A layer of the weights that the mask of a solution keeps, on their device.

        Parameters
        ----------
        solution : Solution
            Of a weight of this shape.
        weight : Tensor, shape (R, C)
        bias : Tensor, shape (R,), optional
        dtype : {torch.float16, torch.bfloat16}, optional
            By default the weight's; float16 for a weight of another dtype.

        Raises
        ------
        TypeError
            If the dtype is another.
        ValueError
            If shapes do not fit, the pattern cannot be packed, or a weight is too large for the
            dtype; see :meth:`HinmMatrix.from_solution`.
        """
        name = None if dtype is None else checked_dtype(dtype)
        matrix = HinmMatrix.from_solution(solution, weight.detach(), name)
        return cls.from_matrix(matrix, bias, weight.device)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, solution: Solution, dtype: torch.dtype | None = None
    ) -> HinmLinear:
        """A layer in the place of a dense one; see :meth:`from_solution`."""
        layer = cls.from_solution(solution, linear.weight, linear.bias, dtype)
        return layer.train(linear.training)

    @property
    def packed(self) -> PackedTensors:
        """The packed weights, where they lie."""
        return PackedTensors(
            self.values,
            self.metadata,
            self.columns,
            self.tile_ptr,
            self.row_map,
            self.in_features,
            self.out_features,
        )

    @property
    def weight(self) -> torch.Tensor:
        """The masked weights as a dense matrix, unpacked at every access."""
        return self.packed.dense(self.values.dtype)

    def matrix(self) -> HinmMatrix:
        """The packed weights on the host."""
        return _matrix(self._packed_tensors(), self.in_features, self.out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The product.

        Parameters
        ----------
        x : Tensor, shape (..., in_features)

        Returns
        -------
        Tensor of x's dtype (inside autocast of the weights'), shape (..., out_features)

        Raises
        ------
        ValueError
            If x has another number of features, or lies on another device.
        TypeError
            If x is not floating, or on a CUDA device not of the weights' dtype.
        """
        self.check_input(x)
        if x.is_cuda and torch.is_autocast_enabled():
            x = x.to(self.values.dtype)
        if asks_for_gradients(self, x):
            return _Product.apply(x, self.bias, self)
        return self._product(x, self.bias)

    def extra_repr(self) -> str:
        """What a printed module shows."""
        stored = self.values.numel() / (self.in_features * self.out_features)
        inside = "2 of 4" if self.values.shape[1] == 2 else "dense"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, V={16 * self.values.shape[2]}, inside={inside}, "
            f"stored={100 * stored:.2f} %, dtype={self.values.dtype}"
        )

    def _product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        tokens = x.reshape(-1, self.in_features)
        if x.is_cuda:
            y = self._by_kernels(tokens, bias)
        else:
            computed = tokens.to(_computed_in(x.dtype))
            y = self.packed.product(computed)
            if bias is not None:
                y += bias
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _by_kernels(self, tokens: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if tokens.dtype != self.values.dtype:
            raise TypeError(
                f"x must have the weights' dtype {self.values.dtype} on a CUDA device, got "
                f"{tokens.dtype}: convert it, or run inside torch.autocast"
            )
        if not tokens.shape[0] or tokens.stride(1) != 1:
            tokens = tokens.contiguous()
        bias = None if bias is None else bias.detach()
        result: torch.Tensor = self.device_matrix().multiply(
            tokens.detach(), bias=bias, layout="tokens"
        )
        return result

    def device_matrix(self) -> DeviceMatrix:
        """The packed weights for the kernels, while they lie on a CUDA device.

        Raises
        ------
        RuntimeError
            If it has not been asked for yet, and torch's stream is being captured.
        """
        if self._on_device is None:
            from gyroperm.gpu.device import as_cupy, limits
            from gyroperm.gpu.matrix import DeviceMatrix

            if torch.cuda.is_current_stream_capturing():
                raise RuntimeError("run the layer once, with as many tokens, before the capture")
            if self.window:
                self._on_device = self._with_window()
                return self._on_device
            limits(self.values.device.index)
            columns = as_cupy(self.columns)
            # What torch has written on its own stream is there before any other reads it.
            torch.cuda.current_stream(self.values.device).synchronize()
            self._on_device = DeviceMatrix(
                as_cupy(self.values),
                as_cupy(self.metadata),
                columns.view("uint16") if columns.dtype.itemsize == 2 else columns,
                as_cupy(self.row_map),
                _index(self._packed_tensors(), self.in_features, self.out_features),
                _DTYPES[self.values.dtype],
                self.allow_dense,
            )
        return self._on_device

    def _with_window(self) -> DeviceMatrix:
        from gyroperm.gpu.dense import as_torch
        from gyroperm.gpu.matrix import DeviceMatrix

        matrix = DeviceMatrix.upload(
            self.matrix(), self.values.device.index, allow_dense=self.allow_dense, window=True
        )
        # Held once, by both.
        self.values = as_torch(matrix.values, "int16").view(self.values.dtype)
        self.metadata = as_torch(matrix.metadata, "int32")
        self.columns = as_torch(matrix.columns, str(self.columns.dtype).removeprefix("torch."))
        return matrix

    def check_input(self, x: torch.Tensor) -> None:
        """Raise unless x can be multiplied; see :meth:`forward`."""
        if not x.is_floating_point():
            raise TypeError(f"x must be floating, got {x.dtype}")
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"x must have shape (..., {self.in_features}), got {tuple(x.shape)}")
        if x.device != self.values.device:
            raise ValueError(f"x must lie on {self.values.device}, as the weights do: {x.device}")

    def _packed_tensors(self) -> dict[str, torch.Tensor]:
        return {name: getattr(self, name) for name in _PACKED}

    def _adopt(self, packed: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in packed.items():
            setattr(self, name, tensor)
        self._on_device = None

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        probe = fn(torch.empty(0, dtype=self.values.dtype, device=self.values.device))
        checked_dtype(probe.dtype)
        self._on_device = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        # Tiles differ from layer to layer, and so do the shapes of what is loaded.
        given = {name: state_dict[prefix + name] for name in _PACKED if prefix + name in state_dict}
        if len(given) == len(_PACKED):
            try:
                _matrix(given, self.in_features, self.out_features)
            except (TypeError, ValueError) as error:
                *_, messages = args
                messages.append(f'packed weights of "{prefix.rstrip(".")}": {error}')
                return
            given["values"] = given["values"].to(self.values.dtype)
            self._adopt({name: t.to(self.values.device) for name, t in given.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __getstate__(self) -> dict[str, Any]:
        # Plans and counters are of one device, and of one layer.
        return {**self.__dict__, "_on_device": None}


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, bias: torch.Tensor | None, layer: HinmLinear) -> Any:
        ctx.layer = layer
        return layer._product(x, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        layer: HinmLinear = ctx.layer
        of_x = of_bias = None
        rows = gradient.reshape(-1, layer.out_features)
        if ctx.needs_input_grad[0]:
            if gradient.is_cuda:
                of_x = rows @ layer.packed.dense(gradient.dtype)
            else:
                computed = rows.to(_computed_in(gradient.dtype))
                of_x = layer.packed.product_of_gradient(computed).to(gradient.dtype)
            of_x = of_x.view(*gradient.shape[:-1], layer.in_features)
        if ctx.needs_input_grad[1] and layer.bias is not None:
            of_bias = rows.sum(0, dtype=torch.float32).to(layer.bias.dtype)
        return of_x, of_bias, None


def asks_for_gradients(module: nn.Module, x: torch.Tensor) -> bool:
    """Whether a graph is to be kept of what a module makes of x."""
    return torch.is_grad_enabled() and (
        x.requires_grad or any(own.requires_grad for own in module.parameters())
    )


def checked_dtype(dtype: torch.dtype) -> str:
    """The name of a dtype that packed weights can have.

    Raises
    ------
    TypeError
        If they cannot.
    """
    if dtype not in _DTYPES:
        raise TypeError(
            f"packed weights have dtype torch.float16 or torch.bfloat16, got {dtype}; a layer on "
            f"the host takes inputs of any floating dtype"
        )
    return _DTYPES[dtype]


def _computed_in(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _without_weights(inputs: int, outputs: int, dtype: torch.dtype) -> HinmMatrix:
    if inputs < 1 or outputs < 1:
        raise ValueError(
            f"in_features and out_features must be at least 1, got {inputs} and {outputs}"
        )
    tiles = -(-outputs // _FRESH_ROWS)
    rows = np.full(tiles * _FRESH_ROWS, -1)
    rows[:outputs] = np.arange(outputs)
    index = IndexTables(np.empty(0, np.int64), np.zeros(tiles + 1, np.int64), rows, inputs, outputs)
    blocks = _FRESH_ROWS // 16
    return HinmMatrix(
        np.empty((0, 2, blocks, 32, 8), np.uint16),
        np.empty((0, blocks, 32), np.uint32),
        index,
        checked_dtype(dtype),
    )


def _tensors(matrix: HinmMatrix) -> dict[str, torch.Tensor]:
    def tensor(array: np.ndarray[Any, Any], dtype: type[np.generic]) -> torch.Tensor:
        return torch.from_numpy(array.view(dtype).copy())

    index = matrix.index
    wide = index.columns.dtype.itemsize == 4
    outputs, inputs = matrix.shape
    return {
        "values": tensor(matrix.values, np.int16).view(getattr(torch, matrix.dtype)),
        "metadata": tensor(matrix.metadata, np.int32),
        "columns": tensor(index.columns, np.int32 if wide else np.int16),
        "tile_ptr": tensor(index.tile_ptr, np.int32),
        "row_map": tensor(index.row_map, np.int32),
        "described": torch.tensor([SCHEMA, inputs, outputs]),
    }


def _matrix(packed: Mapping[str, Any], inputs: int, outputs: int) -> HinmMatrix:
    described = packed["described"].tolist()
    if described[:1] != [SCHEMA]:
        raise ValueError(f"their schema is {described[:1]}, this version reads {SCHEMA}")
    if described[1:] != [inputs, outputs]:
        raise ValueError(
            f"they are of {described[1:]} features in and out, the layer has {[inputs, outputs]}"
        )
    dtype = checked_dtype(packed["values"].dtype)
    return HinmMatrix(
        _host(packed["values"].view(torch.int16)).view(np.uint16),
        _host(packed["metadata"]).view(np.uint32),
        _index(packed, inputs, outputs),
        dtype,
    )


def _index(packed: Mapping[str, Any], inputs: int, outputs: int) -> IndexTables:
    columns = _host(packed["columns"])
    return IndexTables(
        columns.view(np.uint16) if columns.dtype == np.int16 else columns,
        _host(packed["tile_ptr"]),
        _host(packed["row_map"]),
        inputs,
        outputs,
    )


def _host(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = tensor.detach().cpu().contiguous().numpy()
    return array
