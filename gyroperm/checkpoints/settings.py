"""How a checkpoint is pruned: everything that the result hangs on, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import gyroperm
from gyroperm.arguments import checked_duration, checked_integer, is_number
from gyroperm.engine import solve
from gyroperm.lossless import lossless
from gyroperm.pattern import Pattern
from gyroperm.solution import Solution
from gyroperm.stopping import MaxRounds

#: What surgery may reorder: nothing, what no reader of the model sees, or the residual stream too.
Surgery = Literal["", "inner", "all"]
#: How the vectors that are pruned are spread over the layers.
Spread = Literal["uniform", "global"]

_SURGERY: tuple[str, ...] = ("", "inner", "all")
_SPREADS: tuple[str, ...] = ("uniform", "global")


@dataclass(frozen=True)
class Settings:
    """How every layer of a checkpoint is searched.

    Parameters
    ----------
    pattern : Pattern
    method, options, seed
        Of each search; see :func:`gyroperm.solve`.
    rounds : int, optional
        Rounds of each search, which give the same result on any machine.
    time_limit : float, optional
        Seconds of each search; what is found then depends on the machine.
    bound : bool or float
        How hard to try to prove how much each layer can keep.
    lossless : bool
        Look for orders that lose no nonzero; no weight is then changed.
    surgery : {"", "inner", "all"}
        Whether channels are reordered in the files themselves (plain N:M): those inside of layers
        alone, which nothing outside can see, or the residual stream too.
    target_sparsity : float, optional
        The share of the pruned layers' weights that shall be zero; sets ``vec_ratio``.
    allocation : {"uniform", "global"}
        Whether every layer gets the same ``vec_ratio`` for that, or what keeps the most in all.

    Raises
    ------
    ValueError
        If a value is out of range, or two do not fit together.
    """

    pattern: Pattern
    method: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    rounds: int | None = None
    time_limit: float | None = None
    bound: bool | float = False
    lossless: bool = False
    surgery: Surgery = ""
    target_sparsity: float | None = None
    allocation: Spread = "uniform"

    def __post_init__(self) -> None:
        from gyroperm.solvers import registry

        registry.get(self.method).make_options(self.options or None)
        checked_integer("seed", self.seed, 0)
        if self.rounds is not None:
            checked_integer("rounds", self.rounds, 0)
        if self.time_limit is not None:
            checked_duration("time_limit", self.time_limit)
        checked_duration("bound", float(self.bound))
        if self.lossless and self.bound is not False:
            raise ValueError("a bound and lossless are not given together: lossless needs none")
        if self.surgery not in _SURGERY:
            raise ValueError(f"surgery must be one of {_SURGERY}, got {self.surgery!r}")
        if self.surgery and not self.pattern.is_plain:
            raise ValueError(
                f"surgery is for plain N:M, whose groups are consecutive channels; {self.pattern} "
                f"reads columns through orders of its own, and needs none"
            )
        if self.surgery and (self.lossless or self.bound is not False):
            raise ValueError("surgery takes neither lossless nor a bound")
        self._check_target()

    def _check_target(self) -> None:
        if self.allocation not in _SPREADS:
            raise ValueError(f"allocation must be one of {_SPREADS}, got {self.allocation!r}")
        if self.target_sparsity is None:
            if self.allocation != "uniform":
                raise ValueError("allocation='global' needs target_sparsity")
            return
        least = 1.0 - self.pattern.n / self.pattern.m
        if not is_number(self.target_sparsity) or not least <= self.target_sparsity < 1.0:
            raise ValueError(
                f"target_sparsity must lie in [{least:g}, 1), since {self.pattern.n}:"
                f"{self.pattern.m} alone prunes {least:g}; got {self.target_sparsity!r}"
            )
        if self.pattern.window is not None or self.pattern.is_plain or self.pattern.row_ratio:
            raise ValueError(
                f"target_sparsity sets vec_ratio, which {self.pattern} does not leave free; it is "
                f"for HiNM, and for TVW without row_ratio"
            )

    @property
    def vec_ratio(self) -> float:
        """The fraction of vectors to prune in all: the pattern's, or what the target asks for."""
        if self.target_sparsity is None:
            return self.pattern.vec_ratio
        return 1.0 - (1.0 - self.target_sparsity) * self.pattern.m / self.pattern.n

    @property
    def common_pattern(self) -> Pattern:
        """The pattern of every layer, where the layers do not differ."""
        return replace(self.pattern, vec_ratio=self.vec_ratio)

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON, with the version of gyroperm, which the result hangs on too."""
        return {
            "version": gyroperm.__version__,
            **asdict(self),
            "options": dict(self.options),
            "bound": self.bound,
        }

    def search(
        self, saliency: NDArray[np.floating], pattern: Pattern, threads: int | None
    ) -> Solution:
        """The solution of a layer of this saliency."""
        search = lossless if self.lossless else partial(solve, saliency=saliency, bound=self.bound)
        return search(
            saliency,
            pattern=pattern,
            method=self.method,
            options=self.options or None,
            stop=None if self.rounds is None else MaxRounds(self.rounds),
            time_limit=self.time_limit,
            seed=self.seed,
            threads=threads,
        )
