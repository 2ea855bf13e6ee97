"""The linear relaxation over a pool of groups that grows, solved by compiled pivots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gyroperm.solvers.kernels.pool import hash_groups, reduced_costs, spread_groups
from gyroperm.solvers.kernels.simplex import OPTIMAL, STUCK, invert, pivots, refine

# Prices are those of a basis in which no group of the pool is worth more than its columns pay by
# this share of the mean group's value.
_TOLERANCE = 1e-10
# Every column is to be covered by up to so much more than once, differently: where many bases
# stand for one partition, pivots would go around among them.
_PERTURBATION = 1e-4
# A spare covers a column for so much less than it is thought to be worth, as a share of the mean;
# and so much less again, times 2, where it is still in use in the end.
_SPARE, _LESS = 0.2, 2.0
# What is beyond perturbation.
_USED = 0.02
# A barred group costs so many times the best group.
_BARRED = 10.0
# Groups that may enter the basis at a time, for each column.
_CANDIDATES = 6
# Pivots of a call take about 10 ms: short enough to look at the clock.
_CALL_TERMS = 30_000_000
# Pivots after which prices and shares are solved for anew, and what they may be off by; beyond
# that the basis is inverted anew.
_REFINED, _OFF = 100, 1e-10
# How often a basis that rounding made singular may be given up for the one to begin with.
_RESTARTS = 3


@dataclass(frozen=True, eq=False)
class Relaxed:
    """An optimum of the relaxation over the groups of a pool.

    Attributes
    ----------
    x : ndarray of float64, shape (groups of the pool,)
        The share of each.
    u : ndarray of float64, shape (C',)
        What the columns pay.
    """

    x: NDArray[np.float64]
    u: NDArray[np.float64]


class Pool:
    """The relaxation ``max value * x`` with every column covered once, over groups that are added.

    Parameters
    ----------
    groups : ndarray of int32, shape (G, m)
        A partition to begin with.
    values : ndarray of float64, shape (G,)
        What its groups are worth.
    shares : ndarray of float64, shape (C',)
        What of that is each column's: prices to begin with.
    """

    def __init__(
        self, groups: NDArray[np.int32], values: NDArray[np.float64], shares: NDArray[np.float64]
    ) -> None:
        G, m = groups.shape
        C = G * m
        self.groups = np.zeros((0, m), dtype=np.int32)
        self.values = np.zeros(0)
        #: Above which reduced cost a group is worth more than it pays.
        self.floor = _TOLERANCE * float(values.mean())
        #: Groups that must not be used.
        self.barred = np.zeros(0, dtype=np.bool_)
        self._salt = np.random.default_rng(0).integers(0, 2**63, size=C, dtype=np.int64)
        self._keys: set[int] = set()
        self._place = np.zeros(0, dtype=np.int32)
        self._less = np.full(C, max(_SPARE * float(shares.mean()), 1e-300))
        self._spares = shares - self._less
        self._b = 1.0 + _PERTURBATION * np.random.default_rng(1).random(C)
        self.add(groups, values)
        self._partition = groups.copy()
        self._x = np.empty(C)
        self._u = np.empty(C)
        self._lost = 0
        self._begin()
        self._refine()

    def _begin(self) -> None:
        """Make the partition to begin with, and spares, the basis."""
        groups = self._partition
        G, m = groups.shape
        # The group of a row that is covered the least is basic there, spares are elsewhere.
        first = groups[np.arange(G), np.argmin(self._b[groups], axis=1)]
        self._basis = np.arange(-1, -1 - G * m, -1, dtype=np.int32)
        self._basis[first] = np.arange(G, dtype=np.int32)
        self._place[:] = -1
        self._place[:G] = first
        self._inverse = np.eye(G * m)
        self._inverse[np.repeat(first, m), groups.reshape(-1)] = -1.0
        self._inverse[first, first] = 1.0

    def unknown(self, groups: NDArray[np.int32]) -> NDArray[np.intp]:
        """The first places of the groups (k, m) that the pool does not hold yet."""
        return self._fresh(hash_groups(groups, self._salt))

    def _fresh(self, keys: NDArray[np.int64]) -> NDArray[np.intp]:
        places, seen = [], set()
        known = self._keys
        for i, key in enumerate(keys.tolist()):
            if key not in known and key not in seen:
                seen.add(key)
                places.append(i)
        return np.array(places, dtype=np.intp)

    def add(self, groups: NDArray[np.int32], values: NDArray[np.float64]) -> int:
        """Add groups (k, m), in any order of their columns; returns how many were new."""
        keys = hash_groups(groups, self._salt)
        places = self._fresh(keys)
        self._keys.update(keys[places].tolist())
        new = len(places)
        self.groups = np.concatenate([self.groups, groups[places]])
        self.values = np.concatenate([self.values, values[places]])
        self.barred = np.concatenate([self.barred, np.zeros(new, dtype=np.bool_)])
        self._place = np.concatenate([self._place, np.full(new, -1, dtype=np.int32)])
        return new

    def add_best(
        self,
        groups: NDArray[np.int32],
        values: NDArray[np.float64],
        costs: NDArray[np.float64],
        per_column: int,
    ) -> int:
        """Add those of the largest reduced costs, until every column has so many new ones."""
        order = np.argsort(-costs, kind="stable")
        order = order[self.unknown(np.ascontiguousarray(groups[order]))]
        chosen = order[spread_groups(groups[order], len(self._b), per_column)]
        return self.add(groups[chosen], values[chosen])

    def bar(self, columns: NDArray[np.bool_], but: NDArray[np.intp]) -> None:
        """Bar the groups that hold any of the columns (C',) but for these groups."""
        held: NDArray[np.bool_] = np.any(columns[self.groups], axis=1)
        held[but] = False
        self.barred |= held
        self._refine()

    def costs(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """The reduced costs of all groups, (groups of the pool,)."""
        return reduced_costs(self.groups, self.values, u)

    def solve(self, stopped: Callable[[], bool], *, settled: bool = True) -> Relaxed | None:
        """The optimum; None if it is stopped before, or rounding gets the better of it.

        Parameters
        ----------
        stopped : callable
        settled : bool
            Whether spares are made worth less for as long as any is in use. Until new groups are
            sought no more that is a waste: which spares are in use depends on the groups there
            are, and the prices they hold up are nearer to the last ones than those without.
        """
        while not stopped() and self._lost <= _RESTARTS:
            # Also where there are none: what compiles before a clock runs may have none to show.
            done = self._pivot(self._candidates(), stopped)
            if done is None:
                return None
            # Without a pivot what seemed to gain was rounding.
            if done == 0 and not (settled and self.settle()):
                return self._solved()
        return None

    def _solved(self) -> Relaxed:
        x = np.zeros(len(self.groups))
        held = np.flatnonzero(self._place >= 0)
        x[held] = np.maximum(self._x[self._place[held]], 0.0)
        return Relaxed(x, self._u.copy())

    def _candidates(self) -> NDArray[np.int32]:
        """Groups that may enter the basis, those of the largest reduced costs; none if none gains.

        The others are looked at once these are done with.
        """
        costs = self.costs(self._u)
        costs[self.barred | (self._place >= 0)] = -np.inf
        if not (costs > self.floor).any():
            return np.zeros(0, dtype=np.int32)
        most = _CANDIDATES * len(self._b)
        chosen = np.arange(len(costs))
        if most < len(costs):
            chosen = np.argpartition(-costs, most)[:most]
        return chosen[np.isfinite(costs[chosen])].astype(np.int32)

    def _pivot(self, candidates: NDArray[np.int32], stopped: Callable[[], bool]) -> int | None:
        """Pivot until no candidate gains; how often, None if it is stopped before."""
        C = len(self._b)
        most = max(1, min(_REFINED, _CALL_TERMS // (C * C + 8 * len(candidates))))
        weights = np.ones(len(candidates))
        total = since = 0
        while True:
            ended, done = pivots(
                self.groups,
                self.values,
                candidates,
                weights,
                self._basis,
                self._place,
                self._inverse,
                self._x,
                self._u,
                self.floor,
                most,
            )
            since += done
            total += done
            if ended == STUCK:
                # The relaxation is bounded: what said otherwise was rounding.
                self._give_up()
                self._refine()
                return max(1, total)
            if since and (ended == OPTIMAL or since >= _REFINED):
                self._refine()
                since = 0
            if ended == OPTIMAL:
                return total
            if stopped():
                return None

    def settle(self) -> bool:
        """Make spares in use worth less; whether there were any."""
        rows = -1 - self._basis[(self._basis < 0) & (self._x > _USED)]
        self._less[rows] *= _LESS
        self._spares[rows] -= self._less[rows]
        if len(rows):
            self._refine()
        return len(rows) > 0

    def _refine(self) -> None:
        """Solve for shares and prices anew; from the beginning where rounding spoilt the basis."""
        values = np.where(self.barred, -_BARRED * self.values.max(), self.values)
        # The spare of row i is -1 - i: the last of all by -1, and so on.
        worth = np.concatenate([values, self._spares[::-1]])
        if not self._solves(worth[self._basis]):
            self._give_up()
            self._solves(worth[self._basis])

    def _give_up(self) -> None:
        """Leave a basis that rounding spoilt for the one to begin with."""
        self._lost += 1
        self._begin()

    def _solves(self, worth: NDArray[np.float64]) -> bool:
        """Whether the basis, worth so much by position, yields shares and prices."""
        for _ in range(2):
            off = refine(
                self.groups,
                worth,
                self._basis,
                self._inverse,
                self._b,
                self._x,
                self._u,
            )
            if off <= _OFF:
                return True
            if not invert(self.groups, self._basis, self._inverse):
                return False
        return bool(off <= 1e3 * _OFF)
