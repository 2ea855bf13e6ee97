"""The temperature of an annealed search, over whatever time or rounds it is given."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gyroperm.solvers.search import Search


def gumbel_noise() -> NDArray[np.float32]:
    """4096 equally likely values of the standard Gumbel distribution, centred, float32.

    Adding Gumbel noise of scale t to scores and taking the maximum draws from their softmax at
    temperature t (Gumbel 1954; Maddison et al., A* Sampling, NeurIPS 2014).
    """
    quantiles = (np.arange(4096) + 0.5) / 4096
    values = -np.log(-np.log(quantiles))
    return (values - values.mean()).astype(np.float32)


# The part of a phase that is annealed; what is left is for the descent.
_ANNEALED = 0.85


class Phase:
    """A share of a search: geometric cooling from ``hot`` to ``cold``, then descent.

    The user's stopping criterion sets the pace where it tells how much is used up (a time limit,
    a number of rounds): the phase then takes its share of what is left. Otherwise it cools for
    ``rounds`` rounds and descends for as long as its method wants.

    Parameters
    ----------
    search : Search
    rounds : int
        Rounds to cool for when the criterion does not tell; 0 only descends.
    hot, cold : float
        The first and the last temperature, relative to the scale of the gains.
    share : float
        How much of what is left of the search to use, in (0, 1].
    """

    def __init__(
        self, search: Search, *, rounds: int, hot: float, cold: float, share: float
    ) -> None:
        self._search = search
        self._rounds = rounds
        self._hot, self._cold = hot, cold
        self._taken = 0
        self._begin = search.progress()
        self._room = 0.0 if self._begin is None else share * (1.0 - self._begin)

    def next_temperature(self) -> float | None:
        """The temperature of the next round, 0 for descent; None when the phase is over."""
        if self._search.stopped():
            return None
        used, cooled = self._used()
        self._taken += 1
        if used >= 1.0:
            return None
        if cooled >= 1.0:
            return 0.0
        return self._hot * (self._cold / self._hot) ** cooled

    def _used(self) -> tuple[float, float]:
        """How much of the phase, and of its cooling, is used up."""
        now = self._search.progress()
        if now is None or self._begin is None:
            return 0.0, self._taken / self._rounds if self._rounds else 1.0
        used = (now - self._begin) / self._room if self._room > 0 else 1.0
        return used, used / _ANNEALED if self._rounds else 1.0
