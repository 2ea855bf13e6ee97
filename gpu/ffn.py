"""Feed-forward blocks of torch whose layers are packed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from gyroperm.gpu.linear import HinmLinear, asks_for_gradients
from gyroperm.gpu.spmm import activation_code

if TYPE_CHECKING:
    from gyroperm.gpu.chain import Ffn
    from gyroperm.gpu.matrix import DeviceMatrix

_ACTIVATIONS: dict[str | None, Callable[[torch.Tensor], torch.Tensor]] = {
    None: lambda x: x,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
}


class HinmFfn(nn.Module):
    """``x + down(activation(gate(h)) * up(h))``, h being x or its RMSNorm; or without the gate.

    On a CUDA device the layers are multiplied as one chain, :class:`~gyroperm.gpu.GatedFfn` or
    :class:`~gyroperm.gpu.Ffn`, whose activations stay feature-major and in the order of the
    tiles. On other devices, and where a gradient is asked for, layer by layer.

    Parameters
    ----------
    up, down : HinmLinear
    gate : HinmLinear, optional
    activation : {None, "relu", "gelu", "silu"}
        gelu in its exact form.
    residual : bool
        Whether x is added to what comes of it.
    norm : nn.Module, optional
        With a ``weight``, and an ``eps`` or ``variance_epsilon``: :class:`torch.nn.RMSNorm`, or
        one of a model. It is computed as ``LlamaRMSNorm`` of transformers does.

    Raises
    ------
    ValueError
        If the layers' features do not fit together, the activation is unknown, or the norm has
        no such weight.
    """

    gate: HinmLinear | None
    up: HinmLinear
    down: HinmLinear
    norm: nn.Module | None

    def __init__(
        self,
        up: HinmLinear,
        down: HinmLinear,
        gate: HinmLinear | None = None,
        *,
        activation: str | None = "silu",
        residual: bool = False,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        activation_code(activation)
        features = up.in_features, up.out_features
        if gate is not None and (gate.in_features, gate.out_features) != features:
            raise ValueError(
                f"gate must have the features of up, {features}, got "
                f"{(gate.in_features, gate.out_features)}"
            )
        if down.in_features != up.out_features:
            raise ValueError(
                f"down must take the {up.out_features} features of up, takes {down.in_features}"
            )
        if residual and down.out_features != up.in_features:
            raise ValueError(
                f"down must have the {up.in_features} features of x for x to be added, has "
                f"{down.out_features}"
            )
        if norm is not None:
            _check_norm(norm, up.in_features)
        self.gate, self.up, self.down, self.norm = gate, up, down, norm
        self.activation, self.residual = activation, residual
        self._chain: tuple[tuple[Any, ...], Ffn] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's result.

        Parameters
        ----------
        x : Tensor, shape (..., C)

        Returns
        -------
        Tensor of x's dtype (inside autocast of the weights'), shape (..., R)

        Raises
        ------
        ValueError, TypeError
            As :meth:`HinmLinear.forward`.
        """
        if x.is_cuda and torch.is_autocast_enabled():
            x = x.to(self.up.values.dtype)
        if not x.is_cuda or asks_for_gradients(self, x):
            return self._by_layers(x)
        self.up.check_input(x)
        tokens = x.detach().reshape(-1, self.up.in_features)
        if not len(tokens) or tokens.stride(1) != 1:
            tokens = tokens.contiguous()
        y: torch.Tensor = self._chained().forward(tokens, layout="tokens")
        return y.view(*x.shape[:-1], self.down.out_features)

    def _by_layers(self, x: torch.Tensor) -> torch.Tensor:
        h = x if self.norm is None else _normalised(self.norm, x)
        activated = _ACTIVATIONS[self.activation]
        if self.gate is None:
            y = self.down(activated(self.up(h)))
        else:
            y = self.down(activated(self.gate(h)) * self.up(h))
        return x + y if self.residual else y

    def _chained(self) -> Ffn:
        """The chain of the layers as they are now."""
        layers = [layer for layer in (self.gate, self.up, self.down) if layer is not None]
        matrices = [layer.device_matrix() for layer in layers]
        weight = None if self.norm is None else _weight(self.norm)
        beside = (*(layer.bias for layer in layers), weight)
        # A bias is copied into another order: it may have been written since.
        key = (*matrices, *((t.data_ptr(), t._version) for t in beside if t is not None))
        if self._chain is None or self._chain[0] != key:
            if torch.cuda.is_current_stream_capturing():
                raise RuntimeError("run the block once, with as many tokens, before the capture")
            self._chain = key, self._composed(matrices)
        return self._chain[1]

    def _composed(self, matrices: list[DeviceMatrix]) -> Ffn:
        from gyroperm.gpu.chain import Ffn, GatedFfn, RmsNorm

        norm = None
        if self.norm is not None:
            norm = RmsNorm(_weight(self.norm).detach(), _epsilon(self.norm))
        options: dict[str, Any] = {
            "activation": self.activation,
            "up_bias": _detached(self.up.bias),
            "down_bias": _detached(self.down.bias),
            "residual": self.residual,
            "norm": norm,
        }
        if self.gate is None:
            return Ffn.of(*matrices, **options)
        return GatedFfn.of(*matrices, gate_bias=_detached(self.gate.bias), **options)

    def __getstate__(self) -> dict[str, Any]:
        # A chain is of one device.
        return {**self.__dict__, "_chain": None}


def _detached(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.detach()


def _check_norm(norm: nn.Module, features: int) -> None:
    weight = getattr(norm, "weight", None)
    if not isinstance(weight, torch.Tensor) or tuple(weight.shape) != (features,):
        raise ValueError(f"norm must have a weight of shape ({features},), got {norm}")
    if getattr(norm, "bias", None) is not None:
        raise ValueError(f"norm must be an RMSNorm, which has no bias, got {norm}")
    _epsilon(norm)


def _weight(norm: Any) -> torch.Tensor:
    weight: torch.Tensor = norm.weight
    return weight


def _epsilon(norm: nn.Module) -> float:
    for name in ("eps", "variance_epsilon"):
        epsilon = getattr(norm, name, None)
        if epsilon is not None:
            return float(epsilon)
    raise ValueError(f"norm must have an eps or a variance_epsilon, got {norm}")


def _normalised(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    wide = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + _epsilon(norm))
    return (_weight(norm) * (wide * scale).to(x.dtype)).to(x.dtype)
