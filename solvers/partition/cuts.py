"""Subset-row cuts: of any three columns, at most one group of a partition holds two or more."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

# By how much a relaxation must break a cut for it to be worth a row.
_BROKEN = 1e-3


def pair_shares(
    groups: NDArray[np.int32], shares: NDArray[np.float64], columns: int
) -> NDArray[np.float64]:
    """How much of each pair of columns is together: shape (C', C'), 1 on the diagonal."""
    held = np.zeros((len(groups), columns))
    held[np.arange(len(groups))[:, None], groups] = 1.0
    together: NDArray[np.float64] = held.T @ (held * shares[:, None])
    return together


def broken_cuts(
    groups: NDArray[np.int32], shares: NDArray[np.float64], columns: int
) -> NDArray[np.int32]:
    """The subset-row cuts that a relaxation breaks, (c, 3), the most broken first.

    Parameters
    ----------
    groups : ndarray of int32, shape (k, m)
        The groups in use,
    shares : ndarray of float64, shape (k,)
        and how much of each.
    columns : int
        C'.
    """
    together = pair_shares(groups, shares, columns)
    # A group that holds all three columns counts in each of their pairs, but once in the cut.
    triples = np.zeros((columns, columns, columns), dtype=np.float32)
    for places in combinations(range(groups.shape[1]), 3):
        np.add.at(triples, tuple(groups[:, places].T), shares.astype(np.float32))
    found, excess = [], []
    for a in range(columns - 2):
        rest = together[a + 1 :, a + 1 :]
        mine = together[a, a + 1 :]
        use = rest + mine[:, None] + mine[None, :] - 2.0 * triples[a, a + 1 :, a + 1 :]
        second, third = np.nonzero(np.triu(use > 1.0 + _BROKEN, 1))
        cut = [np.full(len(second), a), second + a + 1, third + a + 1]
        found.append(np.stack(cut, axis=1))
        excess.append(use[second, third])
    cuts = np.concatenate(found).astype(np.int32)
    order = np.argsort(-np.concatenate(excess), kind="stable")
    return cuts[order]
