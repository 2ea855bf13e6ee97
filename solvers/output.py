"""The least error of a layer's output: masks and columns moved by what the output loses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gyroperm.arguments import checked_integer, is_number
from gyroperm.arrangement import Arrangement
from gyroperm.solvers.auto import chosen_method
from gyroperm.solvers.cooling import gumbel_noise
from gyroperm.solvers.kernels.grouping import assignment_moves
from gyroperm.solvers.kernels.masking import mask_tile
from gyroperm.solvers.kernels.output import choose_masks, include, pruning_costs
from gyroperm.solvers.parallel import parallel_map
from gyroperm.solvers.registry import get, register
from gyroperm.solvers.search import Search
from gyroperm.solvers.surrogate import surrogate_gram

# A group of so many choices at most has them all tried; of larger ones only exchanges.
_MOST_CHOICES = 256
# Descents within a row end by themselves, after a few sweeps.
_ROW_SWEEPS = 50
_ROW_STRIP = 64
# A pass that takes less than this part of the error brings nothing.
_NOTHING = 1e-3
# Assignment moves on so many groups at most: larger ones cost more a column.
_BLOCK = 96
# Columns of H that are multiplied by at once, so that they stay in the second-level cache.
_TILE = 256
# How much of the reaction to a weight counts when a pass begins; in the end all of it does.
_REACTION = 0.5
# Temperatures of the masks when they are annealed, in a row's error over its number of groups.
_HOT, _COLD = 1.0, 0.01
# The random streams: of assignment moves, and of masks.
_COLUMNS, _MASKS = 0, 1


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
        Passes in a row that bring nothing after which columns stay.
    sweeps : int
        How often every row draws every group's mask while it cools down; a time limit sets that
        number itself. 0 only descends.
    start_share : float
        The share of the pace that goes to the start, which is the search for saliency.
    mask_share : float
        The share of a time limit that goes to masks alone, at last.
    """

    columns: bool = True
    rounds: int = 100
    moves: int = 10
    patience: int = 2
    sweeps: int = 100
    start_share: float = 0.15
    mask_share: float = 0.2

    def __post_init__(self) -> None:
        if not isinstance(self.columns, bool):
            raise ValueError(f"columns must be true or false, got {self.columns!r}")
        for name, least in (("rounds", 1), ("moves", 1), ("patience", 1), ("sweeps", 0)):
            object.__setattr__(self, name, checked_integer(name, getattr(self, name), least))
        for name in ("start_share", "mask_share"):
            if not is_number(share := getattr(self, name)) or not 0 < share < 1:
                raise ValueError(f"{name} must lie in (0, 1), got {share!r}")


@register("output", options=OutputOptions, judges="output")
def solve(search: Search, options: OutputOptions) -> Arrangement:
    """Assignment moves by what the layer's output loses, masks by its error; gyroperm's own.

    From the order that keeps the most saliency on, columns move by what pruning each weight would
    cost the output given all others, where the others' masks are averaged over the rounds of a
    pass. Rows then choose their masks within the groups by the true error. A pass that does not
    lower it is taken back. At last the masks are annealed. A round is a pass.
    """
    begin = search.initial or _start(search, options)
    if search.stopped():
        return begin
    state = _State(search, begin, options)
    state.choose_all_masks(search)
    search.record(state.gained)
    if state.columns_move:
        _move_columns(search, state, options)
    state.anneal_masks(search)
    search.improve(state.gained)
    return state.arrangement()


def _start(search: Search, options: OutputOptions) -> Arrangement:
    """What keeps the most saliency."""
    part = search.part(options.start_share)
    method = get(chosen_method(search.problem, part._stop, search.threads))
    return method.solve(part, method.make_options(None))


def _move_columns(search: Search, state: _State, options: OutputOptions) -> None:
    """Passes, as long as they bring something, and until only the masks' share is left."""
    end = 1.0 - options.mask_share if search.by_clock else 1.0
    stale = passes = 0
    while stale < options.patience and not search.stopped() and _spent(search) < end:
        before = state.copy()
        state.mean_field(search, passes, end)
        state.choose_all_masks(search)
        stale = 0 if before[0] - state.error > _NOTHING * state.error else stale + 1
        if state.error > before[0]:
            state.restore(before)
        search.record(state.gained)
        passes += 1


def _spent(search: Search) -> float:
    """How much of what is allowed is used up; 0 where that is not known."""
    return search.progress() or 0.0


