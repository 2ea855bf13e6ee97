"""What each weight counts at the vector level, where rows are put into tiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gyroperm.solvers.kernels.rows import row_sums


@dataclass(frozen=True, eq=False)
class Scores:
    """A power of the saliency; its square is taken where it is read, not stored.

    A second matrix of a large layer would cost its memory, and the time to touch it first.

    Attributes
    ----------
    values : ndarray of float32, shape (R, C)
    squared : bool
        Whether the score is the value's square.
    """

    values: NDArray[np.float32]
    squared: bool

    @classmethod
    def of(cls, saliency: NDArray[np.float32], power: float) -> Scores:
        """The saliency, float32 (R, C), to a power."""
        if power in (1.0, 2.0):
            return cls(saliency, power == 2.0)
        return cls(np.power(saliency, np.float32(power)), False)

    def sums(self, tile_rows: NDArray[np.int32]) -> NDArray[np.float64]:
        """The summed scores of every vector of tiles (T, V), -1 for virtual rows: (T, C)."""
        return row_sums(self.values, self.squared, tile_rows)
