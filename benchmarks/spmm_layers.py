"""Packed matrices as they stand in a model: a linear layer, and a chain of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.spmm_cases import Structure, dense_weights, make_matrix
from benchmarks.spmm_contenders import Rotation, amounts, copies, dense_amounts
from benchmarks.spmm_tensors import normal, placed
from benchmarks.spmm_timing import Contender, WrongResultError
from gyroperm.gpu.format import HinmMatrix

FUSED, SORTED, SELECTED = "fused", "sorted, identity", "index_select"
LINEAR, PACKED = "nn.Linear", "HinmLinear"
EAGER = ", eager"

# Of the greatest value: a product rounded to eight bits, and three of them one after the other.
_LINEAR_ERROR, _CHAIN_ERROR = 2.0**-7, 2.0**-5


@dataclass(frozen=True)
class Ffn:
    """A gated feed-forward block ``x + down(silu(gate(x)) * up(x))``.

    Parameters
    ----------
    channels, hidden : int
    tile_size : int
    vec_ratio : float
    dtype : str
    """

    channels: int
    hidden: int
    tile_size: int = 128
    vec_ratio: float = 0.5
    dtype: str = "bfloat16"


@lru_cache(maxsize=2)
def matrices(ffn: Ffn, is_sorted: bool) -> tuple[HinmMatrix, HinmMatrix, HinmMatrix]:
    """Gate, up and down; gate and up share the order of their rows."""
    rest = (ffn.tile_size, ffn.vec_ratio, ffn.dtype, is_sorted)
    wide = Structure("hinm", ffn.hidden, ffn.channels, *rest)
    narrow = Structure("hinm", ffn.channels, ffn.hidden, *rest)
    order = np.random.default_rng(3).permutation(ffn.hidden)
    return make_matrix(wide, 0, order), make_matrix(wide, 1, order), make_matrix(narrow, 2)


def chain_contenders(ffn: Ffn, n: int, l2_size: int) -> list[Contender]:
    """The block with its permutations fused, without any, and with one between the layers.

    The second runs the same kernels on matrices whose columns are sorted and whose row maps are
    the identity: what is left of the difference is what a permutation costs.
    """
    permuted, plain = (matrices(ffn, is_sorted) for is_sorted in (False, True))
    x = normal(ffn.channels, n, dtype=ffn.dtype)
    order = permuted[0].index.output_order
    of_all = _sum([amounts(matrix, n) for matrix in permuted])
    count = copies(l2_size, of_all["weight_bytes"], 2 * n * (2 * ffn.channels + 3 * ffn.hidden))

    def contender(label: str, three: tuple[HinmMatrix, ...]) -> Contender:
        gate, up, down = (Rotation.of(matrix, count).copies for matrix in three)
        forward = _Forward(x, ffn.hidden, positions(order) if label == SELECTED else None)
        calls = [forward.call(*of_one) for of_one in zip(gate, up, down, strict=True)]
        expected = _reference(plain if label == SORTED else permuted, x)
        return Contender(label, calls, _close(calls[-1], forward.out, expected), of_all)

    fused = (*permuted[:2], permuted[2].fused(order))
    straight = (*plain[:2], plain[2].fused(plain[0].index.output_order))
    return [
        contender(FUSED, fused),
        contender(SORTED, straight),
        contender(SELECTED, permuted),
    ]


def positions(order: NDArray[np.integer]) -> NDArray[np.int64]:
    """Where each row lies."""
    found = np.empty(int((order >= 0).sum()), np.int64)
    found[order[order >= 0]] = np.flatnonzero(order >= 0)
    return found


class _Forward:
    """The block on buffers of its own; with ``positions`` the hidden rows are put in order."""

    def __init__(self, x: Any, hidden: int, positions: NDArray[np.int64] | None) -> None:
        import torch

        self.x, self.out = x, torch.empty_like(x)
        self._positions = None if positions is None else placed(positions)
        self._in_order: Any = None
        if positions is not None:
            self._in_order = x.new_empty(hidden, x.shape[1])

    def call(self, gate: Any, up: Any, down: Any) -> Callable[[], None]:
        """A call with these matrices on the card."""
        import torch

        rows = len(gate.index.row_map)
        gated, hidden = (self.x.new_empty(rows, self.x.shape[1]) for _ in range(2))

        def forward() -> None:
            gate.multiply(self.x, activation="silu", keep_order=True, out=gated)
            up.multiply(self.x, keep_order=True, factor=gated, out=hidden)
            read = hidden
            if self._positions is not None:
                read = torch.index_select(hidden, 0, self._positions, out=self._in_order)
            down.multiply(read, addend=self.x, out=self.out)

        return forward


@lru_cache(maxsize=6)
def _on_card(matrix: HinmMatrix) -> Any:
    """The weights of a matrix, pruned ones too, in float32 on the card."""
    return placed(dense_weights(matrix))


def _reference(three: tuple[HinmMatrix, ...], x: Any) -> Any:
    """The block in float32, for as many columns as are compared."""
    import torch

    columns = x[:, :8].float()
    gate, up, down = map(_on_card, three)
    gated = torch.nn.functional.silu(gate @ columns)
    return columns + down @ (gated * (up @ columns))


def _close(call: Callable[[], Any], y: Any, expected: Any) -> Callable[[], None]:
    def check() -> None:
        y.fill_(float("nan"))
        call()
        error = float((y[:, :8].float() - expected).abs().max())
        if not error <= _CHAIN_ERROR * float(expected.abs().max()):
            raise WrongResultError(
                f"off by {error:.3g}, values reach {float(expected.abs().max()):.3g}"
            )

    return check


def _compare(y: Any, expected: Any, most: float) -> None:
    error, greatest = float((y.float() - expected).abs().max()), float(expected.abs().max())
    if not error <= most * greatest:
        raise WrongResultError(f"off by {error:.3g}, values reach {greatest:.3g}")


def _sum(parts: list[dict[str, Any]]) -> dict[str, Any]:
    added = ("weight_bytes", "memory_bytes", "l2_bytes", "operations")
    return {**parts[0], **{name: sum(part[name] for part in parts) for name in added}}


def linear_contenders(host: HinmMatrix, n: int, l2_size: int) -> list[Contender]:
    """A packed and a dense layer on [tokens, C], transposes included; eager too for few tokens."""
    import torch

    from gyroperm.gpu import HinmLinear

    outputs, inputs = host.shape
    x = normal(n, inputs, dtype=host.dtype)
    of_all, of_dense = amounts(host, n), dense_amounts(outputs, inputs, n)
    activations = 2 * n * (inputs + outputs)
    packed = [
        HinmLinear.from_matrix(host, device=x.device)
        for _ in range(copies(l2_size, host.nbytes, activations))
    ]
    dense = [
        torch.nn.Linear(inputs, outputs, bias=False, device=x.device, dtype=x.dtype)
        for _ in range(copies(l2_size, of_dense["weight_bytes"], activations))
    ]
    expected = x[:8].float() @ _on_card(host).T

    def check() -> None:
        with torch.no_grad():
            error = float((packed[-1](x)[:8].float() - expected).abs().max())
        if not error <= 2.0**-7 * float(expected.abs().max()):
            raise WrongResultError(
                f"off by {error:.3g}, values reach {float(expected.abs().max()):.3g}"
            )

    found = [
        Contender(LINEAR, [_apply(layer, x) for layer in dense], None, of_dense),
        Contender(PACKED, [_apply(layer, x) for layer in packed], check, of_all),
    ]
    if n <= 64:
        found += [Contender(one.label + EAGER, one.calls, None, one.amounts, True) for one in found]
    return found


def _apply(layer: Any, x: Any) -> Callable[[], Any]:
    import torch

    def call() -> Any:
        with torch.inference_mode():
            return layer(x)

    return call
