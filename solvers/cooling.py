"""How warm an annealed search is, over whatever time or rounds it is given."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gyroperm.solvers.kernels.grouping import NOISE_STRIP
from gyroperm.solvers.search import Search


def gumbel_noise() -> NDArray[np.float32]:
    """4096 equally likely values of the standard Gumbel distribution, centred, float32, shuffled.

    Adding Gumbel noise of scale t to scores and taking the maximum draws from their softmax at
    temperature t (Gumbel 1954; Maddison et al., A* Sampling, NeurIPS 2014). The first values are
    repeated at the end, so that a strip of them can begin at any of the 4096 places.
    """
    quantiles = (np.arange(4096) + 0.5) / 4096
    values = -np.log(-np.log(quantiles))
    # The order is one and the same always; where a strip begins is each search's own chance.
    shuffled = np.random.default_rng(0).permutation(values - values.mean())
    return np.concatenate([shuffled, shuffled[:NOISE_STRIP]]).astype(np.float32)


# How fast a thermostat follows, and the most it changes in a round.
_RESPONSE = 0.3
_SLOWEST, _FASTEST = 0.7, 1.4
# Where no temperature gives the share of moves asked for (one group and an empty pool, say), it
# must not run away: beyond these nothing more freezes, or everything moves.
_COLDEST, _HOTTEST = 1e-6, 100.0


class Thermostat:
    """Sets a temperature by its effect: the share of released items that go elsewhere.

    The temperature at which a search freezes differs by orders of magnitude between matrices of
    equal and of heavy-tailed column scales; the share of moves does not. Cooling by that share
    also lingers where freezing happens, since there the share falls steeply.

    Attributes
    ----------
    temperature : float
        In spreads of the gains (``gain_spreads``).
    share : float
        The share of the released items that went elsewhere of late.
    """

    def __init__(self) -> None:
        self.temperature = 0.3
        self.share = 1.0
        self._moved = 0
        self._released = 0

    def count(self, moved: int, released: int) -> None:
        """Note how many of the released items went elsewhere."""
        self._moved += moved
        self._released += released

    def steer(self, target: float) -> None:
        """Warm up or cool down towards a share of moves of ``target``; 0 leaves it as it is."""
        self.share = max(self._moved, 0.5) / max(self._released, 1)
        self._moved = self._released = 0
        if target == 0.0:
            return
        change = (target / self.share) ** _RESPONSE
        warmer = self.temperature * min(_FASTEST, max(_SLOWEST, change))
        self.temperature = min(_HOTTEST, max(_COLDEST, warmer))


# The part of a phase that is annealed; what is left is for the descent.
_ANNEALED = 0.95


class Phase:
    """A share of a search: geometric cooling from ``hot`` to ``cold``, then descent.

    Both are shares of released items that move elsewhere; see :class:`Thermostat`.

    The user's stopping criterion sets the pace where it tells how much is used up (a time limit,
    a number of rounds): the phase then takes its share of what is left. Otherwise it cools for
    ``rounds`` rounds and descends for as long as its method wants.

    Parameters
    ----------
    search : Search
    rounds : int
        Rounds to cool for when the criterion does not tell; 0 only descends.
    hot, cold : float
        The first and the last share of released items that move, in (0, 1).
    share : float
        How much of what is left of the search to use, in (0, 1].

    Attributes
    ----------
    pace : float
        The part of the cooling that the last round took; nan before the first.
    used : float
        The part of the phase that is over, 0 where that cannot be told.
    timed : bool
        Whether a clock decides how many rounds there are.
    """

    def __init__(
        self, search: Search, *, rounds: int, hot: float, cold: float, share: float
    ) -> None:
        self._search = search
        self._rounds = rounds
        self._hot, self._cold = hot, cold
        self.timed = search.timed
        self._taken = 0
        self._cooled = 0.0
        self.pace = math.nan
        self.used = 0.0
        self._begin = search.progress()
        self._room = 0.0 if self._begin is None else share * (1.0 - self._begin)

    def next_target(self) -> float | None:
        """The share of moves to aim for next, 0 for descent; None when the phase is over."""
        if self._search.stopped():
            return None
        used, cooled = self._used()
        self.used = used
        self.pace = max(cooled - self._cooled, 0.0)
        self._cooled = cooled
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
