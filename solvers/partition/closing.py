"""The best partition into listed groups, proven: branch, cut and price over the list."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gyroperm.solvers.partition.cuts import broken_cuts, pair_shares
from gyroperm.solvers.partition.instance import Instance
from gyroperm.solvers.partition.master import Duals, Master, Relaxed, cut_uses
from gyroperm.solvers.partition.relaxation import Clock, certified

# Two values this close, relatively, are equal up to the rounding of both: nothing better is
# looked for in between.
_EQUAL = 5e-13
# A share this close to a whole number is one.
_WHOLE = 1e-6
# So many cuts are added at a time, for so many rounds a node, while a round closes this share of
# the gap.
_CUTS, _ROUNDS, _PROGRESS = 60, 15, 0.02
# Groups of the list that the relaxation begins with, and that are priced into it at a time.
_FIRST, _ADDED = 3000, 1000


@dataclass(order=True)
class _Node:
    """A part of the partitions: those in which these pairs of columns are together, or apart.

    Attributes
    ----------
    key : tuple
        The largest bound first; among equals the youngest.
    bound : float
        No partition of this part is worth more.
    together, apart : tuple of pairs of columns
    """

    key: tuple[float, int]
    bound: float = field(compare=False)
    together: tuple[tuple[int, int], ...] = field(compare=False, default=())
    apart: tuple[tuple[int, int], ...] = field(compare=False, default=())


class Closing:
    """A partition into listed groups, and a bound of all of them, improved until they meet.

    Branching on pairs of columns (Ryan and Foster 1981), subset-row cuts (Jepsen et al. 2008).
    Every bound is computed in float64 from prices, however those were found, so that no
    tolerance of the linear solver enters the proof.

    Parameters
    ----------
    instance : Instance
    groups : ndarray of int32, shape (k, m)
        The list, ascending each. A partition that holds any other group is not worth more than
        ``best`` or ``cutoff``.
    best : ndarray of int32, shape (G, m)
        The best partition so far, ascending each.
    bound : float
        Of all partitions.
    u : ndarray of float64, shape (C',)
        Prices of the columns to begin with.
    cutoff : float
        No bound below this is looked for.

    Attributes
    ----------
    best, bound
        As they are now.
    value : float
        What ``best`` keeps.
    """

    def __init__(
        self,
        instance: Instance,
        groups: NDArray[np.int32],
        best: NDArray[np.int32],
        bound: float,
        u: NDArray[np.float64],
        cutoff: float = 0.0,
    ) -> None:
        self.instance = instance
        self.best = best
        self.value = math.fsum(instance.values(best))
        self.bound = bound
        self._cutoff = max(self.value, cutoff)
        self._cuts = np.zeros((0, 3), dtype=np.int32)
        self._list(groups, Duals(u, np.zeros(0)))

    def _list(self, groups: NDArray[np.int32], duals: Duals) -> None:
        """Make this the list, and begin a relaxation with its groups of the largest costs."""
        self.groups = np.ascontiguousarray(groups)
        self._values = self.instance.values(self.groups)
        C = len(self.instance.columns)
        self._master = Master(C, self.instance.m)
        self._master.add_spares(self.instance.groups * float(self._values.max()))
        self._master.add_cuts(self._cuts)
        self._places = np.zeros(0, dtype=np.intp)
        costs = self._costs(duals)
        self._enter(np.argsort(-costs, kind="stable")[:_FIRST])

    def _enter(self, places: NDArray[np.intp]) -> None:
        """Put groups of the list, by place, into the relaxation."""
        fresh = np.setdiff1d(places, self._places)
        self._master.add(self.groups[fresh], self._values[fresh])
        self._places = np.concatenate([self._places, fresh])

    @property
    def enough(self) -> float:
        """A bound that cannot be improved: the value itself, or the cutoff, up to rounding."""
        return self._cutoff * (1.0 + _EQUAL)

    def run(self, clock: Clock, record: Callable[[float], None], most: float = math.inf) -> None:
        """Work until value and bound meet, or the time or so many nodes are up.

        ``record`` is called with the value after every node.
        """
        nodes = [_Node((-self.bound, 0), self.bound)]
        count = solved = 0
        while nodes and nodes[0].bound > self.enough:
            node = heapq.heappop(nodes)
            bound, pair = self._solve(node, clock)
            node.bound = min(node.bound, bound)
            record(self.value)
            if pair is not None and node.bound > self.enough:
                for together, apart in (((), (pair,)), ((pair,), ())):
                    count += 1
                    child = _Node(
                        (-node.bound, -count),
                        node.bound,
                        node.together + together,
                        node.apart + apart,
                    )
                    heapq.heappush(nodes, child)
            elif node.bound > self.enough:
                # Out of time: the node stays open.
                heapq.heappush(nodes, node)
            largest = nodes[0].bound if nodes else -math.inf
            self.bound = min(self.bound, max(largest, self.enough))
            solved += 1
            if clock.stopped() or solved >= most:
                return
        self.bound = min(self.bound, self.enough)

    def _solve(self, node: _Node, clock: Clock) -> tuple[float, tuple[int, int] | None]:
        """A bound of a node, and a pair of columns to branch on.

        No pair where the bound suffices, or the time is up.
        """
        root = not node.together and not node.apart
        allowed = self._allowed(node)
        bound = last = node.bound
        for turn in range(_ROUNDS + 1):
            if not self._covered(allowed):
                return -math.inf, None
            relaxed = self._relax(allowed, clock)
            if relaxed is None:
                return bound, None
            costs = self._costs(relaxed.duals)
            now = self._certified(relaxed.duals, costs, allowed)
            bound = min(bound, now)
            self._improve(relaxed)
            if bound <= self.enough:
                return bound, None
            # What holds a group that pays too little is not worth more than the best.
            kept = allowed & (now + costs >= self._cutoff * (1.0 - _EQUAL))
            fewer = kept.sum() < allowed.sum()
            allowed = kept
            if root and kept.sum() < 0.7 * len(kept):
                self._list(self.groups[kept], relaxed.duals)
                allowed = np.ones(len(self.groups), dtype=np.bool_)
                continue
            whole = self._is_whole(relaxed)
            if whole and fewer:
                continue
            stuck = turn > 0 and last - bound < _PROGRESS * (last - self._cutoff)
            if whole or stuck or turn == _ROUNDS:
                break
            last = bound
            cuts = broken_cuts(*self._support(relaxed), len(self.instance.columns))
            if not len(cuts):
                break
            self._master.add_cuts(cuts[:_CUTS])
            self._cuts = self._master.cuts
        if not self._covered(allowed):
            return -math.inf, None
        assert relaxed is not None
        pair = self._pair(relaxed, allowed)
        # Where every column has one group left, there is one partition, and it was seen.
        return (bound, pair) if pair is not None else (min(bound, self.enough), None)

    def _allowed(self, node: _Node) -> NDArray[np.bool_]:
        """Which groups of the list a node may use."""
        allowed = np.ones(len(self.groups), dtype=np.bool_)
        for a, b in node.together:
            allowed &= (self.groups == a).any(axis=1) == (self.groups == b).any(axis=1)
        for a, b in node.apart:
            allowed &= ~((self.groups == a).any(axis=1) & (self.groups == b).any(axis=1))
        return allowed

    def _covered(self, allowed: NDArray[np.bool_]) -> bool:
        """Whether every column is in some group."""
        counts = np.bincount(self.groups[allowed].reshape(-1), minlength=len(self.instance.columns))
        return bool(counts.all())

    def _relax(self, allowed: NDArray[np.bool_], clock: Clock) -> Relaxed | None:
        """The relaxation over the allowed groups; None if the time is up."""
        floor = 1e-12 * self.value
        while True:
            self._master.allow(allowed[self._places])
            relaxed = self._master.solve(clock.left)
            if relaxed is None:
                return None
            costs = self._costs(relaxed.duals)
            worth = np.flatnonzero(allowed & (costs > floor))
            worth = np.setdiff1d(worth, self._places)
            if not len(worth):
                return relaxed
            self._enter(worth[np.argsort(-costs[worth], kind="stable")[:_ADDED]])

    def _costs(self, duals: Duals) -> NDArray[np.float64]:
        """The reduced cost of every group of the list."""
        costs = self._values - duals.u[self.groups].sum(axis=1)
        paid = np.flatnonzero(duals.w > 0.0)
        for c in paid.tolist():
            costs[cut_uses(self.groups, self._cuts[c : c + 1])[:, 0]] -= duals.w[c]
        return costs

    def _certified(
        self, duals: Duals, costs: NDArray[np.float64], allowed: NDArray[np.bool_]
    ) -> float:
        """The bound that prices prove for the allowed groups."""
        best = np.zeros(len(duals.u))
        worth = allowed & (costs > 0.0)
        np.maximum.at(best, self.groups[worth], costs[worth, None])
        return certified(duals.u, best, self.instance.m) + math.fsum(duals.w)

    def _support(self, relaxed: Relaxed) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """The groups in use, and their shares."""
        used = relaxed.x > _WHOLE
        return self._master.groups[used], relaxed.x[used]

    def _is_whole(self, relaxed: Relaxed) -> bool:
        _, shares = self._support(relaxed)
        return bool((shares > 1.0 - _WHOLE).all())

    def _improve(self, relaxed: Relaxed) -> None:
        """Take a relaxation that is a partition as the best, if it is worth more."""
        groups, shares = self._support(relaxed)
        if not (shares > 1.0 - _WHOLE).all() or len(groups) != self.instance.groups:
            return
        value = math.fsum(self.instance.values(np.ascontiguousarray(groups)))
        if value > self.value:
            self.best, self.value = groups, value
            self._cutoff = max(self._cutoff, value)

    def _pair(self, relaxed: Relaxed, allowed: NDArray[np.bool_]) -> tuple[int, int] | None:
        """Columns that are together to about one half, else any that may be or may not be."""
        C = len(self.instance.columns)
        shares = pair_shares(*self._support(relaxed), C)
        doubt = np.minimum(shares, 1.0 - shares)
        np.fill_diagonal(doubt, 0.0)
        a, b = divmod(int(np.argmax(doubt)), C)
        if doubt[a, b] > _WHOLE:
            return a, b
        groups = self.groups[allowed]
        counts = np.bincount(groups.reshape(-1), minlength=C)
        a = int(np.argmax(counts))
        if counts[a] <= 1:
            return None
        mine = np.bincount(groups[(groups == a).any(axis=1)].reshape(-1), minlength=C)
        b = int(np.flatnonzero((mine > 0) & (mine < counts[a]))[0])
        return a, b
