"""OVW's channel permutation: similar rows share a tile, columns stay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gyroperm.arguments import checked_integer
from gyroperm.arrangement import Arrangement
from gyroperm.problem import Problem
from gyroperm.solvers.assignment import transport_seconds
from gyroperm.solvers.clustering import balanced_clusters
from gyroperm.solvers.identity import identity_arrangement
from gyroperm.solvers.registry import register
from gyroperm.solvers.search import Search
from gyroperm.solvers.vectors import arrange_tiles, rows_as_they_lie, rows_of, tile_values

FEATURES = ("saliency", "mask")


@dataclass(frozen=True)
class OvwOptions:
    """Options of :func:`solve`.

    Attributes
    ----------
    features : {"saliency", "mask"}
        What makes rows similar: their saliencies, or whether each is among the layer's largest,
        as many as the vector level keeps.
    iterations : int
        At most so many iterations of k-means; it ends earlier where the clusters repeat.
    restarts : int
        Clusterings from other first centroids, of which the best is kept.

    Raises
    ------
    ValueError
        If ``features`` is unknown or a number is not a positive integer.
    """

    features: str = "saliency"
    iterations: int = 20
    restarts: int = 1

    def __post_init__(self) -> None:
        if self.features not in FEATURES:
            raise ValueError(
                f"features must be one of {', '.join(FEATURES)}, got {self.features!r}"
            )
        for name in ("iterations", "restarts"):
            object.__setattr__(self, name, checked_integer(name, getattr(self, name), 1))


@register("ovw", options=OvwOptions)
def solve(search: Search, options: OvwOptions) -> Arrangement:
    """OVW's permutation (Tan et al., 2022): rows clustered into tiles by balanced k-means.

    Every tile then keeps its highest scoring vectors, in groups as they lie: columns are not
    permuted, and in windowed patterns the order stays.

    A round, in the sense of stopping criteria, is one clustering.

    Parameters
    ----------
    search : Search
        With ``initial``, that competes with the clusterings; a windowed pattern keeps its order.
    options : OvwOptions

    Returns
    -------
    Arrangement

    Raises
    ------
    ValueError
        If the pattern is plain N:M, which has no tiles of rows.

    Notes
    -----
    Faithful are the V x 1 vectors and the clusters of exactly V similar rows. The paper prunes
    vectors alone (n = m here); n:m among those kept is an extension, as are shared windows and
    one budget for all tiles. This module's choices are the features, balance by an optimal
    assignment in each iteration of k-means, and the choice of vectors by their summed saliency.

    References
    ----------
    Tan, Han, Zhao, Yu, Du, Chen, Wang and Yao, Accelerating Sparse Convolution with Column
    Vector-Wise Sparsity, NeurIPS 2022.
    """
    problem = search.problem
    if problem.pattern.is_plain:
        raise ValueError(
            f"method 'ovw' puts rows into tiles, of which {problem.pattern.name} has none; it "
            f"takes patterns with a vec_size: Pattern.hinm, vnm, vector_nm and tvw"
        )
    best = search.initial or identity_arrangement(problem)
    if search.stopped():
        return best
    order = best.col_order
    most = sum(tile_values(problem, best, search.threads))
    search.improve(most)
    features = _features(problem, options)
    for restart in range(options.restarts):
        if search.stopped():
            break
        tile_rows = _clustered(search, features, options, restart)
        arrangement = arrange_tiles(problem, tile_rows, order)
        value = sum(tile_values(problem, arrangement, search.threads))
        search.record(value)
        if value > most:
            best, most = arrangement, value
    return best


def _features(problem: Problem, options: OvwOptions) -> NDArray[np.float32]:
    """What rows are compared by, (R, C)."""
    saliency = problem.search_saliency
    if options.features == "saliency":
        return saliency
    kept = round(saliency.size * min(1.0, problem.kept_columns / problem.padded_columns))
    threshold = np.partition(saliency.reshape(-1), saliency.size - kept)[saliency.size - kept]
    return (saliency >= threshold).astype(np.float32)


def _clustered(
    search: Search, features: NDArray[np.float32], options: OvwOptions, restart: int
) -> NDArray[np.int32]:
    """Tiles of similar rows, (T, V), ascending within each, virtual rows last."""
    problem = search.problem
    tile_rows = rows_as_they_lie(problem)
    for block, count in enumerate(problem.block_tiles):
        if count > 1:
            mine = problem.tile_block == block
            rows = tile_rows[mine].reshape(-1)
            rng = search.random(restart, block)
            clusters = _clusters(search, features, rows, count, rng, options.iterations)
            # Virtual rows (-1, the largest unsigned) come last.
            tile_rows[mine] = np.sort(clusters.view(np.uint32), axis=1).view(np.int32)
    return tile_rows


def _clusters(
    search: Search,
    features: NDArray[np.float32],
    rows: NDArray[np.int32],
    count: int,
    rng: np.random.Generator,
    iterations: int,
) -> NDArray[np.int32]:
    """Rows in so many clusters of similar ones, (count, V); as they lie if there is no time."""

    def too_late() -> bool:
        return not search.affords(transport_seconds(len(rows), count))

    if too_late():
        return rows.reshape(count, -1)
    vectors = rows_of(features, rows)
    members = balanced_clusters(vectors, count, rng, iterations, too_late)
    return rows[members].reshape(count, -1)
