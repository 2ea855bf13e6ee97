"""Output-channel permutation for what is kept: rows into tiles whose groups are fixed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gyroperm.solvers.cooling import Thermostat, gumbel_noise
from gyroperm.solvers.kernels.exact_rows import exact_row_moves
from gyroperm.solvers.parallel import parallel_map
from gyroperm.solvers.search import Search

# A call takes so many moves as fit in about 10 ms: long enough to hide the call and what else a
# round does, short enough to look at the clock.
_CALL_NS = 10_000_000
_MAX_MOVES = 128
# Tiles among which a move exchanges rows: more are dealt into blocks.
_BLOCK_TILES = 64


@dataclass(eq=False)
class _Job:
    """Tiles of one block between which rows move."""

    chosen: NDArray[np.intp]
    tiles: NDArray[np.int32]
    groups: NDArray[np.int32]
    state: NDArray[np.uint64]
    moved: int = 0
    released: int = 0

    def run(self, S: NDArray[np.float32], n: int, temperature: float) -> None:
        T, G, m = self.groups.shape
        # A group of a row costs about m / 5 ns, to release an element about 1 ns.
        cost = T * (T * G * m / 5 + S.shape[1])
        moves = min(_MAX_MOVES, max(1, int(_CALL_NS / cost)))
        _, self.moved = exact_row_moves(
            S, self.tiles, self.groups, n, moves, temperature, gumbel_noise(), self.state
        )
        self.released = moves * T


def exchange_rows(
    search: Search,
    tile_rows: NDArray[np.int32],
    groups: NDArray[np.int32],
    thermostat: Thermostat,
    target: float,
    stream: tuple[int, ...],
) -> None:
    """Exchange rows between the tiles of each block, in place, for what their groups keep.

    Parameters
    ----------
    search : Search
    tile_rows : ndarray of int32, shape (T, V)
        Changed in place; -1 for virtual rows.
    groups : ndarray of int32, shape (T, G, m)
        What each tile keeps; C for virtual columns.
    thermostat : Thermostat
    target : float
        The share of released rows that should go elsewhere; 0 only descends.
    stream : tuple of int
        Names the random stream.
    """
    problem = search.problem
    random = search.random(*stream)
    jobs = []
    for b, count in enumerate(problem.block_tiles):
        tiles = random.permutation(np.flatnonzero(problem.tile_block == b))
        for chosen in np.array_split(tiles, -(-count // _BLOCK_TILES)):
            if len(chosen) > 1:
                state = random.integers(0, 2**64, size=1, dtype=np.uint64)
                jobs.append(_Job(chosen, tile_rows[chosen], groups[chosen], state))
    S, n = problem.search_saliency, problem.pattern.n
    warm = thermostat.temperature if target > 0.0 else 0.0

    def run(job: _Job) -> None:
        if not search.stopped():
            job.run(S, n, warm)

    parallel_map(run, jobs, search.threads)
    for job in jobs:
        tile_rows[job.chosen] = job.tiles
        thermostat.count(job.moved, job.released)
    thermostat.steer(target)