class _Course:
    """How far something has come that takes a number of steps, or whatever time it has.

    Parameters
    ----------
    search : Search
    steps : int
        All there are, unless a clock sets the pace and ``fill`` is true.
    end : float
        The progress of the search at which it has to be over, where a clock sets the pace.
    fill : bool
        Whether it takes all the time that it has.
    """

    def __init__(self, search: Search, steps: int, end: float, *, fill: bool = False) -> None:
        self._search = search
        self._steps = steps if not (fill and search.by_clock) else 0
        self._begin, self._end = _spent(search), end
        self._taken = 0

    def step(self) -> float | None:
        """Where the next step stands, from 0 to 1; None when it is over."""
        search = self._search
        if search.stopped():
            return None
        at = self._taken / max(1, self._steps - 1) if self._steps else 0.0
        if search.by_clock:
            room = self._end - self._begin
            at = max(at, (_spent(search) - self._begin) / room if room > 0 else 1.0)
        over = at >= 1.0 if not self._steps else self._taken >= self._steps or at > 1.0
        self._taken += 1
        return None if over else min(1.0, at)


class _State:
    """An arrangement, its mask, and the products of what it prunes with the Gram matrix.

    Parameters
    ----------
    search : Search
    begin : Arrangement
    options : OutputOptions
    """

    def __init__(self, search: Search, begin: Arrangement, options: OutputOptions) -> None:
        problem = search.problem
        output = problem.output
        assert output is not None
        self._problem, self._options, self._threads = problem, options, search.threads
        self._n = problem.pattern.n
        self._rows = [rows[rows >= 0].copy() for rows in begin.tile_rows]
        self._groups = [np.array(groups) for groups in begin.groups]
        self._begin = begin
        mask = begin.mask(problem.saliency, self._n)
        self.W = output.weights.astype(np.float64)
        self.H = surrogate_gram(problem, mask, search) if output.compensated else output.damped_gram
        self.total = math.fsum(np.einsum("rc,rc->r", self.W @ self.H, self.W)) or 1.0
        self.pruned = ~mask
        self._lost = _prunable(self._n, problem.pattern.m)
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
        self._choose(search, _ROW_SWEEPS, np.zeros(len(self.W)))
        self.refresh()

    def anneal_masks(self, search: Search) -> None:
        """Let rows draw their masks while they cool down; a row takes what is better in the end."""
        errors, pruned, G = self._errors(), self.pruned.copy(), self.G.copy()
        unit = errors / max(1, max(map(len, self._groups)))
        course = _Course(search, self._options.sweeps, 1.0, fill=True)
        number = 0
        while self._options.sweeps and (at := course.step()) is not None:
            self._choose(search, 1, unit * _HOT * (_COLD / _HOT) ** at, number)
            number += 1
        if not number:
            return
        # Whatever the clock says: what has been drawn is no result yet.
        self._choose(None, _ROW_SWEEPS, np.zeros(len(self.W)))
        self.refresh()
        worse = ~(self._errors() < errors)
        self.pruned[worse], self.G[worse] = pruned[worse], G[worse]
        self.error = math.fsum(self._errors())

    def _errors(self) -> NDArray[np.float64]:
        """Of each row, by its products."""
        return np.einsum("rc,rc->r", self.G, np.where(self.pruned, self.W, 0.0))

    def _choose(
        self, search: Search | None, sweeps: int, heat: NDArray[np.float64], number: int = 0
    ) -> None:
        """Sweeps of all rows over the masks of their groups; see :func:`choose_masks`."""
        if self._n == self._problem.pattern.m:
            return
        blocks = [_blocks(self.H, groups) for groups in self._groups]
        strips = self._strips()
        states = np.zeros((len(strips), 1), dtype=np.uint64)
        if search is not None and heat.any():
            random = search.random(_MASKS, number)
            states = random.integers(0, 2**64, size=states.shape, dtype=np.uint64)

        def choose(strip: int) -> None:
            if search is not None and search.stopped():
                return
            tile, rows = strips[strip]
            G, pruned = self.G[rows], self.pruned[rows]
            choose_masks(
                self.W[rows],
                G,
                self.H,
                pruned,
                self._groups[tile],
                blocks[tile],
                self._lost,
                sweeps,
                heat[rows],
                self._noise,
                states[strip],
            )
            self.G[rows], self.pruned[rows] = G, pruned

        parallel_map(choose, range(len(strips)), self._threads)

    def mean_field(self, search: Search, number: int, end: float) -> None:
        """Regroup by what pruning costs against an average of the masks there were.

        Masks that rows have settled on make every other order look worse than it is, since what
        they prune is balanced within the groups that there are: it begins with the masks of most
        saliency, and averages. Averages have settled too, to what each weight itself has been, a
        reaction that favours its staying so (Thouless, Anderson and Palmer, 1977): its part of
        the diagonal counts half at first, and whole in the end, when masks are to be definite.
        """
        W, H = self.W.astype(np.float32), _in_tiles(self.H)
        diagonal = np.diagonal(self.H).astype(np.float32)
        average, products, settled, cost = (np.zeros_like(W) for _ in range(4))
        before = np.zeros_like(self.pruned)
        self.pruned = ~self._best_masks(self._problem.saliency)
        course = _Course(search, self._options.rounds, end)
        t = 0
        while (at := course.step()) is not None:
            own = np.float32(_REACTION + (1.0 - _REACTION) * at) * diagonal
            share = np.float32(1.0 / (t + 1.0))

            def weigh(first: int, own: Any = own, share: Any = share, before: Any = before) -> None:
                r = slice(first, first + _ROW_STRIP)
                include(
                    W[r], H, before[r], self.pruned[r], share, average[r], settled[r], products[r]
                )
                pruning_costs(W[r], own, average[r], products[r], cost[r])

            parallel_map(weigh, range(0, len(W), _ROW_STRIP), self._threads)
            self._regroup(cost, search.random(_COLUMNS, number, t))
            before, self.pruned = self.pruned, ~self._best_masks(cost)
            t += 1
        self.refresh()

    def _regroup(self, saliency: NDArray[np.float32], random: np.random.Generator) -> None:
        """Assignment moves that keep the most of a saliency, in blocks of every tile's groups."""
        largest = saliency.max() or np.float32(1)
        m = self._problem.pattern.m
        nothing = np.zeros((0, m, self._problem.columns + 1), dtype=np.float32)
        unknown = np.zeros((0, m), dtype=np.bool_)

        def columns_of(tile: int) -> NDArray[np.float32]:
            rows = self._rows[tile]
            X = np.zeros((saliency.shape[1] + 1, len(rows)), dtype=np.float32)
            X[:-1] = saliency[rows].T / largest
            return X

        columns = parallel_map(columns_of, range(len(self._groups)), self._threads)
        blocks = [
            (tile, places, pool)
            for tile in range(len(self._groups))
            for places, pool in self._deal(tile, random)
        ]
        states = random.integers(0, 2**64, size=(len(blocks), 1), dtype=np.uint64)

        def regroup(block: int) -> None:
            tile, places, pool = blocks[block]
            groups = self._groups[tile][places]
            assignment_moves(
                columns[tile],
                groups,
                pool,
                self._n,
                self._options.moves,
                0.0,
                self._noise,
                places,
                nothing,
                unknown,
                states[block],
            )
            self._groups[tile][places] = groups

        parallel_map(regroup, range(len(blocks)), self._threads)

    def _deal(
        self, tile: int, random: np.random.Generator
    ) -> list[tuple[NDArray[np.intp], NDArray[np.int32]]]:
        """A tile's groups dealt out into blocks, and the columns that it discards with them."""
        groups = len(self._groups[tile])
        if not groups:
            return []
        count = -(-groups // _BLOCK)
        places = np.array_split(random.permutation(groups), count)
        return list(
            zip(places, np.array_split(random.permutation(self._pool(tile)), count), strict=True)
        )

    def _best_masks(self, saliency: NDArray[np.floating]) -> NDArray[np.bool_]:
        mask = np.zeros(saliency.shape, dtype=np.bool_)

        def choose(strip: tuple[int, NDArray[np.int32]]) -> None:
            tile, rows = strip
            mask_tile(saliency, rows, self._groups[tile], self._n, mask)

        parallel_map(choose, self._strips(), self._threads)
        return mask

    def _strips(self) -> list[tuple[int, NDArray[np.int32]]]:
        """A tile and some of its rows each."""
        return [
            (tile, rows[first : first + _ROW_STRIP])
            for tile, rows in enumerate(self._rows)
            for first in range(0, len(rows), _ROW_STRIP)
        ]

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


def _in_tiles(H: NDArray[np.float64]) -> NDArray[np.float32]:
    """A matrix (C, C) as (tiles, C, width), some of its columns in each tile; zeros beyond."""
    count = -(-len(H) // _TILE)
    tiles = np.zeros((count, len(H), _TILE), dtype=np.float32)
    for tile, own in zip(
        tiles, np.array_split(H, range(_TILE, len(H), _TILE), axis=1), strict=True
    ):
        tile[:, : own.shape[1]] = own
    return tiles


def _prunable(n: int, m: int) -> NDArray[np.int64]:
    """All sets of places that a group may prune, (k, m - n); none where there are too many."""
    if comb(m, n) > _MOST_CHOICES:
        return np.zeros((0, m - n), dtype=np.int64)
    return np.array(list(combinations(range(m), m - n)), dtype=np.int64)


def _blocks(H: NDArray[np.float64], groups: NDArray[np.int32]) -> NDArray[np.float64]:
    """H of the columns of each group, (g, m, m), 0 for virtual ones."""
    real = groups >= 0
    return np.where(
        real[:, :, None] & real[:, None, :], H[groups[:, :, None], groups[:, None, :]], 0
    )
