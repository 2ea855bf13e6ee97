"""What multiplies with packed weights: the packed matrix, kernels for it, and torch layers.

A :class:`HinmMatrix` is packed from a :class:`~gyroperm.solution.Solution` on the host; a
:class:`DeviceMatrix` multiplies with it on a CUDA device, through CuPy; a :class:`HinmLinear` is
a layer of torch, a :class:`HinmConv2d` a convolution. :class:`Ffn`, :class:`GatedFfn` and, for
torch, :class:`HinmFfn` are chains of layers without a permutation between them. Neither CuPy nor
torch is imported before it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gyroperm.gpu.format import HinmMatrix
from gyroperm.gpu.index import IndexTables, fuse

if TYPE_CHECKING:
    from gyroperm.gpu.chain import Ffn, GatedFfn, RmsNorm
    from gyroperm.gpu.convolution import HinmConv2d
    from gyroperm.gpu.dispatch import Choice, DenseProductWarning, choose, explain
    from gyroperm.gpu.ffn import HinmFfn
    from gyroperm.gpu.linear import HinmLinear
    from gyroperm.gpu.matrix import DeviceMatrix
    from gyroperm.gpu.model import Card
    from gyroperm.gpu.replace import Replaced, replace_linears

__all__ = [
    "Card",
    "Choice",
    "DenseProductWarning",
    "DeviceMatrix",
    "Ffn",
    "GatedFfn",
    "HinmConv2d",
    "HinmFfn",
    "HinmLinear",
    "HinmMatrix",
    "IndexTables",
    "Replaced",
    "RmsNorm",
    "choose",
    "explain",
    "fuse",
    "replace_linears",
]

_MODULES = {
    "Card": "model",
    "Choice": "dispatch",
    "DenseProductWarning": "dispatch",
    "choose": "dispatch",
    "explain": "dispatch",
    "DeviceMatrix": "matrix",
    "Ffn": "chain",
    "GatedFfn": "chain",
    "HinmConv2d": "convolution",
    "HinmFfn": "ffn",
    "HinmLinear": "linear",
    "Replaced": "replace",
    "RmsNorm": "chain",
    "replace_linears": "replace",
}
_OF_TORCH = ("convolution", "ffn", "linear", "replace")


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if module in _OF_TORCH:
        try:
            import_module("torch")
        except ImportError as error:
            message = f"gyroperm.gpu.{name} needs torch: pip install 'gyroperm[torch]'"
            raise ImportError(message) from error
    return getattr(import_module(f"{__name__}.{module}"), name)
