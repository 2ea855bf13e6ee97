"""Which kernel computes a product."""

from __future__ import annotations

from gyroperm.gpu.decode import MAX_COLUMNS


def choose(n: int) -> str:
    """The kernel for N columns of X: "decode" for so few that reading weights takes longest."""
    return "decode" if n <= MAX_COLUMNS else "spmm"
