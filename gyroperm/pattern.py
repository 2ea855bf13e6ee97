"""Sparsity patterns: which masks the hardware can run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from gyroperm.arguments import checked_integer, is_number

Allocation = Literal["uniform", "window", "global"]

ALLOCATIONS: tuple[str, ...] = ("uniform", "window", "global")

# Ratios such as 1 - 4/6 are not exact in binary; this is what counts as "the same integer".
_ROUNDING = 1e-9


def _ratio(name: str, value: Any) -> float:
    if not is_number(value) or not 0.0 <= value < 1.0:
        raise ValueError(f"{name} must lie in [0, 1), got {value!r}")
    return float(value)


@dataclass(frozen=True)
class Pattern:
    """A sparsity pattern of one or two levels.

    The first level keeps whole column vectors (``vec_size`` rows by one column) of each tile,
    the second keeps the ``n`` largest of every ``m`` kept columns in each row. Use the named
    constructors (:meth:`nm`, :meth:`hinm`, :meth:`vnm`, :meth:`vector_nm`, :meth:`tvw`) unless
    you need a combination that has no name.

    Parameters
    ----------
    n, m : int
        Each row keeps ``n`` of every group of ``m`` kept columns, ``1 <= n <= m``.
    vec_size : int or None
        V, the rows of a tile. None is one tile of all rows.
    vec_ratio : float
        The fraction of column vectors that is *pruned*, in ``[0, 1)``.
    allocation : {"uniform", "window", "global"}
        How the kept vectors are spread: the same number in every tile, any columns
        (``uniform``, HiNM); the same number in every window of the layer's one column order
        (``window``, V:N:M and vector N:M); any number in any tile, only the sum is fixed
        (``global``, TVW).
    window : int or None
        Consecutive columns of the shared order that form a window; only with
        ``allocation="window"``.
    row_ratio : float
        The fraction of whole rows (output channels) pruned beforehand by their summed saliency,
        in ``[0, 1)``; only with ``allocation="global"``.

    Raises
    ------
    ValueError
        If a value is out of range or the combination names no pattern; the message says which
        argument and what would be accepted.

    References
    ----------
    Pool and Yu, Channel Permutations for N:M Sparsity, NeurIPS 2021 (N:M).
    Yu et al., Toward Efficient Permutation for Hierarchical N:M Sparsity on GPUs,
    arXiv:2407.20496 (HiNM).
    Castro et al., VENOM, SC 2023 (V:N:M).
    Ma et al., NM-SpMM, 2025, and Lin et al., nmSPARSE, MLSys 2023 (vector-wise N:M).
    Guo et al., Accelerating Sparse DNNs Based on Tiled GEMM, IEEE TC 2024 (TVW).
    """

    n: int = 2
    m: int = 4
    vec_size: int | None = None
    vec_ratio: float = 0.0
    allocation: Allocation = "uniform"
    window: int | None = None
    row_ratio: float = 0.0

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "m", checked_integer("m", self.m, 1))
        set_(self, "n", checked_integer("n", self.n, 1))
        if self.n > self.m:
            raise ValueError(f"n must be at most m, got n={self.n}, m={self.m}")
        if self.vec_size is not None:
            set_(self, "vec_size", checked_integer("vec_size", self.vec_size, 1))
        set_(self, "vec_ratio", _ratio("vec_ratio", self.vec_ratio))
        set_(self, "row_ratio", _ratio("row_ratio", self.row_ratio))
        if self.allocation not in ALLOCATIONS:
            raise ValueError(
                f"allocation must be one of {', '.join(ALLOCATIONS)}, got {self.allocation!r}"
            )
        if self.allocation != "global" and self.row_ratio:
            raise ValueError('row_ratio needs allocation="global" (TVW)')
        if self.allocation == "window":
            self._check_window()
        elif self.window is not None:
            raise ValueError(f'window={self.window} needs allocation="window"')

    def _check_window(self) -> None:
        if self.window is None:
            raise ValueError('allocation="window" needs window, the columns of a window')
        object.__setattr__(self, "window", checked_integer("window", self.window, self.m))
        kept = self.window * (1.0 - self.vec_ratio)
        if abs(kept - round(kept)) > _ROUNDING * self.window or round(kept) < 1:
            raise ValueError(
                f"vec_ratio={self.vec_ratio} keeps {kept:g} of the {self.window} vectors of a "
                f"window; it must keep a whole number of at least one"
            )
        if self.n < self.m and round(kept) != self.m:
            raise ValueError(
                f"a window keeps {round(kept)} vectors but a group holds m={self.m}: with n < m "
                f"every window keeps exactly one group (vec_ratio = 1 - m/window = "
                f"{1 - self.m / self.window:g})"
            )
        if round(kept) % self.m:
            raise ValueError(
                f"a window keeps {round(kept)} vectors, which groups of m={self.m} do not divide"
            )

    @classmethod
    def nm(cls, n: int = 2, m: int = 4) -> Pattern:
        """N:M: each row keeps n of every m consecutive columns of one column order."""
        return cls(n=n, m=m)

    @classmethod
    def hinm(cls, n: int = 2, m: int = 4, *, vec_ratio: float = 0.5, vec_size: int = 64) -> Pattern:
        """HiNM: every tile of ``vec_size`` rows keeps the same number of vectors, any columns."""
        return cls(n=n, m=m, vec_ratio=vec_ratio, vec_size=vec_size)

    @classmethod
    def vnm(cls, V: int, N: int, M: int) -> Pattern:
        """V:N:M (VENOM): 4 vectors of every M columns, then N of those 4; 4 <= M."""
        M = checked_integer("M", M, 4)
        return cls(n=N, m=4, vec_size=V, vec_ratio=1.0 - 4.0 / M, allocation="window", window=M)

    @classmethod
    def vector_nm(cls, N: int, M: int, L: int) -> Pattern:
        """Vector-wise N:M (NM-SpMM): N whole vectors of L rows out of every M columns."""
        M, N = checked_integer("M", M, 1), checked_integer("N", N, 1)
        if N > M:
            raise ValueError(f"N must be at most M, got N={N}, M={M}")
        return cls(n=1, m=1, vec_size=L, vec_ratio=1.0 - N / M, allocation="window", window=M)

    @classmethod
    def tvw(
        cls,
        n: int = 2,
        m: int = 4,
        *,
        vec_ratio: float = 0.5,
        vec_size: int = 64,
        row_ratio: float = 0.0,
    ) -> Pattern:
        """Tile-vector-wise: ragged tiles under one global budget of vectors, then n of m."""
        return cls(
            n=n,
            m=m,
            vec_ratio=vec_ratio,
            vec_size=vec_size,
            allocation="global",
            row_ratio=row_ratio,
        )

    @property
    def shared_order(self) -> bool:
        """Whether the layer has one column order (plain N:M and windowed patterns)."""
        return self.allocation == "window" or self.is_plain

    @property
    def is_plain(self) -> bool:
        """Whether this is plain N:M: one tile of all rows in which every column is kept."""
        return self.allocation == "uniform" and self.vec_size is None and self.vec_ratio == 0.0

    @property
    def kept_per_window(self) -> int:
        """Column vectors that a tile keeps in each window (windowed patterns only)."""
        if self.window is None:
            raise AttributeError(f"{self} has no windows")
        return round(self.window * (1.0 - self.vec_ratio))

    @property
    def sparsity(self) -> float:
        """The nominal fraction of weights pruned."""
        kept = (1.0 - self.row_ratio) * (1.0 - self.vec_ratio) * self.n / self.m
        return 1.0 - kept

    @property
    def name(self) -> str:
        """The pattern's usual name: N:M, HiNM, V:N:M, vector N:M or TVW."""
        if self.allocation == "global":
            return "TVW"
        if self.allocation == "window":
            return "V:N:M" if self.kept_per_window == self.m > 1 else "vector N:M"
        return "N:M" if self.is_plain else "HiNM"

    def kept_columns(self, columns: int) -> int:
        """Column vectors that an average tile of ``columns`` columns keeps (K).

        ``K = m * floor((1 - vec_ratio) * C / m)`` with C rounded up to a multiple of m (of the
        window, for windowed patterns), so K counts virtual columns where all are kept.

        Raises
        ------
        ValueError
            If fewer than m columns are left.
        """
        if self.window is not None:
            return math.ceil(columns / self.window) * self.kept_per_window
        padded = self.padded_columns(columns)
        kept = self.m * math.floor((1.0 - self.vec_ratio) * padded / self.m + _ROUNDING)
        if kept < self.m:
            # Rounded down, so that the figure in the message is itself accepted.
            most = math.floor(1e6 * (1 - self.m / padded)) / 1e6
            raise ValueError(
                f"vec_ratio={self.vec_ratio} leaves fewer than m={self.m} of {columns} columns; "
                f"it must be at most {most:g} for this matrix"
            )
        return kept

    def padded_columns(self, columns: int) -> int:
        """``columns`` rounded up to whole groups (whole windows for windowed patterns)."""
        unit = self.window if self.window is not None else self.m
        return math.ceil(columns / unit) * unit

    def kept_rows(self, rows: int) -> int:
        """Rows that survive ``row_ratio``; at least one."""
        return max(1, rows - math.floor(self.row_ratio * rows + _ROUNDING))

    def __str__(self) -> str:
        if self.name == "N:M":
            return f"{self.n}:{self.m}"
        if self.name == "V:N:M":
            return f"{self.vec_size or 'all'}:{self.n}:{self.window} (V:N:M)"
        if self.name == "vector N:M":
            return f"{self.kept_per_window}:{self.window} of {self.vec_size or 'all'}x1 vectors"
        rows = f", rows {self.row_ratio:.4g} pruned" if self.row_ratio else ""
        return (
            f"{self.name} {self.n}:{self.m}, vec_ratio {self.vec_ratio:.4g}, "
            f"V={self.vec_size or 'all'}{rows} ({100 * self.sparsity:.4g} % sparse)"
        )
