"""Convolutions of torch whose weights are packed, multiplied as the matrix of the im2col view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from gyroperm.gpu.format import HinmMatrix
from gyroperm.gpu.linear import HinmLinear, asks_for_gradients, checked_dtype

if TYPE_CHECKING:
    from gyroperm.solution import Solution

_Pair = int | tuple[int, int]


class HinmConv2d(nn.Module):
    """A convolution with packed weights, in the place of :class:`torch.nn.Conv2d`.

    The input's windows, one column for each output position, are what the packed matrix
    multiplies: feature-major as they are, so that no transpose is needed. On a CUDA device all
    images are one product. On other devices, and where a gradient is asked for, the product is
    that of a :class:`HinmLinear`.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, bias, padding_mode
        As :class:`torch.nn.Conv2d` has them; one group.
    device : torch.device, optional
    dtype : {torch.float16, torch.bfloat16}
        Of weights and bias.

    Attributes
    ----------
    product : HinmLinear
        The packed weights and the bias: of ``in_channels * kh * kw`` features in.

    Raises
    ------
    ValueError
        If the padding or its mode is none that torch has.

    Notes
    -----
    A new layer's weights are zero: it is there to load a state dict. Layers with weights are made
    by :meth:`from_solution`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Pair,
        stride: _Pair = 1,
        padding: _Pair | str = 0,
        dilation: _Pair = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float16,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride = _pair(kernel_size), _pair(stride)
        self.dilation, self.padding_mode = _pair(dilation), padding_mode
        self.padding = padding if isinstance(padding, str) else _pair(padding)
        if padding_mode not in ("zeros", "reflect", "replicate", "circular"):
            raise ValueError(
                f"padding_mode must be zeros, reflect, replicate or circular, got {padding_mode!r}"
            )
        self._around = _around(self.padding, self.kernel_size, self.dilation, self.stride)
        positions = self.kernel_size[0] * self.kernel_size[1]
        self.product = HinmLinear(in_channels * positions, out_channels, bias, device, dtype)

    @classmethod
    def from_solution(
        cls, solution: Solution, convolution: nn.Conv2d, dtype: torch.dtype | None = None
    ) -> HinmConv2d:
        """A layer in the place of a dense one, of the weights that a solution's mask keeps.

        Parameters
        ----------
        solution : Solution
            Of the convolution's weight, by a pattern that takes its im2col view.
        convolution : nn.Conv2d
            Of one group.
        dtype : {torch.float16, torch.bfloat16}, optional
            By default the weight's; float16 for a weight of another dtype.

        Raises
        ------
        TypeError
            If it is no Conv2d, or the dtype is another.
        ValueError
            If it has several groups, the solution is by input channel or of another shape, or
            the pattern cannot be packed; see :meth:`HinmMatrix.from_solution`.
        """
        name = None if dtype is None else checked_dtype(dtype)
        check_convolution(convolution)
        weight = convolution.weight.detach()
        return cls.from_matrix(HinmMatrix.from_solution(solution, weight, name), convolution)

    @classmethod
    def from_matrix(cls, matrix: HinmMatrix, convolution: nn.Conv2d) -> HinmConv2d:
        """A layer in the place of a dense one, of its packed weights, shape (R, C * kh * kw).

        Raises
        ------
        TypeError, ValueError
            As :meth:`from_solution`.
        """
        check_convolution(convolution)
        weight = convolution.weight
        expected = weight.shape[0], weight[0].numel()
        if matrix.shape != expected:
            raise ValueError(f"matrix must have shape {expected}, got {matrix.shape}")
        layer = cls(
            convolution.in_channels,
            convolution.out_channels,
            _pair(convolution.kernel_size),
            _pair(convolution.stride),
            convolution.padding
            if isinstance(convolution.padding, str)
            else _pair(convolution.padding),
            _pair(convolution.dilation),
            convolution.bias is not None,
            convolution.padding_mode,
            "meta",
            getattr(torch, matrix.dtype),
        )
        layer.product = HinmLinear.from_matrix(matrix, convolution.bias, weight.device)
        return layer.train(convolution.training)

    @property
    def weight(self) -> torch.Tensor:
        """The masked weights as a dense tensor, unpacked at every access."""
        shape = self.out_channels, self.in_channels, *self.kernel_size
        return self.product.weight.view(shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The convolution.

        Parameters
        ----------
        x : Tensor, shape (B, C, H, W) or (C, H, W)

        Returns
        -------
        Tensor of x's dtype (inside autocast of the weights'), shape (B, R, H', W') or (R, H', W')
            On a CUDA device with the channels outermost in memory.

        Raises
        ------
        ValueError
            If x has another shape, is too small for the kernel, or lies on another device.
        TypeError
            If x is not floating, or on a CUDA device not of the weights' dtype.
        """
        if x.dim() not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ValueError(
                f"x must have shape (B, {self.in_channels}, H, W) or ({self.in_channels}, H, W), "
                f"got {tuple(x.shape)}"
            )
        if not x.is_floating_point():
            raise TypeError(f"x must be floating, got {x.dtype}")
        images = x if x.dim() == 4 else x[None]
        if x.is_cuda and torch.is_autocast_enabled():
            images = images.to(self.product.values.dtype)
        if any(self._around):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            images = functional.pad(images, self._around, mode=mode)
        size = self._output_size(images)
        if not x.is_cuda or asks_for_gradients(self, x):
            y = self._by_tokens(images, size)
        else:
            y = self._by_features(images, size)
        return y if x.dim() == 4 else y[0]

    def extra_repr(self) -> str:
        """What a printed module shows."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}"
        )

    def _output_size(self, images: torch.Tensor) -> tuple[int, int]:
        sizes = [
            (length - dilation * (kernel - 1) - 1) // stride + 1
            for length, kernel, stride, dilation in zip(
                images.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True
            )
        ]
        if min(sizes) < 1:
            raise ValueError(
                f"x must be at least as large as the kernel, with padding it is "
                f"{tuple(images.shape[2:])}, the kernel {self.kernel_size} with dilation "
                f"{self.dilation}"
            )
        return sizes[0], sizes[1]

    def _by_tokens(self, images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        columns = functional.unfold(
            images, self.kernel_size, dilation=self.dilation, stride=self.stride
        )
        y = self.product(columns.transpose(1, 2)).transpose(1, 2)
        return y.reshape(len(images), self.out_channels, *size)

    def _by_features(self, images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        columns = windows(images, self.kernel_size, self.stride, self.dilation, size)
        self.product.check_input(columns.T)
        bias = self.product.bias
        y: torch.Tensor = self.product.device_matrix().multiply(
            columns.detach(), bias=None if bias is None else bias.detach()
        )
        return y.view(self.out_channels, len(images), *size).transpose(0, 1)


def windows(
    images: torch.Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    size: tuple[int, int],
) -> torch.Tensor:
    """The windows of all images as columns of one matrix, by a single copy.

    As :func:`torch.nn.functional.unfold` without padding has them, but for the images' place:
    they lie side by side in each row, where a product with few positions has more of them.

    Parameters
    ----------
    images : Tensor, shape (B, C, H, W)
    kernel, stride, dilation : tuple of int
    size : tuple of int
        H' and W', the positions.

    Returns
    -------
    Tensor, shape (C * kh * kw, B * H' * W')
    """
    of_image, of_channel, of_row, of_column = images.stride()
    view = images.as_strided(
        (images.shape[1], *kernel, len(images), *size),
        (
            of_channel,
            dilation[0] * of_row,
            dilation[1] * of_column,
            of_image,
            stride[0] * of_row,
            stride[1] * of_column,
        ),
    )
    return view.reshape(images.shape[1] * kernel[0] * kernel[1], -1)


def check_convolution(convolution: Any) -> None:
    """Refuse what :class:`HinmConv2d` cannot take the place of.

    Raises
    ------
    TypeError
        If it is no Conv2d.
    ValueError
        If it has several groups.
    """
    if not isinstance(convolution, nn.Conv2d):
        raise TypeError(f"convolution must be a Conv2d, got {type(convolution).__name__}")
    if convolution.groups != 1:
        raise ValueError(
            f"convolution must have one group, got {convolution.groups}: no single product is "
            f"behind it"
        )


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, second = value
    return first, second


def _around(
    padding: tuple[int, int] | str,
    kernel: tuple[int, int],
    dilation: tuple[int, int],
    stride: tuple[int, int],
) -> list[int]:
    """What is padded to the left, to the right, above and below."""
    if not isinstance(padding, str):
        return [padding[1], padding[1], padding[0], padding[0]]
    if padding == "valid":
        return [0, 0, 0, 0]
    if padding != "same" or stride != (1, 1):
        raise ValueError(
            f'padding must be numbers, "valid", or for stride 1 "same", got {padding!r} for '
            f"stride {stride}"
        )
    around: list[int] = []
    for size, spread in zip(reversed(kernel), reversed(dilation), strict=True):
        both = spread * (size - 1)
        around += [both // 2, both - both // 2]
    return around
