"""The least error of a layer's output: masks and columns moved by what the output loses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from gyroperm.arguments import checked_integer
from gyroperm.arrangement import Arrangement
from gyroperm.problem import Problem
from gyroperm.solvers.auto import chosen_method
from gyroperm.solvers.cooling import gumbel_noise
from gyroperm.solvers.kernels.grouping import assignment_moves
from gyroperm.solvers.kernels.masking import mask_tile
from gyroperm.solvers.kernels.output import choose_masks
from gyroperm.solvers.parallel import parallel_map
from gyroperm.solvers.registry import get, register
from gyroperm.solvers.search import Search
from gyroperm.solvers.surrogate import surrogate_gram

# A group of so many choices at most has them all tried; of larger ones only exchanges.
_MOST_CHOICES = 256
# Descents within a row end by themselves, after a few sweeps.
_ROW_SWEEPS = 50
_ROW_STRIP = 64
# A sweep that takes less than this part of the error brings nothing.
_NOTHING = 1e-3
_MEAN_FIELD = 0


@dataclass(frozen=True)
class OutputOptions:
    """Options of :func:`solve`.

    Attributes
    ----------
    columns : bool
        Whether columns move between groups; else masks alone are chosen anew.
    rounds : int
        How often all columns move, in a pass, by what pruning costs against an average of masks.
    moves : int
        Assignment moves in such a round.
    patience : int
        Passes in a row that bring nothing after which the search ends.
    start_share : float
        The share of the pace that goes to the start, which is the search for saliency.
    """

    columns: bool = True
    rounds: int = 20
    moves: int = 20
    patience: int = 2
    start_share: float = 0.3

    def __post_init__(self) -> None:
        if not isinstance(self.columns, bool):
            raise ValueError(f"columns must be true or false, got {self.columns!r}")
        for name in ("rounds", "moves", "patience"):
            object.__setattr__(self, name, checked_integer(name, getattr(self, name), 1))
        if not 0 < self.start_share < 1:
            raise ValueError(f"start_share must lie in (0, 1), got {self.start_share}")


@register("output", options=OutputOptions, judges="output")
def solve(search: Search, options: OutputOptions) -> Arrangement:
    """Assignment moves by what the layer's output loses, masks by its error; gyroperm's own.

    From the order that keeps the most saliency on, columns move by what pruning each weight would
    cost the output given all others, where the others' masks are averaged over the rounds of a
    pass. Rows then choose their masks within the groups by the true error. What does not lower it
    is taken back. A round is a pass.
    """
    problem = search.problem
    begin = search.initial or _start(search, options)
    if search.stopped():
        return begin
    state = _State(problem, begin, options, search.threads)
    state.choose_all_masks(search)
    search.record(state.gained)
    stale = passes = 0
    while state.columns_move and stale < options.patience and not search.stopped():
        before = state.copy()
        state.mean_field(search, passes)
        state.choose_all_masks(search)
        stale = 0 if before[0] - state.error > _NOTHING * state.error else stale + 1
        if state.error > before[0]:
            state.restore(before)
        search.record(state.gained)
        passes += 1
    return state.arrangement()


def _start(search: Search, options: OutputOptions) -> Arrangement:
    """What keeps the most saliency."""
    part = search.part(options.start_share)
    method = get(chosen_method(search.problem, part._stop, search.threads))
    return method.solve(part, method.make_options(None))


class _State:
    """An arrangement, its mask, and the products of what it prunes with the Gram matrix.

    Parameters
    ----------
    problem : Problem
    begin : Arrangement
    options : OutputOptions
    threads : int
    """

    def __init__(
        self, problem: Problem, begin: Arrangement, options: OutputOptions, threads: int
    ) -> None:
        output = problem.output
        assert output is not None
        self._problem, self._options, self._threads = problem, options, threads
        self._n = problem.pattern.n
        self._rows = [rows[rows >= 0].copy() for rows in begin.tile_rows]
        self._groups = [np.array(groups) for groups in begin.groups]
        self._begin = begin
        mask = begin.mask(problem.saliency, self._n)
        self.W = output.weights.astype(np.float64)
        self.H = surrogate_gram(problem, mask) if output.compensated else output.damped_gram
        self.total = math.fsum(np.einsum("rc,rc->r", self.W @ self.H, self.W)) or 1.0
        self.pruned = ~mask
        self._choices = _choices(self._n, problem.pattern.m)
        self._noise = gumbel_noise()
        self.refresh()

    def refresh(self) -> None:
        """Compute the products and the error anew: sums of changes drift."""
        lost = np.where(self.pruned, self.W, 0.0)
        self.G: NDArray[np.float64] = lost @ self.H
        self.error = math.fsum(np.einsum("rc,rc->r", self.G, lost))

    @property
    def gained(self) -> float:
        """The part of the output that is left, at least 0."""
        return max(0.0, 1.0 - self.error / self.total)

    def arrangement(self) -> Arrangement:
        """As it is now."""
        order = self._begin.col_order
        if self._problem.pattern.is_plain and order is not None:
            order = self._groups[0].reshape(-1)
        found = Arrangement(self._begin.tile_rows, tuple(self._groups), order)
        return found.with_mask(~self.pruned)

    def choose_all_masks(self, search: Search) -> None:
        """Choose the masks of all rows anew within the groups as they are, until it is stopped."""
        if self._n == self._problem.pattern.m:
            return
        strips = [
            (rows[first : first + _ROW_STRIP], groups)
            for rows, groups in zip(self._rows, self._groups, strict=True)
            for first in range(0, len(rows), _ROW_STRIP)
        ]

        def choose(strip: tuple[NDArray[np.int32], NDArray[np.int32]]) -> float:
            if search.stopped():
                return 0.0
            rows, groups = strip
            G, pruned = self.G[rows], self.pruned[rows]
            fallen = choose_masks(
                self.W[rows], G, self.H, pruned, groups, self._choices, _ROW_SWEEPS
            )
            self.G[rows], self.pruned[rows] = G, pruned
            return float(fallen.sum())

        self.error -= math.fsum(parallel_map(choose, strips, self._threads))

    def mean_field(self, search: Search, number: int) -> None:
        """Regroup by what pruning costs against an average of the masks there were.

        Masks that rows have settled on make every other order look worse than it is, since what
        they prune is balanced within the groups that there are: it begins with the masks of most
        saliency, and averages.
        """
        average = (~self._best_masks(self._problem.saliency)).astype(np.float64)
        alone = np.square(self.W) * np.diagonal(self.H)
        for t in range(self._options.rounds):
            if search.stopped():
                break
            cost = 2.0 * self.W * ((self.W * average) @ self.H) + alone * (1.0 - 2.0 * average)
            # Every row keeps the same number: a constant changes no choice; kernels want none < 0.
            cost -= cost.min(axis=1, keepdims=True)
            self._regroup(cost, search.random(_MEAN_FIELD, number, t))
            self.pruned = ~self._best_masks(cost)
            average += (self.pruned - average) / (t + 2.0)
        self.refresh()

    def _regroup(self, saliency: NDArray[np.float64], random: np.random.Generator) -> None:
        """Assignment moves in every tile that keep the most of a saliency."""
        largest = saliency.max() or 1.0
        states = random.integers(0, 2**64, size=(len(self._groups), 1), dtype=np.uint64)
        m = self._problem.pattern.m
        nothing = np.zeros((0, m, self._problem.columns + 1), dtype=np.float32)

        def regroup(tile: int) -> None:
            rows, groups = self._rows[tile], self._groups[tile]
            if not len(groups):
                return
            X = np.zeros((saliency.shape[1] + 1, len(rows)), dtype=np.float32)
            X[:-1] = saliency[rows].T / largest
            assignment_moves(
                X,
                groups,
                self._pool(tile),
                self._n,
                self._options.moves,
                0.0,
                self._noise,
                np.arange(len(groups)),
                nothing,
                np.zeros((0, m), dtype=np.bool_),
                states[tile],
            )

        parallel_map(regroup, range(len(self._groups)), self._threads)

    def _best_masks(self, saliency: NDArray[np.floating]) -> NDArray[np.bool_]:
        mask = np.zeros(saliency.shape, dtype=np.bool_)
        for rows, groups in zip(self._rows, self._groups, strict=True):
            mask_tile(saliency, rows, groups, self._n, mask)
        return mask

    def _pool(self, tile: int) -> NDArray[np.int32]:
        every = np.arange(self._problem.columns, dtype=np.int32)
        return np.setdiff1d(every, self._groups[tile].reshape(-1))

    @property
    def columns_move(self) -> bool:
        """Whether columns may go elsewhere; windows keep theirs."""
        return self._options.columns and self._problem.pattern.allocation != "window"

    def copy(self) -> tuple[float, list[NDArray[np.int32]], NDArray[np.bool_]]:
        """What :meth:`restore` goes back to."""
        return self.error, [groups.copy() for groups in self._groups], self.pruned.copy()

    def restore(self, kept: tuple[float, list[NDArray[np.int32]], NDArray[np.bool_]]) -> None:
        """Go back to a copy."""
        _, self._groups, self.pruned = kept
        self.refresh()


def _choices(n: int, m: int) -> NDArray[np.bool_]:
    """All ways to keep n of m places, (k, m); none where they are too many to try."""
    if comb(m, n) > _MOST_CHOICES:
        return np.zeros((0, m), dtype=np.bool_)
    choices = np.zeros((comb(m, n), m), dtype=np.bool_)
    for k, places in enumerate(combinations(range(m), n)):
        choices[k, list(places)] = True
    return choices
