"""Which kernel computes a product."""

from __future__ import annotations


def choose(n: int) -> str:
    """The kernel for N columns of X."""
    return "spmm"
