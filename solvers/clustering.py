"""Balanced k-means: clusters of equal size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gyroperm.solvers.assignment import max_transport


def cluster_sums(
    vectors: NDArray[np.float32], members: NDArray[np.integer], clusters: int
) -> NDArray[np.float64]:
    """The summed members of each cluster, shape (clusters, C)."""
    sums = np.empty((clusters, vectors.shape[1]))
    for k, chosen in enumerate(members.reshape(clusters, -1)):
        vectors[chosen].sum(axis=0, dtype=np.float64, out=sums[k])
    return sums


def balanced_clusters(
    vectors: NDArray[np.float32],
    clusters: int,
    rng: np.random.Generator,
    iterations: int,
    stopped: Callable[[], bool],
) -> NDArray[np.intp]:
    """Balanced k-means: as many vectors in every cluster, nearest to their mean in all.

    Parameters
    ----------
    vectors : ndarray of float32, shape (clusters * size, C)
    clusters : int
    rng : numpy.random.Generator
        Draws the vectors that are the first centroids.
    iterations : int
        At most so many; ends earlier where the clusters repeat.
    stopped : callable
        Asked after every iteration.

    Returns
    -------
    ndarray of intp, shape (clusters * size,)
        The members of the first cluster, of the second, ...
    """
    size = len(vectors) // clusters
    if size == 1:
        return np.arange(clusters)
    centroids = vectors[rng.choice(len(vectors), clusters, replace=False)]
    labels = np.full(len(vectors), -1)
    for _ in range(iterations):
        # ||x - c||^2 less what does not depend on the cluster.
        gain = 2.0 * (vectors @ centroids.T) - np.einsum("kc,kc->k", centroids, centroids)
        previous, labels = labels, max_transport(gain, size)
        if np.array_equal(labels, previous) or stopped():
            break
        members = np.argsort(labels, kind="stable")
        centroids = (cluster_sums(vectors, members, clusters) / size).astype(np.float32)
    return np.argsort(labels, kind="stable")
